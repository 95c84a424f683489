"""The whole chain, small, as a user runs it: real vLLM, FAISS, embeddings. Slow: starts an engine twice."""

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import forks
from tests.patience import HANGS
from tests.terminal import strange_lines
from trainer import tiny
from trainer.quickstart import main

ROOT = Path(__file__).parent.parent
SMALL = [
    *(f"{stage}.data.num_train=4" for stage in ("sft", "rl")),
    *(f"{stage}.data.num_held_out=2" for stage in ("sft", "rl")),
    *(f"{stage}.data.num_steering=1" for stage in ("sft", "rl")),
    "sft.max_steps=4",
    "rl.num_steps=2",
    "rl.sessions_per_step=2",
    "rl.num_rollouts=3",
]


def summary_of(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text(encoding="utf-8"))


def use_threads(number: int) -> None:
    """By name, so that a spawned child can import it."""
    torch.set_num_threads(number)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    out = tmp_path_factory.mktemp("quickstart")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    for name in ("OMP_NUM_THREADS", "WANDB_MODE"):  # as many threads as a user gets, and nothing said of W&B
        environment.pop(name, None)
    command = [sys.executable, "-m", "trainer.quickstart", "--out", str(out), *SMALL]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=HANGS)
    assert result.returncode == 0, result.stderr[-3000:]
    return out, result


@pytest.mark.slow
def test_summary_has_every_field_and_system(run):
    summary = summary_of(run[0])
    assert summary["data"] == "generated" and summary["seed"] == 1 and summary["engine"] == "vllm"
    assert summary["steps"]["rl"] == 2 and set(summary["wall_seconds"]) == {"setup", "sft", "rl", "eval"}
    assert list(summary["systems"]) == ["empty", "random", "longest", "rules", "all", "sft", "adrpo"]
    for result in summary["systems"].values():
        assert set(result) == {"accuracy", "recall_at_10", "memory_tokens", "format_valid", "questions"}
    assert summary["prompt_too_long"] == dict.fromkeys(summary["systems"], 0.0)
    assert summary["systems"]["empty"]["accuracy"] == 0.0
    assert summary["systems"]["all"]["accuracy"] > summary["systems"]["rules"]["accuracy"] > 0.0


@pytest.mark.slow
def test_it_prints_the_table_and_writes_pictures_models_and_logs(run):
    out, result = run
    assert "accuracy" in result.stdout and "adrpo" in result.stdout
    for line in result.stdout.splitlines():
        if line.startswith("picture: "):
            assert Path(line.removeprefix("picture: ")).stat().st_size > 1000
    assert (out / "plots" / "accuracy.png").is_file() and (out / "rl" / "plots" / "reward.png").is_file()
    assert (out / "rl" / "model" / "model.safetensors").is_file()
    metrics = [json.loads(line) for line in (out / "rl" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == [0, 1]
    assert {"reward/mean", "qa/accuracy", "format/core", "memory_tokens/episodic"} <= set(metrics[0])
    rows = [json.loads(line) for line in (out / "rl" / "completions.jsonl").read_text().splitlines()]
    assert {row["agent"] for row in rows} == {"core", "episodic", "semantic", "procedural"}
    assert {row["weight_version"] for row in rows if row["step"] == 1} == {1}


@pytest.mark.slow
def test_it_prints_progress_and_results_only(run):
    out, result = run
    shapes = [
        r"data: generated for this run", r"train on \d+ dialogues \(.*\)",
        r"evaluate on \d+ dialogues \(.*\), never trained on",
        r"SFT: a small Qwen3 learns to imitate the rules", r"evaluation: the baselines, then vllm with the SFT model",
        r"RL: 2 steps of adrpo", r"system +accuracy +recall@10 +memory tokens +format valid",
        r"\w+ +\d\.\d{3} +\d\.\d{3} +\d+ +\d\.\d{3}", r"accuracy: share of \d+ questions .*",
        rf"(picture|summary): {re.escape(str(out))}/[\w/]+\.(png|json)",
    ]  # fmt: skip
    assert strange_lines(result.stdout, *shapes) == [] and strange_lines(result.stderr) == []
    assert "vllm" in (out / "run.log").read_text()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_summary(run, tmp_path):
    """In a process of its own, whatever ran here before, and on as many threads: nothing but the seed counts.

    Not in this process: OpenMP's threads would outlive the test, and a process forked later would wait for them for
    ever.
    """
    as_many_threads = partial(use_threads, len(os.sched_getaffinity(0)))
    arguments = ["--out", str(tmp_path), *SMALL]
    forks.finish(main, (arguments,), tmp_path / "log", as_many_threads, forks.SPAWN)
    assert summary_of(tmp_path)["systems"] == summary_of(run[0])["systems"]


@pytest.mark.slow
def test_a_model_of_ones_own_and_a_run_that_goes_on(tmp_path):
    """The second run finds both stages finished: it evaluates the policy that RL left, and trains nothing."""
    model = tmp_path / "model"
    forks.finish(tiny.main, (["--out", str(model), "num_layers=1", "hidden_size=32"],), tmp_path / "made")
    out, first, second = tmp_path / "out", tmp_path / "first", tmp_path / "second"
    arguments = ["--out", str(out), "--model", str(model), "rl.engine=transformers", "sft.sessions_per_step=4", *SMALL]
    forks.finish(main, (arguments,), first)
    before, weights = summary_of(out), load_file(out / "rl/model/model.safetensors")
    assert before["model"] == str(model) and before["steps"] == {"sft": 4, "rl": 2}
    forks.finish(main, ([*arguments, "--resume"],), second)
    assert second.read_text().count("nothing left to train") == 2
    assert summary_of(out)["systems"] == before["systems"]
    now = load_file(out / "rl/model/model.safetensors")
    assert all(torch.equal(now[name], weights[name]) for name in weights)


@pytest.mark.slow
def test_the_other_scheme_runs_the_same_chain(tmp_path, capsys):
    sizes = ("num_train=4", "num_held_out=2")
    small = [f"{stage}.data.{size}" for stage in ("sft", "rl") for size in sizes]
    small += ["sft.max_steps=3", "rl.num_steps=1", "rl.instances_per_step=2", "rl.num_rollouts=2"]
    main(["--scheme", "memalpha", "--out", str(tmp_path), "rl.engine=transformers", *small])
    summary, shown = summary_of(tmp_path), capsys.readouterr().out
    assert summary["scheme"] == "memalpha" and summary["steps"] == {"sft": 3, "rl": 1}
    assert list(summary["systems"]) == ["empty", "random", "longest", "rules", "all", "sft", "adrpo"]
    assert summary["systems"]["all"]["accuracy"] > summary["systems"]["rules"]["accuracy"] > 0.0
    assert re.search(r"^system +r1 ", shown, re.MULTILINE) and "\nr1: share of" in shown and "\naccuracy: " not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "/nowhere/locomo.json"], "/nowhere/locomo.json"),
        (["rl.reward.alhpa=2"], "reward.alpha"),
        (["sft.optim.lr=fast"], "optim.lr"),
        (["reward.alpha=2"], "sft. or rl."),
        (["--eval-data", "locomo10.json"], "give data.path too (quickstart: --data)"),
        (["rl.reward.include_superseded=false"], "Did you mean 'prompts.include_superseded'?"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=re.escape(message)) as refused:
        main(["--out", str(tmp_path), *arguments])
    assert str(refused.value).startswith("quickstart: ")
