"""How the models of an evaluation think: what their servers are told, and what a checkpoint was trained with."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from membuilder.config import read
from membuilder.llm.endpoints import ModelAccess

BUDGET = "thinking_token_budget"
"""What vLLM calls a budget in a request; it closes thinking as its reasoning-config says."""

_log = logging.getLogger(__name__)


def thinking_of(model: ModelAccess) -> str:
    """Return what the server's chat template is told: `on`, `off`, or nothing, so that it is `as it is served`."""
    told = model.endpoint.extra_body.get("chat_template_kwargs", {})
    told = told.get("enable_thinking") if isinstance(told, Mapping) else None
    return "as it is served" if told is None else "on" if told else "off"


def trained_budget(build_config: Path | None) -> int | None:
    """Return the tokens after which the writer's thinking was closed in training, of the run that wrote a config."""
    match {} if build_config is None else read(build_config):
        case {"sampling": {"thinking_budget": int(budget)}}:
            return budget
    return None


def warn_of_budget(budget: int | None, writer: ModelAccess) -> None:
    """Say that the writer was trained to think within a budget, where its server is told of none."""
    if budget is not None and BUDGET not in writer.endpoint.extra_body:
        problem = (
            "%s was trained with sampling.thinking_budget=%d, and here nothing closes its thinking: serve it with "
            "vLLM's reasoning-config and add --build-endpoint extra_body.%s=%d (docs/evaluation.md)"
        )
        _log.warning(problem, writer.endpoint.name, budget, BUDGET, budget)


def told_thinking(settings: Mapping[str, Any]) -> str:
    """Return a sentence about how the models of a run think that write and answer; empty where there is none."""
    told = []
    for role, key in (("memories are written by", "build_model"), ("questions are answered by", "answer_model")):
        if (model := settings[key]) is not None:
            here, trained = model["extra_body"].get(BUDGET), model.get("trained_thinking_budget")
            said = model["thinking"] if here is None else f"{model['thinking']}, closed after {here} tokens"
            if trained not in (None, here):
                said += f"; in training closed after {trained} tokens"
            told.append(f"{role} {model['model']} (thinking {said})")
    line = "; ".join(told)
    return f"{line[:1].upper()}{line[1:]}." if line else ""
