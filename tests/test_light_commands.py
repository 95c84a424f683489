"""A command answers --help and a mistake in its arguments before it loads PyTorch and its company."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "accelerate", "vllm", "deepspeed", "sentence_transformers", "wandb", "openai",
         "matplotlib", "pyarrow", "pandas")  # fmt: skip
PROGRAM = f"""
import atexit, json, runpy, sys
atexit.register(lambda: print("LOADED", json.dumps([name for name in {HEAVY} if name in sys.modules])))
module = sys.argv.pop(1)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def run(module: str, *arguments: str) -> tuple[subprocess.CompletedProcess, list[str]]:
    """How the command ended, and which heavy libraries it had loaded by then."""
    command = [sys.executable, "-c", PROGRAM, module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("LOADED "))
    return done, json.loads(line.removeprefix("LOADED "))


@pytest.mark.parametrize("module", ["rl", "sft", "quickstart", "export", "plots"])
def test_help_loads_nothing_heavy(module):
    done, loaded = run(f"trainer.{module}", "--help")
    assert (done.returncode, loaded) == (0, []), done.stderr
    assert done.stdout.startswith("usage: ")
    if module in ("rl", "sft"):
        options = ("--dry-run", "--num-processes", "--gpu-memory-gib", "--zero", "--offload", "--prompt-tokens")
        assert [option for option in options if option not in done.stdout] == []
        assert "optim.lr: float" in done.stdout and "max_tokens: int = 40000" in done.stdout


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("rl", ["--config", "nowhere.yaml"], "nowhere.yaml: no such configuration file"),
        ("rl", ["model.path=/nowhere/model"], "model.path: no model at '/nowhere/model'"),
        ("sft", ["model.path=runs/nowhere/model"], "model.path: no model at 'runs/nowhere/model'"),
        ("sft", ["data.path=nowhere.json"], "data.path: no file is at 'nowhere.json'"),
        ("sft", ["--dry-run", "--prompt-tokens", "9"], "--prompt-tokens and --completion-tokens go together"),
        ("quickstart", ["--data", "nowhere.json"], "data.path: no file is at 'nowhere.json'"),
    ],
)
def test_a_mistake_is_told_before_anything_heavy_is_loaded(module, arguments, message):
    done, loaded = run(f"trainer.{module}", *arguments)
    assert done.returncode and loaded == [] and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
