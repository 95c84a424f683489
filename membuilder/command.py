"""How a command reads its arguments and ends: what its user sees of an error, and the exit status.

Every command runs under `exit_status` or `clear_errors`.
"""

import argparse
import errno
import os
import select
import sys
from collections.abc import Callable
from contextlib import ContextDecorator
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from membuilder.errors import BuildStopped, ChatError, Interrupted, MemBuilderError, WriteError
from membuilder.quiet import escape_unprintable

PLUGIN = "plugin "
"""How the name of a module begins that is a file of the user's own (membuilder/plugins.py)."""
IMPORTER = "_import_beside"
"""The function of ours that a user's `import` statement goes through (membuilder/plugins.py)."""
OUR_PACKAGES = ("membuilder", "reward", "rollout", "trainer")
STOPPED_STATUS = 130
"""Exit status after Ctrl-C, as shells have it."""
STDOUT = 1
"""The file descriptor, as every Unix has it."""
PIPE_STATUS = 141
"""Exit status where nobody reads any more what is printed, as shells have it."""
MACHINE_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE}
)
"""What a system also refuses without naming a file: the disk is full, too many files are open."""


class ArgumentParser(argparse.ArgumentParser):
    """It answers a wrong command line in one line; `--help` shows the flags.

    Reading the flags is the first thing that a command does: from then on it prints on a terminal of any encoding.
    """

    def parse_known_args(self, args=None, namespace=None):
        escape_unprintable()
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (`{self.prog} --help` says what there is)\n")


def message_of(error: BaseException | None) -> str | None:
    """Say what a user can mend: one of our errors, a file that the system refuses, a fault in the user's own function.

    None: a fault of ours, which nobody finds without its traceback.
    """
    match error:
        case MemBuilderError():
            return str(error)
        case OSError(filename=str() | bytes() | Path() as path):
            path = os.fsdecode(path)
            shown = path if len(path) <= 200 else f"{path[:200]}..."
            return f"'{shown}': {error.strerror or error}; name another, or make this one usable"
        case OSError() if error.errno in MACHINE_ERRORS:
            return f"{error.strerror}; make room and run the command again"
        case Exception():
            return _fault_of_plugin(error)
    return None


def _fault_of_plugin(error: Exception) -> str | None:
    """Name the line of a user's own file that raised, as far as no code of ours was called from there."""
    place, trace = None, error.__traceback__
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__"))
        if module.startswith(PLUGIN):
            code = trace.tb_frame.f_code
            place = f"{code.co_filename}, line {trace.tb_lineno}, in {code.co_name}"
        elif module.partition(".")[0] in OUR_PACKAGES and trace.tb_frame.f_code.co_name != IMPORTER:
            place = None
        trace = trace.tb_next
    if place is None:
        return None
    first_line = str(error).partition("\n")[0]
    return f"{place}: {type(error).__name__}: {first_line}; correct your function"


class _Ended(SystemExit):
    """The end of a program after an error that its user can mend, or a stop; `status` is that of our own commands."""

    status = 2


class clear_errors(ContextDecorator):  # lower case: it is used as a function
    """End a program by a message alone where its user can mend the error; of a fault of ours the traceback stays.

    `kept` says what stays and how to go on, after a stop or an error that time or the user can take away.
    """

    def __init__(self, program: str, kept: str = "") -> None:
        self._program, self._kept = program, kept

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt | Interrupted):
            saved = isinstance(error, Interrupted)
            said, status = (str(error), error.status) if saved else ("stopped", STOPPED_STATUS)
            print(f"{self._program}: {said}. {self._kept}".rstrip(), file=sys.stderr)
            ended = _Ended(status)
            ended.status = status
            raise ended from None
        if (error is None or isinstance(error, BrokenPipeError)) and _reader_left() and error is not None:
            raise SystemExit(PIPE_STATUS) from error  # such as `| head`, which has read enough
        if (message := message_of(error)) is not None:
            goes_on = isinstance(error, ChatError | BuildStopped | WriteError)  # others would end it the same way again
            kept = f"\n{self._kept}" if self._kept and goes_on else ""
            raise _Ended(f"{self._program}: {message}{kept}") from error


def exit_status(command: str, run: Callable[[], int], kept: str = "") -> int:
    """Run a command under `clear_errors`; return 2 where an error ends it that its user can mend, 130 after Ctrl-C."""
    try:
        with clear_errors(command, kept):
            return run()
    except _Ended as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        return ended.status


def _reader_left() -> bool:
    """Tell whether nobody reads what is printed any more, and if so print to nowhere from now on."""
    stdout = select.poll()
    stdout.register(STDOUT, 0)
    if not any(event & select.POLLERR for _, event in stdout.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
    return True
