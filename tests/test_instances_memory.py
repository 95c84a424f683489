"""Builds and the leak comparison of large files stay under 500 MB, whatever the files hold."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from membuilder.datasets.memalpha import Row, write_rows
from membuilder.errors import WriteError
from membuilder.instances.labels import _TABLES, banking77, reader
from tests import raw_data

PEAK_MB = 500
SIZE = 62_000_000


WATCH = """
import json, os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(child.pid, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""
"""A small process in between: the peak of a child counts what its parent was as large as when it forked."""


def measured(*arguments: object) -> tuple[float, float]:
    """Return (seconds of a processor, peak megabytes) of `python -m membuilder.data`."""
    command = [sys.executable, "-c", WATCH, sys.executable, "-m", "membuilder.data", *map(str, arguments)]
    told = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "2"}
    )
    status, seconds, megabytes = json.loads(told.stdout)
    assert status == 0, told.stderr
    return seconds, megabytes


def words(seed: int) -> tuple[np.random.Generator, np.ndarray]:
    """A generator, and made-up words, of which the first are drawn most often by `zipf`."""
    rng = np.random.default_rng(seed)
    letters = rng.integers(97, 123, (100_000, 8)).astype(np.uint8)
    return rng, np.array([row.tobytes().decode()[: 2 + i % 7] for i, row in enumerate(letters)])


def instances(path: Path, seed: int, limit: int) -> Path:
    rng, vocabulary = words(seed)

    def rows():
        size = number = 0
        while size < limit:
            drawn = vocabulary[np.minimum(rng.zipf(1.2, 9000), len(vocabulary)) - 1]
            lines = [" ".join(drawn[i : i + 30]) for i in range(0, 9000, 30)]
            chunks = ["\n".join(lines[i : i + 30]) for i in range(0, 300, 30)]
            asked = [{"question": f"Why {' '.join(drawn[i : i + 7])}?", "answer": "so"} for i in range(0, 700, 7)]
            texts = {"chunks": json.dumps(chunks), "questions_and_answers": json.dumps(asked)}
            size += sum(map(len, texts.values()))
            told = {"prompt": "", "data_source": "squad", "metadata": "{}", "num_chunks": 10, "num_questions": 100}
            yield Row(instance_id=number, **texts, **told)
            number += 1

    write_rows(path, rows())
    return path


@pytest.mark.slow
def test_two_files_of_62_mb_are_compared_in_linear_time_and_500_mb(tmp_path):
    """A quarter of them takes more than a quarter of the time, because the command has to start."""
    took = {}
    for size in (SIZE // 4, SIZE):
        files = (instances(tmp_path / f"{size}-{seed}.parquet", seed, size) for seed in (1, 2))
        took[size], megabytes = measured("leaks", *files)
    assert megabytes < PEAK_MB and took[SIZE] < 6 * took[SIZE // 4]


@pytest.mark.slow
def test_what_a_label_set_takes_hardly_grows_with_its_size(tmp_path):
    """By this growth a set of 62 MB stays under 500 MB, as the one that was built once did (a minute and a half)."""
    small, large = (label_set_peak(tmp_path / str(size), size) for size in (1_000_000, 13_000_000))
    assert small + (large - small) * SIZE / 12_000_000 < PEAK_MB


def label_set_peak(folder: Path, size: int) -> float:
    rng, vocabulary = words(3)
    with (raw_data.written(folder / "raw/train.csv", "text,category\n")).open("a") as file:
        while file.tell() < size:
            drawn = vocabulary[np.minimum(rng.zipf(1.2, 8000), len(vocabulary)) - 1]
            lines = [f"{' '.join(drawn[i : i + 8])},label{i % 70}" for i in range(0, 8000, 8)]
            file.write("\n".join(lines) + "\n")
    given = ("--dataset", "banking77", "--source", folder / "raw", "--out", folder / "out", "--split", 0.2)
    return measured("build-memalpha", *given)[1]


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    path = raw_data.written(tmp_path / "train.csv", "text,category\n" + "\n".join(f"a{i},b" for i in range(3000)))
    monkeypatch.setattr("membuilder.instances.labels._TABLES", f"pragma max_page_count = 9;{_TABLES}")
    with pytest.raises(WriteError, match="database or disk is full"):
        list(reader(banking77)([path], 1))


def test_label_sets_are_read_in_an_order_of_their_own_and_repeated_texts_behind(tmp_path):
    rows = ["b,one", "a,two", '"c  \n d",one', "b,two", "a,two"]
    path = raw_data.written(tmp_path / "train.csv", "\n".join(["text,category", *rows]))
    found = list(reader(banking77)([path], 1))
    assert {(each.text, each.label) for each in found[:3]} == {("b", "one"), ("a", "two"), ("c d", "one")}
    assert [(each.text, each.label, each.documents, each.dropped) for each in found[3:]] == [
        ("b", "two", ("one",), ("repeated_text",)),
        ("a", "two", ("two",), ("repeated_text",)),
    ]
    orders = {tuple(each.text for each in reader(banking77)([path], seed)) for seed in range(8)}
    assert len(orders) > 1 and list(reader(banking77)([path], 1)) == found
