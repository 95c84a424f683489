"""Every kind of architecture on packed prefix trees: log-probs and gradients of each path run alone by transformers.

Where it says `double_precision`, casts to float32 inside of delta rules are lifted, and transformers' delta rule is a
loop over tokens. What else transformers computes in float32 (norms, routers) it computes of each token by itself.
"""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, FalconH1Config, KimiLinearConfig, OlmoHybridConfig, PreTrainedModel
from transformers.models.lfm2.modeling_lfm2 import Lfm2RMSNorm
from transformers.models.lfm2_moe.modeling_lfm2_moe import Lfm2MoeRMSNorm
from transformers.models.qwen3_5 import modeling_qwen3_5
from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe
from transformers.models.qwen3_next import modeling_qwen3_next

from membuilder.errors import ConfigError
from tests.kinds import KINDS, SIZES, make, random_samples, trees_of
from tests.test_tree_recurrence import token_by_token
from trainer.batching import recurrence_plan
from trainer.batching.attention_plan import padded_calls, varlen_calls
from trainer.batching.loss_rows import cross_entropy
from trainer.batching.packing import Node, PackedBatch, Share, build_tree, dense_tree, pack
from trainer.configs import Attention, LoRAConfig
from trainer.distributed.process_group import World
from trainer.model.lora import adapted_layers, merged_weights
from trainer.model.make_policy import make_policy
from trainer.model.policy import Policy
from trainer.model.shared_prefix import UnsharedError, use_own_layers, use_shared_prefix, windows_of
from trainer.optimizer_step import make_update

CPU = torch.device("cpu")
RECURRENT = [name for name in KINDS if "delta" in name or "convolution" in name]
IN_FLOAT64 = [name for name in RECURRENT if "experts" not in name or name == "delta, no experts"]
"""Those in which `double_precision` leaves no float32: a router's softmax is in float32, so are other models' norms."""


@pytest.fixture
def double_precision(monkeypatch):
    """float64 all through, and transformers' delta rule token by token."""

    def rule(query, key, value, g, beta, use_qk_l2norm_in_kernel, **_):
        assert use_qk_l2norm_in_kernel
        outs = [token_by_token(*each)[0] for each in zip(query, key, value, g, beta, strict=True)]
        return torch.stack(outs), None

    def gated_norm(self, hidden_states, gate):
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        normed = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * normed * torch.nn.functional.silu(gate)

    def norm(self, hidden_states):
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))

    monkeypatch.setattr(recurrence_plan, "CHUNK", 8)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    for each in (Lfm2RMSNorm, Lfm2MoeRMSNorm):
        monkeypatch.setattr(each, "forward", norm)
    for module, family in (
        (modeling_qwen3_next, "Qwen3Next"),
        (modeling_qwen3_5, "Qwen3_5"),
        (modeling_qwen3_5_moe, "Qwen3_5Moe"),
    ):
        monkeypatch.setattr(getattr(module, f"{family}RMSNormGated"), "forward", gated_norm)
        monkeypatch.setattr(module, "torch_chunk_gated_delta_rule", rule)


Numbers = tuple[torch.Tensor, dict[str, torch.Tensor]]
"""Log-probs in the order of packed rows, and gradients by name."""


def packed(model: PreTrainedModel, trees: list[Node], plan=padded_calls) -> PackedBatch:
    return pack(trees, plan, windows_of(model))


def loss_of(batch: PackedBatch):
    return cross_entropy(-batch.values.advantage.double())


def own(model: PreTrainedModel, batch: PackedBatch) -> Numbers:
    """By transformers alone, each sequence by itself."""
    found = []
    for each in batch.sequences:
        ids = torch.tensor([[*each.prompt_token_ids, *each.completion_token_ids]])
        start = len(each.prompt_token_ids)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0, start - 1 :].double()
        found.append(logits.log_softmax(-1).gather(-1, ids[0, start:, None]).squeeze(-1))
    logprobs = torch.cat(found)
    model.zero_grad()
    (logprobs @ batch.values.advantage.double()).backward()
    return logprobs.detach(), gradients_of(model)


def gradients_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def run(policy: Policy, *batches: PackedBatch) -> Numbers:
    """All batches go forward before any goes backward: a layer is told of its batch again, not of the last one."""
    policy.zero_grad()
    outputs = [policy(batch, 1.0, loss_of(batch)) for batch in batches]
    sum(output.loss for output in outputs).backward()
    return torch.cat([output.head.logprobs for output in outputs]), gradients_of(policy.model)


