"""What asking models for rewards costs, against a stub of 50 ms in a process of its own.

    python -m tests.benchmarks.reward                 # writes results/reward.json

`throughput`: 256 rollouts of 5 questions, two calls each, 64 in flight, against the time that the server alone needs.
Vectors are in the embedder's cache, all else is as in a step: searching, prompts, HTTP, reading verdicts.
`overlap`: a step of sampling and asking, against both one after the other; their times are made about equal. Hidden is
what the step saves, as a share of the shorter one. `transformers` and `vllm` decode on the CPU that asks, too; as on a
GPU, `replayed` gives what transformers sampled evenly over 8 seconds and leaves the CPU alone.
`faults`: the same questions where the server fails 10% of its requests and hangs in 2%: which verdicts are missing, and
whether any stands where all attempts of a call failed, or differs from what the server said.

Two processes share this machine's cores with whatever else runs: `load_average` says how much that was, and
`cpu_ms_per_call` is this process's own, which the first ratio cannot go below.
"""

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from statistics import fmean

from membuilder.embedding.local import Embedder
from membuilder.garbage import keep_loaded
from membuilder.llm.endpoints import Provider
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.four_agents.schemas import ResponseFormat
from membuilder.schemes.load import load_scheme, scheme_of
from membuilder.types import Agent, Bank, Entry, Question
from reward.asking import answer_banks
from reward.llm_judge import LLMJudge
from reward.qa import QAResult
from reward.rollouts import choose_questions
from reward.score import LLM, RewardConfig, RewardEndpoint
from rollout.types import Sampled, SamplingConfig
from tests.benchmarks.common import write
from tests.benchmarks.reward_stub import ANSWERED, answered, is_right, stub_server
from trainer.configs import ModelConfig, States, TinyConfig
from trainer.data.corpus import training_text
from trainer.experience.collector import Collector
from trainer.experience.session_stream import SessionStream
from trainer.model.tiny_model import build_model, train_tokenizer
from trainer.rl_config import RLConfig
from trainer.run_setup import make_collector, make_engine, rl_builds

ROLLOUTS, QUESTIONS, IN_FLIGHT, LATENCY, GOAL = 256, 5, 64, 0.05, 1.25
CALLS = 2 * ROLLOUTS * QUESTIONS
HIDDEN_GOAL, PACE_SECONDS, SESSIONS, END_SCALE = 0.8, 8.0, 16, 3.0
ENGINES = ("replayed:4", "transformers:4", "vllm:32")
"""And the rollouts of a session; vLLM decodes 256 sequences at once, and needs eight rounds for those."""
RESULTS = Path(__file__).parent / "results" / "reward.json"
SCHEME = load_scheme("four_agents", PromptConfig())
DAY = datetime(2023, 5, 8)


def reward_config(url: str, **changed) -> RewardConfig:
    few = {name: changed.pop(name) for name in ("max_attempts", "timeout_seconds") if name in changed}
    endpoint = RewardEndpoint(name="stub", provider=Provider.VLLM, base_url=url, max_wait_seconds=0.05, **few)
    return RewardConfig(judge=LLM, answerer=endpoint, grader=endpoint, max_concurrent=IN_FLIGHT, **changed)


def cases(repeat: int) -> list[tuple[Bank, list[Question]]]:
    """Banks that all differ, and the questions of each."""
    shared = [f"[2023-05-0{day}] Ann: I did thing {thing} with Ben." for day in range(1, 5) for thing in range(3)]
    questions = [
        Question(id=f"q{n}", text=f"What was thing {n}?", answer="gold", category="s", evidence=("D1:1",), asked_at=DAY)
        for n in range(QUESTIONS)
    ]
    banks = []
    for number in range(ROLLOUTS):
        entries = [
            Entry(id=f"m{k}", agent=Agent.EPISODIC, text=text, session=0, timestamp=DAY, source_turns=())
            for k, text in enumerate(shared)
        ]
        banks.append((Bank(core=f"Ann is user {repeat}-{number}.", entries=tuple(entries)), questions))
    return banks


