"""Which facts a dialogue tells, about whom, in which sessions and words."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from membuilder.generate.library import Library
from membuilder.generate.phrasing import tell
from membuilder.generate.supply import Supply
from membuilder.generate.times import draw_phrase, month_name
from membuilder.generate.topics import SLOT, Topic

FACT_SHARE = 0.33
"""Share of the turns of a session that tell a fact."""
FIRST_SPEAKER_SHARE = 0.65
"""Share of the facts that the first speaker tells."""
CHANGES_PER_FACT_TURN = 0.21
PROCEDURES_PER_FACT_TURN = 0.075
DATED_PER_FACT_TURN = 0.19
"""Facts of a kind for each turn that tells a fact; plain facts fill the rest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    session: int
    texts: tuple[str, ...]
    """One turn, or two of the same speaker."""
    phrase: str | None
    """The time phrase told, if any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    topic: Topic
    owner: int
    """Index of the speaker who tells it; it is about this speaker."""
    values: dict[str, str]
    stages: tuple[Stage, ...]


class Room:
    """The turns of each session that are still free for facts, in total and per speaker."""

    def __init__(self, rng: random.Random, free_turns: Sequence[tuple[int, int]], num_turns: Sequence[int]):
        self._total = [int(FACT_SHARE * count + rng.random()) for count in num_turns]
        # Except in the shortest sessions, one turn of each speaker stays for small talk.
        self._own = [[max(own - 1, 1) for own in pair] for pair in free_turns]

    def sessions(self, owner: int, num_turns: int) -> list[int]:
        """Return the sessions where this speaker can tell a stage of `num_turns` turns."""
        return [s for s in range(len(self._total)) if min(self._total[s], self._own[s][owner]) >= num_turns]

    def take(self, session: int, owner: int, num_turns: int) -> None:
        self._total[session] -= num_turns
        self._own[session][owner] -= num_turns

    @property
    def num_fact_turns(self) -> int:
        return sum(self._total)


def months_after(rng: random.Random, day: date) -> dict[str, str]:
    """Draw two months after the dialogue, the second after the first: a plan always lies in its future."""
    near, far = rng.randint(1, 3), rng.randint(4, 6)
    return {"month": month_name(day, near).split()[0], "month2": month_name(day, far).split()[0]}


def draw_values(topic: Topic, supply: Supply, months: dict[str, str]) -> dict[str, str]:
    slots = [slot for slot in topic.slots() if slot not in ("past", "future")]
    return {slot: months[slot] if slot in months else supply.draw(slot) for slot in slots}


def plan_facts(
    rng: random.Random,
    library: Library,
    supply: Supply,
    room: Room,
    last_day: date,
    used_subjects: tuple[set[str], set[str]],
) -> list[Fact]:
    """Plan facts that fill `room`; the subjects each speaker talks about are added to `used_subjects`."""
    facts: list[Fact] = []
    months = months_after(rng, last_day)

    def add(topics: Sequence[Topic], owner: int) -> bool:
        unused = [topic for topic in topics if topic.subject not in used_subjects[owner]]
        fact = _tell(rng, library.chatter.leads, supply, room, months, unused, owner)
        if fact is None:
            return False
        used_subjects[owner].add(fact.topic.subject)
        facts.append(fact)
        return True

    num_turns = room.num_fact_turns
    for topics, share in (
        (library.changes, CHANGES_PER_FACT_TURN),
        (library.procedures, PROCEDURES_PER_FACT_TURN),
        (library.dated, DATED_PER_FACT_TURN),
    ):
        for _ in range(int(share * num_turns + rng.random())):
            add(topics, _draw_owner(rng))
    while room.num_fact_turns:
        owner = _draw_owner(rng)
        if not add(library.plain, owner) and not add(library.plain, 1 - owner):
            break
    return facts


def _draw_owner(rng: random.Random) -> int:
    return 0 if rng.random() < FIRST_SPEAKER_SHARE else 1


def _tell(
    rng: random.Random,
    leads: Sequence[str],
    supply: Supply,
    room: Room,
    months: dict[str, str],
    topics: list[Topic],
    owner: int,
) -> Fact | None:
    """Let `owner` tell one of the topics in sessions with room for it; None where there is no topic or no room."""
    if not topics:
        return None
    topic = rng.choice(topics)
    templates = [rng.choice(stage) for stage in topic.stages]
    num_turns = max(template.count("|") + 1 for template in templates)
    sessions = room.sessions(owner, num_turns)
    if len(sessions) < len(templates):
        return None
    values = draw_values(topic, supply, months)
    stages = []
    for session, template in zip(sorted(rng.sample(sessions, len(templates))), templates, strict=True):
        stages.append(_stage(rng, leads, template, values, session))
        room.take(session, owner, len(stages[-1].texts))
    return Fact(topic=topic, owner=owner, values=values, stages=tuple(stages))


def _stage(rng: random.Random, leads: Sequence[str], template: str, values: dict[str, str], session: int) -> Stage:
    times = {slot: draw_phrase(rng, slot) for slot in SLOT.findall(template) if slot in ("past", "future")}
    texts = tuple(tell(rng, part, values | times, leads) for part in template.split("|"))
    return Stage(session=session, texts=texts, phrase=next(iter(times.values()), None))
