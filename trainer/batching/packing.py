"""Many sequences that share prompts become one packed row of tokens in which every shared token stands once.

A session's four agents read the same dialogue and each agent's rollouts share a whole prompt, so the sequences form a
prefix tree: dialogue -> agent prompt -> completions. The tree is of token ids, so it also finds answers that begin
alike, equal answers, and turns: a later turn's prompt goes on where an earlier one's answer ends. Position ids continue
from a node to its children. This file is the only place where the next-token shift is made. Letters: N packed tokens,
M rows that carry loss.

    sequences with prompt (1 2 3) and completions (7 8 9) and (4 9):
    token_ids 1 2 3 | 7 8 | 4        the last token of a completion is a target only
    positions 0 1 2 | 3 4 | 3
    rows      2 3 4 | 2 5            hidden states to predict from: the prompt's last row serves both completions
    targets   7 8 9 | 4 9
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from os.path import commonprefix  # of any sequences

import torch

from rollout.routed_experts import RoutedExperts
from trainer.batching.attention_plan import Call, Plan, padded_calls, varlen_calls
from trainer.batching.expert_rows import expert_rows
from trainer.batching.tree_levels import Level
from trainer.losses import TokenValues


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSequence:
    """A prompt and one completion of it."""

    prompt_token_ids: tuple[int, ...]
    completion_token_ids: tuple[int, ...]
    values: TokenValues[tuple[float, ...]] | None = None
    """Columns aligned with the completion. A sequence to imitate was not sampled and has None."""
    routed_experts: tuple[RoutedExperts, ...] = ()
    """The experts that an engine chose for its last inputs, one part after another; empty where none were reported."""

    @property
    def input_token_ids(self) -> tuple[int, ...]:
        """Return what runs through the model: the last token of a completion is a target only."""
        return self.prompt_token_ids + self.completion_token_ids[:-1]


@dataclass(kw_only=True)
class Node:
    """A node of a prefix tree: tokens shared by everything below it."""

    token_ids: tuple[int, ...]
    children: list["Node"] = field(default_factory=list)
    sequences: list[TrainSequence] = field(default_factory=list)
    """Sequences whose inputs are the start of the way from the root to this node's end, or all of it."""
    id: str = ""
    """The session's name, on roots; messages use it."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) + sum(child.num_tokens for child in self.children)


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedBatch:
    """Prefix trees as one row of tokens, and the rows that carry loss."""

    token_ids: torch.Tensor  # (1, N) int64
    position_ids: torch.Tensor  # (1, N) int64
    plan: list[Call]  # of layers with full attention; all of one form
    window_plans: dict[int, list[Call]]  # of layers with a sliding window, by its size
    levels: list[Level]  # what recurrent layers go by
    predict_from: torch.Tensor  # (M,) packed index of the hidden state that predicts each target
    targets: torch.Tensor  # (M,) int64
    sequence: torch.Tensor  # (M,) int64, which completion a row belongs to
    sequences: tuple[TrainSequence, ...]  # in the order of their rows
    values: TokenValues[torch.Tensor] | None  # columns (M,) float32
    experts: torch.Tensor | None  # (N, layers, k) int16, what an engine chose (expert_rows.py)

    def to(self, device: torch.device) -> "PackedBatch":
        return _moved(self, device)


MIN_SAVED_TOKENS, MIN_SAVED_SHARE = 16, 0.05
"""What a node must save by standing once, also as a share of the tokens below it, each of which attends to a node more.
A depth costs further calls of attention: with the quickstart's model on a CPU, 8 to 32 tokens are the fastest floor."""


def build_tree(sequences: Sequence[TrainSequence], id: str = "") -> Node:
    """Return the prefix tree of a session's sequences, branches in the order in which sequences come.

    Where sequences part, what they share is a node if all share it, if it ends a prompt of several, or if that saves
    enough; else each branch repeats it. A sequence whose inputs are the start of another's stands on its way and adds
    nothing, as an equal one or an earlier turn does.
    """
    if not all(sequence.completion_token_ids and sequence.prompt_token_ids for sequence in sequences):
        raise ValueError("a training sequence needs at least one prompt token and one completion token")
    branches = _branches([(sequence.input_token_ids, sequence) for sequence in sequences], 0)
    root = branches[0] if len(branches) == 1 else Node(token_ids=(), children=branches)
    root.id = id
    return root


def _branches(ways: Sequence[tuple[tuple[int, ...], TrainSequence]], start: int) -> list[Node]:
    """Return the nodes of sequences, each with its inputs, that are alike up to `start` and go on from there."""
    by_token: dict[int, list[tuple[tuple[int, ...], TrainSequence]]] = defaultdict(list)
    for inputs, sequence in ways:
        by_token[inputs[start]].append((inputs, sequence))
    nodes = []
    for alike in by_token.values():
        longest = max((inputs for inputs, _ in alike), key=len)
        parting = [inputs for inputs, _ in alike if inputs != longest[: len(inputs)]]
        rests = [inputs[start:] for inputs in (longest, *parting)]
        stop = start + len(commonprefix(rests) if parting else rests[0])
        ending = [sequence for inputs, sequence in alike if len(inputs) <= stop]
        children = _branches([way for way in alike if len(way[0]) > stop], stop)
        shared = longest[start:stop]
        num_prompts = sum(start < len(sequence.prompt_token_ids) <= stop for _, sequence in alike)
        if not children or start == 0 or num_prompts > 1 or _saves_enough(len(shared), children):
            nodes.append(Node(token_ids=shared, children=children, sequences=ending))
            continue
        for child in children:
            child.token_ids = shared + child.token_ids
        children[0].sequences[:0] = ending
        nodes += children
    return nodes


