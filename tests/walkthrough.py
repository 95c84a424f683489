"""The blocks of docs/walkthrough.md, run as a reader would run them: one shell, one folder, in order.

    python -m tests.walkthrough      runs them and shows what they print: that stands under them on the page

A small scripted server stands in for the hosted model. Everything else is real: training, vLLM, the served model.
`SMALLER` lists what the run changes in a block; the page names these changes too.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from membuilder.types import Agent
from tests.fault_server import FaultServer, Request, answering
from tests.patience import HANGS
from tests.scripted import agent_of

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "walkthrough.md"
SMALLER = {
    "max_steps=60": "max_steps=40",
    "num_steps=10": "num_steps=2",
    "num_rollouts=8": "num_rollouts=2",
    "save_every=10": "save_every=2",
    "step_10 ": "step_2 ",
}
"""Text of a block -> what the run puts in its place. The server's port is replaced too: 8000 may be taken."""
BLOCK = re.compile(r"```bash\n(?P<command>.*?)```\n(?:\n```text\n(?P<shown>.*?)```\n)?", re.DOTALL)
_OPERATIONS = {
    Agent.CORE: '{"operation": "APPEND", "content": "They talk every week."}',
    Agent.EPISODIC: '{"operations": [{"action": "ADD", "quote": [1]}]}',
}
"""What the expert answers as these agents; the others store nothing."""
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@dataclass(frozen=True, kw_only=True)
class Block:
    command: str
    shown: str
    """What the page says it prints; empty where it says nothing."""


def blocks() -> list[Block]:
    """Every shell block of the page, in order."""
    found = BLOCK.finditer(PAGE.read_text(encoding="utf-8"))
    return [Block(command=match["command"], shown=match["shown"] or "") for match in found]


def hosted_model(request: Request) -> str:
    """What the stand-in for the hosted model answers: as expert, question writer, answerer and judge."""
    prompt, first = request.body["messages"][-1]["content"], request.body["messages"][0]["content"]
    if prompt.startswith("Answer with this JSON"):
        return '{"ready": true}'
    if first.startswith("You write questions"):
        return _questions(first)
    if first.startswith("You answer questions"):
        memories = re.findall(r"^- (.*)$", first, re.MULTILINE)
        return " ".join(memories) or "The memories do not hold it."
    if first.startswith("You grade an answer"):
        gold, told = (re.search(rf"{name}: (.*)", first)[1] for name in ("Reference answer", "Answer to grade"))
        return json.dumps({"reason": "By its words.", "correct": gold.casefold() in told.casefold()})
    return _OPERATIONS.get(agent_of(prompt), '{"operations": []}')


def _questions(prompt: str) -> str:
    """As many questions of each kind as the prompt asks for, each about another turn, whose text is the answer."""
    turns = re.findall(r"^\[\d+\] (.*)$", prompt, re.MULTILINE)
    mix = re.search(r"^Write \d+ questions: (.*)\.$", prompt, re.MULTILINE)[1]
    kinds = [kind for part in mix.split(", ") for kind in [part.split()[1]] * int(part.split()[0])]
    drafts = [
        {
            "question": f"What was said when {turn[:20]} was said?",
            "answer": turn,
            "type": kind,
            "evidence": [f"#{number}", *(["e1"] if kind == "multi_session" else [])],
        }
        for number, (kind, turn) in enumerate(zip(kinds, turns, strict=False), start=1)
    ]
    return json.dumps({"questions": drafts})


class Walk:
    """A folder with the repository's configs and launchers in it, and a shell that runs one block after the other."""

    def __init__(self, folder: Path, base_url: str):
        self._folder = folder
        for name in ("configs", "launch"):
            (folder / name).symlink_to(ROOT / name)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = str(probe.getsockname()[1])
        self._environment = os.environ | {
            "OPENAI_BASE_URL": base_url,
            "OPENAI_API_KEY": "sk-walkthrough",
            "MEMBUILDER_CACHE": str(folder / "cache"),
            "PYTHON": sys.executable,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "VLLM_LOGGING_LEVEL": "ERROR",
        }
        self._groups: list[int] = []

    def run(self, block: Block) -> str:
        """What the block printed on its standard output, its port and folder as on the page."""
        command = block.command.replace("8000", self._port)
        for text, smaller in SMALLER.items():
            command = command.replace(text, smaller)
        return self.shell(command).replace(self._port, "8000").replace(str(self._folder), ".")

    def shell(self, command: str, status: int = 0) -> str:
        """What a command printed on its standard output; another exit status raises AssertionError with all it said."""
        out, err = (self._folder / name for name in ("stdout", "stderr"))
        with out.open("w") as out_file, err.open("w") as err_file:
            process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", command],
                cwd=self._folder,
                env=self._environment,
                stdout=out_file,
                stderr=err_file,
                start_new_session=True,  # a server it leaves running is ended with its group
            )
        self._groups.append(process.pid)
        found = process.wait(HANGS)
        assert found == status, f"{command}\nexit {found}\n{out.read_text()}\n{err.read_text()[-6000:]}"
        return out.read_text(encoding="utf-8")

    def close(self) -> None:
        for group in self._groups:
            try:
                os.killpg(group, signal.SIGTERM)
            except ProcessLookupError:
                pass  # this block left nothing running


def is_shown(line: str, printed: str) -> bool:
    """Whether a line of the page was printed, whatever its numbers and spaces; `...` ends what is compared."""
    words = _NUMBER.sub("0", line.removesuffix("...")).split()
    return re.search(r"\s+".join(map(re.escape, words)), _NUMBER.sub("0", printed)) is not None


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, FaultServer(answering(hosted_model)) as server:
        walk = Walk(Path(folder), server.base_url)
        try:
            for block in blocks():
                print(f"== {block.command}{walk.run(block)}", flush=True)
        finally:
            walk.close()


if __name__ == "__main__":
    main()
