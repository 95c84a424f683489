"""The stages of the GPU check at tiny size, without a GPU: an hour on one is to be spent on hardware, not on typos."""

import argparse
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from transformers import Qwen3Config

from tests.benchmarks.gpu import carry, learning, step
from tests.benchmarks.gpu.__main__ import is_complete, run_stage
from tests.benchmarks.gpu.identity import ROOT, STAGES, source_digest
from tests.patience import HANGS
from trainer.quickstart import load_configs

ABSENT = ("deepspeed", "vllm", "faiss", "wandb", "openai", "flash_attn")
"""What the lent machine does not have."""
NEEDS_CUDA = ("CUDA", "not installed", "does not run here")
"""How a reason for leaving something out may read: no GPU, or no rival."""
LEARNING_RUN = (
    "trainer.rl", "trainer.sft", "trainer.tiny", "trainer.run_setup", "trainer.plots", "trainer.experience.evaluate",
    "trainer.data.corpus", "membuilder.embedding.local", "rollout.hf_engine", "rollout.gguf",
)  # fmt: skip
"""What trainer/quickstart.py imports once its arguments are checked."""


def check(out: Path, *arguments: str, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """Run launch/gpu_check.sh in an environment that lacks some modules."""
    site = out.parent / "carried" / "site"
    site.mkdir(parents=True, exist_ok=True)
    (site / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({without!r}))\n")
    command = [str(ROOT / "launch/gpu_check.sh"), "--carried", str(site.parent), *arguments]
    environment = os.environ | {"OUT": str(out), "PYTHON": sys.executable}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANGS, check=False)


def read(out: Path, stage: str) -> dict:
    return json.loads((out / f"{stage}.json").read_text(encoding="utf-8"))


# The runner


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kernel"], "no stage kernel: there are kernels, learner, learning, step, vllm"),
        (["kernels"], "no NVIDIA GPU here (--tiny rehearses without one)"),
    ],
)
def test_bad_calls_are_answered_at_once(tmp_path, arguments, message, monkeypatch):
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    result = check(tmp_path / "out", *arguments)
    assert result.returncode != 0 and message in result.stderr and not (tmp_path / "out/kernels.json").exists()


def test_only_a_whole_file_of_this_code_and_size_counts(tmp_path):
    path, digest = tmp_path / "step.json", source_digest()
    assert not is_complete(path, digest, tiny=False)
    for complete, source, tiny, expected in (
        (True, digest, False, True),
        (False, digest, False, False),
        (True, "of other code", False, False),
        (True, digest, True, False),
    ):
        path.write_text(json.dumps({"complete": complete, "source": source, "tiny": tiny}))
        assert is_complete(path, digest, tiny=False) == expected


def test_a_stage_that_runs_past_its_limit_is_stopped_and_says_so(tmp_path):
    given = argparse.Namespace(out=tmp_path, limit=0.3, tiny=True, carried=tmp_path)
    assert run_stage("step", given) == "ran past 0.3 s"
    assert read(tmp_path, "step") == {"stage": "step", "complete": False, "ended": "ran past 0.3 s"}


@pytest.mark.slow
def test_a_stage_that_fails_stops_no_other_and_what_is_complete_is_not_run_again(tmp_path):
    out = tmp_path / "out"
    first = check(out, "vllm", "step", "--tiny", without=("vllm",))
    assert first.returncode == 1 and "vllm: exit status 1" in first.stdout and "step: complete after" in first.stdout
    failed = read(out, "vllm")
    assert not failed["complete"] and failed["ended"] == "exit status 1"
    assert "not importable: carry its wheel, as docs/performance.md says" in failed["failures"][0]["why"]
    whole = (out / "step.json").read_bytes()
    again = check(out, "step", "--tiny")
    assert again.returncode == 0 and "step: complete already" in again.stdout
    assert (out / "step.json").read_bytes() == whole
    anew = check(out, "step", "--tiny", "--again")
    assert anew.returncode == 0 and "complete after" in anew.stdout and (out / "step.json").read_bytes() != whole


# The stages


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_runs_at_tiny_size(stage, tmp_path):
    if stage == "vllm":
        pytest.importorskip("vllm", reason="vLLM is not installed (launch/setup.sh)")
    out = tmp_path / "out"
    result = check(out, stage, "--tiny")
    assert result.returncode == 0, result.stdout + (out / f"{stage}.log").read_text()[-3000:]
    found = read(out, stage)
    assert found["complete"] and found["tiny"] and found["source"] == source_digest() and not found["failures"]
    assert found["hardware"]["cores"] and found["versions"]["torch"] and found["versions"]["python"] and found["commit"]
    assert all(any(word in each["why"] for word in NEEDS_CUDA) for each in found["skipped"]), found["skipped"]
    CHECKS[stage](found["rows"])


def test_the_settings_of_the_whole_learning_run_exist():
    overrides = [*learning.NO_VLLM, *learning.FULL]
    sft, rl = load_configs("out", seed=1, overrides=overrides, model="smollm2")
    assert rl.num_steps * rl.sessions_per_step == 6400 and rl.engine == "transformers"
    assert sft.data == rl.data and sft.prompts == rl.prompts and sft.model.path == "smollm2"


