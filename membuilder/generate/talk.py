"""The turns around the facts: small talk reacts, asks, or tells of things that pass."""

import random
from collections.abc import Mapping, Sequence

from membuilder.generate.phrasing import MAX_WORDS, capitalise, tell
from membuilder.generate.topics import SLOT, Chatter, Domain

NUM_FRIENDS = 4
"""Acquaintances that the small talk of a dialogue may name."""
EDGES = ("greetings", "replies", "goodbyes", "farewells")
"""What the first two and the last two turns of a session are."""


class SmallTalk:
    """The small talk of one dialogue; `friends` are the acquaintances it may name."""

    def __init__(self, rng: random.Random, chatter: Chatter, domains: Mapping[str, Domain], friends: Sequence[str]):
        self._rng, self._chatter, self._domains = rng, chatter, domains
        self._slots = chatter.slots | {"friend": friends}
        self._left: dict[str, list[str]] = {}
        self._statement_last = False

    def edge(self, kind: str, other: str) -> str:
        """Say one of the `greetings`, `replies`, `goodbyes` or `farewells` to `other`."""
        return self._deal(kind, getattr(self._chatter, kind), other)

    def filler(self, domain_before: str | None, domain_after: str | None) -> str:
        """Say a turn between two others; the domains are those of the facts they tell, if they tell one."""
        after_statement, self._statement_last = self._statement_last and domain_before is None, False
        chance = self._rng.random()
        if domain_after is not None and chance < 0.25:
            return self._deal(f"prompts {domain_after}", self._domains[domain_after].prompts)
        if domain_before is not None and chance < 0.55:
            reaction = self._deal(f"reactions {domain_before}", self._domains[domain_before].reactions)
            return self._and_statement(reaction)
        if after_statement and chance < 0.4:
            return self._and_statement(self._deal("reactions", self._chatter.reactions))
        if chance > 0.9:
            return self._deal("questions", self._chatter.questions)
        return self._statement()

    def _statement(self) -> str:
        self._statement_last = True
        template = self._template("statements", self._chatter.statements)
        return tell(self._rng, template, self._values(template, ""), self._chatter.leads)

    def _and_statement(self, reaction: str) -> str:
        if self._rng.random() < 0.6:
            return reaction
        both = f"{reaction} {self._statement()}"
        return both if len(both.split()) <= MAX_WORDS else reaction

    def _deal(self, name: str, cards: Sequence[str], other: str = "") -> str:
        template = self._template(name, cards)
        return capitalise(template.format_map(self._values(template, other)))

    def _template(self, name: str, cards: Sequence[str]) -> str:
        """Deal one of the cards of this name, in random order, each once before any repeats."""
        if not self._left.get(name):
            self._left[name] = self._rng.sample(cards, len(cards))
        return self._left[name].pop()

    def _values(self, template: str, other: str) -> dict[str, str]:
        slots = [slot for slot in SLOT.findall(template) if slot != "other"]
        return {slot: self._rng.choice(self._slots[slot]) for slot in slots} | {"other": other}
