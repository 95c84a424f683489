"""Generated instances: who and what they tell, that old values cost, and that both sides share no name."""

import json
import shutil
from collections import Counter
from dataclasses import asdict
from hashlib import sha256

import numpy as np
import pytest

from membuilder.bank.ranking import bm25_scores
from membuilder.datasets.memalpha import dialogue_of, row_of
from membuilder.errors import ConfigError, DataError
from membuilder.generate.instances import CATEGORY, CHANGED_CATEGORY, MAX_CHUNKS, fact_of, generate_instances
from membuilder.generate.library import TEXT_FOLDER, load_instance_texts
from membuilder.generate.topics import single_words
from membuilder.schemes.four_agents.cues import read, score
from membuilder.schemes.four_agents.rules import KEEP_SCORE

TEXTS, VALUES = load_instance_texts()
BOTH = [each for split in ("train", "heldout") for each in generate_instances(60, seed=0, split=split)]
LONG = [each for split in ("train", "heldout") for each in generate_instances(20, 3, split, num_chunks=MAX_CHUNKS)]


def lines(dialogue) -> list[str]:
    return [turn.text for session in dialogue.sessions for turn in session.turns]


def facts(dialogue):
    """(fact, text) of each line that tells one, in order."""
    return [(fact, text) for text in lines(dialogue) if (fact := fact_of(text)) is not None]


def line_of(dialogue, question) -> str:
    (place,) = question.evidence
    return next(turn.text for session in dialogue.sessions for turn in session.turns if turn.id == place)


# A change of a text, or of the order of random draws, changes these.
@pytest.mark.parametrize(
    "split, digest",
    [
        ("train", "52bf1f43bcf44fad0e0218fb14af01bbcd7a122798bb53633500591d3650ed9b"),
        ("heldout", "8ebf9d57e133c21b96df1493a6ce2cf2090e011be46417c1a94d989a3fcfd1f5"),
    ],
)
def test_instances_are_those_recorded_whatever_their_number(split, digest):
    instances = generate_instances(3, 1, split)
    assert sha256(json.dumps([asdict(each) for each in instances], default=str).encode()).hexdigest() == digest
    assert generate_instances(5, 1, split)[:3] == instances != generate_instances(3, 2, split)


@pytest.mark.parametrize("num_chunks", [1, 2, 4, MAX_CHUNKS])
def test_a_chunk_has_two_facts_that_are_asked_about_three_that_are_not_and_talk(num_chunks):
    for split in ("train", "heldout"):
        for dialogue in generate_instances(5, 9, split, num_chunks):
            assert [len(session.turns) for session in dialogue.sessions] == [8] * num_chunks
            for session in dialogue.sessions:
                told = Counter(
                    "talk" if (fact := fact_of(turn.text)) is None else "asked" if fact.kind in TEXTS.asked else "not"
                    for turn in session.turns
                )
                assert told == {"asked": 2, "not": 3, "talk": 3}
    for wrong in (0, MAX_CHUNKS + 1):
        with pytest.raises(ConfigError, match=f"num_chunks is {wrong}; use 1 to {MAX_CHUNKS}"):
            generate_instances(1, 0, "train", wrong)


def test_each_fact_of_an_asked_kind_is_asked_once_for_its_newest_value():
    for dialogue in [*BOTH, *LONG]:
        newest = {}
        for fact, text in facts(dialogue):
            assert ((fact.person, fact.kind) in newest) == fact.is_later
            newest[fact.person, fact.kind] = fact, text
        asked = {asks(fact): (fact, text) for fact, text in newest.values() if fact.kind in TEXTS.asked}
        assert len(dialogue.questions) == len(asked)
        for question in dialogue.questions:
            fact, text = asked[question.text]
            assert text == line_of(dialogue, question)
            assert question.golds == (fact.value,)
            assert question.category == (CHANGED_CATEGORY if fact.is_later else CATEGORY)


def test_one_fact_in_four_is_a_later_value_of_asked_kinds_and_others_and_comes_in_a_later_chunk():
    for kinds in (TEXTS.asked, TEXTS.passing):
        told = [fact for dialogue in BOTH for fact, _ in facts(dialogue) if fact.kind in kinds]
        assert sum(fact.is_later for fact in told) == len(told) / 4
    for dialogue in [*BOTH, *LONG]:
        for session in dialogue.sessions:
            told = [fact for turn in session.turns if (fact := fact_of(turn.text))]
            assert len({(fact.person, fact.kind) for fact in told}) == len(told)


def found(stored: list[str], dialogue) -> list[bool]:
    """Whether the line that a search by words ranks first holds the gold, of each question."""
    best = np.argmax(bm25_scores(stored, [question.text for question in dialogue.questions]), axis=1)
    return [question.answer in stored[i] for question, i in zip(dialogue.questions, best, strict=True)]


