"""One evaluation from options to files: check, build, find, answer, judge, score, report.

`answers.jsonl` grows a line at a time and `run.json` says under which settings; a run that was killed goes on at the
first question without a whole line, and refuses to continue under other settings. `usage.jsonl` has a line for every
call, so that the calls and tokens in `results.json` are those of the whole run, however many processes it took.
"""

import asyncio
import json
import logging
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from membuilder.building.dialogues import listed, told_failures, warn_of_empty
from membuilder.embedding.local import TextEmbedder
from membuilder.embedding.options import embedder_of
from membuilder.errors import EvaluationError
from membuilder.evaluation.agents import build_memories, manifest_of
from membuilder.evaluation.answerer import Roles, ask_all, open_roles
from membuilder.evaluation.banks import BankFolder, read_settings, refuse_others, write_settings
from membuilder.evaluation.chunks import chunks_of, token_counter
from membuilder.evaluation.compare import ANSWERS_FILE
from membuilder.evaluation.make_system import RUNNING_FOLDER, embeds_turns, open_system
from membuilder.evaluation.metrics import CUTOFFS, Outcome
from membuilder.evaluation.names import AGENTS, RULES, RUNNING
from membuilder.evaluation.options import Options
from membuilder.evaluation.plot import draw
from membuilder.evaluation.protocols.prompts import protocol_hashes
from membuilder.evaluation.protocols.running_memory import num_left, template_of, write_memories
from membuilder.evaluation.records import Record, read_records, record_of
from membuilder.evaluation.report import results, summarize, unjudged_share
from membuilder.evaluation.run_settings import settings_of, writing
from membuilder.evaluation.scheme_search import SchemeSearch
from membuilder.evaluation.source_metrics import source_of
from membuilder.evaluation.systems import MemorySearch, System, turn_texts
from membuilder.evaluation.table import table, table_within
from membuilder.evaluation.thinking import told_thinking, trained_budget, warn_of_budget
from membuilder.files import write_atomic
from membuilder.llm.chat_model import Role
from membuilder.llm.client import ChatClient
from membuilder.llm.costs import Costs, open_costs, usage_line
from membuilder.llm.usage import Usage
from membuilder.progress import SessionBar, progress
from membuilder.schemes.four_agents.rules import warn_of_unread_turns
from membuilder.schemes.load import FOUR_AGENTS, templates_of
from membuilder.types import Dialogue

_log = logging.getLogger(__name__)
RUN_FILE, RESULTS_FILE, TABLE_FILE = "run.json", "results.json", "table.md"
PLOT_FILE, USAGE_FILE = "by_category.png", "usage.jsonl"
MAX_MISSING = 0.01
"""Share of a system's answers or verdicts that may be missing before its numbers mislead."""


@dataclass(frozen=True, slots=True)
class _Run:
    """One evaluation with all it has opened."""

    options: Options
    dialogues: list[Dialogue]
    settings: dict[str, Any]
    folder: Path
    """Where its files go: the banks' folder where it only builds."""
    embedder: TextEmbedder
    systems: dict[str, System]
    costs: Costs
    bar: SessionBar
    """Moved by systems that build a memory."""


def run(options: Options, dialogues: list[Dialogue], path: Path) -> int:
    """Evaluate on these dialogues of the file `path`.

    Returns the exit status: 0, or 1 when more than 1% of the answers or verdicts of a system are missing.
    """
    usage, is_build = Usage(), options.flags.mode == "build"
    if not is_build:
        _check_questions(dialogues, path)
    folder = options.db_path if is_build else options.flags.output_dir
    with ExitStack() as opened:
        costs = opened.enter_context(open_costs(options.flags, usage))
        settings = settings_of(options, path, dialogues)
        was_begun = not is_build and (folder / RUN_FILE).exists()
        if not is_build and not was_begun and (folder / ANSWERS_FILE).exists():
            problem = f"holds {ANSWERS_FILE} without {RUN_FILE}, which says of what run"
            raise EvaluationError(f"{folder} {problem}; choose another --output-dir")
        if was_begun:
            before = read_settings(folder / RUN_FILE, "choose another --output-dir or remove this one")
            refuse_others(folder, before, settings, "choose another --output-dir or move it")
        embedder = opened.enter_context(embedder_of(options.embedder, costs))
        bar = SessionBar()
        systems = {name: open_system(name, options, settings, embedder, bar.session_done) for name in options.systems}
        if RULES in systems and options.reading.scheme == FOUR_AGENTS:
            warn_of_unread_turns(dialogues)
        told = asyncio.run(_ask_models(_Run(options, dialogues, settings, folder, embedder, systems, costs, bar)))
    for name, system in systems.items():
        if isinstance(system, MemorySearch | SchemeSearch):
            warn_of_empty(name, system.empty, len(dialogues))
    if is_build:
        _say_built(folder, told, usage)
        return 0
    return _finish(options, settings | told | {"resumed": was_begun}, usage)


