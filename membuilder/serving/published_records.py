"""What the endpoints of Mem-alpha's published server are sent and what they reply (`published.py`)."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, model_validator

from membuilder.text import HALF_CHARACTER, is_text
from membuilder.types import Agent, Bank, Entry

MAX_QUESTIONS, MAX_ROUNDS = 5_000, 20


def _pairs(given: list[dict[str, str | int | float]]) -> list[tuple[str, str]]:
    pairs = [(name, str(text)) for entry in given for name, text in entry.items()]
    if not all(is_text(part) for pair in pairs for part in pair):
        raise ValueError(HALF_CHARACTER)
    return pairs


Entries = Annotated[list[dict[str, str | int | float]], AfterValidator(_pairs)]


class PublishedMemory(BaseModel):
    core: str | None = None
    semantic: Entries = []
    episodic: Entries = []

    def bank(self) -> Bank:
        now = datetime.now(UTC)
        told = [(Agent.SEMANTIC, pair) for pair in self.semantic] + [(Agent.EPISODIC, pair) for pair in self.episodic]
        entries = (
            Entry(id=f"m{number}", agent=part, text=text, session=0, timestamp=now, source_turns=())
            for number, (part, (_, text)) in enumerate(told)
            if text.strip()
        )
        return Bank(core=self.core or "", entries=tuple(entries))


class Batch(BaseModel):
    memories: list[PublishedMemory]
    questions: list[list[str]]
    """Of each memory."""

    @model_validator(mode="after")
    def _check(self) -> "Batch":
        if len(self.memories) != len(self.questions):
            raise ValueError("as many lists of questions as memories")
        if sum(map(len, self.questions)) > MAX_QUESTIONS:
            raise ValueError(f"at most {MAX_QUESTIONS} questions")
        return self


class SearchingBatch(Batch):
    max_iterations: Annotated[int, Field(ge=1, le=MAX_ROUNDS)] = 5


class Calls(BaseModel):
    batch: list[list[Any]]


class Results(BaseModel):
    result: list[list[str | None]]
    errors: list[list[str | None]]
    """Why a result is null."""
    status: Literal["success", "partial"]
    processed_count: int


class SearchedResults(Results):
    search_iterations: list[list[list[dict[str, Any]]]]


class Analyses(BaseModel):
    scores: list[float | None]
    """Mean of each group over the calls that could be judged; null where none of them could."""
    detailed_analyses: list[list[dict[str, Any]]]
    total_processed: int
    total_items: int
    total_groups: int
    llm_processed: int
    status: Literal["success", "partial"]
