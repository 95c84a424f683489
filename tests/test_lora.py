"""Adapters over a frozen model: their gradients, what stays as it was, what the engine and other programs are given."""

import copy
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, PeftModel, get_peft_model
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from membuilder.config import dump, load
from membuilder.errors import ConfigError
from tests.distributed_policy import trees_of
from tests.kinds import make
from tests.test_architectures import CPU, DENSE, SEQUENCES, SHARED, ours, own
from trainer import run_setup
from trainer.batching.packing import build_tree, pack_on
from trainer.checkpoint.model_card import model_card
from trainer.configs import Attention, LoRAConfig, LossConfig, ModelConfig, OptimConfig
from trainer.experience.engine_weights import EngineWeights
from trainer.losses import adrpo
from trainer.model.dense_copies import own_logprobs
from trainer.model.lora import adapted_layers, base_weights, merged_weights, write_adapter
from trainer.model.make_policy import make_policy, make_reference
from trainer.optim import make_optimizer
from trainer.optimizer_step import make_objective, named_weights
from trainer.rl_config import RLConfig
from trainer.sft_config import SFTConfig

LORA = LoRAConfig(rank=3, alpha=12)
NARROW = LoRAConfig(rank=2, alpha=2, targets=("q_proj", "mlp.down_proj"))


