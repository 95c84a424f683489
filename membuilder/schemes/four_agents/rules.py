"""The offline expert: builds memory by rules, without a model or a network.

It emits what a model would, so it is a source of SFT data and a baseline. It sees the session, the bank and the shown
entries only. A turn that tells enough (`cues.score`) is quoted by one agent, so nothing is stored twice:

    core        short lasting facts about the speaker: job, home, family, diet
    procedural  how something is done: steps, routines
    episodic    what happened or is planned
    semantic    the rest: likings, belongings, knowledge
"""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from membuilder.schemes.four_agents.apply import CORE_LIMIT_CHARS
from membuilder.schemes.four_agents.cues import (
    NUMBER_WORDS,
    TIME_WORDS,
    Cues,
    content_words,
    phrases,
    read,
    reads,
    score,
    words,
)
from membuilder.text import quoted
from membuilder.types import (
    ENTRY_AGENTS,
    Agent,
    AgentUpdate,
    Bank,
    Dialogue,
    Entry,
    Operation,
    OperationKind,
    Session,
    Turn,
)

_log = logging.getLogger(__name__)

KEEP_SCORE = 2.5
"""Keeps a good quarter of the turns of everyday talk."""
_BONUS = {Agent.CORE: 1.0, Agent.PROCEDURAL: 0.5}
"""Added to the score of a turn that clearly is of a rare kind: such turns are worth more than their words show."""
_MAX_CORE_WORDS = 40
_MIN_SHARED_WORDS = 2
_MIN_UPDATE_OVERLAP = 0.5
_MIN_MERGE_OVERLAP = 0.4

_RELATIVE = (
    "wife|husband|spouse|fiancée?|partner|boyfriend|girlfriend|mother|father|mom|mum|dad|parents|brothers?|sisters?|"
    "siblings?|twins?|sons?|daughters?|kids?|child|children|grandmother|grandfather|grandma|grandpa|aunt|uncle"
)
_PET = "dogs?|puppy|puppies|cats?|kittens?|pets?|rabbits?|parrots?|hamsters?|horses?"
_TRADE = (
    "nurse|doctor|dentist|teacher|professor|engineer|lawyer|student|chef|cook|baker|waiter|waitress|writer|author|"
    "journalist|artist|painter|designer|architect|developer|programmer|scientist|researcher|accountant|manager|"
    "consultant|analyst|librarian|musician|singer|dancer|actor|actress|photographer|farmer|carpenter|electrician|"
    "plumber|mechanic|driver|pilot|soldier|veteran|firefighter|officer|therapist|counselor|pharmacist|veterinarian|"
    "vet|barista|banker|salesman|saleswoman|coach|trainer|translator|editor|freelancer|entrepreneur"
)
_IDENTITY = phrases(
    r"my (?:full |first |last )?name(?:'s| is)|my job is|my home ?town (?:is|of)|my home country",
    r"i(?:'m| am) (?:originally )?from|i(?:'m| am) (?:\w+ )?(?:allergic|intolerant|vegan|vegetarian|diabetic|celiac)",
    r"i(?:'m| am) (?:based in|married|single|divorced|widowed|an only child|retired|\d+ years old)",
    rf"(?:i'm|i am|i work as|i've been) (?:now )?an? (?:\w+ ){{0,2}}(?:{_TRADE})",
    r"i (?:\w+ )?(?:work (?:as|at|for)|live (?:in|at|with|alone)|grew up|was born|major in|can't eat|don't eat)",
    r"i'm (?:studying|majoring|working (?:as|at|for))",
    rf"(?:i have|i've got|we have|we've got) (?:an?|no|one|two|three|four|five|six|\d) (?:\w+ )?(?:{_RELATIVE}|{_PET})",
    rf"my (?:\w+ )?(?:{_RELATIVE}|{_PET})(?:'s name| name)? (?:is|are) (?:called|named|an? )",
)
_NAMED_RELATIVE = re.compile(rf"\b[Mm]y (?:\w+ )?(?:{_RELATIVE}|{_PET})(?:'s name)?(?: is|,)? [A-Z][a-z]+")
_INSTRUCTION = phrases(
    r"(?:here's|this is) how (?:to|i|we|you)|the (?:trick|secret) is|make sure (?:to|you|it|they|the)",
    r"my (?:\w+ )?routine|every (?:morning|evening|night|day) (?:i|we)",
    r"(?:i|we) (?:\w+ ){1,6}every (?:morning|evening|night|day)",
)
_CONTINUES = phrases(
    "still|finally|at last|so far|progress|halfway|turned out|in the end|finished|continued|wrapped up"
)
_QUOTED_SPEAKER = re.compile(r"^\[[\d-]+\] ([^:\n]+):", re.MULTILINE)


def warn_of_unread_turns(dialogues: Iterable[Dialogue]) -> None:
    """Log how many turns are in a script that the rules cannot read, if any are."""
    turns = [turn for dialogue in dialogues for session in dialogue.sessions for turn in session.turns]
    num_unread = sum(not reads(turn.text) for turn in turns)
    if num_unread:
        problem = (
            "the rules read English only: %d of %d turns are in another script, and hardly anything is kept of them"
        )
        _log.warning(f"{problem}; name a model to build with", num_unread, len(turns))


