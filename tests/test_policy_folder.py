"""A model folder is checked as a whole, and one set of end tokens holds wherever a model answers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
    Qwen3Config,
)

from membuilder.config import load as load_config
from membuilder.errors import ConfigError
from rollout.hf_engine import TransformersEngine
from rollout.policy_folder import load_policy, num_positions
from rollout.tokens import encode_completion, load_tokenizer
from rollout.types import SamplingConfig
from tests.fakes import HashEmbedder
from trainer import check_model, run_setup
from trainer.configs import ModelConfig, TinyConfig
from trainer.model.policy import load_trainable
from trainer.model.tiny_model import END, build_model, train_tokenizer
from trainer.rl_config import RLConfig
from trainer.sft_config import SFTConfig

SIZES = TinyConfig(vocab_size=320, hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=32,
                   max_position=512)  # fmt: skip
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "whole"
    tokenizer = train_tokenizer(["Ann: I have a cat."], [], 280)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    build_model(tokenizer, SIZES, seed=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "model")


def rewrite(path: Path, **changed) -> None:
    """Change keys of a JSON file; None takes one away."""
    kept = json.loads(path.read_text(encoding="utf-8")) | changed
    path.write_text(json.dumps({key: value for key, value in kept.items() if value is not None}), encoding="utf-8")


def change_weights(folder: Path, change: Callable[[Weights], Weights]) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def test_a_cap_on_attention_scores_holds_wherever_the_model_runs(folder):
    """Gemma 2's: transformers' SDPA, which it would choose, leaves the cap out."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(str(folder))
    sizes = dict(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, head_dim=16)
    config = Gemma2Config(**sizes, num_attention_heads=2, num_key_value_heads=1, attn_logit_softcapping=0.01)
    config.eos_token_id = tokenizer.eos_token_id
    model = Gemma2ForCausalLM(config)
    for parameter in model.parameters():
        parameter.data.normal_()
    model.save_pretrained(folder)
    ids = torch.arange(6)[None]
    found = load_policy(folder, dtype=torch.float32).model(ids).logits
    logits = {}
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        logits[name] = model(ids).logits
    torch.testing.assert_close(found, logits["eager"])
    assert (found - logits["sdpa"]).abs().max() > 0.1


