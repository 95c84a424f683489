"""Ctrl-C on a real terminal: the first one ends the step, saves and says how to go on; the second ends at once."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import psutil
import pytest

from tests import both_loops, found_processes
from tests.forks import free_port
from tests.launchers import ROOT, rows
from tests.patience import HANGS, SOON
from trainer.checkpoint import folders
from trainer.checkpoint.preemption import Stop

ONE = [sys.executable, "-m"]
TWO = [
    str(Path(sys.executable).with_name("accelerate")),
    "launch",
    "--config_file",
    "configs/accelerate/cpu2.yaml",
    "-m",
]
STEPS = 10_000
"""More than a run can take between the keys and the moment it hears of them, however busy the machine is."""
LONG_STEPS = ["data.num_train=60", "sessions_per_step=400", f"max_steps={STEPS}", "save_every=1"]
"""Each takes seconds, so that the second Ctrl-C comes before its end."""
ONCE_MORE = "once more ends the run at once"


class Terminal:
    """A program whose terminal is ours: what it prints, and a keyboard."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.master, slave = pty.openpty()

        def own_terminal() -> None:  # in the child: a session whose terminal, and so whose Ctrl-C, is this one
            os.setsid()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
            signal.signal(signal.SIGINT, signal.default_int_handler)

        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, env=os.environ | environment,
            preexec_fn=own_terminal,
        )  # fmt: skip
        os.close(slave)
        self._read: list[bytes] = []
        self._reader = Thread(target=self._drain, daemon=True)
        self._reader.start()

    def _drain(self) -> None:
        while True:
            try:
                self._read.append(os.read(self.master, 65536))
            except OSError:  # nobody holds the other side any more
                return

    @property
    def said(self) -> str:
        return b"".join(self._read).decode(errors="replace")

    def press_ctrl_c(self) -> None:
        os.write(self.master, b"\x03")

    def until(self, happened: Callable[[], bool], seconds: float = HANGS) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline and self.process.poll() is None, self.said[-4000:]
            time.sleep(0.02)

    def ends(self, seconds: float = HANGS) -> int:
        status = self.process.wait(seconds)
        self._reader.join(5)
        return status


@contextmanager
def on_a_terminal(launch: list[str], *arguments: str) -> Iterator[Terminal]:
    shared = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "MASTER_PORT": str(free_port())}
    port = ["--main_process_port", shared["MASTER_PORT"]] if launch is TWO else []
    terminal = Terminal([*launch[:-1], *port, launch[-1], *arguments], shared | {"COLUMNS": "80"})
    try:
        yield terminal
    finally:
        found_processes.kill(processes_of(terminal))
        terminal.process.wait()
        os.close(terminal.master)


def processes_of(terminal: Terminal) -> list[psutil.Process]:
    """The program and all that it started; none once it has ended."""
    if terminal.process.poll() is not None:
        return []
    return [(first := psutil.Process(terminal.process.pid)), *first.children(recursive=True)]


def has_steps(out: Path, number: int) -> bool:
    return (out / "metrics.jsonl").exists() and len(rows(out)) >= number


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("policy")
    command = [*ONE, "trainer.sft", *both_loops.SFT, "max_steps=2", f"out={out}"]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return out / "model"


def run_of(kind: str, policy: Path, out: Path) -> list[str]:
    if kind == "sft":
        return ["trainer.sft", *both_loops.SFT, f"max_steps={STEPS}", "save_every=1000", f"out={out}"]
    return ["trainer.rl", *both_loops.RL, f"num_steps={STEPS}", "save_every=1000", "eval_every=0",
            f"model.path={policy}", f"out={out}"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launch", [ONE, TWO], ids=["one process", "accelerate"])
@pytest.mark.parametrize("kind", ["sft", "rl"])
def test_the_first_ctrl_c_saves_and_says_how_to_go_on(kind, launch, policy, tmp_path):
    out = tmp_path / "run"
    arguments = run_of(kind, policy, out)
    with on_a_terminal(launch, *arguments) as terminal:
        terminal.until(lambda: has_steps(out, 2))
        terminal.press_ctrl_c()
        status = terminal.ends()
    done = len(rows(out))
    assert done < STEPS and list(folders.checkpoints(out / "checkpoints"))[-1] == done
    told = f"trainer.{kind}: stopped by Ctrl-C after step {done - 1}, which is saved. The same command with resume=auto"
    said = terminal.said.replace("\r\n", "\n")
    assert said.count(told) == (1 if launch is ONE else 2) and said.count(ONCE_MORE) == 1, said[-4000:]
    if launch is ONE:
        assert status == 130 and "Traceback" not in said, said[-4000:]
    assert status != 0

    with on_a_terminal(
        launch, *arguments, "resume=auto", f"{'max' if kind == 'sft' else 'num'}_steps={STEPS}"
    ) as again:
        again.until(lambda: has_steps(out, done + 1))
    assert f"resuming from '{out}/checkpoints/step_{done}'" in again.said


@pytest.mark.slow
@pytest.mark.parametrize("launch", [ONE, TWO], ids=["one process", "accelerate"])
def test_the_second_ctrl_c_ends_at_once_and_loses_the_step_in_hand(launch, tmp_path):
    out = tmp_path / "run"
    arguments = ["trainer.sft", *both_loops.SFT, *LONG_STEPS, f"out={out}"]
    with on_a_terminal(launch, *arguments) as terminal:
        terminal.until(lambda: has_steps(out, 1) and list(folders.checkpoints(out / "checkpoints")) == [1])
        terminal.press_ctrl_c()
        terminal.until(lambda: ONCE_MORE in terminal.said, seconds=SOON)
        # without a launcher the program on the terminal is the trainer itself
        candidates = processes_of(terminal)[launch is not ONE :]
        trainers = found_processes.that(lambda each: "trainer.sft" in each.cmdline(), candidates)
        assert trainers
        terminal.press_ctrl_c()
        _, left = psutil.wait_procs(trainers, timeout=SOON)
        assert not found_processes.running(left)
        terminal.ends(60)
    assert "which is saved" not in terminal.said
    assert len(rows(out)) == 1 and list(folders.checkpoints(out / "checkpoints")) == [1]
    with on_a_terminal(launch, *arguments, "resume=auto") as again:
        again.until(lambda: has_steps(out, 2))
    assert f"resuming from '{out}/checkpoints/step_1'" in again.said


@pytest.mark.slow
def test_ctrl_c_while_libraries_are_loaded_is_one_line(tmp_path):
    with on_a_terminal(ONE, "trainer.sft", *both_loops.SFT, f"out={tmp_path}") as terminal:
        # the configuration is read by now, and PyTorch's libraries come in one after the other
        terminal.until(lambda: any("libtorch" in each.path for each in processes_of(terminal)[0].memory_maps()))
        terminal.press_ctrl_c()
        assert terminal.ends(30) in (130, -signal.SIGINT)
    # the terminal itself shows what was pressed
    assert terminal.said.splitlines()[-1] == "^Ctrainer.sft: stopped." and "Traceback" not in terminal.said


def test_a_ctrl_c_that_comes_while_the_processes_ask_each_other_counts_in_the_next_step():
    class Asking:
        """Two processes, of which the other was never asked to stop; the signal comes while this one waits for it."""

        rank, is_first = 1, True

        def gather(self, number: int) -> list[int]:
            if self.is_first:
                self.is_first = False
                signal.raise_signal(signal.SIGINT)
            return [0, number]

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stop = Stop(Asking())
    try:
        assert [stop.asked, stop.asked] == [False, True]
    finally:
        stop.close()
        signal.signal(signal.SIGINT, before)
