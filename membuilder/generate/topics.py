"""The records of the data files: topics with their questions, small talk, and the values that fill slots.

A slot such as `{city2}` in a text is filled from a pool of values, here `city`; the digit tells two slots of one pool
apart. The comments on top of the data files say which other slots there are.
"""

import re
from collections.abc import Iterable
from itertools import product
from typing import Annotated, Literal

from msgspec import Meta, Struct

from membuilder.datasets.typed import Text

Split = Literal["train", "heldout"]

Texts = Annotated[tuple[Text, ...], Meta(min_length=1)]

SLOT = re.compile(r"\{(\w+)\}")
STAGES = ("first", "later")


def pool_of(slot: str) -> str:
    return slot.rstrip("0123456789")


def held_out(index: int) -> bool:
    return index % 3 == 2


def slots_of(texts: Iterable[str]) -> set[str]:
    return {slot for text in texts for slot in SLOT.findall(text)}


class QuestionTemplate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    category: Literal["single-session", "multi-session", "knowledge-update", "temporal", "procedural"]
    texts: Texts
    answer: Text
    evidence: Annotated[tuple[Literal["first", "later"], ...], Meta(min_length=1)] = ("first",)
    """The stages whose turns prove the answer."""

    @property
    def stages(self) -> tuple[int, ...]:
        return tuple(STAGES.index(stage) for stage in self.evidence)

    @property
    def needs_date(self) -> bool:
        return "{date}" in self.answer


class Topic(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    domain: Text
    """Chooses the other speaker's prompts and reactions."""
    subject: Text
    """Topics of one subject would blur each other's questions, so a person gets one of them."""
    first: Texts
    """Interchangeable texts; `|` parts a text into two turns of the same speaker."""
    later: Texts | None = None
    """Texts for a later session, in which the fact has changed."""
    questions: Annotated[tuple[QuestionTemplate, ...], Meta(min_length=1)]

    @property
    def stages(self) -> tuple[tuple[str, ...], ...]:
        return (self.first,) if self.later is None else (self.first, self.later)

    def slots(self) -> tuple[str, ...]:
        """Return every slot of the stages, sorted; the questions have no others but `{name}` and `{date}`."""
        return tuple(sorted({slot for stage in self.stages for slot in slots_of(stage)}))


class Domain(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    prompts: Texts
    """What the other speaker says before a fact."""
    reactions: Texts
    """What the other speaker says after a fact."""


class Chatter(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    greetings: Texts
    replies: Texts
    goodbyes: Texts
    farewells: Texts
    questions: Texts
    reactions: Texts
    """Answers to a statement."""
    statements: Texts
    """What passes, told in the words of lasting facts."""
    leads: Texts
    """Words that may stand before a sentence."""
    slots: dict[str, Texts]


class Values(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    names: dict[str, Texts]
    """Pools that are partitioned between the splits."""
    common: dict[str, Texts]
    """Pools that both splits use whole."""

    def pool(self, name: str, split: Split) -> tuple[str, ...]:
        """Return the values a split may use: every third name is held out, common words are open to both."""
        if name in self.common:
            return self.common[name]
        return tuple(value for index, value in enumerate(self.names[name]) if held_out(index) == (split == "heldout"))


def single_words(values: Iterable[str]) -> list[str]:
    """Return the values of one word, with or without an article."""
    return [value for value in values if re.fullmatch(r"(?:an? )?\S+", value)]


class Kind(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kind of fact that the lines of an instance tell."""

    pool: Text
    first: Texts
    later: Texts
    """Texts that tell a new value."""


class AskedKind(Kind, frozen=True, kw_only=True, forbid_unknown_fields=True):
    question: Text


class InstanceTexts(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    asked: dict[str, AskedKind]
    passing: dict[str, Kind]
    """Kinds that no question asks about."""
    talk: Texts
    surname_starts: Texts
    surname_ends: Texts

    @property
    def kinds(self) -> dict[str, Kind]:
        return self.asked | self.passing

    def surnames(self, split: Split) -> tuple[str, ...]:
        """Return the pairs of a start and an end that a split may use: every third is held out."""
        pairs = product(enumerate(self.surname_starts), enumerate(self.surname_ends))
        return tuple(start + end for (i, start), (j, end) in pairs if held_out(i + j) == (split == "heldout"))
