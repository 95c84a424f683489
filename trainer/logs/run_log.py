"""The log of a run: metrics.jsonl and completions.jsonl always, Weights & Biases when a project is named."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from membuilder.errors import DataError
from membuilder.files import write_atomic
from trainer.logs.wandb_run import WandbRun, is_switched_off

METRICS_FILE = "metrics.jsonl"
COMPLETIONS_FILE = "completions.jsonl"
SKIPPED_FILE = "skipped.jsonl"
WANDB_ID_FILE = "wandb_run_id.txt"
FILES = (METRICS_FILE, COMPLETIONS_FILE, SKIPPED_FILE)


class RunLog:
    """One run's log, written by one process; with `enabled=False` (every rank but the first) it writes nothing.

    In an existing folder it appends; a resumed run first calls `drop_from`.
    """

    def __init__(
        self,
        out_dir: str | Path,
        wandb_project: str | None,
        config: Mapping[str, Any],
        run_name: str,
        *,
        enabled: bool = True,
    ):
        self.enabled, self._out_dir = enabled, Path(out_dir)
        self._project, self._config, self._run_name = wandb_project, config, run_name
        self._wandb_run: WandbRun | None = None
        if enabled:
            self._out_dir.mkdir(parents=True, exist_ok=True)
            for name in FILES:
                (self._out_dir / name).touch()

    def start_wandb(self, run_id: str | None, anew: bool) -> str | None:
        """Start a W&B run; returns its id, or None where no project was named.

        `run_id` is what a checkpoint holds. Without one, a run that does not start `anew` goes on with the id in
        WANDB_ID_FILE: it may have been killed before its first checkpoint. Else the run is a new one.
        """
        if not self.enabled or self._project is None:
            return None
        kept = self._out_dir / WANDB_ID_FILE
        if run_id is None and not anew and kept.exists():
            run_id = kept.read_text(encoding="utf-8").strip()
        if is_switched_off():
            print("Weights & Biases: WANDB_DISABLED or WANDB_MODE switches it off", flush=True)
            return run_id
        self._wandb_run = WandbRun(self._out_dir, self._project, self._run_name, self._config, run_id)
        write_atomic(kept, f"{self._wandb_run.id}\n")
        return self._wandb_run.id

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write one line of metrics.jsonl. NaN and infinities become null there, and `nonfinite` lists their names."""
        values = {name: float(value) for name, value in metrics.items()}
        nonfinite = [name for name, value in values.items() if not math.isfinite(value)]
        line = {"step": step} | {name: None if name in nonfinite else value for name, value in values.items()}
        self._write(METRICS_FILE, [line | ({"nonfinite": nonfinite} if nonfinite else {})])
        if self._wandb_run is not None:
            self._wandb_run.log(values, step)

    def log_completions(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write one line of completions.jsonl per row (each has its `step`); the first few also go into a W&B table."""
        self._write(COMPLETIONS_FILE, rows)
        if self._wandb_run is not None and rows:
            self._wandb_run.log_completions(rows)

    def log_skipped(self, step: int, sessions: Sequence[str]) -> None:
        """Write the sessions of an update that was left out as one line of skipped.jsonl."""
        self._write(SKIPPED_FILE, [{"step": step, "sessions": list(sessions)}])

    def drop_from(self, step: int) -> None:
        """Drop every row of `step` and later, and half a last line: the run resumed at `step` writes them again.

        Each file is replaced as a whole or left as it was. Weights & Biases keeps the dropped rows of its run.
        """
        for path in (self._out_dir / name for name in FILES if self.enabled):
            write_atomic(path, "".join(line for line, row in _rows(path) if row["step"] < step))

    def close(self) -> None:
        if self._wandb_run is not None:
            self._wandb_run.finish()
            self._wandb_run = None

    def _write(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if not self.enabled:
            return
        with open(self._out_dir / name, "a", encoding="utf-8") as file:
            # allow_nan=False: a NaN in a completion row must fail here, not in whatever reads the file later.
            file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())  # a checkpoint outlives a power cut; the rows before it must too


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Return the records of a log file. A last line that a killed run left half-written is dropped."""
    return [record for _, record in _rows(Path(path))]


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (line with its end, record) of every whole line."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                yield line.decode(), json.loads(line)
            except ValueError as error:  # no JSON, or no UTF-8
                raise DataError(path, f"line {number}", "(whole line)", f"not valid JSON: {error}") from error
