"""Runs one of the commands that lie in this folder: `membuilder build ...` is `python -m membuilder.build ...`."""

import importlib
import sys
from collections.abc import Sequence

from membuilder import __version__
from membuilder.command import ArgumentParser

COMMANDS = {
    "data": "fetch public benchmarks",
    "build": "build the memories of dialogues, by rules or by a model",
    "inspect": "show what a memory holds and how it came about",
    "edit": "delete from a memory, correct it, export and import it",
    "eval": "evaluate ways of remembering on public benchmarks",
    "expert": "have an expert build memories, as trajectories to train on",
    "qa": "have a model write questions about each session of a trajectory",
    "prepare": "make training data out of trajectories",
    "serve": "serve memories over HTTP and MCP",
}


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the command; return its exit status, or None if it has none."""
    words = sys.argv[1:] if argv is None else list(argv)
    parser = ArgumentParser(prog="membuilder", epilog="membuilder COMMAND --help says more about a command.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    command = parser.parse_args(words[:1]).command  # the other words are the command's own
    return importlib.import_module(f"membuilder.{command}").main(words[1:])


if __name__ == "__main__":
    sys.exit(main())
