import os
import re
import subprocess
import sys
from collections import Counter
from datetime import date, timedelta
from hashlib import sha256
from pathlib import Path

import pytest

from membuilder.errors import ConfigError
from membuilder.generate.dialogue import generate
from membuilder.generate.library import load_library
from membuilder.generate.phrasing import capitalise
from membuilder.generate.times import FUTURE, PAST, month_name, resolve
from membuilder.generate.topics import SLOT

REPO = Path(__file__).parents[1]
LIBRARY = load_library()
TOPICS, VALUES = LIBRARY.topics, LIBRARY.values
NAMES, COMMON, pool = VALUES.names, VALUES.common, VALUES.pool
TRAIN = generate(50, seed=0, split="train")
HELDOUT = generate(50, seed=0, split="heldout")
BOTH = TRAIN + HELDOUT


def text_of(dialogues):
    turns = [turn.text for d in dialogues for session in d.sessions for turn in session.turns]
    return "\n".join(turns + [f"{question.text} {question.answer}" for d in dialogues for question in d.questions])


def evidence_turns(dialogue, question):
    turns = {turn.id: turn for session in dialogue.sessions for turn in session.turns}
    return [turns[turn_id] for turn_id in question.evidence]


@pytest.mark.parametrize("hash_seed", ["1", "77"])
def test_same_dialogues_in_every_process(hash_seed):
    script = (
        "from hashlib import sha256; from membuilder.generate.dialogue import generate;"
        "print(sha256(repr(generate(3, seed=5, split='train')).encode()).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == sha256(repr(generate(3, seed=5, split="train")).encode()).hexdigest()


def test_a_dialogue_does_not_depend_on_how_many_are_made():
    assert generate(4, seed=0, split="train")[2] == TRAIN[2]
    assert generate(1, seed=1, split="train")[0].sessions != TRAIN[0].sessions
    assert len({dialogue.sessions for dialogue in TRAIN}) == 50


def test_ids_and_shape_of_a_dialogue():
    dialogue = TRAIN[12]
    assert dialogue.id == "gen-train-0-12"
    assert [session.id for session in dialogue.sessions] == ["D1", "D2", "D3", "D4", "D5", "D6"]
    assert dialogue.sessions[2].turns[4].id == "D3:5"
    assert {turn.role for turn in dialogue.sessions[0].turns if turn.speaker == dialogue.speakers[0]} == {"user"}
    ids = [question.id for question in dialogue.questions]
    assert ids[0] == "gen-train-0-12-q1" and len(set(ids)) == len(ids)


def test_sessions_are_days_to_weeks_apart_and_questions_come_after():
    for dialogue in BOTH:
        days = [session.timestamp.date() for session in dialogue.sessions]
        assert all(4 <= (after - before).days <= 28 for before, after in zip(days, days[1:], strict=False))
        assert all(question.asked_at > dialogue.sessions[-1].timestamp for question in dialogue.questions)


def test_speakers_alternate_in_twelve_to_sixteen_turns():
    for dialogue in BOTH:
        for session in dialogue.sessions:
            speakers = [turn.speaker for turn in session.turns]
            assert 12 <= len(speakers) <= 16
            assert set(speakers) == set(dialogue.speakers)
            assert all(one != two for one, two in zip(speakers, speakers[1:], strict=False))


def test_turns_are_short_whole_sentences():
    for dialogue in BOTH:
        for session in dialogue.sessions:
            for turn in session.turns:
                assert 5 <= len(turn.text.split()) <= 18, turn.text
                assert turn.text[0].isupper() and turn.text[-1] in ".!?", turn.text


def test_the_longest_values_fit_a_turn():
    values = NAMES | COMMON | {"past": tuple(PAST), "future": tuple(FUTURE)}
    longest = {name: max(options, key=lambda value: len(value.split())) for name, options in values.items()}
    parts = [part for topic in TOPICS for stage in topic.stages for text in stage for part in text.split("|")]
    for part in parts:
        filled = SLOT.sub(lambda slot: longest.get(slot[1].rstrip("0123456789"), "October"), part)
        assert len(filled.split()) <= 18, filled


def test_every_slot_is_filled():
    assert not re.search(r"[{}|]", text_of(BOTH))


def test_no_doubled_word_and_no_wrong_article():
    said = text_of(BOTH)
    assert not re.findall(r"\b(\w+) \1\b", said)
    assert not re.findall(r"\b[Aa] (?:[aeio]|un[^i])\w*", said)
    assert not re.findall(r"\b[Aa]n (?!hour)[^aeiou]\w*", said)


def test_collections_grow_and_records_fall():
    numbers = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "eleven": 11, "fourteen": 14}
    numbers |= {"sixteen": 16, "nineteen": 19}
    units = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

    def number(words):
        ten, *unit = words.split()
        return numbers[ten] + (units.index(unit[0]) if unit else 0)

    assert max(map(number, COMMON["count"])) < min(map(number, COMMON["larger"]))
    assert max(map(number, COMMON["faster"])) < min(map(number, COMMON["racetime"]))


