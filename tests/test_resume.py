"""A run that is killed goes on to the very numbers of one that was not: the real loops, killed for real.

Runs are children forked from this process, which has imported everything, so that twenty lives cost seconds.
"""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from reward import judges
from rollout.hf_engine import TransformersEngine
from tests import forks
from tests.forks import embedder  # noqa: F401
from trainer import journal, rl, sft, snapshots

SMALL = ["data.num_train=8", "data.num_held_out=1", "data.num_steering=1", "max_tokens=600", "keep_last=2"]
TINY = ["vocab_size=600", "hidden_size=32", "num_layers=2", "intermediate_size=64"]
SFT = [
    "--config", "configs/quickstart_sft.yaml", *SMALL, *(f"model.tiny.{size}" for size in TINY), "data.num_extra=0",
    "max_steps=40", "sessions_per_step=8", "save_every=6",
]  # fmt: skip
RL = [
    "--config", "configs/quickstart_rl.yaml", *SMALL, "engine=transformers", "num_steps=5", "sessions_per_step=3",
    "num_rollouts=3", "updates_per_step=2", "save_every=2", "parity_every=3", "eval_every=5", "journal=true",
]  # fmt: skip


def start(main: Callable, arguments: list[str], out: Path, before: Callable[[], None] = lambda: None):
    return forks.start(main, ([*arguments, f"out={out}"],), f"{out}.log", before)


def finish(main: Callable, arguments: list[str], out: Path, before: Callable[[], None] = lambda: None) -> None:
    forks.finish(main, ([*arguments, f"out={out}"],), f"{out}.log", before)


def metrics(out: Path) -> list[dict]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def same_run(one: Path, other: Path) -> None:
    """Bit for bit: every metric of every step, and the weights."""
    assert metrics(one) == metrics(other)
    left, right = (load_file(out / "model" / "model.safetensors") for out in (one, other))
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Path]:
    """Runs that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    finish(sft.main, SFT, folder / "sft")
    finish(rl.main, [*RL, f"model.path={folder}/sft/model"], folder / "rl")
    return {"sft": folder / "sft", "rl": folder / "rl"}


def arguments_of(kind: str, whole: dict[str, Path]) -> tuple[Callable, list[str]]:
    return (sft.main, SFT) if kind == "sft" else (rl.main, [*RL, f"model.path={whole['sft']}/model"])


def test_the_runs_train_and_reward_something(whole):
    rows = metrics(whole["rl"])
    assert len(rows) == 5 and any(row["grad_norm"] > 0 for row in rows) and any(row["reward/mean"] > 0 for row in rows)
    losses = [row["sft/loss"] for row in metrics(whole["sft"])]
    assert len(losses) == 40 and losses[-1] < losses[0] / 2


@pytest.mark.parametrize("kind", ["sft", "rl"])
def test_killed_ten_times_at_random(whole, tmp_path, kind):
    main, arguments = arguments_of(kind, whole)
    source, out, killed = random.Random(7), tmp_path / "run", 0
    while killed < 10:
        process = start(main, [*arguments, "resume=auto"], out)
        process.join(source.uniform(0.3, 2.5))
        if process.exitcode is None:
            process.kill()
            process.join()
            killed += 1
        else:  # done before all ten: the next one would find nothing left to do
            assert process.exitcode == 0, Path(f"{out}.log").read_text()[-3000:]
            same_run(out, whole[kind])
            shutil.rmtree(out)
    finish(main, [*arguments, "resume=auto"], out)
    same_run(out, whole[kind])


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_at(owner: object, name: str, call: int, half: bool = False) -> Callable[[], None]:
    """Makes the process kill itself at the n-th call of a function; `half`: after the function has done its work."""

    def arm() -> None:
        original, calls = getattr(owner, name), iter(range(1, 1000))

        def fatal(*args, **kwargs):
            if next(calls) == call:
                if half:
                    original(*args, **kwargs)
                die()
            return original(*args, **kwargs)

        setattr(owner, name, fatal)

    return arm


WORST_MOMENTS = {
    "before the state is written": dies_at(Accelerator, "save_state", 1),
    "inside checkpoint writing": dies_at(Accelerator, "save_state", 1, half=True),
    "before the checkpoint has its name": dies_at(snapshots, "_give_name", 1),
    "inside the journal": dies_at(journal, "write_file", 1),
    # the first call gives a resumed run's engine the checkpoint's weights
    "before weights reach the engine": dies_at(TransformersEngine, "load_weights", 2),
    "after weights reach the engine": dies_at(TransformersEngine, "load_weights", 2, half=True),
}
"""In the order of a run's life: the first three at its first checkpoint, the others in the step after it."""


def test_killed_at_the_worst_moments(whole, tmp_path):
    """One run that meets all of them, each time going on from what the last one left."""
    main, arguments = arguments_of("rl", whole)
    left = []
    for moment, death in WORST_MOMENTS.items():
        process = start(main, [*arguments, "resume=auto"], tmp_path / "run", death)
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, moment
        left.append({path.name for path in (tmp_path / "run/checkpoints").glob("*")})
    assert left == [{"step_2.partial"}, {"step_2.partial"}, {"step_2.whole"}, {"step_2"}, {"step_2"}, {"step_2"}]
    finish(main, [*arguments, "resume=auto"], tmp_path / "run")
    same_run(tmp_path / "run", whole["rl"])


