"""Makes the builder of a scheme a system of an evaluation: any model may write the memories.

A trained checkpoint is one more model: served by vLLM and reached like any other. It writes best in the prompts and
answer format it was trained with, which `--build-config` takes from the run's own `config.yaml`.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from membuilder.bank.store import reading
from membuilder.building.builder import Builder, ask_model
from membuilder.building.config import BuildConfig
from membuilder.building.dialogues import Job, build_stores, dropped_operations, failures, warn_of_empty
from membuilder.building.read_answer import OnBadOperation
from membuilder.datasets.windows import in_windows
from membuilder.embedding.local import TextEmbedder
from membuilder.embedding.naming import identity_of
from membuilder.evaluation.banks import BUILT_FROM, BankFolder
from membuilder.evaluation.names import RULES
from membuilder.evaluation.options import Options
from membuilder.evaluation.reading import Reading
from membuilder.llm.chat_model import ChatModel
from membuilder.llm.endpoints import ModelEndpoint
from membuilder.schemes.load import FOUR_AGENTS, MEMALPHA, scheme_of, templates_of
from membuilder.schemes.memalpha.config import MemAlphaConfig
from membuilder.types import Dialogue


def manifest_of(options: Options, run: dict[str, Any]) -> dict[str, Any]:
    """Return what the memories depend on; `run` holds the settings of the evaluation, which tell of the data."""
    how = options.reading
    return {
        "builder": "agents",
        "model": options.builder.endpoint.name,
        "max_tokens": options.builder.endpoint.max_tokens,
        **_sampling(options.builder.endpoint),
        "scheme": how.scheme,
        "prompts": asdict(how.prompts),
        **_of_memalpha(how),
        "templates": templates_of(how),
        "max_turns": how.max_turns,
        "on_bad_operation": options.flags.on_bad_operation,
        **{key: run[key] for key in BUILT_FROM},
    }


def _sampling(endpoint: ModelEndpoint) -> dict[str, Any]:
    """Return what else a model writes by, as far as it is not the default: earlier folders do not tell it."""
    names, usual = ("temperature", "top_p", "seed", "extra_body"), ModelEndpoint(name="")
    return {name: getattr(endpoint, name) for name in names if getattr(endpoint, name) != getattr(usual, name)}


def rules_manifest(how: Reading, run: dict[str, Any]) -> dict[str, Any]:
    """Return what the memories of the rules depend on; those of the four agents know no setting."""
    scheme = {} if how.scheme == FOUR_AGENTS else {"scheme": how.scheme, "prompts": asdict(how.prompts)}
    return {"builder": RULES, **scheme, **_of_memalpha(how)} | {key: run[key] for key in BUILT_FROM}


def _of_memalpha(how: Reading) -> dict[str, Any]:
    return {"memalpha": asdict(how.memalpha or MemAlphaConfig())} if how.scheme == MEMALPHA else {}


async def build_memories(
    options: Options, dialogues: Sequence[Dialogue], folder: BankFolder, embedder: TextEmbedder, model: ChatModel | None
) -> dict[str, Any]:
    """Let `model` write every memory that `folder` lacks; returns how many sessions and failed answers they took.

    Each memory grows in a store, a session at a time: a kill loses at most the session in flight.
    """
    of = {folder.path(dialogue, ".db"): dialogue for dialogue in dialogues if not folder.has(dialogue)}

    def keep_bank(path: Path) -> None:
        with reading(path) as store:
            folder.save(of[path], store.bank())

    if model is not None:
        identity = identity_of(embedder, options.embedder)
        folder.built_by(identity)
        scheme = scheme_of(options.reading)
        ask = ask_model(model, scheme, OnBadOperation(options.flags.on_bad_operation))
        with closing(Builder(ask=ask, embedder=embedder, scheme=scheme)) as builder:
            jobs = [_job(options, dialogue, path, identity) for path, dialogue in of.items()]
            empty = await build_stores(jobs, builder, options.build_parallel, "agents", keep_bank)
        if options.flags.mode == "build":  # else told where they are searched
            warn_of_empty("agents", empty, len(dialogues))
    stored = []
    for dialogue in dialogues:
        with reading(folder.path(dialogue, ".db")) as store:
            stored += store.sessions()
    num_answers = sum(len(session.answers) for session in stored)
    counts = {"failed_answers": failures(stored), "dropped_operations": dropped_operations(stored)}
    by_kind = {name: dict(sorted(count.items())) for name, count in counts.items()}
    return {"sessions": len(stored), "answers": num_answers, **by_kind}


def _job(options: Options, dialogue: Dialogue, path: Path, identity: Mapping[str, Any]) -> Job:
    """Return the job of one dialogue; its store records the same settings as one of `python -m membuilder.build`."""
    how = options.reading
    config = BuildConfig(
        dataset=options.flags.dataset,
        out=str(path),
        model=options.builder.endpoint,
        max_turns=how.max_turns,
        scheme=how.scheme,
        prompts=how.prompts,
        memalpha=how.memalpha,
    )
    windows = replace(in_windows(dialogue, how.max_turns), questions=())
    return Job(dialogue=windows, path=path, settings=config.settings(dialogue, identity))
