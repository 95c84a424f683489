"""What a run may not do to another's folder: a refused one changes nothing there, an accepted one keeps to its own."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from rollout.hf_engine import TransformersEngine
from tests.forks import as_rank, embedder, free_port  # noqa: F401
from tests.lives import dies_at, finish, killed, refused
from tests.scheme_runs import RL, SFT
from trainer import rl, sft
from trainer.checkpoint import folders
from trainer.checkpoint.checkpoints import Best


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> dict[str, Path]:
    """A finished SFT run, and an RL run killed before its first checkpoint, with two steps in its journal."""
    folder = tmp_path_factory.mktemp("begun")
    finish(sft.main, [*SFT, "max_steps=4", "save_every=4"], folder / "sft")
    arguments = [*RL, f"model.path={folder}/sft/model", "save_every=3", "wandb_project=membuilder-test"]
    killed(rl.main, arguments, folder / "rl", dies_at(TransformersEngine, "load_weights", 2))
    return {"sft": folder / "sft", "rl": folder / "rl"}


def arguments_of(begun: dict[str, Path]) -> list[str]:
    return [*RL, f"model.path={begun['sft']}/model", "save_every=3"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([], "holds what an earlier run sampled in 2 step(s): give resume=auto to go on with it"),
        (["resume=auto", "optim.lr=0.5"], "was begun with other settings: optim.lr="),
    ],
)
def test_a_journal_is_neither_lost_nor_learned_from_by_another_run(begun, tmp_path, extra, message):
    out = shutil.copytree(begun["rl"], tmp_path / "run")
    before = contents(out)
    assert message in refused(rl.main, [*arguments_of(begun), *extra], out)
    assert contents(out) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "message"),
    [(["resume=auto", "optim.lr=1e-3"], "optim.lr=0.003 (now 0.001)"), ([], "resume=auto to go on from it")],
)
def test_a_run_is_not_mixed_with_another(begun, tmp_path, extra, message):
    out = shutil.copytree(begun["sft"], tmp_path / "run")
    before = contents(out)
    assert message in refused(sft.main, [*SFT, "max_steps=4", *extra], out)
    assert contents(out) == before


@pytest.mark.slow
def test_forgetting_resume_costs_neither_the_journal_nor_the_checkpoints(begun, tmp_path):
    """The run is killed in the third step after its checkpoint of the first two."""
    arguments = [*arguments_of(begun), "save_every=2"]
    out = tmp_path / "run"
    killed(rl.main, arguments, out, dies_at(TransformersEngine, "load_weights", 3))
    before = contents(out)
    assert "journal/step_2.json" in before and "checkpoints/step_2/manifest.json" in before
    assert "resume=never, but" in refused(rl.main, arguments, out)
    assert contents(out) == before


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_keeps_its_wandb_run(begun, tmp_path):
    out = shutil.copytree(begun["rl"], tmp_path / "run")
    run_id = (out / "wandb_run_id.txt").read_text().strip()
    last = dies_at(TransformersEngine, "load_weights", 3)
    killed(rl.main, [*arguments_of(begun), "resume=auto", "wandb_project=membuilder-test"], out, last)
    tracked = [folder.name.rsplit("-", 1)[1] for folder in (out / "wandb").glob("offline-run-*")]
    assert tracked == [run_id] * 2


@pytest.mark.slow
def test_the_checkpoint_holds_the_whole_configuration(begun):
    meta = folders.read_manifest(begun["sft"] / "checkpoints/step_4").meta
    assert meta["config"] == yaml.safe_load((begun["sft"] / "config.yaml").read_text())
    assert meta["config"]["out"] == str(begun["sft"]) and meta["config"]["resume"] == "never"
    assert (meta["settings"]["processes"], meta["settings"]["wrapper"]) == (1, "none")
    assert json.loads((begun["sft"] / "provenance.json").read_text())["python"]


def one_rank_of_zero2(folder: Path, **more: object) -> None:
    """One process can be DeepSpeed's too."""
    deepspeed = {"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": 1} | more
    (folder / "deepspeed.json").write_text(json.dumps(deepspeed))
    as_rank(0, 1, free_port())
    os.environ |= {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(folder / "deepspeed.json"),
    }


@pytest.mark.slow
def test_another_wrapper_is_refused(begun, tmp_path):
    out = shutil.copytree(begun["sft"], tmp_path / "run")
    arguments = [*SFT, "max_steps=4", "save_every=4", "resume=auto"]
    said = refused(sft.main, arguments, out, lambda: one_rank_of_zero2(tmp_path))
    assert "wrapper='none' (now 'DeepSpeed ZeRO-2')" in said
    assert "with the same file of configs/accelerate" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "kept", "file"),
    [("float32", "bfloat16", {"bf16": {"enabled": True}}), ("bfloat16", "float32", {}),
     ("float32", "float16", {"fp16": {"enabled": True}})],
)  # fmt: skip
def test_weights_of_another_type_than_deepspeeds_are_refused(tmp_path, dtype, kept, file):
    arguments = [*SFT, f"model.dtype={dtype}"]
    said = refused(sft.main, arguments, tmp_path / "run", lambda: one_rank_of_zero2(tmp_path, **file))
    assert f"model.dtype={dtype}, but DeepSpeed's file would train in {kept}: set model.dtype={kept}" in said


@pytest.mark.parametrize(
    ("variable", "value"), [("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"), ("ACCELERATE_MIXED_PRECISION", "bf16")]
)
def test_what_would_bend_the_gradient_from_outside_is_refused_by_name(tmp_path, variable, value):
    said = refused(sft.main, SFT, tmp_path / "run", lambda: os.environ.update({variable: value}))
    assert f"{variable}={value}: " in said and "Unset it" in said


@pytest.mark.parametrize(
    ("higher_is_better", "best", "value", "beaten"),
    [
        (True, None, 0.1, True), (True, 0.1, 0.2, True), (True, 0.2, 0.2, False), (True, 0.2, None, False),
        (False, 0.2, 0.1, True), (False, 0.1, 0.2, False), (False, None, float("nan"), False),
    ],
)  # fmt: skip
def test_what_beats_the_best(higher_is_better, best, value, beaten):
    assert Best(metric="x", higher_is_better=higher_is_better).is_beaten(best, value) is beaten
