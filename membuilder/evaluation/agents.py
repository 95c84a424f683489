"""The four-agent builder as a system of an evaluation: any model writes the memories, the questions and scorers stay the same.

A trained checkpoint is one more model: served by vLLM and reached like any other. It writes best in the prompts and answer
format it was trained with, which `--build-config` takes from the run's own `config.yaml`.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from membuilder.bank.store import reading
from membuilder.building.builder import Builder, ask_model
from membuilder.building.config import BuildConfig, ModelConfig
from membuilder.building.stores import Job, build_stores, failures
from membuilder.config import from_mapping, read
from membuilder.datasets.windows import in_windows
from membuilder.embedding.local import DEFAULT_PACKAGE, TextEmbedder
from membuilder.embedding.options import Precision
from membuilder.errors import ConfigError
from membuilder.evaluation.answerer import make_chat_model
from membuilder.evaluation.banks import BUILT_FROM, BankFolder
from membuilder.evaluation.options import Options
from membuilder.llm.chat_model import ChatModel, Role
from membuilder.llm.response_cache import AnswerCache
from membuilder.llm.usage import Usage
from membuilder.schemes.four_agents.prompts import PromptConfig, template_hashes
from membuilder.schemes.load import FOUR_AGENTS, load_scheme
from membuilder.types import Dialogue


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the builder's model reads and writes."""

    scheme: str = FOUR_AGENTS
    prompts: PromptConfig = field(default_factory=PromptConfig)
    max_turns: int = 60
    """Turns read at once: a longer session becomes several of the same date."""


def reading_of(path: Path | None) -> Reading:
    """From the `config.yaml` of a training run; None: as real models read. Raises ConfigError."""
    if path is None:
        return Reading()
    match read(path):
        case {"scheme": str(scheme), "prompts": {} as prompts, "data": {"max_turns": int(max_turns)}}:
            return Reading(
                scheme=scheme, prompts=from_mapping(PromptConfig, prompts, f"{path}: prompts"), max_turns=max_turns
            )
    raise ConfigError(
        f"{path}: no keys `scheme`, `prompts` and `data.max_turns`; name the config.yaml that a training run wrote"
    )


def manifest_of(options: Options, run: dict[str, Any]) -> dict[str, Any]:
    """What the memories depend on, beside the data that `run` (settings of the evaluation) tells of."""
    how = reading_of(options.build_config)
    return {
        "builder": "agents",
        "model": options.builder.model,
        "max_tokens": options.builder.max_tokens,
        "scheme": how.scheme,
        "prompts": asdict(how.prompts),
        "templates": template_hashes(how.prompts.template_set),
        "max_turns": how.max_turns,
        **{key: run[key] for key in BUILT_FROM},
    }


@asynccontextmanager
async def open_writer(
    options: Options, dialogues: Sequence[Dialogue], folder: BankFolder, usage: Usage, cache: AnswerCache | None
) -> AsyncIterator[ChatModel | None]:
    """The model that writes the memories, checked with one small call; None where all of them are there already."""
    if all(folder.has(dialogue) for dialogue in dialogues):
        yield None
        return
    async with make_chat_model(options.builder, Role.BUILDER, usage, cache) as model:
        await model.check()
        yield model


async def build_memories(
    options: Options,
    dialogues: Sequence[Dialogue],
    folder: BankFolder,
    embedder: TextEmbedder,
    model: ChatModel | None,
) -> dict[str, Any]:
    """Every memory of `dialogues` that `folder` lacks, written by `model`; how many sessions and failed answers all took.

    Each grows in a store, a session at a time: a kill loses at most the session in flight.
    """
    how = reading_of(options.build_config)
    todo = [dialogue for dialogue in dialogues if not folder.has(dialogue)]
    of = {folder.path(dialogue, ".db"): dialogue for dialogue in todo}

    def keep_bank(path: Path) -> None:
        with reading(path) as store:
            folder.save(of[path], store.bank())

    if model is not None:
        folder.begin()
        scheme = load_scheme(how.scheme, how.prompts)
        builder = Builder(ask=ask_model(model, scheme), embedder=embedder, scheme=scheme)
        with closing(builder):
            jobs = [_job(options, how, dialogue, path, embedder.dimension) for path, dialogue in of.items()]
            await build_stores(jobs, builder, options.build_parallel, "agents", keep_bank)
    return _told([folder.path(dialogue, ".db") for dialogue in dialogues])


def _job(options: Options, how: Reading, dialogue: Dialogue, path: Path, dimension: int) -> Job:
    """The store records what one of `python -m membuilder.build` does."""
    embedding, precision = options.embedder.model, options.embedder.precision
    if precision is not Precision.FLOAT32:
        embedding = f"{embedding or DEFAULT_PACKAGE} in {precision}"
    config = BuildConfig(
        dataset=options.dataset,
        out=str(path),
        model=ModelConfig(name=options.builder.model, max_tokens=options.builder.max_tokens),
        max_turns=how.max_turns,
        embedding_model=embedding,
        embedding_provider=options.embedder.provider,
        scheme=how.scheme,
        prompts=how.prompts,
    )
    windows = replace(in_windows(dialogue, how.max_turns), questions=())
    return Job(dialogue=windows, path=path, settings=config.settings(dialogue, dimension))


def _told(paths: Sequence[Path]) -> dict[str, Any]:
    stored = []
    for path in paths:
        with reading(path) as store:
            stored += store.sessions()
    num_answers = sum(len(session.answers) for session in stored)
    return {"sessions": len(stored), "answers": num_answers, "failed_answers": dict(sorted(failures(stored).items()))}