def _check_questions(dialogues: Sequence[Dialogue], path: Path) -> None:
    """Raise EvaluationError where nothing is asked at all, and say how many dialogues are read for no question."""
    unasked = sum(not dialogue.questions for dialogue in dialogues)
    if unasked == len(dialogues):
        problem = "none of the dialogues chosen has a question; choose others or more sessions, or --mode build"
        raise EvaluationError(f"{path}: {problem}")
    if unasked:
        _log.warning("%d of %d dialogues have no question, and count in no mean", unasked, len(dialogues))


async def _ask_models(run: _Run) -> dict[str, Any]:
    """Check, embed, build, find, answer and judge; returns what the models did, were asked with and used."""
    options, roles, prompts, told = run.options, None, {}, {}
    is_build, has_agents = options.flags.mode == "build", AGENTS in options.systems
    running = {name: run.folder / RUNNING_FOLDER for name in options.systems if name in RUNNING}
    banks = BankFolder(options.db_path, manifest_of(options, run.settings)) if has_agents else None
    async with AsyncExitStack() as stack:
        # every model is checked before anything costly begins, and before anything is written
        if options.answerer is not None:
            top_k, rounds = options.flags.top_k, options.flags.agentic_search
            asked = open_roles(options.answerer, options.judge, top_k, run.costs, options.by_source, rounds)
            roles = await stack.enter_async_context(asked)
            prompts |= roles.prompts
        if has_agents:
            prompts |= templates_of(options.reading)
        prompts |= protocol_hashes(map(template_of, running))
        builds = banks is not None and not all(map(banks.has, run.dialogues))
        left = {name: num_left(name, run.dialogues, folder) for name, folder in running.items()}
        writer = await _open_writer(run, stack) if builds or any(left.values()) else None
        run.folder.mkdir(parents=True, exist_ok=True)
        if not is_build:
            write_settings(run.folder / RUN_FILE, run.settings)
        run.costs.usage.keep(run.folder / USAGE_FILE)
        _embed(run)
        if has_agents:
            told["agents"] = await build_memories(options, run.dialogues, banks, run.embedder, writer)
        if running:
            told["running"] = await _rewrite(run, running, left, writer)
        if is_build and not has_agents:
            for dialogue in run.bar.over(run.dialogues, "build"):
                run.systems[options.systems[0]](dialogue, 1)
        if not is_build:
            await _score(run, roles)
    return told | {"prompts": prompts, "usage": run.costs.usage.report()}


async def _open_writer(run: _Run, stack: AsyncExitStack) -> ChatClient:
    """Open and check the model that writes memories."""
    model = writing(run.options)
    warn_of_budget(trained_budget(run.options.flags.build_config), model)
    writer = await stack.enter_async_context(ChatClient(model, Role.BUILDER, run.costs))
    await writer.check()
    return writer


async def _rewrite(
    run: _Run, running: Mapping[str, Path], left: Mapping[str, int], writer: ChatClient | None
) -> dict[str, dict[str, int]]:
    """Let the writer read the chunks that running memories lack; returns what failed, by system and kind."""
    failed, options = {}, run.options
    for name, folder in running.items():
        with progress(total=left[name], label=name, unit="chunk") as bar:
            how = {"concurrency": options.concurrency, "verbatim": options.by_source, "on_chunk": bar.update}
            failed[name] = await write_memories(name, run.dialogues, folder, writer, **how)
        if failed[name]:
            problem = "%s: %d answers could not be used (%s), and the memory stayed as it was"
            _log.warning(problem, name, sum(failed[name].values()), listed(failed[name]))
    return failed


def _embed(run: _Run) -> None:
    """Embed all dialogues at once where a system embeds turns, so that the encoder gets full batches."""
    if any(embeds_turns(name, run.options) for name in run.options.systems):
        texts = [text for dialogue in run.dialogues for text in turn_texts(dialogue)]
        if run.options.index.pieces:
            texts = [piece for text in texts for piece in run.embedder.pieces(text)]
        run.embedder.embed(texts + [question.text for dialogue in run.dialogues for question in dialogue.questions])


