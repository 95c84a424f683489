"""Builds the memories of dialogues into durable stores.

    python -m membuilder.build --data locomo10.json --conv-id conv-26 --model gpt-4.1-mini --out conv-26.db
    python -m membuilder.build --data locomo10.json --model Qwen/Qwen3-4B --provider vllm --out memories/
    python -m membuilder.build --data locomo10.json --conv-id conv-26 --model rules --out conv-26.db

The last one asks no model. A name that ends in .db is one store for one dialogue; any other is a folder with one store for
each. A stopped build goes on where it was when the same command is run again.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from membuilder.build_stores import Job, build_stores, failures
from membuilder.builder import Ask, Builder, chat_agents, rule_agents
from membuilder.config import describe, load
from membuilder.datasets.load import load as load_dialogues
from membuilder.embed import DEFAULT_PACKAGE, Embedder
from membuilder.errors import ConfigError, MemBuilderError
from membuilder.index import IndexConfig
from membuilder.memory import open_memory
from membuilder.prompts import PromptConfig
from membuilder.store import reading
from membuilder.types import Dialogue
from membuilder.windows import in_windows

if TYPE_CHECKING:
    from membuilder.client import ChatClient

RULES = "rules"
STORE_SUFFIX = ".db"


@dataclass(kw_only=True)
class ModelConfig:
    name: str
    """As its server knows it; `rules` is the offline expert, which needs no server."""
    provider: str = "openai"
    """`openai` or `vllm`."""
    base_url: str | None = None
    """Address of the API; null: the provider's own."""
    concurrency: int = 16
    """Requests in flight at once."""
    timeout_seconds: float = 120.0
    """For one answer."""
    temperature: float | None = 0.0
    """null leaves it to the server."""
    max_tokens: int = 4096
    """Longest answer; a longer one fails."""
    extra_body: dict[str, Any] = field(default_factory=dict)
    """Sent with each request as is."""


@dataclass(kw_only=True)
class BuildConfig:
    data: str
    """LoCoMo or LongMemEval JSON file (gz or not)."""
    out: str
    """A store (NAME.db) for one dialogue, or a folder for a store of each."""
    model: ModelConfig
    conv_id: str | None = None
    """Id of the one dialogue to build; null: every dialogue of the file."""
    sessions: int | None = None
    """First sessions of each dialogue only; null: all. A later run with more goes on from there."""
    max_turns: int = 60
    """Turns read at once: a longer session becomes several of the same date."""
    parallel: int = 4
    """Dialogues built at once."""
    embedding_model: str | None = None
    """sentence-transformers folder or model; null: the MiniLM that comes with this program."""
    prompts: PromptConfig = field(default_factory=PromptConfig)
    index: IndexConfig = field(default_factory=IndexConfig)

    def __post_init__(self) -> None:
        if min(self.max_turns, self.parallel) < 1 or (self.sessions is not None and self.sessions < 1):
            raise ValueError("max_turns, parallel and sessions must be at least 1")

    def settings(self, dialogue: Dialogue, dimension: int) -> dict[str, Any]:
        """What a store records, and a build that goes on must share."""
        return {
            "dialogue": dialogue.id,
            "speakers": list(dialogue.speakers),
            "model": self.model.name,
            "temperature": self.model.temperature,
            "max_tokens": self.model.max_tokens,
            "extra_body": self.model.extra_body,
            "max_turns": self.max_turns,
            "prompts": asdict(self.prompts),
            "embedding_model": self.embedding_model or DEFAULT_PACKAGE,
            "dimension": dimension,
        }


FLAGS = {
    "--data": ("data", "the dialogues"),
    "--conv-id": ("conv_id", "build this dialogue only"),
    "--model": ("model.name", "name of the model, or `rules`"),
    "--provider": ("model.provider", "openai or vllm"),
    "--base-url": ("model.base_url", "address of the API"),
    "--sessions": ("sessions", "first sessions only"),
    "--parallel": ("parallel", "dialogues at once"),
    "--embedding-model": ("embedding_model", "sentence-transformers folder or model"),
    "--out": ("out", "NAME.db for one dialogue, else a folder"),
}
"""The flags of common use: flag -> the key it sets, and what `--help` says of it."""


def make_chat_model(config: ModelConfig, api_key: str | None) -> "ChatClient":
    """The client that asks the model; the only place that knows one. Raises ConfigError for a key that is missing."""
    from membuilder.chat import Role
    from membuilder.client import ChatClient
    from membuilder.endpoints import ChatConfig, EndpointConfig, Provider
    from membuilder.usage import Usage

    try:
        endpoint = EndpointConfig(
            provider=Provider(config.provider),
            base_url=config.base_url,
            concurrency=config.concurrency,
            timeout_seconds=config.timeout_seconds,
        )
        chat = ChatConfig(
            model=config.name,
            endpoint=endpoint,
            temperature=config.temperature,
            max_tokens=config.max_tokens,
            extra_body=config.extra_body,
        )
    except ValueError as error:
        raise ConfigError(f"section 'model': {error}") from error
    return ChatClient(chat, Role.BUILDER, Usage(), api_key=api_key)


