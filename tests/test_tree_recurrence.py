"""Recurrent layers over packed prefix trees: log-probs and gradients of each path run alone by transformers.

Where it says `double_precision`, transformers' casts to float32 are lifted and its delta rule is a loop over tokens, so
that what is left is rounding of float64. Without, the cast inside its delta rule sets the tolerance.
"""

import copy
import random
import sys
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

import pytest
import torch
from torch.nn.functional import conv1d, logsigmoid
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    KimiLinearConfig,
    Lfm2Config,
    Lfm2MoeConfig,
    OlmoHybridConfig,
    PreTrainedModel,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3NextConfig,
)
from transformers.models.lfm2.modeling_lfm2 import Lfm2RMSNorm
from transformers.models.lfm2_moe.modeling_lfm2_moe import Lfm2MoeRMSNorm
from transformers.models.qwen3_5 import modeling_qwen3_5
from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe
from transformers.models.qwen3_next import modeling_qwen3_next

from tests.sequences import sequence
from trainer.batching import recurrence_plan
from trainer.batching.loss_rows import cross_entropy
from trainer.batching.packing import Node, pack
from trainer.configs import Attention, LoRAConfig
from trainer.kernels.path_convolution import path_convolution
from trainer.kernels.plain_delta_rule import gated_delta_rule
from trainer.model.make_policy import make_policy
from trainer.model.policy import Policy
from trainer.model.shared_prefix import UnsharedError, use_own_layers, use_shared_prefix

CPU = torch.device("cpu")
VOCABULARY = 48
SIZES = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2,
    bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
DELTA = SIZES | dict(
    head_dim=8, num_hidden_layers=3, layer_types=["linear_attention", "full_attention", "linear_attention"],
    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=6, linear_value_head_dim=10,
)  # fmt: skip
SHORT = SIZES | dict(num_hidden_layers=3, layer_types=["conv", "full_attention", "conv"], conv_bias=True)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, shared_expert_intermediate_size=8)
MODELS = {
    "qwen3_next": Qwen3NextConfig(**DELTA, num_experts=0),
    "qwen3_next experts": Qwen3NextConfig(**DELTA, **EXPERTS),
    "qwen3_5": Qwen3_5TextConfig(**DELTA),
    "lfm2": Lfm2Config(**SHORT),
    "qwen3_5 experts": Qwen3_5MoeTextConfig(**DELTA, **EXPERTS),
    "lfm2 experts": Lfm2MoeConfig(
        **SHORT, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, num_dense_layers=1
    ),
    "recurrence alone": Qwen3_5TextConfig(**DELTA | dict(layer_types=["linear_attention"] * 3)),
}
LENGTHS = (0, 1, 2, 3, 7, 20)
"""Of nodes: empty, shorter than a convolution, and longer than a chunk of 8."""


def random_tree(source: random.Random, depth: int, above: tuple[int, ...] = ()) -> Node:
    """A tree whose longest path has at most `depth` + 1 nodes; its leaves carry completions that begin on any node."""
    own = tuple(source.randrange(VOCABULARY) for _ in range(source.choice(LENGTHS)))
    if not depth and not above and not own:
        own = (5,)
    path = (*above, *own)
    children = [random_tree(source, depth - 1, path) for _ in range(source.choice((1, 2)))] if depth else []
    if children:
        return Node(token_ids=own, children=children)
    start = source.randrange(max(1, len(path) - 9), len(path) + 1)
    last = source.randrange(VOCABULARY)
    weights = [source.uniform(-1, 1) for _ in range(len(path) - start + 1)]
    return Node(token_ids=own, sequences=[sequence(path[:start], (*path[start:], last), advantage=weights)])


def trees_of(depth: int, seed: int = 0) -> list[Node]:
    source = random.Random(10 * depth + seed)
    return [random_tree(source, depth) for _ in range(2)]


def paths(trees: list[Node]) -> Iterator[torch.Tensor]:
    """The packed indices of each path to a leaf."""
    levels = pack(trees).levels
    above: list[list[int]] = [[] for _ in trees]
    for depth, level in enumerate(levels):
        ends = [[*above[parent], *span] for parent, span in zip(level.parents, level.spans, strict=True)]
        if depth == 0:
            ends = [list(span) for span in level.spans]
        inner = set(levels[depth + 1].parents) if depth + 1 < len(levels) else set()
        yield from (torch.tensor(end) for number, end in enumerate(ends) if number not in inner)
        above = ends


def num_packed(trees: list[Node]) -> int:
    return sum(tree.num_tokens for tree in trees)


# the delta rule


