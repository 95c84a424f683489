import copy
import random
import sys
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Categorical
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Llama4TextConfig,
    MixtralConfig,
    MptConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    RwkvConfig,
    xLSTMConfig,
)
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from membuilder.config import load
from membuilder.errors import ConfigError
from tests.sequences import sequence
from trainer.batching.attention_plan import padded_calls, varlen_calls
from trainer.batching.loss_rows import Objective, cross_entropy
from trainer.batching.micro_batches import micro_batches
from trainer.batching.packing import Node, PackedBatch, TrainSequence, build_tree, pack
from trainer.configs import LossConfig, ModelConfig
from trainer.kernels import gathered_varlen, plain_varlen
from trainer.losses import LOSSES, TokenValues
from trainer.model.head import LossOutput
from trainer.model.merged_attention import kernels_for, merged_attention
from trainer.model.policy import Policy
from trainer.model.shared_prefix import NAME, shared_prefix_attention, use_shared_prefix

VOCABULARY = 48
TINY = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=256,
)  # fmt: skip
SMALL = dict(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)


def packed(*sequences: TrainSequence) -> PackedBatch:
    return pack([build_tree(sequences)])


def make_model(*, tied: bool = True, dtype: torch.dtype = torch.float64, **changed) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**TINY | changed, tie_word_embeddings=tied)).to(dtype)
    for parameter in model.parameters():  # initial weights are so small that the distribution would be nearly flat
        parameter.data.normal_(std=0.3)
    return model


def packed_copy(model: PreTrainedModel) -> Policy:
    return Policy(copy.deepcopy(model))


# layout


def test_two_completions_of_one_prompt():
    batch = packed(sequence((1, 2, 3), (7, 8, 9)), sequence((1, 2, 3), (4, 9)))
    assert batch.token_ids.tolist() == [[1, 2, 3, 7, 8, 4]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3]]
    assert batch.predict_from.tolist() == [2, 3, 4, 2, 5]
    assert batch.targets.tolist() == [7, 8, 9, 4, 9]
    prompt, completions, above = batch.plan
    assert [call.causal for call in batch.plan] == [True, True, False]
    assert prompt.queries == prompt.keys == slice(0, 3) and prompt.query_rows.valid is None
    assert completions.queries == completions.keys == slice(3, 6)
    assert completions.query_rows.rows.tolist() == [[0, 1], [2, 2]]
    assert completions.query_rows.valid.tolist() == [[True, True], [True, False]]
    assert completions.query_rows.places.tolist() == [0, 1, 2]
    # what both completions share is read once, by all their tokens as one segment
    assert (above.queries, above.keys) == (slice(3, 6), slice(0, 3))
    assert (above.query_rows.rows.tolist(), above.key_rows.rows.tolist()) == ([[0, 1, 2]], [[0, 1, 2]])


def test_one_sequence_of_five_tokens():
    batch = packed(sequence((1, 2), (3, 4, 5), advantage=(0.25, 0.5, 1)))
    assert batch.token_ids.tolist() == [[1, 2, 3, 4]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3]]
    assert batch.predict_from.tolist() == [1, 2, 3]
    assert batch.targets.tolist() == [3, 4, 5]
    assert batch.values.advantage.tolist() == [0.25, 0.5, 1]


def test_one_token_completion_adds_no_token():
    batch = packed(sequence((1, 2, 3, 4), (5,)))
    assert batch.token_ids.tolist() == [[1, 2, 3, 4]]
    assert (batch.predict_from.tolist(), batch.targets.tolist()) == ([3], [5])


def test_prompts_that_part_and_prompts_that_are_the_start_of_others():
    batch = packed(
        sequence((1, 2, 3), (7, 8)),
        sequence((1, 2, 4), (5, 6)),
        sequence((1, 2), (6,)),  # its prompt is the common start itself
        sequence((1, 2, 3), (9,)),
    )
    # (1, 2), whose answer adds no token, stands on the way of all, (1, 2, 3) on that of (1, 2, 3, 7)
    assert batch.token_ids.tolist() == [[1, 2, 3, 7, 4, 5]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2, 3]]
    assert batch.predict_from.tolist() == [1, 2, 3, 2, 4, 5]
    assert batch.targets.tolist() == [6, 7, 8, 9, 5, 6]


