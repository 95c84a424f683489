"""A run at Weights & Biases, which no run of ours ever waits for long or ends for.

W&B's own variables hold as it documents them: WANDB_MODE, WANDB_NAME, WANDB_DIR, WANDB_RUN_GROUP, WANDB_TAGS and the
others are left to its library. WANDB_DISABLED is that of transformers, whose users have it set.
"""

import atexit
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from membuilder.errors import ConfigError

START_SECONDS = 30.0
"""How long W&B may take to answer at the start, unless WANDB_INIT_TIMEOUT says otherwise; then the run is offline."""
FINISH_SECONDS = 60.0
"""How long the end waits for what is not uploaded yet, unless WANDB_FINISH_TIMEOUT says otherwise."""
SLOW_SECONDS = 5.0
"""A table that takes longer is the last one: the library asks the server about each and waits for it."""
MAX_TABLE_ROWS = 16
_TRUE = ("1", "on", "yes", "true")


def is_switched_off() -> bool:
    """Tell whether the environment says that nothing is to be logged at W&B, not even offline."""
    return os.environ.get("WANDB_DISABLED", "").lower() in _TRUE or os.environ.get("WANDB_MODE") == "disabled"


class WandbRun:
    """A run at W&B, or offline in a folder where W&B does not answer. What happens to it is printed, never raised.

    A thread of its own talks to the library, which may wait for the server in any call.
    """

    def __init__(self, out_dir: Path, project: str, name: str, config: Mapping[str, Any], run_id: str | None) -> None:
        """Start a run, or go on with the one of this id. Raises ConfigError for a key or setting that W&B refuses."""
        import wandb

        def start(mode: str | None = None):
            return wandb.init(
                project=project,
                name=None if os.environ.get("WANDB_NAME") else name,
                dir=None if os.environ.get("WANDB_DIR") else out_dir,
                id=run_id,
                config=dict(config),
                mode=mode,
                resume="allow",
                reinit="create_new",  # none that this process began before is touched, which may be in trouble
                settings=wandb.Settings(silent=True, finish_timeout_raises=True, **_timeouts()),
            )

        why = None
        try:
            if "WANDB_MODE" not in os.environ and not wandb.login(prompt=False, verify=False):
                why = "no API key (WANDB_API_KEY)"
            self._run = start(None if why is None else "offline")
        except (wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
            problem = f"Weights & Biases: {_first_line(error)}; correct it, or set WANDB_MODE=offline"
            raise ConfigError(problem) from error
        except wandb.errors.CommError as error:
            why = f"not reached ({_first_line(error)})"
            wandb.teardown()  # what failed to start keeps the run's id
            self._run = start("offline")
        if why is not None:
            self._say(f"{why}, so this run is logged offline; {self._later}")
        self._is_lost, self._takes_tables = False, True
        self._actions: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()
        atexit.register(self._drain)  # a run that ends by an error has logged something, too
        # W&B refuses to count its own steps backwards, which a resumed run does; ours is an axis like any other.
        self._actions.put(lambda: self._run.define_metric("*", step_metric="step"))

    @property
    def id(self) -> str:
        return self._run.id

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._actions.put(lambda: self._run.log({**metrics, "step": step}))

    def log_completions(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log the first few rows as a table; each has its `step`."""
        self._actions.put(lambda: self._log_table(rows[:MAX_TABLE_ROWS], rows[-1]["step"]))

    def finish(self) -> None:
        """End the run, and say so where W&B does not have all of it yet."""
        self._actions.put(self._finish)
        self._drain()
        atexit.unregister(self._drain)

    def _finish(self) -> None:
        try:
            self._run.finish()
        except TimeoutError:
            self._say(f"it did not take everything in time; {self._later}")

    def _log_table(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        import wandb

        if not self._takes_tables:
            return
        began, failed = time.monotonic(), False
        try:
            self._run.log({"completions": _table(rows), "step": step})
        except wandb.errors.Error:  # the server's answer to what the library asks about a table
            failed = True
        if failed or time.monotonic() - began > SLOW_SECONDS:
            self._takes_tables = False
            self._say("it is slow or unreachable, and gets no more completions; completions.jsonl has all of them")

    def _drain(self) -> None:
        """Wait for what is still to be done; not for ever, unless WANDB_FINISH_TIMEOUT=0 says so."""
        self._actions.put(None)
        limit = self._run.settings.finish_timeout
        self._thread.join(limit + FINISH_SECONDS if limit else None)  # a table may be in work when the end comes
        if self._thread.is_alive():
            self._say(f"it did not take everything in time; {self._later}")

    def _work(self) -> None:
        """Do what is asked with W&B's own process, as long as that lives."""
        import wandb

        while (action := self._actions.get()) is not None:
            try:
                if not self._is_lost:
                    action()
            except OSError as error:
                self._is_lost = True
                # it reads along what is printed, and would log with every line that it cannot pass that on
                logging.getLogger("wandb").setLevel(logging.CRITICAL + 1)
                with suppress(OSError):
                    wandb.teardown()
                self._say(f"its process is gone ({_first_line(error)}); metrics.jsonl goes on alone; {self._later}")

    @property
    def _later(self) -> str:
        return f"upload it later with: wandb sync {Path(self._run.dir).parent}"

    def _say(self, what: str) -> None:
        print(f"Weights & Biases: {what}", flush=True)


def _timeouts() -> dict[str, float]:
    given = {"init_timeout": START_SECONDS, "finish_timeout": FINISH_SECONDS}
    return {name: seconds for name, seconds in given.items() if f"WANDB_{name.upper()}" not in os.environ}


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _table(rows: Sequence[Mapping[str, Any]]) -> Any:
    import wandb

    def cell(value: Any) -> Any:  # parts of a reward and the like become text: a W&B column holds one type
        return json.dumps(value) if isinstance(value, Mapping | list | tuple) else value

    columns = list(dict.fromkeys(name for row in rows for name in row))
    return wandb.Table(columns=columns, data=[[cell(row.get(name)) for name in columns] for row in rows])
