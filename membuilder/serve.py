"""Serves memories over HTTP: sessions in, memories searched, answered from, corrected and erased.

    python -m membuilder.serve --root memories/                        rules write, MiniLM searches, this machine only
    python -m membuilder.serve --root memories/ --build-model trained --build-provider vllm \\
        --build-base-url http://localhost:8000/v1 --answer-model gpt-4.1-mini
    python -m membuilder.serve --store postgresql://USER@HOST/DATABASE    in PostgreSQL, which several servers may share
    python -m membuilder.serve --new-key ann 'team-*' >> keys.jsonl    a key for these users
    python -m membuilder.serve --root memories/ --mcp-stdio --user ann tools of one user for a program that starts this

Every session is on the disk before it is acknowledged. A stopped or killed server takes up what still waits.
"""

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from membuilder.building.config import EMBEDDING_KEYS, RULES, BuildConfig, Keys
from membuilder.command import ArgumentParser, exit_status
from membuilder.config import load
from membuilder.errors import ConfigError
from membuilder.llm.flags import SETTINGS, add_embedding_flags, add_endpoint_flags, read_endpoint
from membuilder.serving.client import Client
from membuilder.serving.loopback import is_loopback
from membuilder.value_types import PositiveFloat, PositiveInt, flag_type

__all__ = ["Client", "main"]
LOOPBACK = "127.0.0.1"


def main(argv: Sequence[str] | None = None) -> int:
    kept = "Every session that was acknowledged is kept; the same command goes on with those that wait."
    return exit_status("membuilder.serve", lambda: _serve(argv), kept)


def _serve(argv: Sequence[str] | None) -> int:
    given = _parser().parse_args(argv)
    if given.new_key:
        return _print_new_key(given.new_key)
    _check(given)
    from membuilder.serving.run import ServerOptions, run_over_stdio, run_server  # FastAPI takes a second to import

    shown = logging.StreamHandler()
    shown.setLevel(logging.WARNING)  # libraries set levels of their own, and some tell of every search
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", handlers=[shown])
    answerer = read_endpoint(given, "answer-", given.answer_model) if given.answer_model else None
    options = ServerOptions(
        root=given.root,
        store=given.store,
        config=_config(given),
        keys=Keys(chat=given.build_api_key, embedding=given.embedding_api_key),
        answerer=answerer,
        host=given.host,
        port=given.port,
        api_keys=given.api_keys,
        grace_seconds=given.grace,
    )
    if given.mcp_stdio:
        asyncio.run(run_over_stdio(options, given.user))
        return 0
    asyncio.run(run_server(options))
    return 0


def _check(given: argparse.Namespace) -> None:
    """Raise ConfigError where flags are missing or do not fit each other."""
    if (given.root is None) == (given.store is None):
        raise ConfigError("name where the memories are: a folder (--root), or a database instead (--store)")
    if not is_loopback(given.host) and given.api_keys is None:
        raise ConfigError(f"--host {given.host} is open to others: name a file of keys too (--api-keys, --new-key)")
    if given.mcp_stdio != (given.user is not None):
        raise ConfigError("--mcp-stdio and --user NAME go together: its tools know this user alone")
    if given.mcp_stdio and given.api_keys is not None:
        raise ConfigError("--api-keys has no effect with --mcp-stdio, which serves whoever starts it; leave it out")


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="python -m membuilder.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--root", type=Path, metavar="DIR", help="folder of the memories")
    text = "database in place of a folder, such as postgresql://USER@HOST/DATABASE; PGPASSWORD or ~/.pgpass has its key"
    add("--store", metavar="URL", help=text)
    add("--host", default=LOOPBACK, help="address to listen on; another than this machine's own needs --api-keys")
    add("--port", type=flag_type(PositiveInt), default=8800)
    add("--api-keys", type=Path, metavar="FILE", help="whom each key is for; read again on SIGHUP")
    add("--new-key", nargs="+", metavar="USER", help="make a key for these users (* and ? as in a shell), and end")
    add("--mcp-stdio", action="store_true", help="serve --user's tools over standard input and output, not HTTP")
    add("--user", metavar="NAME", help="whose memory the tools of --mcp-stdio are for")
    text = "seconds that the end waits for what is in flight"
    add("--grace", type=flag_type(PositiveFloat), default=30.0, metavar="SECONDS", help=text)
    text = "how memory is written: four_agents (default), memalpha, or a folder with a scheme of your own"
    add("--scheme", help=text)
    add("--set", **SETTINGS, help="any other key of membuilder.build, such as max_turns=20")
    add_endpoint_flags(parser, "build-", "writes the memories; else rules, which need no server", model=RULES)
    add_endpoint_flags(parser, "answer-", "answers questions; without it memories are only searched")
    add_embedding_flags(parser)
    return parser


def _config(given: argparse.Namespace) -> BuildConfig:
    """Return what the flags say of how memories are built. Raises ConfigError."""
    keys = {"scheme": given.scheme, "model.name": given.build_model, "model.provider": given.build_provider}
    keys |= {"model.base_url": given.build_base_url, "out": str(given.root or "database")}
    keys |= {key: getattr(given, key) for key in EMBEDDING_KEYS}
    by_flags = [f"{key}={json.dumps(value)}" for key, value in keys.items() if value]
    return load(BuildConfig, None, [*by_flags, *(f"model.{each}" for each in given.build_endpoint), *given.set])


def _print_new_key(users: list[str]) -> int:
    from membuilder.serving.access import new_key

    key, line = new_key(users)
    print(line)
    print(f"the key, shown once: {key}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
