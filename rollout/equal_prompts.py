"""An engine that draws equal prompts of one call apart, around one that seeds each prompt by its tokens.

Episodes sample one answer a prompt. Where the memories of two rollouts are alike so are their prompts, and an engine
that draws equal prompts alike would keep the two alike to the dialogue's end.
"""

from collections import defaultdict
from collections.abc import Iterator

from rollout.types import Completion, Engine, Sampled, SamplingConfig, in_order


class DrawsApart:
    """The engine inside does all the work; equal prompts are given to it as one that is sampled as often."""

    def __init__(self, engine: Engine) -> None:
        self.inner = engine
        self.max_model_len = engine.max_model_len

    def generate(self, prompts: list[list[int]], n: int, sampling: SamplingConfig, seed: int) -> list[list[Completion]]:
        return in_order(self.stream(prompts, n, sampling, seed), len(prompts), n)

    def stream(self, prompts: list[list[int]], n: int, sampling: SamplingConfig, seed: int) -> Iterator[Sampled]:
        """Yield completions; groups of several, and what is decoded greedily, are the inner engine's own."""
        if n > 1 or sampling.temperature == 0:
            return self.inner.stream(prompts, n, sampling, seed)
        return self._apart(prompts, sampling, seed)

    def _apart(self, prompts: list[list[int]], sampling: SamplingConfig, seed: int) -> Iterator[Sampled]:
        places: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for place, prompt in enumerate(prompts):
            places[tuple(prompt)].append(place)
        for times in sorted({len(of) for of in places.values()}):
            given = [prompt for prompt, of in places.items() if len(of) == times]
            for prompt, number, completion in self.inner.stream(list(map(list, given)), times, sampling, seed):
                yield Sampled(places[given[prompt]][number], 0, completion)

    def load_weights(self, named_tensors, version: int) -> None:
        self.inner.load_weights(named_tensors, version)

    def sleep(self) -> None:
        self.inner.sleep()

    def close(self) -> None:
        self.inner.close()
