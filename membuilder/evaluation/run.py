"""One evaluation from options to files: check, build, find, answer, judge, score, report.

`answers.jsonl` grows a line at a time and `run.json` says under which settings; a run that was killed goes on at the first
question without a whole line, and refuses to continue under other settings. `usage.jsonl` has a line for every call, so that
the calls and tokens in `results.json` are those of the whole run, however many processes it took.
"""

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from membuilder.datasets.selection import load_named, select, shorten, split_ids, subset_ids
from membuilder.embedding.local import TextEmbedder
from membuilder.embedding.options import embedder_of
from membuilder.evaluation.agents import build_memories, open_writer, reading_of
from membuilder.evaluation.answer_questions import Case, ask_all
from membuilder.evaluation.answerer import Roles, open_roles
from membuilder.evaluation.compare import ANSWERS_FILE
from membuilder.evaluation.make_system import embeds_turns, memories, open_system
from membuilder.evaluation.options import AGENTS, Options
from membuilder.evaluation.plot import draw
from membuilder.evaluation.records import Answered, Record, is_whole, key_of, read_records, record_of
from membuilder.evaluation.report import results, unanswered_share, unjudged_share
from membuilder.evaluation.run_settings import is_begun, keep_settings, settings_of
from membuilder.evaluation.scorers import CUTOFFS
from membuilder.evaluation.systems import System, turn_texts
from membuilder.evaluation.table import table
from membuilder.files import write_atomic
from membuilder.llm.cost_flags import Account
from membuilder.llm.response_cache import AnswerCache
from membuilder.llm.usage import Usage
from membuilder.progress import progress
from membuilder.schemes.four_agents.prompts import template_hashes
from membuilder.types import Dialogue