def test_trees_share_nothing():
    tree = build_tree([sequence((1, 2), (3, 4), advantage=(1.0, 2.0)), sequence((1, 2), (5, 4), advantage=(3.0, 4.0))])
    batch = pack([tree, tree])
    assert batch.token_ids.tolist() == [[1, 2, 1, 2, 3, 5, 3, 5]]  # roots first, then what hangs below each
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2, 2, 2, 2]]
    assert batch.predict_from.tolist() == [1, 4, 1, 5, 3, 6, 3, 7]
    assert batch.values.advantage.tolist() == [1, 2, 3, 4, 1, 2, 3, 4]
    keys = [(call.keys.start + call.key_rows.rows).tolist() for call in batch.plan if not call.causal]
    assert keys == [[[0, 1], [2, 3]]]  # of what hangs below the first and the second


def test_sequences_with_nothing_in_common():
    batch = packed(sequence((1, 2), (3,)), sequence((4,), (5, 6)))
    assert batch.token_ids.tolist() == [[1, 2, 4, 5]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1]]
    assert batch.predict_from.tolist() == [1, 2, 3]


@pytest.mark.parametrize("prompt, completion", [((), (1,)), ((1,), ())])
def test_empty_parts_are_refused(prompt, completion):
    with pytest.raises(ValueError, match="at least one"):
        build_tree([sequence(prompt, completion)])


def test_values_must_fit_the_completion():
    with pytest.raises(ValueError, match="advantage has 1 values for 2 completion tokens"):
        packed(sequence((1,), (2, 3), advantage=(1.0,)))


def test_sequences_must_carry_the_same_values():
    own = (sequence((1,), (2,), advantage=(1.0,)), sequence((1,), (3,), advantage=(1.0,), proximal_logprobs=(1.0,)))
    with pytest.raises(ValueError, match="proximal_logprobs"):
        packed(*own)
    with pytest.raises(ValueError, match="advantage"):
        packed(sequence((1,), (2,)), sequence((1,), (3,), advantage=(1.0,)))


def test_batch_moves_as_a_whole():
    batch = packed(sequence((1, 2), (3, 4), advantage=(1.0, 2.0))).to(torch.device("meta"))
    tensors = [batch.token_ids, batch.position_ids, batch.predict_from, batch.targets, *batch.values.columns().values()]
    rectangles = [rectangle for call in batch.plan for rectangle in (call.query_rows, call.key_rows)]
    tensors += [tensor for rectangle in rectangles for tensor in (rectangle.rows, rectangle.places)]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


# token budget


def six_token_tree() -> Node:
    return build_tree([sequence((1, 2, 3), (7, 8, 9)), sequence((1, 2, 3), (4, 9))])  # 3 + 2 + 1


@pytest.mark.parametrize("budget, sizes", [(18, [3]), (17, [2, 1]), (12, [2, 1]), (11, [1, 1, 1]), (6, [1, 1, 1])])
def test_budget_counts_shared_tokens_once_and_splits_no_tree_that_fits(budget, sizes):
    trees = [six_token_tree() for _ in range(3)]
    batches = micro_batches(trees, budget)
    assert [len(batch) for batch in batches] == sizes
    assert [tree for batch in batches for tree in batch] == trees


def tree_of(num_tokens: int) -> Node:
    return build_tree([sequence(range(num_tokens), (1,))])  # the last completion token is a target only


def sizes_of(batches: list[list[Node]]) -> list[list[int]]:
    return [[tree.num_tokens for tree in batch] for batch in batches]


def test_the_longest_come_first_and_each_goes_where_there_is_room():
    trees = [tree_of(size) for size in (4, 7, 2, 6, 1, 11)]
    # 11 is over the budget and stands alone; 7, 6 open batches; 4 fits beside 6, 2 beside 7, 1 beside 7 and 2
    assert sizes_of(micro_batches(trees, 10)) == [[11], [7, 2, 1], [6, 4]]
    # in the order given it would be (4), (7, 2), (6, 1), (11)


