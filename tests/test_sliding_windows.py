"""Shared prompts in models with sliding windows, attention sinks and soft-capped scores are exact on any tree."""

import copy
import random
from collections.abc import Iterator

import pytest
import torch
from transformers import Gemma2Config, Gemma3TextConfig, GptOssConfig, MistralConfig

from tests.kinds import make
from tests.sequences import sequence
from tests.test_architectures import HEADS
from tests.test_packing import (
    assert_same_gradients,
    by_id,
    dense_rows,
    gradients,
    packed_copy,
    session_like,
    tokens,
    weighted,
    with_ids,
)
from trainer.batching import attention_plan
from trainer.batching.attention_plan import padded_calls, varlen_calls
from trainer.batching.packing import Node, TrainSequence, build_tree, pack, sequences_of
from trainer.kernels import gathered_varlen, plain_varlen, sdpa_padded
from trainer.model.merged_attention import merged_attention
from trainer.model.policy import Policy

# plans


def two_completions() -> list[Node]:
    return [build_tree([sequence((1, 2, 3, 4), (7, 8, 9)), sequence((1, 2, 3, 4), (5, 6))])]


def test_a_node_reads_copies_of_what_its_path_has_in_sight():
    (call,) = pack(two_completions(), varlen_calls, (3,)).window_plans[3]
    # prompt 0 1 2 3, completions 4 5 and 6: the first token of each sees two tokens before itself
    assert (call.queries, call.causal, call.window) == (slice(0, 7), True, 3)
    assert call.keys.tolist() == [0, 1, 2, 3, *(2, 3, 4, 5), *(2, 3, 6)]
    assert (call.query_bounds.tolist(), call.key_bounds.tolist()) == ([0, 4, 6, 7], [0, 4, 8, 11])
    assert (call.max_queries, call.max_keys) == (4, 4)


def test_blocks_of_queries_read_copies_in_rectangles(monkeypatch):
    monkeypatch.setattr(attention_plan, "BLOCK", 2)
    begin, rest = pack(two_completions(), padded_calls, (3,)).window_plans[3]
    assert (begin.queries, begin.keys.tolist(), begin.offsets.tolist()) == (slice(0, 2), [0, 1], [0])
    assert (rest.queries, rest.offsets.tolist()) == (slice(2, 7), [2])  # two tokens in sight of each: one mask
    assert rest.keys.view(3, 4).tolist() == [[0, 1, 2, 3], [2, 3, 4, 5], [2, 3, 6, 6]]
    assert rest.query_rows.rows.tolist() == [[0, 1], [2, 3], [4, 4]]


@pytest.mark.parametrize("plan", [padded_calls, varlen_calls])
def test_a_window_that_no_path_outgrows_is_full_attention(plan):
    batch = pack(two_completions(), plan, (5, 6))
    assert [call.window for call in batch.window_plans[5]] == [5] * len(batch.window_plans[5])
    assert [call.queries for call in batch.window_plans[6]] == [call.queries for call in batch.plan]
    assert all(call.window is None for call in batch.window_plans[6])


def test_plans_of_windows_move_with_the_batch():
    batch = pack(two_completions(), padded_calls, (3,)).to(torch.device("meta"))
    tensors = [each for call in batch.window_plans[3] for each in (call.keys, call.offsets, call.query_rows.rows)]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


# attention


def deep_tree(source: random.Random, depth: int) -> Node:
    children = [deep_tree(source, depth - 1) for _ in range(source.choice((0, 1, 2, 3)))] if depth else []
    return Node(token_ids=(1,) * source.choice((0, 1, 2, 7, 25)), children=children)


def in_sight(trees: list[Node], window: int | None) -> torch.Tensor:
    """(N, N): what a packed token sees, from its path alone."""
    nodes, paths, total = [(tree, []) for tree in trees], [], 0
    while nodes:
        below = []
        for node, above in nodes:
            own = list(range(total, total + len(node.token_ids)))
            total += len(own)
            paths += [above + own[: place + 1] for place in range(len(own))]
            below += [(child, above + own) for child in node.children]
        nodes = below
    seen = torch.zeros(total, total, dtype=torch.bool)
    for token, path in enumerate(paths):
        seen[token, path[-(window or total) :]] = True
    return seen


