"""The stream of episodes: which dialogues are walked through next, each from an empty bank to its end (dense=false).

Every epoch takes the dialogues in another order. A step takes as many as it needs; those at an epoch's end that do not
fill a step are left out of that epoch, as other trainers do.
"""

import random
from collections import Counter
from collections.abc import Sequence

from membuilder.embedding.local import TextEmbedder
from membuilder.errors import ConfigError
from membuilder.schemes.scheme import Scheme
from membuilder.types import Bank
from reward.rollouts import ScoredGroup
from rollout.sampler import make_task
from rollout.turns import Task
from trainer.data.corpus import ExpertBuild
from trainer.experience.session_stream import SessionStream, StreamState
from trainer.rl_config import RLConfig


class EpisodeStream:
    """An endless stream of dialogues, which is the same on every process; each samples its share of a step's."""

    def __init__(
        self, builds: Sequence[ExpertBuild], embedder: TextEmbedder, scheme: Scheme, num_instances: int, seed: int
    ) -> None:
        """Raises ConfigError for fewer dialogues than a step takes, and for two of one id."""
        if num_instances > len(builds):
            raise ConfigError(
                f"dense=false takes whole dialogues, and instances_per_step (else sessions_per_step) makes that "
                f"{num_instances} a step, but there are {len(builds)} to train on: lower that key or give more of them "
                "(data.num_train)"
            )
        name, count = Counter(build.dialogue.id for build in builds).most_common(1)[0]
        if count > 1:
            raise ConfigError(f"{count} dialogues to train on have the id '{name}': give each an id of its own")
        self._builds, self._embedder, self._scheme = builds, embedder, scheme
        self._num_instances, self._seed = num_instances, seed
        self._taken = 0

    @property
    def state(self) -> StreamState:
        """Return what a checkpoint keeps."""
        return StreamState(taken=self._taken, slots=())

    def load_state(self, state: StreamState) -> None:
        """Go on from where a stream of the same builds and seed stood."""
        self._taken = state.taken

    def builds(self) -> list[ExpertBuild]:
        """Return the dialogues of the step that comes next, as the expert built them."""
        size = self._num_instances
        of_epoch = len(self._builds) // size * size
        epoch, position = divmod(self._taken, of_epoch)
        order = random.Random(f"{self._seed}-{epoch}").sample(range(len(self._builds)), len(self._builds))
        return [self._builds[index] for index in order[position : position + size]]

    def costs(self) -> list[float]:
        """Estimates of what each of them costs to sample: its number of sessions, which are as many answers."""
        return [float(len(build.dialogue.sessions)) for build in self.builds()]

    def tasks(self, number: int) -> list[Task]:
        """Return the first sessions of up to so many of them."""
        dialogues = [build.dialogue for build in self.builds()[:number]]
        return [make_task(each.id, each.sessions[0], Bank(), self._scheme, self._embedder) for each in dialogues]

    def advance(self, groups: Sequence[ScoredGroup]) -> None:
        """Move on to other dialogues."""
        self._taken += self._num_instances


def make_stream(
    config: RLConfig, builds: Sequence[ExpertBuild], embedder: TextEmbedder, scheme: Scheme
) -> SessionStream | EpisodeStream:
    """Return the stream of what a run trains on: of sessions, or of whole dialogues (dense=false)."""
    if config.dense:
        return SessionStream(builds, embedder, scheme, config.sessions_per_step, config.states, config.seed)
    longest = max(len(build.dialogue.sessions) for build in builds)
    num_instances = config.instances_per_step or max(1, config.sessions_per_step // longest)
    return EpisodeStream(builds, embedder, scheme, num_instances, config.seed)
