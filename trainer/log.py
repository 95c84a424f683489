"""What a run writes down: metrics.jsonl and completions.jsonl always, Weights & Biases when a project is named."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from membuilder.errors import DataError

METRICS_FILE = "metrics.jsonl"
COMPLETIONS_FILE = "completions.jsonl"
WANDB_ID_FILE = "wandb_run_id.txt"

REDACTED = "[redacted]"
# Whole words, so that `max_prompt_tokens` and `tokenizer` stay; `..._env` holds the name of a variable, not its value.
SECRET_WORD = re.compile(r"(key|token|secret|secrets|password|passwords|passwd|credentials)$", re.IGNORECASE)


class RunLog:
    """One run's log, written by one process; with `enabled=False` (every rank but the first) it writes nothing.

        log = RunLog("runs/rl", wandb_project=None, config={"seed": 0}, run_name="rl")
        log.log({"reward/mean": 0.4, "kl": 0.01}, step=1)
        log.log_completions([{"step": 1, "agent": "core", "completion": "{}", "reward": {"qa": 0.4}, "weight": 1.0}])
        log.close()

    In an existing folder it appends; a resumed run first calls `resume_at`.
    """

    def __init__(
        self,
        out_dir: str | Path,
        wandb_project: str | None,
        config: Mapping[str, Any],
        run_name: str,
        *,
        enabled: bool = True,
        max_table_rows: int = 16,
    ):
        self.enabled = enabled
        self.max_table_rows = max_table_rows
        self._files: dict[str, IO[str]] = {}
        self._wandb_run = None
        if not enabled:
            return
        self._out_dir = Path(out_dir)
        self._out_dir.mkdir(parents=True, exist_ok=True)
        self._open_files()
        if wandb_project is not None:
            self._wandb_run = _start_wandb(self._out_dir, wandb_project, redact(config), run_name)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """One line of metrics.jsonl. NaN and infinities become null there, and `nonfinite` lists their names."""
        if not self.enabled:
            return
        values = {name: float(value) for name, value in metrics.items()}
        nonfinite = [name for name, value in values.items() if not math.isfinite(value)]
        line = {"step": step} | {name: None if name in nonfinite else value for name, value in values.items()}
        self._write(METRICS_FILE, line | ({"nonfinite": nonfinite} if nonfinite else {}))
        if self._wandb_run is not None:
            self._wandb_run.log(values | {"step": step})

    def log_completions(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """One line of completions.jsonl per row (each with its `step`); the first few also as a W&B table."""
        if not self.enabled or not rows:
            return
        for row in rows:
            self._write(COMPLETIONS_FILE, row)
        if self._wandb_run is not None:
            table = _wandb_table(rows[: self.max_table_rows])
            self._wandb_run.log({"completions": table, "step": rows[-1]["step"]})

    def resume_at(self, step: int) -> None:
        """Drops every line past `step`, the last one a checkpoint holds: the resumed run writes them again."""
        if not self.enabled:
            return
        self._close_files()
        for name in (METRICS_FILE, COMPLETIONS_FILE):
            path = self._out_dir / name
            kept = [line for line in read_jsonl(path) if line["step"] <= step]
            replacement = path.with_suffix(".tmp")
            replacement.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            os.replace(replacement, path)
        self._open_files()

    def close(self) -> None:
        self._close_files()
        if self._wandb_run is not None:
            self._wandb_run.finish()
            self._wandb_run = None

    def _open_files(self) -> None:
        for name in (METRICS_FILE, COMPLETIONS_FILE):
            self._files[name] = open(self._out_dir / name, "a", encoding="utf-8")

    def _close_files(self) -> None:
        for file in self._files.values():
            file.close()
        self._files = {}

    def _write(self, name: str, line: Mapping[str, Any]) -> None:
        # allow_nan=False: a NaN in a completion row must fail here, not in whatever reads the file later.
        self._files[name].write(json.dumps(line, allow_nan=False) + "\n")
        self._files[name].flush()


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The records of a log file. A last line that a killed run left half-written is dropped."""
    lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            break
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise DataError(path, f"line {number}", "(whole line)", f"not valid JSON: {error}") from error
    return records


def redact(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without the text of any key that is named like a secret."""
    return {name: REDACTED if _is_secret(name, value) else _redact_inside(value) for name, value in config.items()}


def _is_secret(name: str, value: Any) -> bool:
    words = re.split(r"[^A-Za-z0-9]+", str(name))
    return isinstance(value, str) and words[-1].lower() != "env" and any(map(SECRET_WORD.search, words))


def _redact_inside(value: Any) -> Any:
    if isinstance(value, Mapping):
        return redact(value)
    return [_redact_inside(item) for item in value] if isinstance(value, list | tuple) else value


def _start_wandb(out_dir: Path, project: str, config: dict[str, Any], run_name: str) -> Any:
    import wandb

    mode = os.environ.get("WANDB_MODE")
    if mode is None and wandb.api.api_key is None:
        mode = "offline"
        print(
            "Weights & Biases: no API key (WANDB_API_KEY), so this run is logged offline; "
            f"upload it later with: wandb sync {out_dir / 'wandb'}/offline-run-*",
            flush=True,
        )
    id_file = out_dir / WANDB_ID_FILE
    run_id = id_file.read_text(encoding="utf-8").strip() if id_file.is_file() else None
    run = wandb.init(
        project=project, name=run_name, config=config, dir=out_dir, id=run_id, mode=mode,
        resume="allow", settings=wandb.Settings(silent=True),
    )  # fmt: skip
    id_file.write_text(run.id + "\n", encoding="utf-8")
    # W&B refuses to count its own steps backwards, which a resumed run does; ours is an axis like any other.
    run.define_metric("*", step_metric="step")
    return run


def _wandb_table(rows: Sequence[Mapping[str, Any]]) -> Any:
    import wandb

    columns = list(dict.fromkeys(name for row in rows for name in row))
    return wandb.Table(columns=columns, data=[[_cell(row.get(name)) for name in columns] for row in rows])


def _cell(value: Any) -> Any:
    """Parts of a reward and the like as text: a W&B column holds one type."""
    return json.dumps(value) if isinstance(value, Mapping | list | tuple) else value