def by_hand(query, key, value, seen, scale, softcap, sinks) -> torch.Tensor:
    key, value = (each.repeat_interleave(query.shape[1] // key.shape[1], 1) for each in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].expand(-1, len(query), 1)], -1)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1)[..., : len(query)], value)


@pytest.mark.parametrize(("softcap", "has_sinks"), [(None, False), (None, True), (0.7, True)])
@pytest.mark.parametrize("window", [None, 1, 3, 16, 60])
@pytest.mark.parametrize("seed", range(3))
def test_every_kernel_attends_as_a_mask_over_all_tokens_does(seed, window, softcap, has_sinks, monkeypatch):
    monkeypatch.setattr(attention_plan, "BLOCK", 4)  # nodes of several blocks
    source = random.Random(seed)
    trees = [deep_tree(source, 5) for _ in range(3)] + [Node(token_ids=(1,) * 70)]
    seen = in_sight(trees, window)
    generator = torch.Generator().manual_seed(seed)
    shapes = [(len(seen), heads, 8) for heads in (4, 2, 2, 4)] + [(4,)]
    query, key, value, weight, sinks = (torch.randn(each, generator=generator, dtype=torch.float64) for each in shapes)
    given = [each.requires_grad_() for each in (query, key, value, *([sinks] if has_sinks else []))]

    def results(out: torch.Tensor) -> list[torch.Tensor]:
        return [out.detach(), *torch.autograd.grad(out, given, weight)]

    how = (0.5, softcap, sinks if has_sinks else None)
    expected = results(by_hand(query, key, value, seen, *how))
    kernels = [(varlen_calls, plain_varlen), (varlen_calls, gathered_varlen), (padded_calls, gathered_varlen)]
    for plan, module in kernels + ([(padded_calls, sdpa_padded)] if softcap is None else []):
        monkeypatch.setattr("trainer.model.merged_attention.kernels_for", lambda *_, module=module: module)
        batch = pack(trees, plan, () if window is None else (window,))
        calls = batch.plan if window is None else batch.window_plans[window]
        for mine, right in zip(results(merged_attention(query, key, value, calls, *how)), expected, strict=True):
            assert (mine - right).abs().max() <= 1e-12, module.__name__


def test_scores_of_padding_do_not_overflow():
    """The first token's only score is far below those of the keys behind it."""
    batch = pack([Node(token_ids=(1,) * length) for length in (40, 30)], padded_calls, (8,))
    size = torch.arange(70, dtype=torch.float64)[:, None, None]
    for calls in (batch.plan, batch.window_plans[8]):
        key, value = (1e3 * size).requires_grad_(), torch.ones_like(size)
        merged_attention(torch.ones_like(size), key, value, calls, 1.0).sum().backward()
        assert key.grad.isfinite().all()


# models

MODELS = {
    "mistral": MistralConfig(**HEADS, sliding_window=5),
    "gemma3": Gemma3TextConfig(**HEADS, sliding_window=5, layer_types=["sliding_attention", "full_attention"]),
    "gemma2": Gemma2Config(**HEADS, sliding_window=5, final_logit_softcapping=None, attn_logit_softcapping=2.0),
    "gpt_oss": GptOssConfig(**HEADS, sliding_window=5, num_local_experts=4, num_experts_per_tok=2),
}


def grown(source: random.Random, depth: int, path: tuple[int, ...]) -> tuple[Node, list[tuple]]:
    """A tree of up to `depth` nodes above each other, of odd lengths, and the prompts and completions of its leaves."""
    own = tokens(source, source.choice((1, 3, 4, 9)))
    path += own
    if not depth:
        completion = tokens(source, source.choice((1, 2, 7)))
        return Node(token_ids=own + completion[:-1]), [(path, completion)]
    below = [grown(source, source.randrange(depth), path) for _ in range(source.choice((1, 2, 3)))]
    return Node(token_ids=own, children=[node for node, _ in below]), [each for _, leaves in below for each in leaves]


def leaves_of(node: Node) -> Iterator[Node]:
    if not node.children:
        yield node
    for child in node.children:
        yield from leaves_of(child)


def random_trees(seed: int) -> list[Node]:
    """Sessions as they are packed (depth 1 to 3), and trees of up to five nodes above each other."""
    source = random.Random(seed)
    grown_trees = [grown(source, 4, ()) for _ in range(2)]
    groups = [leaves for _, leaves in grown_trees] + [session_like(source, agents, 3) for agents in (1, 3)]
    labelled = with_ids(groups, source)
    for (tree, _), sequences in zip(grown_trees, labelled, strict=False):
        for leaf, each in zip(leaves_of(tree), sequences, strict=True):
            leaf.sequence = each
    return [tree for tree, _ in grown_trees] + [build_tree(group) for group in labelled[2:]]


def in_order(trees: list[Node]) -> list[TrainSequence]:
    """By the numbers of their tokens."""
    return sorted(
        (each for tree in trees for each in sequences_of(tree)), key=lambda each: each.values.rollout_logprobs[0]
    )


@pytest.mark.parametrize("plan", [padded_calls, varlen_calls])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("window", [2, 5, 40])
@pytest.mark.parametrize("name", MODELS)
def test_random_trees_have_transformers_own_numbers(name, window, seed, plan):
    """Windows shorter and longer than nodes; with gradient checkpointing and without."""
    config = copy.deepcopy(MODELS[name])
    config.sliding_window = window
    model, trees = make(config), random_trees(seed)
    sequences = in_order(trees)
    dense = torch.cat([dense_rows(model, each, temperature=1.0) for each in sequences])
    coefficients = torch.tensor([c for each in sequences for c in each.values.advantage], dtype=torch.float64)
    expected = gradients(model, (dense * coefficients).sum())
    for checkpointing in (False, True):
        policy = packed_copy(model).train()
        assert policy.windows == (window,)
        if checkpointing:
            policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        batch = pack(trees, plan, policy.windows)
        output = weighted(policy, batch)
        torch.testing.assert_close(by_id(batch, output.head.logprobs).double(), dense, rtol=1e-6, atol=1e-6)
        assert_same_gradients(gradients(policy, output.loss), expected, relative=1e-6)


def test_a_batch_that_was_packed_for_no_window_is_refused():
    policy = Policy(make(MODELS["mistral"]))
    with pytest.raises(AssertionError, match="not packed for sliding windows of .5."):
        policy(pack(two_completions()))