def test_micro_batches_are_full():
    """Sessions of the memory data's lengths, 2k to 20k tokens, under the published budget of 40k."""
    source = random.Random(0)
    sizes = [source.randint(2000, 20_000) for _ in range(64)]
    batches = sizes_of(micro_batches([Node(token_ids=(0,) * size) for size in sizes], 40_000))
    assert sorted(size for batch in batches for size in batch) == sorted(sizes)
    used = [sum(batch) / 40_000 for batch in batches]
    assert max(used) <= 1
    # no split needs fewer than 19 batches; filled in the order given it would be 24, 79% full
    assert len(batches) == 20 and sum(used) / len(used) > 0.94 and sum(used[:-1]) / 19 > 0.98


@pytest.mark.parametrize("sequences", [1, 2, 5])
def test_num_tokens_is_what_is_packed(sequences):
    tree = build_tree([sequence((1, 2, 3, k % 2), range(k + 1)) for k in range(sequences)])
    assert tree.num_tokens == pack([tree]).token_ids.numel()


def test_no_trees_no_batches():
    assert micro_batches([], 100) == []


# equality with dense copies


@pytest.fixture
def double_precision(monkeypatch):
    """Everything in float64: Qwen3's norm and rotary embedding and our head would otherwise round to float32."""

    def norm(self, hidden_states):
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))

    monkeypatch.setattr(Qwen3RMSNorm, "forward", norm)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def tokens(source: random.Random, count: int) -> tuple[int, ...]:
    return tuple(source.randrange(VOCABULARY) for _ in range(count))


def with_ids(groups: list[list[tuple]], source: random.Random) -> list[list[TrainSequence]]:
    """Every target token gets a number of its own to find its row by, in `rollout_logprobs`, and a coefficient in the
    loss, in `advantage`."""
    number, session_groups = 0, []
    for group in groups:
        sequences = []
        for prompt, completion in group:
            ids = tuple(float(number + i) for i in range(len(completion)))
            number += len(completion)
            coefficients = tuple(source.choice((-4.0, -0.5, 0.25, 1.0, 4.0)) for _ in completion)
            sequences.append(sequence(prompt, completion, rollout_logprobs=ids, advantage=coefficients))
        session_groups.append(sequences)
    return session_groups


def session_like(source: random.Random, num_agents: int, num_rollouts: int) -> list[tuple]:
    dialogue = tokens(source, source.randint(1, 9))
    group = []
    for agent in range(num_agents):
        prompt = (*dialogue, agent, *tokens(source, source.randint(0, 4)))
        group += [(prompt, tokens(source, source.randint(1, 8))) for _ in range(source.randint(1, num_rollouts))]
    return group


def tree_cases() -> dict[str, list[list[TrainSequence]]]:
    source = random.Random(1)
    cases = {
        "one sequence": [[((5, 6, 7), (8, 9, 10))]],
        "one-token prompt and completion": [[((5,), (8,))]],
        "one prompt": [[((5, 6, 7), tokens(source, count)) for count in (4, 1, 7)]],
        "one-token completions": [[((5, 6, prompt), (8 + k,)) for prompt in (1, 2) for k in range(3)]],
        "prompt equal to the common start": [[((5, 6), (1, 2, 3)), ((5, 6, 7), (1, 2)), ((5, 6, 7, 8), (4, 5, 6, 7))]],
        "common start with two completions": [[((5, 6), (1, 2)), ((5, 6), (3, 4, 5)), ((5, 6, 7), (1, 2))]],
        "nothing in common": [[((5, 6), (1, 2)), ((7,), (1, 2, 3)), ((7,), (4, 4))]],
        "the same sequence twice": [[((5, 6), (1, 2, 3)), ((5, 6), (1, 2, 3))]],
        "four agents": [session_like(source, 4, 3)],
        "several trees": [session_like(source, agents, 3) for agents in (4, 1, 2)] + [[((5, 6, 7), (8, 9))]],
    }
    cases |= {f"random {k}": [session_like(source, source.randint(1, 4), 4) for _ in range(3)] for k in range(3)}
    return {name: with_ids(groups, source) for name, groups in cases.items()}


TREE_CASES = tree_cases()


def dense_logits(model: PreTrainedModel, item: TrainSequence) -> torch.Tensor:
    """(completion, V): the plain forward of one sequence alone."""
    ids = torch.tensor([item.prompt_token_ids + item.completion_token_ids])
    start = len(item.prompt_token_ids) - 1
    return model(input_ids=ids, use_cache=False).logits[0, start:-1]


