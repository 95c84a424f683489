"""LoCoMo raw files (locomo10.json): two people chat over months, many questions per conversation.

What is kept and what is not:
- Sessions are the `session_<n>` keys, by date and then by number; dates without a session are ignored. A session
  without turns is skipped.
- A turn with neither text nor caption is dropped. A caption stays beside the text: many questions need the picture.
- Category 5 asks what was never said: its questions have no answer and are not answerable. The few that carry a gold
  answer all the same (a plain "No") keep it and count as answerable, because refusing would be the wrong reply.
- Evidence ids that name no turn are dropped, several ids in one string are split. A question may end up with none.
- A question asked twice stays twice, so that scores compare with published ones, even where its copies disagree.
`report` counts all of this; `parse` logs it.
"""

import re
from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from membuilder.datasets.fields import LoadReport, parse_records, read_time, take, take_answer, take_text
from membuilder.errors import DataError
from membuilder.types import Dialogue, Question, Session, Turn

# The file does not explain its numbers; what the evidence looks like agrees with these names.
CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}
_ADVERSARIAL = 5
_DATE_FORM, _DATE_EXAMPLE = "%I:%M %p on %d %B, %Y", "1:05 pm on 3 March, 2023"
_SESSION_KEY = re.compile(r"session_([1-9]\d*)")
_TURN_ID = re.compile(r"D(\d+):(\d+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    kept: tuple[str, ...]
    """Ids of turns of the dialogue, each once, in the order given."""
    dropped: tuple[str, ...]
    num_split: int
    """How many strings held more than one id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoCoMoReport(LoadReport):
    """What `parse` repaired or left out."""

    dropped_evidence: tuple[str, ...]
    """Each evidence id that names no turn, as `<question id>: <what the file says>`."""
    num_split_evidence: int
    num_repeated_questions: int


def parse(records: Sequence[object], path: str | Path, only: Collection[str] | None = None) -> list[Dialogue]:
    """Dialogues of a decoded LoCoMo file; raises DataError naming the record (counted from 0) and field at fault.

    What was repaired is logged; `only` names the dialogues whose repairs anybody wants to know of.
    """
    return parse_records(records, path, _dialogue, "sample_id", report, only)


def report(records: Sequence[dict], dialogues: Sequence[Dialogue]) -> LoCoMoReport:
    """Counts what `parse` repaired or left out on the way from these records to these dialogues."""
    dropped, num_split, num_turns, num_sessions = [], 0, 0, 0
    for record, dialogue in zip(records, dialogues, strict=True):
        turn_ids = dialogue.session_of_turn().keys()
        for raw, question in zip(record["qa"], dialogue.questions, strict=True):
            evidence = resolve_evidence(raw["evidence"], turn_ids)
            dropped += [f"{question.id}: {name!r}" for name in evidence.dropped]
            num_split += evidence.num_split
        raw_sessions = [turns for key, turns in record["conversation"].items() if _SESSION_KEY.fullmatch(key)]
        num_sessions += len(raw_sessions)
        num_turns += sum(map(len, raw_sessions))
    questions = [question for dialogue in dialogues for question in dialogue.questions]
    distinct = {(dialogue.id, question.text) for dialogue in dialogues for question in dialogue.questions}
    return LoCoMoReport(
        dropped_evidence=tuple(dropped),
        num_split_evidence=num_split,
        num_without_evidence=sum(question.answerable and not question.evidence for question in questions),
        num_repeated_questions=len(questions) - len(distinct),
        num_empty_turns=num_turns - sum(len(session.turns) for dialogue in dialogues for session in dialogue.sessions),
        num_empty_sessions=num_sessions - sum(len(dialogue.sessions) for dialogue in dialogues),
    )


def resolve_evidence(raw: Sequence[str], turn_ids: Set[str]) -> Evidence:
    """Of `["D8:6; D9:17", "D"]` it keeps D8:6 and D9:17 and drops D. Zero padding (`D30:05`) is read as the number."""
    kept, dropped, num_split = [], [], 0
    for text in raw:
        names = re.findall(r"[^;,\s]+", text)
        num_split += len(names) > 1
        for name in names:
            match = _TURN_ID.fullmatch(name)
            turn_id = f"D{int(match[1])}:{int(match[2])}" if match else None
            if turn_id in turn_ids:
                kept.append(turn_id)
            else:
                dropped.append(name)
    return Evidence(kept=tuple(dict.fromkeys(kept)), dropped=tuple(dropped), num_split=num_split)


def _dialogue(record: object, path: str | Path, position: int) -> Dialogue:
    dialogue_id = take_text(record, "sample_id", path, f"record {position}")
    where = f"record {position} ({dialogue_id})"
    conversation = take(record, "conversation", dict, path, where)
    speakers = tuple(take_text(conversation, key, path, where) for key in ("speaker_a", "speaker_b"))
    if speakers[0] == speakers[1]:
        raise DataError(path, where, "speaker_b", f"is {speakers[1]!r} like speaker_a; the two need different names")
    sessions = _sessions(conversation, speakers, path, where)
    turn_ids: set[str] = set()
    for session in sessions:
        for turn in session.turns:
            if turn.id in turn_ids:
                problem = f"{turn.id!r} names two turns; every turn needs its own id"
                raise DataError(path, f"{where}, session {session.id}", "dia_id", problem)
            turn_ids.add(turn.id)
    questions = tuple(
        _question(raw, f"{dialogue_id}_q{number}", turn_ids, path, f"{where}, qa[{number - 1}]")
        for number, raw in enumerate(take(record, "qa", list, path, where), start=1)
    )
    return Dialogue(id=dialogue_id, speakers=speakers, sessions=sessions, questions=questions)


def _sessions(conversation: dict, speakers: tuple[str, ...], path: str | Path, where: str) -> tuple[Session, ...]:
    numbers = sorted(int(match[1]) for match in map(_SESSION_KEY.fullmatch, conversation) if match)
    dated = []
    for number in numbers:
        key = f"session_{number}"
        raw_turns = take(conversation, key, list, path, where)
        turns = [_turn(raw, speakers, path, f"{where}, {key}[{i}]") for i, raw in enumerate(raw_turns)]
        turns = tuple(turn for turn in turns if turn.content.strip())
        if turns:
            date = take(conversation, f"{key}_date_time", str, path, where)
            time = read_time(date, _DATE_FORM, _DATE_EXAMPLE, path, where, f"{key}_date_time")
            dated.append((time, number, turns))
    if not dated:
        raise DataError(path, where, "conversation", "has no session with turns; remove the record or restore them")
    return tuple(
        Session(id=f"D{number}", index=index, timestamp=time, turns=turns)
        for index, (time, number, turns) in enumerate(sorted(dated, key=lambda session: session[0]))
    )


def _turn(raw: object, speakers: tuple[str, ...], path: str | Path, where: str) -> Turn:
    turn_id = take_text(raw, "dia_id", path, where)
    speaker = take(raw, "speaker", str, path, where)
    if speaker not in speakers:
        raise DataError(path, where, "speaker", f"is {speaker!r}, neither of the two speakers {speakers}")
    caption = take(raw, "blip_caption", (str, type(None)), path, where) if "blip_caption" in raw else None
    return Turn(
        id=turn_id,
        speaker=speaker,
        role="user" if speaker == speakers[0] else "assistant",
        text=take(raw, "text", str, path, where),
        caption=caption if caption and caption.strip() else None,
    )


def _question(raw: object, question_id: str, turn_ids: set[str], path: str | Path, where: str) -> Question:
    text = take_text(raw, "question", path, where)
    category = take(raw, "category", int, path, where)
    if category not in CATEGORIES:
        raise DataError(path, where, "category", f"is {category}, expected one of {list(CATEGORIES)}")
    evidence = take(raw, "evidence", list, path, where)
    for i, name in enumerate(evidence):
        if not isinstance(name, str):
            raise DataError(path, where, f"evidence[{i}]", f"expected a turn id like 'D2:4', found {name!r:.80}")
    has_no_answer = category == _ADVERSARIAL and raw.get("answer") is None
    answer = None if has_no_answer else take_answer(raw, path, where)
    return Question(
        id=question_id,
        text=text,
        answer=answer,
        category=CATEGORIES[category],
        evidence=resolve_evidence(evidence, turn_ids).kept,
        answerable=answer is not None,
    )