def test_splits_share_no_name():
    for name in NAMES:
        assert pool(name, "train") and pool(name, "heldout")
        assert set(pool(name, "train")).isdisjoint(pool(name, "heldout"))
    for split, other, said in (("train", "heldout", text_of(HELDOUT)), ("heldout", "train", text_of(TRAIN))):
        foreign = {capitalise(value) for name in NAMES for value in pool(name, split)}
        assert not [name for name in foreign if name in said and re.search(rf"\b{name}\b", said)], (split, other)


def test_pools_outlast_two_people_who_tell_every_topic():
    wanted = Counter(
        slot.rstrip("0123456789")
        for topic in TOPICS
        for slot in topic.slots()
        if slot.rstrip("0123456789") in NAMES | COMMON
    )
    for name, per_person in wanted.items():
        speakers_and_friends = 6 if name == "first" else 0
        for split in ("train", "heldout"):
            assert len(set(pool(name, split))) >= 2 * per_person + speakers_and_friends, (name, split)


def test_wording_is_varied():
    assert all(len(set(stage)) >= 8 for topic in TOPICS for stage in topic.stages)
    assert len(set(LIBRARY.chatter.statements)) >= 80
    words = Counter(re.findall(r"[a-z']+", text_of(BOTH).lower()))
    assert 1500 <= len(words) <= 2800


def test_every_dated_template_has_a_time():
    assert all("{past}" in text or "{future}" in text for topic in LIBRARY.dated for text in topic.stages[0])


def test_evidence_exists_and_its_speaker_is_named_in_the_question():
    for dialogue in BOTH:
        for question in dialogue.questions:
            assert question.answerable == bool(question.evidence)
            assert question.answerable == (question.answer is not None) == (question.category != "unanswerable")
            for turn in evidence_turns(dialogue, question):
                assert turn.speaker in question.text


def test_no_question_is_asked_twice():
    for dialogue in BOTH:
        texts = [question.text for question in dialogue.questions]
        assert len(set(texts)) == len(texts)


def test_two_session_questions_span_two_sessions():
    for dialogue in BOTH:
        where = dialogue.session_of_turn()
        for question in dialogue.questions:
            num_sessions = len({where[turn_id] for turn_id in question.evidence})
            if question.category == "multi-session":
                assert num_sessions == 2, question
            if question.category in ("single-session", "temporal", "procedural"):
                assert num_sessions == 1, question


