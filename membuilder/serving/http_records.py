"""What the memory server is sent and what it replies, as JSON. Times without a zone are UTC."""

import hashlib
from datetime import UTC, datetime
from typing import Annotated, Literal
from uuid import uuid4

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from membuilder.bank.retrieve import Retrieval
from membuilder.serving.service import Answered, Contents
from membuilder.serving.vault import Job
from membuilder.text import HALF_CHARACTER, is_text
from membuilder.types import Entry, Session, Turn

NAME = r"[A-Za-z0-9][A-Za-z0-9._@:+-]*"
"""What names users, sessions and entries: nothing that a path, a URL or a log line reads in another way."""
MAX_CHARACTERS, MAX_MESSAGES, MAX_FOUND = 32_000, 1_000, 100
MAX_QUERY = 2_000
"""Characters of what is searched for, which stands in an address."""


def _text(value: str) -> str:
    if not value.strip():
        raise ValueError("is blank")
    if not is_text(value):
        raise ValueError(HALF_CHARACTER)
    return value


def _in_utc(value: datetime) -> datetime:
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError as error:  # in the first or last hours that a calendar of four digits has
        raise ValueError("is no time in UTC") from error


Name = Annotated[str, StringConstraints(pattern=f"^{NAME}$", max_length=128)]
Words = Annotated[str, StringConstraints(min_length=1, max_length=MAX_CHARACTERS), AfterValidator(_text)]


class _Given(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False)


class Message(_Given):
    """One turn of a conversation."""

    role: Literal["user", "assistant"]
    content: Words
    name: Annotated[str, StringConstraints(min_length=1, max_length=128), AfterValidator(_text)] | None = None
    """The speaker, where it has a name; else its role."""


class NewSession(_Given):
    """A conversation to be remembered."""

    session_id: Name | None = None
    """The same id with the same words is the same session, however often it is sent. None: a new one each time."""
    timestamp: Annotated[datetime, AfterValidator(_in_utc)] | None = None
    """When it was had; None: now."""
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]

    def session(self) -> Session:
        """Return it as a session that is not numbered yet."""
        name, when = self.session_id or uuid4().hex, self.timestamp or datetime.now(UTC).replace(microsecond=0)
        turns = (
            Turn(id=f"{name}:{number}", speaker=each.name or each.role, role=each.role, text=each.content)
            for number, each in enumerate(self.messages, start=1)
        )
        return Session(id=name, index=0, timestamp=when, turns=tuple(turns))

    def digest(self) -> str:
        """Hash what was sent, which a session without a time does not tell any more."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class Question(_Given):
    question: Words
    k: Annotated[int, Field(ge=1, le=MAX_FOUND)] = 10
    asked_at: datetime | None = None


class Correction(_Given):
    text: Words


class JobReply(BaseModel):
    id: str
    session_id: str
    state: Literal["queued", "done", "failed"]
    detail: str
    attempts: int
    received_at: datetime

    @classmethod
    def of(cls, job: Job) -> "JobReply":
        return cls(
            id=job.id,
            session_id=job.session_id,
            state=job.state.value,
            detail=job.detail,
            attempts=job.attempts,
            received_at=job.received_at,
        )


class EntryReply(BaseModel):
    id: str
    part: str
    text: str
    session: int
    timestamp: datetime
    source_turns: list[str]
    supersedes: list[str]

    @classmethod
    def of(cls, entry: Entry) -> "EntryReply":
        return cls(
            id=entry.id,
            part=str(entry.agent),
            text=entry.text,
            session=entry.session,
            timestamp=entry.timestamp,
            source_turns=list(entry.source_turns),
            supersedes=list(entry.supersedes),
        )


class Found(BaseModel):
    entry: EntryReply
    score: float


class SearchReply(BaseModel):
    found: list[Found]

    @classmethod
    def of(cls, retrieval: Retrieval) -> "SearchReply":
        pairs = zip(retrieval.entries, retrieval.scores, strict=True)
        return cls(found=[Found(entry=EntryReply.of(entry), score=score) for entry, score in pairs])


class AnswerReply(BaseModel):
    answer: str
    core: str
    entries: list[EntryReply]
    """What the answer was given, the best first."""

    @classmethod
    def of(cls, answered: Answered) -> "AnswerReply":
        entries = [EntryReply.of(entry) for entry in answered.found.entries]
        return cls(answer=answered.text, core=answered.core, entries=entries)


class TurnReply(BaseModel):
    id: str
    speaker: str
    role: str
    text: str


class SessionReply(BaseModel):
    id: str
    timestamp: datetime
    turns: list[TurnReply]

    @classmethod
    def of(cls, session: Session) -> "SessionReply":
        turns = [
            TurnReply(id=each.id, speaker=each.speaker, role=each.role, text=each.content) for each in session.turns
        ]
        return cls(id=session.id, timestamp=session.timestamp, turns=turns)


class MemoryReply(BaseModel):
    core: str
    entries: list[EntryReply]
    current: list[str]
    """Ids of the entries that are neither deleted nor replaced."""
    sessions: list[SessionReply]

    @classmethod
    def of(cls, contents: Contents) -> "MemoryReply":
        return cls(
            core=contents.bank.core,
            entries=[EntryReply.of(entry) for entry in contents.bank.entries],
            current=[entry.id for entry in contents.bank.current()],
            sessions=[SessionReply.of(each.session) for each in contents.sessions],
        )


class EntryHistory(BaseModel):
    entry: EntryReply
    is_current: bool
    history: list[EntryReply]
    """What it replaced, itself, and what replaced it; the oldest first."""
    turns: list[TurnReply]
    """The turns it quotes."""

    @classmethod
    def of(cls, contents: Contents, entry: Entry, history: list[Entry]) -> "EntryHistory":
        session = SessionReply.of(contents.sessions[entry.session].session)
        return cls(
            entry=EntryReply.of(entry),
            is_current=entry in contents.bank.current(),
            history=[EntryReply.of(each) for each in history],
            turns=[turn for turn in session.turns if turn.id in entry.source_turns],
        )
