"""A server for the benchmark of rewards, in a process of its own: it answers questions, grades answers and fails.

    python -m tests.benchmarks.reward_stub LATENCY FAIL_SHARE HANG_SHARE LOG

It prints its port. Every reply follows from the request's text alone. LOG gets a line per request: what was asked, and
what became of it.
"""

import asyncio
import json
import random
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from zlib import crc32

from tests.fault_server import FaultServer, Request, answer, echo, served, status

FAILED, HUNG, ANSWERED = "failed", "hung", "answered"


def answered(prompt: str) -> str:
    """What the answerer says to a prompt."""
    return f"answer {crc32(prompt.encode())}"


def is_right(prompt: str) -> bool:
    """Whether the grader finds the answer right that stands in its prompt."""
    return crc32(prompt.partition("Answer to grade: ")[2].partition("\n")[0].encode()) % 2 == 0


def reply(request: Request) -> str:
    prompt = echo(request)
    return json.dumps({"correct": is_right(prompt)}) if "response_format" in request.body else answered(prompt)


def stub_server(
    latency: float, fail_share: float = 0.0, hang_share: float = 0.0, log: Path | None = None
) -> AbstractContextManager[str]:
    return served(__name__, latency, fail_share, hang_share, log or "/dev/null")


def main() -> None:
    latency, fail_share, hang_share = map(float, sys.argv[1:4])
    draw, log = random.Random(1), open(sys.argv[4], "a", encoding="utf-8")

    async def respond(request: Request, writer: asyncio.StreamWriter) -> None:
        drawn = draw.random()
        outcome = FAILED if drawn < fail_share else HUNG if drawn < fail_share + hang_share else ANSWERED
        if sys.argv[4] != "/dev/null":
            log.write(json.dumps({"asked": echo(request), "outcome": outcome}) + "\n")
            log.flush()
        await asyncio.sleep(3600 if outcome == HUNG else latency)
        await (status(500) if outcome == FAILED else answer(reply(request)))(request, writer)

    stub = FaultServer(respond)
    asyncio.run(stub.serve(lambda: print(stub.port, flush=True)))


if __name__ == "__main__":
    main()
