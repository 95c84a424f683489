"""Data files of any size, and a process that is watched while it reads them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from membuilder.datasets.memalpha import Row, write_rows

WATCH = """
import json, os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(child.pid, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""
"""A small process in between: the peak of a child counts what its parent was as large as when it forked."""


class Measured(NamedTuple):
    processor_seconds: float
    megabytes: float
    """Peak."""
    seconds: float
    """As the clock has it."""


def measured(*arguments: object) -> Measured:
    """What `python -m membuilder.data` takes, on two cores at most."""
    command = [sys.executable, "-c", WATCH, sys.executable, "-m", "membuilder.data", *map(str, arguments)]
    began = time.perf_counter()
    told = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "2"}
    )
    status, processor_seconds, megabytes = json.loads(told.stdout)
    assert status == 0, told.stderr
    return Measured(processor_seconds, megabytes, time.perf_counter() - began)


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