@pytest.mark.slow
def test_the_dry_run_of_the_whole_step_promises_that_it_fits(tmp_path):
    size = step.FULL
    Qwen3Config(**size.model, tie_word_embeddings=True).save_pretrained(tmp_path)
    found = step.dry_run(tmp_path, size, size.max_tokens)
    weights = 2 * 4_022_468_096  # as configs/rl_qwen3_4b_8gpu.yaml's model
    assert {part.name: part.update for part in found.parts}["weights"] == weights
    assert 4 * weights < found.phases["update"] < 80 * 2**30 and found.fits


def _kernels(rows: list[dict]) -> None:
    assert {"tests/gpu", "_statistics_kernel", "_gradient_kernel", "copy", "row kernels", "head"} == {
        row["what"] for row in rows
    }
    assert {row["spilled_bytes"] for row in rows if "spilled_bytes" in row} == {0}
    assert all(row["gradient_error"] < 0.01 for row in rows if row["what"] == "row kernels")


def _learner(rows: list[dict]) -> None:
    assert [row["impl"] for row in rows] == ["dense", "shared", "trl", "trl_tree", "prefix_grouper"]
    assert rows[1]["gradient_gap"] < 1e-5
    assert all("gradient_gap" in row or "does not run here" in row["note"] for row in rows[2:])


def _learning(rows: list[dict]) -> None:
    steps = [row for row in rows if row["what"] == "step"]
    assert [row["step"] for row in steps] == [0, 1] and any(row["grad_norm"] > 0 for row in steps)
    assert {"rules", "sft", "adrpo"} <= {row["name"] for row in rows if row["what"] == "system"}


def _step(rows: list[dict]) -> None:
    shared, dense = rows
    assert (shared["what"], dense["what"]) == ("shared", "dense")
    # two sessions of 20 + 4 x 5 prompt tokens and 32 completions of 4, whose last token is a target only
    assert shared["packed_tokens"] == 2 * (20 + 4 * 5 + 32 * 3) and dense["packed_tokens"] == 2 * 32 * (20 + 5 + 3)
    assert shared["update_estimate_gib"] > 0 and shared["update_gib"] is None and shared["tflops"] > 0


def _vllm(rows: list[dict]) -> None:
    (row,) = rows
    assert row["what"] == "eager" and max(row["gap"], row["synced_gap"]) < 1e-4 and row["tokens_per_second"] > 0


CHECKS = {"kernels": _kernels, "learner": _learner, "learning": _learning, "step": _step, "vllm": _vllm}


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_nothing_that_the_lent_machine_lacks(stage):
    program = f"""
import sys
sys.modules.update(dict.fromkeys({ABSENT!r}))
from importlib import import_module
for module in ("tests.benchmarks.gpu.{stage}", *({LEARNING_RUN!r} if "{stage}" == "learning" else ())):
    import_module(module)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


# What is carried


@pytest.fixture
def wheel(tmp_path) -> Path:
    path = tmp_path / "carried_thing-1.0-py3-none-any.whl"
    info = "carried_thing-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("carried_thing.py", "THERE = True\n" + "# filler\n" * 500)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: carried-thing\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_parts_are_kept_over_calls_and_installed_once_all_are_there(wheel, tmp_path):
    parts = carry.cut("thing", [wheel], tmp_path / "packed", part_bytes=4096)
    assert len(parts) > 2 and all(part.stat().st_size <= 4096 for part in parts)
    there, calls = tmp_path / "there", [parts[1:], parts[:1], []]
    told = []
    for number, carried in enumerate(calls):
        folder = tmp_path / f"call{number}"
        folder.mkdir()
        for part in carried:
            (folder / part.name).write_bytes(part.read_bytes())
        told.append(carry.take(folder, there)["thing"])
    assert told == [f"parts 1 of {len(parts)} are missing", "installed", "installed already"]
    assert "THERE = True" in (there / "site/carried_thing.py").read_text()


def test_a_part_that_came_damaged_is_named(wheel, tmp_path):
    parts = carry.cut("thing", [wheel], tmp_path / "packed", part_bytes=4096)
    parts[0].write_bytes(b"x" * parts[0].stat().st_size)
    with pytest.raises(SystemExit, match="carry: the joined parts of thing are .*: carry them again"):
        carry.take(tmp_path / "packed", tmp_path / "there")


def test_packing_again_replaces_the_parts(wheel, tmp_path):
    assert len(carry.cut("thing", [wheel], tmp_path, part_bytes=2048)) > len(carry.cut("thing", [wheel], tmp_path))
    assert len([path for path in tmp_path.iterdir() if path.name.startswith("thing-")]) == 1


def test_parts_and_the_repository_fit_into_a_call():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode != 0:
        pytest.skip("this copy of the repository has no git")
    names = filter(None, tracked.stdout.split("\0"))
    size = sum((ROOT / name).stat().st_size for name in names if (ROOT / name).is_file())
    assert size + carry.PART_BYTES < 62 * 2**20
