"""The texts of the generator as files: what they hold stays, faults are named, and a topic is added without Python."""

import json
import shutil
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import pytest

from membuilder.errors import DataError
from membuilder.generate.dialogue import generate
from membuilder.generate.library import TEXT_FOLDER, load_library


# Recorded before the texts became files. A change of a text, or of the order of random draws, changes these hashes.
@pytest.mark.parametrize(
    "num_dialogues, seed, split, sizes, digest",
    [
        (20, 1, "train", (), "627a4e0e5e97ca872b6b46978206fa9c55f06b22b3501813ee7bb17846498845"),
        (20, 1, "heldout", (), "7f11793d367d610fd844833efcd3fed09e9edfab57f20b764f93607fbe1b1a53"),
        (3, 7, "train", (), "92e4fd0467887b57738e039aafe0b0350d426c39bc0ae16b9d331e7a3ec3ebe0"),
        (3, 7, "heldout", (), "210ead2ccfbcc36da28226fd7c1e48967b9cdfe68921ad86ddf1658bba38209e"),
        (2, 0, "train", (1, 8), "f2606883e12c0507b7f36ac22999e20e7ae32a1a384a5d4c676ee718f9ac644b"),
        (2, 0, "heldout", (1, 8), "c0059c5bf4ffea2b4e00476974cf4e9f09b9da8bd773b01e1935a0fa1238e246"),
        (2, 5, "train", (24, 14), "65592a24827d06e9ebe32072b73e35ab43b6ff8ec6720214c1fb59a409c41bff"),
        (2, 5, "heldout", (24, 14), "bf5644936bb9c14404efe85b3194482d97a2e2cacc60d225a8221c10d5844a4e"),
        (2, 3, "train", (2, 20), "74fabcaf7bf2ac7f296ab9e2c728c44f7723669cbe18c1b76b797e4c03dfd195"),
        (2, 3, "heldout", (2, 20), "d4ec9ce54ce7c73dcaa2445f3b16d3aa9e8dc25df086ccc2e8da9a6cbe3da72c"),
    ],
)
def test_dialogues_are_those_recorded(num_dialogues, seed, split, sizes, digest):
    dialogues = generate(num_dialogues, seed, split, *sizes)
    questions = [question for dialogue in dialogues for question in dialogue.questions]
    assert questions and all(question.other_answers is None for question in questions)

    def as_recorded(pairs: list[tuple[str, object]]) -> dict:
        return {name: value for name, value in pairs if name != "other_answers"}

    text = json.dumps([asdict(each, dict_factory=as_recorded) for each in dialogues], default=str, sort_keys=True)
    assert sha256(text.encode()).hexdigest() == digest


@pytest.fixture
def texts(tmp_path) -> Path:
    """A copy of the data folder that a test may change."""
    return shutil.copytree(TEXT_FOLDER, tmp_path / "data")


def test_a_file_that_is_not_read_or_not_there_is_refused(texts):
    (texts / "topics" / "mine.toml").touch()
    with pytest.raises(DataError, match="mine.toml: whole file: field 'name': is not read; put its topics into one of"):
        load_library(texts)
    (texts / "topics" / "mine.toml").unlink()
    (texts / "topics" / "plans.toml").unlink()
    with pytest.raises(DataError, match="plans.toml: whole file: field 'path': cannot be read: No such file"):
        load_library(texts)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, (path, old)
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_a_topic_is_added_by_editing_a_data_file_only(texts):
    with (texts / "topics" / "belongings.toml").open("a", encoding="utf-8") as file:
        file.write("""
[boat]
domain = "things"
first = ["I own a rowing boat, it is called {boat}."]

[[boat.questions]]
category = "single-session"
texts = ["What is {name}'s rowing boat called?"]
answer = "{boat}"
""")
    names = ", ".join(f'"Wave {number}"' for number in range(9))
    edit(texts / "values.toml", "[names]\n", f"[names]\nboat = [{names}]\n")
    dialogues = generate(20, 1, "train", text_folder=texts)
    told = [
        (turn.text, question.answer)
        for dialogue in dialogues
        for question in dialogue.questions
        if "rowing boat" in question.text and question.answerable
        for session in dialogue.sessions
        for turn in session.turns
        if turn.id in question.evidence
    ]
    assert told and all(text.endswith(f"it is called {answer}.") for text, answer in told)
    assert {answer for _, answer in told} <= {"Wave 0", "Wave 1", "Wave 3", "Wave 4", "Wave 6", "Wave 7"}
    assert generate(20, 1, "train") != dialogues


