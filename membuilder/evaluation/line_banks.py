"""Memories that choose nothing: every line of a dialogue, or random ones."""

from collections.abc import Callable

from membuilder.building.baselines import part_of_turns, random_turns, store_all, store_within
from membuilder.evaluation.chunks import Count
from membuilder.schemes.scheme import Scheme, entry_agents
from membuilder.types import Agent, Bank, Dialogue


def all_lines(dialogue: Dialogue, scheme: Scheme | None) -> Bank:
    """Store every line as an entry of its own; `scheme` None: that of the four agents."""
    return store_all(dialogue, _part(scheme))


def random_lines(dialogue: Dialogue, by_rules: Callable[[Dialogue], Bank], count: Count, scheme: Scheme | None) -> Bank:
    """Store random lines, as many as fit the tokens that the rules stored; the draw depends on the dialogue alone."""
    if not any(session.turns for session in dialogue.sessions):
        return Bank()
    budget = sum(map(count, by_rules(dialogue).memory_text()))
    order = random_turns(dialogue)
    return store_within(dialogue, order, budget, lambda texts: sum(map(count, texts)), _part(scheme))


def _part(scheme: Scheme | None) -> str:
    return Agent.EPISODIC if scheme is None else part_of_turns(entry_agents(scheme))
