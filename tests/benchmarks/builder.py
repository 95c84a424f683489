"""How much a build takes beyond waiting for its model: 30 sessions, an endpoint of 50 ms, real embeddings, a real
store.

    python -m tests.benchmarks.builder [--data locomo10.json --conv-id conv-41]

The builder asks through its own client over HTTP; the endpoint is a process of its own on loopback and shares the
builder's cores. The ideal is 30 x 50 ms: the four agents of a session answer at once, a session needs the one before
it. Two kinds of answers: quotes of turns (which are embedded to be shown to the model, so not once more), and texts of
the model's own (two a session of about ten words, which can only be embedded afterwards). Three embedders:

`bag of words` costs next to nothing: what is left over the ideal is the builder, its client, the search and the store.
`MiniLM, turns known` has the dialogue's turns in its cache, as after an evaluation, a stopped or an earlier build of
the dialogue. `MiniLM` knows nothing; `embed_seconds` is what embedding all turns takes by itself, in one go and with
nothing beside it.
"""

import argparse
import asyncio
import itertools
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from membuilder.bank.store import reading, writing
from membuilder.building.builder import Builder, ask_model
from membuilder.datasets.load import load
from membuilder.embedding.local import Embedder, TextEmbedder
from membuilder.generate.dialogue import generate
from membuilder.llm.chat_model import Role
from membuilder.llm.client import ChatClient
from membuilder.llm.costs import Costs
from membuilder.llm.endpoints import ModelAccess, ModelEndpoint, Provider
from membuilder.llm.usage import Usage
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.four_agents.scheme import FourAgents
from membuilder.text import quoted
from membuilder.types import Agent, Dialogue
from tests.benchmarks.common import write
from tests.fakes import HashEmbedder
from tests.fault_server import FaultServer, Request, answering, served
from tests.scripted import agent_of, num_turns

NUM_SESSIONS, LATENCY_SECONDS, GOAL, REPEATS = 30, 0.05, 1.3, 5
EMBEDDERS = {"bag of words": lambda: HashEmbedder(384), "MiniLM, turns known": Embedder, "MiniLM": Embedder}
WRITES = ("quotes", "texts")
RESULT = Path(__file__).parent / "results" / "builder.json"


def reply(request: Request) -> str:
    """What the model named `quotes` or `texts` answers."""
    prompt = request.body["messages"][-1]["content"]
    if prompt.startswith("Answer with this JSON"):
        return '{"ready": true}'
    agent, last = agent_of(prompt), num_turns(prompt)
    if agent is Agent.CORE:
        return '{"operation": "SKIP"}'
    if request.body["model"] == "quotes":
        return json.dumps({"operations": [{"action": "ADD", "quote": [n]} for n in (1, (last + 1) // 2, last)]})
    if agent is Agent.PROCEDURAL:
        return '{"operations": []}'
    text = f"2023-05-07: Ann ran race {len(prompt)} for the {agent} memory."  # no two prompts are of one length here
    return json.dumps({"operations": [{"action": "ADD", "memory": text}]})


def serve() -> None:
    server = FaultServer(answering(reply, LATENCY_SECONDS))
    asyncio.run(server.serve(lambda: print(server.port, flush=True)))


async def build(dialogue: Dialogue, writes: str, embedder: TextEmbedder, path: Path, base_url: str) -> dict:
    endpoint = ModelEndpoint(name=writes, provider=Provider.VLLM, base_url=base_url)
    scheme = FourAgents(PromptConfig())
    usage = Usage()
    async with ChatClient(ModelAccess(endpoint=endpoint), Role.BUILDER, Costs(usage=usage)) as model:
        await model.check()
        builder = Builder(ask=ask_model(model, scheme), embedder=embedder, scheme=scheme)
        with writing(path, {"dimension": embedder.dimension}) as store:
            began, cpu = time.perf_counter(), time.process_time()
            await builder.build(dialogue, store)
            seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        builder.close()
    used = usage.report()["builder"]
    return {"seconds": seconds, "cpu_seconds": cpu, "p50": used["latency_p50_seconds"], "calls": used["calls"] - 1}


def run(dialogue: Dialogue, writes: str, kind: str, folder: Path, number: int, base_url: str) -> dict:
    embedder = EMBEDDERS[kind]()
    embedder.embed(["warm"])
    began = time.perf_counter()
    if kind != "MiniLM":
        embedder.embed([quoted(session, turn) for session in dialogue.sessions for turn in session.turns])
    embed_seconds = time.perf_counter() - began
    path = folder / f"{writes}{number}.db"
    told = asyncio.run(build(dialogue, writes, embedder, path, base_url))
    with reading(path) as store:
        assert not any(answer.failure for session in store.sessions() for answer in session.answers.values())
        return told | {"embed_seconds": embed_seconds, "entries": len(store.bank().entries)}


def row_of(name: str, dialogue: Dialogue, kind: str, writes: str, base_url: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        runs = [run(dialogue, writes, kind, Path(folder), number, base_url) for number in range(REPEATS)]

    def median(key: str) -> float:
        return statistics.median(each[key] for each in runs)

    ideal = NUM_SESSIONS * LATENCY_SECONDS
    return {
        "dialogue": name,
        "sessions": len(dialogue.sessions),
        "turns": sum(len(session.turns) for session in dialogue.sessions),
        "embedder": kind,
        "writes": writes,
        "entries": runs[0]["entries"],
        "calls": runs[0]["calls"],
        "ideal_seconds": ideal,
        "seconds": round(median("seconds"), 3),
        "ratio": round(median("seconds") / ideal, 3),
        "best_ratio": round(min(each["seconds"] for each in runs) / ideal, 3),
        "goal": GOAL,
        "cpu_seconds": round(median("cpu_seconds"), 3),
        "call_p50_seconds": round(median("p50"), 4),
        "embed_seconds": None if kind == "MiniLM" else round(median("embed_seconds"), 3),
        "load_average": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="LoCoMo or LongMemEval file; else a generated dialogue")
    parser.add_argument("--conv-id")
    parser.add_argument(
        "--embedder", action="append", choices=EMBEDDERS, help="repeatable; else all, and the result is kept"
    )
    parser.add_argument("--serve", action="store_true", help="be the endpoint, and print its port")
    given = parser.parse_args()
    if given.serve:
        return serve()
    dialogues = {"generated": _generated()}
    if given.data:
        dialogues[given.conv_id] = next(each for each in load(given.data) if each.id == given.conv_id)
    rows = []
    with served(__spec__.name, "--serve") as base_url:
        for name, dialogue in dialogues.items():
            short = replace(dialogue, sessions=dialogue.sessions[:NUM_SESSIONS], questions=())
            for kind, writes in itertools.product(given.embedder or EMBEDDERS, WRITES):
                rows.append(row_of(name, short, kind, writes, base_url))
                print(json.dumps(rows[-1]), flush=True)
    if given.embedder is None:
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
