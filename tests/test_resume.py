"""A run that is killed goes on to the very numbers of one that was not: the real loops, killed for real.

Runs are children forked from this process, which has imported everything, so that twenty lives cost seconds.
"""

import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import Accelerator
from safetensors.torch import load_file

from reward import judges
from rollout.hf_engine import TransformersEngine
from tests.forks import SPAWN, embedder  # noqa: F401
from tests.lives import (
    checkpoint_names,
    die,
    dies_at,
    dies_between_items,
    finish,
    killed,
    metrics,
    not_finite_at,
    same_run,
    start,
)
from tests.patience import HANGS
from tests.scheme_runs import SCHEMES, SFT, commands
from tests.terminal import strange_lines
from trainer import rl, sft
from trainer.checkpoint import folders
from trainer.experience import rollout_cache
from trainer.experience.training_batch import Batch


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Callable[[str], dict[str, Path]]:
    """Scheme -> runs that nothing disturbs."""

    @cache
    def of(scheme: str) -> dict[str, Path]:
        folder = tmp_path_factory.mktemp(f"whole_{scheme}")
        for_sft, for_rl = commands(scheme, folder)
        finish(sft.main, for_sft, folder / "sft")
        finish(rl.main, [*for_rl, f"model.path={folder}/sft/model"], folder / "rl")
        return {"sft": folder / "sft", "rl": folder / "rl"}

    return of


@pytest.fixture(scope="module")
def whole(runs) -> dict[str, Path]:
    return runs("four_agents")


def arguments_of(kind: str, whole: dict[str, Path], scheme: str = "four_agents") -> tuple[Callable, list[str]]:
    for_sft, for_rl = commands(scheme, whole["sft"].parent)
    return (sft.main, for_sft) if kind == "sft" else (rl.main, [*for_rl, f"model.path={whole['sft']}/model"])


MORE_SCHEMES = [pytest.param(scheme, marks=pytest.mark.slow) for scheme in SCHEMES[1:]]


@pytest.mark.parametrize("scheme", ["four_agents", *MORE_SCHEMES])
def test_the_runs_train_and_reward_something(runs, scheme):
    whole = runs(scheme)
    rows = metrics(whole["rl"])
    assert len(rows) == 5 and any(row["grad_norm"] > 0 for row in rows) and any(row["reward/mean"] > 0 for row in rows)
    losses = [row["sft/loss"] for row in metrics(whole["sft"])]
    assert len(losses) == 40 and losses[-1] < losses[0] / 2


def test_the_runs_print_progress_and_results_only(whole):
    """Every line of a whole SFT run and a whole RL run, stdout and stderr."""
    saved = re.escape(str(whole["sft"].parent))
    shapes = rf"saved {saved}/(sft|rl)/model(; validation loss \d\.\d{{3}} nats per token)?"
    for folder in whole.values():
        printed = Path(f"{folder}.log").read_text()
        assert strange_lines(printed, shapes) == [] and f"saved {folder}/model" in printed
        assert "100%" in printed


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "scheme"), [("sft", "four_agents"), *(("rl", scheme) for scheme in SCHEMES)])
def test_killed_ten_times_at_random(runs, tmp_path, kind, scheme):
    whole = runs(scheme)
    main, arguments = arguments_of(kind, whole, scheme)
    source, out, times = random.Random(7), tmp_path / "run", 0
    while times < 10:
        process = start(main, [*arguments, "resume=auto"], out)
        process.join(source.uniform(0.3, 2.5))
        if process.exitcode is None:
            process.kill()
            process.join()
            times += 1
        else:  # done before all ten: the next one would find nothing left to do
            assert process.exitcode == 0, Path(f"{out}.log").read_text()[-3000:]
            same_run(out, whole[kind])
            shutil.rmtree(out)
    finish(main, [*arguments, "resume=auto"], out)
    same_run(out, whole[kind])


