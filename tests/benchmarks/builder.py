"""How much a build takes beyond waiting for its model: 30 sessions, a model of 50 ms, real embeddings, a real store.

    taskset -c 0 env OMP_NUM_THREADS=1 python -m tests.benchmarks.builder [--data locomo10.json --conv-id conv-41]

The ideal is 30 x 50 ms: the four agents of a session answer at once, a session needs the one before it. Two kinds of answers:
quotes of turns (whose embeddings are made while the model writes), and texts of the model's own (two a session of about ten
words, which can only be embedded afterwards). `bag of words` is an embedder that costs next to nothing: what is left over the
ideal is the builder, the prompts, the search and the store.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from membuilder.builder import Builder, chat_agents
from membuilder.chat import Message
from membuilder.datasets.load import load
from membuilder.embed import Embedder, TextEmbedder
from membuilder.generate.dialogue import generate
from membuilder.prompts import PromptConfig
from membuilder.store import reading, writing
from membuilder.types import Agent, Dialogue
from tests.benchmarks.common import write
from tests.fakes import HashEmbedder
from tests.scripted import agent_of, num_turns

NUM_SESSIONS, LATENCY_SECONDS, REPEATS = 30, 0.05, 3
EMBEDDERS = {"bag of words": lambda: HashEmbedder(384), "MiniLM": Embedder}
RESULT = Path(__file__).parent / "results" / "builder.json"


class SlowModel:
    def __init__(self, writes: str):
        self._writes, self._count = writes, 0

    async def complete(self, messages: Sequence[Message], *, schema: Mapping | None = None) -> str:
        await asyncio.sleep(LATENCY_SECONDS)
        prompt = messages[0]["content"]
        agent = agent_of(prompt)
        if agent is Agent.CORE:
            return '{"operation": "SKIP"}'
        if self._writes == "quotes":
            last = num_turns(prompt)
            return json.dumps({"operations": [{"action": "ADD", "quote": [n]} for n in (1, (last + 1) // 2, last)]})
        if self._writes == "texts" and agent is not Agent.PROCEDURAL:
            self._count += 1
            return json.dumps({"operations": [{"action": "ADD", "memory": f"2023-05-07: Ann ran race {self._count}."}]})
        return '{"operations": []}'


def run(dialogue: Dialogue, writes: str, embedder: TextEmbedder, folder: Path, number: int) -> dict:
    prompts = PromptConfig()
    embedder.embed(["warm"])
    builder = Builder(ask=chat_agents(SlowModel(writes), prompts), embedder=embedder, prompts=prompts)
    path = folder / f"{writes}{number}.db"
    with writing(path, {"dimension": embedder.dimension}) as store:
        began, cpu = time.perf_counter(), time.process_time()
        asyncio.run(builder.build(dialogue, store))
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    builder.close()
    with reading(path) as store:
        return {"seconds": seconds, "cpu_seconds": cpu, "entries": len(store.bank().entries)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="LoCoMo or LongMemEval file; else a generated dialogue")
    parser.add_argument("--conv-id")
    given = parser.parse_args()
    dialogues = {"generated": _generated()}
    if given.data:
        dialogues[given.conv_id] = next(each for each in load(given.data) if each.id == given.conv_id)
    rows = []
    ideal = NUM_SESSIONS * LATENCY_SECONDS
    for name, dialogue in dialogues.items():
        sessions = dialogue.sessions[:NUM_SESSIONS]
        dialogue = Dialogue(id=dialogue.id, speakers=dialogue.speakers, sessions=sessions, questions=())
        for (kind, embedder), writes in itertools.product(EMBEDDERS.items(), ("quotes", "texts")):
            with tempfile.TemporaryDirectory() as folder:
                runs = [run(dialogue, writes, embedder(), Path(folder), number) for number in range(REPEATS)]
            median = statistics.median(each["seconds"] for each in runs)
            row = {
                "dialogue": name,
                "sessions": len(sessions),
                "turns": sum(len(session.turns) for session in sessions),
                "embedder": kind,
                "writes": writes,
                "entries": runs[0]["entries"],
                "ideal_seconds": ideal,
                "seconds": round(median, 3),
                "ratio": round(median / ideal, 3),
                "cpu_seconds": round(statistics.median(each["cpu_seconds"] for each in runs), 3),
            }
            print(json.dumps(row), flush=True)
            rows.append(row)
    write(RESULT, rows)


def _generated() -> Dialogue:
    """30 sessions out of two generated dialogues, the second's after the first's."""
    first, second = generate(2, 0, "train", num_sessions=15, turns_per_session=8)
    shift = first.sessions[-1].timestamp - second.sessions[0].timestamp
    moved = [
        replace(
            session,
            id=f"second-{session.id}",
            index=len(first.sessions) + session.index,
            timestamp=session.timestamp + shift,
            turns=tuple(replace(turn, id=f"second-{turn.id}") for turn in session.turns),
        )
        for session in second.sessions
    ]
    return replace(first, sessions=(*first.sessions, *moved), questions=())


if __name__ == "__main__":
    main()
