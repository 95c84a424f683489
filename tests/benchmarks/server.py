"""How fast the memory server answers under a steady load, where it saturates, and what it keeps in memory.

    python -m tests.benchmarks.server --out tests/benchmarks/results/server.json
    python -m tests.benchmarks.server --out /tmp/server.json --seconds 10 --scenario bm25        a trial

The server is `python -m membuilder.serve` (rules and MiniLM) on loopback; Locust loads it from another process on the
same cores, open loop (`server_load.py`). Scenarios that stand in the file are kept: a run that was cut goes on.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import numpy as np

from membuilder.building.config import RULES, BuildConfig, Keys
from membuilder.embedding.local import Embedder
from membuilder.embedding.naming import identity_of
from membuilder.llm.endpoints import ModelEndpoint
from membuilder.serving.sqlite_vault import SqliteVault
from membuilder.types import Dialogue
from tests.benchmarks.common import header
from tests.benchmarks.server_data import memories, questions, sentence
from tests.serving_processes import free_port

STEP, MOST_STEPS = 1.5, 10


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A load, and what it must hold."""

    num_users: int
    num_entries: int
    """Of each user."""
    searches: float
    """A second."""
    writes: float = 0.0
    method: str = "hybrid"
    is_new: bool = False
    """Whether no question was asked before."""
    num_asked: int = 300
    """Different questions that are asked again and again otherwise."""
    p95_ms: float


ONE = {"num_users": 1, "num_entries": 10_000}
SCENARIOS = {
    "bm25": Scenario(**ONE, searches=200, method="bm25", is_new=True, p95_ms=60),
    "asked_before": Scenario(**ONE, searches=200, p95_ms=60),
    "new_questions": Scenario(**ONE, searches=20, is_new=True, p95_ms=150),
    "many_users": Scenario(num_users=1_000, num_entries=100, searches=20, writes=2, p95_ms=60),
}


@dataclass(frozen=True)
class Server:
    pid: int
    url: str

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path) as reply:
            return reply.read()

    def resident_mb(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        return round(int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024)


def prepare(root: Path, scenarios: Sequence[Scenario]) -> None:
    """Store the memories of the scenarios, each in a folder of its own below `root`; those that are there stay."""
    shapes = {(each.num_users, each.num_entries) for each in scenarios}
    missing = [shape for shape in shapes if not (folder_of(root, *shape) / "whole").exists()]
    if not missing:
        return
    embedder = Embedder()
    vectors = embedder.embed([sentence(number) for number in range(max(entries for _, entries in missing))])
    for users, entries in missing:
        folder = folder_of(root, users, entries)
        config = BuildConfig(out=str(folder), model=ModelEndpoint(name=RULES, temperature=None))
        identity = identity_of(embedder, config.embedder(Keys()))
        vault = SqliteVault(folder)
        for user, memory in memories(users, entries, vectors):
            settings = config.settings(Dialogue(id=user, speakers=(), sessions=(), questions=()), identity)
            with vault.writing(user, settings) as store:
                store.replace(replace(memory, settings=settings))
        vault.close()
        (folder / "whole").touch()


def folder_of(root: Path, num_users: int, num_entries: int) -> Path:
    return root / f"{num_users}x{num_entries}"


@contextmanager
def running(root: Path, log: Path) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "membuilder.serve", "--root", str(root), "--port", str(port)]
    with log.open("w") as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=printed)
    server = Server(process.pid, f"http://127.0.0.1:{port}")
    try:
        while True:
            try:
                server.get("/health")
                break
            except OSError as error:
                if process.poll() is not None:
                    raise SystemExit(log.read_text()) from error
                time.sleep(0.2)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def load(server: Server, scenario: Scenario, seconds: float, seed: int, scale: float = 1.0) -> dict:
    """Load the server for so long, at `scale` times the rate; gives what came of it."""
    with TemporaryDirectory() as folder:
        plan = asdict(scenario) | {"seconds": seconds, "seed": seed, "out": f"{folder}/samples.json"}
        plan |= {"searches": scenario.searches * scale, "writes": scenario.writes * scale}
        here = Path(__file__).with_name("server_load.py")
        command = ["-f", str(here), "--headless", "--users", "1", "--host", server.url, "--loglevel", "ERROR"]
        ran = subprocess.run(
            [sys.executable, "-m", "locust", *command, "--only-summary", "--run-time", f"{int(3 * seconds + 60)}s"],
            env=os.environ | {"MEMBUILDER_LOAD": json.dumps(plan)},
            capture_output=True,
            text=True,
        )
        told = json.loads(Path(plan["out"]).read_text(encoding="utf-8")) if Path(plan["out"]).exists() else None
        if told is None or not any(told["samples"].values()):
            raise SystemExit(f"Locust sent nothing: {ran.stdout}\n{ran.stderr}")
    rate, due = (plan["searches"] + plan["writes"]), int((plan["searches"] + plan["writes"]) * seconds)
    answered = sum(map(len, told["samples"].values()))
    return {
        "offered_per_second": rate,
        "unanswered": due - answered,
        "failures": told["num_failures"],
        "what_failed": told["failures"],
        **{kind: _times(samples) for kind, samples in told["samples"].items() if samples},
        "resident_mb": server.resident_mb(),
    }