@asynccontextmanager
async def open_agents(config: BuildConfig, api_key: str | None) -> AsyncIterator[Ask]:
    """Who proposes the operations; a model is checked with one small call before anything else begins."""
    if config.model.name == RULES:
        yield rule_agents(config.prompts)
        return
    async with make_chat_model(config.model, api_key) as model:
        await model.check()
        yield chat_agents(model, config.prompts)


async def run(config: BuildConfig, api_key: str | None = None) -> list[Path]:
    """Builds what is asked for; the stores, in the order of the file. The first error stops all, what is stored stays."""
    dialogues = _dialogues(config)
    paths = [_store_path(config, dialogue) for dialogue in dialogues]
    async with AsyncExitStack() as stack:
        ask = await stack.enter_async_context(open_agents(config, api_key))
        builder = Builder(ask=ask, embedder=Embedder(config.embedding_model), prompts=config.prompts)
        stack.callback(builder.close)
        jobs = [
            Job(dialogue=dialogue, path=path, settings=config.settings(dialogue, builder.embedder.dimension))
            for dialogue, path in zip(dialogues, paths, strict=True)
        ]

        def keep_index(path: Path) -> None:
            open_memory(path, builder.embedder, config.index)  # leaves an index beside a large store

        await build_stores(jobs, builder, config.parallel, "build", keep_index)
    return paths


def summary(path: Path) -> str:
    """What a build left, in one line."""
    with reading(path) as store:
        sessions, bank = store.sessions(), store.bank()
    failed = ", ".join(f"{count} {kind}" for kind, count in sorted(failures(sessions).items())) or "none"
    counts = f"{len(sessions)} sessions, {len(bank.entries)} entries, core {len(bank.core)} characters"
    return f"{path}: {counts}; failed answers: {failed}"


def main(argv: Sequence[str] | None = None) -> None:
    config, api_key = _parse(argv)
    try:
        paths = asyncio.run(run(config, api_key))
        print("\n".join(summary(path) for path in paths))
        print(f"look inside: python -m membuilder.inspect {paths[0]}")
    except MemBuilderError as error:
        sys.exit(f"membuilder.build: {error}\nEvery session stored before stays; the same command goes on behind it.")
    except KeyboardInterrupt:
        sys.exit(
            "membuilder.build: stopped; every session stored before stays, and the same command goes on behind it."
        )


def _parse(argv: Sequence[str] | None) -> tuple[BuildConfig, str | None]:
    parser = argparse.ArgumentParser(
        prog="python -m membuilder.build",
        description=__doc__,
        epilog=describe(BuildConfig),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for flag, (key, text) in FLAGS.items():
        names = (flag, "--dataset") if flag == "--data" else (flag,)
        parser.add_argument(*names, dest=key, metavar=flag.strip("-").upper(), help=text)
    parser.add_argument("--api-key", help="else the provider's environment variable; never stored")
    parser.add_argument("--config", metavar="FILE", help="YAML file; keys it leaves out keep their defaults")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="set any other key, after the file was read")
    given = vars(parser.parse_intermixed_args(argv))
    # As YAML strings, so that no name is taken for a number or a list; numbers are read back from them.
    flags = [f"{key}={json.dumps(given[key])}" for key, _ in FLAGS.values() if given[key] is not None]
    try:
        return load(BuildConfig, given["config"], [*flags, *given["overrides"]]), given["api_key"]
    except ConfigError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def _dialogues(config: BuildConfig) -> list[Dialogue]:
    dialogues = load_dialogues(config.data)
    if config.conv_id is not None:
        known = [dialogue.id for dialogue in dialogues]
        dialogues = [dialogue for dialogue in dialogues if dialogue.id == config.conv_id]
        if not dialogues:
            raise ConfigError(
                f"conv_id: {config.data} has no dialogue {config.conv_id!r}; it has {', '.join(known[:20])}"
            )
    if len(dialogues) > 1 and config.out.endswith(STORE_SUFFIX):
        raise ConfigError(
            f"out: {config.out} is one store, for {len(dialogues)} dialogues; name a folder, or a conv_id"
        )
    cut = [in_windows(dialogue, config.max_turns) for dialogue in dialogues]
    return [replace(dialogue, sessions=dialogue.sessions[: config.sessions]) for dialogue in cut]


def _store_path(config: BuildConfig, dialogue: Dialogue) -> Path:
    if config.out.endswith(STORE_SUFFIX):
        return Path(config.out)
    return Path(config.out) / f"{quote(dialogue.id, safe=' ')}{STORE_SUFFIX}"  # an id is no path