RESULTS_FILE, TABLE_FILE, PLOT_FILE, USAGE_FILE = "results.json", "table.md", "by_category.png", "usage.jsonl"
MAX_MISSING = 0.01
"""Share of a system's answers or verdicts that may be missing before its numbers mislead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    options: Options
    dialogues: list[Dialogue]
    settings: dict[str, Any]
    embedder: TextEmbedder
    systems: dict[str, System]
    usage: Usage
    cache: AnswerCache | None


def run(options: Options) -> int:
    """Exit status: 0, or 1 when more than 1% of the answers or verdicts of a system are missing."""
    dialogues, path = _dialogues(options)
    usage = Usage()
    with ExitStack() as opened:
        cache = None
        if options.answer_cache is not None:
            cache = opened.enter_context(closing(AnswerCache(options.answer_cache)))
        settings = settings_of(options, path, dialogues)
        was_begun = options.mode != "build" and is_begun(options.output_dir, settings)
        account = Account(usage=usage, prices=options.prices, answers=cache)
        embedder = opened.enter_context(embedder_of(options.embedder, account))
        systems = {name: open_system(name, options, settings, embedder) for name in options.systems}
        told = asyncio.run(
            _ask_models(
                _Run(
                    options=options,
                    dialogues=dialogues,
                    settings=settings,
                    embedder=embedder,
                    systems=systems,
                    usage=usage,
                    cache=cache,
                )
            )
        )
    if options.mode == "build":
        if AGENTS in options.systems:
            print(json.dumps(told))
        return 0
    return _finish(options, settings | told | {"resumed": was_begun})


def _dialogues(options: Options) -> tuple[list[Dialogue], Path]:
    """The dialogues to ask about, and the file they came from."""
    dialogues, path = load_named(options.dataset, options.dataset_path, options.data_dir)
    if options.split is not None:
        dialogues = select(dialogues, split_ids(options.split, path), f"--split {options.split}")
    if options.subset_file is not None:
        dialogues = select(dialogues, subset_ids(options.subset_file), f"--subset-file {options.subset_file}")
    if options.ids:
        dialogues = select(dialogues, options.ids, f"--conv-id, --sample-id or --character-id {options.ids}")
    return shorten(dialogues, options.sessions, options.questions), path


async def _ask_models(run: _Run) -> dict[str, Any]:
    """Check, embed, build, find, answer and judge; what the models did, were asked with and used."""
    options, roles, writer, prompts, told = run.options, None, None, {}, {}
    async with AsyncExitStack() as stack:
        # every model is checked before anything costly begins, and before anything is written
        if options.answerer is not None:
            asked = open_roles(options.answerer, options.judge, options.top_k, run.usage, run.cache)
            roles = await stack.enter_async_context(asked)
            prompts |= roles.prompts
        if AGENTS in options.systems:
            folder = memories(options, run.settings)
            opened = open_writer(options, run.dialogues, folder, run.usage, run.cache)
            writer = await stack.enter_async_context(opened)
            prompts |= template_hashes(reading_of(options.build_config).prompts.template_set)
        _begin(run)
        _embed(run)
        if AGENTS in options.systems:
            told["agents"] = await build_memories(options, run.dialogues, folder, run.embedder, writer)
        elif options.mode == "build":
            for dialogue in progress(run.dialogues, label="build", unit="dialogue"):
                run.systems[options.systems[0]](dialogue, 1)
        if options.mode != "build":
            await _score(run, roles)
    return told | {"prompts": prompts, "usage": run.usage.report()}


def _begin(run: _Run) -> None:
    is_build = run.options.mode == "build"
    folder = run.options.db_path if is_build else run.options.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    if not is_build:
        keep_settings(folder, run.settings)
    run.usage.keep(folder / USAGE_FILE)


def _embed(run: _Run) -> None:
    """All dialogues at once where a system embeds turns, so that the encoder gets full batches of texts of one length."""
    if any(embeds_turns(name) for name in run.options.systems):
        texts = [text for dialogue in run.dialogues for text in turn_texts(dialogue)]
        run.embedder.embed(texts + [question.text for dialogue in run.dialogues for question in dialogue.questions])


async def _score(run: _Run, roles: Roles | None) -> None:
    """Append the records that are not there yet, or not whole."""
    path = run.options.output_dir / ANSWERS_FILE
    before = read_records(path)
    begun = {key_of(record) for record in before}
    done = {key_of(record) for record in before if is_whole(record, is_answered=roles is not None)}
    with path.open("a", encoding="utf-8") as out:

        def write(case: Case, answered: Answered | None) -> None:
            record = record_of(case.system, case.dialogue, case.question, case.ranking, answered)
            if answered is None and key_of(record) in begun:
                return  # what an earlier process got of it is no less
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
            out.flush()
            if run.options.verbose:
                _show(record)

        # Searched before the first is asked: searching holds up every request in flight.
        cases = list(_cases(run, done))
        if roles is not None:
            await ask_all(cases, roles, run.options.concurrency, write)
            return
        for case in cases:
            write(case, None)


def _cases(run: _Run, done: set) -> Iterator[Case]:
    """Every question without a record; a dialogue that is done is not searched again."""
    depth = max(*CUTOFFS, run.options.top_k)
    for name, system in run.systems.items():
        for dialogue in progress(run.dialogues, label=name, unit="dialogue"):
            if all((name, dialogue.id, question.id) in done for question in dialogue.questions):
                continue
            for question, ranking in zip(dialogue.questions, system(dialogue, depth), strict=True):
                if (name, dialogue.id, question.id) not in done:
                    yield Case(system=name, dialogue=dialogue, question=question, ranking=ranking)


def _finish(options: Options, about: dict[str, Any]) -> int:
    records = read_records(options.output_dir / ANSWERS_FILE)
    by_system = {name: [record for record in records if record["system"] == name] for name in options.systems}
    found = results(by_system, about)
    write_atomic(options.output_dir / RESULTS_FILE, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    write_atomic(options.output_dir / TABLE_FILE, table(found))
    draw(found, options.output_dir / PLOT_FILE)
    print(table(found))
    misleading = [name for name, records in by_system.items() if _misleads(name, records, about)]
    return int(bool(misleading))


def _misleads(name: str, records: Sequence[Record], about: dict[str, Any]) -> bool:
    """Whether too much of one system is missing, said on stderr: another system's answers make up for nothing."""
    unanswered = unanswered_share(records) if about["answer_model"] else 0.0
    missing = [(unanswered, "answers"), (unjudged_share(records), "verdicts")]
    for share, what in missing:
        if share > MAX_MISSING:
            problem = f"{share:.1%} of the {what} could not be had, above {MAX_MISSING:.0%}: the means mislead"
            print(f"{name}: {problem}; see the log, then run again to ask for what is missing", file=sys.stderr)
    return max(share for share, _ in missing) > MAX_MISSING


def _show(record: Record) -> None:
    verdicts = {name: verdict["correct"] for name, verdict in record["verdicts"].items()}
    print(f"{record['system']} {record['question_id']} recall@10={record['scores']['recall@10']} {verdicts}")
