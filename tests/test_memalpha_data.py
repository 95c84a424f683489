"""The Parquet files of Memalpha and MemoryAgentBench: what a row becomes, that it goes back, and what is refused."""

import json
from datetime import datetime

import msgspec
import pytest

from membuilder import eval as command
from membuilder.datasets import memalpha, parquet
from membuilder.datasets.load import load
from membuilder.errors import DataError
from membuilder.evaluation.metrics import exact_match, substring_match, token_f1
from membuilder.instances.leaks import compared, shared
from membuilder.llm.answer_and_judge import judge_prompt
from membuilder.types import Question

FACTS = "[Dialogue between User and Assistant on 2024-01-01 00:00]\n<User>Facts:\nZog was founded by Ada Bell.\n\n"
FACTS += "It lies in Oz\u00e9.\n<Assistant>Noted."
LATER = "\n[Dialogue at timestamp 2023/05/04 (Thu) 09:30]\n<User>I moved.\n\n\n"
CHUNKS = [FACTS, LATER, "Nothing is dated 2024-02-31 here.\n<div>Markup</div>\n"]
ASKED = [
    {"question": "Who founded Zog?", "answer": "Ada Bell", "evidence": ["C1:3"]},
    {
        "question": "Where does it lie?",
        "answer": ["Oz\u00e9", "the land of Oz\u00e9"],
        "asked_at": "2024-05-01T10:00:00",
    },
    {"question": "Who is king?", "answer": ["Nobody tells."], "answerable": False, "question_type": "multi-session"},
]
MERGED = json.dumps({"data_source": "squad", "metadata": json.dumps({"sub_source": "squad_v1"})})


def row(**changes) -> dict:
    """One row as a file holds it: `chunks` and `questions_and_answers` may be given as they are or as JSON."""
    values = {"instance_id": 0, "prompt": "Chunks follow.", "chunks": CHUNKS, "questions_and_answers": ASKED}
    values |= {"data_source": "squad", "metadata": MERGED, "num_chunks": 3, "num_questions": 3} | changes
    for column in ("chunks", "questions_and_answers"):
        if not isinstance(values[column], str):
            values[column] = json.dumps(values[column])
    return values


def written(tmp_path, *rows: dict, columns=memalpha.COLUMNS):
    path = tmp_path / "some.parquet"
    parquet.write_rows(path, rows, columns)
    return path


def test_a_row_is_a_dialogue_a_chunk_a_session_and_a_line_a_turn(tmp_path):
    (dialogue,) = load(written(tmp_path, row()))
    first, later, last = dialogue.sessions
    assert dialogue.id == "squad-0" and memalpha.source_of(dialogue) == "squad"
    assert [(turn.id, turn.speaker, turn.role, turn.text) for turn in first.turns] == [
        ("C1:1", "text", "user", "[Dialogue between User and Assistant on 2024-01-01 00:00]"),
        ("C1:2", "User", "user", "<User>Facts:"),
        ("C1:3", "User", "user", "Zog was founded by Ada Bell.\n"),
        ("C1:5", "User", "user", "It lies in Oz\u00e9."),
        ("C1:6", "Assistant", "assistant", "<Assistant>Noted."),
    ]
    times = [session.timestamp for session in dialogue.sessions]
    assert times == [datetime(2024, 1, 1), datetime(2023, 5, 4, 9, 30), datetime(2023, 5, 5, 9, 30)]
    assert [turn.id for turn in later.turns] == ["C2:2", "C2:3"]
    assert [turn.speaker for turn in last.turns] == ["text", "text"]
    founder, place, king = dialogue.questions
    assert (founder.id, founder.golds, founder.evidence) == ("squad-0_q1", ("Ada Bell",), ("C1:3",))
    assert (place.golds, place.category) == (("Oz\u00e9", "the land of Oz\u00e9"), "squad")
    assert place.asked_at == datetime(2024, 5, 1, 10)
    assert (king.answerable, king.category) == (False, "multi-session")


def test_a_round_trip_is_equal_in_every_byte_of_every_column(tmp_path):
    rows = [row(), row(instance_id=1, chunks=json.dumps(CHUNKS, ensure_ascii=False), metadata='{ "sub_source":"x"}')]
    rows.append(row(instance_id=2, questions_and_answers='[{"answer":"a","question":"b","more":1}]', num_questions=1))
    path, copy = written(tmp_path, *rows), tmp_path / "copy.parquet"
    memalpha.write_rows(copy, memalpha.read_rows(path))
    assert parquet.read_table(copy) == rows and parquet.column_types(copy) == parquet.column_types(path)
    given = msgspec.convert(rows[0], memalpha.Row)
    dialogue = memalpha.dialogue_of(given)
    again = memalpha.row_of(dialogue, instance_id=0, data_source="squad", prompt="Chunks follow.", metadata=MERGED)
    assert again == given


def test_metadata_are_read_at_both_depths():
    for metadata, found in (
        (MERGED, "squad_v1"),
        ('{"sub_source": "ruler_qa1_197K"}', "ruler_qa1_197K"),
        ("{}", "squad"),
    ):
        assert memalpha.sub_source(msgspec.convert(row(metadata=metadata), memalpha.Row)) == found


