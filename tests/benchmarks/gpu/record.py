"""The JSON file of a stage, written anew with every row, so that a stage that is stopped leaves what it has."""

import json
import os
import platform
import time
from pathlib import Path

import torch

from membuilder.files import write_atomic
from tests.benchmarks.common import header
from tests.benchmarks.gpu.identity import source_digest


class Record:
    """What a stage found, what it left out and what went wrong in it."""

    def __init__(self, folder: Path, stage: str, tiny: bool) -> None:
        self.stage, self.tiny = stage, tiny
        self.work = folder / "work" / stage
        """For models and runs; it need not be kept."""
        self._path, self._began = folder / f"{stage}.json", time.monotonic()
        self._rows: list[dict] = []
        self._skipped: list[dict] = []
        self._failures: list[dict] = []
        self.work.mkdir(parents=True, exist_ok=True)
        self._write()

    def add(self, row: dict) -> None:
        """Keep a measurement."""
        print(row, flush=True)
        self._rows.append(row)
        self._write()

    def skip(self, what: str, why: str) -> None:
        """Say what is not measured on this machine."""
        print(f"left out: {what}: {why}", flush=True)
        self._skipped.append({"what": what, "why": why})
        self._write()

    def fail(self, what: str, why: str) -> None:
        """Say what is wrong; the stage goes on, and ends as failed."""
        print(f"FAILED: {what}: {why}", flush=True)
        self._failures.append({"what": what, "why": why})
        self._write()

    def finish(self) -> bool:
        """Call the stage complete, unless something failed; returns whether it is."""
        self._write(complete=not self._failures)
        return not self._failures

    def _write(self, complete: bool = False) -> None:
        found = {"stage": self.stage, "complete": complete, "tiny": self.tiny, "source": source_digest()} | header()
        found["commit"] = found["commit"] or os.environ.get("COMMIT")  # a copy on a lent machine has no git
        found["versions"] |= {"python": platform.python_version(), "cuda": torch.version.cuda}
        found |= {"seconds": round(time.monotonic() - self._began, 1), "skipped": self._skipped}
        found |= {"failures": self._failures, "rows": self._rows}
        write_atomic(self._path, json.dumps(found, indent=2) + "\n")