PARTIAL = {
    "wrapped": (lambda w: {f"module.{name}": each for name, each in w.items()}, "begin with 'module.'.*unwrap_model"),
    "compiled": (lambda w: {f"_orig_mod.{name}": each for name, each in w.items()}, "begin with '_orig_mod.'"),
    "a missing layer": (
        lambda w: {name: each for name, each in w.items() if "mlp" not in name},
        r"3 missing \(model.layers.0.mlp.down_proj.weight, .*\)\. name a folder with the whole model",
    ),
    "another head": (lambda w: w | {"score.weight": torch.zeros(2)}, r"1 unexpected \(score.weight\)"),
    "another width": (lambda w: w | {"model.norm.weight": torch.zeros(2)}, r"1 of another shape \(model.norm.weight\)"),
}


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("name", PARTIAL)
def test_weights_that_are_not_the_models_own_are_refused_by_name(folder, name, weights):
    change, says = PARTIAL[name]
    change_weights(folder, change)
    with pytest.raises(ConfigError, match=f"the weights at '{folder}' are not those of its model: .*{says}"):
        load_policy(folder, weights=weights)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_heads_and_buffers_are_no_odd_weights(whole, tmp_path, tied):
    model = AutoModelForCausalLM.from_pretrained(whole)
    model.config.tie_word_embeddings = tied
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.save_pretrained(tmp_path)
    load_tokenizer(str(whole)).save_pretrained(tmp_path)
    load_policy(tmp_path)
    change_weights(tmp_path, lambda w: w | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)})
    if tied:  # a head that is there all the same, as some savers write it
        change_weights(tmp_path, lambda w: w | {"lm_head.weight": w["model.embed_tokens.weight"].clone()})
    loaded = load_policy(tmp_path)
    assert torch.equal(loaded.model.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_trained_model_has_the_configured_type(whole, dtype):
    model = load_trainable(whole, ModelConfig(dtype=dtype, gradient_checkpointing=True)).model
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert model.is_gradient_checkpointing


def without_weights(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "nowhere"}')


def with_own_code(folder: Path) -> None:
    names = {"AutoConfig": "code.New", "AutoModelForCausalLM": "code.NewModel"}
    rewrite(folder / "config.json", model_type="new", auto_map=names)
    (folder / "code.py").write_text("raise SystemExit('was run')")


def without_end(folder: Path) -> None:
    rewrite(folder / "tokenizer_config.json", eos_token=None)
    rewrite(folder / "config.json", eos_token_id=None)
    rewrite(folder / "generation_config.json", eos_token_id=None)


def with_more_tokens(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_tokens([f"<extra{number}>" for number in range(200)])
    tokenizer.save_pretrained(folder)


REFUSED = {
    "an adapter": (without_weights, "an adapter lies there .* merge it into its model"),
    "an adapter beside a model": (
        lambda folder: (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}'), "an adapter lies there",
    ),
    "quantized": (
        lambda folder: rewrite(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        "are quantized .gptq.: they cannot be trained.*name the model they were made from",
    ),
    "its own code": (with_own_code, "it brings code of its own, which is never run here"),
    "no end token": (without_end, "has no end token: .*eos_token.*name it in tokenizer_config.json"),
    "more tokens than embeddings": (
        with_more_tokens, r"beyond the model's 320 embeddings, such as '<extra\d+>' \(320\).*resize_token_embeddings",
    ),
    "too few positions": (
        lambda folder: rewrite(folder / "config.json", max_position_embeddings=64),
        "=400 is beyond the 64 positions of the model at .*: set m.*=64 or less, or give .*rope_parameters",
    ),
}  # fmt: skip


@pytest.fixture
def commands(monkeypatch, tmp_path) -> Callable[[str, Path], None]:
    """Loads a folder as each user of it does; building data would end the test."""

    def no_data(*args) -> None:
        pytest.fail("data is built before the model is checked")

    monkeypatch.setattr(run_setup, "Embedder", lambda model: HashEmbedder())
    monkeypatch.setattr(run_setup, "build_corpus", no_data)
    monkeypatch.setattr(run_setup, "read_builds", no_data)
    common = f"out={tmp_path}/out model.dtype=float32".split()

    def load(command: str, folder: Path) -> None:
        given = [*common, f"model.path={folder}"]
        if command == "sft":
            run_setup.setup_sft(load_config(SFTConfig, None, [*given, "max_length=400"]))
        elif command == "rl":
            lengths = ["sampling.max_tokens=9", "max_model_len=400"]
            run_setup.setup_rl(load_config(RLConfig, None, [*given, *lengths]))
        elif command == "engine":
            TransformersEngine(folder, max_model_len=400)
        else:
            check_model.check(folder)

    return load


CASES = [
    (command, name)
    for command in ("sft", "rl", "engine", "check_model")
    for name in ("wrapped", *REFUSED)
    if (command, name) != ("check_model", "too few positions")  # a server reads as much as the model can
]


@pytest.mark.parametrize(("command", "name"), CASES)
def test_every_user_of_a_folder_refuses_what_is_wrong_with_it(folder, commands, command, name):
    break_it, says = REFUSED.get(name) or (lambda folder: change_weights(folder, PARTIAL[name][0]), PARTIAL[name][1])
    break_it(folder)
    with pytest.raises(ConfigError, match=says):
        commands(command, folder)


def test_a_model_without_positions_reads_any_length_that_is_given(tmp_path):
    tokenizer = train_tokenizer(["a cat"], [], 280)
    sizes = dict(vocab_size=280, hidden_size=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=1, pad_token_id=0)
    BloomForCausalLM(BloomConfig(**sizes)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert TransformersEngine(tmp_path, max_model_len=10**6).max_model_len == 10**6
    with pytest.raises(ConfigError, match="tells no number of positions: give max_model_len"):
        TransformersEngine(tmp_path)


def test_an_embedding_may_be_larger_than_the_vocabulary(whole):
    """As Qwen's, which is padded."""
    loaded = load_policy(whole)
    assert len(loaded.tokenizer) < loaded.model.get_input_embeddings().num_embeddings == 320


@pytest.mark.parametrize(
    ("rope", "positions"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, 1000),
        ({"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}, 4000),
        ({"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 500}, 2000),
        # whoever publishes these writes the longer length into max_position_embeddings
        ({"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 125,
          "low_freq_factor": 1.0, "high_freq_factor": 4.0}, 1000),
    ],
)  # fmt: skip
def test_scaled_rotary_positions_count(rope, positions):
    assert num_positions(Qwen3Config(max_position_embeddings=1000, rope_parameters=rope)) == positions


# end tokens


@pytest.fixture
def divided(folder) -> Path:
    """Tokenizer, chat template, config and generation config each end on a token of their own."""
    rewrite(folder / "config.json", eos_token_id=50)
    rewrite(folder / "generation_config.json", eos_token_id=[60, 61])
    (folder / "chat_template.jinja").write_text(CHATML)
    return folder


def end_ids(folder: Path) -> tuple[int, ...]:
    tokenizer = load_tokenizer(str(folder))
    return (*tokenizer.convert_tokens_to_ids(["<|im_end|>", END]), 50, 60, 61)


def test_every_token_that_anyone_ends_on_is_an_end(divided):
    loaded = load_policy(divided)
    assert loaded.stop_ids == end_ids(divided)
    assert loaded.unserved_stop_ids == (loaded.stop_ids[0], 50)
    with pytest.raises(
        ConfigError, match=r"would not stop at <\|im_end\|>, .*\"eos_token_id\": \[.*, 60, 61\] into its gen"
    ):
        check_model.check(divided)


def test_an_expert_teaches_the_end_that_the_chat_template_writes(divided):
    tokenizer = load_tokenizer(str(divided))
    assert tokenizer.decode(encode_completion(tokenizer, "{}")) == "{}<|im_end|>"
    tokenizer.chat_template = None
    assert tokenizer.decode(encode_completion(tokenizer, "{}")) == f"{{}}{END}"


def make_certain(folder: Path, token_id: int) -> None:
    """Let the model answer with this one token, whatever it is asked."""
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        weight.fill_(1.0 if name == "model.norm.weight" else 0.0)
    weights["model.embed_tokens.weight"].fill_(1.0)
    weights["lm_head.weight"] = torch.zeros_like(weights["model.embed_tokens.weight"])
    weights["lm_head.weight"][token_id] = 9.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    rewrite(folder / "config.json", tie_word_embeddings=False)


@pytest.mark.parametrize("place", range(5))
def test_an_answer_is_finished_by_each_of_them(divided, place):
    token_id = end_ids(divided)[place]
    make_certain(divided, token_id)
    ((one,),) = TransformersEngine(divided).generate([[5, 6]], 1, SamplingConfig(max_tokens=4), seed=1)
    assert (one.token_ids, one.finished) == ((token_id,), True)


@pytest.mark.slow
def test_vllm_in_process_is_finished_by_each_of_them(divided):
    pytest.importorskip("vllm", reason="vLLM is not installed (launch/setup.sh)")
    from rollout.vllm_engine import VLLMEngine

    make_certain(divided, 7)
    engine = VLLMEngine(divided, max_model_len=64, seed=0, dtype="float32")
    for token_id in (*end_ids(divided), 7):
        make_certain(divided, token_id)
        engine.load_weights(load_file(divided / "model.safetensors").items(), version=1)
        ((one,),) = engine.generate([[5, 6]], 1, SamplingConfig(max_tokens=4), seed=1)
        expected = ((7,) * 4, False) if token_id == 7 else ((token_id,), True)
        assert (one.token_ids, one.finished) == expected
    engine.close()


def test_what_is_saved_ends_where_training_ended(divided, tmp_path):
    loaded = load_policy(divided)
    loaded.model.save_pretrained(tmp_path / "saved")
    loaded.tokenizer.save_pretrained(tmp_path / "saved")
    named = list(loaded.stop_ids)
    assert AutoConfig.from_pretrained(tmp_path / "saved").eos_token_id == named
    assert GenerationConfig.from_pretrained(tmp_path / "saved").eos_token_id == named
    assert check_model.check(tmp_path / "saved").startswith(f"<|im_end|>, {END}, ")
    again = load_policy(tmp_path / "saved")
    assert (set(again.stop_ids), again.unserved_stop_ids) == (set(named), ())


def test_a_tokenizer_without_an_end_takes_the_models(folder):
    rewrite(folder / "tokenizer_config.json", eos_token=None)
    loaded = load_policy(folder)
    assert loaded.tokenizer.eos_token == END and loaded.stop_ids == (1,)
    assert encode_completion(loaded.tokenizer, "{}")[-1] == 1


def test_a_folder_that_agrees_is_saved_as_it_was(whole, tmp_path):
    """One end token stays a number, not a list of one."""
    load_policy(whole).model.save_pretrained(tmp_path)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / name).read_text())["eos_token_id"] == 1
