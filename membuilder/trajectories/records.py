"""Makes training records, and keeps them in files: JSON Lines, or Parquet with nested fields as JSON strings.

records = sft_records(trajectory)
write_records(Path("sft.jsonl"), records, SFTRecord)
read_records(Path("sft.jsonl"), SFTRecord) == records
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from membuilder.datasets.files import FILE, read_lines
from membuilder.datasets.parquet import read_table, write_table
from membuilder.datasets.typed import typed
from membuilder.errors import ConfigError, DataError
from membuilder.files import write_atomic
from membuilder.schemes.four_agents.scheme import FourAgents
from membuilder.schemes.scheme import Prompt, text_of
from membuilder.text import quoted
from membuilder.trajectories.published_layout import STATES
from membuilder.trajectories.trajectory import Trajectory
from membuilder.trajectories.turns import LaterAnswer
from membuilder.types import Bank, Question, Session

PARQUET = ".parquet"
CHARS_PER_TOKEN = 4
"""The published estimate, for the published limit; training counts real tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SFTRecord:
    """One role's prompt and the expert's answer. Fields that a published file does not tell are None."""

    prompt: str
    """What stands in the one user message; empty where `chat` says more."""
    completion: str
    """The answer in the form that the scheme reads: for a core APPEND what is appended, and no text twice."""
    agent: str | None = None
    """The role."""
    dialogue: str | None = None
    session: int | None = None
    chat: Prompt | None = None
    """Messages, and tools for the model's chat template to write."""
    later: tuple[LaterAnswer, ...] = ()
    """Further answers to the same session, each behind what the role was told."""

    @property
    def asked(self) -> str | Prompt:
        return self.prompt if self.chat is None else self.chat

    @property
    def estimated_tokens(self) -> int:
        said = [text for each in self.later for text in (*(m["content"] for m in each.told), each.completion)]
        return sum(map(len, (text_of(self.asked), self.completion, *said))) // CHARS_PER_TOKEN


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertCall:
    """The fields are those of `SFTRecord`."""

    prompt: str
    agent: str | None = None
    completion: str | None = None
    """None: the expert's answer was not usable, so there is no length to compare with."""
    shown: tuple[str, ...] = ()
    """Ids of the entries shown: label e1 is the first."""
    written: tuple[str, ...] = ()
    """The memory texts the expert wrote: what a length penalty compares with."""
    chat: Prompt | None = None
    later: tuple[LaterAnswer, ...] = ()

    @property
    def asked(self) -> str | Prompt:
        return self.prompt if self.chat is None else self.chat


@dataclass(frozen=True, kw_only=True, slots=True)
class RLRecord:
    """One session to sample: the memory before it, the questions after it, and what the expert did.

    `session` and `bank_before` are None where a published file tells the prompts only.
    """

    dialogue: str
    session_index: int
    questions: tuple[Question, ...]
    calls: tuple[ExpertCall, ...]
    session: Session | None = None
    bank_before: Bank | None = None
    state_before: str | None = None
    """The published state folder, relative to the folder of all trajectories; None under schemes that have none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenQuestion:
    """A question in rl_training_data.jsonl; the published program writes no `source_turns`."""

    question: str
    answer: str
    type: str
    source_turns: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionLine:
    """What training takes from a line of rl_training_data.jsonl."""

    conversation_id: str
    session_index: int
    questions: tuple[WrittenQuestion, ...]


Record = TypeVar("Record", SFTRecord, RLRecord)


def sft_records(trajectory: Trajectory, write_out: bool = False) -> tuple[list[SFTRecord], Counter[str]]:
    """Make a record of each usable answer, and count why the others are none: an answer that failed teaches nothing.

    `write_out` puts the quoted turns' text in place of `quote`, which is our extension of the four agents' operations,
    for programs that do not know it. Raises ConfigError for it under another scheme.
    """
    if write_out and not isinstance(trajectory.scheme, FourAgents):
        raise ConfigError(f"--write-out is about quotes of four_agents, and scheme '{trajectory.scheme.name}' has none")
    records, left_out = [], Counter()
    for number, each in enumerate(trajectory.steps):
        for role, answer in each.answers.items():
            if answer.failure is not None:
                left_out[answer.failure.kind] += 1
                continue
            target, later = trajectory.target(number, role)
            record = SFTRecord(
                **_asked(trajectory.prompt(number, role)),
                completion=_written_out(target, each.step.session) if write_out else target,
                agent=role,
                dialogue=trajectory.dialogue,
                session=number,
                later=later,
            )
            records.append(record)
    return records, left_out


def _asked(prompt: str | Prompt) -> dict[str, Any]:
    """Return the fields of a record that hold a prompt."""
    return {"prompt": prompt} if isinstance(prompt, str) else {"prompt": "", "chat": prompt}


def rl_records(
    trajectory: Trajectory, lines: Sequence[QuestionLine], folder: str
) -> tuple[list[RLRecord], Counter[str]]:
    """Make a record of each session that has questions; one without has no reward, so it is left out and counted.

    `lines` are those of the trajectory's rl_training_data.jsonl, one for each session.
    """
    records, left_out = [], Counter()
    for number, (each, line) in enumerate(zip(trajectory.steps, lines, strict=True)):
        if not line.questions or not each.answers:
            left_out["no_questions" if each.answers else "no_turns"] += 1
            continue
        step = each.step
        calls = tuple(_expert_call(trajectory, number, role) for role in each.answers)
        record = RLRecord(
            dialogue=trajectory.dialogue,
            session_index=number,
            questions=tuple(_question(raw, step.session, f"{number}-{n}") for n, raw in enumerate(line.questions)),
            calls=calls,
            session=step.session,
            bank_before=step.bank_before,
            state_before=f"{folder}/{STATES}/state_{number}" if isinstance(trajectory.scheme, FourAgents) else None,
        )
        records.append(record)
    return records, left_out


def _expert_call(trajectory: Trajectory, number: int, role: str) -> ExpertCall:
    each = trajectory.steps[number]
    completion, later = trajectory.target(number, role) if role in each.usable else (None, ())
    return ExpertCall(
        **_asked(trajectory.prompt(number, role)),
        agent=role,
        completion=completion,
        shown=tuple(entry.id for entry in each.step.shown[role]),
        written=each.step.result.written[role],
        later=later,
    )


def dialogue_line(trajectory: Trajectory, lines: Sequence[QuestionLine]) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Return one line of the custom dataset with the written questions, and count the questions it cannot hold.

    These are the ones whose evidence is an entry that does not say which turns it was made of: nobody could tell after
    which session to ask them.
    """
    asked = [
        _question(raw, each.step.session, f"{trajectory.dialogue}_q{number}-{n}")
        for number, (each, found) in enumerate(zip(trajectory.steps, lines, strict=True))
        for n, raw in enumerate(found.questions)
    ]
    placed = [question for question in asked if question.evidence]
    sessions = [each.step.session for each in trajectory.steps if each.step.session.turns]
    line = {
        "id": trajectory.dialogue,
        "speakers": trajectory.speakers,
        "sessions": [{"id": s.id, "timestamp": s.timestamp.isoformat(), "turns": s.turns} for s in sessions],
        "questions": [
            {
                "id": question.id,
                "question": question.text,
                "answer": question.answer,
                "category": question.category,
                "evidence": question.evidence,
                "asked_at": question.asked_at.isoformat(),
            }
            for question in placed
        ],
    }
    return [msgspec.to_builtins(line)], Counter(question_without_turns=len(asked) - len(placed))


