"""Session by session from dialogue to bank, with whoever proposes the operations.

`python -m membuilder.build` builds into a durable store; its command line is in `build_cli.py`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from membuilder.bank.retrieve import related
from membuilder.embedding.local import TextEmbedder
from membuilder.schemes.four_agents.apply import SessionResult, apply_session
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.types import ENTRY_AGENTS, Agent, AgentUpdate, Bank, Dialogue, Entry, Session

Shown = dict[Agent, tuple[Entry, ...]]
Propose = Callable[[Session, Bank, Mapping[Agent, tuple[Entry, ...]]], Mapping[Agent, AgentUpdate]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One session of a build: what stood before it, what was shown and asked for, what came of it."""

    session: Session
    bank_before: Bank
    shown: Shown
    updates: dict[Agent, AgentUpdate]
    result: SessionResult


def shown_entries(session: Session, bank: Bank, embedder: TextEmbedder, config: PromptConfig) -> Shown:
    """The entries each agent sees beside a session; core sees its text instead."""
    if config.entries_shown == 0:
        return {agent: () for agent in Agent}
    found = {
        agent: related(bank, session, agent, embedder, config.entries_shown, config.include_superseded)
        for agent in ENTRY_AGENTS
    }
    return {Agent.CORE: (), **found}


def build(dialogue: Dialogue, propose: Propose, embedder: TextEmbedder, config: PromptConfig) -> Iterator[Step]:
    """Walk through a dialogue from an empty bank."""
    bank = Bank()
    for session in dialogue.sessions:
        shown = shown_entries(session, bank, embedder, config)
        updates = dict(propose(session, bank, shown))
        result = apply_session(bank, session, updates, shown, config.core_limit_chars)
        yield Step(session=session, bank_before=bank, shown=shown, updates=updates, result=result)
        bank = result.bank
