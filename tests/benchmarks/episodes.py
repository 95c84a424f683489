"""What whole episodes of memalpha cost beside the engine: sampling side by side, and the journal of a step.

    python -m tests.benchmarks.episodes [--repeats N] sampling [--engine ENGINE] [--num-rollouts N] [--max-tokens N]
    python -m tests.benchmarks.episodes [--repeats N] journal

Sampling: 16 instances of ten chunks advance side by side, as RL walks through them (`Collector.walk`), with a tiny
model. Its weights are random and say nothing: what it samples costs what it costs, and behind the engine calls that
store lines take its place, so that memories grow. Then the engine alone gets the very prompts again, with the same
seeds, so that it samples the same tokens. The two take turns, each from an empty cache of prefixes.

Journal: a step of 32 instances x 8 rollouts of made-up ids, written as RL writes it, over the time of such a step:
as published, and as tests/benchmarks/scaling.py models its parts on 32 GPUs, where nobody waits for a model that
answers or judges and no answer is longer than another, so that this share is too large. What counts is time of the
CPU, because a step is not measured on this machine, where the writer may wait for others; the disk is not in it.
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from membuilder.config import load
from membuilder.embedding.local import Embedder
from membuilder.generate.instances import generate_instances
from membuilder.schemes.memalpha.scheme import WRITER
from membuilder.schemes.scheme import Scheme
from membuilder.types import Agent, AgentUpdate, Dialogue, Operation, OperationKind
from rollout.equal_prompts import DrawsApart
from rollout.tokens import encode_completion, load_tokenizer
from rollout.types import Engine, Sampled, SamplingConfig
from tests.benchmarks.common import rounds, times_over, write
from tests.benchmarks.learning import load_folder
from tests.benchmarks.made_up_step import ANSWER_TOKENS, INSTANCES, OWN_TOKENS, ROLLOUTS, SHARED_TOKENS, made_up_step
from tests.benchmarks.scaling import generate_seconds, read_inputs, reduce_seconds, update_seconds
from trainer import tiny
from trainer.distributed.process_group import World
from trainer.experience.rollout_cache import Experience, RolloutCache
from trainer.rl_config import RLConfig
from trainer.run_setup import make_collector, make_engine

RESULTS = Path(__file__).parent / "results"
NUM_INSTANCES, NUM_CHUNKS, LINES_FROM = 16, 10, 8
"""A chunk has the lines of so many generated ones: about 1,100 tokens."""
NUM_ANSWERS, CALLS_PER_ANSWER = 256, 4
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}{% if loop.first and tools %}"
    "{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}{% endif %}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""It writes tools behind the instructions, as Qwen3's does."""
SETTINGS = (
    "scheme=memalpha", "dense=false", "memalpha.entries_shown=12", "sampling.temperature=1", "sampling.top_p=1",
    "max_model_len=8448", "model.dtype=float32", "reward.judge=excerpt", "reward.baseline=episode",
)  # fmt: skip
PUBLISHED_CONFIG = "configs/memalpha_qwen3_4b_32gpu.yaml"
PUBLISHED_SECONDS = 3 * 24 * 3600
"""Of that run: about three days on 32 H100 (arXiv 2509.25911)."""


def instances(number: int) -> list[Dialogue]:
    """Generated instances of ten chunks, each of as many lines as `LINES_FROM` instances have."""
    drawn = generate_instances(number * LINES_FROM, 1, "train", NUM_CHUNKS)
    return [_joined(drawn[start : start + LINES_FROM]) for start in range(0, len(drawn), LINES_FROM)]


def _joined(parts: list[Dialogue]) -> Dialogue:
    sessions = []
    for of_chunk in zip(*(part.sessions for part in parts), strict=True):
        first = of_chunk[0]
        turns = [turn for session in of_chunk for turn in session.turns]
        turns = tuple(replace(turn, id=f"{first.id}:{number}") for number, turn in enumerate(turns, start=1))
        sessions.append(replace(first, turns=turns))
    return replace(parts[0], sessions=tuple(sessions), questions=())


def answers_of(scheme: Scheme, tokenizer: PreTrainedTokenizerBase, num_lines: int) -> list[tuple[int, ...]]:
    """Return the ids of answers that each store some other lines of a chunk."""
    draw, answers = np.random.default_rng(1), []
    for _ in range(NUM_ANSWERS):
        lines = draw.choice(num_lines, CALLS_PER_ANSWER, replace=False) + 1
        parts = (Agent.SEMANTIC, Agent.EPISODIC)
        operations = tuple(
            Operation(kind=OperationKind.ADD, part=parts[number % 2], quote=(int(line),))
            for number, line in enumerate(lines)
        )
        text = scheme.write(WRITER, AgentUpdate(operations=operations), None, {WRITER: ()})
        answers.append(tuple(encode_completion(tokenizer, text)))
    return answers