@pytest.fixture
def in_float64(monkeypatch):
    """Qwen3's norms compute in float32 by themselves, also in a float64 model."""

    def forward(self, states):
        return self.weight * states * (states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()

    monkeypatch.setattr(Qwen3RMSNorm, "forward", forward)


def logprobs(policy) -> torch.Tensor:
    with torch.no_grad():
        return policy(pack_on([build_tree(SEQUENCES)], CPU)).logprobs


def trained(policy, steps: int = 3):
    """The policy after some optimizer steps."""
    optimizer = make_optimizer(policy, OptimConfig(lr=1e-2))
    for _ in range(steps):
        ours(policy)
        optimizer.step()
    return policy


@pytest.mark.parametrize("attention", [Attention.AUTO, Attention.DENSE])
@pytest.mark.parametrize("name", ["qwen3", "gpt_neox", "gpt2"])
def test_the_gradients_are_those_of_a_dense_twin_by_peft(name, attention, in_float64):
    """Packed prompts and our head against peft's model over transformers' own forward, in float64."""
    model = make(SHARED[name])
    model.config.attention_dropout = 0.0
    twin = get_peft_model(
        copy.deepcopy(model),
        LoraConfig(r=3, lora_alpha=12, target_modules="all-linear", fan_in_fan_out=name == "gpt2"),
    )
    policy = make_policy(model, attention, CPU, lora=LORA)
    assert policy.shares_prompts == (attention is Attention.AUTO)
    torch.manual_seed(1)
    values = {key: torch.randn_like(each) for key, each in model.named_parameters() if each.requires_grad}
    for each in (model, twin.base_model.model):
        assert each.load_state_dict(values, strict=False).unexpected_keys == []
    expected, found = own(twin.eval()), ours(policy)
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-9, atol=1e-9)
    assert len(found[1]) == len(expected[1]) == len(values)
    largest = max(float(each.abs().max()) for each in expected[1].values())
    for key, gradient in expected[1].items():
        assert gradient.abs().max() > 0
        mine = found[1][key.removeprefix("base_model.model.")]
        torch.testing.assert_close(
            mine, gradient, rtol=1e-9, atol=1e-9 * largest, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_policy_starts_as_its_base_and_its_reference_stays_it(dtype):
    base = make(SHARED["qwen3"], dtype)
    policy, plain = (make_policy(copy.deepcopy(base), Attention.AUTO, CPU, lora=lora) for lora in (LORA, None))
    start, reference = logprobs(plain), make_reference(policy)
    assert torch.equal(logprobs(policy), start) and torch.equal(logprobs(reference), start)
    trained(policy)
    assert not torch.equal(logprobs(policy), start)
    assert torch.equal(logprobs(reference), start)
    assert all(each.requires_grad == ("lora_" in name) for name, each in policy.model.named_parameters())
    shared = {id(each) for each in policy.parameters()}
    assert {id(each) for each in reference.parameters()} == shared, "no second copy"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_frozen_weights_stay_bit_for_bit_and_merging_leaves_no_trace(name, dtype):
    base = make(SHARED[name], dtype)
    before = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    policy = make_policy(base, Attention.AUTO, CPU, lora=LORA)
    assert {each.dtype for each in policy.parameters() if each.requires_grad} == {torch.float32}
    merged = dict(merged_weights(policy.model))
    assert merged.keys() == before.keys() and all(torch.equal(merged[key], before[key]) for key in before)
    trained(policy)
    merged, again = dict(merged_weights(policy.model)), dict(merged_weights(policy.model))
    assert all(tensor.dtype == dtype for tensor in merged.values())
    assert all(torch.equal(merged[key], again[key]) for key in before)
    assert all(torch.equal(tensor, before[key]) for key, tensor in base_weights(policy.model).items())
    changed = {key for key in before if not torch.equal(merged[key], before[key])}
    assert changed == {f"{layer}.weight" for layer in adapted_layers(policy.model)}


@pytest.mark.parametrize("lora", [LORA, NARROW])
def test_merged_weights_are_the_policy(lora, tmp_path):
    """So is what peft makes of the adapters' folder."""
    base = make(SHARED["qwen3"], torch.float32)
    policy = trained(make_policy(copy.deepcopy(base), Attention.AUTO, CPU, lora=lora))
    plain = copy.deepcopy(base)
    plain.load_state_dict(dict(merged_weights(policy.model)))
    torch.testing.assert_close(own_logprobs(plain, SEQUENCES), logprobs(policy), rtol=0, atol=1e-5)
    assert (own_logprobs(base, SEQUENCES) - logprobs(policy)).abs().mean() > 0.01
    write_adapter(policy.model, tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    torch.testing.assert_close(own_logprobs(loaded, SEQUENCES), logprobs(policy), rtol=0, atol=1e-5)
    for key, tensor in loaded.merge_and_unload().state_dict().items():
        torch.testing.assert_close(tensor, plain.state_dict()[key], rtol=0, atol=1e-6)


def test_the_kl_term_is_that_against_a_copy_of_the_base():
    """The reference runs between two forwards of the policy, whose gradients must not notice."""
    base = make(SHARED["qwen3"], torch.float32)
    copied = make_policy(copy.deepcopy(base), Attention.AUTO, CPU)
    policy = trained(make_policy(base, Attention.AUTO, CPU, lora=LORA)).train()
    packed = pack_on([trees_of(0)[2]], CPU)
    found = []
    for reference in (make_reference(policy), make_reference(copied), None):
        config = LossConfig(kl_coef=0.0 if reference is None else 0.5)
        objective = make_objective(adrpo, config, packed, torch.ones(packed.sequence.shape), reference, 1.0)
        policy.zero_grad()
        policy(packed, 1.0, objective, objective.whole_sequences).loss.backward()
        found.append(torch.cat([each.grad.flatten() for each in policy.parameters() if each.requires_grad]))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


class Receiver:
    """An engine that keeps what it was given."""

    max_model_len = 100

    def __init__(self) -> None:
        self.loaded: list[dict[str, torch.Tensor]] = []

    def load_weights(self, named_tensors, version: int) -> None:
        self.loaded.append({name: tensor.detach().clone() for name, tensor in named_tensors})

    def stream(self, *_, **__) -> list:
        return []


def test_the_reference_answers_with_the_base_and_the_engine_has_the_policy_again():
    base = make(SHARED["qwen3"], torch.float32)
    before = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    policy, engine = trained(make_policy(base, Attention.AUTO, CPU, lora=LORA)), Receiver()
    weights = EngineWeights(engine, partial(named_weights, Accelerator(cpu=True), policy))
    weights.load_policy(1)
    list(weights.answers_of(make_reference(policy), None, 8)([]))
    mine, reference, again = engine.loaded
    assert reference.keys() == before.keys() and all(torch.equal(reference[key], before[key]) for key in before)
    assert all(torch.equal(mine[key], again[key]) for key in before)
    assert any(not torch.equal(mine[key], before[key]) for key in before)


def test_where_prompts_are_not_shared_adapters_train_too():
    config, _ = DENSE["olmo_hybrid"]
    policy = make_policy(make(config, torch.float32), Attention.AUTO, CPU, lora=LORA)
    assert not policy.shares_prompts
    before = logprobs(policy)
    assert (logprobs(trained(policy)) - before).abs().mean() > 0.01


def test_only_adapters_are_optimized_and_saved():
    policy = make_policy(make(SHARED["qwen3"], torch.float32), Attention.AUTO, CPU, lora=NARROW)
    (group,) = make_optimizer(policy, OptimConfig(weight_decay=0.1)).param_groups
    assert group["weight_decay"] == 0.1 and len(group["params"]) == 2 * 2 * 2  # two layers, two targets, two matrices
    state = {name: tensor.clone() for name, tensor in trained(policy).state_dict().items()}
    assert len(state) == 8 and all("lora_" in name for name in state)
    fresh = make_policy(make(SHARED["qwen3"], torch.float32), Attention.AUTO, CPU, lora=NARROW)
    fresh.load_state_dict(state)
    assert torch.equal(logprobs(fresh), logprobs(policy))
    state.popitem()
    with pytest.raises(RuntimeError, match="Missing key.*lora_"):
        fresh.load_state_dict(state)


@pytest.mark.parametrize("targets", [("q_proj", "query"), ("lm_head",), ("embed_tokens",), ("proj",), ()])
def test_a_target_that_is_no_layer_is_refused_with_those_that_are(targets):
    with pytest.raises(
        ConfigError, match=r"model\.lora\.targets=.* there are q_proj, .*, down_proj, or all-linear"
    ) as caught:
        make_policy(make(SHARED["qwen3"]), Attention.AUTO, CPU, lora=LoRAConfig(targets=targets))
    assert "lm_head" not in str(caught.value).split("there are")[1]
    assert (targets[-1] if targets else "no name") in str(caught.value)


@pytest.mark.parametrize("cls", [SFTConfig, RLConfig])
def test_the_keys_switch_it_on_and_come_back_from_a_file(cls, tmp_path):
    assert load(cls, None, []).model.lora is None
    config = load(cls, None, ["model.path=m", "model.lora.rank=8", "model.lora.targets=[q_proj, v_proj]"])
    assert config.model.lora == LoRAConfig(rank=8, alpha=32, targets=("q_proj", "v_proj"))
    (tmp_path / "config.yaml").write_text(dump(config), encoding="utf-8")
    assert load(cls, tmp_path / "config.yaml") == config
    assert load(cls, tmp_path / "config.yaml", ["model.lora=null"]).model.lora is None
    with pytest.raises(ConfigError, match="model.lora.targets.*all-linear"):
        load(cls, None, ["model.path=m", "model.lora.targets=q_proj"])
    with pytest.raises(ConfigError, match="section 'model': .*model.path"):
        load(cls, None, ["model.lora.rank=8"])


def test_zero_3_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(run_setup, "zero_stage", lambda _: 3)
    config = SFTConfig(out=str(tmp_path), model=ModelConfig(path="m", lora=LORA))
    with pytest.raises(ConfigError, match="model.lora does not run under ZeRO-3.*zero2.yaml"):
        run_setup.start_run(config, "sft")


def test_the_card_tells_the_rank(tmp_path):
    lora = {"rank": 8, "alpha": 16, "targets": "all-linear"}
    card = model_card({"model": {"path": "org/base", "lora": lora}}, tmp_path, 1)
    assert "- Trained by LoRA, merged: rank 8, alpha 16, targets all-linear\n- Licence" in card
    assert "LoRA" not in model_card({"model": {"path": "org/base"}}, tmp_path, 1)
