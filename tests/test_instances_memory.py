"""Builds and the leak comparison of large files stay under 500 MB, whatever the files hold."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from membuilder.datasets.memalpha import Row, write_rows
from membuilder.datasets.parquet import column_types
from membuilder.errors import WriteError
from membuilder.instances.labels import _TABLES, banking77, reader
from tests import raw_data
from tests.large_files import instances, measured, words

PEAK_MB = 500
SIZE = 62_000_000


@pytest.mark.slow
def test_two_files_of_62_mb_are_compared_in_linear_time_and_500_mb(tmp_path):
    """A quarter of them takes more than a quarter of the time, because the command has to start."""
    took = {}
    for size in (SIZE // 4, SIZE):
        files = (instances(tmp_path / f"{size}-{seed}.parquet", seed, size) for seed in (1, 2))
        took[size], megabytes, _ = measured("leaks", *files)
    assert megabytes < PEAK_MB and took[SIZE] < 6 * took[SIZE // 4]


def long_memories(folder: Path, samples: int) -> Path:
    return raw_data.longmemeval(folder, [f"sample {number}" for number in range(samples)])


RAW = {
    "squad": (raw_data.squad, 640),
    "hotpotqa": (raw_data.hotpotqa, 8000),
    "perltqa": (raw_data.perltqa, 265),
    "longmemeval": (long_memories, 115),
    "books": (raw_data.books, 740),
}
"""What writes the raw files of a dataset, and how many of its parts make about 2.5 MB."""


@pytest.mark.slow
@pytest.mark.parametrize("name", RAW)
def test_what_a_build_takes_hardly_grows_with_its_raw_files(tmp_path, name):
    """By this growth files of 62 MB stay under 500 MB."""
    write, parts = RAW[name]
    sizes, peaks = [], []
    for times in (1, 5):
        folder = tmp_path / str(times)
        write(folder / "raw", parts * times)
        given = ("--source", folder / "raw", "--out", folder / "out", "--split", 0.2)
        peaks.append(measured("build-memalpha", "--dataset", name, *given).megabytes)
        sizes.append(sum(unpacked(path) for path in (folder / "raw").iterdir()))
        told = json.loads((folder / "out" / name / "build.json").read_text())
        assert told["train"]["instances"] > 2 * times
    assert sizes[0] > 2_000_000 and sizes[1] > 4.9 * sizes[0]
    growth = max(peaks[1] - peaks[0], 0) / (sizes[1] - sizes[0])
    assert peaks[0] + growth * (SIZE - sizes[0]) < PEAK_MB, (peaks, sizes)


def unpacked(path: Path) -> int:
    content = path.read_bytes()
    return len(gzip.decompress(content) if path.suffix == ".gz" else content)


@pytest.mark.slow
def test_what_a_merge_takes_does_not_depend_on_what_it_merges(tmp_path):
    """Twenty rows of 2 MB, and three times as many."""
    peaks = []
    for number in (20, 60):
        folder = tmp_path / str(number) / "squad"
        rng, vocabulary = words(4)
        text = " ".join(vocabulary[rng.integers(0, len(vocabulary), 320_000)])
        told = {"prompt": "", "data_source": "squad", "metadata": "{}", "num_chunks": 1, "num_questions": 0}
        rows = (
            Row(instance_id=i, chunks=json.dumps([f"{i} {text[i:]}"]), questions_and_answers="[]", **told)
            for i in range(number)
        )
        write_rows(folder / "train.parquet", rows)
        (folder / "build.json").write_text(json.dumps({"train": {"instances": number}}))
        peaks.append(measured("build-memalpha", "--merge", "squad", "--out", folder.parent).megabytes)
        assert column_types(folder.parent / "train.parquet")
    assert len(text) > 1_900_000 and peaks[1] < PEAK_MB
    assert peaks[1] - peaks[0] < 40 * len(text) / 1e6, peaks  # not even what the others hold


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
    return measured("build-memalpha", *given).megabytes


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
