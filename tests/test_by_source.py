"""Instances of several sources through an evaluation: each reply is scored by the metric of its source."""

import json

import pytest

from membuilder import eval as command
from membuilder.datasets.memalpha import Row, write_rows
from membuilder.embedding import options
from membuilder.evaluation import run
from membuilder.evaluation.by_source import by_source
from membuilder.evaluation.records import Record
from tests.evaluating import JUDGED, hash_embedder
from tests.fault_server import FaultServer, Request, answering

INSTANCES = [
    ("squad", [("Where does Ann live?", ["Rome", "Oslo"]), ("Who is Bob?", "a cook")]),
    ("squad", [("Where does Ann live?", "Paris")]),
    ("icl_nlu", [("Sentence: book a flight", "3")]),
    ("booksum", [("Summarise it.", "whale, sea, ship, war")]),
    ("lme_train", [("How many days?", "five")]),
]


def row(number: int, source: str, asked: list) -> Row:
    questions = [{"question": text, "answer": answer} for text, answer in asked]
    if source == "lme_train":
        questions = [each | {"question_type": "temporal-reasoning"} for each in questions]
    return Row(
        instance_id=number,
        prompt="",
        chunks=json.dumps(["Ann lives in Oslo.", "The whale swam in the sea."]),
        questions_and_answers=json.dumps(questions),
        data_source=source,
        metadata="{}",
        num_chunks=2,
        num_questions=len(questions),
    )


def reply(request: Request) -> str:
    prompt = request.body["messages"][-1]["content"]
    if "You grade" in prompt:
        return json.dumps({"correct": "off by one" in prompt})
    if "as \\boxed{number}" in prompt:
        return "The label is \\boxed{3}."
    if "asks for a summary" in prompt:
        return "A whale in the sea."
    return "four" if "How many" in prompt else "In oslo."


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    write_rows(tmp_path / "test.parquet", [row(n, *instance) for n, instance in enumerate(INSTANCES)])
    monkeypatch.setattr(options, "open_embedder", hash_embedder(tmp_path))
    monkeypatch.setattr(run, "draw", lambda *_: None)
    with FaultServer(answering(reply)) as server:
        data = ["--dataset", "memalpha", "--dataset-path", str(tmp_path / "test.parquet")]
        where = ["--output-dir", str(tmp_path / "out"), "--system", "rag-turn-bm25", "--model", "m"]
        status = command.main([*data, *where, "--provider", "vllm", "--base-url", server.base_url, *JUDGED])
        assert status == 0
        yield tmp_path / "out", server.requests


def test_each_reply_is_scored_by_the_metric_of_its_source(evaluated):
    out, requests = evaluated
    lines = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    scores = {(line["dialogue"], line["question"]): line["scores"]["source"] for line in lines}
    assert scores == {
        ("squad-0", "Where does Ann live?"): 1.0,  # of several golds the second
        ("squad-0", "Who is Bob?"): 0.0,
        ("squad-1", "Where does Ann live?"): 0.0,
        ("icl_nlu-2", "Sentence: book a flight"): 1.0,
        ("booksum-3", "Summarise it."): 0.5,
        ("lme_train-4", "How many days?"): 1.0,
    }
    graded = [each for each in requests if "You grade" in each.body["messages"][-1]["content"]]
    assert len(graded) == 1 and "about time" in graded[0].body["messages"][-1]["content"]  # a rubric, of its type
    assert {line["source"] for line in lines} == {"squad", "icl_nlu", "booksum", "lme_train"}


def test_means_are_over_sources_over_instances_and_over_questions_each_by_its_name(evaluated):
    out, _ = evaluated
    found = json.loads((out / "results.json").read_text())["systems"]["rag-turn-bm25"]["by_source"]
    assert {name: each["score"] for name, each in found["sources"].items()} == {
        "squad": 0.25, "icl_nlu": 1.0, "booksum": 0.5, "lme_train": 1.0,
    }  # fmt: skip
    assert found["mean_of_sources"] == pytest.approx((0.25 + 1 + 0.5 + 1) / 4)
    assert found["mean_over_instances"] == pytest.approx((0.5 + 0 + 1 + 0.5 + 1) / 5)
    assert found["mean_over_questions"] == pytest.approx((1 + 0 + 0 + 1 + 0.5 + 1) / 6, abs=1e-6)
    assert found["sources"]["squad"]["interval"] == [0.0, 0.5] and found["sources"]["booksum"]["interval"] is None
    table = (out / "table.md").read_text()
    assert "mean of sources" in table and "0.250 [0.000, 0.500]" in table and "2 / 3" in table


def test_two_runs_are_compared_by_the_sources_metrics(evaluated, capsys):
    out, _ = evaluated
    assert command.main(["compare", str(out), str(out)]) == 0
    assert "source (answerable, 6 questions): A 0.583, B 0.583" in capsys.readouterr().out


def record(number: int, score: float | None, source: str = "squad") -> Record:
    return Record(
        system="x", dialogue=f"{source}-{number}", question_id="q", question="?", gold="g", category=source,
        group=source, answerable=True, evidence=(), retrieved=(), core_turns=(), answer=None, verdicts={},
        scores={"source": score}, source=source,
    )  # fmt: skip


def test_what_could_not_be_scored_counts_in_no_mean():
    found = by_source([record(0, 1.0), record(1, None), record(2, None, "perltqa")], seed=0)
    assert found.sources["squad"].score == 1.0 and found.sources["squad"].unscored == 1
    assert found.sources["perltqa"].score is None and found.mean_of_sources == 1.0
    assert by_source([], seed=0) is None
