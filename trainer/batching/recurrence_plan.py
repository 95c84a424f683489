"""Which token comes before which in packed prefix trees, in the forms that recurrent layers run on.

A short convolution looks back at the last tokens of a path, and a recurrence carries a state along it; a path goes from
a root down to a node, across nodes of any length, empty ones too. Letters: N packed tokens, K width of the convolution.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trainer.batching.tree_levels import Level

CHUNK = 64
"""Tokens that one step of the plain scan takes at most, as in Gated DeltaNet (arXiv 2412.06464) and its kernels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Windows:
    """The F tokens that a convolution along the packed row gets wrong: the first K - 1 of each node."""

    tokens: torch.Tensor  # (F,) packed indices
    inputs: torch.Tensor  # (F, K) packed indices of the last tokens of each one's path, itself at the end
    is_real: torch.Tensor  # (F, K) bool, False where a path is shorter; `inputs` is 0 there


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunks:
    """Every node cut into chunks of tokens, padded at the end, for a scan in which each starts from another's state.

    Round r holds the chunks with r others above them on their path, so what they start from ended in round r - 1.
    """

    length: int
    places: torch.Tensor  # (N,) where each token stands among the tokens of all chunks, which are in order of rounds
    starts: list[torch.Tensor]
    """Of each round: for each of its chunks, the number in the round before of what it starts from; 0 in the first."""

    @property
    def num_chunks(self) -> int:
        return sum(map(len, self.starts))


@dataclass(frozen=True, kw_only=True, slots=True)
class NodesCall:
    """One call of a kernel for sequences of any length, on the nodes of one depth that have tokens."""

    tokens: slice
    bounds: torch.Tensor  # (nodes + 1,) int64, from 0
    starts: torch.Tensor  # (nodes,) the state that each starts from: 0 is the empty one, then those of earlier calls


@dataclass(frozen=True, kw_only=True, slots=True)
class RecurrencePlan:
    """What the recurrent layers of a model need to know about a batch."""

    windows: Windows
    scan: Chunks | list[NodesCall]


def windows(levels: Sequence[Level], width: int, device: torch.device) -> Windows:
    """Return the windows of a convolution of some width."""
    tokens: list[int] = []
    inputs: list[list[int]] = []
    above: list[list[int]] = []  # of each node of the level above, the last tokens of its path
    for level in levels:
        ends = []
        for parent, span in zip(level.parents, level.spans, strict=True):
            before = above[parent] if above else []
            for count, token in enumerate(span[: width - 1], 1):
                tokens.append(token)
                inputs.append([*before, *span[:count]][-width:])
            ends.append([*before, *span[max(0, len(span) - width) :]][-width:])
        above = ends
    padded = [[0] * (width - len(each)) + each for each in inputs]
    lengths = torch.tensor([len(each) for each in inputs], device=device)
    return Windows(
        tokens=torch.tensor(tokens, device=device),
        inputs=torch.tensor(padded, device=device),
        is_real=torch.arange(width, 0, -1, device=device) <= lengths[:, None],
    )


def chunks(levels: Sequence[Level], device: torch.device) -> Chunks:
    """Return the chunks of all nodes; they are shorter where no node is as long as a chunk."""
    length = min(CHUNK, max(len(span) for level in levels for span in level.spans))
    rounds: list[list[tuple[range, int]]] = []  # of each chunk its packed indices and what it starts from
    above: list[tuple[int, int]] = []  # of each node of the level above, round and number of the path's last chunk
    for level in levels:
        ends = []
        for parent, span in zip(level.parents, level.spans, strict=True):
            last = above[parent] if above else (-1, 0)
            for start in range(0, len(span), length):
                number, begins_from = last[0] + 1, last[1]
                if number == len(rounds):
                    rounds.append([])
                last = (number, len(rounds[number]))
                rounds[number].append((span[start : start + length], begins_from))
            ends.append(last)
        above = ends
    spans = [span for each in rounds for span, _ in each]
    places = torch.empty(sum(map(len, spans)), dtype=torch.int64)
    for number, span in enumerate(spans):
        places[span.start : span.stop] = torch.arange(number * length, number * length + len(span))
    return Chunks(
        length=length,
        places=places.to(device),
        starts=[torch.tensor([begins_from for _, begins_from in each], device=device) for each in rounds],
    )


def nodes_calls(levels: Sequence[Level], device: torch.device) -> list[NodesCall]:
    """Return one call for each depth that has tokens."""
    calls = []
    num_states = 1
    above: list[int] = []  # of each node of the level above, the state at its end
    for level in levels:
        starts = [above[parent] if above else 0 for parent in level.parents]
        above = list(starts)
        filled = [number for number, span in enumerate(level.spans) if span]
        for number in filled:
            above[number] = num_states
            num_states += 1
        if filled:
            lengths = [0, *(len(level.spans[number]) for number in filled)]
            calls.append(
                NodesCall(
                    tokens=slice(level.spans[0].start, level.spans[-1].stop),
                    bounds=torch.tensor(lengths, device=device).cumsum(0),
                    starts=torch.tensor([starts[number] for number in filled], device=device),
                )
            )
    return calls
