"""Ways of building memory without a model, under the expert's budget: what a trained policy must beat."""

import random
from collections.abc import Callable, Sequence

from membuilder.apply import apply_update, quoted
from membuilder.types import Agent, AgentUpdate, Bank, Dialogue, Operation, OperationKind, Session


def random_turns(session: Session) -> list[int]:
    """Turn numbers in a random order that depends on the session alone."""
    numbers = list(range(1, len(session.turns) + 1))
    return random.Random(f"{session.id}-{session.turns[0].text}").sample(numbers, len(numbers))


def longest_turns(session: Session) -> list[int]:
    numbers = range(1, len(session.turns) + 1)
    return sorted(numbers, key=lambda number: -len(session.turns[number - 1].content))


def store_all(dialogue: Dialogue) -> Bank:
    """Every turn as an entry."""
    return _store(dialogue, [list(range(1, len(session.turns) + 1)) for session in dialogue.sessions])


def store_within(
    dialogue: Dialogue,
    order: Callable[[Session], list[int]],
    budgets: Sequence[int],
    count_tokens: Callable[[Sequence[str]], int],
) -> Bank:
    """Turns in the given order while they fit the session's budget of memory tokens (what the expert wrote there)."""
    chosen = []
    for session, budget in zip(dialogue.sessions, budgets, strict=True):
        kept, used = [], 0
        for number in order(session):
            cost = count_tokens([quoted(session, session.turns[number - 1])])
            if used + cost <= budget:
                kept.append(number)
                used += cost
        chosen.append(sorted(kept))
    return _store(dialogue, chosen)


def _store(dialogue: Dialogue, chosen: Sequence[Sequence[int]]) -> Bank:
    bank = Bank()
    for session, numbers in zip(dialogue.sessions, chosen, strict=True):
        operations = tuple(Operation(kind=OperationKind.ADD, quote=(number,)) for number in numbers)
        bank = apply_update(bank, session, Agent.EPISODIC, AgentUpdate(operations=operations), ()).bank
    return bank
