"""Real vLLM servers, started by launch/serve.sh with its own defaults."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

SERVE = Path(__file__).parent.parent / "launch/serve.sh"
START_SECONDS = 900
"""Longest start; an idle core needs half a minute, but many tests may share one."""


@dataclass(frozen=True, kw_only=True)
class Server:
    process: subprocess.Popen
    base_url: str
    model: Path
    """Folder of the model, whose name is the one it is served under."""


@contextmanager
def serving(folder: Path, *options: str, key: str) -> Iterator[Server]:
    """A server of the model in `folder`; `key` is asked of callers. Its log lies beside the folder."""
    port, log = free_port(), folder.with_name(f"{folder.name}.log")
    environment = os.environ | {
        "PYTHON": sys.executable,
        "VLLM_API_KEY": key,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",  # off in a process that has loaded our own engine
    }
    command = [str(SERVE), str(folder), str(port), "1", *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            _wait_until_healthy(process, port, log)
            yield Server(process=process, base_url=f"http://127.0.0.1:{port}/v1", model=folder)
        finally:
            with suppress(ProcessLookupError):  # the server and its engine may be gone: a test kills it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_healthy(process: subprocess.Popen, port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    pytest.fail(f"the vLLM server did not start:\n{log.read_text(errors='replace')[-4000:]}")
