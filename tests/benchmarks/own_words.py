"""Does SmolLM2 learn to keep memory in its own words? The part `own_words` of tests.benchmarks.real_model.

A teacher (tests/benchmarks/teacher.py) answers `membuilder.expert` over HTTP about generated people. SFT imitates what
it answered, in the published format, and the model is judged on people that nobody trained on, beside the teacher.

The teacher reads the long prompts of the template set `full`; training asks by the short ones of the set `compact`,
which a processor can afford, and shows no entries: what updates an entry that is not shown is an ADD there.
"""

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from membuilder.bank.store import reading
from membuilder.config import dump
from membuilder.embedding.local import Embedder
from membuilder.evaluation.intervals import paired
from membuilder.files import write_atomic
from membuilder.generate.dialogue import generate
from membuilder.schemes.four_agents.apply import resolve
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.four_agents.scheme import FourAgents
from membuilder.schemes.load import scheme_of
from membuilder.schemes.scheme import Step
from membuilder.trajectories.records import SFTRecord, sft_records, write_records
from membuilder.trajectories.trajectory import STORE_FILE, Trajectory, read_trajectory, sample_folders
from membuilder.types import Agent, AgentUpdate, Dialogue, Entry, Failure, Operation, OperationKind
from rollout.tokens import load_tokenizer
from rollout.turns import Task
from rollout.types import Group, SamplingConfig
from tests.benchmarks.common import steps_done, train_until
from tests.benchmarks.side_by_side import NOTHING, actions, side_by_side
from tests.fault_server import served
from trainer.data.corpus import ExpertBuild, expert_builds, load_corpus
from trainer.experience.collector import Collector
from trainer.experience.evaluate import (
    BuiltBank,
    SystemResult,
    compare_baselines,
    judge_policy,
    summarize,
    tally,
)
from trainer.logs.run_log import METRICS_FILE, read_jsonl
from trainer.quickstart import Measured, load_configs
from trainer.rl_config import RLConfig
from trainer.run_setup import make_collector, make_engine
from trainer.sft_config import SFTConfig

SEED = 1
OVERRIDES = (
    *(f"{stage}.prompts.response_format=operations" for stage in ("sft", "rl")),
    "sft.resume=auto",
    "sft.sessions_per_step=8",
    "sft.max_steps=150",
    "rl.data.num_held_out=8",
    "rl.sampling.max_tokens=192",
    "rl.reward.judge=coverage",
)
CURVE = ("step", "sft/loss", "sft/val_loss")


def run(folder: Path, model: str, overrides: Sequence[str], ends: float) -> dict | None:
    """Collect, train until `ends` (of time.monotonic) and evaluate; None where no step was made in time."""
    sft_config, rl_config = load_configs(str(folder), SEED, overrides, model=model)
    data = rl_config.data
    sides = {
        "train": generate(data.num_train, data.seed, "train"),
        "held_out": generate(data.num_held_out, data.seed, "heldout"),
    }
    with served("tests.benchmarks.teacher") as base_url:
        found = {side: collect(sides[side], folder / side, data.max_turns, base_url) for side in sides}
    num_records = write_training_file(found["train"], folder / "sft.jsonl", sft_config)
    steps = train(sft_config, folder, ends)
    if not steps:
        return None
    systems = evaluate(folder, rl_config, Path(sft_config.out, "model"), steps, found["held_out"])
    answered = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    return {
        "steps": steps,
        "people": {side: len(dialogues) for side, dialogues in sides.items()},
        "answers_trained_on": num_records,
        "systems": {name: result.row() for name, result in systems.items()},
        "compared": {f"sft over {name}": compared(systems[name], systems["sft"]) for name in ("teacher", "rules")},
        "curve": [
            {key: row[key] for key in CURVE if key in row} for row in read_jsonl(Path(sft_config.out, METRICS_FILE))
        ],
        **side_by_side(answered, found["held_out"], SEED),
    }


