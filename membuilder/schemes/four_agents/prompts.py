"""What an agent reads: one template file per agent, in two sets (`full` for real models, `compact` for tiny ones).

The dialogue stands where the template puts it. Both sets begin with it, so the four agents of a session share the
longest part of their prompts token for token, which the engine's prefix cache and the learner's packing use.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

from membuilder.bank.ranking import SearchMethod
from membuilder.schemes.four_agents.apply import CORE_LIMIT_CHARS, CUT
from membuilder.schemes.four_agents.schemas import ResponseFormat
from membuilder.text import on_one_line
from membuilder.types import Agent, Bank, Entry, Session, Turn
from membuilder.value_types import NonNegativeInt, PositiveInt, Section

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(kw_only=True)
class PromptConfig(Section):
    template_set: str = "full"
    """Folder beside this file under templates: `full` or `compact`."""
    response_format: ResponseFormat = ResponseFormat.OPERATIONS
    entries_shown: NonNegativeInt = 20
    """Entries of its own kind an agent sees, the most related first."""
    max_turn_chars: PositiveInt = 4000
    """A longer turn is shown cut to this; a quote still stores it whole."""
    max_entry_chars: PositiveInt = 4000
    """A longer entry is shown cut to this; the bank keeps it whole."""
    include_superseded: bool = True
    """Whether entries that a later one updates or merges still count: are shown to agents, and found for questions."""
    retrieval: SearchMethod | None = None
    """How entries are found, for agents and for questions: dense, bm25 or hybrid. null: dense, as published, where
    memory is built and trained, and hybrid where it answers (membuilder.eval, Memory)."""
    core_limit_chars: PositiveInt = CORE_LIMIT_CHARS
    """An operation that would make the core longer fails."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Options of the model's chat template, such as {enable_thinking: false}: part of the template of whatever model is
    trained and saved with them, and sent with each request to a model that builds memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        known = sorted(folder.name for folder in TEMPLATES.iterdir() if folder.is_dir())
        if self.template_set not in known:
            raise ValueError(f"template_set {self.template_set!r} is none of {known}")


@cache
def _template(template_set: str, name: str) -> Template:
    return Template((TEMPLATES / template_set / f"{name}.txt").read_text(encoding="utf-8"))


def template_hashes(template_set: str) -> dict[str, str]:
    """Map `set/name` to the SHA-256 of each file of a template set: an edited one makes other prompts."""
    files = sorted((TEMPLATES / template_set).glob("*.txt"))
    return {f"{template_set}/{file.stem}": hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _cut(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else text[:max_chars] + CUT


def _shown_turn(number: int, turn: Turn, config: PromptConfig) -> str:
    content = _cut(on_one_line(turn.content), config.max_turn_chars)
    speaker = " ".join(turn.speaker.split())
    return _template(config.template_set, "turn").substitute(number=number, speaker=speaker, text=content).strip()


def render_prompt(agent: Agent, session: Session, bank: Bank, shown: Sequence[Entry], config: PromptConfig) -> str:
    """Write the prompt of one agent for one session, given the bank before it and the entries shown to it."""
    if agent is Agent.CORE:
        memory = bank.core
    else:
        texts = [_cut(on_one_line(entry.text), config.max_entry_chars) for entry in shown]
        memory = "\n".join(f"e{position} {text}" for position, text in enumerate(texts, start=1))
    turns = "\n".join(_shown_turn(number, turn, config) for number, turn in enumerate(session.turns, start=1))
    return _template(config.template_set, agent.value).substitute(
        date=f"{session.timestamp:%Y-%m-%d %H:%M}",
        turns=turns,
        memory=memory or "(empty)",
        core_chars=len(bank.core),
        core_limit=config.core_limit_chars,
    )