def test_what_the_journal_holds_is_neither_sampled_nor_judged_again(whole, tmp_path):
    main, arguments = arguments_of("rl", whole)
    process = start(main, arguments, tmp_path / "run", dies_at(TransformersEngine, "load_weights", 2))
    process.join(120)
    assert process.exitcode == -signal.SIGKILL and not (tmp_path / "run/checkpoints").exists()
    assert sorted(path.name for path in (tmp_path / "run/journal").iterdir()) == ["step_0.json", "step_1.json"]

    def dies_at_first_sample_or_verdict() -> None:
        dies_at(TransformersEngine, "generate", 1)()
        dies_at(judges, "evidence", 1)()

    # two steps are learned again from the journal; the third is the first to generate and to judge
    process = start(main, [*arguments, "resume=auto"], tmp_path / "run", dies_at_first_sample_or_verdict)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert [row["step"] for row in metrics(tmp_path / "run")] == [0, 1]
    assert metrics(tmp_path / "run") == metrics(whole["rl"])[:2]


@pytest.mark.parametrize("kind", ["sft", "rl"])
def test_sigterm_saves_first(whole, tmp_path, kind):
    """Under Weights & Biases both lives are one run: its id stands in the checkpoint."""
    main, arguments = arguments_of(kind, whole)
    arguments = [*arguments, "wandb_project=membuilder-test"]
    process = start(main, [*arguments, "save_every=1000"], tmp_path / "run")
    deadline = time.monotonic() + 60
    while not (tmp_path / "run/metrics.jsonl").exists() or not metrics(tmp_path / "run"):
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 1 and "start again with resume=auto" in Path(f"{tmp_path}/run.log").read_text()
    assert len(list((tmp_path / "run/checkpoints").glob("step_*"))) == 1
    finish(main, [*arguments, "resume=auto"], tmp_path / "run")
    same_run(tmp_path / "run", whole[kind])
    tracked = [folder.name.rsplit("-", 1)[1] for folder in (tmp_path / "run/wandb").glob("offline-run-*")]
    assert len(tracked) == 2 and len(set(tracked)) == 1


def test_a_damaged_checkpoint_stops_the_run_unless_the_previous_one_is_asked_for(whole, tmp_path):
    main, arguments = arguments_of("sft", whole)
    shutil.copytree(whole["sft"], tmp_path / "run")
    newest = tmp_path / "run/checkpoints/step_36"
    weights = newest / "state/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    process = start(main, [*arguments, "resume=auto"], tmp_path / "run")
    process.join(60)
    log = Path(f"{tmp_path}/run.log").read_text()
    assert process.exitcode == 1 and "model.safetensors" in log and "resume=previous" in log
    finish(main, [*arguments, "resume=previous"], tmp_path / "run")
    same_run(tmp_path / "run", whole["sft"])


@pytest.mark.parametrize(
    ("extra", "message"),
    [(["optim.lr=1e-3"], "optim.lr=0.003, now it is 0.001"), (["resume=never"], "resume=auto to go on")],
)
def test_a_run_is_not_mixed_with_another(whole, tmp_path, extra, message):
    shutil.copytree(whole["sft"], tmp_path / "run")
    process = start(sft.main, [*SFT, "resume=auto", *extra], tmp_path / "run")
    process.join(60)
    assert process.exitcode == 1 and message in Path(f"{tmp_path}/run.log").read_text().replace("\n", " ")


def judged(*accuracies: float) -> Callable[[], None]:
    """The held-out accuracy of each evaluation."""

    def arm() -> None:
        given = iter(accuracies)
        rl.judge_policy = lambda *_: SimpleNamespace(metrics=lambda: {"eval/accuracy": next(given)})

    return arm


def test_the_last_and_the_best_checkpoint_are_kept(whole, tmp_path):
    main, arguments = arguments_of("rl", whole)
    every_step = ["num_steps=4", "save_every=1", "eval_every=1", "keep_last=1"]
    finish(main, [*arguments, *every_step], tmp_path / "run", judged(0.5, 0.9, 0.2, 0.3))
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["step_2", "step_4"]


def not_finite_at(*steps: int) -> Callable[[], None]:
    """The gradient norm of these updates is nan."""

    def arm() -> None:
        original, calls = Accelerator.clip_grad_norm_, iter(range(1000))

        def broken(self, parameters, *args):
            parameters = list(parameters)
            if next(calls) in steps:
                parameters[0].grad.fill_(float("nan"))
            return original(self, parameters, *args)

        Accelerator.clip_grad_norm_ = broken

    return arm


def test_an_update_that_is_not_finite_is_left_out_and_written_down(whole, tmp_path):
    finish(sft.main, [*SFT, "max_steps=8"], tmp_path / "run", not_finite_at(2, 5))
    skipped = [json.loads(line) for line in (tmp_path / "run/skipped.jsonl").read_text().splitlines()]
    assert [row["step"] for row in skipped] == [2, 5] and len(skipped[0]["sessions"]) == 8
    weights = load_file(tmp_path / "run/model/model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_too_many_in_a_row_stop_the_run(tmp_path):
    process = start(sft.main, [*SFT, "max_skipped=1"], tmp_path / "run", not_finite_at(2, 3))
    process.join(60)
    log = Path(f"{tmp_path}/run.log").read_text()
    assert process.exitcode == 1 and "2 updates in a row had a gradient that is not finite" in log