def shared(model: PreTrainedModel, trees: list[Node], plan=padded_calls) -> Numbers:
    return run(Policy(model).train(), packed(model, trees, plan))


def gaps(found: Numbers, expected: Numbers) -> tuple[float, float]:
    """The largest gap of log-probs, and that of gradients relative to the largest entry of any."""
    assert found[1].keys() == expected[1].keys()
    largest = max(float(each.abs().max()) for each in expected[1].values())
    gradient = max(float((found[1][name] - each).abs().max()) for name, each in expected[1].items())
    return float((found[0] - expected[0]).abs().max()), gradient / largest


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", KINDS)
def test_trees_have_the_numbers_of_each_sequence_alone(name, depth, double_precision):
    """Nodes of odd lengths, activations kept and computed again, attention in rectangles and in calls of any length."""
    model, trees = make(KINDS[name]), trees_of(depth)
    expected = own(model, pack(trees))
    bound = 1e-10 if name in IN_FLOAT64 else 1e-6
    for checkpointing, plan in ((False, padded_calls), (True, varlen_calls)):
        mine = copy.deepcopy(model)
        if checkpointing:
            mine.gradient_checkpointing_enable({"use_reentrant": False})
        logprobs, gradient = gaps(shared(mine, trees, plan), expected)
        print(f"\n{name}: log-probs {logprobs:.2g}, gradients {gradient:.2g}")
        assert logprobs <= bound and gradient <= bound


@pytest.mark.parametrize("name", KINDS)
def test_activations_that_are_computed_again_are_the_same(name):
    model, batches = make(KINDS[name]), [trees_of(2), trees_of(3)]
    policy = Policy(model).train()
    batches = [packed(model, trees) for trees in batches]
    kept = run(policy, *batches)[1]
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = run(policy, *batches)[1]
    assert kept.keys() == again.keys() and all(torch.equal(kept[name], again[name]) for name in kept)


@pytest.mark.parametrize("name", RECURRENT)
def test_transformers_as_it_is(name):
    """Its delta rule is in float32, where ours is in float64: that cast sets the tolerance."""
    model, trees = make(KINDS[name]), trees_of(2)
    logprobs, gradient = gaps(shared(copy.deepcopy(model), trees), own(model, pack(trees)))
    print(f"\n{name}: log-probs {logprobs:.2g}, gradients {gradient:.2g}")
    assert logprobs <= 1e-5 and gradient <= 1e-5


@pytest.mark.parametrize("name", ["window, soft caps", "delta, no experts", "convolution"])
def test_bfloat16_is_as_near_to_the_truth_as_transformers_is(name):
    model, trees = make(KINDS[name]), trees_of(3)
    truth, alone = own(model, pack(trees))[0], own(copy.deepcopy(model).bfloat16(), pack(trees))[0]
    found = shared(copy.deepcopy(model).bfloat16(), trees)[0].double()
    assert (found - truth).norm() <= 1.5 * (alone - truth).norm()


def test_a_copy_of_a_policy_runs_its_own_weights():
    """References are copies: a forward that stayed with the first model would train against itself."""
    policy, batch = Policy(make(KINDS["delta"])), pack(trees_of(1))
    before = policy(batch).logprobs
    reference = copy.deepcopy(policy)
    with torch.no_grad():
        policy.model.model.layers[0].linear_attn.out_proj.weight.mul_(2)
    assert torch.equal(reference(batch).logprobs, before) and not torch.equal(policy(batch).logprobs, before)


@pytest.mark.parametrize("name", ["delta, experts", "convolution"])
def test_a_model_gets_its_own_layers_back(name):
    model, ids = make(KINDS[name]), torch.arange(20)[None]
    before = model(input_ids=ids, use_cache=False).logits
    attention = model.config._attn_implementation
    use_shared_prefix(model)
    use_own_layers(model, attention)
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, before)


@pytest.mark.parametrize(
    "config",
    [
        OlmoHybridConfig(**SIZES | dict(num_hidden_layers=2, layer_types=["linear_attention", "full_attention"])),
        KimiLinearConfig(**SIZES | dict(num_hidden_layers=2, layer_types=["linear_attention", "full_attention"])),
        FalconH1Config(**SIZES | dict(num_hidden_layers=2), mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8),
    ],
    ids=lambda config: config.model_type,
)
def test_a_recurrence_that_is_not_known_is_refused_by_name(config):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UnsharedError, match=f"a recurrence among .*Lfm2ShortConv.*; {type(model).__name__} has"):
        use_shared_prefix(model)