def write_records(path: Path, records: Sequence[Record], kind: type[Record]) -> None:
    """Write to a .parquet or .jsonl file, whole or not at all."""
    if path.suffix != PARQUET:
        write_atomic(path, "".join(msgspec.json.encode(record).decode() + "\n" for record in records))
        return
    columns = {field.name: int if field.type in (int, int | None) else str for field in fields(kind)}
    rows = [{name: _cell(value) for name, value in msgspec.to_builtins(record).items()} for record in records]
    write_table(path, rows, columns)


def read_records(path: Path, kind: type[Record]) -> list[Record]:
    """Read what `write_records` wrote; DataError names file, line and field of anything else."""
    if path.suffix == PARQUET:
        numbered = [(number, _opened(row, kind, path, number)) for number, row in enumerate(read_table(path), start=1)]
    else:
        numbered = read_lines(path)
    return [typed(kind, raw, path, f"line {number}", advice=f"is no {kind.__name__}") for number, raw in numbered]


def read_question_lines(path: Path, trajectory: Trajectory) -> list[QuestionLine]:
    """Read one line for each session of the trajectory; DataError for anything else."""
    if not path.is_file():
        problem = "has no questions, so no reward; write them with `python -m membuilder.qa`"
        raise DataError(path, FILE, "path", problem)
    lines = [typed(QuestionLine, raw, path, f"line {number}") for number, raw in read_lines(path)]
    wanted = [(trajectory.dialogue, number) for number in range(len(trajectory.steps))]
    if [(line.conversation_id, line.session_index) for line in lines] != wanted:
        problem = f"is not one line for each of {len(wanted)} sessions; move it away and run membuilder.qa again"
        raise DataError(path, FILE, "session_index", problem)
    return lines


def _question(raw: WrittenQuestion, session: Session, number: str) -> Question:
    return Question(
        id=number,
        text=raw.question,
        answer=raw.answer,
        category=raw.type,
        evidence=raw.source_turns or (),
        asked_at=session.timestamp,
    )


def _written_out(target: str, session: Session) -> str:
    """Replace `quote` by the text that is stored for it."""
    answer = json.loads(target)
    for operation in answer.get("operations", [answer]):
        if "quote" not in operation:
            continue
        turns = [session.turns[number - 1] for number in operation.pop("quote")]
        key = {"APPEND": "content", "ADD": "memory"}.get(operation.get("operation", operation.get("action")))
        operation[key or "new_memory"] = "\n".join(quoted(session, turn) for turn in turns)
    return json.dumps(answer, ensure_ascii=False)


def _cell(value: Any) -> str | int | None:
    return value if value is None or isinstance(value, str | int) else msgspec.json.encode(value).decode()


def _opened(row: dict[str, Any], kind: type, path: Path, number: int) -> dict[str, Any]:
    """Read the nested fields of a Parquet row back from their JSON; DataError where a field holds none."""
    plain = (str, int, str | None, int | None)
    nested = {field.name for field in fields(kind) if field.type not in plain}
    opened = {}
    for name, value in row.items():
        try:
            opened[name] = msgspec.json.decode(value) if name in nested and value else value
        except (TypeError, msgspec.DecodeError) as error:
            raise DataError(
                path, f"line {number}", name, f"is no JSON text ({error}); is no {kind.__name__}"
            ) from error
    return opened
