"""What the client costs beside waiting: calls of 50 ms at 64 in flight, against the time the server alone needs for
them.

    python -m tests.benchmarks.endpoint      # writes results/endpoint.json

`calls` are 1,000 plain calls. `questions` are 1,000 questions answered, and judged strictly and leniently at once, as
`membuilder.eval --concurrency 64` does it, records written: 3,000 calls, two of them one after the other. `bare` are
the 1,000 calls by aiohttp alone, which the openai package runs on: what no client of this kind can go below.

The stub server is a process of its own. The ratio needs an idle machine: `load_average` says whether it was one.
`cpu_ms_per_call` is this process's CPU time, which the ratio cannot go below and a busy machine changes little.
"""

import argparse
import asyncio
import gc
import os
import tempfile
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path

import aiohttp

from membuilder.evaluation.answerer import ask_all, open_roles
from membuilder.evaluation.metrics import Outcome
from membuilder.evaluation.options import parse
from membuilder.evaluation.recall import Item, Ranking
from membuilder.evaluation.records import record_of
from membuilder.garbage import keep_loaded
from membuilder.llm.chat_model import Role
from membuilder.llm.client import ChatClient
from membuilder.llm.costs import Costs
from membuilder.llm.endpoints import ModelAccess, ModelEndpoint, Provider
from membuilder.llm.response_cache import AnswerCache
from membuilder.llm.usage import Usage
from membuilder.types import Dialogue, Question, Session, Turn
from tests.benchmarks.common import write
from tests.fault_server import served

COUNT, CONCURRENCY, LATENCY = 1000, 64, 0.05
IDEAL = COUNT / CONCURRENCY * LATENCY
GOAL = 1.3
RESULTS = Path(__file__).parent / "results" / "endpoint.json"
START = datetime(2023, 5, 8, 13, 56)


async def calls(base_url: str, cache: AnswerCache | None, repeat: int) -> int:
    config = ModelEndpoint(name="stub", provider=Provider.VLLM, base_url=base_url, concurrency=CONCURRENCY)
    usage = Usage()
    async with ChatClient(ModelAccess(endpoint=config), Role.ANSWERER, Costs(usage=usage, answers=cache)) as client:
        prompts = [[{"role": "user", "content": f"{repeat}: question {number}"}] for number in range(COUNT)]
        await asyncio.gather(*(client.complete(messages) for messages in prompts))
    return usage.report()["answerer"]["calls"]


async def questions(base_url: str, cache: AnswerCache | None, repeat: int) -> int:
    flags = "--dataset custom --dataset-path none --model stub --judge-model stub --provider vllm --judge-provider vllm"
    options = parse([*flags.split(), "--base-url", base_url, "--concurrency", str(CONCURRENCY)])
    asked = [
        Question(id=f"q{n}", text=f"{repeat}: question {n}?", answer="gold", category="single-hop", evidence=("D1:1",))
        for n in range(COUNT)
    ]
    turn = Turn(id="D1:1", speaker="Ann", role="user", text="A cat.")
    session = Session(id="D1", index=0, timestamp=START, turns=(turn,))
    dialogue = Dialogue(id="d", speakers=("Ann", "Ben"), sessions=(session,), questions=tuple(asked))
    found = Ranking(items=tuple(Item(text=f"Memory {n} of Ann's cats.", source_turns=("D1:1",)) for n in range(20)))
    cases = [Outcome(system="stub", dialogue=dialogue, question=question, ranking=found) for question in asked]
    usage = Usage()
    with tempfile.TemporaryFile("w") as out:

        def write(outcome: Outcome) -> None:
            assert outcome.answer is not None, "the stub answers every question"
            out.write(record_of(outcome).to_json() + "\n")
            out.flush()

        async with open_roles(
            options.answerer, options.judge, options.flags.top_k, Costs(usage=usage, answers=cache)
        ) as roles:
            await ask_all(cases, roles, options.concurrency, write)
    return sum(role["calls"] for role in usage.report().values()) - 2  # the checks


async def bare(base_url: str, cache: None, repeat: int) -> int:
    places = asyncio.Semaphore(CONCURRENCY)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one(number: int) -> None:
            body = {"model": "stub", "messages": [{"role": "user", "content": f"{repeat}: question {number}"}]}
            async with places, session.post(f"{base_url}/chat/completions", json=body) as response:
                await response.json()

        await asyncio.gather(*(one(number) for number in range(COUNT)))
    return COUNT


KINDS = {"bare": (bare, 1, 1), "calls": (calls, 1, 1), "questions": (questions, 3, 2)}
"""Kind -> what runs, calls of one item, how many of them one after the other."""


def measure(kind: str, base_url: str, cache: AnswerCache | None, repeat: int) -> dict:
    run, num_calls, in_a_row = KINDS[kind]
    gc.collect()
    began, cpu = time.perf_counter(), time.process_time()
    made = asyncio.run(run(base_url, cache, repeat))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    assert made == COUNT * num_calls, made
    ideal = in_a_row * IDEAL
    return {
        "kind": kind,
        "cache": cache is not None,
        "calls": made,
        "concurrency": CONCURRENCY,
        "ideal_seconds": ideal,
        "seconds": round(seconds, 3),
        "ratio_to_ideal": round(seconds / ideal, 3),
        "goal": GOAL,
        "cpu_ms_per_call": round(1000 * cpu / made, 3),
        "cpu_share_of_goal": round(cpu / (GOAL * ideal), 3),
        "load_average": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    rows = []
    with (
        served("tests.fault_server", LATENCY) as base_url,
        tempfile.TemporaryDirectory() as folder,
        closing(AnswerCache(folder)) as cache,
    ):
        asyncio.run(calls(base_url, None, -1))  # imports, and the server's first connections
        keep_loaded()  # as membuilder.eval does
        for kind, kept in (
            ("bare", None),
            ("calls", None),
            ("calls", cache),
            ("questions", None),
            ("questions", cache),
        ):
            for repeat in range(repeats):
                rows.append(measure(kind, base_url, kept, repeat))
                print(rows[-1], flush=True)
    write(RESULTS, rows)


if __name__ == "__main__":
    main()
