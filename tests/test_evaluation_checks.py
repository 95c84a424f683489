"""What an evaluation refuses before it costs anything: dead servers, banks of other data, damaged files, other keys."""

import json

import pytest

from membuilder.embedding import options
from membuilder.embedding.options import Precision
from membuilder.errors import ConfigError
from membuilder.evaluation import options as evaluation_options
from membuilder.evaluation.options import parse
from tests.evaluating import DIALOGUE, JUDGED, caller, reply, result
from tests.fakes import HashEmbedder
from tests.fault_server import FaultServer, answering, status

DEAD = "http://127.0.0.1:1/v1"


@pytest.fixture
def call(tmp_path, monkeypatch):
    return caller(tmp_path, monkeypatch)


@pytest.fixture
def embedded(call, monkeypatch) -> list[str]:
    """The texts that were embedded, in whatever run."""
    texts = []

    class Watched(HashEmbedder):
        def embed(self, given):
            texts.extend(given)
            return super().embed(given)

        def close(self) -> None:
            pass

    monkeypatch.setattr(options, "open_embedder", lambda *_: Watched())
    return texts


def test_settings_of_a_model_that_nobody_asks_are_refused():
    for unused, says in (
        ("--judge-endpoint seed=1", "--judge-endpoint: nobody is asked there without --model"),
        (
            "--build-endpoint seed=1 --build-provider vllm",
            "--build-provider, --build-endpoint: .* without system agents",
        ),
        ("--endpoint seed=1", "--endpoint sets keys of --model"),
    ):
        with pytest.raises(ConfigError, match=says):
            parse(unused.split())


def test_a_model_of_a_hub_has_no_bfloat16_and_one_that_is_unknown_is_named(call, capsys):
    assert parse(["--embedding-model", "some/hub-model"]).embedder.precision is Precision.FLOAT32
    flags = ["--system", "rag-turn", "--embedding-model", "some/hub-model"]
    assert call(None, *flags, "--embedding-precision", "bfloat16") == 2
    assert "needs a model in a folder" in capsys.readouterr().err
    remote = ["--embedding-model", "e", "--embedding-provider", "vllm", "--embedding-precision", "bfloat16"]
    with pytest.raises(ConfigError, match="that of a local model"):
        parse(remote)
    assert call(None, *flags) == 2
    assert "no embedding model at 'some/hub-model'" in capsys.readouterr().err


def test_stores_are_built_in_float32_on_every_machine(monkeypatch):
    monkeypatch.setattr(evaluation_options, "best_precision", lambda: Precision.BFLOAT16)
    assert parse(["--system", "rules"]).embedder.precision is Precision.BFLOAT16
    assert parse(["--system", "agents", "--model", "m"]).embedder.precision is Precision.FLOAT32


# every model is checked first


@pytest.mark.parametrize(("role", "system"), [("model", "rag-turn"), ("judge", "rules"), ("builder", "rules")])
def test_a_dead_server_is_found_before_one_text_is_embedded(call, embedded, tmp_path, capsys, system, role):
    with FaultServer(answering(reply)) as server:
        dead = {
            "model": ("--base-url", DEAD, "--judge-base-url", server.base_url),
            "judge": ("--judge-base-url", DEAD),
            "builder": ("--system", "agents", "--build-base-url", DEAD),
        }[role]
        assert call(server, "--system", system, "--model", "m", *JUDGED, *dead) == 2
        assert "127.0.0.1:1/v1" in capsys.readouterr().err and embedded == []
        assert not (tmp_path / "out").exists()  # so that the right address can be given to the same folder
        assert call(server, "--system", system, "--model", "m", *JUDGED) == 0
    assert "[2024-03-15] Ann: My cat is called Miso." in embedded


def test_an_unknown_model_and_a_refused_key_are_found_before_one_text_is_embedded(call, embedded, capsys):
    for fault, said in ((status(404, "no such model"), "serves no model"), (status(401, "no"), "refuses the API key")):
        with FaultServer(fault) as server:
            assert call(server, "--system", "rag-turn", "--system", "rules", "--model", "m", *JUDGED) == 2
        assert said in capsys.readouterr().err
    assert embedded == []


