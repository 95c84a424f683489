"""Memories of memalpha's longest instances, built by whole commands that are killed again and again."""

import random
import re
import time
from pathlib import Path

import pytest

from membuilder import build, expert
from membuilder.bank.store import reading
from membuilder.datasets.memalpha import write_rows
from membuilder.embedding import options
from tests.evaluating import hash_embedder
from tests.fault_server import FaultServer, Request, answering
from tests.instances import row
from tests.killed import start
from tests.memalpha_chunks import call, insert

pytestmark = pytest.mark.slow
NUM_CHUNKS, KILLS = 219, 4
"""As many chunks as the longest published instance has."""
FILLER = "The weather was much as it had been the day before, and nobody said more about it. " * 96
"""About 2,048 tokens, as a published chunk has."""
COMMANDS = {
    "build": (build.main, ("--model", "m", "--out"), "memory.db"),
    "expert": (expert.main, ("--expert-model", "m", "--output-dir"), "out"),
}


def write(request: Request) -> str:
    """A writer who stores what a chunk tells, at every seventh in the place of an entry that it is shown."""
    said = "".join(each["content"] for each in request.body["messages"])
    if not (told := re.search(r"Fact (\d+) is told here", said)):
        return '{"ready": true}'  # the check before the first chunk
    shown = re.findall(r"\[(m\d+)\]", said)
    if shown and int(told[1]) % 7 == 0:
        return call("memory_update", memory_type="semantic", memory_id=shown[0], new_content=told[0])
    return insert("semantic", told[0])


def run(command: str, folder: Path, base_url: str) -> None:
    """Run the command in a process of its own, with a bag of words in place of the embedding model."""
    options.open_embedder = hash_embedder(folder)
    main, named, out = COMMANDS[command]
    data = ["--scheme", "memalpha", "--dataset", "memalpha", "--dataset-path", str(folder / "test.parquet")]
    served = ["--provider", "vllm", "--base-url", base_url]
    raise SystemExit(main([*data, *named, str(folder / out), *served]))


def store_of(folder: Path):
    (path,) = folder.rglob("memory.db")
    return reading(path)


@pytest.mark.parametrize("command", COMMANDS)
def test_219_chunks_are_built_through_kills_as_by_one_that_nobody_stopped(tmp_path, command):
    rng = random.Random(0)
    chunks = [f"Fact {number} is told here. {FILLER}" for number in range(NUM_CHUNKS)]
    for folder in (tmp_path / "killed", tmp_path / "whole"):
        folder.mkdir()
        write_rows(folder / "test.parquet", [row(0, "squad", chunks=chunks)])

    with FaultServer(answering(write, seconds=0.002)) as server:
        whole = start(run, command, tmp_path / "whole", server.base_url)
        whole.join()
        assert whole.exitcode == 0
        checks = len(server.requests) - NUM_CHUNKS
        assert checks <= 1

        before = len(server.requests)
        for life in range(KILLS):
            process = start(run, command, tmp_path / "killed", server.base_url)
            enough = before + checks * (life + 1) + NUM_CHUNKS * (life + 1) // (KILLS + 1)
            while len(server.requests) < enough and process.is_alive():
                time.sleep(0.001)
            time.sleep(rng.random() * 0.02)  # anywhere in a chunk, its commit included
            process.kill()
            process.join()
            assert process.exitcode == -9
            assert not list((tmp_path / "killed").rglob("metadata.json"))  # what makes a sample a whole one
        last = start(run, command, tmp_path / "killed", server.base_url)
        last.join()
        assert last.exitcode == 0
        asked = len(server.requests) - before - checks * (KILLS + 1)
    assert NUM_CHUNKS <= asked <= NUM_CHUNKS + KILLS  # of each life the chunk in flight
    with store_of(tmp_path / "killed") as stopped, store_of(tmp_path / "whole") as straight:
        assert stopped.bank() == straight.bank() and stopped.num_sessions() == NUM_CHUNKS
        assert len(stopped.bank().deleted) > 10  # what an update has replaced
        assert (stopped.vectors() == straight.vectors()).all()
