"""A small evaluation for tests: `python -m membuilder.eval` on one dialogue, its models on a loopback server."""

import json
from collections.abc import Callable
from pathlib import Path

from membuilder import eval as command
from membuilder.embedding import options
from membuilder.embedding.cache import CachedEmbedder
from membuilder.evaluation import run
from tests.fakes import HashEmbedder
from tests.fault_server import FaultServer, Request
from tests.scripted import agent_of, store_first_turn

DIALOGUE = {
    "id": "d1",
    "speakers": ["Ann", "Ben"],
    "sessions": [
        {
            "timestamp": "2024-03-15T09:30",
            "turns": [{"speaker": "Ann", "text": "My cat is called Miso."}, {"speaker": "Ben", "text": "It rains."}],
        },
        {"timestamp": "2024-03-16T09:30", "turns": [{"speaker": "Ann", "text": "I moved to Oslo."}]},
    ],
    "questions": [
        {"question": "What is the cat called?", "answer": "Miso", "category": "single-hop", "evidence": ["S1:1"]},
        {"question": "Does it rain?", "answer": "yes", "category": "single-hop", "evidence": ["S1:2"]},
    ],
}
JUDGED = ("--judge-model", "judge", "--judge-provider", "vllm")


def reply(request: Request) -> str:
    """As builder each session's first turn, as judge a verdict, else an answer."""
    prompt = request.body["messages"][-1]["content"]
    if "You keep the" in prompt:
        return store_first_turn(agent_of(prompt), prompt)
    return '{"correct": true}' if prompt.startswith("You grade") else "Miso"


def flags(folder: Path, server: FaultServer | None, *more: str, out: str = "out") -> list[str]:
    """Of an evaluation of `folder`/mine.jsonl."""
    fixed = ["--dataset", "custom", "--dataset-path", str(folder / "mine.jsonl"), "--output-dir", str(folder / out)]
    address = [] if server is None else ["--provider", "vllm", "--base-url", server.base_url]
    return [*fixed, *address, *more]


def hash_embedder(folder: Path) -> Callable[..., CachedEmbedder]:
    """In the place of `open_embedder`: the bag of words, behind the cache on disk."""

    def opened(*_) -> CachedEmbedder:
        return CachedEmbedder(HashEmbedder, folder / "embeddings", "words", HashEmbedder().dimension)

    return opened


def caller(tmp_path: Path, monkeypatch, dialogue: dict = DIALOGUE, draws: bool = False) -> Callable[..., int]:
    """`call(server, *flags, out=...)`: the exit status of the command on one dialogue; its picture takes half of the
    time.
    """
    monkeypatch.setattr(options, "open_embedder", hash_embedder(tmp_path))
    if not draws:
        monkeypatch.setattr(run, "draw", lambda found, path: None)
    (tmp_path / "mine.jsonl").write_text(json.dumps(dialogue) + "\n", encoding="utf-8")

    def call(server: FaultServer | None, *more: str, out: str = "out") -> int:
        return command.main(flags(tmp_path, server, *more, out=out))

    return call


def result(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))
