"""Recurrent layers over packed prefix trees: the delta rule and the convolution of each path alone.

Whole models are in test_kinds.py.
"""

import sys
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

import pytest
import torch
from torch.nn.functional import conv1d, logsigmoid

from tests.kinds import trees_of
from trainer.batching import recurrence_plan
from trainer.batching.packing import Node, pack
from trainer.kernels.path_convolution import path_convolution
from trainer.kernels.plain_delta_rule import gated_delta_rule

CPU = torch.device("cpu")


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
