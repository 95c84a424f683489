"""Surface cues of one turn: what in its wording says that a fact worth remembering is told. English, no model.

Questions tell nothing, so every cue but `num_questions` is read off the statements of a turn only.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from math import log2

from membuilder.types import Turn


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def phrases(*alternatives: str) -> re.Pattern[str]:
    """Match phrases in `Cues.statements` form; a look-behind for the space is several times faster than \\b."""
    return re.compile(rf"(?<= )(?:{'|'.join(alternatives)})\b")


TIME_WORDS = _words(
    "yesterday tonight today tomorrow weekend weekends week weeks month months year years ago recently lately since "
    "monday tuesday wednesday thursday friday saturday sunday january february march april june july august september "
    "october november december spring summer autumn winter birthday anniversary christmas easter thanksgiving"
)
NUMBER_WORDS = _words(
    "two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty hundred thousand million "
    "dozen half couple several once twice"
)
LIFE_WORDS = _words(
    "married marry wedding engaged divorce divorced pregnant born died funeral hired fired laid promoted promotion "
    "resigned retired retirement graduated graduation enrolled diagnosed injured injury surgery hospital moved moving "
    "adopted adopting bought sold rented quit won lost joined launched founded opened accepted rejected degree "
    "internship interview scholarship mortgage"
)
PREFERENCE_WORDS = _words(
    "love loves loved adore like likes enjoy enjoys enjoyed prefer prefers hate hates dislike dislikes favorite "
    "favourite favorites favourites fan obsessed passionate keen hobby hobbies"
)
FIRST_PERSON_WORDS = _words("i i'm i've i'd i'll me my mine myself we we're we've we'd we'll us our ours")
SECOND_PERSON_WORDS = _words("you you're you've you'd you'll your yours yourself")
REACTION_WORDS = _words(
    "thanks thank thx congrats congratulations wow whoa woah woohoo yay haha lol ooh aww hi hey hello bye goodbye "
    "cheers welcome sorry glad happy proud luck sure definitely absolutely totally exactly agree agreed true yes yeah "
    "yep yup no nope okay ok cool nice great awesome amazing wonderful fantastic incredible excellent good"
)
PLATITUDE_WORDS = _words(
    "support supportive encouragement encouraging inspiring inspiration inspired motivated motivation important "
    "together believe keep keeping positive positivity strong strength matter matters difference dream dreams journey "
    "success appreciate grateful gratitude worth proud hope community connection meaningful rewarding energy growth"
)
_FUNCTION_WORDS = _words(
    "a about after again all also always am an and another any anything are as at away back be been being both but by "
    "can can't could did didn't do does doesn't doing don't down each else even ever every everyone everything few for "
    "from get gets getting give go goes going gonna got gotta had has have having he her here hers him his how if in "
    "into is isn't it its it's just kind know last let let's look looking lot lots made make makes making many maybe "
    "more most much must need never new next not nothing now of off on one only onto or other out over own people "
    "please pretty put quite really right said same say see seem seems she should so some someone something soon still "
    "stuff such take than that that's the their them then there there's these they they're thing things think this "
    "those though through time to too try trying under until up upon very want was wasn't way well went were what "
    "what's when where which while who why will with without won't would"
)
_COUNTED = (
    TIME_WORDS,
    NUMBER_WORDS,
    LIFE_WORDS,
    PREFERENCE_WORDS,
    FIRST_PERSON_WORDS,
    SECOND_PERSON_WORDS,
    PLATITUDE_WORDS,
)
_LIST_OF = {word: listed for listed in _COUNTED for word in listed}
_NOT_CONTENT = _FUNCTION_WORDS | REACTION_WORDS | FIRST_PERSON_WORDS | SECOND_PERSON_WORDS

_WORD = re.compile(r"[^\W\d_]+(?:'[a-z]+)?|\d+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
# A capital after a lower-case word or a comma does not open a sentence.
_INNER_CAPITAL = re.compile(r"(?<=[a-z0-9,;:&] )[\"'(]?([A-Z][\w'-]+)")
_IRREGULAR_PAST = (
    "went|got|made|took|met|saw|found|had|did|came|became|began|bought|brought|built|caught|chose|drew|drove|felt|"
    "flew|forgot|gave|grew|heard|held|knew|left|lost|paid|ran|read|said|sang|sold|sent|slept|spent|spoke|swam|taught|"
    "told|thought|threw|woke|won|wore|wrote|quit|put|set|cut|was|were"
)
# A liking that began in the past is no event.
_ACTION = r"(?!(?:loved|liked|wanted|enjoyed|preferred|hated|needed)\b)"
_PAST = phrases(
    rf"(?:i|we)(?: (?:just|also|recently|finally|even|actually|both))? {_ACTION}(?:{_IRREGULAR_PAST}|\w{{2,}}ed)",
    rf"(?:i|we)(?:'ve| have)(?: (?:just|also|recently|finally|already|always))? {_ACTION}(?:been|had|\w{{2,}}e[dn])",
)
_PLAN = phrases(
    r"(?:i|we)(?:'m|'re| am| are) (?:\w+ )?(?:planning|going|heading|starting|hosting|visiting|meeting|taking|moving)",
    r"(?:i|we)(?:'ll| will)",
    r"(?:scheduled|booked|signed up|looking forward|can't wait)",
)
_OWNS = phrases(
    r"my (?:\w+ ){1,2}(?:is|are|was|has|have)",
    r"(?:i|we)(?: have|'ve got| own| bought| got) (?:my|our|an?|two|three|some)",
)
_CHANGE = phrases(
    r"(?:moved|moving) (?:to|into|in|out|from|house)|switched|switching|changed|changing|replaced",
    r"postponed|rescheduled|cancell?ed|called off|sold|broke up|gave up|given up",
    r"no longer|any ?more|instead|used to|(?:i|we)(?:'ve)? (?:just |finally )?(?:quit|stopped)",
    r"new (?:job|place|apartment|flat|house|home|car|phone|number|address|plan|date|time|role|position|boss)",
)
_STEPS = phrases(
    r"first(?:ly)?(?! time)|then|next(?! week| month| year| time| day)|after that|afterwards|finally|lastly|step \d+",
    r"the (?:trick|secret) is|make sure (?:to|you|it|they|the)|before bed|routine|usually|daily|weekly",
    r"(?:every|each) (?:morning|evening|night|day|weekday|weekend|week|month|time)",
    r"(?:every|on) (?:mon|tues|wednes|thurs|fri|satur|sun)days?|(?:once|twice) an? (?:day|week|month|year)",
    r"(?:mix|stir|bake|boil|chop|fry|simmer|preheat|whisk|pour|knead|press|click) (?:\w+ )?(?:the|it|in|for|on)",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cues:
    """Counts over the statements of one turn; see `score` for their worth."""

    statements: str
    """The words of the turn less its questions, in lower case, each led by a space."""
    num_words: int
    num_questions: int
    num_time: int
    num_names: int
    """Capitalised words within sentences that are not a speaker of the session."""
    num_numbers: int
    num_life: int
    num_preferences: int
    num_first_person: int
    num_second_person: int
    num_platitudes: int
    num_past: int
    """First-person past, as in `I went` or `we have finished`."""
    num_plans: int
    num_steps: int
    """Words of order and routine: how something is done."""
    num_fresh: int
    """Distinct content words, of the picture caption too, that are new in the session."""
    answers: bool
    """The turn before, by somebody else, ended in a question."""
    has_caption: bool
    owns: bool
    """The speaker has something, or says how it is."""
    changes: bool
    """The wording says that something is not as it was."""
    content_words: frozenset[str]

    @property
    def lectures(self) -> bool:
        """Tell whether the turn is long and hardly about the speaker: general knowledge, not worth remembering."""
        return self.num_words > 80 and self.num_first_person * 40 < self.num_words


def words(text: str) -> list[str]:
    """Return the lower-case words and numbers, in order."""
    return _WORD.findall(text.lower().replace("’", "'"))


def reads(text: str) -> bool:
    """Tell whether at least half of the letters are Latin: in another script hardly any cue can show."""
    if text.isascii():
        return True
    latin = [unicodedata.name(letter, "").startswith("LATIN") for letter in text if letter.isalpha()]
    return 2 * sum(latin) >= len(latin)


def content_words(text_words: Iterable[str]) -> frozenset[str]:
    """Return what a text is about: its words less function words, reactions and pronouns, plurals as singulars."""
    return frozenset(_singular(word) for word in text_words if word not in _NOT_CONTENT and len(word) > 2)


def _singular(word: str) -> str:
    word = word.removesuffix("'s")
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _num_names(statements: str, speakers: Collection[str]) -> int:
    names = set(_INNER_CAPITAL.findall(statements))
    return sum(
        name.lower() not in TIME_WORDS
        and not name.startswith(("I'", "I’"))
        and not any(speaker.startswith(name) for speaker in speakers)
        for name in names
    )


def read(turn: Turn, before: Turn | None, speakers: Collection[str], familiar: Collection[str]) -> Cues:
    """Read the cues of a turn, given the turn before it and the content words of the session so far."""
    sentences = [sentence for sentence in _SENTENCE_END.split(turn.text.replace("’", "'")) if sentence]
    statements = " ".join(sentence for sentence in sentences if "?" not in sentence)
    said = words(statements)
    phrased = " " + " ".join(said)
    count = Counter(map(_LIST_OF.get, said))
    content = content_words(said if turn.caption is None else said + words(turn.caption))
    return Cues(
        statements=phrased,
        num_words=len(said),
        num_questions=sum("?" in sentence for sentence in sentences),
        num_time=count[TIME_WORDS],
        num_names=_num_names(statements, speakers),
        num_numbers=count[NUMBER_WORDS] + sum(map(str.isdigit, said)),
        num_life=count[LIFE_WORDS],
        num_preferences=count[PREFERENCE_WORDS],
        num_first_person=count[FIRST_PERSON_WORDS],
        num_second_person=count[SECOND_PERSON_WORDS],
        num_platitudes=count[PLATITUDE_WORDS],
        num_past=len(_PAST.findall(phrased)),
        num_plans=len(_PLAN.findall(phrased)),
        num_steps=len(_STEPS.findall(phrased)),
        num_fresh=sum(word not in familiar for word in content),
        answers=before is not None and before.speaker != turn.speaker and before.text.rstrip().endswith("?"),
        has_caption=turn.caption is not None,
        owns=_OWNS.search(phrased) is not None,
        changes=_CHANGE.search(phrased) is not None,
        content_words=content,
    )


def score(cues: Cues) -> float:
    """Weigh how much a turn tells, in units of one time word.

    The weights are a logistic fit of which turns of four LoCoMo conversations are asked about later, rounded by hand.
    """
    return (
        1.0 * min(cues.num_time, 2)
        + 1.0 * min(cues.num_names, 2)
        + 0.5 * min(cues.num_numbers, 2)
        + 0.5 * min(cues.num_past, 2)
        + 0.5 * min(cues.num_life, 1)
        + 0.5 * min(cues.num_steps, 3)
        + 0.25 * min(cues.num_preferences, 2)
        + 0.5 * log2(1 + min(cues.num_fresh, 31))
        + 1.0 * (cues.answers and cues.num_first_person > 0)
        + 0.5 * cues.has_caption
        + 0.5 * cues.owns
        + 0.5 * cues.changes
        - 0.25 * min(cues.num_second_person, 4)
        - 0.25 * min(cues.num_platitudes, 4)
        - 0.25 * min(cues.num_questions, 2)
        - 3.0 * cues.lectures
    )
