"""What each command loads: `--help` and the report of a missing file must not wait for heavy libraries."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import HANGS

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {
    "torch", "transformers", "accelerate", "deepspeed", "vllm", "openai", "faiss", "sentence_transformers", "wandb",
    "matplotlib", "pyarrow", "pandas", "scipy", "nltk", "bm25s",
}  # fmt: skip
SFT, RL = "--config configs/quickstart_sft.yaml", "--config configs/quickstart_rl.yaml"
# (command, arguments, what is said of them); OUT stands for a folder to write to.
MISTAKES = [
    ("membuilder", "inspect nowhere.db", "nowhere.db: no such store"),
    ("membuilder.build", "--dataset-path nowhere.json --model rules --out OUT/memory.db", "nowhere.json"),
    ("membuilder.eval", "--dataset-path nowhere.json --system rules --output-dir OUT", "nowhere.json"),
    ("membuilder.expert", "--dataset locomo --dataset-path nowhere.json --output-dir OUT", "nowhere.json"),
    ("membuilder.qa", "--trajectories-dir nowhere", "nowhere"),
    ("membuilder.prepare", "sft --trajectories-dir nowhere --output-file OUT/sft.jsonl", "nowhere"),
    ("membuilder.inspect", "nowhere.db", "nowhere.db: no such store"),
    ("membuilder.edit", "nowhere.db delete-entry m1", "nowhere.db: no such store"),
    ("membuilder.data", "fetch locomo --data-dir setup.py/nowhere", "setup.py/nowhere"),
    (
        "membuilder.data",
        "build-memalpha --dataset squad --source nowhere --out OUT",
        "nowhere: whole file: field 'path'",
    ),
    (
        "membuilder.data",
        "leaks nowhere.parquet nowhere.parquet",
        "nowhere.parquet: whole file: field 'path': is no file",
    ),
    ("membuilder.eval", "--dataset memalpha --dataset-path nowhere.parquet --output-dir OUT", "nowhere.parquet"),
    ("trainer.sft", f"{SFT} data.path=nowhere.json out=OUT", "data.path: no file is at 'nowhere.json'"),
    ("trainer.sft", "model.path=runs/nowhere/model", "model.path: no model at 'runs/nowhere/model'"),
    ("trainer.sft", "--dry-run --prompt-tokens 9", "--prompt-tokens and --completion-tokens go together"),
    ("trainer.rl", "--config nowhere.yaml", "nowhere.yaml: no such configuration file"),
    ("trainer.rl", f"{RL} model.path=/nowhere/model", "model.path: no model at '/nowhere/model'"),
    ("trainer.rl", f"{RL} model.path=OUT data.path=nowhere.json out=OUT", "data.path: no file is at 'nowhere.json'"),
    (
        "trainer.rl",
        "--config configs/rl_qwen3_4b.yaml model.path=OUT data.path=null data.split=null",
        "a key: set OPENAI_API_KEY;",
    ),
    ("trainer.quickstart", "--data nowhere.json --out OUT", "data.path: no file is at 'nowhere.json'"),
    ("trainer.export", "nowhere OUT/exported", "there is no checkpoint folder 'nowhere'"),
    ("trainer.check_model", "nowhere", "no model at 'nowhere': name a Hugging Face folder"),
    ("trainer.plots", "nowhere", "'nowhere' holds neither metrics.jsonl nor summary.json"),
]


def run(command: str, *arguments: str) -> tuple[subprocess.CompletedProcess, list[str]]:
    """What the command did, its stderr without Python's import times; and the heavy libraries it loaded."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": ""}
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", command, *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANGS, check=False,
    )  # fmt: skip
    lines = result.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    result.stderr = "\n".join(line for line in lines if not line.startswith("import time:"))
    assert "argparse" in imported
    return result, sorted(imported & HEAVY)


@pytest.mark.parametrize("command", list(dict.fromkeys(command for command, *_ in MISTAKES)))
def test_help_loads_no_heavy_library(command):
    result, heavy = run(command, "--help")
    assert result.returncode == 0 and result.stdout.startswith("usage: ") and not result.stderr
    assert heavy == []
    if command in ("trainer.rl", "trainer.sft"):
        options = ("--dry-run", "--num-processes", "--gpu-memory-gib", "--zero", "--offload", "--prompt-tokens")
        assert [option for option in options if option not in result.stdout] == []
        assert "optim.lr: float" in result.stdout and "max_tokens: int (at least 1) = 40000" in result.stdout


@pytest.mark.parametrize(("command", "arguments", "message"), MISTAKES)
def test_a_mistake_is_told_without_a_heavy_library(command, arguments, message, tmp_path):
    result, heavy = run(command, *arguments.replace("OUT", str(tmp_path)).split())
    assert result.returncode != 0 and "Traceback" not in result.stderr
    assert message in result.stderr
    assert heavy == []
