"""Memories that choose nothing: every line of a dialogue, or random ones."""

from collections.abc import Callable
from dataclasses import replace

from membuilder.building.baselines import random_turns, store_all, store_within
from membuilder.evaluation.chunks import Count
from membuilder.schemes.scheme import Scheme, entry_agents
from membuilder.types import Agent, Bank, Dialogue


def all_lines(dialogue: Dialogue, scheme: Scheme | None) -> Bank:
    """Store every line as an entry of its own; `scheme` None: that of the four agents."""
    return _of_scheme(store_all(dialogue), scheme)


def random_lines(dialogue: Dialogue, by_rules: Callable[[Dialogue], Bank], count: Count, scheme: Scheme | None) -> Bank:
    """Store random lines, as many as fit the tokens that the rules stored; the draw depends on the dialogue alone."""
    if not any(session.turns for session in dialogue.sessions):
        return Bank()
    budget = sum(map(count, by_rules(dialogue).memory_text()))
    bank = store_within(dialogue, random_turns(dialogue), budget, lambda texts: sum(map(count, texts)))
    return _of_scheme(bank, scheme)


def _of_scheme(bank: Bank, scheme: Scheme | None) -> Bank:
    """Move the entries into a part that the scheme's memory has, a list, where it lacks that of events."""
    parts = [Agent.EPISODIC] if scheme is None else [part for part in entry_agents(scheme) if part != Agent.CORE]
    if Agent.EPISODIC in parts:
        return bank
    return replace(bank, entries=tuple(replace(entry, agent=parts[0]) for entry in bank.entries))
