"""Synthetic questions for every session of expert trajectories: the dense reward asks them right after the session.

    python -m membuilder.qa --trajectories-dir expert_trajectories/longmemeval_rl --model claude-4.5-opus
    python -m membuilder.qa --trajectories-dir expert_trajectories --model claude-4.5-opus \\
        --closed-book-model Qwen/Qwen3-4B --closed-book-provider vllm

The checker and the closed-book model are on the writer's server unless told otherwise; a key goes to the address it was
given for, and to no other.

Writes SAMPLE/rl_training_data.jsonl, a line for each session, once all of them are done; until then the lines lie in an
.unfinished file, behind which a stopped run goes on. Questions that did not pass are counted by reason, in each line
and in SAMPLE/qa_report.json; a place that no question earned stays empty, and too many of those end the program with
status 1. What the models used is printed at the end, and a line of it added to qa_usage.jsonl in the folder given.
"""

import argparse
import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

from membuilder.bank.store import reading
from membuilder.command import ArgumentParser, exit_status
from membuilder.datasets.files import FILE, read_appended, read_json
from membuilder.datasets.typed import typed
from membuilder.errors import ConfigError, DataError
from membuilder.files import write_atomic
from membuilder.llm.chat_model import ChatModel, Role
from membuilder.llm.client import ChatClient
from membuilder.llm.concurrency import for_each
from membuilder.llm.costs import Costs, counted
from membuilder.llm.endpoints import ModelAccess
from membuilder.llm.flags import add_cost_flags, add_endpoint_flags, read_endpoint
from membuilder.progress import progress
from membuilder.quiet import LOG_FILE, quiet_libraries
from membuilder.settings import described, difference
from membuilder.trajectories.published_layout import actions_json, bank_json, session_json
from membuilder.trajectories.question_plan import Kind, plan
from membuilder.trajectories.questions import Asked, Models, SessionQuestions, write_questions
from membuilder.trajectories.trajectory import (
    QA_FILE,
    STORE_FILE,
    Trajectory,
    read_trajectory,
    sample_folders,
    unfinished_folders,
)
from membuilder.value_types import PositiveInt, Share, flag_type

