"""What the two trainers say of their command line before they load PyTorch; tests/test_startup.py holds every command."""

import pytest

from tests.test_startup import run


@pytest.mark.parametrize("command", ["trainer.rl", "trainer.sft"])
def test_help_lists_the_dry_run_and_every_key(command):
    text = run(command, "--help")[0].stdout
    options = ("--dry-run", "--num-processes", "--gpu-memory-gib", "--zero", "--offload", "--prompt-tokens")
    assert [option for option in options if option not in text] == []
    assert "optim.lr: float" in text and "max_tokens: int = 40000" in text


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("trainer.rl", ["--config", "nowhere.yaml"], "nowhere.yaml: no such configuration file"),
        ("trainer.rl", ["model.path=/nowhere/model"], "model.path: no model at '/nowhere/model'"),
        ("trainer.sft", ["model.path=runs/nowhere/model"], "model.path: no model at 'runs/nowhere/model'"),
        ("trainer.sft", ["--dry-run", "--prompt-tokens", "9"], "--prompt-tokens and --completion-tokens go together"),
    ],
)
def test_a_mistake_is_told_before_anything_heavy_is_loaded(command, arguments, message):
    result, heavy = run(command, *arguments)
    assert result.returncode and heavy == [] and message in result.stderr, result.stderr
    assert "Traceback" not in result.stderr
