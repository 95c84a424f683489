"""Which experts of a mixture an engine chose for each token, as a completion carries them and the journal keeps them.

    chosen = RoutedExperts.of(rows)         (T, L, k): T tokens, L layers with a router, k experts of each
    chosen.last(2).array()                  (2, L, k)

Such rows belong to the tokens that run through the model, a prompt and all of its completion but the last token.
This file imports no PyTorch.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from membuilder.errors import ConfigError


class RouterReplay(StrEnum):
    """Whether the tokens of a mixture of experts are trained with the experts that the engine chose."""

    AUTO = "auto"
    """Where the engine reports them and the model's routers are known; else the trainer's routers choose."""
    ALWAYS = "always"
    """As `auto`, but what cannot be replayed is refused."""
    NEVER = "never"
    """The engine is not asked for them."""


class UnreportedError(ConfigError):
    """An engine cannot report which experts it chooses."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutedExperts:
    """The experts of some tokens in a row."""

    num_layers: int
    """Layers with a router; layers without one are left out."""
    top_k: int
    """Experts of a token in a layer."""
    itemsize: int
    """Bytes of an expert's number: 1 or 2."""
    data: bytes
    """Numbers of experts, by token, layer and place."""

    @classmethod
    def of(cls, rows: np.ndarray) -> "RoutedExperts":
        """Return the record of rows (T, L, k)."""
        kept = rows.astype("u1" if rows.max(initial=0) < 256 else "<u2")
        return cls(num_layers=rows.shape[1], top_k=rows.shape[2], itemsize=kept.itemsize, data=kept.tobytes())

    def array(self) -> np.ndarray:
        """Return the rows (T, L, k); they cannot be written to."""
        return np.frombuffer(self.data, f"<u{self.itemsize}").reshape(-1, self.num_layers, self.top_k)

    @property
    def num_tokens(self) -> int:
        return len(self.data) // self._bytes_per_token

    def first(self, count: int) -> "RoutedExperts":
        """Return the rows of the first tokens."""
        return self._with(self.data[: count * self._bytes_per_token])

    def last(self, count: int) -> "RoutedExperts":
        """Return the rows of the last tokens."""
        return self._with(self.data[max(0, self.num_tokens - count) * self._bytes_per_token :])

    def _with(self, data: bytes) -> "RoutedExperts":
        return RoutedExperts(num_layers=self.num_layers, top_k=self.top_k, itemsize=self.itemsize, data=data)

    @property
    def _bytes_per_token(self) -> int:
        return self.num_layers * self.top_k * self.itemsize


def routers(model) -> dict[int, object]:
    """Return the routers of a transformers model by the numbers of their layers; none where no experts are mixed."""
    found = {}
    for name, module in model.named_modules():
        sizes = [getattr(module, each, None) for each in ("top_k", "num_experts")]
        weight, layer = getattr(module, "weight", None), re.search(r"(?:^|\.)(\d+)\.", name)
        if layer and weight is not None and all(isinstance(each, int) for each in sizes):
            found[int(layer[1])] = module
    return found
