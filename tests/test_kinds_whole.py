"""Whole runs of the newer architectures: SFT, RL, going on, export; prompts shared all along."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests import both_loops, lives
from tests.forks import embedder  # noqa: F401
from tests.kinds import KINDS, write_folder
from trainer import rl, sft
from trainer.export import export

pytestmark = pytest.mark.slow
WHOLE = ["window, experts", "window, sinks, experts", "delta, experts", "delta", "convolution"]
SAVED = ["save_every=1", "save_at_end=true", "keep_last=3"]
FEW = ["data.num_extra=0", "sessions_per_step=7", "max_length=4096", "max_steps=2"]
RUNS = {
    "sft": (sft.main, [*both_loops.SFT[:2], *both_loops.SMALL, *FEW, *SAVED]),
    "rl": (rl.main, [*both_loops.RL, "num_steps=2", "parity_every=1", "eval_every=0", *SAVED]),
}


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

        exported = export(out / "checkpoints/step_2", tmp_path / f"{name}_exported")
        _, told = AutoModelForCausalLM.from_pretrained(exported, output_loading_info=True)
        assert not any(told.values()), told
        written, saved, before = (load_file(each / "model.safetensors") for each in (exported, out / "model", base))
        assert written.keys() == saved.keys() and all(torch.equal(saved[key], written[key]) for key in saved)
        still = [key for key in saved if torch.equal(saved[key], before[key])]
        assert not still, f"not trained: {still}"
        base = out / "model"
