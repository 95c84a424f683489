"""PerLTQA, custom JSON Lines, splits, subsets, and fetching over a real HTTP server. Every file is made here."""

import hashlib
import json
import logging
import os
import re
from argparse import ArgumentParser
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from membuilder import data
from membuilder.datasets import custom, longmemeval, perltqa
from membuilder.datasets.load import load
from membuilder.datasets.selection import (
    DATA_FOLDER,
    add_data_flags,
    load_selected,
    place_of,
    select,
    shorten,
    subset_ids,
)
from membuilder.datasets.sources import DATASETS, PublicDataset, RemoteFile
from membuilder.datasets.splits import split_ids
from membuilder.errors import ConfigError, DataError, FetchError
from membuilder.eval import main as evaluate

DATA = Path(os.environ.get("MEMBUILDER_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

# PerLTQA


def asked(question: str, reference: str, answer: str = "yes") -> dict:
    return {
        "Question": question,
        "Answer": answer,
        "Reference Memory": reference,
        "Memory Anchors": [{"yes": [-1, -1]}],
    }


MEMORY = {
    "Nobody Asked": {"profile": {"Age": 3}, "social_relationship": {}, "events": {}, "dialogues": {}},
    "Li Wen": {
        "profile": {"Gender": "female", "Hobby": "rowing", "Empty": ""},
        "profile_description": "Li Wen rows.",
        "social_relationship": "{'1_0': {'Supporting Characters': 'Ma Jun', 'Description': 'Met at the lake.', "
        "'Relationship': 'friend'}}",
        "events": {
            "1_0_0": {"content": "Bought a boat.", "summary": "boat", "Creation Time": "May 12, 2022"},
            "1_0_1": {"content": "Won a race.", "summary": "race", "Creation Time": "during an election"},
        },
        "dialogues": {
            "1_0_0#1": {
                "events": "1_0_0",
                "contents": {
                    "2022-05-13 10:00:00": ["Li Wen: I bought a boat.", "Assistant: Which colour?", "(laughs)"]
                },
            }
        },
    },
}
QUESTIONS = [
    {"Stranger": {"profile": [], "social_relationship": [], "events": [], "dialogues": []}},
    {
        "Li Wen": {
            "profile": [asked("What is her hobby?", "Hobby", "rowing")],
            "social_relationship": [{"1_0": [asked("Who is her friend?", "['1_0']", "Ma Jun")]}],
            "events": [{"1_0_1": [asked("Did she win?", "['1_0_1']"), asked("And then?", "['9_9_9']")]}],
            "dialogues": [{"1_0_0#1": [asked("Did she buy it?", "['1_0_0#1']")]}],
        }
    },
]


def perltqa_folder(folder, memory=MEMORY, questions=QUESTIONS):
    (folder / "perltmem_en_v2.json").write_text(json.dumps(memory), encoding="utf-8")
    (folder / "perltqa_en_v2.json").write_text(json.dumps(questions), encoding="utf-8")
    return folder


def test_perltqa_records_become_dated_sessions(tmp_path):
    """Known defect 29: events lost their dates to a misspelt key."""
    (dialogue,) = load(perltqa_folder(tmp_path))
    assert (dialogue.id, dialogue.speakers) == ("char_000", ("Li Wen", "Assistant", "narrator"))
    texts = [[turn.text for turn in session.turns] for session in dialogue.sessions]
    assert texts == [
        ["Gender: female", "Hobby: rowing"],
        ["Ma Jun (friend): Met at the lake."],
        ["Bought a boat."],
        ["Won a race. (during an election)"],
        ["I bought a boat.", "Which colour?", "(laughs)"],
    ]
    boat = datetime(2022, 5, 12)
    assert [session.timestamp for session in dialogue.sessions] == [boat] * 4 + [datetime(2022, 5, 13, 10)]
    assert [turn.role for turn in dialogue.sessions[4].turns] == ["user", "assistant", "assistant"]


def test_perltqa_references_become_evidence_and_what_is_lost_is_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        (dialogue,) = load(perltqa_folder(tmp_path))
    assert [(question.category, question.evidence) for question in dialogue.questions] == [
        ("profile", ("S1:2",)),
        ("social_relationship", ("S2:1",)),
        ("events", ("S4:1",)),
        ("events", ()),
        ("dialogues", ("S5:1", "S5:2", "S5:3")),
    ]
    assert (
        "no_memory=['Stranger'], no_questions=1, undated=1, dropped_evidence=[\"char_000_q4: '9_9_9'\"]" in caplog.text
    )


@pytest.mark.parametrize(
    ("spoil", "file", "record", "field"),
    [
        (lambda memory, questions: memory["Li Wen"].update(events=[]), "perltmem", "record 1 (Li Wen)", "events"),
        (lambda memory, questions: memory["Li Wen"].update(events="{'1': "), "perltmem", "record 1 (Li Wen)", "events"),
        (lambda memory, questions: memory["Li Wen"].update(events={}, dialogues={}), "perltmem", "record 1", "events"),
        (lambda memory, questions: questions.append(questions[1]), "perltqa", "record 2 (Li Wen)", "character"),
        (
            lambda memory, questions: questions[1]["Li Wen"]["profile"][0].pop("Answer"),
            "perltqa",
            "record 1 (Li Wen)",
            "profile[0].Answer",
        ),
        (
            lambda memory, questions: questions[1]["Li Wen"]["events"][0]["1_0_1"][1].update(
                {"Reference Memory": "[x"}
            ),
            "perltqa",
            "record 1 (Li Wen)",
            "events[0].1_0_1[1].Reference Memory",
        ),
    ],
)
def test_perltqa_refusals_name_file_record_and_field(tmp_path, spoil, file, record, field):
    memory, questions = json.loads(json.dumps([MEMORY, QUESTIONS]))
    spoil(memory, questions)
    with pytest.raises(DataError) as caught:
        load(perltqa_folder(tmp_path, memory, questions))
    assert file in caught.value.path and record in caught.value.record and caught.value.field == field


def test_a_character_who_stands_twice_in_the_memory_file_is_refused(tmp_path):
    perltqa_folder(tmp_path)
    once = json.dumps(MEMORY)[1:-1]
    (tmp_path / "perltmem_en_v2.json").write_text(f"{{{once}, {once}}}")
    with pytest.raises(DataError, match=r"perltmem_en_v2.json: record 2 \(Nobody Asked\): field 'character'.*twice"):
        load(tmp_path)


def test_perltqas_files_are_read_a_character_at_a_time(tmp_path):
    """What stands behind the first character is not read before it is asked for."""
    perltqa_folder(tmp_path, MEMORY | {"Other": {}} | {f"More {n}": {"profile": "x" * 999} for n in range(300)})
    path = tmp_path / "perltmem_en_v2.json"
    path.write_text(path.read_text()[:-9])
    dialogues = perltqa.stream(tmp_path)
    assert next(dialogues).speakers[0] == "Li Wen"
    with pytest.raises(DataError, match="cannot be read to its end"):
        next(dialogues)


# custom JSON Lines


def example() -> dict:
    """The one of the format's own documentation."""
    lines = custom.__doc__.split("\n\n")[1]
    return json.loads(lines)


def write_lines(path, *records) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def test_the_documented_example_loads(tmp_path):
    path = tmp_path / "mine.jsonl"
    write_lines(path, example())
    (dialogue,) = load(path)
    assert (dialogue.id, dialogue.speakers) == ("ann-bob", ("Ann", "Bob"))
    assert [(turn.id, turn.role) for turn in dialogue.sessions[0].turns] == [("t1", "user"), ("S1:2", "assistant")]
    assert dialogue.sessions[0].turns[1].content == "Look at mine! [shares a photo of a grey cat]"
    (question,) = dialogue.questions
    assert (question.id, question.answer, question.evidence) == ("ann-bob_q1", "Miso", ("t1",))
    assert question.asked_at == datetime(2024, 4, 1, 10)


def turn(**fields) -> dict:
    return {"speaker": "Ann", "text": "Hello."} | fields


@pytest.mark.parametrize(
    ("spoil", "record", "field", "problem"),
    [
        (lambda d: d["sessions"][0].update(turns=[]), "line 1", "sessions[0].turns", "length >= 1"),
        (lambda d: d.update(sesions=[]), "line 1", "sesions", "unknown field"),
        (
            lambda d: d["sessions"][0]["turns"][0].update(text=" "),
            "line 1 (ann-bob)",
            "sessions[0].turns[0].text",
            "is empty",
        ),
        (
            lambda d: d["sessions"][0]["turns"][1].update(id="t1"),
            "line 1 (ann-bob)",
            "sessions[].turns[].id",
            "'t1' stands there twice",
        ),
        (
            lambda d: d["questions"].append(d["questions"][0] | {"id": "ann-bob_q1"}),
            "line 1",
            "questions[].id",
            "'ann-bob_q1' stands there twice",
        ),
        (
            lambda d: d["sessions"].append({"timestamp": "2024-03-14", "turns": [turn()]}),
            "line 1 (ann-bob)",
            "sessions[1].timestamp",
            "put the sessions in time order",
        ),
        (
            lambda d: d["sessions"][0].update(timestamp="yesterday"),
            "line 1 (ann-bob)",
            "sessions[0].timestamp",
            "ISO 8601",
        ),
        (
            lambda d: d["questions"][0].update(asked_at="2024-04-01T10:00Z"),
            "line 1 (ann-bob)",
            "questions[0].asked_at",
            "give all or none",
        ),
        (
            lambda d: d["questions"][0].update(asked_at="2024-03-15T09:29"),
            "line 1 (ann-bob)",
            "questions[0].asked_at",
            "is before its evidence 't1'",
        ),
        (
            lambda d: d["questions"][0].update(evidence=["t9"]),
            "line 1 (ann-bob)",
            "questions[0].evidence",
            "'t9' is no turn",
        ),
        (
            lambda d: d["questions"][0].update(answer=None),
            "line 1 (ann-bob)",
            "questions[0].answer",
            '"answerable": false',
        ),
        (lambda d: d.update(speakers=["Ann"]), "line 1 (ann-bob)", "speakers", "does not name 'Bob'"),
        (
            lambda d: d.update(speakers=["Ann", "Bob", "Ann"]),
            "line 1 (ann-bob)",
            "speakers",
            "'Ann' stands there twice",
        ),
        (
            lambda d: d["questions"][0].update(evidence=["t1", "t1"]),
            "line 1 (ann-bob)",
            "questions[0].evidence",
            "'t1' stands there twice",
        ),
        (lambda d: d["questions"][0].update(answer=True), "line 1", "questions[0].answer", "got `bool`"),
        (lambda d: d["questions"][0].pop("category"), "line 1", "questions[0].category", "missing required field"),
    ],
)
def test_custom_refusals_name_path_record_and_field(tmp_path, spoil, record, field, problem):
    broken = example()
    spoil(broken)
    path = tmp_path / "mine.jsonl"
    write_lines(path, broken)
    with pytest.raises(DataError) as caught:
        load(path)
    assert caught.value.path == str(path)
    assert record in caught.value.record and caught.value.field == field and problem in caught.value.problem


def test_custom_refuses_repeated_dialogues_damaged_lines_and_other_encodings(tmp_path):
    path = tmp_path / "mine.jsonl"
    write_lines(path, example(), example())
    with pytest.raises(DataError, match=r"line 2 \(ann-bob\): field 'id': is also the id of line 1"):
        load(path)
    path.write_text(json.dumps(example()) + '\n{"id": ', encoding="utf-8")
    with pytest.raises(DataError, match="line 2: field 'JSON': not one JSON document"):
        load(path)
    path.write_bytes(json.dumps(example()).encode() + "\n{'caf\u00e9'}".encode("latin-1"))
    with pytest.raises(DataError, match=r"field 'encoding': not UTF-8 at byte \d+ \(line 2\)"):
        load(path)
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match="is empty; expected one dialogue a line"):
        load(path)


# bad input of the published formats: repaired, and said


def sample(question_id: str = "q1", **fields) -> dict:
    record = {
        "question_id": question_id,
        "question_type": "multi-session",
        "question": "How many boats?",
        "answer": 2,
        "question_date": "2023/05/03 (Wed) 09:30",
        "haystack_dates": ["2023/05/05 (Fri) 09:30", "2023/05/04 (Thu) 09:30", "2023/05/01 (Mon) 09:30"],
        "haystack_session_ids": ["a", "b", "c"],
        "haystack_sessions": [
            [{"role": "user", "content": "A second boat.", "has_answer": True}],
            [],
            [{"role": "user", "content": "One boat.", "has_answer": True}],
        ],
    }
    return record | fields


def test_longmemeval_says_what_is_out_of_order_late_and_empty(caplog):
    with caplog.at_level(logging.WARNING):
        (dialogue,) = longmemeval.parse([sample()], "s.json")
    assert [session.timestamp.day for session in dialogue.sessions] == [1, 5]
    said = caplog.text
    assert (
        said.count("s.json: repaired, left out or odd: ") == 1
        and "num_late_evidence=1" in said
        and "num_empty_sessions=1" in said
    )


# choosing


def test_a_split_takes_what_the_file_has_of_it(tmp_path):
    (tmp_path / "longmemeval_splits.json").write_text('{"sft": ["q2", "q9"], "rl": ["q1"], "test": []}')
    path = tmp_path / "s.json"
    path.write_text(json.dumps([sample("q1"), sample("q2")]), encoding="utf-8")
    parser = ArgumentParser()
    add_data_flags(parser)
    given = parser.parse_args(["--dataset", "longmemeval", "--dataset-path", str(path)])
    dialogues, found = load_selected(given, (), "--conv-id")
    assert [dialogue.id for dialogue in select(dialogues, split_ids("sft", found), "--split sft")] == ["q2"]
    with pytest.raises(
        ConfigError, match=r"--split test: none of its 0 ids is in the dataset, which has \['q1', 'q2'\]"
    ):
        select(dialogues, split_ids("test", found), "--split test")
    (tmp_path / "longmemeval_splits.json").write_text('{"sft": "q2"}')
    with pytest.raises(DataError, match="expected an object with lists"):
        split_ids("sft", path)


def test_the_published_splits_select_from_the_real_file():
    path = DATA / "longmemeval" / "longmemeval_oracle-dev.json.gz"
    if not path.exists():
        pytest.skip(f"benchmark file {path} is absent; point MEMBUILDER_DATA at the data folder")
    dialogues = load(path)
    counts = [len(select(dialogues, split_ids(split, path), split)) for split in ("sft", "rl", "test")]
    assert counts == [50, 50, 233]  # 167 ids of the test split are not in the dev file


def test_subset_files_hold_a_list_of_ids(tmp_path):
    path = tmp_path / "ids.json"
    path.write_text('["q1"]')
    assert subset_ids(path) == ["q1"]
    for content in ('{"q1": 1}', '["q1", 2]'):
        path.write_text(content)
        with pytest.raises(DataError, match="expected a list of ids"):
            subset_ids(path)


def test_fewer_sessions_keep_their_own_dates_and_drop_questions_about_the_rest():
    """Known defect 28: sessions were cut but a list of dates that does not exist was meant to be."""
    dialogues = longmemeval.parse([sample()], "s.json")
    (short,) = shorten(dialogues, sessions=1, questions=None)
    assert [(session.timestamp.day, session.turns[0].text) for session in short.sessions] == [(1, "One boat.")]
    assert short.questions == ()  # its second evidence turn was cut away
    assert len(shorten(dialogues, sessions=2, questions=5)[0].questions) == 1


def test_a_dataset_that_is_not_there_says_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"locomo10.json.*python -m membuilder.data fetch locomo"):
        place_of("locomo", None, tmp_path)
    with pytest.raises(ConfigError, match="name its file by --dataset-path"):
        place_of("custom", None, tmp_path)


