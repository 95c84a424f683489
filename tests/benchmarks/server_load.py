"""The load of tests/benchmarks/server.py, as Locust runs it: open loop, in a process of its own.

Requests are due at even distances, whatever became of those before; each is sent by a greenlet of its own, and its time
counts from when it was due. So one that waits because the server, or this process, falls behind is told as slow
(no coordinated omission).
"""

import json
import os
import random
import time
from pathlib import Path
from urllib.parse import quote

import gevent
from locust import FastHttpUser, events, task
from locust.env import Environment

from tests.benchmarks.server_data import question, questions, sentence, user_name

PLAN = json.loads(os.environ["MEMBUILDER_LOAD"])
"""What is sent: see `Scenario` in server.py."""
MOST_IN_FLIGHT = 2_000
SAMPLES: dict[str, list[float]] = {"search": [], "write": []}
FAILURES: list[str] = []


class Arrivals(FastHttpUser):
    """All users of the server at once; Locust runs one of these."""

    concurrency = MOST_IN_FLIGHT

    def on_start(self) -> None:
        self._draw, self._asked = random.Random(PLAN["seed"]), questions(PLAN["num_asked"])

    @task
    def arrive(self) -> None:
        began, total = time.perf_counter(), PLAN["searches"] + PLAN["writes"]
        for number in range(int(total * PLAN["seconds"])):
            due = began + number / total
            if (early := due - time.perf_counter()) > 0:
                gevent.sleep(early)
            is_write = self._draw.random() * total < PLAN["writes"]
            user = user_name(self._draw.randrange(PLAN["num_users"]))
            send = self._write if is_write else self._search
            gevent.spawn(send, due, user, number)
        gevent.sleep(PLAN["seconds"] / 4 + 2)  # for those that are still under way
        self.environment.runner.quit()

    def _search(self, due: float, user: str, number: int) -> None:
        method, is_new = PLAN["method"], PLAN["is_new"]
        asked = question(PLAN["seed"] * 1_000_003 + number) if is_new else self._draw.choice(self._asked)
        self._send("search", due, "GET", f"/v1/users/{user}/search?method={method}&query={quote(asked)}")

    def _write(self, due: float, user: str, number: int) -> None:
        body = {"messages": [{"role": "user", "content": sentence(PLAN["seed"] * 1_000_003 + number)}]}
        self._send("write", due, "POST", f"/v1/users/{user}/sessions", json=body)

    def _send(self, kind: str, due: float, method: str, path: str, **more: object) -> None:
        with self.client.request(method, path, name=kind, catch_response=True, **more) as response:
            seconds = time.perf_counter() - due
            SAMPLES[kind].append(seconds)
            if response.status_code not in (200, 202):
                FAILURES.append(f"{kind}: {response.status_code}")
                response.failure(str(response.status_code))
            response.request_meta["response_time"] = 1000 * seconds  # what Locust tells, too


@events.quitting.add_listener
def keep(environment: Environment, **_: object) -> None:
    told = {"samples": SAMPLES, "failures": FAILURES[:20], "num_failures": len(FAILURES)}
    Path(PLAN["out"]).write_text(json.dumps(told), encoding="utf-8")
