"""The benchmark of the pretrained model, with a tiny one in its place; its own model is in test_gguf.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forks
from tests.benchmarks.real_model import HELD_OUT, TRAIN, locomo_files, result
from tests.patience import HANGS
from tests.test_quickstart import SMALL
from trainer import tiny

ROOT = Path(__file__).parent.parent


def test_the_conversations_of_each_side_are_written_to_files_of_their_own(tmp_path):
    path = tmp_path / "locomo.json"
    path.write_text(json.dumps([{"sample_id": name} for name in reversed((*TRAIN, *HELD_OUT, "conv-48"))]))
    _, train, _, held_out = locomo_files(path, tmp_path / "out")
    ids = [[each["sample_id"] for each in json.loads(Path(file).read_text())] for file in (train, held_out)]
    assert [sorted(side) for side in ids] == [sorted(TRAIN), sorted(HELD_OUT)]
    path.write_text(json.dumps([{"sample_id": name} for name in TRAIN]))
    with pytest.raises(SystemExit, match="lacks some of conv-43"):
        locomo_files(path, tmp_path / "out")
    with pytest.raises(SystemExit, match="needs --data"):
        locomo_files(None, tmp_path / "out")


def row(verdicts: list[float | None], tokens: float) -> dict:
    return {"accuracy": 0.0, "memory_tokens": tokens, "verdicts": verdicts}


def test_systems_are_compared_question_by_question_and_the_longest_run_counts(tmp_path):
    measured = {
        "baselines": {"rules": row([0.0] * 20 + [1.0] * 20 + [None], 100)},
        "sft": {"sft": row([0.0] * 40 + [1.0], 80)},
        "adrpo after 2 steps": {"adrpo": row([0.0] * 41, 80)},
        "adrpo after 4 steps": {"adrpo": row([1.0] * 41, 90)},
    }
    (tmp_path / "systems.json").write_text(json.dumps(measured))
    about = {"seed": 1, "engine": "vllm", "steps": {"sft": 1, "rl": 4}, "held_out": ["a"], "peak_memory_gib": 1.0}
    (tmp_path / "summary.json").write_text(json.dumps(about | {"data": "/home/me/locomo.json"}))
    (tmp_path / "rl").mkdir()
    (tmp_path / "rl/metrics.jsonl").write_text('{"step": 0, "reward/mean": 0.5, "grad_norm": 1.0}\n')
    found = result(tmp_path)
    assert set(found["compared"]) == {"sft over rules", "adrpo over sft", "adrpo over rules"}
    over = found["compared"]["adrpo over rules"]
    assert (over["questions"], over["difference"], over["memory_ratio"]) == (40, 0.5, 0.9)
    assert 0.3 < over["low"] < 0.5 < over["high"] < 0.7 and over["p_value"] < 1e-4
    assert found["curves"] == {"sft": [], "rl": [{"step": 0, "reward/mean": 0.5}]}
    assert found["run"] == about
    assert "verdicts" not in found["systems"]["adrpo"] and found["systems"]["adrpo"]["memory_tokens"] == 90


def run(arguments: list[str]) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.benchmarks.real_model", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=HANGS)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_a_run_whose_hours_are_over_evaluates_what_it_has_learned_and_goes_on_another_day(tmp_path):
    model, out, folder = tmp_path / "model", tmp_path / "real.json", tmp_path / "runs"
    forks.finish(tiny.main, (["--out", str(model), "num_layers=1", "hidden_size=32"],), tmp_path / "made")
    given = ["--out", str(out), "--folder", str(folder), "--model", str(model)]
    small = ["rl.engine=transformers", "rl.max_idle_steps=0", "sft.sessions_per_step=4", *SMALL]
    run([*given, "--parts", "operations", "--hours", "0.1", *small])
    parts = json.loads(out.read_text())["parts"]
    assert set(parts["operations"]["compared"]) == {"sft over rules"} and parts["operations"]["run"]["steps"]["rl"] == 0

    # ten thousand steps do not fit into a minute: some do, and are evaluated
    run([*given, "--parts", "generated", "--hours", "0.02", *small, "rl.num_steps=10000", "rl.save_every=1"])
    parts = json.loads(out.read_text())["parts"]
    first = parts["generated"]["run"]["steps"]["rl"]
    assert (
        0 < first < 1000
        and len(parts["generated"]["curves"]["rl"]) == first
        and set(parts) == {"operations", "generated"}
    )
    run([*given, "--parts", "generated", "--hours", "1", *small, f"rl.num_steps={first + 2}"])
    again = json.loads(out.read_text())["parts"]["generated"]
    assert again["run"]["steps"]["rl"] == first + 2
    assert again["curves"]["rl"][:first] == parts["generated"]["curves"]["rl"]


@pytest.mark.slow
def test_the_part_in_own_words_collects_trains_and_evaluates_and_goes_on_another_day(tmp_path):
    model, out, folder = tmp_path / "model", tmp_path / "real.json", tmp_path / "runs"
    forks.finish(tiny.main, (["--out", str(model), "num_layers=1", "hidden_size=32"],), tmp_path / "made")
    given = ["--parts", "own_words", "--out", str(out), "--folder", str(folder), "--model", str(model)]
    small = ["rl.engine=transformers", "rl.data.num_train=2", "rl.data.num_held_out=2", "rl.sampling.max_tokens=24"]
    run([*given, *small, "sft.max_steps=2"])
    part = json.loads(out.read_text())["parts"]["own_words"]
    assert (part["steps"], part["people"]) == (2, {"train": 2, "held_out": 2})
    assert list(part["systems"]) == ["empty", "random", "longest", "rules", "all", "teacher", "sft"]
    teacher, rules = part["systems"]["teacher"], part["systems"]["rules"]
    assert teacher["format_valid"] == 1 and teacher["accuracy"] > 0.9 * rules["accuracy"]
    assert 0 < teacher["memory_tokens"] < rules["memory_tokens"]
    windows = sum(part["windows_stored_by"].values())
    assert all(sum(counts.values()) >= 4 * windows for counts in part["operations"].values())
    assert len(part["samples"]) == 20 and [row["step"] for row in part["curve"]] == [0, 1]
    records = (folder / "own_words/sft.jsonl").read_text().splitlines()
    assert len(records) == part["answers_trained_on"] > 40

    run([*given, *small, "sft.max_steps=3"])
    again = json.loads(out.read_text())["parts"]["own_words"]
    assert again["steps"] == 3 and again["curve"][:2] == part["curve"] and again["systems"]["teacher"] == teacher