# adapters

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}
DELTA = ATTENTION | {"out_proj"}
CONVOLUTION = {"q_proj", "k_proj", "v_proj", "out_proj", "in_proj", "w1", "w2", "w3"}
ADAPTED = {
    "window": ATTENTION | MLP,
    "window, experts": ATTENTION,
    "window, sinks, experts": ATTENTION,
    "experts": ATTENTION,
    "delta": DELTA | MLP | {"in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"},
    "delta, experts": DELTA | {"in_proj_qkvz", "in_proj_ba", "shared_expert_gate"},
    "convolution": CONVOLUTION,
    "convolution, experts": CONVOLUTION - {"w1", "w2", "w3"},
}
"""Kind -> the layers that have adapters unless a run names others."""


@pytest.mark.parametrize("name", ADAPTED)
def test_adapters_stand_on_all_linear_layers_and_are_trained(name, caplog):
    model, trees = make(KINDS[name]), trees_of(2)
    before = {key: each.clone() for key, each in model.state_dict().items()}
    policy = make_policy(model, Attention.SHARED, CPU, lora=LoRAConfig(rank=2)).train()
    assert {each.rpartition(".")[2] for each in adapted_layers(model)} == ADAPTED[name]
    assert ("have no adapters" in caplog.text) == ("experts" in name)
    gradients = run(policy, packed(model, trees))[1]
    assert all("lora_" in each for each in gradients)
    ends = [each for key, each in gradients.items() if "lora_B" in key]
    assert len(ends) == len(adapted_layers(model)) and all(each.abs().max() > 0 for each in ends)
    merged = dict(merged_weights(model))
    assert merged.keys() == before.keys() and all(torch.equal(merged[key], before[key]) for key in before)


@pytest.mark.parametrize("end", ["gate_up_proj", "mlp.down_proj"])
@pytest.mark.parametrize("name", ["window, experts", "window, sinks, experts", "delta, experts"])
def test_adapters_on_experts_are_refused_by_name(name, end):
    with pytest.raises(ConfigError, match=f"{end} is of the experts of .*leave it out"):
        make_policy(make(KINDS[name]), Attention.SHARED, CPU, lora=LoRAConfig(targets=("q_proj", end)))


# supervised samples, which are packed one after another


@pytest.mark.parametrize("name", KINDS)
def test_samples_packed_in_a_row_have_the_numbers_of_each_alone(name, double_precision):
    """By the plans that trainer.sft makes; sessions whose samples share a start are packed with others as well."""
    model, samples = make(KINDS[name]), random_samples(6)
    rows = [dense_tree(each) for each in samples]
    sessions = [build_tree(samples[:3]), build_tree(samples[3:])]
    policy = make_policy(copy.deepcopy(model), Attention.AUTO, CPU).train()
    for trees in (rows, sessions):
        update = make_update(Share.of(trees), 1000, World(), CPU, policy.shares_prompts, policy.windows)
        (batch,) = update.batches
        assert len(batch.sequences) == 6
        logprobs, gradient = gaps(run(policy, batch), own(model, batch))
        bound = 1e-10 if name in IN_FLOAT64 else 1e-6
        assert logprobs <= bound and gradient <= bound


@pytest.mark.parametrize("name", KINDS)
def test_nothing_of_a_sample_reaches_the_next(name):
    """Its tokens get no gradient from another's loss, and other tokens in their place change no bit of it."""
    model = make(KINDS[name], torch.float32)
    policy = Policy(model).train()
    first, mine, last = random_samples(3, apart=True)
    batch = packed(model, [dense_tree(each) for each in (first, mine, last)])
    scale = (batch.sequence == 1).float()
    policy(batch, 1.0, cross_entropy(scale)).loss.backward()
    if model.get_input_embeddings().weight is not model.get_output_embeddings().weight:
        reached = model.get_input_embeddings().weight.grad.abs().sum(-1).nonzero().flatten().tolist()
        assert reached and {*mine.prompt_token_ids, *mine.completion_token_ids[:-1]}.issuperset(reached)
    before = policy(batch).logprobs[batch.sequence == 1]
    others = packed(model, [dense_tree(each) for each in (*random_samples(1, seed=9), mine, last)])
    assert torch.allclose(policy(others).logprobs[others.sequence == 1], before, rtol=0, atol=1e-6)