WORST_MOMENTS = {
    "before the state is written": dies_at(Accelerator, "save_state", 1),
    "inside checkpoint writing": dies_at(Accelerator, "save_state", 1, half=True),
    "before the checkpoint has its name": dies_at(folders, "_give_name", 1),
    "inside the journal": dies_at(rollout_cache, "write_atomic", 1),
    # the first call gives a resumed run's engine the checkpoint's weights
    "before weights reach the engine": dies_at(TransformersEngine, "load_weights", 2),
    "between two tensors of the sync": dies_between_items(rl, "named_weights", 2, item=5),
    "after weights reach the engine": dies_at(TransformersEngine, "load_weights", 2, half=True),
}
"""In the order of a run's life: the first three at its first checkpoint, the others in the step after it."""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_killed_at_the_worst_moments(runs, tmp_path, scheme):
    """One run that meets all of them, each time going on from what the last one left."""
    whole = runs(scheme)
    main, arguments = arguments_of("rl", whole, scheme)
    left = []
    for moment, death in WORST_MOMENTS.items():
        killed(main, [*arguments, "resume=auto"], tmp_path / "run", death, moment)
        left.append({path.name for path in (tmp_path / "run/checkpoints").glob("*")})
    assert left == [{"step_2.partial"}, {"step_2.partial"}, {"step_2.whole"}] + [{"step_2"}] * 4
    finish(main, [*arguments, "resume=auto"], tmp_path / "run")
    same_run(tmp_path / "run", whole["rl"])


@pytest.mark.parametrize("scheme", ["four_agents", *MORE_SCHEMES])
def test_what_the_journal_holds_is_neither_sampled_nor_judged_again(runs, tmp_path, scheme):
    whole = runs(scheme)
    main, arguments = arguments_of("rl", whole, scheme)
    killed(main, arguments, tmp_path / "run", dies_at(TransformersEngine, "load_weights", 2))
    assert not (tmp_path / "run/checkpoints").exists()
    kept = sorted(path.name for path in (tmp_path / "run/journal").iterdir())
    assert kept == ["settings.json", "step_0.json", "step_1.json"]

    def dies_at_first_sample_or_verdict() -> None:
        dies_at(TransformersEngine, "stream", 3 if scheme == "turns" else 2)()
        judges.BUILT_IN["evidence"] = lambda *case: die()

    # two steps are learned again from the journal; the third is the first to sample for itself and to judge. The parity
    # check of step 0 alone calls the engine before it, once a turn: what a replayed step learns from is checked too
    killed(main, [*arguments, "resume=auto"], tmp_path / "run", dies_at_first_sample_or_verdict)
    assert [row["step"] for row in metrics(tmp_path / "run")] == [0, 1]
    assert metrics(tmp_path / "run") == metrics(whole["rl"])[:2]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "number"), [("sft", signal.SIGTERM), ("rl", signal.SIGUSR1), ("sft", signal.SIGINT)])
def test_a_signal_saves_first(whole, tmp_path, kind, number):
    """Under Weights & Biases both lives are one run: its id stands in the checkpoint."""
    main, arguments = arguments_of(kind, whole)
    arguments = [*arguments, "wandb_project=membuilder-test"]
    process = start(main, [*arguments, "save_every=1000"], tmp_path / "run")
    deadline = time.monotonic() + HANGS
    while not (tmp_path / "run/metrics.jsonl").exists() or not metrics(tmp_path / "run"):
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.02)
    os.kill(process.pid, number)
    process.join(60)
    assert (
        process.exitcode == 128 + number
        and "The same command with resume=auto goes on from" in Path(f"{tmp_path}/run.log").read_text()
    )
    assert f"step_{len(metrics(tmp_path / 'run'))}" in checkpoint_names(tmp_path / "run")
    finish(main, [*arguments, "resume=auto"], tmp_path / "run")
    same_run(tmp_path / "run", whole[kind])
    tracked = [folder.name.rsplit("-", 1)[1] for folder in (tmp_path / "run/wandb").glob("offline-run-*")]
    assert len(tracked) == 2 and len(set(tracked)) == 1


def test_a_damaged_checkpoint_stops_the_run_unless_the_previous_one_is_asked_for(whole, tmp_path):
    main, arguments = arguments_of("sft", whole)
    shutil.copytree(whole["sft"], tmp_path / "run")
    newest = list(folders.checkpoints(tmp_path / "run/checkpoints").values())[-1]
    weights = newest / "state/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    process = start(main, [*arguments, "resume=auto"], tmp_path / "run")
    process.join(60)
    log = Path(f"{tmp_path}/run.log").read_text()
    assert process.exitcode == 1 and "model.safetensors" in log and "resume=previous" in log
    finish(main, [*arguments, "resume=previous"], tmp_path / "run")
    same_run(tmp_path / "run", whole["sft"])


def judged(*accuracies: float) -> Callable[[], None]:
    """The held-out accuracy of each evaluation."""

    def arm() -> None:
        given = iter(accuracies)
        rl.judge_policy = lambda *_: SimpleNamespace(metrics=lambda: {"eval/accuracy": next(given)})

    return arm


