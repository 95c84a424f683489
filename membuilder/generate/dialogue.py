"""Dialogues of two friends over several sessions, with the questions asked about them later: our own training corpus.

    generate(num_dialogues=2, seed=0, split="train")[1].id == "gen-train-0-1"

About a third of the turns tell something lasting that a question may ask about; the rest is small talk. Only the words
of a turn show which of the two it is. People and other names of the two splits are disjoint; texts are shared.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from membuilder.errors import ConfigError
from membuilder.generate.facts import Fact, Room, plan_facts
from membuilder.generate.library import TEXT_FOLDER, Library, load_library
from membuilder.generate.questions import (
    UNANSWERABLE_PER_ANSWERABLE,
    answerable_questions,
    finish,
    unanswerable_questions,
)
from membuilder.generate.supply import Supply
from membuilder.generate.talk import EDGES, NUM_FRIENDS, SmallTalk
from membuilder.generate.topics import Split
from membuilder.types import Dialogue, Session, Turn

MAX_SESSIONS = 24
"""Beyond this the subjects two people can talk about run out."""
MIN_TURNS = 8
TURNS_SPREAD = 2
"""A session may have this many turns more or fewer than were asked for."""
NUM_EDGE_TURNS = 2
"""A session begins with this many turns of greeting and ends with as many of goodbye."""
FIRST_DAY = datetime(2022, 1, 3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A session before anything is said."""

    timestamp: datetime
    num_turns: int
    starter: int
    """Index of the speaker of the first turn; speakers alternate."""

    def speaker(self, turn: int) -> int:
        return (self.starter + turn) % 2

    def free_turns(self, speaker: int) -> list[int]:
        """Return the positions of a speaker's turns between greeting and goodbye."""
        return [t for t in range(NUM_EDGE_TURNS, self.num_turns - NUM_EDGE_TURNS) if self.speaker(t) == speaker]


def generate(
    num_dialogues: int,
    seed: int,
    split: Split,
    num_sessions: int = 6,
    turns_per_session: int = 14,
    text_folder: Path = TEXT_FOLDER,
) -> list[Dialogue]:
    """Dialogue i depends on (seed, split, i), the two sizes and the texts alone.

    Raises ConfigError for sizes out of range and DataError for a text folder with a fault.
    """
    if split not in ("train", "heldout"):
        raise ConfigError(f"split is {split!r}; use 'train' or 'heldout'")
    if not 1 <= num_sessions <= MAX_SESSIONS:
        raise ConfigError(f"num_sessions is {num_sessions}; use 1 to {MAX_SESSIONS}")
    if turns_per_session < MIN_TURNS:
        raise ConfigError(f"turns_per_session is {turns_per_session}; use {MIN_TURNS} or more")
    library = load_library(text_folder)
    return [_dialogue(library, seed, split, index, num_sessions, turns_per_session) for index in range(num_dialogues)]


def _dialogue(
    library: Library, seed: int, split: Split, index: int, num_sessions: int, turns_per_session: int
) -> Dialogue:
    dialogue_id = f"gen-{split}-{seed}-{index}"
    rng = random.Random(dialogue_id)
    supply = Supply(rng, library.values, split)
    speakers = supply.draw("first"), supply.draw("first")
    friends = [supply.draw("first") for _ in range(NUM_FRIENDS)]
    talk = SmallTalk(rng, library.chatter, library.domains, friends)
    shapes = _shapes(rng, num_sessions, turns_per_session)
    days = [shape.timestamp.date() for shape in shapes]

    free_turns = [(len(shape.free_turns(0)), len(shape.free_turns(1))) for shape in shapes]
    room = Room(rng, free_turns, num_turns=[shape.num_turns for shape in shapes])
    used_subjects: tuple[set[str], set[str]] = (set(), set())
    facts = plan_facts(rng, library, supply, room, days[-1], used_subjects)

    sessions = []
    turn_ids: dict[tuple[int, int], tuple[str, ...]] = {}
    for number, shape in enumerate(shapes):
        session_id = f"D{number + 1}"
        placed = _place(rng, shape, facts, number)
        for (fact, stage), positions in placed.items():
            turn_ids[fact, stage] = tuple(f"{session_id}:{position + 1}" for position in positions)
        turns = _turns(session_id, shape, speakers, facts, placed, talk)
        sessions.append(Session(id=session_id, index=number, timestamp=shape.timestamp, turns=turns))

    drafts = answerable_questions(rng, facts, speakers, days, turn_ids)
    count = round(UNANSWERABLE_PER_ANSWERABLE * len(drafts))
    drafts += unanswerable_questions(rng, library, supply, speakers, used_subjects, days[-1], count)
    asked_at = shapes[-1].timestamp + timedelta(days=rng.randint(2, 20))
    questions = finish(drafts, dialogue_id, asked_at)
    return Dialogue(id=dialogue_id, speakers=speakers, sessions=tuple(sessions), questions=questions)


def _shapes(rng: random.Random, num_sessions: int, turns_per_session: int) -> list[Shape]:
    day = FIRST_DAY + timedelta(days=rng.randrange(1000))
    shapes = []
    for _ in range(num_sessions):
        timestamp = day + timedelta(minutes=rng.randrange(9 * 60, 21 * 60))
        num_turns = turns_per_session + rng.randint(-TURNS_SPREAD, TURNS_SPREAD)
        shapes.append(Shape(timestamp=timestamp, num_turns=num_turns, starter=rng.randrange(2)))
        day += timedelta(days=rng.randint(4, 28))
    return shapes


def _place(
    rng: random.Random, shape: Shape, facts: Sequence[Fact], session: int
) -> dict[tuple[int, int], tuple[int, ...]]:
    """Maps (fact, stage) to the positions of its turns; two parts of a stage take two turns in a row of one speaker."""
    placed = {}
    for speaker in (0, 1):
        free = shape.free_turns(speaker)
        told = [
            ((f, s), len(stage.texts))
            for f, fact in enumerate(facts)
            for s, stage in enumerate(fact.stages)
            if fact.owner == speaker and stage.session == session
        ]
        num_fillers = len(free) - sum(length for _, length in told)
        blocks = told + [(None, 1)] * num_fillers
        rng.shuffle(blocks)
        for key, length in blocks:
            positions, free = tuple(free[:length]), free[length:]
            if key is not None:
                placed[key] = positions
    return placed


def _turns(
    session_id: str,
    shape: Shape,
    speakers: tuple[str, str],
    facts: Sequence[Fact],
    placed: dict[tuple[int, int], tuple[int, ...]],
    talk: SmallTalk,
) -> tuple[Turn, ...]:
    told: dict[int, str] = {}
    domains: dict[int, str] = {}
    for (fact, stage), positions in placed.items():
        for position, text in zip(positions, facts[fact].stages[stage].texts, strict=True):
            told[position] = text
            domains[position] = facts[fact].topic.domain

    edges = dict(zip((0, 1, shape.num_turns - 2, shape.num_turns - 1), EDGES, strict=True))

    def say(position: int) -> str:
        if position in edges:
            return talk.edge(edges[position], speakers[1 - shape.speaker(position)])
        if position in told:
            return told[position]
        return talk.filler(domains.get(position - 1), domains.get(position + 1))

    return tuple(
        Turn(
            id=f"{session_id}:{position + 1}",
            speaker=speakers[shape.speaker(position)],
            role=("user", "assistant")[shape.speaker(position)],
            text=say(position),
        )
        for position in range(shape.num_turns)
    )