def collect(dialogues: Sequence[Dialogue], folder: Path, max_turns: int, base_url: str) -> list[Trajectory]:
    """Let the teacher build the memory of each dialogue by `membuilder.expert`; what stands already is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "dialogues.jsonl"
    write_atomic(path, "".join(json.dumps(custom_line(dialogue)) + "\n" for dialogue in dialogues))
    command = [sys.executable, "-m", "membuilder.expert", "--dataset", "custom", "--dataset-path", str(path)]
    command += ["--expert-model", "teacher", "--provider", "vllm", "--base-url", base_url]
    command += ["--max-turns", str(max_turns)]
    subprocess.run([*command, "--output-dir", str(folder), "--parallel", "--skip-existing"], check=True)
    trajectories = []
    for sample in sample_folders(folder / "custom"):
        with reading(sample / STORE_FILE) as store:
            trajectories.append(read_trajectory(store))
    return trajectories


def custom_line(dialogue: Dialogue) -> dict:
    """Return a dialogue as a line of the custom dataset; an expert needs no questions."""
    sessions = [
        {"id": each.id, "timestamp": each.timestamp.isoformat(), "turns": msgspec.to_builtins(each.turns)}
        for each in dialogue.sessions
    ]
    return {"id": dialogue.id, "speakers": dialogue.speakers, "sessions": sessions, "questions": []}


def write_training_file(trajectories: Sequence[Trajectory], path: Path, config: SFTConfig) -> int:
    """Write what SFT imitates, and return how many answers that is."""
    asked = [as_asked(trajectory, config.prompts) for trajectory in trajectories]
    records = balanced([record for trajectory in asked for record in sft_records(trajectory)[0]], config.seed)
    write_records(path, records, SFTRecord)
    return len(records)


def as_asked(trajectory: Trajectory, prompts: PromptConfig) -> Trajectory:
    """Return a trajectory as if it had been asked by these prompts, which show fewer entries."""
    steps = tuple(replace(each, step=_as_shown(each.step, prompts.entries_shown)) for each in trajectory.steps)
    return replace(trajectory, scheme=FourAgents(prompts), steps=steps)


def _as_shown(step: Step, num_entries: int) -> Step:
    shown = {agent: entries[:num_entries] for agent, entries in step.shown.items()}
    updates = {
        agent: AgentUpdate(operations=tuple(_possible(each, shown[agent]) for each in update.operations))
        for agent, update in step.updates.items()
    }
    return replace(step, shown=shown, updates=updates)


def _possible(operation: Operation, shown: Sequence[Entry]) -> Operation:
    if any(isinstance(resolve(target, shown), Failure) for target in operation.targets):
        return replace(operation, kind=OperationKind.ADD, targets=())
    return operation


def balanced(records: Sequence[SFTRecord], seed: int) -> list[SFTRecord]:
    """Leave out silences, which are five of six answers, so that each agent stores something in at least half of its.

    Each agent by itself: a model that saw one agent store in six of seven answers let it store in every window.
    """
    kept = set()
    for agent in Agent:
        answers = [number for number, record in enumerate(records) if record.agent is agent]
        storing = [number for number in answers if actions(agent, records[number].completion) != [NOTHING]]
        silent = sorted(set(answers) - set(storing))
        rng = random.Random(f"{seed}-{agent}")
        kept |= {*storing, *rng.sample(silent, min(len(storing), len(silent)))}
    return [records[number] for number in sorted(kept)]


def train(config: SFTConfig, folder: Path, ends: float) -> int:
    """Run trainer.sft on the file; return the number of steps of the model that it leaves, 0 if there is none."""
    config.data.prepared = str(folder / "sft.jsonl")
    path = folder / "sft.yaml"
    write_atomic(path, dump(config))
    train_until([sys.executable, "-m", "trainer.sft", "--config", str(path)], ends, Path(config.out), "max_steps")
    return steps_done(Path(config.out)) if Path(config.out, "model").is_dir() else 0


@dataclass(frozen=True, kw_only=True)
class ListeningCollector(Collector):
    """A collector that remembers what the model answered."""

    heard: dict[str, dict[str, str]] = field(default_factory=dict)
    """Window -> agent -> answer."""

    def sample(self, tasks: Sequence[Task], sampling: SamplingConfig, num_rollouts: int, seed: int) -> list[Group]:
        groups = super().sample(tasks, sampling, num_rollouts, seed)
        for task, group in zip(tasks, groups, strict=True):
            self.heard[task.id] = {role: each.text or "" for role, each in group.rollouts[0].samples.items()}
        return groups


def evaluate(
    folder: Path, config: RLConfig, model_dir: Path, steps: int, taught: Sequence[Trajectory]
) -> dict[str, SystemResult]:
    """Judge the model, the teacher and the systems without a model on people apart."""
    embedder = Embedder(config.embedding_model)
    held_out = expert_builds(load_corpus(config.data).held_out, embedder, scheme_of(config), "held-out")
    engine = make_engine(config, model_dir)
    tokenizer = load_tokenizer(str(model_dir), config.prompts.chat_template_kwargs)
    collector = ListeningCollector(**vars(make_collector(config, engine, tokenizer, embedder)))
    measured = Measured(folder / "systems.json", resume=True)

    def of_model() -> dict[str, SystemResult]:
        result = judge_policy(held_out, collector, "sft")
        write_atomic(folder / "answers.json", json.dumps(collector.heard, indent=2) + "\n")
        return {"sft": result}

    systems = measured.once("baselines", partial(compare_baselines, held_out, collector))
    systems |= measured.once("teacher", lambda: {"teacher": judge_teacher(held_out, taught, collector)})
    systems |= measured.once(f"sft after {steps} steps", of_model)
    engine.close()
    return systems


def judge_teacher(held_out: Sequence[ExpertBuild], taught: Sequence[Trajectory], collector: Collector) -> SystemResult:
    """Judge the memory that the teacher built of the same people."""
    built = {}
    for each in taught:
        answers = [answer for step in each.steps for answer in step.answers.values()]
        num_valid = sum(answer.failure is None for answer in answers)
        bank = each.steps[-1].step.result.bank
        built[each.dialogue] = BuiltBank(bank=bank, num_outputs=len(answers), num_valid=num_valid)
    dialogues = [build.dialogue for build in held_out]
    return summarize(tally(dialogues, [built[dialogue.id] for dialogue in dialogues], collector))


def compared(other: SystemResult, mine: SystemResult) -> dict:
    """Compare two systems question by question."""
    sides = np.array([other.verdicts, mine.verdicts], dtype=np.float64)
    return paired(*sides[:, ~np.isnan(sides).any(axis=0)], seed=1)._asdict()