def throughput(url: str, embedder: Embedder, repeat: int) -> dict:
    config, tasks = reward_config(url), cases(repeat)
    judge = LLMJudge(config)
    began, cpu = time.perf_counter(), time.process_time()
    results = answer_banks(tasks, SCHEME, embedder, judge, config.top_k, config.limits)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    calls = sum(count for name, count in judge.metrics().items() if name.endswith("/calls"))
    assert calls == CALLS and not any(result.num_missing for result in results), calls
    ideal = CALLS * LATENCY / IN_FLIGHT
    return {
        "kind": "throughput",
        "calls": CALLS,
        "in_flight": IN_FLIGHT,
        "ideal_seconds": ideal,
        "seconds": round(seconds, 3),
        "ratio_to_ideal": round(seconds / ideal, 3),
        "goal": GOAL,
        "cpu_ms_per_call": round(1000 * cpu / CALLS, 3),
        "load_average": round(os.getloadavg()[0], 1),
    }


class Replayed:
    """An engine that sampled already, and gives it in PACE_SECONDS as one elsewhere would."""

    def __init__(self, engine) -> None:
        self._engine, self.max_model_len = engine, engine.max_model_len
        self._sampled: dict[int, list[Sampled]] = {}

    def stream(self, prompts, n, sampling, seed) -> Iterator[Sampled]:
        if seed not in self._sampled:
            self._sampled[seed] = list(self._engine.stream(prompts, n, sampling, seed))
        began, count = time.perf_counter(), len(self._sampled[seed])
        for number, each in enumerate(self._sampled[seed], start=1):
            time.sleep(max(0.0, began + PACE_SECONDS * number / count - time.perf_counter()))
            yield each

    def close(self) -> None:
        self._engine.close()


class EveryTime(LLMJudge):
    """It shares no verdict: an untrained policy writes nothing, and its rollouts would all be one question."""

    def key(self, *case) -> object:
        return object()


def small_run(folder: Path, engine: str) -> tuple[RLConfig, Collector, SessionStream]:
    """An untrained tiny policy that samples SESSIONS sessions a few times, in an engine such as `vllm:32`."""
    engine, _, num_rollouts = engine.partition(":")
    config = RLConfig(
        out=str(folder),
        model=ModelConfig(path=str(folder), dtype="float32"),
        prompts=PromptConfig(template_set="compact", response_format=ResponseFormat.TURNS, entries_shown=0),
        sampling=SamplingConfig(temperature=1.0, top_p=1.0, max_tokens=96),
        reward=RewardConfig(earlier_questions=True, num_questions=1 if engine == "vllm" else QUESTIONS),
        engine="vllm" if engine == "vllm" else "transformers",
        sessions_per_step=SESSIONS,
        num_rollouts=int(num_rollouts),
        max_model_len=1024,
    )
    config.data.num_train, config.data.num_held_out, config.data.max_turns = 12, 1, 6
    embedder = Embedder()
    builds = rl_builds(config, embedder).train
    scheme = scheme_of(config)
    tokenizer = train_tokenizer(training_text(builds, scheme), scheme.tiny_tokens(6), 600)
    model = build_model(tokenizer, TinyConfig(vocab_size=600, hidden_size=64, num_layers=2), seed=1)
    # untrained it would never end an answer, and all would reach the limit at once
    model.get_input_embeddings().weight.data[tokenizer.eos_token_id] *= END_SCALE
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    made = make_engine(config, folder)
    collector = make_collector(config, Replayed(made) if engine == "replayed" else made, tokenizer, embedder)
    return config, collector, SessionStream(builds, embedder, scheme, SESSIONS, States.EXPERT, seed=1)


def after_another(collector: Collector, stream: SessionStream, seed: int) -> tuple[float, float]:
    """Seconds of sampling a step, and of asking all its questions afterwards."""
    tasks, experts = zip(*((stream.task(slot), stream.expert(slot)) for slot in range(SESSIONS)), strict=True)
    began = time.perf_counter()
    groups = collector.sample(tasks, collector.sampling, collector.num_rollouts, seed)
    sampled = time.perf_counter()
    asked = [
        (rollout.bank, choose_questions(build.asked(), session, collector.reward, f"{seed}-{group.id}"))
        for (build, session), group in zip(experts, groups, strict=True)
        for rollout in group.rollouts
    ]
    collector.answer(asked)
    return sampled - began, time.perf_counter() - sampled