# banks


def rebuilt(call, tmp_path, **changes) -> tuple:
    """The dialogue's file after a change."""
    (tmp_path / "mine.jsonl").write_text(json.dumps(DIALOGUE | changes) + "\n", encoding="utf-8")
    return call


def test_banks_of_other_data_are_not_answered_from(call, tmp_path, capsys):
    """Known defect 27, on the side that reads: banks were found by the model's name alone."""
    db = ("--db-path", str(tmp_path / "db"))
    assert call(None, "--mode", "build", "--system", "rules", *db) == 0
    assert call(None, "--mode", "answer", *db) == 0
    assert call(None, "--mode", "answer", "--sessions", "1", *db, out="fewer") == 2
    said = capsys.readouterr().err
    assert "was begun with other settings: sessions=" in said and "; name the data" in said
    rebuilt(call, tmp_path, questions=DIALOGUE["questions"][:1])
    assert call(None, "--mode", "answer", *db, out="changed") == 2
    assert "was begun with other settings: dataset_sha256=" in capsys.readouterr().err
    assert not (tmp_path / "fewer").exists() and not (tmp_path / "changed").exists()


def test_banks_of_another_builder_than_the_one_named_are_not_answered_from(call, tmp_path, capsys):
    db = ("--db-path", str(tmp_path / "db"))
    with FaultServer(answering(reply)) as server:
        assert call(server, "--mode", "build", "--model", "writer", *db) == 0
        assert call(server, "--mode", "answer", "--build-model", "writer", *db) == 0
        assert call(server, "--mode", "answer", "--build-model", "other", *db, out="other") == 2
    assert "was begun with other settings: model=" in capsys.readouterr().err
    assert call(None, "--mode", "build", "--system", "rules", "--db-path", str(tmp_path / "rules")) == 0
    assert call(None, "--mode", "answer", "--build-model", "writer", "--db-path", str(tmp_path / "rules"), out="x") == 2
    assert "was begun with other settings: builder=" in capsys.readouterr().err


@pytest.mark.parametrize("builder", ["rules", "agents"])
def test_without_a_db_path_both_steps_use_the_output_folder(call, tmp_path, builder):
    with FaultServer(answering(reply)) as server:
        model = ("--build-model", "m") if builder == "agents" else ()
        assert call(server, "--mode", "build", "--system", builder, *model) == 0
        assert (tmp_path / "out" / "memories" / "d1.json").is_file()
        assert call(server, "--mode", "answer") == 0
    assert result(tmp_path / "out")["systems"]["bank"]["questions"] == 2
    assert parse(["--db-path", "auto", "--mode", "build"]).db_path == parse(["--mode", "answer"]).db_path
    with pytest.raises(ConfigError, match="holds the banks of one system"):
        parse("--mode build --system rules --system agents --model m".split())


def damage(path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda db: (db / "d1.json").write_text('{"core": "x'),
            "d1.json: whole file: field 'JSON': not one JSON document",
        ),
        (
            lambda db: (db / "d1.json").write_text("[]"),
            "d1.json: whole file: field 'top level': Expected `object`, got `array`",
        ),
        (
            lambda db: damage(db / "d1.json", entries=5),
            "d1.json: whole file: field 'entries': Expected `array`, got `int`; it is damaged",
        ),
        (
            lambda db: damage(db / "d1.json", entries=[{}]),
            "d1.json: whole file: field 'entries[0].id': Object missing required field",
        ),
        (
            lambda db: damage(db / "d1.json", core_quotes=["x"]),
            "d1.json: whole file: field 'core_quotes[0]': Expected `object`, got `str`; it is damaged",
        ),
        (lambda db: (db / "manifest.json").write_text("{"), "manifest.json: whole file: field 'JSON': not one JSON"),
        (
            lambda db: (db / "manifest.json").write_text("5"),
            "manifest.json: whole file: field 'top level': Expected `object`, got `int`; it is damaged",
        ),
    ],
)
def test_damaged_banks_are_refused_by_name(call, tmp_path, capsys, spoil, said):
    assert call(None, "--mode", "build", "--system", "rules", "--db-path", str(tmp_path / "db")) == 0
    spoil(tmp_path / "db")
    assert call(None, "--mode", "answer", "--db-path", str(tmp_path / "db")) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [{"session": 7}, {"session": -1}, {"source_turns": ["S9:9"]}, {"agent": "nobody"}, {"timestamp": "today"}],
)
def test_an_entry_that_cannot_be_of_this_dialogue_is_refused(call, tmp_path, capsys, change):
    assert call(None, "--mode", "build", "--system", "rules", "--db-path", str(tmp_path / "db")) == 0
    path = tmp_path / "db" / "d1.json"
    (entry, *more) = json.loads(path.read_text())["entries"]
    damage(path, entries=[entry | change, *more])
    assert call(None, "--mode", "answer", "--db-path", str(tmp_path / "db")) == 2
    assert "d1.json: whole file: field 'entries[0]." in capsys.readouterr().err


