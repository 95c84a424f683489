"""Instances for the scheme memalpha: chunks of lines about people nobody else knows, and questions at the end.

    generate_instances(num_instances=2, seed=0, split="train")[1].id == "generated_train_0-1"

A chunk has eight lines: two facts of kinds that questions ask about, three of kinds that none asks about, three of
talk. A quarter of the facts are later values of a fact of an earlier chunk. A question asks for the newest value, and a
search by words finds an older one first: where both stay in memory, the answer is the old one. Which kinds are asked
about is the same on both sides, and nothing but the questions tells it; surnames and other names of the two are
disjoint, so nobody is on both.
"""

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from itertools import cycle
from pathlib import Path

from membuilder.errors import ConfigError
from membuilder.generate.library import TEXT_FOLDER, load_instance_texts
from membuilder.generate.topics import AskedKind, InstanceTexts, Split, Values, single_words
from membuilder.types import Dialogue, Question, Session, Turn

CATEGORY, CHANGED_CATEGORY = "generated", "generated_update"
"""The second is that of questions about a fact that has changed."""
ASKED_PER_CHUNK, PASSING_PER_CHUNK, TALK_PER_CHUNK = 2, 3, 3
LATER_SHARE = 0.25
"""Share of the facts that are later values of earlier ones."""
NUM_PEOPLE = 8
PEOPLE_PER_KIND = 4
"""A kind of fact is told of so many of them at most."""
MAX_CHUNKS = 10
"""Beyond this facts run out."""
FIRST_DAY = datetime(2024, 1, 1)
SPEAKER = "text"


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """A fact that a line tells."""

    person: str
    kind: str
    value: str
    is_later: bool
    """Whether the line tells a new value of a fact."""


def generate_instances(
    num_instances: int, seed: int, split: Split, num_chunks: int = 4, text_folder: Path = TEXT_FOLDER
) -> list[Dialogue]:
    """Return instances as dialogues; instance i depends on (seed, split, i), the number of chunks and the texts alone.

    Raises ConfigError for a size out of range and DataError for a text folder with a fault.
    """
    if split not in ("train", "heldout"):
        raise ConfigError(f"split is {split!r}; use 'train' or 'heldout'")
    if not 1 <= num_chunks <= MAX_CHUNKS:
        raise ConfigError(f"num_chunks is {num_chunks}; use 1 to {MAX_CHUNKS}")
    texts, values = load_instance_texts(text_folder)
    names = [f"generated_{split}_{seed}-{index}" for index in range(num_instances)]
    return [_instance(texts, values, name, split, num_chunks) for name in names]


def fact_of(line: str, text_folder: Path = TEXT_FOLDER) -> Told | None:
    """Return the fact that a generated line tells; None for talk, and for a line of other texts."""
    for kind, is_later, pattern in _patterns(text_folder):
        if found := pattern.fullmatch(line):
            return Told(person=found["name"], kind=kind, value=found["value"], is_later=is_later)
    return None


@cache
def _patterns(text_folder: Path) -> list[tuple[str, bool, re.Pattern[str]]]:
    texts, _ = load_instance_texts(text_folder)
    result = []
    for name, kind in texts.kinds.items():
        for text in (*kind.first, *kind.later):
            pattern = re.escape(text).replace(r"\{name\}", r"(?P<name>\w+ \w+)").replace(r"\{value\}", "(?P<value>.+)")
            result.append((name, text in kind.later, re.compile(pattern)))
    return result


def _instance(texts: InstanceTexts, values: Values, name: str, split: Split, num_chunks: int) -> Dialogue:
    rng = random.Random(name)
    firsts, surnames = (rng.sample(pool, NUM_PEOPLE) for pool in (values.names["first"], texts.surnames(split)))
    people = [f"{first} {surname}" for first, surname in zip(firsts, surnames, strict=True)]
    pools = {kind: single_words(values.pool(text.pool, split)) for kind, text in texts.kinds.items()}
    asked, passing = (
        _plan(rng, people, {kind: pools[kind] for kind in kinds}, count, num_chunks)
        for kinds, count in ((texts.asked, ASKED_PER_CHUNK), (texts.passing, PASSING_PER_CHUNK))
    )
    sessions, line_of = [], {}
    for index in range(num_chunks):
        lines = [(_said(rng, texts, told), told) for told in (*asked[index], *passing[index])]
        talk = rng.sample(texts.talk, TALK_PER_CHUNK)
        lines += [(text.format(first=rng.choice(firsts)), None) for text in talk]
        rng.shuffle(lines)
        turns = tuple(
            Turn(id=f"C{index + 1}:{number}", speaker=SPEAKER, role="user", text=text)
            for number, (text, _) in enumerate(lines, start=1)
        )
        line_of |= {told: turn.id for turn, (_, told) in zip(turns, lines, strict=True)}
        day = FIRST_DAY + timedelta(days=index)
        sessions.append(Session(id=f"C{index + 1}", index=index, timestamp=day, turns=turns))
    newest = {(told.person, told.kind): told for chunk in asked for told in chunk}
    questions = tuple(
        _question(f"{name}_q{number}", told, texts.asked[told.kind], line_of[told])
        for number, told in enumerate(rng.sample(list(newest.values()), len(newest)), start=1)
    )
    return Dialogue(id=name, speakers=(SPEAKER,), sessions=tuple(sessions), questions=questions)


def _plan(
    rng: random.Random, people: Sequence[str], pools: Mapping[str, Sequence[str]], per_chunk: int, num_chunks: int
) -> list[list[Told]]:
    """Return the facts of each chunk; a later value never comes in the chunk of the value before it."""
    unused = {kind: cycle(rng.sample(values, len(values))) for kind, values in pools.items()}
    times: Counter[str] = Counter()
    facts = [(person, kind) for kind in pools for person in rng.sample(people, PEOPLE_PER_KIND)]
    new = iter(rng.sample(facts, len(facts)))
    slots = range(per_chunk, per_chunk * num_chunks)
    later = set(rng.sample(slots, min(len(slots), round(LATER_SHARE * per_chunk * num_chunks))))
    told_in: dict[tuple[str, str], int] = {}
    chunks: list[list[Told]] = [[] for _ in range(num_chunks)]
    for slot in range(per_chunk * num_chunks):
        index, is_later = slot // per_chunk, slot in later
        before = [fact for fact, last in told_in.items() if last < index]
        fewest = min((times[kind] for _, kind in before), default=0)  # else a kind's values come again
        fact = rng.choice([fact for fact in before if times[fact[1]] == fewest]) if is_later else next(new)
        person, kind = fact
        told_in[fact] = index
        times[kind] += 1
        chunks[index].append(Told(person=person, kind=kind, value=next(unused[kind]), is_later=is_later))
    return chunks


def _said(rng: random.Random, texts: InstanceTexts, told: Told) -> str:
    kind = texts.kinds[told.kind]
    return rng.choice(kind.later if told.is_later else kind.first).format(name=told.person, value=told.value)


def _question(question_id: str, told: Told, kind: AskedKind, line: str) -> Question:
    return Question(
        id=question_id,
        text=kind.question.format(name=told.person),
        answer=told.value,
        category=CHANGED_CATEGORY if told.is_later else CATEGORY,
        evidence=(line,),
    )