def overlap(engine: str, repeats: int) -> list[dict]:
    """Rows of a step with its questions asked meanwhile, at a latency that makes both parts last about as long."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        config, collector, stream = small_run(Path(folder), engine)
        for _ in range(2):  # the first call is slow
            generate, _ = after_another(collector, stream, seed=0)
        num_questions = (
            sum(
                len(choose_questions(build.asked(), session, config.reward, ""))
                for build, session in map(stream.expert, range(SESSIONS))
            )
            * config.num_rollouts
        )
        sampled = collector.sample([stream.task(0)], collector.sampling, 4, seed=1)[0].rollouts
        mean_length = fmean(len(each.completion.token_ids) for rollout in sampled for each in rollout.samples.values())
        latency = generate * IN_FLIGHT / 4 / (2 * num_questions)  # a quarter in flight: this CPU decodes, too
        with stub_server(latency) as url:
            reward = replace(reward_config(url), max_concurrent=IN_FLIGHT // 4, earlier_questions=True)
            reward = replace(reward, num_questions=config.reward.num_questions)
            collector = replace(collector, judge=EveryTime(reward), reward=reward)
            for _ in range(repeats):
                generate, judge = after_another(collector, stream, seed=0)
                began = time.perf_counter()
                collector.dense(stream, 0.8, seed=0)
                both = time.perf_counter() - began
                rows.append({
                    "kind": "overlap",
                    "engine": engine,
                    "questions": num_questions,
                    "mean_length": round(mean_length, 1),
                    "latency_seconds": round(latency, 3),
                    "generate_seconds": round(generate, 2),
                    "judge_seconds": round(judge, 2),
                    "step_seconds": round(both, 2),
                    "hidden_share": round((generate + judge - both) / min(generate, judge), 3),
                    "goal": HIDDEN_GOAL,
                    "load_average": round(os.getloadavg()[0], 1),
                })  # fmt: skip
                print(rows[-1], flush=True)
        collector.engine.close()
    return rows


def faults(embedder: Embedder) -> dict:
    """Where two attempts of a call fail, and only there, the verdict is missing."""
    attempts, tasks = 2, cases(0)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.jsonl"
        with stub_server(LATENCY, 0.10, 0.02, log) as url:
            config = reward_config(url, max_attempts=attempts, timeout_seconds=3.0)
            judge, began = LLMJudge(config), time.perf_counter()
            results = answer_banks(tasks, SCHEME, embedder, judge, config.top_k, config.limits)
            seconds = time.perf_counter() - began
        outcomes: dict[str, list[str]] = defaultdict(list)
        for line in log.read_text(encoding="utf-8").splitlines():
            outcomes[json.loads(line)["asked"]].append(json.loads(line)["outcome"])
    causes: dict[str, int] = defaultdict(int)
    for result in results:
        for cause, count in result.missing.items():
            causes[cause] += count
    return {
        "kind": "faults",
        "questions": ROLLOUTS * QUESTIONS,
        "attempts": attempts,
        "requests": sum(map(len, outcomes.values())),
        "failed_or_hung": sum(outcome != ANSWERED for found in outcomes.values() for outcome in found),
        "missing": dict(causes),
        "calls_without_an_answer": sum(ANSWERED not in found for found in outcomes.values()),
        "invented_or_lost": invented(tasks, results, outcomes, judge),
        "seconds": round(seconds, 2),
    }


def invented(tasks, results: list[QAResult], outcomes: dict[str, list[str]], judge: LLMJudge) -> int:
    """Count verdicts that are not what the server's replies make them, missing where it never replied."""
    graded = {
        asked.partition("Answer to grade: ")[2].partition("\n")[0]: (asked, found)
        for asked, found in outcomes.items()
        if "Answer to grade: " in asked
    }
    wrong = 0
    for (bank, questions), result in zip(tasks, results, strict=True):
        for question, retrieval, verdict in zip(questions, result.retrievals, result.verdicts, strict=True):
            prompt, expected = judge.prompt(question, bank, retrieval), None
            if ANSWERED in outcomes[prompt]:
                asked, found = graded[answered(prompt)]
                expected = float(is_right(asked)) if ANSWERED in found else None
            wrong += verdict.correct != expected
    return wrong


def repeated(measure: Callable[[int], dict], repeats: int) -> list[dict]:
    rows = []
    for repeat in range(repeats):
        rows.append(measure(repeat))
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--engines", nargs="*", default=ENGINES)
    given = parser.parse_args()
    embedder = Embedder()
    embedder.embed(
        [text for bank, asked in cases(0) for text in [*(e.text for e in bank.entries), *(q.text for q in asked)]]
    )
    with stub_server(LATENCY) as url:
        throughput(url, embedder, -1)  # imports, and the server's first connections
        keep_loaded()  # as trainer.rl does once it is set up
        rows = repeated(lambda repeat: throughput(url, embedder, repeat), given.repeats)
    rows += repeated(lambda _: faults(embedder), 1)
    for engine in given.engines:
        rows += overlap(engine, given.repeats)
    write(RESULTS, rows)


if __name__ == "__main__":
    main()
