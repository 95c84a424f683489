"""Merges the built datasets of a folder into OUT/train.parquet and OUT/test.parquet, as Mem-alpha publishes its own.

What a dataset gives to training is compared with the test side of every other one before anything is written. What the
two sides of one dataset share was dropped or told when it was built.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import msgspec

from membuilder.datasets.files import FILE
from membuilder.datasets.memalpha import Row, read_rows, stream, write_rows
from membuilder.datasets.on_disk import OnDisk
from membuilder.errors import ConfigError, DataError, LeakError
from membuilder.instances import leaks
from membuilder.instances.build import BUILD_FILE, short_name
from membuilder.instances.draw import shuffled
from membuilder.instances.plan import TEST, TRAIN

Chosen = Mapping[str, Sequence[int]]
"""Rows of each dataset, by their numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Merged:
    """How many rows each side has, and what training shares with a file that it is kept apart from."""

    num_train: int
    num_test: int
    leaks: Mapping[tuple[str, str], Mapping[str, int]]
    """(dataset of the training side, file) -> counts of questions, contexts and examples."""


def merge(
    datasets: Sequence[str],
    out: Path,
    limit: int | None,
    seed: int,
    evaluation: Sequence[Path] = (),
    allow_leak: bool = False,
) -> Merged:
    """Write both files; `limit` is the most that a dataset gives to training.

    Training rows are drawn and shuffled by the seed; test rows stand in the order of the datasets, all of them. Raises
    LeakError where training shares anything with the test side of another dataset or with an evaluation file; with
    `allow_leak` every training row says so.
    """
    if repeated := {name for name in datasets if datasets.count(name) > 1}:
        raise ConfigError(f"--merge names {', '.join(sorted(repeated))} twice")
    for name in datasets:
        if not (out / name / BUILD_FILE).is_file():
            problem = f"is missing: {name} is not built, or not to its end; build it with the same --out"
            raise DataError(out / name / BUILD_FILE, FILE, "path", problem)
    trained = {name: shuffled(range(_count(out, name, TRAIN)), seed, name)[:limit] for name in datasets}
    tested = [name for name in datasets if _count(out, name, TEST)]
    found = _leaks(out, trained, tested, evaluation, allow_leak)
    rows = shuffled([(name, number) for name in datasets for number in trained[name]], seed)
    if rows:
        stamp = sorted({place for _, place in found})
        write_rows(out / f"{TRAIN}.parquet", _numbered(_in_order(out, rows, trained), stamp))
    if tested:
        kept_apart = chain.from_iterable(read_rows(_path(out, name, TEST)) for name in tested)
        write_rows(out / f"{TEST}.parquet", _numbered(kept_apart))
    return Merged(num_train=len(rows), num_test=sum(_count(out, name, TEST) for name in tested), leaks=found)


def _count(out: Path, name: str, side: str) -> int:
    return json.loads((out / name / BUILD_FILE).read_text(encoding="utf-8")).get(side, {}).get("instances", 0)


def _path(out: Path, name: str, side: str) -> Path:
    return out / name / f"{side}.parquet"


def _leaks(
    out: Path, trained: Chosen, tested: Sequence[str], evaluation: Sequence[Path], allow_leak: bool
) -> dict[tuple[str, str], dict[str, int]]:
    """Compare what each dataset gives to training with every file that is not its own."""
    files = [(name, _path(out, name, TEST)) for name in tested] + [(None, path) for path in evaluation]
    known = {}
    for name, numbers in trained.items():
        if numbers and any(owner != name for owner, _ in files):
            wanted = set(numbers)
            read = enumerate(stream(_path(out, name, TRAIN)))
            known[name] = leaks.compared(dialogue for number, dialogue in read if number in wanted)
    told, refused = {}, []
    for owner, path in files:
        if others := [name for name in known if name != owner]:
            checked = leaks.compared(leaks.dialogues_of(path))
            for name in others:
                found = leaks.shared(checked, known[name])
                if any(each.count for each in found):
                    told[name, short_name(path)] = {each.kind: each.count for each in found}
                    refused.append(f"{name} {leaks.refusal([(path, found)])}")
    if refused and not allow_leak:
        raise LeakError(f"training: {'; and '.join(refused)}; merge others, or --allow-leak")
    return told


def _in_order(out: Path, rows: Sequence[tuple[str, int]], trained: Chosen) -> Iterator[Row]:
    """Yield training rows in any order; they are put on disk first, for all of them are too large for memory."""
    kept = OnDisk()
    for name, numbers in trained.items():
        wanted = set(numbers)
        for number, row in enumerate(read_rows(_path(out, name, TRAIN)) if wanted else ()):
            if number in wanted:
                kept.put((name, number), msgspec.msgpack.encode(row))
    for key in rows:
        yield msgspec.msgpack.decode(kept.take(key), type=Row)


def _numbered(rows: Iterator[Row], stamp: Sequence[str] = ()) -> Iterator[Row]:
    """Yield the rows as a merged file has them; `stamp` names the files with which training shares something."""
    for number, row in enumerate(rows):
        told = row.metadata
        if stamp:
            inner = json.loads(told)
            told = json.dumps(inner | {"leaks": sorted({*inner.get("leaks", ()), *stamp})})
        metadata = json.dumps({"data_source": row.data_source, "metadata": told})
        yield msgspec.structs.replace(row, instance_id=number, metadata=metadata)
