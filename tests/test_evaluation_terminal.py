"""What an evaluation shows on a terminal: bars that move by session, a table that fits, where the results are."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from itertools import pairwise

import pytest
from tqdm import tqdm

from membuilder import progress
from membuilder.evaluation.report import summarize
from membuilder.evaluation.table import table, table_within
from membuilder.evaluation.terminal import columns_within, display_width, lines_within
from tests.evaluating import JUDGED, caller, reply
from tests.fault_server import FaultServer, Request, answering
from tests.test_evaluation import dialogue, found, record


def test_columns_stand_side_by_side_where_they_fit():
    rows = [["rag-turn", "199", "0.427 [0.377, 0.477]"], ["none", "199", ""]]
    assert columns_within(["system", "questions", "recall@10 of turns"], rows, 80) == [
        "system    questions  recall@10 of turns",
        "-----------------------------------------",
        "rag-turn  199        0.427 [0.377, 0.477]",
        "none      199",
    ]


def test_columns_that_do_not_fit_stand_below_beside_the_first_again():
    rows = [["rag-turn", "199", "0.427 [0.377, 0.477]"], ["none", "199", ""]]
    assert columns_within(["system", "questions", "recall@10 of turns"], rows, 30) == [
        "system    questions",
        "-------------------",
        "rag-turn  199",
        "none      199",
        "",
        "system    recall@10 of turns",
        "------------------------------",
        "rag-turn  0.427 [0.377, 0.477]",
        "none",
    ]
    narrow = columns_within(["system", "recall@10 of turns"], [[row[0], row[2]] for row in rows], 24)
    assert narrow == [
        "system    recall@10 of",
        "          turns",
        "------------------------",
        "rag-turn  0.427 [0.377,",
        "          0.477]",
        "none",
    ]


def test_wide_characters_take_two_columns():
    assert (display_width("小明"), display_width("ab"), display_width("e\u0301")) == (4, 2, 1)
    assert columns_within(["系统", "n"], [["小明", "1"], ["ab", "2"]], 20) == [
        "系统  n",
        "-------",
        "小明  1",
        "ab    2",
    ]
    assert lines_within("我今天搬到了奥斯陆", 8) == ["我今天搬", "到了奥斯", "陆"]
    assert lines_within("- one two three", 9, indent="  ") == ["- one two", "  three"]
    assert lines_within("", 9) == [""]


@pytest.mark.parametrize("width", [8, 20, 40, 60, 79, 80, 100, 240, 1000])
def test_the_table_fits_any_terminal_and_holds_every_number(width):
    """That on disk stays whole, whatever the terminal."""
    records = [record(question, found("S1:1")) for question in dialogue().questions]
    systems = {name: summarize(records, 0) for name in ("rag-session-hybrid", "none", "我的系统")}
    lines = table_within(systems, 0, width).splitlines()
    assert max(map(display_width, lines)) <= width
    whole = table(systems, 0)
    assert max(map(len, whole.splitlines())) > 240
    numbers = re.compile(r"\d\.\d{3}")
    assert width < 20 or len(numbers.findall("\n".join(lines))) == len(numbers.findall(whole))


@pytest.mark.slow
def test_on_a_terminal_nothing_is_wider_and_the_last_line_says_where_the_results_are(tmp_path, monkeypatch):
    columns = 61
    caller(tmp_path, monkeypatch)  # writes mine.jsonl
    control, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-m", "membuilder.eval", "--dataset", "custom", "--dataset-path", "mine.jsonl"]
    command += [flag for name in ("rules", "rag-turn-bm25", "full-context") for flag in ("--system", name)]
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    environment |= {"MEMBUILDER_CACHE": str(tmp_path / "cache"), "PYTHONPATH": os.getcwd()}
    with subprocess.Popen(
        [*command, "--output-dir", "out"], cwd=tmp_path, env=environment, stdin=terminal, stdout=terminal,
        stderr=terminal,
    ) as process:  # fmt: skip
        os.close(terminal)
        shown = read_all(control)
    assert process.returncode == 0, shown
    lines = [line for line in re.split(r"[\r\n]+", shown) if line.strip()]
    assert [line for line in lines if display_width(re.sub(r"\x1b\[\w", "", line)) > columns] == []
    assert lines[-1] == "results in out"
    assert re.search(r"rules: 100%.*2/2 \[", shown) and "recall@20" in shown and "| rules |" not in shown
    assert "| rules | 2 | " in (tmp_path / "out" / "table.md").read_text()


def read_all(control: int) -> str:
    """What a program writes to a pseudo-terminal until it closes it."""
    parts = []
    while True:
        try:
            part = os.read(control, 65536)
        except OSError:  # how Linux tells that the other end is closed
            break
        if not part:
            break
        parts.append(part)
    os.close(control)
    return b"".join(parts).decode()


@pytest.fixture
def moves(monkeypatch) -> list[tuple[str, int]]:
    """The label and the state of each bar after each step."""
    seen = []

    class Watched(tqdm):
        def update(self, n=1):
            super().update(n)
            if not self.disable:
                seen.append((self.desc, self.n))

    monkeypatch.setattr(progress, "tqdm", Watched)
    return seen


def states(moves: list[tuple[str, int]], label: str) -> list[int]:
    return [n for desc, n in moves if desc == label]


@pytest.mark.parametrize("mode", ["full", "build"])
def test_the_bar_moves_by_session_while_rules_build(mode, moves, tmp_path, monkeypatch):
    call, label = caller(tmp_path, monkeypatch), "build" if mode == "build" else "rules"
    assert call(None, "--mode", mode, "--system", "rules", "--db-path", str(tmp_path / "db")) == 0
    assert states(moves, label)[:2] == [1, 2] and states(moves, label)[-1] == 2
    moves.clear()
    assert call(None, "--mode", mode, "--system", "rules", "--db-path", str(tmp_path / "db"), out="again") == 0
    assert states(moves, label)[-1] == 2  # the memory was kept: nothing is built, and the bar ends all the same


def test_the_bar_moves_by_session_while_agents_build_and_by_question_while_they_are_asked(moves, tmp_path, monkeypatch):
    call = caller(tmp_path, monkeypatch)
    with FaultServer(answering(reply)) as server:
        assert call(server, "--system", "agents", "--model", "m", *JUDGED) == 0
    assert [1, 2] == [n for before, n in pairwise([0, *states(moves, "agents")]) if n > before][:2]
    assert states(moves, "answer") == [1, 2]


@pytest.mark.slow
def test_where_the_results_are_is_said_last_also_where_they_mislead(tmp_path, monkeypatch):
    def unjudged(request: Request) -> str:
        return "hm" if request.body["messages"][-1]["content"].startswith("You grade") else reply(request)

    caller(tmp_path, monkeypatch)
    with FaultServer(answering(unjudged)) as server:
        command = [sys.executable, "-m", "membuilder.eval", "--dataset", "custom", "--dataset-path", "mine.jsonl"]
        command += ["--system", "none", "--model", "m", "--provider", "vllm", "--base-url", server.base_url, *JUDGED]
        done = subprocess.run(
            [*command, "--output-dir", "out"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, env=os.environ | {"PYTHONPATH": os.getcwd(), "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    assert done.returncode == 1 and "of the verdicts could not be had" in done.stdout
    assert done.stdout.splitlines()[-1] == "results in out"