def _saves_enough(num_tokens: int, children: Sequence[Node]) -> bool:
    below = sum(child.num_tokens for child in children)
    return num_tokens * (len(children) - 1) >= max(MIN_SAVED_TOKENS, MIN_SAVED_SHARE * below)


def dense_tree(sequence: TrainSequence) -> Node:
    """Return a tree of one sequence that brings its whole prompt, as trainers without shared prompts run it."""
    return Node(token_ids=sequence.input_token_ids, sequences=[sequence])


def as_run(trees: Iterable[Node], shares_prompts: bool) -> list[Node]:
    """Return the trees as a policy runs them: whole, or one for each sequence where prompts are not shared."""
    return list(trees) if shares_prompts else [dense_tree(each) for tree in trees for each in sequences_of(tree)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """Completions that a loss is a mean over, of which some need no forward pass."""

    trees: tuple[Node, ...]
    """The completions to run."""
    num_tokens: int
    """Completion tokens, of completions that are run or not."""
    num_sequences: int
    """Completions, run or not."""

    @classmethod
    def of(cls, trees: Sequence[Node]) -> "Share":
        """Return the share in which every completion is run."""
        num_sequences = sum(len(sequences_of(tree)) for tree in trees)
        return cls(trees=tuple(trees), num_tokens=sum(map(count_loss_tokens, trees)), num_sequences=num_sequences)

    @property
    def num_run_tokens(self) -> int:
        """Return the number of completion tokens that are run."""
        return sum(map(count_loss_tokens, self.trees))


def sequences_of(node: Node) -> list[TrainSequence]:
    """Return the sequences of a prefix tree."""
    return node.sequences + [sequence for child in node.children for sequence in sequences_of(child)]


def count_loss_tokens(node: Node) -> int:
    """Tell how many completion tokens a prefix tree holds."""
    return sum(len(sequence.completion_token_ids) for sequence in sequences_of(node))


def pack_on(trees: Sequence[Node], device: torch.device, windows: Collection[int] = ()) -> PackedBatch:
    """Pack the trees with the attention plans that the device runs best, and move the batch to the device.

    `windows`: the sizes of the sliding windows of the policy that will run the batch.
    """
    return pack(trees, varlen_calls if device.type == "cuda" else padded_calls, windows).to(device)


def pack(trees: Sequence[Node], plan: Plan = padded_calls, windows: Collection[int] = ()) -> PackedBatch:
    """Lay the trees out depth by depth (all roots, then all their children, ...), as tensors on the CPU."""
    token_ids: list[int] = []
    position_ids: list[int] = []
    predict_from: list[int] = []
    sequences: list[TrainSequence] = []
    places: list[list[int]] = []  # of each sequence's inputs
    levels: list[Level] = []
    # each node of a depth, the number of its parent one depth above, and the packed indices of all tokens above it
    nodes: list[tuple[Node, int, list[int]]] = [(tree, 0, []) for tree in trees]
    while nodes:
        spans, below = [], []
        for number, (node, _, above) in enumerate(nodes):
            spans.append(range(len(token_ids), len(token_ids) + len(node.token_ids)))
            token_ids += node.token_ids
            position_ids += range(len(above), len(above) + len(node.token_ids))
            path = [*above, *spans[-1]]
            for sequence in node.sequences:
                first = len(sequence.prompt_token_ids) - 1
                predict_from += path[first : first + len(sequence.completion_token_ids)]
                sequences.append(sequence)
                places.append(path[: len(sequence.input_token_ids)])
            below += [(child, number, path) for child in node.children]
        levels.append(Level(parents=[parent for _, parent, _ in nodes], spans=spans))
        nodes = below
    lengths = torch.tensor([len(sequence.completion_token_ids) for sequence in sequences], dtype=torch.int64)
    return PackedBatch(
        token_ids=torch.tensor([token_ids]),
        position_ids=torch.tensor([position_ids]),
        plan=plan(levels, None),
        window_plans={window: plan(levels, window) for window in windows},
        levels=levels,
        predict_from=torch.tensor(predict_from),
        targets=torch.tensor([token for sequence in sequences for token in sequence.completion_token_ids]),
        sequence=torch.arange(len(lengths)).repeat_interleave(lengths),
        sequences=tuple(sequences),
        values=_joined_values(sequences),
        experts=expert_rows([sequence.routed_experts for sequence in sequences], places, len(token_ids)),
    )


def _joined_values(sequences: Sequence[TrainSequence]) -> TokenValues[torch.Tensor] | None:
    """Return the columns of all sequences, one after another; None where they have none."""
    joined: dict[str, list[float]] = defaultdict(list)
    for number, sequence in enumerate(sequences):
        columns = {} if sequence.values is None else sequence.values.columns()
        if number and columns.keys() != joined.keys():
            raise ValueError(f"sequences carry different values: {sorted(columns)}, {sorted(joined)}")
        for name, column in columns.items():
            if len(column) != len(sequence.completion_token_ids):
                count = len(sequence.completion_token_ids)
                raise ValueError(f"{name} has {len(column)} values for {count} completion tokens")
            joined[name] += column
    tensors = {name: torch.tensor(column, dtype=torch.float32) for name, column in joined.items()}
    return TokenValues(**tensors) if tensors else None


def _moved(value, device: torch.device):
    """Return a tensor on the device; a record, list or dict whose tensors are on the device; else what it is given."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, list):
        return [_moved(each, device) for each in value]
    if isinstance(value, dict):
        return {key: _moved(each, device) for key, each in value.items()}
    if is_dataclass(value):
        return replace(value, **{each.name: _moved(getattr(value, each.name), device) for each in fields(value)})
    return value
