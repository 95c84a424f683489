"""Damage that JSON allows: texts that are none, and PerLTQA records of another shape. Every file is made here."""

import copy
import json

import pytest

from membuilder import eval as command
from membuilder.datasets.load import load
from membuilder.errors import DataError
from tests.evaluating import DIALOGUE
from tests.test_datasets_more import MEMORY, QUESTIONS, perltqa_folder

HALF = "half \ud83d"
LOCOMO = {
    "sample_id": "conv-1",
    "conversation": {
        "speaker_a": "Ann",
        "speaker_b": "Ben",
        "session_1": [{"dia_id": "D1:1", "speaker": "Ann", "text": "I have a cat."}],
        "session_1_date_time": "1:05 pm on 3 March, 2023",
    },
    "qa": [{"question": "Which pet?", "answer": "a cat", "category": 4, "evidence": ["D1:1"]}],
}
LONGMEMEVAL = {
    "question_id": "q1",
    "question_type": "multi-session",
    "question": "Which pet?",
    "answer": "a cat",
    "question_date": "2023/05/04 (Thu) 09:30",
    "haystack_dates": ["2023/05/03 (Wed) 09:30"],
    "haystack_session_ids": ["s1"],
    "haystack_sessions": [[{"role": "user", "content": "I have a cat."}]],
}


def changed(record: dict, *path, value) -> dict:
    record = copy.deepcopy(record)
    place = record
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return record


def written(tmp_path, name: str, records: object):
    path = tmp_path / name
    path.write_text(json.dumps(records) + "\n", encoding="utf-8")  # the escape is plain ASCII
    return path


@pytest.mark.parametrize(
    ("name", "records", "record", "field"),
    [
        (
            "c.jsonl",
            changed(DIALOGUE, "sessions", 0, "turns", 1, "text", value=HALF),
            "d1",
            "sessions[0].turns[1].text",
        ),
        (
            "c.jsonl",
            changed(DIALOGUE, "sessions", 0, "turns", 1, "caption", value=HALF),
            "d1",
            "sessions[0].turns[1].caption",
        ),
        ("c.jsonl", changed(DIALOGUE, "questions", 1, "question", value=HALF), "d1", "questions[1].text"),
        ("c.jsonl", changed(DIALOGUE, "questions", 1, "answer", value=HALF), "d1", "questions[1].answer"),
        ("c.jsonl", changed(DIALOGUE, "questions", 1, "category", value=HALF), "d1", "questions[1].category"),
        ("c.jsonl", changed(DIALOGUE, "id", value=HALF), "half \\ud83d", "id"),
        (
            "l.json",
            [LOCOMO, changed(changed(LOCOMO, "sample_id", value="conv-2"), "qa", 0, "answer", value=HALF)],
            "record 1 (conv-2)",
            "questions[0].answer",
        ),
        (
            "l.json",
            [changed(LONGMEMEVAL, "haystack_sessions", 0, 0, "content", value=HALF)],
            "q1",
            "sessions[0].turns[0].text",
        ),
    ],
)
def test_half_a_surrogate_pair_is_refused_with_path_record_and_field(tmp_path, name, records, record, field):
    path = written(tmp_path, name, records)
    with pytest.raises(DataError, match="half a surrogate pair") as caught:
        load(path)
    assert caught.value.path == str(path) and record in caught.value.record and caught.value.field == field
    str(caught.value).encode()  # the message itself is text


def test_half_a_surrogate_pair_in_perltqa_is_refused(tmp_path):
    memory = changed(MEMORY, "Li Wen", "events", "1_0_0", "content", value=HALF)
    with pytest.raises(DataError, match="half a surrogate pair") as caught:
        load(perltqa_folder(tmp_path, memory))
    assert "char_000" in caught.value.record


def test_a_whole_pair_is_text(tmp_path):
    path = written(tmp_path, "c.jsonl", changed(DIALOGUE, "sessions", 0, "turns", 1, "text", value="a \U0001f408"))
    assert load(path)[0].sessions[0].turns[1].text == "a \U0001f408"


def test_the_evaluation_refuses_such_a_file_before_it_writes(tmp_path, capsys):
    path = written(tmp_path, "c.jsonl", changed(DIALOGUE, "questions", 0, "question", value=HALF))
    flags = ["--dataset", "custom", "--dataset-path", str(path), "--output-dir", str(tmp_path / "out")]
    assert command.main([*flags, "--system", "none"]) == 2
    assert "questions[0].text" in capsys.readouterr().err and not (tmp_path / "out").exists()


# PerLTQA


@pytest.mark.parametrize(
    ("questions", "record", "field"),
    [
        ([{"Li Wen": 5}], "record 0 (Li Wen)", "Li Wen"),
        ([{"Li Wen": ["profile"]}], "record 0 (Li Wen)", "Li Wen"),
        ([{"Li Wen": {"events": [{"1_0_0": 5}]}}], "record 0 (Li Wen)", "events[0].1_0_0"),
        ([{"Li Wen": {"events": [{"1_0_0": "Who?"}]}}], "record 0 (Li Wen)", "events[0].1_0_0"),
        ([{"Li Wen": {"events": [5]}}], "record 0 (Li Wen)", "events[0]"),
        ([{"Li Wen": {"events": 5}}], "record 0 (Li Wen)", "events"),
        ([{"Li Wen": {"events": [{"1_0_0": [5]}]}}], "record 0 (Li Wen)", "events[0].1_0_0[0]"),
    ],
)
def test_perltqa_questions_of_another_shape_are_refused(tmp_path, questions, record, field):
    with pytest.raises(DataError) as caught:
        load(perltqa_folder(tmp_path, questions=questions))
    assert caught.value.path.endswith("perltqa_en_v2.json")
    assert (caught.value.record, caught.value.field) == (record, field)


@pytest.mark.parametrize(
    ("contents", "field"),
    [
        ({"2022-05-13": "Li Wen: I bought a boat."}, "contents.2022-05-13"),
        ({"2022-05-13": 5}, "contents.2022-05-13"),
        ({"2022-05-13": ["Li Wen: Hi", {"Li Wen": "Hi"}]}, "contents.2022-05-13[1]"),
        ("Li Wen: I bought a boat.", "contents"),
    ],
)
def test_perltqa_dialogues_of_another_shape_are_refused(tmp_path, contents, field):
    memory = changed(MEMORY, "Li Wen", "dialogues", "1_0_0#1", "contents", value=contents)
    with pytest.raises(DataError) as caught:
        load(perltqa_folder(tmp_path, memory, QUESTIONS))
    assert caught.value.path.endswith("perltmem_en_v2.json") and caught.value.record == "record 1 (Li Wen)"
    assert caught.value.field == f"dialogues.1_0_0#1.{field}"