def token_by_token(query, key, value, log_decay, beta, state=None):
    """The rule as it is written, for one sequence: (T, H, K), (T, H, K), (T, H, V), (T, H), (T, H)."""
    query, key = ((each * (each.square().sum(-1, keepdim=True) + 1e-6).rsqrt()) for each in (query, key))
    if state is None:
        state = value.new_zeros(value.shape[1], key.shape[-1], value.shape[-1])
    outputs = []
    for q, k, v, g, b in zip(query, key, value, log_decay, beta, strict=True):
        state = state * g.exp()[:, None, None]
        update = b[:, None] * (v - torch.einsum("hk,hkv->hv", k, state))
        state = state + torch.einsum("hk,hv->hkv", k, update)
        outputs.append(torch.einsum("hk,hkv->hv", q, state) * query.shape[-1] ** -0.5)
    return torch.stack(outputs) if outputs else value, state


def delta_inputs(num_tokens: int, keys: int = 2, values: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(num_tokens, *shape, generator=generator, dtype=torch.float64)

    inputs = [normal(keys, 6), normal(keys, 6), normal(values, 10)]
    inputs += [logsigmoid(normal(values)), normal(values).sigmoid()]
    return [each.requires_grad_() for each in inputs]


def by_paths(trees: list[Node], run) -> torch.Tensor:
    """What `run` gives for each path alone, put where its tokens stand in the packed row; copies must agree."""
    out = None
    for path in paths(trees):
        found = run(path)
        if out is None:
            out = found.new_zeros(num_packed(trees), *found.shape[1:])
        out = out.index_copy(0, path, found)
    return out


def assert_same(found: torch.Tensor, expected: torch.Tensor, inputs: list[torch.Tensor], gap: float = 1e-10) -> None:
    assert (found - expected).abs().max() <= gap
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for mine, right in zip(*(torch.autograd.grad(out, inputs, weight) for out in (found, expected)), strict=True):
        assert (mine - right).abs().max() <= gap * max(1, float(right.abs().max()))


def copies(query: torch.Tensor, key: torch.Tensor, times: int) -> list[torch.Tensor]:
    return [each.repeat_interleave(times, 1) for each in (query, key)]


@pytest.mark.parametrize("length", [1, 8, 64])
@pytest.mark.parametrize("depth", [0, 1, 2, 3, 5])
def test_chunks_of_trees_give_the_rule_token_by_token(depth, length, monkeypatch):
    monkeypatch.setattr(recurrence_plan, "CHUNK", length)
    trees = trees_of(depth)
    inputs = delta_inputs(num_packed(trees))
    found = gated_delta_rule(*inputs, recurrence_plan.chunks(pack(trees).levels, CPU))

    def alone(path: torch.Tensor) -> torch.Tensor:
        query, key, *others = (each[path] for each in inputs)
        return token_by_token(*copies(query, key, 2), *others)[0]

    assert_same(found, by_paths(trees, alone), inputs)


def test_a_long_node_runs_by_chunks():
    (tree,) = [Node(token_ids=(1,) * 300, children=[Node(token_ids=(2,) * 130), Node(token_ids=(3,) * 3)])]
    plan = recurrence_plan.chunks(pack([tree]).levels, CPU)
    # 64 + 64 + 64 + 64 + 44 tokens, and below them 64 + 64 + 2 and 3
    assert [each.tolist() for each in plan.starts] == [[0]] * 5 + [[0, 0], [0], [0]]
    inputs = delta_inputs(433)
    query, key, *others = inputs
    first = token_by_token(*copies(query[:430], key[:430], 2), *(each[:430] for each in others))[0]
    assert (gated_delta_rule(*inputs, plan)[:430] - first).abs().max() <= 1e-10


def test_a_token_that_decays_all_there_was():
    """e^-800 is 0, and the decay between two tokens is found from their difference, never from a quotient."""
    inputs = delta_inputs(7)
    inputs[3] = torch.full_like(inputs[3], -800.0).requires_grad_()
    plan = recurrence_plan.chunks(pack([Node(token_ids=(1,) * 7)]).levels, CPU)
    found = gated_delta_rule(*inputs, plan)
    assert_same(found, token_by_token(*copies(*inputs[:2], 2), *inputs[2:])[0], inputs)


@pytest.mark.parametrize("depth", [0, 1, 2, 3, 5])
def test_calls_for_the_librarys_kernel_give_the_rule(depth, monkeypatch):
    """flash-linear-attention is not here: a loop stands in its place, with its arguments and its refusals."""

    def chunk_gated_delta_rule(
        q, k, v, g, beta, initial_state, output_final_state, use_qk_l2norm_in_kernel, cu_seqlens
    ):
        assert output_final_state and use_qk_l2norm_in_kernel and q.shape[0] == 1 and q.shape == k.shape
        assert g.dtype == torch.float32 and cu_seqlens[-1] == q.shape[1] and (cu_seqlens.diff() > 0).all()
        assert len(initial_state) == len(cu_seqlens) - 1
        outs, ends = zip(
            *(
                token_by_token(*(each[0, start:stop].double() for each in (q, k, v, g, beta)), state.double())
                for start, stop, state in zip(cu_seqlens[:-1], cu_seqlens[1:], initial_state, strict=True)
            ),
            strict=True,
        )
        return torch.cat(outs)[None], torch.stack(ends)

    package = ModuleType("fla.ops.gated_delta_rule")
    package.chunk_gated_delta_rule = chunk_gated_delta_rule
    monkeypatch.setitem(sys.modules, "fla", ModuleType("fla"))
    monkeypatch.setitem(sys.modules, "fla.ops", ModuleType("fla.ops"))
    monkeypatch.setitem(sys.modules, "fla.ops.gated_delta_rule", package)
    monkeypatch.delitem(sys.modules, "trainer.kernels.fla_delta_rule", raising=False)
    trees = trees_of(depth)
    inputs = delta_inputs(num_packed(trees))
    with torch.no_grad():
        inputs[3].copy_(inputs[3].float())  # as the kernel takes it
    levels = pack(trees).levels
    plan = recurrence_plan.nodes_calls(levels, CPU)
    found = import_module("trainer.kernels.fla_delta_rule").gated_delta_rule(*inputs, plan)
    monkeypatch.delitem(sys.modules, "trainer.kernels.fla_delta_rule")
    # gradients of decays pass through float32
    assert_same(found, gated_delta_rule(*inputs, recurrence_plan.chunks(levels, CPU)), inputs, gap=1e-6)


# the convolution


@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_a_convolution_looks_up_its_path(depth, width):
    trees = trees_of(depth)
    layer = torch.nn.Conv1d(6, 6, width, groups=6, padding=width - 1).double()
    row = torch.randn(num_packed(trees), 6, dtype=torch.float64).requires_grad_()
    found = path_convolution(layer, row, recurrence_plan.windows(pack(trees).levels, width, CPU))

    def alone(path: torch.Tensor) -> torch.Tensor:
        padded = torch.cat((row.new_zeros(width - 1, 6), row[path]))
        return conv1d(padded.T[None], layer.weight, layer.bias, groups=6)[0].T

    assert_same(found, by_paths(trees, alone), [row, layer.weight, layer.bias])


def test_windows_of_short_nodes():
    leaf = Node(token_ids=(6, 7, 8))
    tree = Node(token_ids=(1, 2), children=[Node(token_ids=(3,), children=[Node(token_ids=(), children=[leaf])])])
    found = recurrence_plan.windows(pack([tree]).levels, 4, CPU)
    assert found.tokens.tolist() == [0, 1, 2, 3, 4, 5]  # no node is longer than what a convolution looks back
    assert found.inputs.tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]]
    assert found.is_real.sum(1).tolist() == [1, 2, 3, 4, 4, 4]


