"""What the client costs: 1,000 calls of 50 ms at 64 in flight, against the time the server alone needs for them.

    python -m tests.benchmarks.endpoint      # writes results/endpoint.json

The stub server is a process of its own. The ratio needs an idle machine: `load_average` says whether it was one, and
`overhead_cpu_seconds`, this process's CPU time, is what the ratio cannot go below.
"""

import argparse
import asyncio
import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from membuilder.answer_cache import AnswerCache
from membuilder.chat import Role
from membuilder.client import ChatClient
from membuilder.endpoints import ChatConfig, EndpointConfig, Provider
from membuilder.usage import Usage
from tests.benchmarks.common import write

NUM_CALLS, CONCURRENCY, LATENCY = 1000, 64, 0.05
IDEAL = NUM_CALLS / CONCURRENCY * LATENCY
GOAL = 1.3
RESULTS = Path(__file__).parent / "results" / "endpoint.json"


@contextmanager
def stub_server(latency: float) -> Iterator[str]:
    command = [sys.executable, "-m", "tests.fault_server", str(latency)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.terminate()
        process.wait()


async def run(base_url: str, cache: AnswerCache | None, repeat: int) -> dict:
    endpoint = EndpointConfig(provider=Provider.VLLM, base_url=base_url, concurrency=CONCURRENCY)
    usage = Usage()
    async with ChatClient(ChatConfig(model="stub", endpoint=endpoint), Role.ANSWERER, usage, cache=cache) as client:
        await client.check()
        gc.collect()
        began, cpu = time.perf_counter(), time.process_time()
        prompts = [[{"role": "user", "content": f"{repeat}: question {number}"}] for number in range(NUM_CALLS)]
        await asyncio.gather(*(client.complete(messages) for messages in prompts))
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    report = usage.report()["answerer"]
    assert report["calls"] == NUM_CALLS + 1, report
    return {
        "cache": cache is not None,
        "seconds": round(seconds, 3),
        "ratio_to_ideal": round(seconds / IDEAL, 3),
        "overhead_cpu_seconds": round(cpu, 3),
        "latency_p50_seconds": round(report["latency_p50_seconds"], 4),
        "latency_p95_seconds": round(report["latency_p95_seconds"], 4),
        "load_average": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    rows = []
    with stub_server(LATENCY) as base_url, tempfile.TemporaryDirectory() as folder:
        cache = AnswerCache(folder)
        for kept in (None, cache):
            for repeat in range(repeats):
                row = asyncio.run(run(base_url, kept, repeat))
                print(row, flush=True)
                rows.append(
                    row | {"calls": NUM_CALLS, "concurrency": CONCURRENCY, "ideal_seconds": IDEAL, "goal": GOAL}
                )
        cache.close()
    write(RESULTS, rows)


if __name__ == "__main__":
    main()