def dense_rows(model: PreTrainedModel, item: TrainSequence, temperature: float) -> torch.Tensor:
    logprobs = (dense_logits(model, item) / temperature).log_softmax(-1)
    return logprobs.gather(-1, torch.tensor(item.completion_token_ids)[:, None]).squeeze(-1)


def weighted(policy: Policy, batch: PackedBatch, temperature: float = 1.0) -> LossOutput:
    """The sum over rows of coefficient times log-prob, as a loss."""
    return policy(batch, temperature, cross_entropy(-batch.values.advantage))


def by_id(batch: PackedBatch, rows: torch.Tensor) -> torch.Tensor:
    return rows[batch.values.rollout_logprobs.argsort()]


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    found = torch.autograd.grad(loss, list(model.parameters()))
    return {name.removeprefix("model."): grad for (name, _), grad in zip(model.named_parameters(), found, strict=True)}


def assert_same_gradients(actual: dict, expected: dict, relative: float) -> None:
    actual = {name.removeprefix("model."): grad for name, grad in actual.items()}
    expected = {name.removeprefix("model."): grad for name, grad in expected.items()}
    assert actual.keys() == expected.keys()
    # a gradient that is zero but for rounding (one key to attend to) is held to the scale of the others
    floor = 1e-3 * max(grad.norm() for grad in expected.values())
    for name in actual:
        gap = (actual[name] - expected[name]).norm() / expected[name].norm().clamp(min=floor)
        assert gap <= relative, f"{name}: {gap:.2e}"


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("plan", [padded_calls, varlen_calls])
@pytest.mark.parametrize("session_groups", TREE_CASES.values(), ids=TREE_CASES)
def test_packed_trees_equal_dense_copies(session_groups, plan, tied, double_precision):
    model = make_model(tied=tied)
    sequences = [item for group in session_groups for item in group]
    dense = [dense_rows(model, item, temperature=0.7) for item in sequences]
    coefficients = torch.tensor([c for item in sequences for c in item.values.advantage], dtype=torch.float64)
    dense_gradients = gradients(model, (torch.cat(dense) * coefficients).sum())

    policy, batch = packed_copy(model), pack([build_tree(group) for group in session_groups], plan)
    output = weighted(policy, batch, temperature=0.7)
    assert output.head.logprobs.dtype == torch.float64
    assert (by_id(batch, output.head.logprobs) - torch.cat(dense)).abs().max() <= 1e-10
    packed_gradients = gradients(policy, output.loss)
    assert_same_gradients(packed_gradients, dense_gradients, relative=1e-10)


def random_tree(source: random.Random, depth: int) -> Node:
    """Nodes of 0 to 40 tokens, leaves at every depth."""
    children = [random_tree(source, depth - 1) for _ in range(source.choice((0, 1, 2, 5)))] if depth else []
    return Node(token_ids=(1,) * source.choice((0, 1, 2, 7, 40)), children=children)


@pytest.mark.parametrize("small", [1, 16])
@pytest.mark.parametrize("seed", range(6))
def test_padded_rectangles_attend_as_segments_do_one_by_one(seed, small, monkeypatch):
    monkeypatch.setattr("trainer.batching.attention_plan.SMALL", small)
    source = random.Random(seed)
    trees = [random_tree(source, 3) for _ in range(5)]
    padded, plain = (pack(trees, plan).plan for plan in (padded_calls, varlen_calls))
    generator = torch.Generator().manual_seed(seed)
    shapes = [(max(call.queries.stop for call in plain), heads, 8) for heads in (4, 2, 2, 4)]
    query, key, value, weight = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    inputs = [tensor.requires_grad_() for tensor in (query, key, value)]
    found, expected = (merged_attention(*inputs, calls, 0.3) for calls in (padded, plain))
    assert (found - expected).abs().max() <= 1e-12
    for mine, right in zip(*(torch.autograd.grad(out, inputs, weight) for out in (found, expected)), strict=True):
        assert (mine - right).abs().max() <= 1e-12


