"""`python -m trainer.tiny`: a model folder that everything takes which takes a Hugging Face folder."""

import json

import pytest
import torch

from membuilder.config import load
from membuilder.errors import ConfigError
from membuilder.generate.dialogue import generate
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.four_agents.scheme import FourAgents
from membuilder.types import Bank
from rollout.hf_engine import TransformersEngine
from rollout.tokens import decode_completion, encode_completion, encode_prompt, load_tokenizer
from rollout.types import SamplingConfig
from trainer import tiny
from trainer.configs import ModelConfig
from trainer.model.policy import Policy, load_trainable
from trainer.model.tiny_model import train_tokenizer
from trainer.quickstart import CONFIGS
from trainer.rl_config import RLConfig
from trainer.sft_config import SFTConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "new" / "model"
    tiny.main(["--out", str(path), "hidden_size=32", "num_layers=2", "intermediate_size=64"])
    return path


def test_the_loops_and_an_engine_load_it_and_it_answers(folder):
    tokenizer = load_tokenizer(str(folder))
    policy = Policy(load_trainable(folder, ModelConfig(dtype="float32")).model)
    config = policy.model.config
    assert len(tokenizer) <= config.vocab_size and tokenizer.eos_token_id == config.eos_token_id
    assert policy.model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert config.model_type == "qwen3" and (config.hidden_size, config.num_hidden_layers) == (32, 2)
    prompt = encode_prompt(tokenizer, "[1] Ann: 你好, I sing.")
    assert "".join(tokenizer.batch_decode([prompt])) == "[1] Ann: 你好, I sing.", "the chat template adds nothing"
    answer = '{"operations": [{"action": "ADD", "quote": [1]}]}'
    assert decode_completion(tokenizer, encode_completion(tokenizer, answer)) == answer
    engine = TransformersEngine(folder, max_model_len=200, device="cpu", dtype=torch.float32)
    ((completion,),) = engine.generate([prompt], 1, SamplingConfig(max_tokens=4), seed=1)
    assert 1 <= len(completion.token_ids) <= 4
    engine.close()


def test_the_prompts_of_every_config_fit(folder):
    """The configs of the published size read 26,000 tokens, which a tiny model must not be too short for."""
    longest = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
    for path in CONFIGS.glob("*.yaml"):
        if path.name.split("_")[0] in ("rl", "tiny", "sft"):
            config = load(RLConfig if "rl" in path.stem else SFTConfig, path)
            assert longest >= (config.max_model_len if isinstance(config, RLConfig) else config.max_length), path.name
    tokenizer = load_tokenizer(str(folder))
    scheme, session = FourAgents(PromptConfig()), generate(1, 99, "heldout")[0].sessions[0]
    text = scheme.ask("core", session, Bank(), {"core": ()})
    assert len(encode_prompt(tokenizer, text)) < len(text) / 3, "its tokenizer knows the words of the prompts"


def test_the_same_seed_makes_the_same_files(folder, tmp_path):
    sizes = ["hidden_size=32", "num_layers=2", "intermediate_size=64"]
    tiny.main(["--out", str(tmp_path / "again"), *sizes])
    tiny.main(["--out", str(tmp_path / "other"), "--seed", "2", *sizes])
    same, other = (
        {path.name: path.read_bytes() == (folder / path.name).read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("again", "other")
    )
    assert same.keys() == {path.name for path in folder.iterdir()} and all(same.values())
    assert not other["model.safetensors"]


def test_a_folder_with_something_in_it_stays_as_it_is(folder, tmp_path):
    before = (folder / "config.json").stat().st_mtime_ns
    with pytest.raises(SystemExit, match=f"^trainer.tiny: '{folder}' is there and not empty.*rm -r {folder}"):
        tiny.main(["--out", str(folder)])
    assert (folder / "config.json").stat().st_mtime_ns == before
    for place in (".", "/"):
        with pytest.raises(SystemExit, match="is there and not empty"):
            tiny.main(["--out", place])
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        tiny.make(tmp_path / "file", tiny.TinyFolderConfig(), seed=1)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_misspelt_size_and_help_are_answered_at_once(tmp_path, capsys):
    with pytest.raises(SystemExit, match="unknown key 'hiden_size'. Did you mean 'hidden_size'"):
        tiny.main(["--out", str(tmp_path / "x"), "hiden_size=3"])
    with pytest.raises(SystemExit):
        tiny.main(["--help"])
    said = capsys.readouterr().out
    assert "python -m trainer.tiny --out tiny" in said and "max_position: int (at least 1) = 32768" in said


def test_a_vocabulary_without_room_for_the_turn_numbers_is_refused_with_what_would_do():
    scheme = FourAgents(PromptConfig())
    added = scheme.tiny_tokens(1000)
    least = 256 + 2 + len(added)
    with pytest.raises(
        ConfigError, match=rf"no room for {len(added)} tokens .*: set {least} or more, .*data\.max_turns"
    ):
        train_tokenizer(["a cat"], added, least - 1)
    tokenizer = train_tokenizer(["a cat"], added, least)
    assert len(tokenizer) == least and len(tokenizer.encode("#1000")) == 1
