"""Which prefix trees run together: the micro-batches of an optimizer step.

A step's gradient is a sum over its sequences, so only speed depends on who shares a micro-batch, also where a tree is
split: what stands above the cut is then repeated in each part.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from os.path import commonprefix  # of any sequences

from trainer.batching.packing import MIN_SAVED_SHARE, Node, build_tree, sequences_of

NUM_KEPT = 16
"""How many unfinished splits a search keeps: all there are for up to five leaves, so theirs is the best one."""


def micro_batches(trees: Sequence[Node], max_tokens: int) -> list[list[Node]]:
    """Batches of at most `max_tokens` (shared tokens count once); only a single sequence that is longer has more.

    First-fit-decreasing over trees, and the parts of those that are larger: the longest first, each into the first
    batch with room.
    """
    batches: list[list[Node]] = []
    rooms: list[int] = []
    parts = [part for tree in trees for part in split(tree, max_tokens)]
    for tree in sorted(parts, key=lambda tree: -tree.num_tokens):
        place = next((number for number, room in enumerate(rooms) if tree.num_tokens <= room), len(batches))
        if place == len(batches):
            batches.append([])
            rooms.append(max_tokens)
        batches[place].append(tree)
        rooms[place] -= tree.num_tokens
    return batches


def joined(trees: Sequence[Node]) -> list[Node]:
    """Return a micro-batch's trees as one where that saves enough: where all begin with the same long instructions."""
    enough = MIN_SAVED_SHARE * (num_tokens := sum(tree.num_tokens for tree in trees))
    firsts = sorted(sequences_of(tree)[0].input_token_ids for tree in trees)
    if sum(len(commonprefix(pair)) for pair in pairwise(firsts)) < enough:  # so no tree of all is built in vain
        return list(trees)
    whole = build_tree([sequence for tree in trees for sequence in sequences_of(tree)])
    return [whole] if num_tokens - whole.num_tokens >= enough else list(trees)


def split(tree: Node, max_tokens: int) -> list[Node]:
    """Return the tree, or parts of at most `max_tokens` that hold each sequence once and repeat few tokens.

    A leaf that is longer with all above it is a part of its own. Which leaves share a part is searched leaf by leaf
    (beam search): of all ways to place the leaves so far, those of the fewest tokens are followed.
    """
    if tree.num_tokens <= max_tokens:
        return [tree]
    leaves = list(_paths(tree, ()))
    # of each unfinished split its parts, and of each part its tokens and the numbers of its leaves
    kept: list[tuple[tuple[int, tuple[int, ...]], ...]] = [()]
    for number, path in enumerate(leaves):
        shared = [_num_shared(path, other) for other in leaves[:number]]
        length = sum(len(node.token_ids) for node in path)
        placed = {}
        for parts in kept:
            for index, (size, members) in enumerate(parts):
                # leaves come branch by branch: none of a part shares more with this one than the last
                larger = size + length - shared[members[-1]]
                if larger <= max_tokens:
                    after = (*parts[:index], (larger, (*members, number)), *parts[index + 1 :])
                    placed.setdefault(_key(after), after)
            after = (*parts, (length, (number,)))
            placed.setdefault(_key(after), after)
        kept = sorted(placed.values(), key=_cost)[:NUM_KEPT]
    given: set[int] = set()
    chosen = [{id(leaves[number][-1]) for number in members} for _, members in kept[0]]
    return [part for each in chosen if (part := _part(tree, each, given))]


def _paths(node: Node, above: tuple[Node, ...]) -> Iterator[tuple[Node, ...]]:
    """Yield the way to each leaf, branch by branch, the largest branch first: what is small finds room later."""
    if not node.children:
        yield (*above, node)
    for child in sorted(node.children, key=lambda child: -child.num_tokens):
        yield from _paths(child, (*above, node))


def _num_shared(path: Sequence[Node], other: Sequence[Node]) -> int:
    """Return the number of tokens of the nodes that two ways have in common."""
    return sum(len(node.token_ids) for node, beside in zip(path, other, strict=False) if node is beside)


def _key(parts) -> frozenset[tuple[int, int]]:
    """Return what further leaves depend on: each part's size and last leaf."""
    return frozenset((size, members[-1]) for size, members in parts)


def _cost(parts) -> tuple[int, int]:
    """Return the tokens of all parts; of equal ones, full parts beside empty ones have more room than even ones."""
    return sum(size for size, _ in parts), -sum(size**2 for size, _ in parts)


def _part(node: Node, leaves: set[int], given: set[int]) -> Node | None:
    """Return what leads to the leaves of these identities, None if nothing; `given` holds whose sequences are placed.

    A node with one child left becomes one with it.
    """
    children = [part for child in node.children if (part := _part(child, leaves, given))]
    if not children and id(node) not in leaves:
        return None
    sequences = [] if id(node) in given else node.sequences
    given.add(id(node))
    if len(children) == 1:
        (only,) = children
        return Node(
            token_ids=node.token_ids + only.token_ids,
            children=only.children,
            sequences=sequences + only.sequences,
            id=node.id,
        )
    return Node(token_ids=node.token_ids, children=children, sequences=list(sequences), id=node.id)