@pytest.mark.parametrize("dialogues", [TRAIN, HELDOUT])
def test_mixture(dialogues):
    categories = Counter(question.category for dialogue in dialogues for question in dialogue.questions)
    share = {category: count / categories.total() for category, count in categories.items()}
    answerable = categories.total() - categories["unanswerable"]
    assert 20 <= answerable / len(dialogues) <= 28
    assert 0.25 <= share["multi-session"] + share["knowledge-update"] <= 0.35
    assert 0.16 <= share["temporal"] <= 0.24
    assert 0.05 <= share["procedural"] <= 0.12
    assert 0.25 <= share["single-session"] <= 0.40
    assert 0.08 <= share["unanswerable"] <= 0.12
    num_turns = sum(len(session.turns) for dialogue in dialogues for session in dialogue.sessions)
    evidence = sum(len({turn_id for q in dialogue.questions for turn_id in q.evidence}) for dialogue in dialogues)
    assert 0.28 <= evidence / num_turns <= 0.35


def test_answers_stand_in_their_evidence():
    function_words = {"first", "then", "now", "from", "two", "and", "the", "add", "feed", "wait"}
    shares = []
    for dialogue in BOTH:
        for question in dialogue.questions:
            if question.category in ("temporal", "unanswerable"):
                continue
            told = " ".join(turn.text.lower() for turn in evidence_turns(dialogue, question))
            words = set(re.findall(r"\w{3,}", question.answer.lower())) - function_words
            shares.append(sum(word in told for word in words) / len(words) if words else 1.0)
    assert min(shares) >= 0.5
    assert sum(shares) / len(shares) >= 0.97


# Wednesday 10 May 2023; its week starts on Monday the 8th.
@pytest.mark.parametrize(
    "phrase, meant",
    [
        ("this morning", "10 May 2023"),
        ("yesterday", "9 May 2023"),
        ("two weeks ago", "26 April 2023"),
        ("last week", "the week of 1 May 2023"),
        ("last weekend", "the weekend of 6 May 2023"),
        ("last month", "April 2023"),
        ("last Tuesday", "9 May 2023"),
        ("last Wednesday", "3 May 2023"),
        ("last Thursday", "4 May 2023"),
        ("tomorrow", "11 May 2023"),
        ("next week", "the week of 15 May 2023"),
        ("next month", "June 2023"),
        ("this coming Wednesday", "17 May 2023"),
        ("this coming Thursday", "11 May 2023"),
    ],
)
def test_time_phrases(phrase, meant):
    assert resolve(phrase, date(2023, 5, 10)) == meant


def test_months_cross_the_year():
    assert resolve("last month", date(2023, 1, 3)) == "December 2022"
    assert month_name(date(2023, 11, 30), 6) == "May 2024"


def test_temporal_answers_count_from_the_session_of_the_evidence():
    shifts = {"yesterday": -1, "two days ago": -2, "a week ago": -7, "tomorrow": 1, "in ten days": 10}
    seen = set()
    for dialogue in BOTH:
        where = dialogue.session_of_turn()
        for question in dialogue.questions:
            if question.category != "temporal":
                continue
            (turn,) = evidence_turns(dialogue, question)
            for phrase in [phrase for phrase in shifts if phrase in turn.text.lower()]:
                day = dialogue.sessions[where[turn.id]].timestamp + timedelta(days=shifts[phrase])
                assert question.answer == f"{day.day} {day:%B} {day.year}"
                seen.add(phrase)
    assert seen == set(shifts)


@pytest.mark.parametrize("num_sessions, turns_per_session", [(1, 8), (2, 14), (24, 14)])
def test_other_sizes(num_sessions, turns_per_session):
    for dialogue in generate(3, 0, "heldout", num_sessions, turns_per_session):
        assert len(dialogue.sessions) == num_sessions
        assert all(abs(len(session.turns) - turns_per_session) <= 2 for session in dialogue.sessions)
        assert any(question.answerable for question in dialogue.questions)


def test_sizes_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="num_sessions is 25; use 1 to 24"):
        generate(1, 0, "train", num_sessions=25)
    with pytest.raises(ConfigError, match="turns_per_session is 7; use 8 or more"):
        generate(1, 0, "train", turns_per_session=7)
    with pytest.raises(ConfigError, match="split is 'test'; use 'train' or 'heldout'"):
        generate(1, 0, "test")