@pytest.mark.parametrize("seed", range(6))
def test_segments_gathered_at_once_attend_as_one_by_one(seed, monkeypatch):
    """What runs float32 on CUDA; some segments have no queries, some no keys."""
    source = random.Random(seed)
    calls = pack([random_tree(source, 3) for _ in range(5)], varlen_calls).plan
    generator = torch.Generator().manual_seed(seed)
    shapes = [(max(call.queries.stop for call in calls), heads, 8) for heads in (4, 2, 2, 4)]
    query, key, value, weight = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    inputs, results = [tensor.requires_grad_() for tensor in (query, key, value)], []
    for kernels in (gathered_varlen, plain_varlen):
        monkeypatch.setattr("trainer.model.merged_attention.kernels_for", lambda *_, kernels=kernels: kernels)
        out = merged_attention(*inputs, calls, 0.3)
        results.append([out, *torch.autograd.grad(out, inputs, weight)])
    for mine, right in zip(*results, strict=True):
        assert (mine - right).abs().max() <= 1e-12


def test_a_rectangle_costs_at_most_twice_its_segments(monkeypatch):
    monkeypatch.setattr("trainer.batching.attention_plan.SMALL", 1)
    trees = [Node(token_ids=(1,) * length) for length in (4, 4, 3, 100, 90, 2, 2)]
    blocks = [(call.queries, call.query_rows.rows.shape) for call in pack(trees).plan]
    assert blocks == [(slice(0, 11), (3, 4)), (slice(11, 203), (3, 100)), (slice(203, 205), (1, 2))]


def random_objective(config: LossConfig, batch: PackedBatch, near: torch.Tensor) -> Objective:
    """Every input of a loss at random, ratios on both sides of their bounds, some tokens masked out."""
    source = torch.Generator().manual_seed(3)

    def normal() -> torch.Tensor:
        return torch.randn(len(near), generator=source, dtype=torch.float64)

    return Objective(
        loss=LOSSES[config.name],
        config=config,
        scale=torch.rand(len(near), generator=source, dtype=torch.float64),
        values=TokenValues(
            proximal_logprobs=near + 0.3 * normal(),
            rollout_logprobs=near + 0.3 * normal(),
            advantage=normal() * (torch.rand(len(near), generator=source) > 0.3),
            weight=1 + 3 * (torch.rand(len(near), generator=source) > 0.5).double(),
            truncated=(batch.sequence % 2).double(),
        ),
        ref_logprobs=near + 0.3 * normal(),
        sequence=batch.sequence,
    )


@pytest.mark.parametrize("plan", [padded_calls, varlen_calls])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_on_trees_equals_autograd_on_dense_copies(name, plan, double_precision):
    own = {"dapo": {"clip_high": 0.28}}.get(name, {})
    config = LossConfig(name=name, kl_coef=0.1, entropy_coef=0.05, tis_cap=1.1, **own)
    model, session_groups = make_model(), TREE_CASES["several trees"]
    policy, batch = packed_copy(model), pack([build_tree(group) for group in session_groups], plan)
    objective = random_objective(config, batch, policy(batch).logprobs)

    place = batch.values.rollout_logprobs.argsort().argsort()  # of each packed row among the dense ones
    logits = torch.cat([dense_logits(model, item) for group in session_groups for item in group])[place]
    dense = Categorical(logits=logits)
    inputs = objective.inputs(dense.log_prob(batch.targets), dense.entropy(), slice(None))
    per_token, _ = LOSSES[name](inputs, config)
    expected_loss = (per_token * objective.scale).sum()
    expected = gradients(model, expected_loss)

    output = policy(batch, 1.0, objective, objective.whole_sequences)
    assert (output.loss - expected_loss).abs() <= 1e-10 * expected_loss.abs()
    assert_same_gradients(gradients(policy, output.loss), expected, relative=1e-10)


def test_entropy_is_that_of_the_dense_distribution(double_precision):
    model, (group,) = make_model(), TREE_CASES["four agents"]
    with torch.no_grad():
        expected = torch.cat([Categorical(logits=dense_logits(model, item) / 0.7).entropy() for item in group])
    batch = pack([build_tree(group)])
    entropy = packed_copy(model)(batch, temperature=0.7).entropy
    assert (by_id(batch, entropy) - expected).abs().max() <= 1e-10


