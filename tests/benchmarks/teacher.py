"""A teacher that keeps memory in its own words, in place of a large language model, which this machine cannot hold.

    python -m tests.benchmarks.teacher        prints its port; membuilder.expert --provider vllm --base-url ... asks it

It reads the published prompts (template set `full`) as a model would: the turns, whose memory it keeps, what stands
there already. The offline rules choose the turns; each is written down in the third person, as one who heard it would:

    Felix: By the way, my nose is broken, it hurts.   ->   Felix's nose is broken; it hurts.

It knows English grammar enough for short everyday turns, and nothing of what they mean.
"""

import asyncio
import re
from datetime import datetime

from membuilder.schemes.four_agents.cues import read, score
from membuilder.schemes.four_agents.operations import render
from membuilder.schemes.four_agents.rules import propose
from membuilder.schemes.four_agents.schemas import ResponseFormat
from membuilder.types import Agent, AgentUpdate, Bank, Entry, Operation, OperationKind, Session, Turn
from tests.fault_server import FaultServer, Request, answering
from tests.scripted import agent_of

DATE = "%Y-%m-%d"
MIN_SENTENCE_SCORE = 1.0
"""A sentence of several that tells less than this is left out."""
_HEAD = re.compile(r"took place on (\d{4}-\d\d-\d\d \d\d:\d\d)\.")
_TURN = re.compile(r"^\[(\d+)\] ([^:\n]+): (.*)$", re.MULTILINE)
_MEMORY = re.compile(r"\n(?:Core memory now .*|Related entries you already keep):\n(.*)\n\nAnswer with", re.DOTALL)
_ENTRY = re.compile(r"^e\d+ (.*)$", re.MULTILINE)
_DATED = re.compile(r"^\d{4}-\d\d-\d\d: ")