def _times(samples: Sequence[float]) -> dict[str, float]:
    p50, p95, p99 = (1000 * np.percentile(samples, [50, 95, 99])).round(1).tolist()
    return {"count": len(samples), "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "max_ms": round(1000 * max(samples), 1)}


def holds(result: dict, scenario: Scenario) -> bool:
    times = [result[kind]["p95_ms"] for kind in ("search", "write") if kind in result]
    return not result["failures"] and not result["unanswered"] and max(times) < scenario.p95_ms


def measure(name: str, scenario: Scenario, root: Path, seconds: float) -> dict:
    """Measure a scenario at its rate, then at ever higher ones, a quarter as long, until its goal no longer holds."""
    with TemporaryDirectory() as folder, running(folder_of(root, *_shape(scenario)), Path(folder) / "log") as server:
        started = server.resident_mb()
        for asked in questions(scenario.num_asked):  # asked before: by this user, or by another
            server.get(f"/v1/users/user-0/search?method=hybrid&query={quote(asked)}")
        load(server, scenario, min(5.0, seconds), seed=1)
        result = load(server, scenario, seconds, seed=2)
        steps, held = [], scenario.searches + scenario.writes if holds(result, scenario) else 0.0
        for step in range(1, MOST_STEPS if held else 1):
            steps.append(load(server, scenario, max(5.0, seconds / 4), seed=2 + step, scale=STEP**step))
            if not holds(steps[-1], scenario):
                break
            held = steps[-1]["offered_per_second"]
    return {
        "scenario": asdict(scenario),
        "seconds": seconds,
        "holds": holds(result, scenario),
        "result": result,
        "resident_mb_at_start": started,
        "highest_rate_that_holds": round(held, 1),
        "steps": steps,
        "measured_on": header(),
    }


def _shape(scenario: Scenario) -> tuple[int, int]:
    return scenario.num_users, scenario.num_entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load")
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="repeatable; else all")
    parser.add_argument("--again", action="store_true", help="measure also what stands in the file")
    parser.add_argument(
        "--data", type=Path, default=Path("/tmp/membuilder-server-benchmark"), help="kept for later runs"
    )
    given = parser.parse_args()
    chosen = given.scenario or list(SCENARIOS)
    prepare(given.data, [SCENARIOS[name] for name in chosen])
    for name in chosen:
        found = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
        if name in found and not given.again:
            continue
        found[name] = measure(name, SCENARIOS[name], given.data, given.seconds)
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(
            name, json.dumps(found[name]["result"]), "holds up to", found[name]["highest_rate_that_holds"], flush=True
        )


if __name__ == "__main__":
    main()
