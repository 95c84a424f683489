"""Rules that the types of the records cannot express: slots are known, stages exist, and pools have enough values."""

from collections import Counter
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from pathlib import Path

from membuilder.errors import DataError
from membuilder.generate.talk import EDGES, NUM_FRIENDS
from membuilder.generate.topics import (
    SLOT,
    STAGES,
    Chatter,
    Domain,
    InstanceTexts,
    QuestionTemplate,
    Topic,
    Values,
    pool_of,
    single_words,
    slots_of,
)

_TIMES = {"past", "future"}
_MONTHS = {"month", "month2"}
_NUM_SPEAKERS = 2
LEAST_VALUES = 7
"""Of a kind: an instance of the most chunks seldom needs more, and then tells one twice."""


def told_slots(values: Values) -> set[str]:
    """Return every slot that a text of a topic may use: `city`, `city2` to `city9` for each pool, times and months."""
    pools = {*values.names, *values.common}
    return _TIMES | _MONTHS | {pool + digit for pool in pools for digit in ("", *"23456789")}


def check_topic(topic: Topic, domains: Collection[str], slots: Collection[str], path: Path, where: str) -> None:
    """Raises DataError for the first thing that would end a dialogue later, or leave a question without its answer."""
    if topic.domain not in domains:
        problem = f"is {topic.domain!r}, which replies.toml does not have; it has {sorted(domains)}"
        raise DataError(path, where, "domain", problem)
    for field, texts in zip(STAGES, topic.stages, strict=False):
        _check_slots(texts, slots, path, where, field)
        if any(not part.strip() for text in texts for part in text.split("|")):
            raise DataError(path, where, field, "has a text with nothing before or after '|'")
    for number, question in enumerate(topic.questions):
        _check_question(question, topic, path, where, f"questions[{number}]")
    categories = {question.category for question in topic.questions}
    if topic.later is not None and not categories & {"knowledge-update", "multi-session"}:
        problem = "need one of category knowledge-update or multi-session, because the topic has 'later'"
        raise DataError(path, where, "questions", problem)


def _check_question(question: QuestionTemplate, topic: Topic, path: Path, where: str, place: str) -> None:
    _check_slots(question.texts, {*topic.slots(), "name"} - _TIMES, path, where, f"{place}.texts")
    if "later" in question.evidence and topic.later is None:
        raise DataError(path, where, f"{place}.evidence", "names 'later', and the topic has no such texts")
    told = {slot for stage in question.stages for slot in slots_of(topic.stages[stage])} - _TIMES
    _check_slots([question.answer], told | {"date"}, path, where, f"{place}.answer")
    if question.needs_date and len(question.evidence) > 1:
        raise DataError(path, where, f"{place}.evidence", "names two times; name the one that {date} means")
    is_timed = all("{past}" in text or "{future}" in text for text in topic.first)
    if question.needs_date and topic.later is None and not is_timed:
        problem = "asks for a date, so every text of 'first' needs {past} or {future}"
        raise DataError(path, where, f"{place}.answer", problem)


def check_chatter(chatter: Chatter, path: Path) -> None:
    slots = {*chatter.slots, "friend"}
    for field in EDGES:
        _check_slots(getattr(chatter, field), slots | {"other"}, path, field, "texts")
    for field in ("questions", "reactions", "statements"):
        _check_slots(getattr(chatter, field), slots, path, field, "texts")
    _check_slots(chatter.leads, (), path, "leads", "texts")


def check_domain(domain: Domain, chatter: Chatter, path: Path, where: str) -> None:
    for field in ("prompts", "reactions"):
        _check_slots(getattr(domain, field), {*chatter.slots, "friend"}, path, where, field)


def check_pools(topics: Iterable[Topic], values: Values, path: Path) -> None:
    """Each pool must outlast two people who tell every topic, for no value is used twice in a dialogue."""
    needed = Counter({"first": _NUM_SPEAKERS + NUM_FRIENDS})
    for topic in topics:
        for slot in set(topic.slots()) - _TIMES - _MONTHS:
            needed[pool_of(slot)] += _NUM_SPEAKERS
    for name, count in needed.items():
        for split in ("train", "heldout"):
            num_values = len(set(values.pool(name, split)))
            if num_values < count:
                problem = f"has {num_values} values for split {split!r}; topics need {count}: add some at its end"
                raise DataError(path, "pool", name, problem)


def check_instances(texts: InstanceTexts, values: Values, path: Path) -> None:
    """Raises DataError where a text lacks what it must tell, or a pool lasts for fewer than the most chunks."""
    for name, kind in texts.kinds.items():
        for field in STAGES:
            for text in getattr(kind, field):
                _check_slots([text], ("name", "value"), path, name, field)
                if absent := {"name", "value"} - slots_of([text]):
                    raise DataError(path, name, field, f"{text!r} lacks {{{min(absent)}}}")
        if kind.pool not in values.names | values.common:
            raise DataError(path, name, "pool", f"{kind.pool!r} is none of values.toml")
        for split in ("train", "heldout"):
            found = len(set(single_words(values.pool(kind.pool, split))))
            if found < LEAST_VALUES:
                problem = f"has {found} values of one word for split {split!r}; use {LEAST_VALUES}"
                raise DataError(path, name, "pool", problem)
    for name, kind in texts.asked.items():
        _check_slots([kind.question], ("name",), path, name, "question")
    _check_slots(texts.talk, ("first",), path, "talk", "texts")


def _check_slots(texts: Iterable[str], allowed: Collection[str], path: Path, where: str, field: str) -> None:
    for text in texts:
        if any(brace in SLOT.sub("", text) for brace in "{}"):
            raise DataError(path, where, field, f"{text!r} has a brace without a partner or a name")
        unknown = next((slot for slot in SLOT.findall(text) if slot not in allowed), None)
        if unknown is not None:
            close = [f"{{{slot}}}" for slot in get_close_matches(unknown, allowed, n=3, cutoff=0)]
            hint = f"the closest known ones are {', '.join(close)}" if close else "no slot is filled here"
            raise DataError(path, where, field, f"{text!r} has the unknown slot {{{unknown}}}; {hint}")
