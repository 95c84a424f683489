"""Ways of building memory without a model, under the expert's budget: what a trained policy must beat."""

import random
from collections.abc import Callable, Collection, Sequence

from membuilder.schemes.four_agents.apply import apply_update
from membuilder.text import quoted
from membuilder.types import Agent, AgentUpdate, Bank, Dialogue, Operation, OperationKind, Turn


def random_turns(dialogue: Dialogue) -> list[Turn]:
    """Shuffle all turns in an order that depends on the dialogue alone."""
    turns = _turns(dialogue)
    return random.Random(f"{dialogue.id}-{turns[0].text}").sample(turns, len(turns))


def longest_turns(dialogue: Dialogue) -> list[Turn]:
    """Order all turns, the longest first."""
    return sorted(_turns(dialogue), key=lambda turn: -len(turn.content))


def store_all(dialogue: Dialogue) -> Bank:
    """Store every turn as an entry."""
    return _store(dialogue, {turn.id for turn in _turns(dialogue)})


def store_within(
    dialogue: Dialogue, order: Sequence[Turn], budget: int, count_tokens: Callable[[Sequence[str]], int]
) -> Bank:
    """Store turns in the given order while they fit the budget of memory tokens, which is what the expert wrote."""
    session_of = {turn.id: session for session in dialogue.sessions for turn in session.turns}
    kept, used = set(), 0
    for turn in order:
        cost = count_tokens([quoted(session_of[turn.id], turn)])
        if used + cost <= budget:
            kept.add(turn.id)
            used += cost
    return _store(dialogue, kept)


def _turns(dialogue: Dialogue) -> list[Turn]:
    return [turn for session in dialogue.sessions for turn in session.turns]


def _store(dialogue: Dialogue, kept: Collection[str]) -> Bank:
    bank = Bank()
    for session in dialogue.sessions:
        numbers = [number for number, turn in enumerate(session.turns, start=1) if turn.id in kept]
        operations = tuple(Operation(kind=OperationKind.ADD, quote=(number,)) for number in numbers)
        bank = apply_update(bank, session, Agent.EPISODIC, AgentUpdate(operations=operations), ()).bank
    return bank