@pytest.mark.slow
@pytest.mark.parametrize(
    ("every", "accuracies", "kept"),
    [
        # the best falls on a step that is saved anyway
        ({"save": 1, "eval": 1}, (0.5, 0.9, 0.2, 0.3), ["step_2", "step_4"]),
        # measured after steps 2 and 4, saved after step 3; a tie is no better
        ({"save": 3, "eval": 2}, (0.9, 0.9), ["step_2", "step_3"]),
        ({"save": 3, "eval": 2}, (0.2, 0.9), ["step_4"]),
    ],
)
def test_the_last_and_the_best_checkpoint_are_kept(whole, tmp_path, every, accuracies, kept):
    main, arguments = arguments_of("rl", whole)
    steps = ["num_steps=4", f"save_every={every['save']}", f"eval_every={every['eval']}", "keep_last=1"]
    finish(main, [*arguments, *steps], tmp_path / "run", judged(*accuracies))
    assert checkpoint_names(tmp_path / "run") == kept


@pytest.mark.slow
def test_the_best_is_remembered_by_a_run_that_goes_on(whole, tmp_path):
    main, arguments = arguments_of("rl", whole)
    steps = ["num_steps=4", "save_every=100", "eval_every=1", "keep_last=1"]

    def dies_after_two_steps() -> None:
        judged(0.9, 0.5)()
        dies_at(TransformersEngine, "load_weights", 3)()

    killed(main, [*arguments, *steps], tmp_path / "run", dies_after_two_steps)
    assert checkpoint_names(tmp_path / "run") == ["step_1"]
    finish(main, [*arguments, *steps, "resume=auto"], tmp_path / "run", judged(0.5, 0.6, 0.7))
    assert checkpoint_names(tmp_path / "run") == ["step_1"]


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


@pytest.mark.slow
def test_one_of_several_updates_of_a_step_is_left_out_alone(whole, tmp_path):
    """The first of each step that has several: some have one, because groups without any advantage make no samples."""

    def arm() -> None:
        shares, clip, first_of_several = Batch.shares, Accelerator.clip_grad_norm_, []

        def counted(*args):
            found = shares(*args)
            first_of_several[:] = [len(found) > 1]
            return found

        def broken(self, parameters, *args):
            parameters = list(parameters)
            if first_of_several and first_of_several.pop():
                parameters[0].grad.fill_(float("nan"))
            return clip(self, parameters, *args)

        Batch.shares, Accelerator.clip_grad_norm_ = counted, broken

    main, arguments = arguments_of("rl", whole)
    finish(main, [*arguments, "max_skipped=1"], tmp_path / "run", arm)
    rows = [json.loads(line) for line in (tmp_path / "run/skipped.jsonl").read_text().splitlines()]
    steps = metrics(tmp_path / "run")
    assert len(steps) == 5 and rows and all(row["sessions"] for row in rows)
    assert len({row["step"] for row in rows}) == len(rows), "the others of those steps were taken"
    # the norm that is logged is the largest of the updates that were taken
    assert all("nonfinite" not in row for row in steps) and any(steps[row["step"]]["grad_norm"] > 0 for row in rows)
    weights = load_file(tmp_path / "run/model/model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


def dies_with_the_third_weights() -> None:
    from rollout.vllm_engine import VLLMEngine

    dies_at(VLLMEngine, "load_weights", 3)()


@pytest.mark.slow
def test_a_run_with_vllm_goes_on_bit_for_bit(whole, tmp_path):
    """Killed with a sampled step in the journal; a new engine samples the step after it, with that time's weights."""
    pytest.importorskip("vllm", reason="vLLM is not installed (launch/setup.sh)")
    main, arguments = arguments_of("rl", whole)
    arguments = [*arguments, "engine=vllm", "num_steps=4", "eval_every=0", "max_model_len=400"]
    finish(main, arguments, tmp_path / "whole", context=SPAWN)
    killed(main, arguments, tmp_path / "run", dies_with_the_third_weights, context=SPAWN)
    assert checkpoint_names(tmp_path / "run") == ["step_2"] and (tmp_path / "run/journal/step_2.json").exists()
    finish(main, [*arguments, "resume=auto"], tmp_path / "run", context=SPAWN)
    same_run(tmp_path / "run", tmp_path / "whole")
    assert any(row["grad_norm"] > 0 for row in metrics(tmp_path / "run")[2:])