# fetching

CONTENT = b'[{"sample_id": "conv-1"}]' * 1000
LOCOMO = {
    "sample_id": "conv-1",
    "conversation": {
        "speaker_a": "Ann",
        "speaker_b": "Ben",
        "session_1_date_time": "1:05 pm on 3 March, 2023",
        "session_1": [{"dia_id": "D1:1", "speaker": "Ann", "text": "I adopted a cat called Miso."}],
    },
    "qa": [{"question": "What is Ann's cat called?", "answer": "Miso", "category": 4, "evidence": ["D1:1"]}],
}
FILES = {"/cut.json": CONTENT[:-100], "/locomo10.json": json.dumps([LOCOMO]).encode()}


class Home(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/absent.json":
            self.send_error(404)
            return
        if self.path == "/moved.json":
            self.send_response(302)
            self.send_header("Location", "/whole.json")
            self.end_headers()
            return
        self.send_response(200)
        content = FILES.get(self.path, CONTENT)
        self.send_header("Content-Length", str(len(CONTENT if self.path == "/cut.json" else content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def home():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Home)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def dataset(url: str, size: int | None = len(CONTENT), sha256: str | None = None) -> PublicDataset:
    sha256 = sha256 or hashlib.sha256(CONTENT).hexdigest()
    return PublicDataset(folder="locomo", files=(RemoteFile(url=url, size=size, sha256=sha256),), license="none")


@pytest.mark.parametrize("name", ["whole.json", "moved.json"])
def test_a_fetched_file_is_whole_and_in_its_place(home, tmp_path, name):
    assert data.fetch(dataset(f"{home}/{name}"), tmp_path) == [tmp_path / "locomo" / name]
    assert (tmp_path / "locomo" / name).read_bytes() == CONTENT
    assert data.fetch(dataset(f"http://127.0.0.1:1/{name}"), tmp_path)  # there already: no server is asked


@pytest.mark.parametrize(
    ("name", "fields", "problem"),
    [
        ("cut.json", {}, "not reached or cut off"),
        ("absent.json", {}, "the server answered 404"),
        ("whole.json", {"sha256": "0" * 64}, "instead of " + "0" * 64),
        ("whole.json", {"size": 7}, "has 25,000 bytes instead of 7"),
    ],
)
def test_a_bad_fetch_leaves_no_file_and_says_how_to_do_it_by_hand(home, tmp_path, name, fields, problem):
    url = f"{home}/{name}"
    with pytest.raises(FetchError) as caught:
        data.fetch(dataset(url, **fields), tmp_path)
    assert problem in str(caught.value)
    assert f"get {url} on a machine with network and put it at {tmp_path / 'locomo' / name}" in str(caught.value)
    assert list((tmp_path / "locomo").iterdir()) == []


def test_without_network_fetching_says_where_to_put_the_file(tmp_path):
    with pytest.raises(FetchError, match="not reached or cut off.*put it at"):
        data.fetch(dataset("http://127.0.0.1:1/whole.json"), tmp_path)


def test_a_damaged_file_is_not_taken_for_the_dataset(home, tmp_path):
    (tmp_path / "locomo").mkdir()
    (tmp_path / "locomo" / "whole.json").write_bytes(CONTENT[:50])
    with pytest.raises(FetchError, match="is there already but has 50 bytes instead of 25,000; move it away"):
        data.fetch(dataset(f"{home}/whole.json"), tmp_path)


def test_the_command_reports_and_fails_by_its_exit_status(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(DATASETS, "locomo", dataset(f"{home}/whole.json"))
    assert data.main(["fetch", "locomo", "--data-dir", str(tmp_path)]) == 0
    assert "size and checksum checked" in capsys.readouterr().out
    monkeypatch.setitem(DATASETS, "locomo", dataset(f"{home}/absent.json"))
    assert data.main(["fetch", "locomo", "--data-dir", str(tmp_path)]) == 2
    assert "the server answered 404" in capsys.readouterr().err


def test_a_fetched_dataset_is_found_by_its_name_alone(home, tmp_path, monkeypatch, capsys):
    content = FILES["/locomo10.json"]
    remote = dataset(f"{home}/locomo10.json", len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(DATASETS, "locomo", remote)
    monkeypatch.chdir(tmp_path)
    assert data.main(["fetch", "locomo"]) == 0
    assert (tmp_path / DATA_FOLDER / "locomo" / "locomo10.json").read_bytes() == content
    assert evaluate(["--dataset", "locomo", "--system", "rag-turn-bm25", "--output-dir", "out"]) == 0
    assert "| rag-turn-bm25 | 1 | 1.000 " in (tmp_path / "out" / "table.md").read_text(encoding="utf-8")


def test_configs_name_files_where_fetching_puts_them():
    fetched = {f"{DATA_FOLDER}/{each.place}" for each in DATASETS.values()}
    paths = re.findall(
        r"^data:.*\bpath: ([^,}\s]+)", "\n".join(map(Path.read_text, CONFIGS.glob("*.yaml"))), re.MULTILINE
    )
    built = {f"{DATA_FOLDER}/memalpha/train.parquet"}  # by `membuilder.data build-memalpha --merge`; nobody serves it
    assert paths and set(paths) <= fetched | built


def test_every_dataset_has_a_place_a_loader_knows():
    assert DATASETS["locomo"].place == "locomo/locomo10.json"
    assert DATASETS["perltqa"].place == "perltqa"
    assert {file.name for file in DATASETS["perltqa"].files} == {perltqa.MEMORY_FILE, perltqa.QUESTION_FILE}
    assert all(len(file.sha256 or "0" * 64) == 64 for each in DATASETS.values() for file in each.files)
