"""The values of one dialogue, drawn from the pools of its split."""

import random

from membuilder.generate.topics import Split, Values, pool_of


class Supply:
    """Hands out values, none twice, so that no two facts of a dialogue share a name."""

    def __init__(self, rng: random.Random, values: Values, split: Split):
        self._rng, self._values, self._split = rng, values, split
        self._left: dict[str, list[str]] = {}

    def draw(self, slot: str) -> str:
        name = pool_of(slot)
        if name not in self._left:
            values = self._values.pool(name, self._split)
            self._left[name] = self._rng.sample(values, len(values))
        return self._left[name].pop()