def test_gradient_checkpointing_changes_nothing(double_precision):
    model, batch = make_model(), pack([build_tree(group) for group in TREE_CASES["several trees"]])
    results = []
    for checkpointing in (False, True):
        policy = packed_copy(model).train()
        if checkpointing:
            policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        results.append(gradients(policy, weighted(policy, batch).loss))
    assert_same_gradients(results[1], results[0], relative=1e-12)


def test_training_leaves_the_dense_model_alone():
    model = make_model()
    packed_copy(model)
    assert model.config._attn_implementation == "sdpa"


def test_a_completion_does_not_see_its_siblings():
    policy = packed_copy(make_model(dtype=torch.float32))
    first, second = ((5, 6, 7), (1, 2, 3)), ((5, 6, 7), (9, 9, 9))
    before = policy(packed(sequence(*first), sequence((5, 6, 7), (4, 5, 6)))).logprobs[:3]
    after = policy(packed(sequence(*first), sequence(*second))).logprobs[:3]
    assert torch.equal(before, after)


# micro-batches and rows without loss


def summed_gradients(policy: Policy, batches: list[list[Node]]) -> dict[str, torch.Tensor]:
    policy.zero_grad()
    for nodes in batches:
        batch = pack(nodes)
        weighted(policy, batch).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in policy.named_parameters()}


