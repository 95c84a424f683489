"""Keeps the terminal to progress and results: what libraries say about themselves goes to a log file.

quiet_libraries(Path("runs/rl/run.log"), at_once=False)     first thing in a program
write_library_log()                                         from here on the file is written
"""

import io
import logging
import os
import sys
from collections import deque
from pathlib import Path

LOG_FILE = "run.log"
LIBRARIES = frozenset(
    "accelerate deepspeed DeepSpeed huggingface_hub py sentence_transformers torch transformers triton vllm".split()
)
"""First words of the names of their loggers; `py` is Python's, for warnings."""
MAX_KEPT = 10_000


class LibraryLog(logging.Handler):
    """Appends records to a file; before `write` is called it keeps the last of them in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self.path: Path | None = None
        self.writes = False
        self._kept: deque[str] = deque(maxlen=MAX_KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        self._kept.append(self.format(record))
        if self.writes:
            self.write()

    def write(self) -> None:
        self.writes = True
        if self.path is None or not self._kept:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in self._kept)
        except OSError:
            pass  # a full disk stops the run where it loses something: not here
        self._kept.clear()


_LOG = LibraryLog()
_call_handlers = logging.Logger.callHandlers
_excepthook = sys.excepthook


def quiet_libraries(path: Path | None, *, at_once: bool = True) -> None:
    """From now on libraries log to `path`, whatever handlers they give themselves; only their errors are shown, too.

    None: nowhere, for a program that writes nothing.

    `at_once=False`: nothing is written before `write_library_log`, for a program that may yet refuse to touch the
    folder; if it crashes before that, what was kept is written after all.
    """
    _LOG.path, _LOG.writes = path, at_once
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # PyTorch's C++ part writes to the terminal itself
    logging.captureWarnings(True)
    # A library that is imported later brings its own handlers, so they are passed by where every record comes along.
    logging.Logger.callHandlers = _call
    sys.excepthook = _report_crash


def write_library_log() -> None:
    """Write what libraries said so far and will say."""
    _LOG.write()


def escape_unprintable() -> None:
    """Let the terminal show a character that its encoding lacks as an escape, such as \\u5c0f, without an error."""
    for stream in (sys.stdout, sys.stderr):
        # whoever chose `replace` or the like keeps it; a program that captures the output may have put anything there
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def hide_loading_bars() -> None:
    """Hide the bars that transformers shows for every file of weights; those of downloads stay."""
    from transformers.utils.logging import set_tqdm_hook

    set_tqdm_hook(lambda bar, args, options: bar(*args, **options | {"disable": True}))


def _call(self: logging.Logger, record: logging.LogRecord) -> None:
    is_library = record.name.split(".")[0] in LIBRARIES
    if is_library:
        _LOG.handle(record)
    if not is_library or record.levelno >= logging.ERROR:
        _call_handlers(self, record)


def _report_crash(kind, error, trace) -> None:
    if not _LOG.writes:
        _LOG.write()
    _excepthook(kind, error, trace)
