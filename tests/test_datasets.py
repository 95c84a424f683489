"""Dataset loaders: every known quirk on tiny hand-made files, and the counts of the real files if they are present."""

import gzip
import json
import os
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest

from membuilder.datasets import locomo, longmemeval
from membuilder.datasets.load import load, split
from membuilder.datasets.parsing import LoadReport
from membuilder.errors import ConfigError, DataError
from membuilder.types import Dialogue, Question, Session, Turn

DATA = Path(os.environ.get("MEMBUILDER_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def real(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"benchmark file {path} is absent; point MEMBUILDER_DATA at the data folder")
    return path


def said(turn_id: str, speaker: str = "Ann", text: str = "Hello.", **fields) -> dict:
    return {"dia_id": turn_id, "speaker": speaker, "text": text, **fields}


def asked(category: int = 4, evidence: tuple[str, ...] = ("D1:1",), **fields) -> dict:
    answer = {} if category == 5 else {"answer": "a kayak"}
    return {"question": "What did Ann buy?", "category": category, "evidence": list(evidence), **answer, **fields}


def conversation(questions: list | None = None, sample_id: str = "conv-1", **sessions) -> dict:
    """A LoCoMo record; by default one session of two turns, in which Bob speaks first."""
    sessions = sessions or {
        "session_1": [said("D1:1", "Bob"), said("D1:2", "Ann")],
        "session_1_date_time": "1:05 pm on 3 March, 2023",
    }
    qa = [asked()] if questions is None else questions
    return {"sample_id": sample_id, "conversation": {"speaker_a": "Ann", "speaker_b": "Bob", **sessions}, "qa": qa}


def parse_one(record: dict) -> Dialogue:
    (dialogue,) = locomo.parse([record], "file.json")
    return dialogue


def refused(parse, record: object) -> DataError:
    with pytest.raises(DataError) as caught:
        parse([record], "file.json")
    assert caught.value.path == "file.json"
    return caught.value


# LoCoMo


def test_locomo_dialogue_holds_what_the_record_says():
    dialogue = parse_one(conversation())
    assert (dialogue.id, dialogue.speakers) == ("conv-1", ("Ann", "Bob"))
    assert dialogue.sessions[0].timestamp == datetime(2023, 3, 3, 13, 5)
    assert [turn.id for turn in dialogue.sessions[0].turns] == ["D1:1", "D1:2"]
    (question,) = dialogue.questions
    assert (question.id, question.text, question.answer) == ("conv-1_q1", "What did Ann buy?", "a kayak")
    assert (question.category, question.evidence, question.answerable) == ("single-hop", ("D1:1",), True)
    assert question.asked_at is None


def test_locomo_role_follows_the_name_not_who_opens():
    assert [(turn.speaker, turn.role) for turn in parse_one(conversation()).sessions[0].turns] == [
        ("Bob", "assistant"),
        ("Ann", "user"),
    ]


def test_locomo_sessions_sort_by_number_and_dates_without_session_are_ignored():
    dialogue = parse_one(
        conversation(
            [],
            session_10=[said("D10:1")],
            session_2=[said("D2:1")],
            session_2_date_time="12:00 am on 1 May, 2023",
            session_10_date_time="12:00 pm on 2 May, 2023",
            session_11_date_time="9:00 am on 3 May, 2023",
        )
    )
    assert [(session.id, session.index) for session in dialogue.sessions] == [("D2", 0), ("D10", 1)]
    assert [session.timestamp.hour for session in dialogue.sessions] == [0, 12]


def test_locomo_sessions_of_equal_date_sort_by_number():
    sessions = {f"session_{n}": [said(f"D{n}:1")] for n in (10, 2)}
    dates = {f"session_{n}_date_time": "1:05 pm on 3 March, 2023" for n in (10, 2)}
    dialogue = parse_one(conversation([], **sessions, **dates))
    assert [session.id for session in dialogue.sessions] == ["D2", "D10"]


def test_locomo_caption_stays_beside_the_text_and_silent_turns_and_sessions_go():
    record = conversation(
        [asked(evidence=("D1:1", "D1:2", "D1:3"))],
        session_1=[
            said("D1:1", text="Look!", blip_caption="a photo of a red boat", img_url=["x"], query="boat"),
            said("D1:2", text="", blip_caption="a photo of a dog"),
            said("D1:3", text=" ", blip_caption=""),
        ],
        session_1_date_time="1:05 pm on 3 March, 2023",
        session_2=[],
        session_3=[said("D3:1")],
        session_3_date_time="1:05 pm on 4 March, 2023",
    )
    dialogue = parse_one(record)
    assert [(turn.text, turn.caption) for turn in dialogue.sessions[0].turns] == [
        ("Look!", "a photo of a red boat"),
        ("", "a photo of a dog"),
    ]
    assert [(session.id, session.index) for session in dialogue.sessions] == [("D1", 0), ("D3", 1)]
    assert dialogue.questions[0].evidence == ("D1:1", "D1:2")
    found = locomo.report([record], [dialogue])
    assert (found.num_empty_turns, found.num_empty_sessions) == (1, 1)
    assert found.dropped_evidence == ["conv-1_q1: 'D1:3'"]


def test_locomo_int_answer_becomes_text():
    assert parse_one(conversation([asked(answer=2022)])).questions[0].answer == "2022"


def test_locomo_adversarial_question_has_no_answer_unless_the_file_gives_one():
    questions = [asked(5, adversarial_answer="a canoe"), asked(5, adversarial_answer="Yes", answer="No")]
    without, given = parse_one(conversation(questions)).questions
    assert (without.answer, without.answerable, without.category) == (None, False, "adversarial")
    assert (given.answer, given.answerable, given.category) == ("No", True, "adversarial")


def test_locomo_category_names():
    questions = parse_one(conversation([asked(number) for number in (1, 2, 3, 4, 5)])).questions
    names = ["multi-hop", "temporal", "open-domain", "single-hop", "adversarial"]
    assert [question.category for question in questions] == names


@pytest.mark.parametrize(
    ("raw", "kept", "dropped", "num_split"),
    [
        (["D1:1"], ("D1:1",), (), 0),
        (["D1:1; D1:2"], ("D1:1", "D1:2"), (), 1),
        (["D1:2 D1:1", "D1:2"], ("D1:2", "D1:1"), (), 1),
        (["D1:02"], ("D1:2",), (), 0),
        (["D", "D1:1", "D:1:2"], ("D1:1",), ("D", "D:1:2"), 0),
        (["D1:3", "D9:01"], (), ("D1:3", "D9:01"), 0),
        (["D1:1;", ""], ("D1:1",), (), 0),
        ([], (), (), 0),
    ],
)
def test_locomo_evidence_is_repaired_or_dropped(raw, kept, dropped, num_split):
    evidence = locomo.resolve_evidence(raw, {"D1:1", "D1:2"})
    assert (evidence.kept, evidence.dropped, evidence.num_split) == (kept, dropped, num_split)


def test_locomo_repairs_are_counted_and_logged(caplog):
    questions = [asked(evidence=("D1:1; D1:2",)), asked(1, ("D",)), asked(5, ())]
    locomo.parse([conversation(questions)], "file.json")
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == (
        "file.json: repaired, left out or odd: num_without_evidence=1, num_split_evidence=1, "
        "num_repeated_questions=2, dropped_evidence=[\"conv-1_q2: 'D'\"]"
    )


def test_repairs_of_dialogues_that_nobody_asked_for_are_not_logged(caplog):
    damaged = conversation([asked(1, ("D",))])
    locomo.parse([damaged, conversation() | {"sample_id": "conv-2"}], "file.json", only={"conv-2"})
    assert not caplog.records
    locomo.parse([damaged, conversation() | {"sample_id": "conv-2"}], "file.json", only={"conv-1"})
    assert "conv-1_q1: 'D'" in caplog.text


def test_clean_files_log_nothing(caplog):
    locomo.parse([conversation()], "file.json")
    longmemeval.parse([sample()], "file.json")
    assert not caplog.records


def test_locomo_repeated_question_keeps_both_copies_apart():
    questions = parse_one(conversation([asked(), asked(5)])).questions
    assert [(question.id, question.answerable) for question in questions] == [("conv-1_q1", True), ("conv-1_q2", False)]


DATE = "1:05 pm on 3 March, 2023"


@pytest.mark.parametrize(
    ("record", "where", "field", "problem"),
    [
        ("text", "record 0", "top level", "Expected `object`, got `str`"),
        ({"conversation": {}}, "record 0", "sample_id", "missing required field"),
        (conversation() | {"qa": {}}, "record 0 (conv-1)", "qa", "Expected `array`, got `object`"),
        (conversation(x=[]), "record 0 (conv-1)", "conversation", "has no session with turns"),
        (
            conversation() | {"conversation": {"speaker_a": "Ann"}},
            "record 0 (conv-1)",
            "conversation.speaker_b",
            "got `null`",
        ),
        (
            conversation() | {"conversation": {"speaker_a": "Ann", "speaker_b": "Ann"}},
            "record 0 (conv-1)",
            "conversation.speaker_b",
            "different names",
        ),
        (conversation(session_4=[said("D4:1")]), "record 0 (conv-1)", "conversation.session_4_date_time", "got `null`"),
        (
            conversation(session_4=[said("D4:1")], session_4_date_time="2023-05-08"),
            "record 0 (conv-1)",
            "conversation.session_4_date_time",
            "expected a date like '1:05 pm on 3 March, 2023', found '2023-05-08'",
        ),
        (
            conversation(session_4=[said("D4:1"), said("D4:2", "Eve")], session_4_date_time=DATE),
            "record 0 (conv-1)",
            "conversation.session_4[1].speaker",
            "is 'Eve'",
        ),
        (
            conversation(session_4=[{"dia_id": "D4:1", "speaker": "Ann"}], session_4_date_time=DATE),
            "record 0 (conv-1)",
            "conversation.session_4[0].text",
            "missing required field",
        ),
        (
            conversation(session_4=[said("D4:1", blip_caption=3)], session_4_date_time=DATE),
            "record 0 (conv-1)",
            "conversation.session_4[0].blip_caption",
            "Expected `str | null`, got `int`",
        ),
        (
            conversation(session_4=[said("D4:1"), said("D4:1")], session_4_date_time=DATE),
            "record 0 (conv-1)",
            "conversation.session_*[].dia_id",
            "'D4:1' stands there twice",
        ),
        (conversation([asked(), asked(6)]), "record 0 (conv-1)", "qa[1].category", "Expected `int` <= 5, found 6"),
        (conversation([asked(category="4")]), "record 0 (conv-1)", "qa[0].category", "Expected `int`, got `str`"),
        (conversation([asked(answer=None)]), "record 0 (conv-1)", "qa[0].answer", "is missing"),
        (conversation([asked(answer=True)]), "record 0 (conv-1)", "qa[0].answer", "got `bool`"),
        (conversation([asked(answer=" ")]), "record 0 (conv-1)", "qa[0].answer", "that is not blank; fill it in"),
        (conversation([asked(question="")]), "record 0 (conv-1)", "qa[0].question", "that is not blank; fill it in"),
        (
            conversation([asked(evidence=("D1:1", 3))]),
            "record 0 (conv-1)",
            "qa[0].evidence[1]",
            "Expected `str`, got `int`",
        ),
    ],
)
def test_locomo_refuses_a_malformed_record_with_its_place(record, where, field, problem):
    error = refused(locomo.parse, record)
    assert (error.record, error.field) == (where, field)
    assert problem in error.problem


def test_locomo_refuses_the_same_conversation_twice():
    with pytest.raises(DataError, match=r"record 1 \(conv-1\): field 'sample_id': is also the id of record 0"):
        locomo.parse([conversation(), conversation()], "file.json")


# LongMemEval


def turn(content: str, role: str = "user", **fields) -> dict:
    return {"role": role, "content": content, **fields}


def sample(question_id: str = "0a1b2c3d", sessions: list | None = None, dates: list | None = None, **fields) -> dict:
    """A LongMemEval record; by default one session whose first turn holds the answer."""
    if sessions is None:
        sessions = [[turn("I bought my seventh plant.", has_answer=True), turn("Lovely!", "assistant")]]
    return {
        "question_id": question_id,
        "question_type": "knowledge-update",
        "question": "How many plants do I own?",
        "answer": 7,
        "question_date": "2023/06/02 (Fri) 10:00",
        "haystack_dates": ["2023/05/04 (Thu) 09:30"] * len(sessions) if dates is None else dates,
        "haystack_session_ids": [f"answer_{i}" for i in range(len(sessions))],
        "haystack_sessions": sessions,
        "answer_session_ids": ["answer_0"],
        **fields,
    }


def test_longmemeval_sample_is_a_dialogue_with_one_question():
    (dialogue,) = longmemeval.parse([sample()], "file.json")
    assert (dialogue.id, dialogue.speakers) == ("0a1b2c3d", ("user", "assistant"))
    assert dialogue.sessions[0].timestamp == datetime(2023, 5, 4, 9, 30)
    assert [(turn.speaker, turn.role, turn.text) for turn in dialogue.sessions[0].turns] == [
        ("user", "user", "I bought my seventh plant."),
        ("assistant", "assistant", "Lovely!"),
    ]
    (question,) = dialogue.questions
    assert (question.id, question.answer, question.category) == ("0a1b2c3d", "7", "knowledge-update")
    assert (question.evidence, question.answerable) == (("S1:1",), True)
    assert question.asked_at == datetime(2023, 6, 2, 10, 0)


def test_longmemeval_sessions_sort_by_time_and_equal_times_keep_file_order():
    record = sample(
        sessions=[[turn("late", has_answer=True)], [turn("first")], [turn("tie one")], [turn("tie two")]],
        dates=[f"2023/05/{day}" for day in ("20 (Sat) 08:00", "04 (Thu) 09:30", "05 (Fri) 07:00", "05 (Fri) 07:00")],
    )
    (dialogue,) = longmemeval.parse([record], "file.json")
    assert [(session.id, session.index, session.turns[0].text) for session in dialogue.sessions] == [
        ("S1", 0, "first"),
        ("S2", 1, "tie one"),
        ("S3", 2, "tie two"),
        ("S4", 3, "late"),
    ]
    assert dialogue.questions[0].evidence == ("S4:1",)


def test_longmemeval_ids_do_not_carry_the_files_session_ids():
    (dialogue,) = longmemeval.parse([sample()], "file.json")
    assert "answer_" not in repr(dialogue.sessions) + repr(dialogue.questions)


def test_longmemeval_same_session_twice_gives_two_sessions():
    session = [turn("I keep bees.", has_answer=True)]
    (dialogue,) = longmemeval.parse([sample(sessions=[session, session])], "file.json")
    assert [turn.id for session in dialogue.sessions for turn in session.turns] == ["S1:1", "S2:1"]


def test_longmemeval_abstention_keeps_its_sentence_but_is_not_answerable():
    record = sample("0a1b2c3d_abs", answer="You did not mention this.")
    (question,) = longmemeval.parse([record], "file.json")[0].questions
    assert (question.answerable, question.answer) == (False, "You did not mention this.")


def test_longmemeval_answerable_question_without_marks_is_never_asked_by_dense_rewards():
    record = sample(sessions=[[turn("No mark."), turn("Marked so.", "assistant", has_answer=False)]])
    (dialogue,) = longmemeval.parse([record], "file.json")
    assert (dialogue.questions[0].answerable, dialogue.questions[0].evidence) == (True, ())
    assert dialogue.questions_by_session() == [[]]
    assert longmemeval.report([record], [dialogue]).num_without_evidence == 1


def test_longmemeval_empty_turns_and_sessions_are_dropped_and_counted(caplog):
    record = sample(
        sessions=[[turn("")], [], [turn("", has_answer=True), turn("Yes?", "assistant", has_answer=True)]],
        dates=["2023/05/04 (Thu) 09:30"] * 3,
    )
    (dialogue,) = longmemeval.parse([record], "file.json")
    assert [turn.id for session in dialogue.sessions for turn in session.turns] == ["S1:1"]
    assert dialogue.questions[0].evidence == ("S1:1",)
    assert "num_empty_turns=2, num_empty_sessions=2" in caplog.text


@pytest.mark.parametrize(("minute", "num_late"), [("29", 1), ("30", 0)])
def test_longmemeval_evidence_after_the_question_stays_and_is_counted(minute, num_late):
    record = sample(question_date=f"2023/05/04 (Thu) 09:{minute}")
    (dialogue,) = longmemeval.parse([record], "file.json")
    assert dialogue.questions[0].evidence == ("S1:1",)
    assert longmemeval.report([record], [dialogue]).num_late_evidence == num_late


WHERE = "record 0 (0a1b2c3d)"


@pytest.mark.parametrize(
    ("record", "where", "field", "problem"),
    [
        ([], "record 0", "top level", "Expected `object`, got `array`"),
        (sample(dates=[]), WHERE, "haystack_sessions", "haystack_dates 0, haystack_session_ids 1, haystack_sessions 1"),
        (sample(haystack_session_ids=[]), WHERE, "haystack_sessions", "must be equally long"),
        (sample(dates=["2023-05-04"]), WHERE, "haystack_dates[0]", "'2023/05/04 (Thu) 09:30', found '2023-05-04'"),
        (sample(dates=[20230504]), WHERE, "haystack_dates[0]", "Expected `str`, got `int`"),
        (sample(question_date="2023/02/30 (Thu) 10:00"), WHERE, "question_date", "expected a date"),
        (sample(question_type="trivia"), WHERE, "question_type", "temporal-reasoning)\\\\Z', found 'trivia'"),
        (sample(answer=["7"]), WHERE, "answer", "Expected `int | str`, got `array`"),
        (sample(answer=""), WHERE, "answer", "that is not blank; fill it in"),
        (sample(sessions=[]), WHERE, "haystack_sessions", "no session with turns"),
        (sample(sessions=["text"]), WHERE, "haystack_sessions[0]", "Expected `array`, got `str`"),
        (sample(sessions=[[turn("Hi", "system")]]), WHERE, "haystack_sessions[0][0].role", "found 'system'"),
        (sample(sessions=[[turn("Hi"), {"role": "user"}]]), WHERE, "haystack_sessions[0][1].content", "missing"),
        (sample(sessions=[[turn(None)]]), WHERE, "haystack_sessions[0][0].content", "Expected `str`"),
        (
            sample(sessions=[[turn("Hi", has_answer="yes")]]),
            WHERE,
            "haystack_sessions[0][0].has_answer",
            "Expected `bool | null`, got `str`",
        ),
    ],
)
def test_longmemeval_refuses_a_malformed_record_with_its_place(record, where, field, problem):
    error = refused(longmemeval.parse, record)
    assert (error.record, error.field) == (where, field)
    assert problem in error.problem


def test_longmemeval_refuses_the_same_question_twice():
    with pytest.raises(DataError, match="record 2 .*'question_id': is also the id of record 0"):
        longmemeval.parse([sample(), sample("other"), sample()], "file.json")


# load


def test_load_tells_the_formats_apart_plain_with_a_byte_order_mark_and_compressed(tmp_path):
    plain, packed = tmp_path / "a.json", tmp_path / "b.json.gz"
    plain.write_text(json.dumps([conversation()]), encoding="utf-8-sig")
    packed.write_bytes(gzip.compress(json.dumps([sample()]).encode()))
    assert [dialogue.id for dialogue in load(plain)] == ["conv-1"]
    assert [dialogue.id for dialogue in load(str(packed))] == ["0a1b2c3d"]


@pytest.mark.parametrize(
    ("name", "content", "field", "problem"),
    [
        ("a.json", "né".encode("latin-1"), "encoding", "not UTF-8 at byte 1"),
        ("a.json", gzip.compress(b"[]", mtime=0), "encoding", "name it .json.gz"),
        ("a.json", b'[{"sample_id": ', "JSON", "not one JSON document"),
        ("a.json", b"", "JSON", "not one JSON document"),
        ("a.json", b"[" * 200_000, "JSON", "not one JSON document"),
        ("a.json.gz", b"[]", "gzip", "not a whole gzip file"),
        ("a.json.gz", gzip.compress(b"[1, 2, 3]", mtime=0)[:-9], "gzip", "not a whole gzip file"),
        ("a.json.gz", gzip.compress(b"[1, 2, 3]", mtime=0)[:10] + b"\xff" * 20, "gzip", "not a whole gzip file"),
        ("a.json", b"[]", "top level", "found an empty list"),
        ("a.json", b"{}", "top level", "found dict"),
        ("a.json", b"[3]", "conversation or question_id", "neither LoCoMo nor LongMemEval (found int)"),
        ("a.json", b'[{"b": 1, "a": 2}]', "conversation or question_id", "(found ['a', 'b'])"),
    ],
)
def test_load_refuses_what_it_cannot_read(tmp_path, name, content, field, problem):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load(path)
    assert (caught.value.path, caught.value.field) == (str(path), field)
    assert problem in caught.value.problem


def test_load_refuses_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(DataError, match="no such file; check the path"):
        load(tmp_path / "absent.json")
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path)


# split


def dialogues(number: int) -> list[Dialogue]:
    return [Dialogue(id=f"d{i}", speakers=("Ann", "Bob"), sessions=(), questions=()) for i in range(number)]


@pytest.mark.parametrize(("held_out", "num_held_out"), [(3, 3), (0.2, 2), (0.25, 2), (0.9, 9)])
def test_split_shares_every_dialogue_out_once(held_out, num_held_out):
    train, kept_out = split(dialogues(10), held_out, seed=0)
    assert (len(train), len(kept_out)) == (10 - num_held_out, num_held_out)
    assert sorted(dialogue.id for dialogue in train + kept_out) == [f"d{i}" for i in range(10)]


def test_split_depends_on_the_seed_and_not_on_the_order():
    def held(order: list[Dialogue], seed: int) -> list[str]:
        return sorted(dialogue.id for dialogue in split(order, 4, seed)[1])

    assert held(dialogues(20), 0) == held(dialogues(20)[::-1], 0)
    assert len({tuple(held(dialogues(20), seed)) for seed in range(5)}) == 5


@pytest.mark.parametrize("held_out", [0, 4, 5, -1, 0.0, 0.1, 0.9, 1.0, 1.5])
def test_split_refuses_an_empty_side(held_out):
    with pytest.raises(ConfigError, match="both sides need at least one: give a count from 1 to 3"):
        split(dialogues(4), held_out, seed=0)


def test_split_refuses_a_single_dialogue_and_repeated_ids():
    with pytest.raises(ConfigError, match="cannot split 1 dialogue"):
        split(dialogues(1), 1, seed=0)
    with pytest.raises(ConfigError, match=r"occur more than once \(\['d0', 'd1'\]\)"):
        split(dialogues(2) + dialogues(3), 2, seed=0)


# The real files; expected counts are those of the data folder's README.


def num_turns(dialogue: Dialogue) -> int:
    return sum(len(session.turns) for session in dialogue.sessions)


def test_real_locomo_counts():
    path = real("locomo/locomo10-dev.json")
    conversations = load(path)
    names = ("multi-hop", "temporal", "open-domain", "single-hop", "adversarial")
    rows = {}
    for dialogue in conversations:
        per_category = Counter(question.category for question in dialogue.questions)
        rows[dialogue.id] = (
            len(dialogue.sessions),
            num_turns(dialogue),
            *(per_category[name] for name in names),
        )
    assert rows == {
        "conv-26": (19, 419, 32, 37, 13, 70, 47),
        "conv-30": (19, 369, 11, 26, 0, 44, 24),
        "conv-41": (32, 663, 31, 27, 8, 86, 41),
        "conv-42": (29, 629, 37, 40, 11, 111, 61),
        "conv-43": (29, 680, 31, 26, 14, 107, 64),
        "conv-44": (28, 675, 30, 24, 7, 62, 35),
        "conv-47": (31, 689, 20, 34, 13, 83, 40),
    }
    for dialogue, record in zip(conversations, json.loads(path.read_text(encoding="utf-8")), strict=True):
        assert dialogue.speakers == (record["conversation"]["speaker_a"], record["conversation"]["speaker_b"])
    turns = [turn for dialogue in conversations for session in dialogue.sessions for turn in session.turns]
    assert sum(turn.caption is not None for turn in turns) == 867
    questions = [question for dialogue in conversations for question in dialogue.questions]
    assert sum(question.answer is None for question in questions) == 310
    assert sum(not question.answerable for question in questions) == 310
    for dialogue in conversations:
        times = [session.timestamp for session in dialogue.sessions]
        assert times == sorted(times)


def test_real_locomo_repairs():
    path = real("locomo/locomo10-dev.json")
    found = locomo.report(json.loads(path.read_text(encoding="utf-8")), load(path))
    assert found == LoadReport(
        dropped_evidence=[
            "conv-42_q59: 'D10:19'",
            "conv-42_q89: 'D'",
            "conv-43_q19: 'D:11:26'",
            "conv-47_q39: 'D4:36'",
        ],
        num_split_evidence=1,
        num_without_evidence=2,
        num_repeated_questions=1,
        num_empty_turns=0,
        num_empty_sessions=0,
    )


@pytest.mark.parametrize(
    ("name", "num_samples", "num_sessions", "num_turns_kept", "num_marked", "num_late", "per_type", "num_abstain"),
    [
        ("oracle", 333, 629, 7263, 603, 31, (88, 89, 52, 47, 37, 20), 20),
        # One of the 29,623 turns has no text.
        ("s", 60, 2851, 29622, 105, 5, (18, 16, 10, 9, 4, 3), 4),
    ],
)
def test_real_longmemeval_counts(
    name, num_samples, num_sessions, num_turns_kept, num_marked, num_late, per_type, num_abstain
):
    path = real(f"longmemeval/longmemeval_{name}-dev.json.gz")
    records = json.loads(gzip.decompress(path.read_bytes()))
    samples = longmemeval.parse(records, path)
    assert len(samples) == num_samples
    assert sum(len(sample.sessions) for sample in samples) == num_sessions
    assert sum(map(num_turns, samples)) == num_turns_kept
    questions = [question for sample in samples for question in sample.questions]
    assert len(questions) == num_samples
    types = Counter(question.category for question in questions)
    assert types == {
        "temporal-reasoning": per_type[0],
        "multi-session": per_type[1],
        "knowledge-update": per_type[2],
        "single-session-user": per_type[3],
        "single-session-assistant": per_type[4],
        "single-session-preference": per_type[5],
    }
    assert sum(not question.answerable for question in questions) == num_abstain
    assert sum(len(question.evidence) for question in questions) == num_marked
    found = longmemeval.report(records, samples)
    assert (found.num_late_evidence, found.num_without_evidence, found.num_empty_sessions) == (num_late, 0, 0)
    for sample in samples:
        times = [session.timestamp for session in sample.sessions]
        assert times == sorted(times)


def test_dialogues_that_share_evidence_stay_on_one_side():
    def of(dialogue_id: str, text: str) -> Dialogue:
        turn = Turn(id="S1:1", speaker="user", role="user", text=text)
        session = Session(id="S1", index=0, timestamp=datetime(2023, 5, 4), turns=(turn,))
        question = Question(id=dialogue_id, text="?", answer="a", category="c", evidence=("S1:1",))
        return Dialogue(id=dialogue_id, speakers=("user",), sessions=(session,), questions=(question,))

    dialogues = [of("a", "I keep bees."), of("a_abs", "I keep bees."), of("b", "x"), of("c", "y"), of("d", "z")]
    for seed in range(12):
        train, held_out = split(dialogues, 2, seed)
        assert {dialogue.id for dialogue in train + held_out} == {"a", "a_abs", "b", "c", "d"}
        assert ({"a", "a_abs"} <= {d.id for d in train}) or ({"a", "a_abs"} <= {d.id for d in held_out})
