"""The stream of sessions: which one is sampled next, and from which memory bank.

With `states: expert`, sessions come in random order, each with the bank that the expert had built before it (the
published way). With `states: policy`, dialogues are walked in order, several at a time, and each session starts from
the bank that one of the policy's own rollouts left behind, as it will at test time.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from membuilder.embedding.local import TextEmbedder
from membuilder.schemes.scheme import Scheme
from membuilder.types import Bank
from reward.rollouts import ScoredGroup
from rollout.sampler import make_task
from rollout.turns import Task
from trainer.configs import States
from trainer.data.corpus import ExpertBuild


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """A place in the stream: the session of a dialogue that is sampled next."""

    dialogue: int
    session: int
    bank: Bank
    """The memory bank before the session."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamState:
    """The state of a stream as a checkpoint keeps it."""

    taken: int
    """Number of dialogues begun so far."""
    slots: tuple[Slot, ...]


class SessionStream:
    """An endless stream of tasks, which is the same on every process; each samples its share of the slots."""

    def __init__(
        self,
        builds: Sequence[ExpertBuild],
        embedder: TextEmbedder,
        scheme: Scheme,
        num_slots: int,
        states: States,
        seed: int,
    ) -> None:
        self._builds, self._embedder, self._scheme = builds, embedder, scheme
        self._states, self._seed = states, seed
        self._taken = 0
        self._slots = [self._start(spread=True) for _ in range(num_slots)]
        self._tasks: dict[int, Task] = {}  # kept for the current slots, because making one searches related entries

    def _start(self, spread: bool) -> Slot:
        """Begin the next dialogue of the shuffled order; with `spread` at a random session, with the expert's bank."""
        epoch, position = divmod(self._taken, len(self._builds))
        rng = random.Random(f"{self._seed}-{epoch}")
        dialogue = rng.sample(range(len(self._builds)), len(self._builds))[position]
        steps = self._builds[dialogue].steps
        session = random.Random(f"{self._seed}-start-{self._taken}").randrange(len(steps)) if spread else 0
        self._taken += 1
        return Slot(dialogue=dialogue, session=session, bank=steps[session].bank_before)

    @property
    def state(self) -> StreamState:
        """Return what a checkpoint keeps."""
        return StreamState(taken=self._taken, slots=tuple(self._slots))

    def load_state(self, state: StreamState) -> None:
        """Go on from where a stream of the same builds and seed stood."""
        self._taken, self._slots, self._tasks = state.taken, list(state.slots), {}

    def task(self, slot: int) -> Task:
        """Return what is sampled in a slot."""
        if slot not in self._tasks:
            build, session = self.expert(slot)
            self._tasks[slot] = make_task(
                build.dialogue.id, build.steps[session].session, self._slots[slot].bank, self._scheme, self._embedder
            )
        return self._tasks[slot]

    def tasks(self, number: int) -> list[Task]:
        """Return what is sampled in the first slots, up to so many."""
        return [self.task(slot) for slot in range(min(number, len(self._slots)))]

    def costs(self) -> list[float]:
        """Estimates of what each slot's session costs to sample: the number of characters of its prompts."""
        sessions = (self._builds[slot.dialogue].steps[slot.session].session for slot in self._slots)
        texts = (sum(len(turn.text) for turn in session.turns) for session in sessions)
        return [float(length + len(slot.bank.core)) for length, slot in zip(texts, self._slots, strict=True)]

    def expert(self, slot: int) -> tuple[ExpertBuild, int]:
        """Return the expert's build of a slot's dialogue, and the index of its session."""
        return self._builds[self._slots[slot].dialogue], self._slots[slot].session

    def skip(self) -> None:
        """Begin another dialogue in every slot, at a random session."""
        self._tasks = {}
        self._slots = [self._start(spread=True) for _ in self._slots]

    def advance(self, groups: Sequence[ScoredGroup]) -> None:
        """Move every slot past the session just sampled; `groups` are in the order of the slots."""
        if self._states is States.EXPERT:
            self.skip()
            return
        self._tasks = {}
        for index, (slot, group) in enumerate(zip(self._slots, groups, strict=True)):
            steps = self._builds[slot.dialogue].steps
            if slot.session + 1 < len(steps):
                # rollouts are drawn alike, so the first is as random a choice as any other
                self._slots[index] = Slot(dialogue=slot.dialogue, session=slot.session + 1, bank=group.rollouts[0].bank)
            else:
                self._slots[index] = self._start(spread=False)
