"""The evaluation through membuilder's own client, prompts and judges, against a real HTTP server on loopback."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from membuilder import eval as command
from membuilder.evaluation.records import read_records

DIALOGUE = {
    "id": "d1",
    "sessions": [{"timestamp": "2024-03-15T09:30", "turns": [{"speaker": "Ann", "text": "My cat is called Miso."}]}],
    "questions": [
        {"question": "What is the cat called?", "answer": "Miso", "category": "single-hop", "evidence": ["S1:1"]},
        {"question": "What is the dog called?", "category": "adversarial", "answerable": False},
    ],
}


class Server(BaseHTTPRequestHandler):
    """Answers "Miso" to every question; judges it right, or with a text that is no verdict."""

    protocol_version = "HTTP/1.1"
    verdict = '{"correct": true}'
    prompts: list[str] = []

    def do_GET(self):
        self._reply(
            {"object": "list", "data": [{"id": "reader", "object": "model"}, {"id": "judge", "object": "model"}]}
        )

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Server.prompts.append(request["messages"][0]["content"])
        text = Server.verdict if request["model"] == "judge" else "Miso"
        message = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        model = request["model"]
        self._reply(
            {"id": "1", "object": "chat.completion", "created": 1, "model": model, "choices": [choice], "usage": usage}
        )

    def _reply(self, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def flags(tmp_path, monkeypatch):
    """Of a run on the dialogue above; the answering model and the judge are both on the loopback server."""
    monkeypatch.setenv("MEMBUILDER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Server, "prompts", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    Thread(target=server.serve_forever, daemon=True).start()
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(DIALOGUE) + "\n", encoding="utf-8")
    given = (
        f"--dataset custom --dataset-path {path} --system rag-turn-bm25 --output-dir {tmp_path / 'out'} --model reader"
    )
    url = f"http://127.0.0.1:{server.server_port}/v1"
    yield [*given.split(), *f"--judge-model judge --provider vllm --judge-provider vllm --base-url {url}".split()]
    server.shutdown()
    server.server_close()


def test_questions_are_answered_from_what_was_found_and_judged_twice(flags, tmp_path):
    assert command.main(flags) == 0
    first, second = read_records(tmp_path / "out" / "answers.jsonl")
    assert first.answer == "Miso" and first.scores["f1"] == 1.0
    assert first.scores["judge_strict"] == first.scores["judge_lenient"] == 1.0
    assert second.group == "adversarial" and second.scores["abstention"] == 0.0
    assert any("My cat is called Miso." in prompt and "What is the cat called?" in prompt for prompt in Server.prompts)
    run = json.loads((tmp_path / "out" / "results.json").read_text())["run"]
    assert run["answer_model"]["model"] == "reader" and run["judge_model"]["model"] == "judge"
    assert run["usage"]["judge"]["prompt_tokens"] >= 40 and len(run["prompts"]["judge_strict"]) == 64


def test_a_judge_without_verdicts_fails_the_run_and_marks_no_answer_wrong(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Server, "verdict", "Looks fine to me.")
    assert command.main(flags) == 1
    assert "100.0% of the verdicts could not be had" in capsys.readouterr().err
    strict = json.loads((tmp_path / "out" / "results.json").read_text())["systems"]["rag-turn-bm25"]["judge"]["strict"]
    assert strict == {"accuracy": None, "interval": None, "judged": 0, "unjudged": 1}


def test_a_dead_server_stops_the_run_before_it_begins(flags, tmp_path, capsys):
    assert command.main([*flags, "--base-url", "http://127.0.0.1:1/v1"]) == 2
    assert "127.0.0.1:1" in capsys.readouterr().err
    assert read_records(tmp_path / "out" / "answers.jsonl") == []