def propose(session: Session, bank: Bank, shown: Mapping[Agent, tuple[Entry, ...]]) -> dict[Agent, AgentUpdate]:
    """Propose all four agents' operations for one session; each turn is quoted at most once, and some not at all."""
    operations: dict[Agent, list[Operation]] = {agent: [] for agent in Agent}
    speakers = {turn.speaker for turn in session.turns}
    familiar: set[str] = set()
    superseded = bank.superseded_ids()
    current = [entry for agent in ENTRY_AGENTS for entry in shown[agent] if entry.id not in superseded]
    core_chars = len(bank.core)
    for number, turn in enumerate(session.turns, start=1):
        cues = read(turn, session.turns[number - 2] if number > 1 else None, speakers, familiar)
        familiar |= cues.content_words
        choice = _choose(cues, turn, current)
        if choice is None:
            continue
        agent, targets = choice
        if agent is Agent.CORE:
            grown = core_chars + len(quoted(session, turn)) + (core_chars > 0)  # a line break joins them
            if grown <= CORE_LIMIT_CHARS:
                core_chars = grown
            else:
                agent = Agent.SEMANTIC
        current = [entry for entry in current if entry.id not in targets]
        operations[agent].append(Operation(kind=_kind(agent, targets), quote=(number,), targets=targets))
    return {agent: AgentUpdate(operations=tuple(chosen)) for agent, chosen in operations.items()}


def _kind(agent: Agent, targets: tuple[str, ...]) -> OperationKind:
    if agent is Agent.CORE:
        return OperationKind.APPEND
    return (OperationKind.ADD, OperationKind.UPDATE, OperationKind.MERGE)[len(targets)]


def _choose(cues: Cues, turn: Turn, current: Sequence[Entry]) -> tuple[Agent, tuple[str, ...]] | None:
    """Choose the agent that stores a turn and the ids of the entries it replaces; None where nobody does.

    A change of something stored counts however little is said."""
    outdated = _outdated(cues, turn.speaker, current) if cues.changes else None
    if outdated is not None:
        return Agent(outdated.agent), (outdated.id,)
    agent = _route(cues, turn.text)
    if score(cues) + _BONUS.get(agent, 0.0) < KEEP_SCORE:
        return None
    if agent is Agent.EPISODIC and _CONTINUES.search(cues.statements):
        return agent, _same_event(cues, turn.speaker, current)
    return agent, ()


def _route(cues: Cues, text: str) -> Agent:
    if _is_identity(cues, text):
        return Agent.CORE
    if cues.num_past == 0 and (cues.num_steps >= 2 or _INSTRUCTION.search(cues.statements)):
        return Agent.PROCEDURAL
    if cues.num_time or cues.num_past or cues.num_plans:
        return Agent.EPISODIC
    return Agent.SEMANTIC


def _is_identity(cues: Cues, text: str) -> bool:
    if cues.num_words > _MAX_CORE_WORDS:
        return False
    if cues.num_past:
        return cues.num_time == 0 and _IDENTITY.search(cues.statements) is not None
    return (_IDENTITY.search(cues.statements) or _NAMED_RELATIVE.search(text)) is not None


def _outdated(cues: Cues, speaker: str, current: Sequence[Entry]) -> Entry | None:
    """Find the entry a changing turn is most about; of equals, the first shown."""
    overlaps = [_overlap(cues, speaker, entry) for entry in current]
    best = max(overlaps, default=0.0)
    return current[overlaps.index(best)] if best >= _MIN_UPDATE_OVERLAP else None


def _same_event(cues: Cues, speaker: str, current: Sequence[Entry]) -> tuple[str, ...]:
    """Find the two entries on the event a turn continues, or none: both share words with it and with each other."""
    episodes = [entry for entry in current if entry.agent == Agent.EPISODIC]
    overlaps = {entry.id: _overlap(cues, speaker, entry) for entry in episodes}
    about = sorted(episodes, key=lambda entry: -overlaps[entry.id])[:2]
    if len(about) < 2 or overlaps[about[1].id] < _MIN_MERGE_OVERLAP:
        return ()
    common = _subject(about[0].text) & _subject(about[1].text) & _lasting(cues.content_words)
    return tuple(entry.id for entry in about) if len(common) >= _MIN_SHARED_WORDS else ()


def _overlap(cues: Cues, speaker: str, entry: Entry) -> float:
    """Measure shared content words as a share of the shorter text; 0 when the entry is not about the speaker."""
    if speaker not in (_QUOTED_SPEAKER.findall(entry.text) or entry.text):
        return 0.0
    name = content_words(words(speaker))
    turn, subject = _lasting(cues.content_words) - name, _subject(entry.text) - name
    shared = len(turn & subject)
    return shared / min(len(turn), len(subject)) if shared >= _MIN_SHARED_WORDS else 0.0


@lru_cache(maxsize=8192)
def _subject(text: str) -> frozenset[str]:
    return _lasting(content_words(words(text)))


def forget_subjects() -> None:
    """Let go of the texts that `_subject` keeps, for a program in which one of them was erased."""
    _subject.cache_clear()


def _lasting(content: frozenset[str]) -> frozenset[str]:
    """Leave out dates and numbers, which are what changes."""
    return frozenset(word for word in content - TIME_WORDS - NUMBER_WORDS if not word.isdigit())
