"""Reads and writes the Parquet files of Memalpha and MemoryAgentBench: one instance a row, in eight columns.

An instance is a dialogue, a chunk of it a session, a line of a chunk a turn:

- Turn ids count chunks and lines from 1: `C3:2` is the second line of the third chunk. A line is kept word for word. A
  blank line is no turn; it stays at the end of the turn before it, so that the turns joined again are the chunk.
- A line that begins with `<Ann>` is said by Ann, and so are those after it up to the next such mark. Lines before the
  first are said by `text`. `<User>` is the user, else who is named first; everybody else is the assistant.
- A session has the first date of its chunk, such as 2024-01-31 or 2023/05/04 (Thu) 09:30; without one it comes the day
  after the chunk before it, the first on 2024-01-01.
- The category of a question is its `question_type`, where the file gives one, else the row's data_source.
- Beside `question` and `answer` (a text or a list of texts, all of them right) a question may have keys that the
  published files have not: `evidence` (turn ids), `asked_at` (ISO 8601), `answerable` and `question_type`.

Columns hold JSON inside Parquet: `chunks`, `questions_and_answers` and `metadata`, whose `metadata` is JSON once more
in merged files. `read_rows` and `write_rows` keep every column byte for byte.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence, Set
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from membuilder.datasets import parquet
from membuilder.datasets.files import FILE
from membuilder.datasets.parsing import each_dialogue, read_time, refuse_repeats
from membuilder.datasets.typed import FieldError, Text, convert, located
from membuilder.errors import DataError
from membuilder.text import in_short
from membuilder.types import Dialogue, Question, Session, Turn

MAX_QUESTIONS = 100
COLUMNS = {"instance_id": int, "prompt": str, "chunks": str, "questions_and_answers": str}
COLUMNS |= {"data_source": str, "metadata": str, "num_chunks": int, "num_questions": int}
FIRST_DAY = datetime(2024, 1, 1)
USER, UNNAMED = "User", "text"
"""The second is the speaker of lines before the first mark."""
_MARK = re.compile(r"<([^\W\d_a-z][^<>\n]{0,59})>")
"""It begins with a capital, or in a script without them: `<div>` is somebody's HTML."""
_DATE = re.compile(r"\b(\d{4})[-/](\d{1,2})[-/](\d{1,2})(?: \(\w+\))?(?:[ T](\d{1,2}):(\d\d))?")


class Row(Struct, frozen=True, kw_only=True):
    """One instance as the file holds it."""

    instance_id: int
    """Its position in its file."""
    prompt: str
    """What the published baselines are told first; no memory agent sees it."""
    chunks: str
    questions_and_answers: str
    data_source: Text
    metadata: str
    num_chunks: int
    num_questions: int


class _Asked(Struct):
    question: Text
    answer: Text | Annotated[list[Text], Meta(min_length=1)]
    evidence: list[Text] = []
    asked_at: Text | None = None
    answerable: bool = True
    question_type: Text | None = None


def load(path: str | Path) -> list[Dialogue]:
    """Return a dialogue for each row; DataError names the file, the row (from 0) and the column at fault."""
    return list(stream(path))


def stream(path: str | Path) -> Iterator[Dialogue]:
    """Yield what `load` returns, a few rows in memory at a time."""
    dialogue = None
    for dialogue in each_dialogue(enumerate(_raw_rows(Path(path))), path, Row, "data_source", dialogue_of, "row"):
        yield dialogue
    if dialogue is None:
        raise DataError(path, FILE, "rows", "has none; expected one instance a row")


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows with their columns as they stand there. Raises DataError for wrong columns."""
    for number, raw in enumerate(_raw_rows(path)):
        with located(path, f"row {number}"):
            yield convert(Row, raw)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as they come, a few in memory at a time; the file is there whole or not at all."""
    parquet.write_rows(path, map(msgspec.to_builtins, rows), COLUMNS)


def dialogue_of(row: Row) -> Dialogue:
    """Read one row as a dialogue. Raises FieldError where a column does not hold what it must."""
    chunks = convert(Annotated[list[Text], Meta(min_length=1)], _json(row.chunks, "chunks"), "chunks")
    asked = convert(list[_Asked], _json(row.questions_and_answers, "questions_and_answers"), "questions_and_answers")
    if len(asked) > MAX_QUESTIONS:
        raise FieldError("questions_and_answers", f"has {len(asked)} questions; at most {MAX_QUESTIONS} are allowed")
    for column, counted, found in (("chunks", row.num_chunks, chunks), ("questions", row.num_questions, asked)):
        if counted != len(found):
            raise FieldError(f"num_{column}", f"says {counted}, but there are {len(found)}; correct one of the two")
    sub_source(row)
    name = f"{row.data_source}-{row.instance_id}"
    sessions = tuple(_sessions(chunks))
    turn_ids = {turn.id for session in sessions for turn in session.turns}
    questions = tuple(_question(each, i, name, row.data_source, turn_ids) for i, each in enumerate(asked))
    speakers = dict.fromkeys(turn.speaker for session in sessions for turn in session.turns)
    return Dialogue(id=name, speakers=tuple(speakers), sessions=sessions, questions=questions)


def row_of(dialogue: Dialogue, *, instance_id: int, data_source: str, prompt: str, metadata: str) -> Row:
    """Write a dialogue as a row, whose `dialogue_of` it is again. Raises FieldError for a question without a gold."""
    chunks = ["\n".join(turn.content for turn in session.turns) for session in dialogue.sessions]
    asked = [_asked(question, data_source) for question in dialogue.questions]
    return Row(
        instance_id=instance_id,
        prompt=prompt,
        chunks=json.dumps(chunks),
        questions_and_answers=json.dumps(asked),
        data_source=data_source,
        metadata=metadata,
        num_chunks=len(chunks),
        num_questions=len(asked),
    )


