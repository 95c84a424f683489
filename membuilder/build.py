"""Builds the memories of dialogues into durable stores.

    python -m membuilder.build --dataset locomo --conv-id conv-26 --model gpt-4.1-mini --out conv-26.db
    python -m membuilder.build --dataset-path locomo10.json --model Qwen/Qwen3-4B --provider vllm --out memories/
    python -m membuilder.build --dataset-path locomo10.json --conv-id conv-26 --model rules --out conv-26.db

The last one asks no model. A name that ends in .db is one store for one dialogue; any other is a folder with one store
for each. A stopped build goes on where it was when the same command is run again. What the models used is printed at
the end, and a line of it added to usage.jsonl in the folder, or to NAME.usage.jsonl beside NAME.db.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from membuilder.bank.indexed_bank import keep_index
from membuilder.building.config import EMBEDDING_KEYS, STORE_SUFFIX, BuildConfig, Keys
from membuilder.building.dialogues import build_all
from membuilder.building.failed_answers import status_of, summary
from membuilder.building.read_answer import OnBadOperation
from membuilder.command import ArgumentParser, exit_status
from membuilder.config import describe, load
from membuilder.datasets.load import load as load_dialogues
from membuilder.datasets.selection import DATASET_NAMES, place_of, select, shorten
from membuilder.datasets.windows import in_windows
from membuilder.errors import ConfigError
from membuilder.files import path_of
from membuilder.llm.chat_model import Role
from membuilder.llm.costs import Costs, counted
from membuilder.llm.flags import add_cost_flags, add_embedding_flags, add_endpoint_flags
from membuilder.quiet import LOG_FILE, quiet_libraries
from membuilder.schemes.memalpha.config import parts_named
from membuilder.types import Dialogue

BAD_OPERATION = [str(each) for each in OnBadOperation]
FLAGS = {
    "--dataset": ("dataset", "its name; default: locomo", DATASET_NAMES),
    "--dataset-path": ("data", "the raw file; else where `membuilder.data fetch` put it", None),
    "--data-dir": ("data_dir", "of `membuilder.data fetch`", None),
    "--conv-id": ("conv_id", "build this dialogue only", None),
    "--sessions": ("sessions", "first sessions only", None),
    "--parallel": ("parallel", "dialogues at once", None),
    "--max-failed": ("max_failed", "share of the answers that may have failed; default: 0.01", None),
    "--on-bad-operation": ("on_bad_operation", "an answer that holds one; default: apply the others", BAD_OPERATION),
    "--scheme": ("scheme", "four_agents (default), memalpha, or a folder with a scheme of your own", None),
    "--out": ("out", "NAME.db for one dialogue, else a folder", None),
}
"""The flags of common use: flag -> the key it sets, what `--help` says of it, what it may be."""
SHARED = {"model": "model.name", "provider": "model.provider", "base_url": "model.base_url"}
SHARED |= {key: key for key in EMBEDDING_KEYS}
"""The flags that other commands have too: name -> the key it sets."""


def main(argv: Sequence[str] | None = None) -> int:
    kept = "Every session stored before stays; the same command goes on behind it."
    return exit_status("membuilder.build", lambda: _build(argv), kept)


def _build(argv: Sequence[str] | None) -> int:
    config, given = parse(argv)
    quiet_libraries(_beside(config, LOG_FILE))
    stores, keys = _stores(config), Keys(chat=given.api_key, embedding=given.embedding_api_key)

    def run(costs: Costs) -> int:
        keep = partial(keep_index, config=config.index)
        before_replace = (lambda path: None) if given.retry_failed else None
        asyncio.run(build_all(config, stores, Role.BUILDER, keys, costs, keep, before_replace))
        for path, _ in stores:
            print(summary(path))
        print(f"look inside: python -m membuilder.inspect {stores[0][0]}")
        return status_of("membuilder.build", [path for path, _ in stores], config.max_failed)

    return counted(given, _beside(config, "usage.jsonl"), "membuilder.build", run)


def parse(argv: Sequence[str] | None) -> tuple[BuildConfig, argparse.Namespace]:
    """Return the configuration that a command line asks for, and its flags. Raises ConfigError."""
    parser = ArgumentParser(
        prog="python -m membuilder.build",
        description=__doc__,
        epilog=describe(BuildConfig),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for flag, (key, text, choices) in FLAGS.items():
        metavar = None if choices else flag.strip("-").upper()
        parser.add_argument(flag, dest=key, metavar=metavar, choices=choices, help=text)
    without = "parts that the memory of scheme memalpha lacks, such as core,episodic"
    parser.add_argument("--exclude-memory", type=parts_named, metavar="PARTS", help=without)
    parser.add_argument("--retry-failed", action="store_true", help="ask again what failed; what stands is kept")
    add_endpoint_flags(parser, "", "name of the model, or `rules`")
    parser.add_argument("--config", metavar="FILE", help="YAML file; keys it leaves out keep their defaults")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="set any other key, after the file was read")
    add_embedding_flags(parser)
    add_cost_flags(parser)
    given = parser.parse_intermixed_args(argv)
    # flags as YAML strings, so that no name is taken for a number; numbers are read back
    keys = {key: key for key, _, _ in FLAGS.values()} | SHARED
    by_flags = [f"{key}={json.dumps(value)}" for name, key in keys.items() if (value := getattr(given, name))]
    if given.exclude_memory is not None:
        by_flags.append(f"memalpha.exclude_memory={json.dumps(given.exclude_memory)}")
    of_model = [f"model.{setting}" for setting in given.endpoint]
    return load(BuildConfig, given.config, [*by_flags, *of_model, *given.overrides]), given


def _stores(config: BuildConfig) -> list[tuple[Path, Dialogue]]:
    """Return the path of each store and the dialogue to build there."""
    source = place_of(config.dataset, config.data, config.data_dir)
    dialogues = load_dialogues(source, None if config.conv_id is None else (config.conv_id,))
    if config.conv_id is not None:
        dialogues = select(dialogues, (config.conv_id,), f"{source}: conv_id {config.conv_id!r}")
    if len(dialogues) > 1 and config.out.endswith(STORE_SUFFIX):
        problem = f"is one store, for {len(dialogues)} dialogues; name a folder, or a conv_id"
        raise ConfigError(f"out: {config.out} {problem}")
    windows = [in_windows(dialogue, config.max_turns) for dialogue in dialogues]
    return [(_store_path(config, dialogue), dialogue) for dialogue in shorten(windows, config.sessions, None)]


def _store_path(config: BuildConfig, dialogue: Dialogue) -> Path:
    if config.out.endswith(STORE_SUFFIX):
        return Path(config.out)
    return path_of(Path(config.out), dialogue.id, STORE_SUFFIX)


def _beside(config: BuildConfig, name: str) -> Path:
    """Return a path in the folder of the stores, or NAME.usage.jsonl and the like beside a single store NAME.db."""
    if config.out.endswith(STORE_SUFFIX):
        return Path(config.out).with_suffix(f".{name}")
    return Path(config.out) / name


if __name__ == "__main__":
    sys.exit(main())
