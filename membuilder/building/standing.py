"""Tells which stored answers about a session stand when other answers are asked for again.

A bank that gains entries numbers those behind them anew, so the same entry is found by who wrote it about which session
as which of its entries there, and by its text.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from membuilder.bank.store_rows import Answer, StoredSession
from membuilder.schemes.scheme import Scheme, Shown
from membuilder.types import AgentUpdate, Bank, Entry

Answers = dict[str, tuple[AgentUpdate, Answer]]
"""Role -> what it wants to change, and what the store keeps of its answer, but for the entries shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    answers: Answers
    """Only of the roles that need not be asked."""
    shown: Shown
    """What these roles were shown, as it is called in the new bank."""


def standing_answers(stored: StoredSession, old: Bank, new: Bank, scheme: Scheme) -> Standing:
    """Return the answers that succeeded and still apply to `new`, the rebuilt bank before this session.

    `old` is the whole bank that was built with them.
    """
    same = _same_entries(old, new)
    answers, shown = {}, {}
    for role, answer in stored.answers.items():
        if answer.failure is None and all(entry_id in same for entry_id in answer.shown):
            shown[role] = tuple(same[entry_id] for entry_id in answer.shown)
            operations = tuple(replace(each, targets=_renamed(each.targets, same)) for each in answer.operations)
            answers[role] = AgentUpdate(operations=operations), replace(answer, operations=operations)
    updates = {role: AgentUpdate() for role in scheme.roles}
    updates |= {role: update for role, (update, _) in answers.items()}
    failures = scheme.apply(stored.session, new, updates, dict.fromkeys(scheme.roles, ()) | shown).failures
    stand = [role for role in answers if role not in failures]
    return Standing(answers={role: answers[role] for role in stand}, shown={role: shown[role] for role in stand})


def _renamed(targets: tuple[str, ...], same: Mapping[str, Entry]) -> tuple[str, ...]:
    return tuple(same[target].id if target in same else target for target in targets)


def _same_entries(old: Bank, new: Bank) -> dict[str, Entry]:
    """Id in `old` -> the same entry of `new`."""
    by_place = dict(zip(_places(new), new.entries, strict=True))
    pairs = zip(_places(old), old.entries, strict=True)
    return {entry.id: by_place[place] for place, entry in pairs if place in by_place}


def _places(bank: Bank) -> list[tuple[int, str, int, str]]:
    """Session, role, number among the entries of both, and text of each entry."""
    seen: Counter[tuple[int, str]] = Counter()
    places = []
    for entry in bank.entries:
        number = seen[entry.session, str(entry.agent)]
        seen[entry.session, str(entry.agent)] += 1
        places.append((entry.session, str(entry.agent), number, entry.text))
    return places