_FILLER = re.compile(
    r"^(?:(?:by the way|you know what|oh|honestly|well|so|actually|funny thing|right|i meant to say|listen|wow|yes|no|"
    r"to be fair|let me tell you|anyway|hmm|just so you know|guess what|(?:hey|hi|hello) \w+)[,?!] (?:and )?)+",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[^.!?]+[.!?]*(?=\s|$)")
_WORD = re.compile(r"[^\W\d_]+(?:['’][a-z]+)?|[^\w]+|\w+")
_SHORT = {"'m": " am", "'re": " are", "'ve": " have", "'ll": " will", "'d": " would"}
_ADVERBS = frozenset(
    "just still also never always usually often really finally recently already only even now almost barely".split()
)
_UNCHANGED = frozenset(
    "can could will would shall should may might must cannot can't couldn't won't wouldn't shouldn't didn't hadn't "
    "did had was wasn't ate beat became began bought broke brought built came caught chose cut drew drove fell felt "
    "flew forgot found gave got grew heard held hit hurt kept knew left let lost made meant met overslept paid put "
    "quit ran read rode said sang sat saw sent set slept sold spent spoke spread stood swam taught thought threw told "
    "took went woke won wore wrote".split()
)
"""Verbs that are the same of me and of somebody else: modal ones and past forms."""
_IRREGULAR = {"am": "is", "are": "is", "have": "has", "were": "was", "don't": "doesn't", "haven't": "hasn't"}
_IN_ED = frozenset("need feed breed speed succeed proceed".split())
_STEPS = frozenset("add bake clean cook feed fry go leave let mix pour press put rinse stir use wait warm wipe".split())
"""Verbs that go on with the subject before them, behind `and`."""
_PLURAL = {"am": "are", "was": "were", "wasn't": "weren't"}


def third_person(text: str, speaker: str, other: str) -> str:
    """Rewrite what `speaker` said to `other` as somebody else would note it: with names, without fillers."""
    sentences = [_FILLER.sub("", each.strip()) for each in _SENTENCE.findall(text)]
    told = [each for each in sentences if each and not each.endswith("?")] or [text]
    weighty = [each for each in told if _weight(each, speaker) >= MIN_SENTENCE_SCORE]
    rewritten, is_named = [], False
    for sentence in weighty or told:
        changed, is_named = _rewrite(sentence, speaker, other, is_named)
        changed = re.sub(r", (it|they) ", r"; \1 ", changed)
        rewritten.append(changed[0].upper() + changed[1:].rstrip("?!. ") + ".")
    noted = " ".join(rewritten)
    return noted if re.search(rf"\b{re.escape(speaker)}\b", noted) else f"{noted[:-1]}, says {speaker}."


def _weight(sentence: str, speaker: str) -> float:
    turn = Turn(id="", speaker=speaker, role="user", text=sentence)
    return score(read(turn, None, {speaker}, ()))


def _rewrite(sentence: str, speaker: str, other: str, is_named: bool) -> tuple[str, bool]:
    """Return the sentence in the third person, and whether the speaker has been named by then."""
    for short, whole in _SHORT.items():
        sentence = re.sub(rf"\b(I|we|We|you|You){short}\b", rf"\1{whole}", sentence.replace("’", "'"))
    written, agree, follows = [], None, False
    for token in _WORD.findall(sentence):
        word = token.lower()
        if word in _PRONOUNS:
            first, later, agree = _PRONOUNS[word]
            is_other = first.startswith("{other}")
            new = (later if is_named and not is_other else first).format(name=speaker, other=other)
            agree = "plural" if agree and is_named and not is_other else agree
            is_named, follows = is_named or not is_other, False
        elif agree and word.isspace() or word in _ADVERBS:
            new = token
        elif agree and word[0].isalpha():
            new = _third(word) if agree == "single" else _PLURAL.get(word, token)
            follows, agree = agree == "single" and new != word, None
        elif follows and word in _STEPS and written[-2:] == ["and", " "]:
            new = _third(word)
        else:
            new, agree = token, None
        written.append(new)
    return "".join(written), is_named


_PRONOUNS: dict[str, tuple[str, str, str | None]] = {
    "i": ("{name}", "they", "single"),
    "me": ("{name}", "them", None),
    "my": ("{name}'s", "their", None),
    "mine": ("{name}'s", "theirs", None),
    "myself": ("{name}", "themselves", None),
    "we": ("{name} and others", "they", "plural"),
    "us": ("{name} and others", "them", None),
    "our": ("{name}'s", "their", None),
    "ours": ("{name}'s", "theirs", None),
    "you": ("{other}", "{other}", "single"),
    "your": ("{other}'s", "{other}'s", None),
    "yours": ("{other}'s", "{other}'s", None),
}
"""Pronoun -> how it is written before the speaker was named and after, and how the verb behind it changes."""


def _third(verb: str) -> str:
    """Return the form of a verb behind `she`; past forms stay."""
    if verb in _IRREGULAR:
        return _IRREGULAR[verb]
    if verb in _UNCHANGED or (verb.endswith("ed") and verb not in _IN_ED):
        return verb
    if verb.endswith(("s", "sh", "ch", "x", "z", "o")):
        return f"{verb}es"
    return f"{verb[:-1]}ies" if re.search("[^aeiou]y$", verb) else f"{verb}s"


def answer(prompt: str) -> str:
    """Answer one agent's prompt with operations in own words; what the memory already says is not said again."""
    agent = agent_of(prompt)
    session, bank, shown = read_prompt(prompt, agent)
    speakers = list(dict.fromkeys(turn.speaker for turn in session.turns))
    operations = []
    for chosen in propose(session, bank, {each: shown if each is agent else () for each in Agent})[agent].operations:
        turn = session.turns[chosen.quote[0] - 1]
        other = next((name for name in speakers if name != turn.speaker), "somebody")
        text = third_person(turn.content, turn.speaker, other)
        if text in bank.core or any(_DATED.sub("", entry.text) == text for entry in shown):
            continue
        if agent is Agent.EPISODIC:
            text = f"{session.timestamp:{DATE}}: {text}"
        operations.append((chosen.targets, text))
    if agent is Agent.CORE:
        noted = "\n".join(text for _, text in operations)
        update = AgentUpdate(operations=(Operation(kind=OperationKind.APPEND, text=noted),) if noted else ())
    else:
        update = AgentUpdate(operations=tuple(_operation(targets, text) for targets, text in operations))
    return render(update, agent, len(session.turns), shown, ResponseFormat.OPERATIONS)


def _operation(targets: tuple[str, ...], text: str) -> Operation:
    if len(targets) == 1:
        return Operation(kind=OperationKind.UPDATE, targets=targets, text=text)
    return Operation(kind=OperationKind.ADD, text=text)  # what the rules would merge is a new event here


def read_prompt(prompt: str, agent: Agent) -> tuple[Session, Bank, tuple[Entry, ...]]:
    """Return the session that a prompt shows, the core, and the entries shown."""
    talk, _, instructions = prompt.partition("\n---\n")
    at = datetime.fromisoformat(_HEAD.search(talk).group(1))
    turns = tuple(Turn(id=n, speaker=name, role="user", text=text) for n, name, text in _TURN.findall(talk))
    session = Session(id="s", index=0, timestamp=at, turns=turns)
    memory = _MEMORY.search(instructions).group(1)
    if agent is Agent.CORE:
        return session, Bank(core="" if memory == "(empty)" else memory), ()
    texts = enumerate(_ENTRY.findall(memory), start=1)
    entries = [
        Entry(id=f"e{number}", agent=agent, text=text, session=0, timestamp=at, source_turns=())
        for number, text in texts
    ]
    return session, Bank(entries=tuple(entries)), tuple(entries)


def reply(request: Request) -> str:
    """Answer an agent's prompt; whatever else is asked, such as whether the server is there, gets a word."""
    prompt = request.body["messages"][-1]["content"]
    return answer(prompt) if "\n---\nYou keep the " in prompt else "ok"


if __name__ == "__main__":
    teacher = FaultServer(answering(reply))
    asyncio.run(teacher.serve(lambda: print(teacher.port, flush=True)))