# whole models


@pytest.fixture
def double_precision(monkeypatch):
    """float64 all through, and transformers' delta rule token by token."""

    def rule(query, key, value, g, beta, use_qk_l2norm_in_kernel, **_):
        assert use_qk_l2norm_in_kernel
        (out,) = (token_by_token(*each)[0] for each in zip(query, key, value, g, beta, strict=True))
        return out[None], None

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


def make(config, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), experts_implementation="eager").to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():  # large enough for every part to matter
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def own(model: PreTrainedModel, trees: list[Node]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probs and gradients by transformers alone, each sequence by itself, in the order of the packed rows."""
    found = []
    for each in pack(trees).sequences:
        ids = torch.tensor([[*each.prompt_token_ids, *each.completion_token_ids]])
        start = len(each.prompt_token_ids)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0, start - 1 :].double()
        found.append(logits.log_softmax(-1).gather(-1, ids[0, start:, None]).squeeze(-1))
    logprobs = torch.cat(found)
    model.zero_grad()
    (logprobs @ pack(trees).values.advantage.double()).backward()
    return logprobs.detach(), gradients_of(model)


def gradients_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def shared(model: PreTrainedModel, trees: list[Node]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    policy, batch = Policy(model).train(), pack(trees)
    policy.zero_grad()
    output = policy(batch, 1.0, cross_entropy(-batch.values.advantage.double()))
    output.loss.backward()
    return output.head.logprobs.detach(), gradients_of(policy.model)


def gaps(found, expected) -> tuple[float, float]:
    """The largest gap of log-probs, and that of gradients relative to the largest entry of any."""
    assert found[1].keys() == expected[1].keys()
    largest = max(float(each.abs().max()) for each in expected[1].values())
    gradient = max(float((found[1][name] - each).abs().max()) for name, each in expected[1].items())
    return float((found[0] - expected[0]).abs().max()), gradient / largest


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", MODELS)
def test_trees_have_the_numbers_of_each_sequence_alone(name, depth, double_precision):
    model, trees = make(MODELS[name]), trees_of(depth)
    logprobs, gradient = gaps(shared(copy.deepcopy(model), trees), own(model, trees))
    # a router's softmax is in float32
    assert logprobs <= 1e-10 and gradient <= (1e-7 if "experts" in name else 1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_activations_that_are_computed_again_are_the_same(name):
    """Two batches run forward before either goes backward: a layer is told of its batch again, not of the last one."""
    model, batches = make(MODELS[name]), [trees_of(2), trees_of(3)]
    policy = Policy(model).train()

    def gradients() -> dict[str, torch.Tensor]:
        policy.zero_grad()
        packed = [pack(trees) for trees in batches]
        outputs = [policy(batch, 1.0, cross_entropy(-batch.values.advantage.double())) for batch in packed]
        sum(output.loss for output in outputs).backward()
        return gradients_of(model)

    kept = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = gradients()
    assert kept.keys() == again.keys() and all(torch.equal(kept[name], again[name]) for name in kept)


@pytest.mark.parametrize("name", MODELS)
def test_transformers_as_it_is(name):
    """Its delta rule is in float32, where ours is in float64: that cast sets the tolerance."""
    model, trees = make(MODELS[name]), trees_of(2)
    logprobs, gradient = gaps(shared(copy.deepcopy(model), trees), own(model, trees))
    print(f"\n{name}: log-probs {logprobs:.2g}, gradients {gradient:.2g}")
    assert logprobs <= 1e-5 and gradient <= 1e-5


@pytest.mark.parametrize("name", ["qwen3_next", "lfm2"])
def test_bfloat16_is_as_near_to_the_truth_as_transformers_is(name):
    model, trees = make(MODELS[name]), trees_of(3)
    truth, alone = own(model, trees)[0], own(copy.deepcopy(model).bfloat16(), trees)[0]
    found = shared(copy.deepcopy(model).bfloat16(), trees)[0].double()
    assert (found - truth).norm() <= 1.5 * (alone - truth).norm()


def test_a_copy_of_a_policy_runs_its_own_weights():
    """References are copies: a forward that stayed with the first model would train against itself."""
    policy, batch = Policy(make(MODELS["qwen3_5"])), pack(trees_of(1))
    before = policy(batch).logprobs
    reference = copy.deepcopy(policy)
    with torch.no_grad():
        policy.model.model.layers[0].linear_attn.out_proj.weight.mul_(2)
    assert torch.equal(reference(batch).logprobs, before) and not torch.equal(policy(batch).logprobs, before)


@pytest.mark.parametrize("name", ["qwen3_next", "lfm2"])
def test_a_model_gets_its_own_layers_back(name):
    model, ids = make(MODELS[name]), torch.arange(20)[None]
    before = model(input_ids=ids, use_cache=False).logits
    attention = model.config._attn_implementation
    use_shared_prefix(model)
    use_own_layers(model, attention)
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, before)


@pytest.mark.parametrize(
    "config",
    [
        OlmoHybridConfig(**SIZES, num_hidden_layers=2, layer_types=["linear_attention", "full_attention"]),
        KimiLinearConfig(**SIZES, num_hidden_layers=2, layer_types=["linear_attention", "full_attention"]),
        FalconH1Config(**SIZES, num_hidden_layers=2, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8),
    ],
    ids=lambda config: config.model_type,
)
def test_a_recurrence_that_is_not_known_is_refused_by_name(config):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UnsharedError, match=f"a recurrence among .*Lfm2ShortConv.*; {type(model).__name__} has"):
        use_shared_prefix(model)


@pytest.mark.parametrize("name", ["qwen3_next", "qwen3_5", "lfm2"])
def test_adapters_on_a_recurrence_are_trained(name):
    model, trees = make(MODELS[name]), trees_of(1)
    policy, batch = make_policy(model, Attention.SHARED, CPU, lora=LoRAConfig(rank=2)), pack(trees)
    policy(batch, 1.0, cross_entropy(-batch.values.advantage)).loss.backward()
    ends = [each for name, each in policy.model.named_parameters() if "lora_B" in name]
    assert ends and all(each.grad.abs().max() > 0 for each in ends)
