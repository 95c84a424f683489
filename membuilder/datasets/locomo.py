"""Parses LoCoMo (locomo10.json), where two people chat over months and each conversation has many questions.

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
from typing import Annotated, Any

from msgspec import Meta, Struct

from membuilder.datasets.parsing import LoadReport, common_counts, each_dialogue, read_time, refuse_repeats
from membuilder.datasets.typed import FieldError, Text, convert
from membuilder.types import Dialogue, Question, Session, Turn

# The file does not explain its numbers; what the evidence looks like agrees with these names.
CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}
_ADVERSARIAL = 5
_DATE_FORM, _DATE_EXAMPLE = "%I:%M %p on %d %B, %Y", "1:05 pm on 3 March, 2023"
_SESSION_KEY = re.compile(r"session_([1-9]\d*)")
_TURN_ID = re.compile(r"D(\d+):(\d+)")


class _Turn(Struct):
    dia_id: Text
    speaker: str
    text: str
    blip_caption: str | None = None


class _Question(Struct):
    question: Text
    category: Annotated[int, Meta(ge=1, le=len(CATEGORIES))]
    evidence: list[str]
    answer: Text | int | None = None


class _Record(Struct):
    sample_id: Text
    conversation: dict[str, Any]
    """The speakers, and for each session n its turns in `session_n` and its date in `session_n_date_time`."""
    qa: list[_Question]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    kept: tuple[str, ...]
    """Ids of turns of the dialogue, each once, in the order given."""
    dropped: tuple[str, ...]
    num_split: int
    """How many strings held more than one id."""


def parse(records: Sequence[object], path: str | Path, only: Collection[str] | None = None) -> list[Dialogue]:
    """Make dialogues of a decoded LoCoMo file; DataError names the record (counted from 0) and field at fault.

    What was repaired is logged; `only` names the dialogues whose repairs anybody wants to know of.
    """
    dialogues = list(each_dialogue(enumerate(records), path, _Record, "sample_id", _dialogue))
    wanted = [number for number, dialogue in enumerate(dialogues) if only is None or dialogue.id in only]
    report([records[number] for number in wanted], [dialogues[number] for number in wanted]).log(path)
    return dialogues


def report(records: Sequence[dict], dialogues: Sequence[Dialogue]) -> LoadReport:
    """Count what `parse` repaired or left out on the way from these records to these dialogues."""
    dropped, num_split, raw_sessions = [], 0, []
    for record, dialogue in zip(records, dialogues, strict=True):
        turn_ids = dialogue.session_of_turn().keys()
        for raw, question in zip(record["qa"], dialogue.questions, strict=True):
            evidence = resolve_evidence(raw["evidence"], turn_ids)
            dropped += [f"{question.id}: {name!r}" for name in evidence.dropped]
            num_split += evidence.num_split
        raw_sessions += [turns for key, turns in record["conversation"].items() if _SESSION_KEY.fullmatch(key)]
    questions = [(dialogue.id, question.text) for dialogue in dialogues for question in dialogue.questions]
    return LoadReport(
        **common_counts(raw_sessions, dialogues),
        dropped_evidence=dropped,
        num_split_evidence=num_split,
        num_repeated_questions=len(questions) - len(set(questions)),
    )


def resolve_evidence(raw: Sequence[str], turn_ids: Set[str]) -> Evidence:
    """Find the turns meant: `["D8:6; D9:17", "D", "D30:05"]` keeps D8:6, D9:17 and D30:5, and drops D."""
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


def _dialogue(raw: _Record) -> Dialogue:
    names = ("speaker_a", "speaker_b")
    speakers = tuple(convert(Text, raw.conversation.get(name), f"conversation.{name}") for name in names)
    if speakers[0] == speakers[1]:
        problem = f"is {speakers[1]!r} like speaker_a; the two need different names"
        raise FieldError("conversation.speaker_b", problem)
    sessions = _sessions(raw.conversation, speakers)
    turn_ids = [turn.id for session in sessions for turn in session.turns]
    refuse_repeats(turn_ids, "conversation.session_*[].dia_id")
    questions = tuple(
        _question(asked, f"{raw.sample_id}_q{i + 1}", set(turn_ids), f"qa[{i}]") for i, asked in enumerate(raw.qa)
    )
    return Dialogue(id=raw.sample_id, speakers=speakers, sessions=sessions, questions=questions)


def _sessions(conversation: dict[str, Any], speakers: tuple[str, str]) -> tuple[Session, ...]:
    dated = []
    for number in sorted(int(match[1]) for match in map(_SESSION_KEY.fullmatch, conversation) if match):
        field = f"conversation.session_{number}"
        raw_turns = convert(list[_Turn], conversation[f"session_{number}"], field)
        turns = [_turn(raw, speakers, f"{field}[{i}]") for i, raw in enumerate(raw_turns)]
        turns = tuple(turn for turn in turns if turn.content.strip())
        if turns:
            date = convert(str, conversation.get(f"session_{number}_date_time"), f"{field}_date_time")
            dated.append((read_time(date, _DATE_FORM, _DATE_EXAMPLE, f"{field}_date_time"), number, turns))
    if not dated:
        raise FieldError("conversation", "has no session with turns; remove the record or restore them")
    return tuple(
        Session(id=f"D{number}", index=index, timestamp=time, turns=turns)
        for index, (time, number, turns) in enumerate(sorted(dated, key=lambda session: session[0]))
    )


def _turn(raw: _Turn, speakers: tuple[str, str], field: str) -> Turn:
    if raw.speaker not in speakers:
        raise FieldError(f"{field}.speaker", f"is {raw.speaker!r}, neither of the two speakers {speakers}")
    role = "user" if raw.speaker == speakers[0] else "assistant"
    caption = raw.blip_caption if raw.blip_caption and raw.blip_caption.strip() else None
    return Turn(id=raw.dia_id, speaker=raw.speaker, role=role, text=raw.text, caption=caption)


def _question(raw: _Question, question_id: str, turn_ids: Set[str], field: str) -> Question:
    if raw.answer is None and raw.category != _ADVERSARIAL:
        raise FieldError(f"{field}.answer", "is missing; only adversarial questions have none")
    return Question(
        id=question_id,
        text=raw.question,
        answer=None if raw.answer is None else str(raw.answer),
        category=CATEGORIES[raw.category],
        evidence=resolve_evidence(raw.evidence, turn_ids).kept,
        answerable=raw.answer is not None,
    )
