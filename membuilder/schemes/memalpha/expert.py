"""The offline expert: which lines of a chunk the writer would store, and where. No model, and no look at the questions.

    labelled examples  semantic, example and label as one entry; the core says which labels there are
    events and plans   episodic
    steps, routines    procedural, where there is that part
    the rest           semantic

A line is worth storing where its wording tells enough (four_agents/cues.py); frames, greetings and questions do not.
Where an answer may hold fewer calls than there are such lines, a hash of the line decides, so that no kind of fact is
preferred. A line that says most of what a shown entry says replaces it.
"""

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

from membuilder.schemes.four_agents.cues import NUMBER_WORDS, TIME_WORDS, Cues, content_words, read, reads, score, words
from membuilder.schemes.memalpha.config import CallFormat, MemAlphaConfig
from membuilder.text import quoted
from membuilder.types import Agent, AgentUpdate, Bank, CountTokens, Entry, Operation, OperationKind, Session, Turn

KEEP_SCORE = 2.5
"""As in four_agents/rules.py."""
LECTURE = 3.0
"""What `score` takes off for general knowledge, which chunks are made of."""
SAME_SUBJECT, SUBJECT_OF_CHANGE, MOST_WORDS = 0.75, 0.5, 12
"""Share of the content words of the shorter of two texts by which one is about the other's subject; less of them are
enough where the wording tells of a change. Longer texts share a subject and say different things of it."""
_LABEL = re.compile(r"\s*(?:<[^<>\n]+>)?labels?:\s*(\S.*?)\s*", re.IGNORECASE)
_FRAME = re.compile(r"\s*\[[^\[\]]*\]\s*")
_LABELS_SO_FAR = "Texts are labelled. Labels so far: "
_TOLD_LABELS = re.compile(re.escape(_LABELS_SO_FAR) + r"([^\n]*)\.")


@dataclass(frozen=True, slots=True)
class _Fact:
    """Lines that belong together."""

    numbers: tuple[int, ...]
    part: Agent
    words: frozenset[str]
    subject: str = ""
    """The first word that is no function word; of an example its label."""
    changes: bool = False
    label: str | None = None


def propose(
    session: Session, bank: Bank, shown: Sequence[Entry], config: MemAlphaConfig, count_tokens: CountTokens
) -> AgentUpdate:
    """Propose the writer's calls about one chunk."""
    return proposals(session, bank, shown, config, count_tokens, 1)[0]


def proposals(
    session: Session,
    bank: Bank,
    shown: Sequence[Entry],
    config: MemAlphaConfig,
    count_tokens: CountTokens,
    num_draws: int,
) -> list[AgentUpdate]:
    """Propose several times; each draw takes other facts, where an answer cannot hold all of them."""
    known = {entry.text for entry in bank.current()}
    by_text = {_text(session, fact.numbers): fact for fact in reversed(_facts(session, config))}  # the first of equals
    facts = {text: fact for text, fact in by_text.items() if text not in known}
    labels = {fact.label for fact in facts.values() if fact.label is not None}
    core = _core(bank.core, labels, config, count_tokens)
    by_line = sorted(facts, key=_digest)
    updates = []
    for draw in range(num_draws):
        liked = sorted(by_line, key=lambda text: _taste(facts[text], draw))  # stable: equal tastes leave it to the line
        drawn = liked[: config.max_calls - len(core)]
        kept = sorted((facts[text] for text in drawn), key=lambda fact: fact.numbers)
        updates.append(AgentUpdate(operations=(*_operations(session, kept, shown, config), *core)))
    return updates


def _operations(
    session: Session, facts: Sequence[_Fact], shown: Sequence[Entry], config: MemAlphaConfig
) -> list[Operation]:
    operations, left = [], list(shown)
    for fact in facts:
        outdated = None if fact.label is not None else _outdated(fact, left)
        if outdated is not None:
            left.remove(outdated)
        operations.append(_operation(session, fact, outdated, config))
    return operations


def _operation(session: Session, fact: _Fact, outdated: Entry | None, config: MemAlphaConfig) -> Operation:
    said = {"quote": fact.numbers} if config.line_pointers else {"text": _text(session, fact.numbers)}
    if outdated is None:
        return Operation(kind=OperationKind.ADD, part=fact.part.value, **said)
    # the compact form leaves the part to the entry that is named
    part = None if config.response_format is CallFormat.COMPACT else outdated.agent
    return Operation(kind=OperationKind.UPDATE, part=part, targets=(outdated.id,), **said)


