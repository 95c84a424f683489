"""What a model answered about each window beside what its teacher did: counts, and samples for a person to read."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

from membuilder.schemes.four_agents.cues import content_words, words
from membuilder.schemes.four_agents.operations import parse
from membuilder.schemes.four_agents.schemas import ResponseFormat
from membuilder.trajectories.trajectory import Trajectory
from membuilder.types import Agent, AgentUpdate, Session

NUM_SAMPLES = 20
INVALID, NOTHING = "invalid", "nothing"
_MANY_TURNS = 99
_STORED_BY = {
    (True, True): "both",
    (True, False): "model alone",
    (False, True): "teacher alone",
    (False, False): "nobody",
}


def side_by_side(answered: Mapping[str, Mapping[str, str]], taught: Sequence[Trajectory], seed: int) -> dict:
    """Lay the model's answers (window -> agent -> text) beside the teacher's; every window is the teacher's too."""
    windows = {
        f"{each.dialogue}/{number}": (
            step.step.session,
            {agent.value: each.target(number, agent)[0] for agent in Agent},
        )
        for each in taught
        for number, step in enumerate(each.steps)
    }
    sides = {"model": answered, "teacher": {name: answers for name, (_, answers) in windows.items()}}
    operations = {
        side: Counter(
            f"{role} {kind}" for name in windows for role in of[name] for kind in actions(role, of[name][role])
        )
        for side, of in sides.items()
    }
    rows = [
        {"window": name, "said": said(session)} | {side: stored(of[name]) for side, of in sides.items()}
        for name, (session, _) in windows.items()
    ]
    texts = [(row, text) for row in rows for text in row["model"].values()]
    told = [row for row in rows if row["model"] or row["teacher"]]
    return {
        "operations": operations,
        "windows_stored_by": dict(Counter(_STORED_BY[bool(row["model"]), bool(row["teacher"])] for row in rows)),
        "same_as_teacher": _mean([text in row["teacher"].values() for row, text in texts]),
        "words_found_in_window": _mean([found for row, text in texts for found in are_said(text, row["said"])]),
        "samples": random.Random(seed).sample(told, min(NUM_SAMPLES, len(told))),
    }


def actions(role: str, text: str) -> list[str]:
    """Return the names of the operations in an answer; `invalid` or `nothing` where there is none."""
    update = _read(role, text)
    if update.failure is not None:
        return [INVALID]
    return [operation.kind.value for operation in update.operations] or [NOTHING]


def stored(answers: Mapping[str, str]) -> dict[str, str]:
    """Return what each agent stores in a window, as one text; an agent that stores nothing is left out."""
    texts = {
        role: "\n".join(operation.text or f"turns {operation.quote}" for operation in _read(role, text).operations)
        for role, text in answers.items()
    }
    return {role: text for role, text in texts.items() if text}


def said(session: Session) -> list[str]:
    """Return the date of a window and its turns, a line each."""
    return [f"{session.timestamp:%Y-%m-%d}", *(f"{turn.speaker}: {turn.content}" for turn in session.turns)]


def are_said(text: str, lines: Sequence[str]) -> list[bool]:
    """Tell of each content word of a text whether it stands in these lines: one that does not was made up."""
    known = content_words(words(" ".join(lines)))
    return [word in known for word in sorted(content_words(words(text)))]


def _read(role: str, text: str) -> AgentUpdate:
    return parse(text, Agent(role), _MANY_TURNS, ResponseFormat.OPERATIONS)


def _mean(values: Sequence[bool]) -> float | None:
    return fmean(values) if values else None
