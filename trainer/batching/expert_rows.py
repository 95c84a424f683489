"""The experts that an engine chose, laid out as the tokens of a batch are."""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch

from rollout.routed_experts import RoutedExperts

UNKNOWN = -1


def expert_rows(
    parts: Sequence[Sequence[RoutedExperts]], places: Sequence[Sequence[int]], num_tokens: int
) -> torch.Tensor | None:
    """Return (N, L, k) int16, with UNKNOWN where no sequence tells; None where none tells anything.

    Of each sequence `parts` holds the experts of its last inputs, one after another, and `places` where all its inputs
    stand among the N tokens. Where several tell, as of a token that they share, the first one's experts are taken: all
    are choices of the same weights for the same tokens, and one set must serve whatever attends to that token.
    """
    of_all = next(chain.from_iterable(parts), None)
    if of_all is None:
        return None
    found = np.full((num_tokens, of_all.num_layers, of_all.top_k), UNKNOWN, dtype=np.int16)
    for told, where in reversed(list(zip(parts, places, strict=True))):
        if told:
            rows = np.concatenate([each.array() for each in told])
            if len(rows) > len(where):
                raise ValueError(f"a sequence of {len(where)} inputs carries the experts of {len(rows)}")
            found[np.asarray(where[len(where) - len(rows) :], dtype=np.int64)] = rows
    return torch.from_numpy(found)
