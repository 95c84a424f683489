"""What people can talk about, as data: a topic has one or two stages (told in different sessions) and its questions.

A stage is a set of interchangeable templates. `|` in a template parts it into two turns of the same speaker. Slots name
a pool of values.py (`{city}`, `{city2}`), a time phrase (`{past}`, `{future}`), or a month after the dialogue
(`{month}`). In a question `{name}` is the person, in an answer `{date}` is what the stage's time phrase means.
"""

import re
from dataclasses import dataclass

SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    category: str
    stages: tuple[int, ...]
    """Whose turns are the evidence."""
    texts: tuple[str, ...]
    answer: str

    @property
    def needs_date(self) -> bool:
        return "{date}" in self.answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Topic:
    name: str
    domain: str
    """Chooses the other speaker's prompts and reactions."""
    stages: tuple[tuple[str, ...], ...]
    asks: tuple[Ask, ...]
    subject: str | None = None
    """Topics of one subject would blur each other's questions, so a person gets one of them; None: its own name."""

    @property
    def subject_key(self) -> str:
        return self.subject or self.name

    def slots(self) -> tuple[str, ...]:
        """Every slot of the topic, sorted."""
        texts = [text for stage in self.stages for text in stage]
        texts += [text for ask in self.asks for text in (*ask.texts, ask.answer)]
        return tuple(sorted({slot for text in texts for slot in SLOT.findall(text)}))


def single(*texts: str, answer: str, stage: int = 0) -> Ask:
    return Ask(category="single-session", stages=(stage,), texts=texts, answer=answer)


def now(*texts: str, answer: str) -> Ask:
    return Ask(category="knowledge-update", stages=(1,), texts=texts, answer=answer)


def total(*texts: str, answer: str) -> Ask:
    """A present state that only both stages together tell, such as a count."""
    return Ask(category="knowledge-update", stages=(0, 1), texts=texts, answer=answer)


def both(*texts: str, answer: str) -> Ask:
    return Ask(category="multi-session", stages=(0, 1), texts=texts, answer=answer)


def when(*texts: str, stage: int = 0) -> Ask:
    return Ask(category="temporal", stages=(stage,), texts=texts, answer="{date}")


def steps(*texts: str, answer: str) -> Ask:
    return Ask(category="procedural", stages=(0,), texts=texts, answer=answer)
