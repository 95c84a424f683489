"""No command ends because its terminal cannot show a character: that one is shown as an escape."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from membuilder.__main__ import COMMANDS
from membuilder.quiet import escape_unprintable
from tests.fault_server import FaultServer, answering
from tests.patience import HANGS
from tests.test_asking_commands import by_part

ROOT = Path(__file__).resolve().parent.parent
CAT = "\U0001f431"
ID = "\u5c0f\u660e\u2014" + CAT
CATEGORY = "\u7c7b"
DIALOGUE = {
    "id": ID,
    "speakers": ["Zo\u00eb", "\u5c0f\u7ea2"],
    "sessions": [
        {
            "timestamp": "2024-03-01T09:30",
            "turns": [
                {
                    "id": "\u56de1",
                    "speaker": "Zo\u00eb",
                    "text": f"I adopted a cat called Mi\u015bo yesterday {CAT} \u7c73.",
                }
            ],
        }
    ],
    "questions": [{"question": "Miso \u7c73?", "answer": "\u732b", "category": CATEGORY, "evidence": ["\u56de1"]}],
}
ENVIRONMENTS = {
    # Python's own ways to UTF-8 shut off: what is left is the encoding of file names and of the terminal
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
    "LANG": {"LANG": "C", "PYTHONUTF8": "0"},
}


def run(environment: str, *words: str) -> str:
    """Run the words behind `python -m membuilder`, expecting success; return what it printed, as text."""
    variables = {name: value for name, value in os.environ.items() if name not in ("LC_ALL", "LANG", "PYTHONUTF8")}
    done = subprocess.run(
        [sys.executable, "-m", "membuilder", *words],
        cwd=ROOT, env=variables | ENVIRONMENTS[environment], capture_output=True, timeout=HANGS, check=False,
    )  # fmt: skip
    said = (done.stdout + done.stderr).decode("cp1252", "replace")
    assert "Traceback" not in said and "UnicodeEncodeError" not in said, said
    assert done.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("talks") / "talks.jsonl"
    path.write_text(json.dumps(DIALOGUE, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


@pytest.mark.slow
def test_every_command_goes_through_without_one_character_of_it(data, tmp_path):
    source, out = ["--dataset", "custom", "--dataset-path", str(data)], str(tmp_path)
    assert "nothing was stored" not in run("C", "build", *source, "--model", "rules", "--out", f"{out}/d.db")
    shown = run("C", "inspect", f"{out}/d.db") + run("C", "inspect", f"{out}/d.db", "--session", "0")
    assert "\\u5c0f\\u660e" in shown and "\\U0001f431" in shown and "Zo\\xeb" in shown
    run("C", "inspect", f"{out}/d.db", "--html", f"{out}/d.html")
    assert CAT in (tmp_path / "d.html").read_text(encoding="utf-8")
    shown = run("C", "eval", *source, "--system", "rag-turn-bm25", "--verbose", "--output-dir", f"{out}/eval")
    assert "\\u7c7b" in shown
    assert CATEGORY in (tmp_path / "eval/table.md").read_text(encoding="utf-8")
    run("C", "expert", *source, "--expert", "rules", "--output-dir", f"{out}/expert")
    run("C", "prepare", "sft", "--trajectories-dir", f"{out}/expert", "--output-file", f"{out}/sft.jsonl")
    with FaultServer(answering(by_part)) as server:
        asked = ["--trajectories-dir", f"{out}/expert", "--model", "w", "--max-missing", "1"]
        run("C", "qa", *asked, "--provider", "vllm", "--base-url", server.base_url)


@pytest.mark.slow
@pytest.mark.parametrize("environment", ["ascii", "cp1252", "LANG"])
def test_what_is_shown_and_refused_fits_the_terminal(environment, data, tmp_path):
    source = ["--dataset", "custom", "--dataset-path", str(data)]
    run(environment, "build", *source, "--model", "rules", "--out", str(tmp_path / "d.db"))
    shown = run(environment, "inspect", str(tmp_path / "d.db"))
    if environment == "cp1252":
        assert "Zo\u00eb" in shown
    if environment != "LANG":  # where Python finds a locale of UTF-8 by itself
        assert "\\u5c0f\\u660e" in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_escapes_before_it_reads_its_arguments(command, monkeypatch):
    """The first thing that a command may print is its own help, or a flag that it does not know."""
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict", write_through=True)
    monkeypatch.setattr(sys, "stderr", terminal)
    module = __import__(f"membuilder.{command}", fromlist=["main"])
    with pytest.raises(SystemExit):
        module.main([f"--{CATEGORY}"])
    assert terminal.buffer.getvalue()


def test_whoever_chose_another_way_keeps_it(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="replace")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", None)
    escape_unprintable()
    assert terminal.errors == "replace"
