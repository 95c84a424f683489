"""Whole runs of the newer architectures: SFT, RL, going on, export; prompts shared all along."""

import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests import both_loops, forks, lives
from tests.forks import embedder  # noqa: F401
from tests.kinds import KINDS, write_folder
from tests.test_architectures import SEQUENCES
from trainer import rl, sft
from trainer.export import export
from trainer.model.dense_copies import own_logprobs

pytestmark = pytest.mark.slow
WHOLE = ["window, experts", "window, sinks, experts", "delta, experts", "delta", "convolution"]
SAVED = ["save_every=1", "save_at_end=true", "keep_last=3"]
RUNS = {
    "sft": (sft.main, [*both_loops.SFT[:2], *both_loops.SMALL, "data.num_extra=0", "sessions_per_step=7", "max_length=4096",
                       "max_steps=2", *SAVED]),
    "rl": (rl.main, [*both_loops.RL, "num_steps=2", "parity_every=1", "eval_every=0", *SAVED]),
}  # fmt: skip


@pytest.mark.parametrize("kind", WHOLE)
def test_a_run_trains_saves_goes_on_and_is_exported(kind, tmp_path):
    base = write_folder(KINDS[kind], tmp_path / "base")
    for name, (main, arguments) in RUNS.items():
        out, again = tmp_path / name, tmp_path / f"again_{name}"
        lives.finish(main, [*arguments, f"model.path={base}"], out)
        assert "prompts are not shared" not in Path(f"{out}.log").read_text()
        rows = lives.metrics(out)
        assert len(rows) == 2 and all(row["grad_norm"] > 0 for row in rows)

        shutil.copytree(out, again)
        shutil.rmtree(again / "checkpoints/step_2")
        lives.finish(main, [*arguments, f"model.path={base}", "resume=auto"], again)
        lives.same_run(out, again)

        export(out / "checkpoints/step_2", tmp_path / f"{name}_exported")
        models = [
            AutoModelForCausalLM.from_pretrained(folder) for folder in (out / "model", tmp_path / f"{name}_exported")
        ]
        weights = [each.state_dict() for each in models]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
        start = load_file(base / "model.safetensors")
        base = out / "model"
