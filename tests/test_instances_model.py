"""What a model does for built instances: keywords that stand in the text, and no question that it knows by heart."""

import json
from collections import Counter

import pytest

from membuilder import data as command
from membuilder.datasets.load import load
from membuilder.instances.build import build
from membuilder.instances.plan import Plan
from tests import raw_data
from tests.fault_server import FaultServer, Request, answering, status


def flags(tmp_path, server, dataset: str) -> list[str]:
    given = ["--dataset", dataset, "--source", str(tmp_path / "raw"), "--out", str(tmp_path / "out")]
    given += ["--split", "0", "--chunk-tokens", "200", "--model", "m-1", "--base-url", server.base_url]
    return ["build-memalpha", *given, "--api-key", "k", "--endpoint", "max_attempts=1"]


def check_or(reply: str, request: Request) -> str:
    return '{"ready": true}' if request.body["messages"][-1]["content"].startswith("Answer with this JSON") else reply


def knows_founders(request: Request) -> str:
    """It knows when towns were founded, whose year is the question's number, and guesses all else wrong."""
    prompt = request.body["messages"][-1]["content"]
    if "When was Town" not in prompt:
        return check_or("I cannot tell.", request)
    article, number = prompt.split("When was Town")[1].split(" ")[0].split("x")
    return f"In {1000 + 10 * int(article) + int(number)}, I think."


def test_questions_that_the_model_answers_without_the_text_are_dropped_and_counted(tmp_path, capsys):
    raw_data.squad(tmp_path / "raw", articles=12)
    whole = build(Plan(dataset="squad", source=tmp_path / "raw", out=tmp_path / "all", test_share=0, chunk_tokens=200))
    with FaultServer(answering(knows_founders)) as server:
        assert command.main(flags(tmp_path, server, "squad")) == 0
        asked = [request.body["messages"][-1]["content"] for request in server.requests[1:]]
    assert len(asked) == whole["train"]["questions"] and not any("was founded in" in each for each in asked)
    report = json.loads((tmp_path / "out/squad/build.json").read_text())
    texts = [question.text for each in load(tmp_path / "out/squad/train.parquet") for question in each.questions]
    known = sum("When was Town" in each for each in asked)
    assert report["train"]["dropped"]["answered_without_the_text"] == known > 0
    assert texts and not any(text.startswith("When") for text in texts)
    assert report["settings"]["model"] == "m-1"
    assert "usage: " in capsys.readouterr().out and (tmp_path / "out/build_usage.jsonl").is_file()


def test_a_build_whose_server_fails_goes_on_with_the_instance_in_flight(tmp_path, capsys):
    raw_data.squad(tmp_path / "raw", articles=12)
    good = answering(knows_founders)
    with FaultServer(*[good] * 60, status(503)) as server:
        assert command.main(flags(tmp_path, server, "squad")) != 0
    assert "503" in capsys.readouterr().err
    kept = (tmp_path / "out/squad/instances.jsonl").read_text().count("\n")
    with FaultServer(good) as server:
        given = flags(tmp_path, server, "squad")
        assert command.main(given) == 0
        num_asked = len(server.requests) - 1
    assert kept > 1
    other = [str(tmp_path / "whole") if each == str(tmp_path / "out") else each for each in given]
    with FaultServer(good) as server:
        other[other.index("--base-url") + 1] = server.base_url
        assert command.main(other) == 0
        assert num_asked < len(server.requests) - 1
    files = [(tmp_path / name / "squad/train.parquet").read_bytes() for name in ("out", "whole")]
    assert files[0] == files[1]


def test_keywords_of_the_model_stand_in_the_text_and_given_ones_are_kept(tmp_path):
    raw_data.books(tmp_path / "raw")
    reply = json.dumps({"keywords": ["Anna", "a dragon", "LIGHTHOUSE", "Anna"]})
    with FaultServer(answering(lambda request: check_or(reply, request))) as server:
        assert command.main(flags(tmp_path, server, "books")) == 0
        prompts = [request.body["messages"][-1]["content"] for request in server.requests[1:]]
    dialogues = load(tmp_path / "out/books/train.parquet")
    golds = Counter(each.questions[0].answer for each in dialogues)
    assert golds == {"Anna, LIGHTHOUSE": 3, "Anna, miles": 1}
    assert len(prompts) == 3 and all("One day Anna walks" in each and "She was glad" not in each for each in prompts)


@pytest.mark.parametrize("reply", ["no JSON", '{"keywords": []}', '{"keywords": ["a dragon"]}', '{"words": 1}'])
def test_a_chapter_for_which_the_model_finds_no_keyword_is_dropped_and_counted(tmp_path, reply):
    raw_data.books(tmp_path / "raw")
    with FaultServer(answering(lambda request: check_or(reply, request))) as server:
        assert command.main(flags(tmp_path, server, "books")) == 0
    report = json.loads((tmp_path / "out/books/build.json").read_text())["train"]
    assert report["instances"] == 1 and report["dropped"]["no_keywords_from_the_model"] == 3


def test_a_model_that_has_nothing_to_do_is_refused(tmp_path, capsys):
    raw_data.banking77(tmp_path / "raw")
    with FaultServer(answering(knows_founders)) as server:
        assert command.main(flags(tmp_path, server, "banking77")) == 2
        assert not server.requests
    told = capsys.readouterr().err
    assert "--model has nothing to do for banking77; it has for squad, hotpotqa, books" in told
    given = ["build-memalpha", "--dataset", "squad", "--source", str(tmp_path), "--base-url", "http://localhost:1/v1"]
    assert command.main(given) == 2 and "need --model" in capsys.readouterr().err