REPORT_FILE, USAGE_FILE = "qa_report.json", "qa_usage.jsonl"
BEGIN_ANEW = "move the file away and begin anew"
QA_MODEL = "claude-4.5-opus"
"""The writer of the published document."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QAOptions:
    """It holds what the questions depend on, and stands in the report and on the first line of the .unfinished file."""

    qa_per_session: int = 5
    model: str
    check_model: str
    closed_book_model: str | None


class _Question(TypedDict):
    question: str
    answer: str
    type: str


class _Counts(TypedDict):
    """What is read back of a report and of an unfinished file, to check that nobody edited it."""

    asked_for: dict[str, int]
    missing: dict[str, int]
    dropped: dict[str, int]


class _Report(_Counts):
    settings: dict[str, Any]
    kept: dict[str, int]


class _Line(_Counts):
    questions: list[_Question]


async def write_sample(folder: Path, options: QAOptions, models: Models, on_session=lambda: None) -> dict[str, Any]:
    """Write the questions of one trajectory, session after session, since none may repeat one; return its report.

    A sample that has its questions already is only reported. Raises ConfigError if they were asked for otherwise.
    """
    with reading(folder / STORE_FILE) as store:
        trajectory = read_trajectory(store)
    if (folder / QA_FILE).is_file() and (folder / REPORT_FILE).is_file():
        report: Any = read_json(folder / REPORT_FILE, BEGIN_ANEW)
        typed(_Report, report, folder / REPORT_FILE, FILE, advice=BEGIN_ANEW)
        _check_settings(folder / QA_FILE, report["settings"], options)
        return report
    part = folder / f"{QA_FILE}.unfinished"
    lines = _begun(part, options)
    before = [_asked(raw) for line in lines for raw in line["questions"]]
    plans = plan(len(trajectory.steps), options.qa_per_session)
    with part.open("a", encoding="utf-8") as file:
        for number in range(len(lines), len(trajectory.steps)):
            step = trajectory.steps[number].step
            wanted = plans[number] if step.session.turns else Counter()
            found = await write_questions(step, trajectory.speakers, wanted, before, models)
            before += found.kept
            lines.append(_line(trajectory, number, wanted, found))
            file.write(_json_line(lines[-1]))
            file.flush()
            os.fsync(file.fileno())
            on_session()
    report = _report(lines, options)
    write_atomic(folder / REPORT_FILE, json.dumps(report, indent=2) + "\n")
    write_atomic(folder / QA_FILE, "".join(map(_json_line, lines)))
    part.unlink()
    return report


def _begun(part: Path, options: QAOptions) -> list[dict[str, Any]]:
    """Return the whole lines of a stopped run; a line cut off by the stop is taken out of the file."""
    if not part.is_file():
        write_atomic(part, _json_line(asdict(options)))
        return []
    found = read_appended(part, BEGIN_ANEW)
    if not found:
        raise DataError(part, FILE, "settings", f"is empty; {BEGIN_ANEW}")
    (_, settings), *lines = found
    _check_settings(part, typed(dict, settings, part, "line 1", advice=BEGIN_ANEW), options)
    for number, value in lines:
        typed(_Line, value, part, f"line {number}", advice=BEGIN_ANEW)
    return [value for _, value in lines]


def _json_line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _check_settings(path: Path, found: dict[str, Any], options: QAOptions) -> None:
    if differing := difference(found, asdict(options)):
        raise ConfigError(f"{path} {described(differing)}; give those, or move the file away")


def _line(trajectory: Trajectory, number: int, wanted: Counter[Kind], found: SessionQuestions) -> dict[str, Any]:
    step = trajectory.steps[number].step
    return {
        "conversation_id": trajectory.dialogue,
        "session_index": number,
        "session": session_json(step.session),
        "state_before": bank_json(step.bank_before, trajectory.scheme),
        "state_after": bank_json(step.result.bank, trajectory.scheme),
        "questions": [
            {
                "question": asked.question,
                "answer": asked.answer,
                "type": asked.kind.replace("_", "-"),
                "source": asked.sources,
                "source_turns": asked.source_turns,
            }
            for asked in found.kept
        ],
        "expert_actions": {str(role): actions_json(trajectory, number, role) for role in trajectory.scheme.roles},
        "asked_for": dict(wanted),
        "missing": dict(found.missing),
        "dropped": dict(sorted(found.dropped.items())),
    }


def _asked(raw: dict[str, Any]) -> Asked:
    """Return a question written before as far as others are compared with it: without its evidence."""
    kind = Kind(raw["type"].replace("-", "_"))
    return Asked(question=raw["question"], answer=raw["answer"], kind=kind, evidence=())


def _report(lines: Sequence[dict[str, Any]], options: QAOptions) -> dict[str, Any]:
    def total(name: str) -> Counter[str]:
        return sum((Counter(line[name]) for line in lines), Counter())

    return {
        "settings": asdict(options),
        "sessions": len(lines),
        "sessions_without_questions": sum(bool(line["asked_for"]) and not line["questions"] for line in lines),
        "asked_for": total("asked_for"),
        "kept": Counter(raw["type"].replace("-", "_") for line in lines for raw in line["questions"]),
        "missing": total("missing"),
        "dropped": dict(sorted(total("dropped").items())),
    }


def missing_share(reports: Sequence[dict[str, Any]]) -> float:
    missing, asked_for = (sum(sum(each[name].values()) for each in reports) for name in ("missing", "asked_for"))
    return missing / asked_for if asked_for else 0.0


async def run(given: argparse.Namespace, costs: Costs) -> dict[str, dict[str, Any]]:
    """Write the questions of every folder and return its report. The first fatal error stops all; sessions stay."""
    folders = sample_folders(given.trajectories_dir)
    checker, guesser = given.check_model or given.model, given.closed_book_model
    names = {"model": given.model, "check_model": checker, "closed_book_model": guesser}
    options = QAOptions(qa_per_session=given.qa_per_session, **names)
    writer = read_endpoint(given, "", given.model)
    check = read_endpoint(given, "check-", checker, like=writer, is_first=given.check_model is None)
    guess = None if guesser is None else read_endpoint(given, "closed-book-", guesser, like=writer)
    reports = {}
    async with AsyncExitStack() as stack:

        async def opened(access: ModelAccess, role: Role) -> ChatModel:
            model = await stack.enter_async_context(ChatClient(access, role, costs))
            await model.check()
            return model

        models = Models(
            writer=await opened(writer, Role.QUESTIONER),
            checker=await opened(check, Role.JUDGE),
            closed_book=None if guess is None else await opened(guess, Role.ANSWERER),
        )
        bar = stack.enter_context(progress(label="qa", unit="session"))

        async def one(folder: Path) -> None:
            reports[str(folder)] = await write_sample(folder, options, models, on_session=bar.update)

        await for_each(one, folders, given.workers)
    return {str(folder): reports[str(folder)] for folder in folders}


def main(argv: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(argv)
    kept = "Finished sessions stay; the same command goes on behind them."
    return exit_status("membuilder.qa", lambda: _ask(given), kept)


def _ask(given: argparse.Namespace) -> int:
    if given.closed_book_model is None and (given.closed_book_provider or given.closed_book_base_url):
        problem = "--closed-book-provider and --closed-book-base-url need --closed-book-model: who is asked there"
        raise ConfigError(problem)
    quiet_libraries(given.trajectories_dir / LOG_FILE)
    path = given.trajectories_dir / USAGE_FILE
    return counted(given, path, "membuilder.qa", lambda costs: _status(given, asyncio.run(run(given, costs))))


def _status(given: argparse.Namespace, reports: Mapping[str, Mapping[str, Any]]) -> int:
    """Print what was written and return the exit status: 1, said on stderr, where too many questions are missing."""
    for folder, report in reports.items():
        counts = [f"{name} {_counts(report[name])}" for name in ("kept", "missing", "dropped")]
        print(f"{folder}: {'; '.join(counts)}")
    if unfinished := unfinished_folders(given.trajectories_dir):
        print(f"left out: {len(unfinished)} samples that are not whole, such as {unfinished[0].name}")
    share = missing_share(list(reports.values()))
    if share > given.max_missing:
        problem = f"{share:.1%} of the questions asked for are missing, more than --max-missing {given.max_missing:g}"
        short = [folder for folder, report in reports.items() if report["missing"]]
        stands = f"The {len(reports)} files {QA_FILE} are whole and usable"
        stands += f", {len(short)} with fewer questions than asked for"
        again = f"To ask about one sample again, such as {short[0]}, remove its {QA_FILE} and {REPORT_FILE}"
        advice = f"{again} and give that folder alone, with another --model"
        print(f"membuilder.qa: {problem}. {stands}. {advice}.", file=sys.stderr)
        return 1
    return 0


def _counts(by_kind: Mapping[str, int]) -> str:
    """Write a count and its parts, such as "3 (2 update, 1 recall)"."""
    parts = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in by_kind.items())
    return f"{sum(by_kind.values())} ({parts})" if parts else "none"


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="python -m membuilder.qa", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--trajectories-dir", "--trajectory-dir", type=Path, required=True, help="what membuilder.expert wrote")
    add_endpoint_flags(parser, "", f"writes the questions; default {QA_MODEL}", model=QA_MODEL, provider="openai")
    add_endpoint_flags(parser, "check-", "answers from the evidence and judges; default --model")
    add_endpoint_flags(parser, "closed-book-", "a question it answers without memory is dropped; default: not checked")
    add("--qa-per-session", type=flag_type(PositiveInt), default=5)
    add("--workers", type=flag_type(PositiveInt), default=4, help="dialogues at once")
    add("--max-missing", type=flag_type(Share), default=0.1, help="share of questions that may be missing")
    add_cost_flags(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
