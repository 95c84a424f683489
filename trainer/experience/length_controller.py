"""Steering of memory lengths: the weight of the length penalty follows how much greedy decoding writes.

It is off unless `length_target` is set. The weight of a step is `length_weight` x (ratio / target) ** `length_gain`, at
most 1; the ratio is smoothed over steps, because each step has few sessions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from membuilder.errors import ConfigError
from trainer.configs import States
from trainer.data.corpus import ExpertBuild
from trainer.experience.collector import Collector
from trainer.experience.session_stream import SessionStream, StreamState
from trainer.rl_config import RLConfig

SMOOTHED = "memory_ratio/smoothed"


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthState:
    """The controller's state as a checkpoint keeps it."""

    stream: StreamState
    memory_ratio: float | None
    """The smoothed ratio; None while nothing was measured."""


class LengthController:
    """Measures in sessions of `builds` how much greedy decoding writes, and sets the length weight by it."""

    def __init__(self, config: RLConfig, builds: Sequence[ExpertBuild], collector: Collector) -> None:
        self._config, self._collector, self._smoothed = config, collector, None
        self._stream = None
        if all(build.steps for build in builds):
            self._stream = SessionStream(
                builds, collector.embedder, collector.scheme, config.sessions_per_step, States.EXPERT, config.seed
            )
        elif config.length_target is not None:
            raise ConfigError(
                f"length_target: scheme '{collector.scheme.name}' has no offline expert whose lengths it could be a "
                "share of; set length_target=null"
            )

    def weight(self) -> tuple[float, dict[str, float]]:
        """Return the length weight of the step that is sampled next, and what to log about it."""
        config, weight = self._config, self._config.reward.length_weight
        if config.length_target is None:
            return weight, {}
        ratio = self._collector.greedy_memory_ratio(self._stream)
        if math.isinf(ratio):  # the expert wrote nothing in these sessions, the policy did: no ratio to remember
            return 1.0, {"length_weight": 1.0}
        kept = 0.0 if self._smoothed is None else config.length_smoothing
        smoothed = kept * (self._smoothed or 0.0) + (1 - kept) * ratio
        weight = min(1.0, weight * (smoothed / config.length_target) ** config.length_gain)
        return weight, {"length_weight": weight, "memory_ratio": ratio, SMOOTHED: smoothed}

    def advance(self, measured: Mapping[str, float]) -> None:
        """Remember what `weight` measured (it may come from the journal), and move on to other sessions."""
        self._smoothed = measured.get(SMOOTHED, self._smoothed)
        if self._stream is not None:
            self._stream.skip()

    def state(self) -> LengthState:
        """Return what a checkpoint keeps."""
        stream = StreamState(taken=0, slots=()) if self._stream is None else self._stream.state
        return LengthState(stream=stream, memory_ratio=self._smoothed)

    def load(self, state: LengthState) -> None:
        """Go on from where a controller of the same builds and seed stood."""
        if self._stream is not None:
            self._stream.load_state(state.stream)
        self._smoothed = state.memory_ratio