@dataclass
class SpeaksInCalls:
    """An engine that samples as the one inside does and says calls; it remembers what that one was asked."""

    inner: Engine
    answers: list[tuple[int, ...]]
    asked: list[tuple[list[list[int]], int, SamplingConfig, int]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    @property
    def max_model_len(self) -> int:
        return self.inner.max_model_len

    def stream(self, prompts: list[list[int]], n: int, sampling: SamplingConfig, seed: int) -> Iterator[Sampled]:
        self.asked.append((prompts, n, sampling, seed))
        for prompt, number, completion in self.inner.stream(prompts, n, sampling, seed):
            self.lengths.append(len(completion.token_ids))
            ids = self.answers[sum(completion.token_ids) % len(self.answers)]
            said = replace(completion, token_ids=ids, rollout_logprobs=(0.0,) * len(ids), finished=True)
            yield Sampled(prompt, number, said)

    def replay(self) -> None:
        """Let the engine inside sample again what it was asked last, and nothing else happen."""
        for asked in self.asked:
            for _ in self.inner.stream(*asked):
                pass


def measure_sampling(name: str, num_rollouts: int, max_tokens: int, repeats: int) -> dict[str, Any]:
    """Return the row of one engine."""
    config = load(RLConfig, None, [*SETTINGS, f"engine={name}", f"sampling.max_tokens={max_tokens}"])
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "model"
        tiny.make(folder, tiny.TinyFolderConfig(), seed=1)
        tokenizer = load_tokenizer(str(folder))
        tokenizer.chat_template = TEMPLATE
        engine = make_engine(config, folder)
        bare = engine.inner if isinstance(engine, DrawsApart) else engine
        collector = make_collector(config, bare, tokenizer, Embedder())
        dialogues = instances(NUM_INSTANCES)
        num_lines = len(dialogues[0].sessions[0].turns)
        speaking = SpeaksInCalls(bare, answers_of(collector.scheme, tokenizer, num_lines))
        outer = DrawsApart(speaking) if isinstance(engine, DrawsApart) else speaking
        collector, walked = replace(collector, engine=outer, num_rollouts=num_rollouts), []

        def walk() -> None:
            speaking.asked.clear()
            speaking.lengths.clear()
            walked[:] = collector.walk(dialogues, seed=1)

        runs = {"walk": walk, "engine": speaking.replay}
        taken = rounds(runs, repeats, before=partial(load_folder, bare, folder))
        engine.close()
    prompts = [rollout.samples[WRITER].prompt_token_ids for of in walked for group in of for rollout in group.rollouts]
    last = [rollout.bank for of in walked for rollout in of[-1].rollouts]
    return {
        "what": "sampling",
        "engine": name,
        "instances": NUM_INSTANCES,
        "rollouts": num_rollouts,
        "chunks": NUM_CHUNKS,
        "prompts": len(prompts),
        "mean_prompt_tokens": fmean(map(len, prompts)),
        "mean_sampled_tokens": fmean(speaking.lengths),
        "mean_entries_at_the_end": fmean(len(bank.entries) for bank in last),
        "seconds": {run: median(each) for run, each in taken.items()},
        "all_seconds": taken,
        "over_engine": times_over(taken["walk"], taken["engine"]),
    }


def modelled_step_seconds(chunks: Sequence[int], updates: int) -> dict[str, float]:
    """Return the seconds of the parts of a step on GPUs that each walk through one instance of so many chunks."""
    prompt, answers = SHARED_TOKENS + OWN_TOKENS, np.full((1, ROLLOUTS), ANSWER_TOKENS)
    # the model's agents share a part of their prompts, as the rollouts of a chunk do
    inputs = replace(read_inputs(), agents=ROLLOUTS, shared_share=SHARED_TOKENS / prompt)
    return {
        "generate": max(chunks) * generate_seconds(inputs, np.array([prompt]), answers),
        "update": sum(chunks) * update_seconds(inputs, np.array([prompt]), answers) / len(chunks),
        "reduce": updates * reduce_seconds(inputs, len(chunks), micro_batches=1),
        "sync": inputs.weights_seconds + inputs.sleep_and_wake_seconds,
    }


def measure_journal(repeats: int) -> dict[str, Any]:
    """Return the row of the journal."""
    groups = made_up_step(instances(INSTANCES))
    with tempfile.TemporaryDirectory() as folder:
        cache, of_cpu = RolloutCache(Path(folder), World(), {}, anew=True), []

        def keep() -> None:
            began = time.process_time()
            cache.write(0, Experience(scored=groups, steered={}))
            of_cpu.append(time.process_time() - began)

        (taken,) = rounds({"write": keep}, repeats).values()
        size = (Path(folder) / "step_0.json").stat().st_size
    config = load(RLConfig, PUBLISHED_CONFIG)
    parts = modelled_step_seconds([*Counter(group.dialogue_id for group in groups).values()], config.updates_per_step)
    steps = {"modelled": sum(parts.values()), "published": PUBLISHED_SECONDS / config.num_steps}
    return {
        "what": "journal",
        "instances": INSTANCES,
        "rollouts": ROLLOUTS,
        "answers": len(groups) * ROLLOUTS,
        "megabytes": size / 1e6,
        "seconds": median(taken),
        "all_seconds": taken,
        "cpu_seconds": median(of_cpu[1:]),
        "modelled_step": parts,
        "step_seconds": steps,
        "cpu_share_of_step": {name: median(of_cpu[1:]) / step for name, step in steps.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="default: results/episodes_WHAT.json")
    parser.add_argument("--repeats", type=int, default=3, help="rounds behind the first one, which does not count")
    what = parser.add_subparsers(dest="what", required=True)
    what.add_parser("journal")
    sampling = what.add_parser("sampling")
    sampling.add_argument("--engine", choices=("vllm", "transformers"), default="vllm")
    sampling.add_argument("--num-rollouts", type=int, default=8, help="of each instance (default: %(default)s)")
    sampling.add_argument("--max-tokens", type=int, default=64, help="of an answer (default: %(default)s)")
    args = parser.parse_args()
    if args.what == "journal":
        row = measure_journal(args.repeats)
    else:
        row = measure_sampling(args.engine, args.num_rollouts, args.max_tokens, args.repeats)
    print(row)
    write(args.out or RESULTS / f"episodes_{args.what}.json", [row])


if __name__ == "__main__":
    main()