def question(**changes) -> dict:
    return {"questions_and_answers": [{"question": "Who?", "answer": "Ada"} | changes], "num_questions": 1}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"chunks": "[", "num_chunks": 0}, "chunks"),
        ({"chunks": [], "num_chunks": 0}, "chunks"),
        ({"chunks": ["a", " \n"], "num_chunks": 2}, "chunks[1]"),
        ({"chunks": {"a": 1}, "num_chunks": 1}, "chunks"),
        ({"num_chunks": 4}, "num_chunks"),
        ({"num_questions": 2}, "num_questions"),
        ({"questions_and_answers": "{]"}, "questions_and_answers"),
        ({"questions_and_answers": [*ASKED] * 34, "num_questions": 102}, "questions_and_answers"),
        (question(question=" "), "questions_and_answers[0].question"),
        (question(answer=[]), "questions_and_answers[0].answer"),
        (question(answer=["Ada", ""]), "questions_and_answers[0].answer[1]"),
        (question(answer=None), "questions_and_answers[0].answer"),
        (question(evidence=["C1:4"]), "questions_and_answers[0].evidence"),
        (question(asked_at="May"), "questions_and_answers[0].asked_at"),
        ({"metadata": "[]"}, "metadata"),
        ({"metadata": '{"metadata": "no"}'}, "metadata.metadata"),
        ({"data_source": ""}, "data_source"),
        ({"prompt": None}, "prompt"),
        ({"instance_id": 0}, "data_source"),  # as the row before it has
    ],
)
def test_a_bad_row_is_told_by_file_row_and_field(changes, field, tmp_path):
    path = written(tmp_path, row(), row(**{"instance_id": 1} | changes))
    with pytest.raises(DataError) as caught:
        load(path)
    assert (caught.value.path, caught.value.field) == (str(path), field)
    assert caught.value.record.startswith("row 1")


def test_wrong_columns_and_files_are_refused(tmp_path):
    columns = {"extra": str} | {name: kind for name, kind in memalpha.COLUMNS.items() if name != "prompt"}
    with pytest.raises(DataError, match="field 'prompt': is missing; expected instance_id, prompt"):
        load(written(tmp_path, row(extra="x"), columns=columns))
    with pytest.raises(DataError, match="field 'extra'"):
        load(written(tmp_path, row(extra="x"), columns=memalpha.COLUMNS | {"extra": str}))
    with pytest.raises(DataError, match=r"row 0 \(squad\): field 'instance_id': Expected `int`, got `str`"):
        load(written(tmp_path, row(instance_id="0"), columns=memalpha.COLUMNS | {"instance_id": str}))
    with pytest.raises(DataError, match="field 'rows': has none"):
        load(written(tmp_path))
    for content in ("text", ""):
        (tmp_path / "no.parquet").write_text(content)
        with pytest.raises(DataError, match="field 'Parquet'"):
            load(tmp_path / "no.parquet")
    with pytest.raises(DataError, match="is no file"):
        load(tmp_path / "nowhere.parquet")


def test_an_instance_of_one_chunk_and_no_question_is_one_and_is_written_again(tmp_path):
    given = row(chunks=["One line."], num_chunks=1, questions_and_answers=[], num_questions=0)
    (dialogue,) = load(written(tmp_path, given))
    assert len(dialogue.sessions) == 1 and dialogue.questions == ()
    told = {"instance_id": 0, "data_source": "squad", "prompt": "Chunks follow.", "metadata": MERGED}
    assert msgspec.to_builtins(memalpha.row_of(dialogue, **told)) == given
    (index,) = (compared(load(tmp_path / "some.parquet")),)
    assert [each.count for each in shared(index, index)] == [0, 0, 0]


def test_two_instances_of_one_id_are_told_by_both_rows(tmp_path):
    path = written(tmp_path, row(), row(instance_id=1), row())
    with pytest.raises(DataError, match=r"row 2 \(squad\): .* 'squad-0' is also the id of row 0; remove or rename"):
        load(path)
    assert len(load(written(tmp_path, row(), row(data_source="hotpotqa")))) == 2


def test_every_gold_answer_is_right():
    asked = Question(id="q", text="Where?", answer="Oz", other_answers=("land of Oz",), category="squad", evidence=())
    assert substring_match(asked, "In the land of Oz!") == 1 and exact_match(asked, "Land of Oz") == 1
    assert exact_match(asked, "sea of Oz") == 0 and token_f1(asked, "land of Oz") == 1
    assert "Oz, or equally right: land of Oz" in judge_prompt(asked, "Oz", "strict")


@pytest.mark.parametrize("name", ["memalpha", "memoryagentbench"])
def test_both_are_evaluated_by_their_names(name, tmp_path, capsys):
    path = written(tmp_path, row())
    out = ("--output-dir", str(tmp_path / "out"), "--system", "rag-turn-bm25")
    assert command.main(["--dataset", name, "--dataset-path", str(path), *out]) == 0
    assert "rag-turn-bm25" in capsys.readouterr().out
    assert command.main(["--dataset", name, *out]) == 2
    assert f"dataset '{name}' has no public home" in capsys.readouterr().err
