"""A memory of 100,000 entries (384-d) on one core: opening, searching, memory, for each kind of index.

    taskset -c 0 env OMP_NUM_THREADS=1 python -m tests.benchmarks.index --data longmemeval_s_cleaned.json

The vectors are MiniLM embeddings of `--sentences` distinct real sentences, filled up to 100,000 by points between two
of them with noise of a third of their length; queries are the embeddings of the file's questions, embedded beforehand.
Every kind is measured in a process of its own, once to build its index and once to open what was stored. Each time
stands there twice: as the clock has it, and as this thread's processor time, which other programs on the machine
lengthen less.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from membuilder.bank.index import IndexConfig, IndexKind, top_k
from membuilder.bank.indexed_bank import open_memory
from membuilder.bank.store import writing
from membuilder.embedding.local import Embedder
from membuilder.types import ENTRY_AGENTS, Bank, Entry, Session

NUM_ENTRIES, PER_SESSION, K = 100_000, 1000, 10
RESULT = Path(__file__).parent / "results" / "index.json"
KINDS = (IndexKind.EXACT, IndexKind.HNSW)


class GivenVectors:
    """Query number -> its vector: searching is measured without embedding."""

    def __init__(self, vectors: np.ndarray):
        self.vectors, self.dimension = vectors, vectors.shape[1]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return self.vectors[[int(text) for text in texts]]


def real_vectors(data: str, num_sentences: int, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of sentences and of questions; taken from `cache` if it is there."""
    if not cache.is_file():
        from membuilder.datasets.load import load

        dialogues = load(data)
        turns = [turn.content for dialogue in dialogues for session in dialogue.sessions for turn in session.turns]
        found = {part.strip() for turn in turns for part in re.split(r"(?<=[.!?])\s+|\n+", turn)}
        sentences = sorted(sentence for sentence in found if 25 <= len(sentence) <= 160)
        questions = sorted({question.text for dialogue in dialogues for question in dialogue.questions})[:1000]
        embedder = Embedder()
        chosen = random.Random(0).sample(sentences, num_sentences)
        np.savez(cache, vectors=embedder.embed(chosen), queries=embedder.embed(questions))
    stored = np.load(cache)
    return stored["vectors"], stored["queries"]


def filled_up(real: np.ndarray, num_rows: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    num_new = num_rows - len(real)
    first, second = (real[rng.integers(len(real), size=num_new)] for _ in range(2))
    share = rng.uniform(0.0, 0.5, (num_new, 1)).astype(np.float32)
    noise = rng.standard_normal((num_new, real.shape[1]), dtype=np.float32) / np.float32(3 * real.shape[1] ** 0.5)
    new = first + share * (second - first) + noise
    return np.concatenate([real, new / np.linalg.norm(new, axis=1, keepdims=True)])


def fill_store(path: Path, vectors: np.ndarray) -> float:
    """Seconds a session of 1,000 entries takes to store, on average."""
    entries: tuple[Entry, ...] = ()
    settings = {"dialogue": "benchmark", "speakers": [], "model": "none", "dimension": vectors.shape[1]}
    began = time.perf_counter()
    with writing(path, settings) as store:
        for number, start in enumerate(range(0, len(vectors), PER_SESSION)):
            session = Session(
                id=f"D{number}", index=number, timestamp=datetime(2023, 1, 1) + timedelta(days=number), turns=()
            )
            new = vectors[start : start + PER_SESSION]
            entries += tuple(
                Entry(
                    id=f"m{row + 1}",
                    agent=ENTRY_AGENTS[row % 3],
                    text=f"[2023-01-01] Ann: sentence {row}, about as long as what people say in a chat.",
                    session=number,
                    timestamp=session.timestamp,
                    source_turns=(f"D{number}:{row}",),
                )
                for row in range(start, start + len(new))
            )
            store.append(session, {}, Bank(entries=entries), new)
    return (time.perf_counter() - began) / (number + 1)


def measure(kind: IndexKind, path: Path, cache: Path) -> dict:
    """Of this process: opening the store, then one search at a time."""
    queries = np.load(cache)["queries"]
    embedder, config = GivenVectors(queries), IndexConfig(kind=kind, gpu=False)
    before = _memory_mb("VmRSS")
    wall, cpu = time.perf_counter(), time.thread_time()
    memory = open_memory(path, embedder, config)
    row = {"opening_seconds": time.perf_counter() - wall, "opening_cpu_seconds": time.thread_time() - cpu}
    row |= {"memory_mb": _memory_mb("VmRSS") - before}
    times, cpu_times, found = [], [], []
    for number in range(len(queries)):
        wall, cpu = time.perf_counter(), time.thread_time()
        (result,) = memory.retrieve([str(number)], K)
        cpu_times.append(1000 * (time.thread_time() - cpu))
        times.append(1000 * (time.perf_counter() - wall))
        found.append([int(entry.id[1:]) - 1 for entry in result.entries])
    row |= {"ms_p50": np.percentile(times, 50), "ms_p95": np.percentile(times, 95)}
    row |= {"cpu_ms_p50": np.percentile(cpu_times, 50), "cpu_ms_p95": np.percentile(cpu_times, 95)}
    row["peak_memory_mb"] = _memory_mb("VmHWM")
    return {name: round(float(value), 3) for name, value in row.items()} | {"found": found}


def _memory_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1000


def in_own_process(kind: IndexKind, path: Path, cache: Path) -> dict:
    command = [sys.executable, "-m", "tests.benchmarks.index", "--measure", kind.value, str(path), str(cache)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="LoCoMo or LongMemEval file whose sentences and questions are embedded")
    parser.add_argument("--sentences", type=int, default=5000)
    parser.add_argument("--cache", type=Path, help="file (npz) to keep the embeddings in, or to take them from")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        kind, path, cache = given.measure
        print(json.dumps(measure(IndexKind(kind), Path(path), Path(cache))))
        return
    from tests.benchmarks.common import write

    with tempfile.TemporaryDirectory() as folder:
        cache = given.cache or Path(folder) / "vectors.npz"
        real, queries = real_vectors(given.data, given.sentences, cache)
        vectors, path = filled_up(real, NUM_ENTRIES), Path(folder) / "memory.db"
        store_seconds = fill_store(path, vectors)
        truth = top_k(vectors, queries, K)[0]
        rows = []
        for kind in KINDS:
            first, again = in_own_process(kind, path, cache), in_own_process(kind, path, cache)
            hits = sum(len(set(a) & set(b)) for a, b in zip(truth.tolist(), again.pop("found"), strict=True))
            row = {
                "index": kind.value,
                "entries": NUM_ENTRIES,
                "dimension": vectors.shape[1],
                "real_sentences": len(real),
                "queries": len(queries),
                "recall_at_10": round(hits / truth.size, 4),
                "first_opening_cpu_seconds": first["opening_cpu_seconds"],
                **again,
                "store_mb": round(path.stat().st_size / 1e6, 1),
                "index_file_mb": round(sum(f.stat().st_size for f in Path(folder).glob("*.index")) / 1e6, 1),
                "store_seconds_per_1000": round(store_seconds, 3),
            }
            print(json.dumps(row), flush=True)
            rows.append(row)
            for index_file in Path(folder).glob("*.index"):
                index_file.unlink()
        write(RESULT, rows)


if __name__ == "__main__":
    main()
