"""Merges the built datasets of a folder into OUT/train.parquet and OUT/test.parquet, as Mem-alpha publishes its own."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from membuilder.datasets.files import FILE
from membuilder.datasets.memalpha import Row, read_rows, write_rows
from membuilder.errors import ConfigError, DataError
from membuilder.instances.build import BUILD_FILE
from membuilder.instances.draw import shuffled
from membuilder.instances.plan import TEST, TRAIN

ROWS_AT_ONCE = 256
"""Held in memory: the files are read once for so many rows of the merged one."""


def merge(datasets: Sequence[str], out: Path, limit: int | None, seed: int) -> dict[str, int]:
    """Write both files and return how many rows each has; `limit` is the most that a dataset gives to training.

    Training rows are drawn and shuffled by the seed; test rows stand in the order of the datasets, all of them.
    """
    if repeated := {name for name in datasets if datasets.count(name) > 1}:
        raise ConfigError(f"--merge names {', '.join(sorted(repeated))} twice")
    for name in datasets:
        if not (out / name / BUILD_FILE).is_file():
            problem = f"is missing: {name} is not built, or not to its end; build it with the same --out"
            raise DataError(out / name / BUILD_FILE, FILE, "path", problem)
    train = [(name, i) for name in datasets for i in shuffled(range(_count(out, name, TRAIN)), seed, name)[:limit]]
    test = [(name, i) for name in datasets for i in range(_count(out, name, TEST))]
    written = {}
    for side, chosen in ((TRAIN, shuffled(train, seed)), (TEST, test)):
        written[side] = len(chosen)
        if chosen:
            write_rows(out / f"{side}.parquet", _rows(out, side, chosen))
    return written


def _count(out: Path, name: str, side: str) -> int:
    return json.loads((out / name / BUILD_FILE).read_text(encoding="utf-8")).get(side, {}).get("instances", 0)


def _rows(out: Path, side: str, chosen: Sequence[tuple[str, int]]) -> Iterator[Row]:
    for start in range(0, len(chosen), ROWS_AT_ONCE):
        block = chosen[start : start + ROWS_AT_ONCE]
        found = {}
        for name in dict.fromkeys(name for name, _ in block):
            wanted = {number for of, number in block if of == name}
            for number, row in enumerate(read_rows(out / name / f"{side}.parquet")):
                if number in wanted:
                    found[name, number] = row
        for number, key in enumerate(block, start=start):
            row = found[key]
            metadata = json.dumps({"data_source": row.data_source, "metadata": row.metadata})
            yield msgspec.structs.replace(row, instance_id=number, metadata=metadata)