async def _score(run: _Run, roles: Roles | None) -> None:
    """Append the records that are not there yet, or not whole."""
    path = run.folder / ANSWERS_FILE
    before = read_records(path)
    begun = {record.key for record in before}
    done = {record.key for record in before if record.is_whole(is_answered=roles is not None)}
    with path.open("a", encoding="utf-8") as out:

        def write(outcome: Outcome) -> None:
            record = record_of(outcome)
            if outcome.answer is None and record.key in begun:
                return  # what an earlier process got of it is no less
            out.write(record.to_json() + "\n")
            out.flush()
            if run.options.flags.verbose:
                _show(record)

        # Searched before the first is asked: searching holds up every request in flight.
        cases = list(_cases(run, done))
        if roles is not None:
            with progress(total=len(cases), label="answer", unit="question") as bar:
                await ask_all(cases, roles, run.options.concurrency, lambda outcome: (write(outcome), bar.update()))
            return
        for case in cases:
            write(case)


def _cases(run: _Run, done: set) -> Iterator[Outcome]:
    """Search every question without a record; a dialogue that is done is not searched again."""
    depth, count = max(*CUTOFFS, run.options.flags.top_k), token_counter(run.options.flags.tokenizer)
    for name, system in run.systems.items():
        for dialogue in run.bar.over(run.dialogues, name):
            if all((name, dialogue.id, question.id) in done for question in dialogue.questions):
                continue
            source = source_of(dialogue) if run.options.by_source else None
            whole = sum(count(chunk.text) for chunk in chunks_of(dialogue, verbatim=run.options.by_source))
            counted: dict[tuple[str, ...] | None, int] = {None: whole}
            for question, ranking in zip(dialogue.questions, system(dialogue, depth), strict=True):
                if ranking.memory not in counted:
                    counted[ranking.memory] = sum(map(count, ranking.memory))
                if (name, dialogue.id, question.id) not in done:
                    yield Outcome(
                        system=name,
                        dialogue=dialogue,
                        question=question,
                        ranking=ranking,
                        source=source,
                        memory_tokens=counted[ranking.memory],
                        chunk_tokens=whole,
                    )


def _finish(options: Options, about: dict[str, Any], usage: Usage) -> int:
    folder, seed, is_answered = options.flags.output_dir, options.flags.seed, options.answerer is not None
    records = read_records(folder / ANSWERS_FILE)
    by_system = {name: [record for record in records if record.system == name] for name in options.systems}
    summaries = {name: summarize(records, seed, is_answered) for name, records in by_system.items()}
    text = json.dumps(results(summaries, about), indent=2, ensure_ascii=False)
    write_atomic(folder / RESULTS_FILE, text + "\n")
    thinking = told_thinking(about)
    write_atomic(folder / TABLE_FILE, table(summaries, seed) + (f"\n{thinking}\n" if thinking else ""))
    draw(summaries, folder / PLOT_FILE)
    print(table_within(summaries, seed, shutil.get_terminal_size().columns))
    if thinking:
        print(thinking)
    if about["usage"]:
        print(usage_line(usage, folder / USAGE_FILE))
    misleading = [_misleads(name, records, is_answered) for name, records in by_system.items()]  # all are told
    print(f"results in {folder}")
    return int(any(misleading))


def _misleads(name: str, records: Sequence[Record], is_answered: bool) -> bool:
    """Tell whether too much of one system is missing, which is also printed; other systems do not make up for it."""
    unanswered = sum(record.answer is None for record in records) / max(1, len(records)) if is_answered else 0.0
    shares = {"answers": unanswered, "verdicts": unjudged_share(records)}
    missing = {what: share for what, share in shares.items() if share > MAX_MISSING}
    for what, share in missing.items():
        problem = f"{share:.1%} of the {what} could not be had, above {MAX_MISSING:.0%}: the means mislead"
        print(f"{name}: {problem}; see the log, then run again to ask for what is missing", file=sys.stderr)
    return bool(missing)


def _show(record: Record) -> None:
    verdicts = {True: "right", False: "wrong", None: "unjudged"}
    judged = [f"{name} judge: {verdicts[verdict.correct]}" for name, verdict in record.verdicts.items()]
    found = record.scores["recall@10"]
    print(", ".join([f"{record.system} {record.question_id}: recall@10 {'-' if found is None else found}", *judged]))


def _say_built(folder: Path, told: dict[str, Any], usage: Usage) -> None:
    """Print what the agents built and used, and where the banks are."""
    if built := told.get("agents"):
        failed = told_failures(built["failed_answers"], built["dropped_operations"])
        print(f"{built['sessions']} sessions, {built['answers']} answers; {failed}")
        print(usage_line(usage, folder / USAGE_FILE))
    print(f"banks in {folder}")
