"""Ways of building memory without a model, under the expert's budget: what a trained policy must beat."""

import random
from collections.abc import Callable, Collection, Sequence

from membuilder.text import quoted
from membuilder.types import Agent, Bank, Dialogue, Entry, Turn


def random_turns(dialogue: Dialogue) -> list[Turn]:
    """Shuffle all turns in an order that depends on the dialogue alone."""
    turns = _turns(dialogue)
    return random.Random(f"{dialogue.id}-{turns[0].text}").sample(turns, len(turns))


def longest_turns(dialogue: Dialogue) -> list[Turn]:
    """Order all turns, the longest first."""
    return sorted(_turns(dialogue), key=lambda turn: -len(turn.content))


def part_of_turns(parts: Sequence[str]) -> str:
    """Return the part of a memory that turns are stored in, out of those it has: an entry of another is not found."""
    lists = [part for part in parts if part != Agent.CORE] or list(parts)
    return Agent.EPISODIC if Agent.EPISODIC in lists else lists[0]


def store_all(dialogue: Dialogue, part: str = Agent.EPISODIC) -> Bank:
    """Store every turn as an entry."""
    return _store(dialogue, {turn.id for turn in _turns(dialogue)}, part)


def store_within(
    dialogue: Dialogue,
    order: Sequence[Turn],
    budget: int,
    count_tokens: Callable[[Sequence[str]], int],
    part: str = Agent.EPISODIC,
) -> Bank:
    """Store turns in the given order while they fit the budget of memory tokens, which is what the expert wrote."""
    session_of = {turn.id: session for session in dialogue.sessions for turn in session.turns}
    kept, used = set(), 0
    for turn in order:
        cost = count_tokens([quoted(session_of[turn.id], turn)])
        if used + cost <= budget:
            kept.add(turn.id)
            used += cost
    return _store(dialogue, kept, part)


def _turns(dialogue: Dialogue) -> list[Turn]:
    return [turn for session in dialogue.sessions for turn in session.turns]


def _store(dialogue: Dialogue, kept: Collection[str], part: str) -> Bank:
    told = [(session, turn) for session in dialogue.sessions for turn in session.turns if turn.id in kept]
    entries = (
        Entry(
            id=f"m{number}",
            agent=part,
            text=quoted(session, turn),
            session=session.index,
            timestamp=session.timestamp,
            source_turns=(turn.id,),
        )
        for number, (session, turn) in enumerate(told, start=1)
    )
    return Bank(entries=tuple(entries))
