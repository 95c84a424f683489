"""Takes turns, sessions, speakers and entries out of a stored memory, with all that came of them. Pure.

What came of removed turns: entries and core text that quote them, what names a removed speaker, and whatever holds a
word that only removed turns said. The raw answer of an agent goes where anything it asked for goes.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from membuilder.bank.lost_words import Lost, sentences_of, without, words_only_in
from membuilder.bank.store_rows import Answer, StoredMemory, StoredSession, role_of
from membuilder.text import quoted
from membuilder.types import Entry, Operation, OperationKind, Session

REMOVED = "(removed)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Forgotten:
    """A memory without what was to be forgotten, and what that was."""

    memory: StoredMemory
    turns: tuple[str, ...]
    sessions: tuple[str, ...]
    """Ids of the sessions of which nothing is left."""
    entries: tuple[str, ...]
    """By the ids that they had."""
    num_core_parts: int
    """Sentences and quotes taken out of the last core."""
    answers: tuple[str, ...]
    """The raw answers that are gone."""
    vectors: np.ndarray
    """Of the entries that are gone. # (N, D)"""
    lost: Lost
    """Tells what else is to go, in a cache."""
    first_changed: int
    """Index of the first session that other turns or entries would now come before, or stand in."""


def forget(
    memory: StoredMemory,
    *,
    turns: Collection[str] = (),
    sessions: Collection[int] = (),
    entries: Collection[str] = (),
    names: tuple[str, ...] = (),
) -> Forgotten:
    """Forget turns and entries by id, sessions by index, and whatever names one of `names`."""
    by_name = Lost(names=names)
    gone_turns = {
        turn.id
        for stored in memory.sessions
        for turn in stored.session.turns
        if turn.id in turns
        or stored.session.index in sessions
        or by_name.names_one(turn.speaker)
        or by_name.names_one(turn.content)
    }
    left = [_left(stored.session, gone_turns, sessions) for stored in memory.sessions]
    lost = Lost(names=names, words=words_only_in(_said(memory, gone_turns, True), _said(memory, gone_turns, False)))
    gone_entries = {
        entry.id
        for entry in memory.entries
        if entry.id in entries
        or left[entry.session] is None
        or not gone_turns.isdisjoint(entry.source_turns)
        or lost.in_text(entry.text)
    }
    cores = _cores(memory, gone_turns, left, lost)
    kept = [entry.text for entry in memory.entries if entry.id not in gone_entries]
    elsewhere = [*_said(memory, gone_turns, False), *kept, *(stored.core for stored, _ in cores)]
    texts = tuple(entry.text for entry in memory.entries if entry.id in entries)
    lost = replace(lost, words=lost.words | words_only_in(texts, elsewhere), texts=texts)
    return _Cut(memory, gone_turns, gone_entries, left, cores, lost).made()


