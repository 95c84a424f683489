"""MemBuilder's four agents as a scheme: this folder's functions behind the seam of `schemes/scheme.py`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from membuilder.bank.ranking import SearchMethod
from membuilder.bank.retrieve import Retrieval, related, retrieve
from membuilder.embedding.local import TextEmbedder
from membuilder.schemes.four_agents.apply import apply_session
from membuilder.schemes.four_agents.operations import parse, render, split
from membuilder.schemes.four_agents.prompts import PromptConfig, render_prompt
from membuilder.schemes.four_agents.rules import propose
from membuilder.schemes.four_agents.schemas import schema
from membuilder.schemes.scheme import SessionResult, Shown
from membuilder.types import ENTRY_AGENTS, Agent, AgentUpdate, Bank, Session

TINY_MAX_SHOWN = 20
"""Labels of shown entries (e1, e2, ...) that a tiny policy's tokenizer keeps whole."""


@dataclass(frozen=True, slots=True)
class FourAgents:
    """Core, episodic, semantic and procedural: one model, four prompts. Its members are explained in `Scheme`."""

    prompts: PromptConfig
    name = "four_agents"
    roles = tuple(Agent)
    expert = staticmethod(propose)

    def show(self, session: Session, bank: Bank, embedder: TextEmbedder) -> Shown:
        """Show each agent's own entries, the most related first; the core agent sees the core text instead."""
        number, superseded = self.prompts.entries_shown, self.prompts.include_superseded
        method = self.prompts.retrieval or SearchMethod.DENSE
        if number == 0:
            return {agent: () for agent in Agent}
        found = {agent: related(bank, session, agent, embedder, number, superseded, method) for agent in ENTRY_AGENTS}
        return {Agent.CORE: (), **found}

    def ask(self, role: str, session: Session, bank: Bank, shown: Shown) -> str:
        return render_prompt(Agent(role), session, bank, shown[role], self.prompts)

    def schema(self, role: str, session: Session) -> dict[str, Any]:
        return schema(Agent(role), self.prompts.response_format, len(session.turns))

    def parse(self, role: str, text: str, session: Session) -> AgentUpdate:
        return parse(text, Agent(role), len(session.turns), self.prompts.response_format)

    def split(self, role: str, text: str) -> list[str]:
        return split(text, Agent(role), self.prompts.response_format)

    def write(self, role: str, update: AgentUpdate, session: Session, shown: Shown) -> str:
        return render(update, Agent(role), len(session.turns), shown[role], self.prompts.response_format)

    def apply(self, session: Session, bank: Bank, updates: Mapping[str, AgentUpdate], shown: Shown) -> SessionResult:
        return apply_session(bank, session, updates, shown, self.prompts.core_limit_chars)

    def find(self, bank: Bank, questions: Sequence[str], embedder: TextEmbedder, k: int) -> list[Retrieval]:
        """Entries of every session and agent compete alike."""
        superseded, method = self.prompts.include_superseded, self.prompts.retrieval or SearchMethod.DENSE
        return retrieve(bank, questions, embedder, k, include_superseded=superseded, method=method)

    def tiny_tokens(self, max_turns: int) -> list[str]:
        """Return turn numbers, agent tags and the pieces between numbers in an answer of the `turns` format."""
        decisions = ["add", *(f"e{label}" for label in range(1, TINY_MAX_SHOWN + 1))]
        pieces = ['{"', "{}", *(f'":"{decision}{end}' for decision in decisions for end in ('","', '"}'))]
        return [*(f"#{number}" for number in range(1, max_turns + 1)), *(f"[{agent}]\n" for agent in Agent), *pieces]
