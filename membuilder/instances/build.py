"""Builds the instances of one dataset: train and test side, checked against each other and against evaluation files.

    OUT/squad/train.parquet  test.parquet  build.json

While it works the folder holds instances.jsonl, from which a build that was killed goes on. The same input, seed and
settings give the same bytes.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from membuilder.datasets.files import FILE, read_json
from membuilder.datasets.memalpha import Row, dialogue_of, write_rows
from membuilder.datasets.streams import files_of
from membuilder.datasets.typed import typed
from membuilder.errors import ConfigError, LeakError
from membuilder.files import write_atomic
from membuilder.instances import leaks
from membuilder.instances.draw import in_test, shuffled
from membuilder.instances.frame import PROMPT
from membuilder.instances.journal import dropped_of, instances_of, journal
from membuilder.instances.plan import TEST, TRAIN, Plan
from membuilder.instances.records import Instance, Progress, Shape, Step, unchanged
from membuilder.instances.sources import Source, Unit
from membuilder.instances.tokens import counter, tokenizer_file
from membuilder.progress import progress

JOURNAL_FILE, BUILD_FILE = "instances.jsonl", "build.json"


def build(plan: Plan, step: Step = unchanged) -> dict[str, Any]:
    """Write the files of a dataset and return what build.json says. What is there already is left as it is.

    `step` asks `plan.model` about each instance before it is kept. Raises LeakError where training shares something
    with an evaluation file, ConfigError where nothing is left or the folder holds a build with other settings.
    """
    source = plan.shaped()
    files = files_of(plan.source, source.files)
    settings = _settings(plan, source, files)
    if (plan.folder / BUILD_FILE).is_file():
        (plan.folder / JOURNAL_FILE).unlink(missing_ok=True)  # a kill came after the last step but one
        return _built_before(plan.folder / BUILD_FILE, settings)
    path = plan.folder / JOURNAL_FILE
    with journal(path, settings) as kept:
        tokens = counter(plan.tokenizer)
        is_test = _test_side(plan, source, files)
        for side in plan.sides:
            if (read := kept.progress(side)) is not None:
                units = _of_side(source.read(files, plan.seed, plan.allow_leak), side, is_test, read)
                names = (plan.seed, plan.dataset, side)
                packed = source.pack(units, source.shape, tokens, names, read)
                for instance in progress(packed, label=f"{plan.dataset} {side}", unit="instance"):
                    if (done := _finished(step(instance, read.dropped), source.shape, read)) is not None:
                        kept.write(side, read, done)
                kept.write(side, read, None)
    return _finish(plan, source, path, settings)


def _finished(instance: Instance, shape: Shape, read: Progress) -> Instance | None:
    """Return an instance without questions that have no answer; None, and counted, where too few are left."""
    asked = tuple(each for each in instance.questions if each["answer"])
    read.dropped["no_keywords"] += len(instance.questions) - len(asked)
    if len(asked) < shape.questions[0]:
        read.dropped["in_an_instance_of_too_few_questions"] += len(asked)
        return None
    return replace(instance, questions=asked)


def _settings(plan: Plan, source: Source, files: Sequence[Path]) -> dict[str, Any]:
    def digest(path: Path) -> str:
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()

    return {
        "dataset": plan.dataset,
        "files": {path.name: digest(path) for path in files},
        "seed": plan.seed,
        "test_share": 1 if source.only_test else plan.share,
        "tokenizer": plan.tokenizer and digest(tokenizer_file(plan.tokenizer)),
        "chunk_tokens": plan.chunk_tokens,
        "chunks": plan.chunks,
        "questions": plan.questions and list(plan.questions),
        "sentence_lines": plan.sentence_lines,
        "published": plan.published,
        "evaluation": {short_name(path): digest(path) for path in plan.evaluation},
        "allow_leak": plan.allow_leak,
        "model": plan.model,
    }


def _built_before(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    found = typed(dict[str, Any], read_json(path), path, FILE)
    before = typed(dict[str, Any], found.get("settings"), path, FILE, "settings", f"remove {path.parent}")
    if before != settings:
        changed = ", ".join(name for name in settings if before.get(name) != settings[name])
        raise ConfigError(f"{path.parent}: was built with another {changed}; choose another --out or remove the folder")
    return found


def _test_side(plan: Plan, source: Source, files: Sequence[Path]) -> Callable[[str], bool]:
    """Return what tells whether a document is for the test. Of labels, which are few, their share is exact."""
    if source.only_test:
        return lambda document: True
    if not source.by_label or not plan.share:
        return lambda document: in_test(document, plan.seed, plan.share)
    units = source.read(files, plan.seed, plan.allow_leak)
    labels = {label for unit in units if not unit.is_empty for label in unit.documents}
    chosen = set(shuffled(labels, plan.seed, "side")[: max(1, round(plan.share * len(labels)))])
    return chosen.__contains__


def _of_side(
    units: Iterator[Unit], side: str, is_test: Callable[[str], bool], read: Progress
) -> Iterator[tuple[int, Unit]]:
    """Yield the numbered units of one side that are not read yet; what is on both sides is nowhere."""
    begin = read.units
    for number, unit in enumerate(units):
        if number < begin:
            continue
        sides = set(map(is_test, unit.documents)) or {False}
        if len(sides) > 1 and side == TRAIN:
            read.dropped["documents_on_both_sides"] += 1
        if sides == {side == TEST}:
            if unit.is_empty:
                read.dropped.update(unit.dropped)
            else:
                yield number, unit


def _finish(plan: Plan, source: Source, path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    dropped = {side: Counter(found) for side, found in dropped_of(path).items()}
    trained = leaks.compared(map(dialogue_of, _rows(plan, source, path, TRAIN)))
    told = {}
    for file in plan.evaluation:
        found = leaks.shared(leaks.compared(leaks.dialogues_of(file)), trained)
        if any(each.count for each in found):
            told[short_name(file)] = {each.kind: each.count for each in found}
            if not plan.allow_leak:
                path.unlink()
                raise LeakError(
                    f"{plan.dataset}: training {leaks.refusal([(file, found)])}; take others, or --allow-leak"
                )
    stamp = sorted(told)
    report: dict[str, Any] = {"settings": settings, "leaks": told}
    for side in dropped:
        rows = _rows(plan, source, path, side, stamp)
        if side == TEST:
            found = leaks.shared(leaks.compared(map(dialogue_of, _rows(plan, source, path, TEST))), trained)
            if also := {each.kind: each.count for each in found if each.count and each.kind != leaks.QUESTION}:
                told[TEST] = also
            (known,) = (each.keys for each in found if each.kind == leaks.QUESTION)
            rows = _without(rows, known, source.shape, dropped[side])
        instances, questions = _write(plan.folder / f"{side}.parquet", rows)
        left_out = dict(sorted((+dropped[side]).items()))
        report[side] = {"instances": instances, "questions": questions, "dropped": left_out}
    if not sum(report[side]["instances"] for side in dropped):
        path.unlink()
        reasons = dict(sum(dropped.values(), Counter()))
        raise ConfigError(f"{plan.source}: no instance can be made of it; dropped: {reasons}")
    write_atomic(plan.folder / BUILD_FILE, json.dumps(report, indent=1) + "\n")
    path.unlink()
    return report


def _rows(plan: Plan, source: Source, path: Path, side: str, stamp: Sequence[str] = ()) -> Iterator[Row]:
    """Yield the rows of one side; `stamp` names the evaluation files with which training shares something."""
    metadata = {"sub_source": plan.dataset} | ({"leaks": list(stamp)} if stamp else {})
    for number, instance in enumerate(instances_of(path, side)):
        keys = ("question", "answer") if plan.published else None
        asked = [_only(each, keys) for each in instance.questions]
        more = {"samples": list(instance.samples)} if instance.samples else {}
        if instance.data_source:
            more["sub_source"] = instance.data_source
        yield _row(number, instance.chunks, asked, instance.data_source or source.data_source, metadata | more)


def _only(question: Mapping[str, Any], keys: Sequence[str] | None) -> dict[str, Any]:
    return {key: value for key, value in question.items() if keys is None or key in keys}


def _row(
    number: int,
    chunks: Sequence[str],
    questions: Sequence[Mapping[str, Any]],
    data_source: str,
    metadata: Mapping[str, Any],
) -> Row:
    return Row(
        instance_id=number,
        prompt=PROMPT,
        chunks=json.dumps(chunks),
        questions_and_answers=json.dumps(questions),
        data_source=data_source,
        metadata=json.dumps(metadata),
        num_chunks=len(chunks),
        num_questions=len(questions),
    )


def _without(rows: Iterator[Row], known: frozenset[int], shape: Shape, dropped: Counter[str]) -> Iterator[Row]:
    """Yield the rows without the questions that training has too; those with too few left are dropped."""
    number = 0
    for row in rows:
        asked = json.loads(row.questions_and_answers)
        kept = [each for each in asked if not leaks.is_asked(each["question"], known)]
        dropped["also_in_train"] += len(asked) - len(kept)
        if len(kept) < shape.questions[0]:
            dropped["in_an_instance_of_too_few_questions"] += len(kept)
            continue
        changed = {"questions_and_answers": json.dumps(kept), "num_questions": len(kept), "instance_id": number}
        yield msgspec.structs.replace(row, **changed)
        number += 1


def _write(path: Path, rows: Iterator[Row]) -> tuple[int, int]:
    """Write the rows and count them and their questions; without any no file is written."""
    counted = Counter()

    def passing() -> Iterator[Row]:
        for row in rows:
            counted.update(rows=1, questions=row.num_questions)
            yield row

    passed = passing()
    if (first := next(passed, None)) is not None:
        write_rows(path, chain([first], passed))
    return counted["rows"], counted["questions"]


def short_name(path: Path) -> str:
    """Name a file in the same way on every machine."""
    return f"{path.resolve().parent.name}/{path.name}"