JOB = "topics/changes_home.toml"
LASTING = "topics/lasting.toml"
EVENTS = "topics/events.toml"


@pytest.mark.parametrize(
    "file, old, new, record, field, problem",
    [
        # Keys and types.
        (JOB, '[job]\ndomain = "work"', '[job]\ndomian = "work"', "topic job", "domian", "unknown field `domian`"),
        (JOB, '[job]\ndomain = "work"\n', "[job]\n", "topic job", "domain", "missing required field `domain`"),
        (JOB, '[job]\ndomain = "work"', "[job]\ndomain = 3", "topic job", "domain", "Expected `str`, got `int`"),
        (
            LASTING,
            'texts = ["What is {name} allergic to?", "Which allergy does {name} have?"]',
            'text = "What is {name} allergic to?"',
            "topic allergy",
            "questions[0].text",
            "unknown field `text`",
        ),
        (JOB, "[job]\n", "note = 1\n[job]\n", "topic note", "top level", "Expected `object`, got `int`"),
        (JOB, 'answer = "first {job}, now {job2}"', 'answer = " "', "topic job", "questions[1].answer", "not blank"),
        ("values.toml", "[common]\n", "[common]\nage2 = []\n", "common.age2", "top level", "length >= 1"),
        ("values.toml", 'year = ["2009"', "year = [2009", "common.year", "[0]", "Expected `str`, got `int`"),
        ("chatter.toml", "[slots]\n", "[slots]\nsnack2 = [' ']\n", "slots.snack2", "[0]", "that is not blank"),
        ("chatter.toml", "greetings = [", "hellos = [", "whole file", "hellos", "unknown field"),
        # Slots.
        (LASTING, "allergic to {allergen}.", "allergic to {alergen}.", "topic allergy", "first", "closest.*{allergen}"),
        (LASTING, "allergic to {allergen}.", "allergic to {allergen10}.", "topic allergy", "first", "unknown slot"),
        (LASTING, "allergic to {allergen}.", "allergic to {allergen.", "topic allergy", "first", "a brace without"),
        (LASTING, "{name} allergic", "{city} allergic", "topic allergy", "questions[0].texts", "{city}"),
        (JOB, 'now {job2}"', 'now {job3}"', "topic job", "questions[1].answer", "closest.*{job2}"),
        (
            "chatter.toml",
            "Same here, have a good one {other}!",
            "Bye {othr}!",
            "farewells",
            "texts",
            "closest.*{other}",
        ),
        ("chatter.toml", "Sounds like you need a rest.", "Poor {other}.", "reactions", "texts", "unknown slot {other}"),
        ("chatter.toml", '"Honestly,"', '"Honestly {mood},"', "leads", "texts", "no slot is filled here"),
        ("replies.toml", "How is life at home?", "Is {pet} at home?", "home", "prompts", "unknown slot {pet}"),
        # Stages, evidence and dates.
        (LASTING, "Turns out I am", "|Turns out I am", "topic allergy", "first", "nothing before or after '|'"),
        (
            LASTING,
            '[[allergy.questions]]\ncategory = "single-session"\n',
            '[[allergy.questions]]\ncategory = "single-session"\nevidence = ["later"]\n',
            "topic allergy",
            "questions[0].evidence",
            "has no such texts",
        ),
        (
            EVENTS,
            "I passed my driving test {past}.",
            "I can drive.",
            "topic driving_test",
            "questions[0].answer",
            "{past}",
        ),
        (
            JOB,
            'evidence = ["first", "later"]\ntexts = [\n    "What was {name}\'s job',
            "texts = [\n    \"What was {name}'s job",
            "topic job",
            "questions[1].answer",
            "unknown slot {job2}",
        ),
        # Links between files.
        (
            JOB,
            '[job]\ndomain = "work"',
            '[job]\ndomain = "wrk"',
            "topic job",
            "domain",
            "which replies.toml does not have",
        ),
        ("values.toml", ', "Saturday", "Sunday"', "", "pool", "weekday", "has 5 values for split 'train'.*need 6"),
        # Whole files.
        (JOB, "[job]\n", "[job\n", "whole file", "syntax", "is no TOML: .*line 10"),
    ],
)
def test_a_fault_is_named_with_its_file_table_and_field(texts, file, old, new, record, field, problem):
    edit(texts / file, old, new)
    with pytest.raises(DataError, match=problem.replace("{", r"\{")) as caught:
        load_library(texts)
    assert (caught.value.path, caught.value.record, caught.value.field) == (str(texts / file), record, field)
