"""Chunks, answers and banks for tests of the scheme memalpha."""

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from membuilder.schemes.memalpha.config import MemAlphaConfig, PromptsConfig
from membuilder.schemes.memalpha.scheme import WRITER, MemAlpha
from membuilder.schemes.scheme import Call, SessionResult
from membuilder.types import AgentUpdate, Bank, Dialogue, Entry, Session, Turn

DAY = datetime(2024, 1, 1)
LINES = ("Ann adopted a cat.", "The cat is called Miso.", "Ann moved to Rome.")


def words(texts: Sequence[str]) -> int:
    """A word is a token."""
    return sum(len(text.split()) for text in texts)


def chunk(*lines: str, number: int = 0, speaker: str = "Ann") -> Session:
    turns = tuple(
        Turn(id=f"C{number + 1}:{line}", speaker=speaker, role="user", text=text)
        for line, text in enumerate(lines, start=1)
    )
    return Session(id=f"C{number + 1}", index=number, timestamp=DAY + timedelta(days=number), turns=turns)


def instance(*chunks: Sequence[str], name: str = "squad-0") -> Dialogue:
    sessions = tuple(chunk(*lines, number=number) for number, lines in enumerate(chunks))
    return Dialogue(id=name, speakers=("Ann",), sessions=sessions, questions=())


def writer(prompts: PromptsConfig | None = None, **settings: Any) -> MemAlpha:
    return MemAlpha(MemAlphaConfig(prompts=prompts or PromptsConfig(), **settings), words)


def call(name: str, **arguments: Any) -> str:
    """One call as Qwen3's chat template writes it; `memory_type` without its ending."""
    if "memory_type" in arguments:
        arguments["memory_type"] += "_memory"
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n</tool_call>"


def insert(part: str, content: str) -> str:
    return call("memory_insert", memory_type=part, content=content)


def answered(
    scheme: MemAlpha, text: str, bank: Bank | None = None, session: Session | None = None, shown: Sequence[Entry] = ()
) -> SessionResult:
    """What becomes of a bank when the writer answers with a text."""
    session = session or chunk(*LINES)
    update = scheme.parse(WRITER, text, session)
    return scheme.apply(session, bank or Bank(), {WRITER: update}, {WRITER: tuple(shown)})


def calls_of(result: SessionResult) -> tuple[Call, ...]:
    return result.calls[WRITER]


def outcomes(result: SessionResult) -> list[str]:
    return [str(each.outcome) for each in calls_of(result)]


def read(scheme: MemAlpha, text: str, num_lines: int = 3) -> AgentUpdate:
    return scheme.parse(WRITER, text, chunk(*("a line",) * num_lines))


def bank_of(*texts: tuple[str, str], core: str = "") -> Bank:
    """A bank of (part, text) pairs: m1, m2, ..."""
    entries = tuple(
        Entry(id=f"m{number}", agent=part, text=text, session=0, timestamp=DAY, source_turns=())
        for number, (part, text) in enumerate(texts, start=1)
    )
    return Bank(core=core, entries=entries)