class _Cut:
    """It takes out what was found to go, and names anew what stays."""

    def __init__(
        self,
        memory: StoredMemory,
        gone_turns: Collection[str],
        gone_entries: Collection[str],
        left: Sequence[Session | None],
        cores: Sequence[tuple[StoredSession, int]],
        lost: Lost,
    ):
        self._memory, self._gone_turns, self._gone_entries = memory, gone_turns, gone_entries
        self._left, self._cores, self._lost = left, cores, lost
        self._kept = [entry for entry in memory.entries if entry.id not in gone_entries]
        # a builder numbers its next entry by how many there are
        self._new_id = {entry.id: old.id for entry, old in zip(self._kept, memory.entries, strict=False)}
        self._known = {entry.id for entry in memory.entries}
        stay = [index for index, each in enumerate(left) if each is not None]
        self._new_index = {index: n for n, index in enumerate(stay)}
        self._written: dict[tuple[int, str], list[Entry]] = defaultdict(list)
        for entry in memory.entries:
            if answers := memory.sessions[entry.session].answers:
                self._written[entry.session, role_of(entry, answers)].append(entry)

    def made(self) -> Forgotten:
        memory, told, answers = self._memory, [], []
        for (stored, _), session in zip(self._cores, self._left, strict=True):
            texts = {}
            if session is not None:
                told.append(self._told(stored, session))
                texts = {role: answer.text for role, answer in told[-1].answers.items()}
            old = {role: answer.text for role, answer in stored.answers.items()}
            answers += [text for role, text in old.items() if text is not None and texts.get(role) is None]
        before = [stored.session for stored in memory.sessions]
        changed = [i for i, each in enumerate(self._left) if each is None or len(each.turns) < len(before[i].turns)]
        gone = [entry for entry in memory.entries if entry.id in self._gone_entries]
        first = min(changed or [entry.session + 1 for entry in gone] or [len(before)])
        is_kept = np.array([entry.id not in self._gone_entries for entry in memory.entries], dtype=bool)
        entries, vectors = tuple(map(self._entry, self._kept)), memory.vectors[is_kept]
        settings = _settings(memory, self._lost)
        return Forgotten(
            memory=StoredMemory(
                settings=settings, sessions=tuple(told), entries=entries, vectors=vectors, deleted=self._deleted()
            ),
            turns=tuple(turn for session in before for turn in _ids(session) if turn in self._gone_turns),
            sessions=tuple(session.id for session in before if self._left[session.index] is None),
            entries=tuple(entry.id for entry in gone),
            num_core_parts=self._cores[-1][1] if self._cores else 0,
            answers=tuple(answers),
            vectors=memory.vectors[~is_kept],
            lost=self._lost,
            first_changed=sum(index < first for index in self._new_index),
        )

    def _entry(self, entry: Entry) -> Entry:
        session = self._new_index[entry.session]
        return replace(entry, id=self._new_id[entry.id], session=session, supersedes=self._renamed(entry.supersedes))

    def _deleted(self) -> dict[str, int]:
        """Return what stays deleted: not what an entry replaced that goes, nor what a session took out that goes."""
        replaced, still = set(), set()
        for entry in self._memory.entries:
            replaced.update(entry.supersedes)
            if entry.id not in self._gone_entries:
                still.update(entry.supersedes)
        return {
            self._new_id[entry]: self._new_index[session]
            for entry, session in self._memory.deleted.items()
            if entry in self._new_id and session in self._new_index and (entry in still or entry not in replaced)
        }

    def _renamed(self, ids: Iterable[str]) -> tuple[str, ...]:
        return tuple(self._new_id[each] for each in ids if each in self._new_id)

    def _told(self, stored: StoredSession, session: Session) -> StoredSession:
        """Return what an edited store tells of a session that stays."""
        answers = {role: self._answer(stored.session, role, answer) for role, answer in stored.answers.items()}
        session = replace(session, index=self._new_index[session.index])
        return replace(stored, session=session, answers=answers)

    def _answer(self, session: Session, role: str, answer: Answer) -> Answer:
        written = list(self._written[session.index, role])
        found = [self._operation(each, session, written, answer.shown) for each in answer.operations]
        operations = tuple(each for each in found if each is not None)
        text, failure = answer.text, answer.failure
        if operations != answer.operations or (text is not None and self._lost.in_text(text)):
            text = None
        if failure is not None and self._lost.in_text(failure.detail):
            failure = replace(failure, detail=REMOVED)
        # what was not applied is a part of the text, and goes with it but for its kind
        dropped = [
            each if text is not None else replace(each, operation=REMOVED, detail=REMOVED) for each in answer.dropped
        ]
        changed = {"text": text, "operations": operations, "failure": failure, "dropped": tuple(dropped)}
        return replace(answer, **changed, shown=self._renamed(answer.shown))

    def _operation(
        self, operation: Operation, session: Session, written: list[Entry], shown: Iterable[str]
    ) -> Operation | None:
        """Return an operation as it reads now; None where it goes. It takes the entry it wrote out of `written`."""
        ids = _ids(session)
        quote = tuple(ids[n - 1] for n in operation.quote if n <= len(ids))
        entry = next((each for each in written if _wrote(operation, quote, each)), None)
        if entry is not None:
            written.remove(entry)
            is_gone = entry.id in self._gone_entries
        elif operation.kind is OperationKind.DELETE and operation.targets:
            (target,) = operation.targets
            return replace(operation, targets=(self._new_id[target],)) if target in self._new_id else None
        else:
            said = (operation.text or "", operation.old_text or "", *operation.targets)
            is_gone = not self._gone_turns.isdisjoint(quote) or any(map(self._lost.in_text, said))
        if is_gone:
            return None
        stay = [turn for turn in ids if turn not in self._gone_turns]
        if quote:
            operation = replace(operation, quote=tuple(stay.index(turn) + 1 for turn in quote))
        # a label counts the entries shown, and other targets may be ids or texts of what is gone
        is_moved = not self._gone_entries.isdisjoint(shown) or not self._known.isdisjoint(operation.targets)
        if entry is not None and (is_moved or any(map(self._lost.in_text, operation.targets))):
            operation = replace(operation, targets=self._renamed(entry.supersedes))
        return operation


def _wrote(operation: Operation, quote: tuple[str, ...], entry: Entry) -> bool:
    return quote == entry.source_turns if quote else operation.text == entry.text


def _ids(session: Session) -> list[str]:
    return [turn.id for turn in session.turns]


def _left(session: Session, gone_turns: Collection[str], sessions: Collection[int]) -> Session | None:
    """Return what is left of a session; None where nothing is, though something was."""
    turns = tuple(turn for turn in session.turns if turn.id not in gone_turns)
    return None if session.index in sessions or (session.turns and not turns) else replace(session, turns=turns)


def _said(memory: StoredMemory, gone_turns: Collection[str], is_gone: bool) -> list[str]:
    """Return what the removed turns say, or what all others do, with their speakers and dates."""
    sessions = [stored.session for stored in memory.sessions]
    if is_gone:
        return [turn.content for session in sessions for turn in session.turns if turn.id in gone_turns]
    return [quoted(session, turn) for session in sessions for turn in session.turns if turn.id not in gone_turns]


def _cores(
    memory: StoredMemory, gone_turns: Collection[str], left: Sequence[Session | None], lost: Lost
) -> list[tuple[StoredSession, int]]:
    """Return each session with the core that is left after it, and how many parts of the core are gone there."""
    quotes, sentences, before = [], set(), ""
    for stored, session in zip(memory.sessions, left, strict=True):
        gone = [turn for turn in stored.session.turns if turn.id in gone_turns]
        quotes += [quoted(stored.session, turn) for turn in gone]
        if session is None:
            sentences |= set(sentences_of(stored.core)) - set(sentences_of(before))
        before = stored.core
    cores = []
    for stored in memory.sessions:
        core, num_gone = without(stored.core, quotes, sentences, lost)
        standing = tuple(each for each in stored.core_quotes if each.turn_id not in gone_turns and each.text in core)
        cores.append((replace(stored, core=core, core_quotes=standing), num_gone))
    return cores


def _settings(memory: StoredMemory, lost: Lost) -> dict[str, Any]:
    speakers = [each for each in memory.settings["speakers"] if not lost.names_one(each)]
    return dict(memory.settings) | {"speakers": speakers}