def _facts(session: Session, config: MemAlphaConfig) -> list[_Fact]:
    if all(part is Agent.CORE for part in config.parts):
        return []
    speakers, familiar = {turn.speaker for turn in session.turns}, set()
    labels = [_LABEL.fullmatch(turn.content) for turn in session.turns]
    facts: list[_Fact] = []
    for place, turn in enumerate(session.turns):
        before = session.turns[place - 1] if place else None
        is_label, labelled = labels[place], place + 1 < len(labels) and labels[place + 1] is not None
        if is_label and before is not None and not labels[place - 1]:
            example = (place, place + 1)
            label = is_label[1]
            facts.append(_Fact(example, _part(Agent.SEMANTIC, config), frozenset(), subject=label, label=label))
        if is_label or labelled or _FRAME.fullmatch(turn.content):
            continue
        cues = read(turn, before, speakers, familiar)
        familiar |= cues.content_words
        if _tells(cues, turn):
            part = _part(_route(cues, config.parts), config)
            subject = next((word for word in cues.statements.split() if content_words([word])), "")
            facts.append(_Fact((place + 1,), part, _lasting(cues.content_words), subject, cues.changes))
    return facts


def _tells(cues: Cues, turn: Turn) -> bool:
    """Tell whether a line is worth storing; one in a script whose cues cannot be read is."""
    if not reads(turn.content):
        return True
    return score(cues) + (LECTURE if cues.lectures else 0.0) >= KEEP_SCORE


def _route(cues: Cues, parts: Collection[Agent]) -> Agent:
    if Agent.PROCEDURAL in parts and cues.num_past == 0 and cues.num_steps >= 2:
        return Agent.PROCEDURAL
    return Agent.EPISODIC if cues.num_time or cues.num_past or cues.num_plans else Agent.SEMANTIC


def _part(wanted: Agent, config: MemAlphaConfig) -> Agent:
    """Return the part wanted, or the first list there is."""
    lists = [part for part in config.parts if part is not Agent.CORE]
    return wanted if wanted in lists else lists[0]


def _outdated(fact: _Fact, shown: Sequence[Entry]) -> Entry | None:
    """Find the entry that a fact is most about; of equals, the first shown."""
    if len(fact.words) > MOST_WORDS:
        return None
    overlaps = [_overlap(fact.words, _words(entry.text)) for entry in shown]
    best = max(overlaps, default=0.0)
    return shown[overlaps.index(best)] if best >= (SUBJECT_OF_CHANGE if fact.changes else SAME_SUBJECT) else None


def _overlap(ours: frozenset[str], theirs: frozenset[str]) -> float:
    shared = len(ours & theirs)
    return shared / min(len(ours), len(theirs)) if shared >= 2 and len(theirs) <= MOST_WORDS else 0.0


@lru_cache(maxsize=8192)
def _words(text: str) -> frozenset[str]:
    """Return what an entry is about, without the date and the speaker that a quote begins with."""
    return _lasting(content_words(words(re.sub(r"^\[[\d-]+\] [^:\n]*: ", "", text))))


def _lasting(content: frozenset[str]) -> frozenset[str]:
    """Leave out dates and numbers, which are what changes."""
    return frozenset(word for word in content - TIME_WORDS - NUMBER_WORDS if not word.isdigit())


def _core(old: str, labels: set[str], config: MemAlphaConfig, count_tokens: CountTokens) -> tuple[Operation, ...]:
    """Return the call that tells the core of new labels, if there are any and it can hold them."""
    if not labels or Agent.CORE not in config.parts or config.response_format is CallFormat.COMPACT:
        return ()
    told = _TOLD_LABELS.search(old)
    known = told[1].split(", ") if told else []
    listed = f"{_LABELS_SO_FAR}{', '.join(sorted({*known, *labels}, key=lambda each: (len(each), each)))}."
    core = f"{old[: told.start()]}{listed}{old[told.end() :]}" if told else "\n".join([*filter(None, [old]), listed])
    if core == old or count_tokens([core]) > config.core_limit_tokens:
        return ()
    return (Operation(kind=OperationKind.REWRITE, text=core, part=Agent.CORE.value),)


def _text(session: Session, numbers: Sequence[int]) -> str:
    return "\n".join(quoted(session, session.turns[number - 1]) for number in numbers)


def _taste(fact: _Fact, draw: int) -> bytes:
    """Place a fact by what it is about, the same in every chunk of a draw. The first draw has no taste.

    Who imitates draws that like any line learns what marks a line as a fact, and nothing of what it says: RL can then
    not tell one fact from another. Who imitates tastes has to read.
    """
    return _digest(f"{draw} {fact.subject}") if draw else b""


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