def test_any_split_gives_the_same_gradient():
    policy = packed_copy(make_model(dtype=torch.float32))
    groups = [group for name in ("several trees", "random 0", "random 1") for group in TREE_CASES[name]]
    trees = [build_tree(group) for group in groups]
    whole = summed_gradients(policy, [trees])
    total = sum(tree.num_tokens for tree in trees)
    splits = [micro_batches(trees, budget) for budget in (1, total // 4, total // 2)]
    assert [len(split) for split in splits] == sorted({len(split) for split in splits}, reverse=True)
    sequences_alone = [[build_tree([item])] for group in groups for item in group]
    for split in [*splits, [trees[::-1]], sequences_alone]:
        found = summed_gradients(policy, split)
        assert_same_gradients(found, whole, relative=1e-5)
        gap = torch.cat([(found[name] - whole[name]).flatten() for name in whole]).norm()
        assert gap <= 1e-6 * torch.cat([grad.flatten() for grad in whole.values()]).norm()


def test_rows_with_coefficient_zero_have_exactly_no_gradient():
    policy = packed_copy(make_model(tied=False, dtype=torch.float32))
    batch = packed(
        sequence((1, 2), (3, 4, 5), advantage=(1.0, 1.0, 1.0)),
        sequence((1, 2), (6, 7, 8), advantage=(0.0, 0.0, 0.0)),
        sequence((1, 2, 9), (3, 4), advantage=(0.0, 0.0)),
    )
    weighted(policy, batch).loss.backward()
    embedding = policy.model.get_input_embeddings().weight.grad
    assert torch.count_nonzero(embedding[[6, 7, 9]]) == 0
    assert all(torch.count_nonzero(embedding[token]) for token in (1, 2, 3, 4))


def test_all_rows_zero_is_a_zero_gradient():
    policy = packed_copy(make_model(dtype=torch.float32))
    batch = pack([build_tree(group) for group in TREE_CASES["several trees"]])
    batch.values.advantage.zero_()
    weighted(policy, batch).loss.backward()
    assert all(torch.count_nonzero(parameter.grad) == 0 for parameter in policy.parameters())


# refusals


def refused(config) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("tokens", [2, 4])
def test_flash_calls_are_never_told_of_one_query_at_most(tokens):
    """Flash attention 2 takes such calls for decoding, and fails where a segment has no query at all."""
    batch = pack([build_tree([sequence((1, 2, 3), (4,) * tokens), sequence((1, 2, 3), (5, 6))])], varlen_calls)
    assert all(call.max_queries >= 2 for call in batch.plan)


def test_what_attention_runs_on_depends_on_device_and_type(monkeypatch):
    (call, *_) = pack([build_tree([sequence((1, 2), (3, 4))])], varlen_calls).plan

    def chosen(device: str, dtype: torch.dtype, installed: Sequence[str] = (), softcap=None, width: int = 256) -> str:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in installed else None)
        for name in ("flash_package", "flash_varlen"):  # neither imports here
            module = SimpleNamespace(__name__=name)
            monkeypatch.setitem(sys.modules, f"trainer.kernels.{name}", module)
            monkeypatch.setattr(f"trainer.kernels.{name}", module, raising=False)
        query = SimpleNamespace(device=torch.device(device), dtype=dtype, shape=(1, 1, width))
        return kernels_for(call, query, softcap).__name__.rpartition(".")[2]

    assert chosen("cpu", torch.bfloat16) == "plain_varlen" and chosen("cuda", torch.float32) == "gathered_varlen"
    assert chosen("cuda", torch.bfloat16) == chosen("cuda", torch.bfloat16, ["flash_attn"]) == "flash_varlen"
    assert chosen("cuda", torch.float16, ["flash_attn", "flash_attn_2_cuda"]) == "flash_package"
    assert chosen("cuda", torch.bfloat16, ["flash_attn_2_cuda", "flash_attn_interface"]) == "flash_varlen"
    # scores with a soft cap
    assert chosen("cuda", torch.bfloat16, ["flash_attn_2_cuda"], softcap=2.0) == "flash_package"
    assert chosen("cpu", torch.bfloat16, softcap=2.0) == "plain_varlen"
    assert chosen("cuda", torch.float32, softcap=2.0) == "gathered_varlen"
    with pytest.raises(ValueError, match="caps its attention scores, .*: install flash-attn 2, or set"):
        chosen("cuda", torch.bfloat16, softcap=2.0)
    assert chosen("cuda", torch.float32, width=512) == "gathered_varlen"
    with pytest.raises(ValueError, match="heads of up to 256, this model's are 512 wide"):
        chosen("cuda", torch.bfloat16, width=512)


def test_chunked_attention_is_refused():
    with pytest.raises(ValueError, match="full or sliding attention in every layer.*chunked_attention"):
        use_shared_prefix(refused(Llama4TextConfig(**TINY, intermediate_size_mlp=48, num_local_experts=2)))


@pytest.mark.parametrize("name", ["jitter_noise", "expert_capacity"])
def test_routing_that_is_not_the_tokens_alone_is_refused(name):
    model = refused(MixtralConfig(**TINY, num_local_experts=4, sliding_window=None, router_jitter_noise=0.0))
    setattr(model.model.layers[1].mlp, name, 3)
    with pytest.raises(ValueError, match=f"{name}=3 lets a token's experts depend on more than the token"):
        use_shared_prefix(model)


@pytest.mark.parametrize(
    "config",
    [
        BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=1, n_head=4),
        MptConfig(vocab_size=VOCABULARY, d_model=32, n_layers=1, n_heads=4),
        RwkvConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1),
        xLSTMConfig(vocab_size=VOCABULARY, hidden_size=32, num_heads=4, num_hidden_layers=1),  # no attention at all
    ],
    ids=lambda config: config.model_type,
)
def test_models_whose_attention_cannot_be_replaced_are_refused(config):
    with pytest.raises(ValueError, match="does not give .*ForCausalLM its AttentionInterface"):
        use_shared_prefix(refused(config))


def test_rotary_embedding_that_depends_on_length_is_refused():
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(ValueError, match="rope|rotary|position"):
        use_shared_prefix(make_model(max_position_embeddings=8, rope_parameters=scaling))


def test_dropout_is_refused_while_training():
    policy, batch = Policy(make_model(attention_dropout=0.1)), packed(sequence((1, 2), (3,)))
    policy.eval()(batch)
    with pytest.raises(ValueError, match="attention_dropout 0"):
        policy.train()(batch)


def test_attention_refuses_dropout_by_itself():
    query = torch.zeros(1, 1, 1, 4)
    with pytest.raises(ValueError, match="dropout"):
        shared_prefix_attention(torch.nn.Identity(), query, query, query, None, plan=[], dropout=0.5)


# policy


def test_policy_switches_the_attention():
    assert packed_copy(make_model()).model.config._attn_implementation == NAME


def test_unknown_dtype_is_refused():
    with pytest.raises(ConfigError, match="dtype.*float16"):
        load(ModelConfig, None, ["dtype=float16"])
