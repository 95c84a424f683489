"""Which prefix trees run together: the micro-batches of an optimizer step."""

from collections.abc import Sequence

from trainer.batching.packing import Node


def micro_batches(trees: Sequence[Node], max_tokens: int) -> list[list[Node]]:
    """Batches of at most `max_tokens` (shared tokens count once); no tree is split, so a longer one stands alone.

    First-fit-decreasing: the longest first, each into the first batch with room. A step's gradient is a sum over its
    trees, so only speed depends on who shares a batch.
    """
    batches: list[list[Node]] = []
    rooms: list[int] = []
    for tree in sorted(trees, key=lambda tree: -tree.num_tokens):
        place = next((number for number, room in enumerate(rooms) if tree.num_tokens <= room), len(batches))
        if place == len(batches):
            batches.append([])
            rooms.append(max_tokens)
        batches[place].append(tree)
        rooms[place] -= tree.num_tokens
    return batches