def source_of(dialogue: Dialogue) -> str:
    """Return the data_source of a dialogue that `dialogue_of` made."""
    return dialogue.id.rpartition("-")[0]


def sub_source(row: Row) -> str:
    """Return the sub_source that a row's metadata tell; else its data_source."""
    return convert(Text, _metadata(row.metadata).get("sub_source", row.data_source), "metadata.sub_source")


def samples_of(path: Path) -> dict[str, list[str]]:
    """Return the published ids of the samples that each dialogue is made of, where a file's metadata tell any."""
    found = {}
    columns = ("data_source", "instance_id", "metadata")
    for number, raw in enumerate(_raw_rows(path, columns) if path.suffix == ".parquet" else ()):
        with located(path, f"row {number}"):
            samples = convert(list[str], _metadata(convert(str, raw["metadata"], "metadata")).get("samples", []))
        if samples:
            found[f"{raw['data_source']}-{raw['instance_id']}"] = samples
    return found


def turn_spans(chunk: str) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text) of each turn of a chunk; the texts joined by line breaks are the chunk."""
    lines = chunk.split("\n")
    spoken = [number for number, line in enumerate(lines, start=1) if line.strip()]
    bounds = [0, *(number - 1 for number in spoken[1:]), len(lines)]
    for number, start, stop in zip(spoken, bounds, bounds[1:], strict=False):
        yield number, "\n".join(lines[start:stop])


def turn_id(chunk: int, line: int) -> str:
    """Name a line; both numbers count from 1."""
    return f"C{chunk}:{line}"


def _sessions(chunks: Sequence[str]) -> Iterator[Session]:
    user, time = None, FIRST_DAY - timedelta(days=1)
    if any(line.startswith(f"<{USER}>") for chunk in chunks for line in chunk.split("\n")):
        user = USER
    for index, chunk in enumerate(chunks):
        turns, speaker = [], UNNAMED
        for line, text in turn_spans(chunk):
            if mark := _MARK.match(text.lstrip("\n")):
                speaker = mark[1]
                user = user or speaker
            role = "user" if speaker in (user, UNNAMED) else "assistant"
            turns.append(Turn(id=turn_id(index + 1, line), speaker=speaker, role=role, text=text))
        time = _date(chunk.strip().partition("\n")[0]) or time + timedelta(days=1)
        yield Session(id=f"C{index + 1}", index=index, timestamp=time, turns=tuple(turns))


def _date(line: str) -> datetime | None:
    if not (found := _DATE.search(line)):
        return None
    try:
        return datetime(*(int(part) for part in found.groups(default="0")))
    except ValueError:  # such as the 31st of February: a number of another kind
        return None


def _question(raw: _Asked, index: int, name: str, data_source: str, turn_ids: Set[str]) -> Question:
    field = f"questions_and_answers[{index}]"
    refuse_repeats(raw.evidence, f"{field}.evidence")
    if unknown := next((each for each in raw.evidence if each not in turn_ids), None):
        raise FieldError(
            f"{field}.evidence", f"{unknown!r} is no line of a chunk; C1:2 is the second line of the first"
        )
    answer, *others = [raw.answer] if isinstance(raw.answer, str) else raw.answer
    asked_at = raw.asked_at and read_time(raw.asked_at, None, "2024-03-15T09:30 (ISO 8601)", f"{field}.asked_at")
    return Question(
        id=f"{name}_q{index + 1}",
        text=raw.question,
        answer=answer,
        category=raw.question_type or data_source,
        evidence=tuple(raw.evidence),
        asked_at=asked_at,
        answerable=raw.answerable,
        other_answers=None if isinstance(raw.answer, str) else tuple(others),
    )


def _asked(question: Question, data_source: str) -> dict[str, Any]:
    if question.answer is None:
        raise FieldError(f"questions ({question.id})", "has no gold answer, which every question of these files has")
    answer = question.answer if question.other_answers is None else list(question.golds)
    more: dict[str, Any] = {"evidence": list(question.evidence)} if question.evidence else {}
    if question.asked_at is not None:
        more["asked_at"] = question.asked_at.isoformat()
    if not question.answerable:
        more["answerable"] = False
    if question.category != data_source:
        more["question_type"] = question.category
    return {"question": question.text, "answer": answer, **more}


def _raw_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    found = parquet.column_types(path)
    absent = ", ".join(name for name in COLUMNS if name not in found)
    strange = ", ".join(name for name in found if name not in COLUMNS)
    for names, problem in ((absent, "is missing"), (strange, "is a column that these files have not")):
        if names:
            raise DataError(path, FILE, names, f"{problem}; expected {', '.join(COLUMNS)}")
    return parquet.read_rows(path, columns)


def _metadata(text: str) -> dict[str, Any]:
    """Read metadata, which stand one level deeper in merged files."""
    told = _object(text, "metadata")
    if "metadata" not in told:
        return told
    return _object(convert(str, told["metadata"], "metadata.metadata"), "metadata.metadata")


def _object(text: str, field: str) -> dict[str, Any]:
    return convert(dict, _json(text, field), field)


def _json(text: str, field: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # huge ints and deep nesting raise these too
        raise FieldError(field, f"is not one JSON document ({in_short(error)})") from error
