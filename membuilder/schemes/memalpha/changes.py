"""The calls of one answer applied, one by one: bank in, bank and the outcome of every call out.

A call that fails changes nothing, and those behind it run. An entry that is replaced or removed leaves the memory and
stays in the bank as history; its id is never given again, and names its newest version until the answer ends.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple

from membuilder.bank.okapi import Okapi, positive_weights, terms_of
from membuilder.schemes.memalpha.config import CallFormat, CoreOverLimit, MemAlphaConfig
from membuilder.schemes.memalpha.tools import WORDS, Refused, call_of
from membuilder.schemes.scheme import Call, CallOutcome
from membuilder.text import on_one_line, quoted
from membuilder.types import (
    AgentUpdate,
    Bank,
    CoreQuote,
    CountTokens,
    Entry,
    Operation,
    OperationKind,
    Session,
    Turn,
    UnreadCall,
)

CUT_NOTE = "[cut]"
"""Stands at the end of a core whose end was dropped."""
MOST_FOUND = 20
"""Entries that one search finds at most."""


class Applied(NamedTuple):
    bank: Bank
    calls: tuple[Call, ...]
    """Every call of the answer in its order, also those that could not be read."""
    results: tuple[dict[str, Any], ...]
    """What the writer is told of each."""


class _Done(NamedTuple):
    """What came of an operation that ran."""

    text: str | None = None
    entry: str | None = None
    found: tuple[dict[str, Any], ...] = ()


def apply_calls(
    bank: Bank,
    session: Session,
    update: AgentUpdate,
    shown: Sequence[Entry],
    config: MemAlphaConfig,
    count_tokens: CountTokens,
) -> Applied:
    """Apply what an answer about a chunk asks for; labels of the compact format count the entries shown."""
    draft = _Draft(bank, session, shown, config, count_tokens)
    calls, results = [], []
    for item in update.in_order():
        if isinstance(item, UnreadCall):
            name, arguments, came = item.name, item.arguments, Refused(CallOutcome(item.outcome), item.detail)
        else:
            name, arguments = call_of(item)
            came = draft.apply(item)
        if isinstance(came, Refused):
            calls.append(Call(name=name, arguments=arguments, outcome=came.outcome, detail=came.detail))
            results.append({"status": str(came.outcome), "detail": came.detail})
        else:
            ran = CallOutcome.RAN
            calls.append(Call(name=name, arguments=arguments, outcome=ran, text=came.text, entry=came.entry))
            results.append({"status": "ok"} | _told(item, came))
    return Applied(draft.bank(bank), tuple(calls), tuple(results))


def _told(operation: Operation, done: _Done) -> dict[str, Any]:
    if operation.kind is OperationKind.SEARCH:
        return {"search_method": WORDS, "results": list(done.found)}
    return {} if done.entry is None else {"memory_id": done.entry}


class _Draft:
    """The memory while the calls of one answer change it."""

    def __init__(
        self,
        bank: Bank,
        session: Session,
        shown: Sequence[Entry],
        config: MemAlphaConfig,
        count_tokens: CountTokens,
    ):
        self._session, self._config, self._count_tokens = session, config, count_tokens
        self._core, self._quotes = bank.core, bank.core_quotes
        self._entries, self._deleted = list(bank.entries), list(bank.deleted)
        self._current = {entry.id: entry for entry in bank.current()}
        self._texts = {(entry.agent, entry.text) for entry in self._current.values()}
        self._ids = {entry.id for entry in bank.entries}
        self._numbers = count(len(bank.entries) + 1)
        self._newer: dict[str, str] = {}
        """Id -> the id of the entry that replaced it in this answer."""
        is_compact = config.response_format is CallFormat.COMPACT
        self._labels = {f"e{place}": entry.id for place, entry in enumerate(shown, start=1)} if is_compact else {}

    def bank(self, before: Bank) -> Bank:
        entries, deleted = tuple(self._entries), tuple(self._deleted)
        return replace(before, core=self._core, core_quotes=self._quotes, entries=entries, deleted=deleted)

    def apply(self, operation: Operation) -> _Done | Refused:
        if operation.kind is OperationKind.SEARCH:
            return self._search(operation)
        turns = [self._session.turns[number - 1] for number in operation.quote]
        text = "\n".join(quoted(self._session, turn) for turn in turns) if turns else operation.text
        if operation.kind is OperationKind.REWRITE:
            return self._rewrite_core(text or "", turns)
        if operation.kind is OperationKind.ADD:
            return self._write(operation.part or "", text or "", turns, ())
        if not operation.targets:  # deleting needs no entry where the part is the core
            return self._empty_core()
        entry = self._meant(operation.targets[0], operation.part)
        if isinstance(entry, Refused):
            return entry
        if operation.kind is OperationKind.DELETE:
            self._remove(entry)
            return _Done(entry=entry.id)
        return self._write(entry.agent, text or "", turns, (entry,))

    def _write(self, part: str, text: str, turns: Sequence[Turn], replaced: tuple[Entry, ...]) -> _Done | Refused:
        if (part, text) in self._texts:
            return Refused(CallOutcome.DUPLICATE, f"the {part} memory has this text already")
        entry = Entry(
            id=next(name for name in map("m{}".format, self._numbers) if name not in self._ids),
            agent=part,
            text=text,
            session=self._session.index,
            timestamp=self._session.timestamp,
            source_turns=tuple(turn.id for turn in turns),
            supersedes=tuple(old.id for old in replaced),
        )
        for old in replaced:
            self._remove(old)
            self._newer[old.id] = entry.id
        self._entries.append(entry)
        self._ids.add(entry.id)
        self._current[entry.id] = entry
        self._texts.add((part, text))
        return _Done(text=text, entry=entry.id)

    def _remove(self, entry: Entry) -> None:
        del self._current[entry.id]
        self._texts.discard((entry.agent, entry.text))
        self._deleted.append(entry.id)

    def _meant(self, target: str, part: str | None) -> Entry | Refused:
        """Return the entry that a call names: by its label, its id, or its whole text."""
        name = self._labels.get(target, target)
        while name in self._newer:
            name = self._newer[name]
        if name in self._ids:
            found = [self._current[name]] if name in self._current else []
            if not found:
                return Refused(CallOutcome.UNKNOWN_ID, f"{name} is no longer in the memory")
        else:
            line = on_one_line(target)
            found = [each for each in self._current.values() if part in (None, each.agent)]
            found = [each for each in found if on_one_line(each.text) == line]
        if len(found) > 1:
            return Refused(CallOutcome.AMBIGUOUS_ID, f"{len(found)} entries say {target[:80]!r}")
        if not found:
            return Refused(CallOutcome.UNKNOWN_ID, f"no entry is {target[:80]!r}")
        entry = found[0]
        if entry.agent not in self._config.parts:
            return Refused(CallOutcome.DISABLED_PART, f"this memory has no part {entry.agent!r}")
        if part not in (None, entry.agent):
            return Refused(CallOutcome.UNKNOWN_ID, f"{entry.id} is an entry of the {entry.agent} memory")
        return entry

    def _rewrite_core(self, text: str, turns: Sequence[Turn]) -> _Done | Refused:
        limit = self._config.core_limit_tokens
        if (tokens := self._count_tokens([text])) > limit:
            cut = None if self._config.core_over_limit is CoreOverLimit.REFUSE else self._cut(text, limit)
            if cut is None:
                detail = f"the core would have {tokens} tokens; it may have {limit}"
                return Refused(CallOutcome.CORE_LIMIT, detail)
            text = cut
        if text == self._core:
            return Refused(CallOutcome.DUPLICATE, "the core says this already")
        quotes = (CoreQuote(turn_id=turn.id, text=f"{turn.speaker}: {turn.content}") for turn in turns)
        self._quotes = tuple(quote for quote in dict.fromkeys((*self._quotes, *quotes)) if quote.text in text)
        self._core = text
        return _Done(text=text)

    def _cut(self, text: str, limit: int) -> str | None:
        """Return as many words of a text as fit with a note behind them; None where not even the note does."""
        words = text.split()

        def shortened(number: int) -> str:
            return " ".join([*words[:number], CUT_NOTE])

        def tokens(number: int) -> int:
            return self._count_tokens([shortened(number)])

        number = bisect_right(range(len(words) + 1), limit, key=tokens) - 1
        while number >= 0 and tokens(number) > limit:  # more words may be fewer tokens, which misleads the search
            number -= 1
        return None if number < 0 else shortened(number)

    def _empty_core(self) -> _Done | Refused:
        if not self._core:
            return Refused(CallOutcome.UNKNOWN_ID, "the core is empty already")
        self._core, self._quotes = "", ()
        return _Done()

    def _search(self, operation: Operation) -> _Done:
        entries = [each for each in self._current.values() if each.agent == operation.part]
        index = Okapi([terms_of(entry.text, with_characters=True) for entry in entries], positive_weights)
        scores = index.scores(terms_of(operation.text or "")).tolist()
        best = sorted(zip(scores, entries, strict=True), key=lambda pair: -pair[0])[:MOST_FOUND]
        # 0 is the score of what shares no word with the query
        return _Done(found=tuple({"memory_id": each.id, "content": each.text} for score, each in best if score))
