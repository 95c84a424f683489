"""What the server's benchmark asks and stores: sentences of made-up words, some said often and most seldom."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from itertools import accumulate

import numpy as np

from membuilder.bank.store_rows import StoredMemory, StoredSession
from membuilder.types import Agent, Entry, Session, Turn

NUM_WORDS, ENTRIES_PER_SESSION = 5_000, 20
START = datetime(2023, 1, 1, tzinfo=UTC)


@cache
def words() -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Words, and how often they are said, each with those before it: by Zipf's law."""
    draw = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "el", "or")]
    made = dict.fromkeys("".join(draw.choices(syllables, k=draw.randint(2, 4))) for _ in range(2 * NUM_WORDS))
    return tuple(made)[:NUM_WORDS], tuple(accumulate(1 / (rank + 5) for rank in range(NUM_WORDS)))


@lru_cache(20_000)
def sentence(number: int, length: int = 14) -> str:
    names, shares = words()
    return f"I bought {' '.join(random.Random(number).choices(names, cum_weights=shares, k=length))} last Tuesday."


def question(number: int) -> str:
    names, shares = words()
    return f"Where did I buy {' '.join(random.Random(-number - 1).choices(names, cum_weights=shares, k=6))}?"


def questions(count: int) -> list[str]:
    return [question(number) for number in range(count)]


def user_name(number: int) -> str:
    return f"user-{number}"


def memories(num_users: int, num_entries: int, vectors: np.ndarray) -> Iterator[tuple[str, StoredMemory]]:
    """A memory for each user; the entries of all are the sentences that the vectors are of, from the first on again."""
    for user in range(num_users):
        yield user_name(user), _memory(user * num_entries, num_entries, vectors)


def _memory(first: int, num_entries: int, vectors: np.ndarray) -> StoredMemory:
    sessions, entries = [], []
    for number in range(num_entries):
        text = sentence((first + number) % len(vectors))
        index, place = divmod(number, ENTRIES_PER_SESSION)
        when = START + timedelta(days=index)
        if place == 0:
            turns = tuple(
                Turn(
                    id=f"s{index}:{turn + 1}",
                    speaker="user",
                    role="user",
                    text=sentence((first + number + turn) % len(vectors)),
                )
                for turn in range(min(ENTRIES_PER_SESSION, num_entries - number))
            )
            session = Session(id=f"s{index}", index=index, timestamp=when, turns=turns)
            sessions.append(StoredSession(session=session, answers={}, core="", core_quotes=()))
        entries.append(
            Entry(
                id=f"m{number + 1}",
                agent=Agent.EPISODIC,
                text=f"[{when:%Y-%m-%d}] user: {text}",
                session=index,
                timestamp=when,
                source_turns=(f"s{index}:{place + 1}",),
                supersedes=(),
            )  # fmt: skip
        )
    rows = vectors[(first + np.arange(num_entries)) % len(vectors)]
    return StoredMemory(settings={}, sessions=tuple(sessions), entries=tuple(entries), vectors=rows, deleted={})
