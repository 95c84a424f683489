"""What libraries say goes to a log file, whenever they were imported and whatever handlers they have."""

import logging
import sys
import warnings
from pathlib import Path

import pytest

from membuilder import quiet
from tests.terminal import strange_lines


@pytest.fixture
def log(tmp_path, monkeypatch) -> Path:
    """The file of `quiet_libraries`, whose doings end with the test."""
    monkeypatch.setattr(quiet, "_LOG", quiet.LibraryLog())
    monkeypatch.setattr(logging.Logger, "callHandlers", logging.Logger.callHandlers)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
    logging.captureWarnings(False)  # a command that another test ran here may have asked for them
    libraries = [logging.getLogger(name) for name in ("vllm.some_part", "deepspeed.some_part")]
    for logger in libraries:
        logger.setLevel(logging.WARNING)  # the library's own level may be higher
    yield tmp_path / "out" / "run.log"
    for logger in libraries:
        logger.setLevel(logging.NOTSET)
    logging.captureWarnings(False)


@pytest.fixture
def shown():
    """What the handlers of a library of its own and of our code put on a terminal."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    loggers = [logging.getLogger(name) for name in ("vllm.some_part", "membuilder.llm.client")]
    for logger in loggers:
        logger.addHandler(handler)
    yield lines
    for logger in loggers:
        logger.removeHandler(handler)


def test_what_a_library_says_goes_to_the_file_and_only_its_errors_are_shown(log, shown):
    quiet.quiet_libraries(log)
    logging.getLogger("vllm.some_part").warning("block size is %d", 32)
    logging.getLogger("vllm.some_part").error("out of memory")
    logging.getLogger("membuilder.llm.client").warning("asked again")
    assert shown == ["out of memory", "asked again"]
    assert [line.split(" ", 2)[2] for line in log.read_text().splitlines()] == [
        "WARNING vllm.some_part: block size is 32",
        "ERROR vllm.some_part: out of memory",
    ]


def test_warnings_are_written_down(log, capsys):
    quiet.quiet_libraries(log)
    warnings.simplefilter("always")
    warnings.warn("reduce_op is deprecated", FutureWarning, stacklevel=1)
    assert "FutureWarning: reduce_op is deprecated" in log.read_text() and capsys.readouterr().err == ""


def test_a_run_that_may_be_refused_writes_nothing_before_it_is_accepted(log):
    quiet.quiet_libraries(log, at_once=False)
    logging.getLogger("deepspeed.some_part").warning("no GPU")
    assert not log.parent.exists()
    quiet.write_library_log()
    assert "no GPU" in log.read_text()
    logging.getLogger("deepspeed.some_part").warning("still none")
    assert len(log.read_text().splitlines()) == 2


def test_a_crash_before_that_writes_what_led_to_it(log, monkeypatch):
    reported = []
    monkeypatch.setattr(quiet, "_excepthook", lambda *error: reported.append(error))
    quiet.quiet_libraries(log, at_once=False)
    logging.getLogger("vllm.some_part").warning("no room for the cache")
    sys.excepthook(ValueError, ValueError("x"), None)
    assert "no room for the cache" in log.read_text() and len(reported) == 1


def test_a_log_that_cannot_be_written_stops_nothing(log):
    log.parent.write_text("a file where the folder should be")
    quiet.quiet_libraries(log)
    logging.getLogger("vllm.some_part").warning("x")


def test_lines_of_no_known_shape_are_found():
    bar = "\rSFT:   0%|          | 0/4 [00:00<?, ? step/s]\rSFT: 100%|████| 4/4 [00:03<00:00,  1.20 step/s, loss=1.9]\n"
    assert strange_lines(bar + "saved runs/sft/model\n", r"saved \S+") == []
    assert strange_lines(bar + "[W1129 utils.cpp:68] Warning: x\n", r"saved \S+") == ["[W1129 utils.cpp:68] Warning: x"]
