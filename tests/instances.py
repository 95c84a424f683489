"""Instances in Memalpha's Parquet format, evaluated on a loopback server: for tests of `membuilder.eval`."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from membuilder import eval as command
from membuilder.datasets.memalpha import Row, write_rows
from membuilder.embedding import options
from membuilder.evaluation import run
from tests.evaluating import JUDGED, hash_embedder
from tests.fault_server import FaultServer

CHUNKS = (
    "Ann lives in Oslo.\nI adopted a cat called Miso last Friday.",
    "The whale swam in the sea.\nIt was as old as the sea itself.",
)
ASKED = (("Where does Ann live?", "Oslo"), ("What swam in the sea?", "whale"))


def row(number: int, source: str, asked: Sequence = ASKED, chunks: Sequence[str] = CHUNKS, **more: str) -> Row:
    questions = [{"question": text, "answer": answer} | more for text, answer in asked]
    return Row(
        instance_id=number,
        prompt="",
        chunks=json.dumps(chunks),
        questions_and_answers=json.dumps(questions),
        data_source=source,
        metadata="{}",
        num_chunks=len(chunks),
        num_questions=len(questions),
    )


def flags(folder: Path, base_url: str, *more: str, out: str = "out") -> list[str]:
    data = ["--dataset", "memalpha", "--dataset-path", str(folder / "test.parquet")]
    served = ["--model", "m", "--provider", "vllm", "--base-url", base_url, *JUDGED]
    return [*data, "--output-dir", str(folder / out), *served, *more]


def caller(tmp_path: Path, monkeypatch, *rows: Row) -> Callable[..., int]:
    """`call(server, *flags, out=...)`: the exit status of an evaluation of these rows, without its picture."""
    write_rows(tmp_path / "test.parquet", rows or [row(0, "squad"), row(1, "hotpotqa")])
    monkeypatch.setattr(options, "open_embedder", hash_embedder(tmp_path))
    monkeypatch.setattr(run, "draw", lambda *_: None)

    def call(server: FaultServer, *more: str, out: str = "out") -> int:
        return command.main(flags(tmp_path, server.base_url, *more, out=out))

    return call