def test_damaged_files_of_a_run_are_refused_by_name(call, tmp_path, capsys):
    assert call(None, "--system", "none") == 0
    run_file, answers = tmp_path / "out" / "run.json", tmp_path / "out" / "answers.jsonl"
    whole = run_file.read_text()
    for content, said in (("{", "not one JSON document"), ("[]", "Expected `object`, got `array`")):
        run_file.write_text(content)
        assert call(None, "--system", "none") == 2
        err = capsys.readouterr().err
        assert "run.json: whole file" in err and said in err and "choose another --output-dir" in err
    run_file.write_text(whole)
    for line, said in (
        ("5", "line 1: field 'top level': Expected `object`, got `int`; remove the line"),
        ('{"system": "none"}', "field 'dialogue'"),
    ):
        answers.write_text(line + "\n")
        assert call(None, "--system", "none") == 2
        assert said in capsys.readouterr().err


# keys


def key_at(server: FaultServer) -> set[str]:
    return {request.headers["authorization"] for request in server.requests}


def test_a_key_goes_to_the_address_it_was_given_for_and_nowhere_else(call, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    names = (
        "--system",
        "agents",
        "--model",
        "m",
        "--judge-model",
        "judge",
        "--build-model",
        "b",
        "--api-key",
        "SECRET",
    )
    with FaultServer(answering(reply)) as own, FaultServer(answering(reply)) as other:
        there = ("--judge-base-url", other.base_url, "--build-base-url", other.base_url)
        for judge in ("vllm", "openai"):
            keys = ("--judge-api-key", "JUDGE", "--judge-provider", judge)
            assert call(own, *names, *there, *keys, out=judge) == 0
            assert key_at(own) == {"Bearer SECRET"}
            assert key_at(other) == {"Bearer JUDGE", "Bearer EMPTY"}  # the builder's server has no key
        other.requests.clear()
        flags = (*names, "--build-base-url", other.base_url, "--build-api-key", "BUILD", "--judge-provider", "vllm")
        assert call(own, *flags, out="built") == 0  # the judge is at the address of the model, and gets its key
        assert key_at(own) == {"Bearer SECRET"} and key_at(other) == {"Bearer BUILD"}
    assert not any(
        "SECRET" in path.read_text(errors="replace") for path in (tmp_path / "out").rglob("*") if path.is_file()
    )


def test_the_same_provider_at_another_address_gets_no_key():
    flags = "--model m --provider openai --api-key SECRET --base-url http://127.0.0.1:1/v1"
    other = parse(f"{flags} --judge-base-url http://127.0.0.1:2/v1 --build-base-url http://127.0.0.1:2/v1".split())
    assert (other.answerer.api_key, other.judge.api_key, other.builder.api_key) == ("SECRET", None, None)
    same = parse(f"{flags} --judge-base-url http://127.0.0.1:1/v1/".split())
    assert (same.judge.api_key, same.builder.api_key) == ("SECRET", "SECRET")
    public = parse("--model m --api-key SECRET --judge-base-url http://127.0.0.1:2/v1".split())
    assert (public.answerer.endpoint.base_url, public.judge.api_key) == (None, None)