@pytest.mark.parametrize("kept", ["every line", "facts of asked kinds"])
def test_more_than_one_instance_in_three_needs_an_update_for_all_its_questions(kept):
    """Who keeps an old value beside the new one is asked in vain: a search ranks the old one first."""
    lost = 0
    for dialogue in [*BOTH[::4], *LONG[::10]]:
        told = [(fact, text) for text in lines(dialogue) if (fact := fact_of(text)) or kept == "every line"]
        if kept != "every line":
            told = [(fact, text) for fact, text in told if fact.kind in TEXTS.asked]
        newest = {(fact.person, fact.kind): text for fact, text in told if fact}
        updated = [text for fact, text in told if fact is None or newest[fact.person, fact.kind] == text]
        assert all(found(updated, dialogue))
        unchanged = [question.category == CATEGORY for question in dialogue.questions]
        assert found([text for _, text in told], dialogue) == unchanged
        lost += not all(unchanged)
    assert lost > (len(BOTH[::4]) + len(LONG[::10])) / 3


def asks(fact) -> str:
    return TEXTS.asked[fact.kind].question.format(name=fact.person)


def test_the_gold_stands_in_no_other_line_and_in_no_question():
    for dialogue in [*BOTH, *LONG]:
        for question in dialogue.questions:
            holding = [text for text in lines(dialogue) if question.answer.lower() in text.lower()]
            assert holding == [line_of(dialogue, question)]
            assert not any(question.answer.lower() in each.text.lower() for each in dialogue.questions)


def test_no_value_that_is_asked_for_stands_in_another_value_name_or_text():
    values = {
        name: {each.lower() for split in ("train", "heldout") for each in single_words(VALUES.pool(kind.pool, split))}
        for name, kind in TEXTS.kinds.items()
    }
    said = {text.lower() for kind in TEXTS.kinds.values() for text in (*kind.first, *kind.later)}
    said |= {text.lower() for text in TEXTS.talk} | {kind.question.lower() for kind in TEXTS.asked.values()}
    said |= {name.lower() for name in (*VALUES.names["first"], *TEXTS.surnames("train"), *TEXTS.surnames("heldout"))}
    for name in TEXTS.asked:
        for gold in values[name]:
            others = {each for pool in values.values() for each in pool} - {gold}
            assert not [each for each in others | said if gold in each], gold


def test_the_sides_share_kinds_and_no_person():
    people = {split: set() for split in ("train", "heldout")}
    kinds = {split: set() for split in ("train", "heldout")}
    for split in people:
        for dialogue in generate_instances(80, 5, split):
            people[split] |= {fact.person for fact, _ in facts(dialogue)}
            kinds[split] |= {fact.kind for fact, _ in facts(dialogue)}
        assert len(people[split]) > 200
    surnames = [{name.split()[1] for name in people[split]} for split in people]
    assert surnames[1] <= {*TEXTS.surnames("heldout")}
    assert not surnames[0] & surnames[1] and kinds["train"] == kinds["heldout"] == set(TEXTS.kinds)


def test_an_instance_written_as_a_row_is_read_again():
    for number, dialogue in enumerate(BOTH[:3]):
        row = row_of(dialogue, instance_id=number, data_source=CATEGORY, prompt="", metadata="{}")
        again = dialogue_of(row)
        assert again.sessions == dialogue.sessions
        for one, other in zip(again.questions, dialogue.questions, strict=True):
            fields = ("text", "answer", "category", "evidence")
            assert [getattr(one, name) for name in fields] == [getattr(other, name) for name in fields]


@pytest.mark.parametrize(
    "old, new, problem",
    [
        ("The job of {name} is {value}.", "{name} has a job.", "job: field 'first': .* lacks {value}"),
        ("The job of {name} is {value}.", "{nam} is {value}.", "job: .*unknown slot {nam}"),
        ('pool = "job"', 'pool = "jobs"', "job: field 'pool': 'jobs' is none of values.toml"),
        ('pool = "job"', 'pool = "film"', "job: field 'pool': has 0 values of one word for split 'train'; use 7"),
        ("{first} says hello to everybody.", "{value}!", "talk: field 'texts': .*unknown slot {value}"),
        ("""question = "What is the job of {name}?"\n""", "", "field 'asked.*question'"),
    ],
)
def test_a_fault_of_the_texts_is_named(tmp_path, old, new, problem):
    folder = shutil.copytree(TEXT_FOLDER, tmp_path / "data")
    path = folder / "instances.toml"
    text = path.read_text(encoding="utf-8")
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(DataError, match=rf"instances.toml: .*{problem}"):
        generate_instances(1, 0, "train", text_folder=folder)


def test_an_expert_that_reads_wording_tells_facts_from_talk_and_knows_what_a_later_value_replaces():
    for dialogue in [*BOTH, *LONG]:
        stored = {}
        for session in dialogue.sessions:
            familiar, before, told = set(), None, {}
            for turn in session.turns:
                cues, fact = read(turn, before, {turn.speaker}, familiar), fact_of(turn.text)
                assert (score(cues) >= KEEP_SCORE) == (fact is not None), turn.text
                familiar |= cues.content_words
                before = turn
                if fact is not None:
                    same = [key for key, seen in stored.items() if 4 * len(cues.content_words & seen) >= 3 * len(seen)]
                    assert same == ([(fact.person, fact.kind)] if fact.is_later else [])
                    told[fact.person, fact.kind] = cues.content_words
            stored |= told
