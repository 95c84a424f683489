"""Servers that embed with limits of their own: texts in a request, bytes, tokens of a text."""

import logging
from contextlib import closing

import numpy as np
import pytest

from membuilder.embedding.options import EmbedderOptions, embedder_of
from membuilder.embedding.remote import EndpointEmbedder
from membuilder.errors import CacheError, ChatError, ChatErrorKind, ConfigError
from membuilder.llm.costs import Costs
from membuilder.llm.endpoints import EmbeddingEndpoint, Provider
from membuilder.llm.response_cache import AnswerCache
from membuilder.llm.usage import Usage
from tests.fault_server import Behaviour, FaultServer, Request, payload, status

LETTERS = "abcd"


def vector(text: str) -> list[float]:
    """Counts of four letters, and one number that keeps it from being all zero."""
    return [float(text.count(letter)) for letter in LETTERS] + [0.5]


def unit(text: str) -> np.ndarray:
    return np.array(vector(text)) / np.linalg.norm(vector(text))


def limited(*, texts: int = 10**6, chars: int = 10**6, total: int = 10**6, code: int = 400) -> Behaviour:
    """A server that refuses more than so many texts, characters in a text or in all of them."""

    async def send(request: Request, writer) -> None:
        given = request.body["input"]
        lengths = [len(text) for text in given]
        if len(given) > texts or max(lengths) > chars or sum(lengths) > total:
            await status(code, "too much for me")(request, writer)
        else:
            data = [{"index": index, "embedding": vector(text)} for index, text in enumerate(given)]
            await payload({"data": data})(request, writer)

    return send


def embedder_at(server: FaultServer, usage: Usage | None = None, cache=None, long=None, **settings):
    quick = {"max_attempts": 2, "timeout_seconds": 2.0, "check_timeout_seconds": 2.0, "max_wait_seconds": 0.01}
    address = {"provider": Provider.VLLM, "base_url": server.base_url}
    endpoint = EmbeddingEndpoint(name="e", **address, **(quick | settings))
    return closing(EndpointEmbedder(endpoint, usage or Usage(), cache=cache, long=long))


def sizes(server: FaultServer) -> list[list[int]]:
    """The lengths of the texts in each request after the check."""
    return [[len(text) for text in request.body["input"]] for request in server.requests[1:]]


@pytest.mark.parametrize("code", [400, 413, 422])
def test_a_refused_batch_is_halved_until_the_server_takes_it(code, caplog):
    texts = [f"{'a' * n}b" for n in range(7)]
    with FaultServer(limited(texts=2, code=code)) as server, embedder_at(server) as embedder:
        rows = embedder.embed(texts)
    np.testing.assert_allclose(rows, [unit(text) for text in texts], atol=1e-6)
    assert [len(each) for each in sizes(server)] == [7, 3, 1, 2, 4, 2, 2]
    (said,) = [record.getMessage() for record in caplog.records]
    assert "refused: 3, sent in halves" in said and "batch_size" in said


def test_a_batch_with_too_many_characters_is_halved_too():
    texts = [letter * 300 for letter in LETTERS]
    with FaultServer(limited(total=700)) as server, embedder_at(server) as embedder:
        np.testing.assert_allclose(embedder.embed(texts), [unit(text) for text in texts], atol=1e-6)
    assert sizes(server) == [[300] * 4, [300] * 2, [300] * 2]


def test_a_batch_of_the_size_that_is_set_is_not_refused(caplog):
    with FaultServer(limited(texts=2)) as server, embedder_at(server, batch_size=2, concurrency=1) as embedder:
        embedder.embed(["a", "b", "c", "d", "ab"])
    assert sizes(server) == [[1, 1], [1, 1], [2]] and not caplog.records


@pytest.mark.parametrize("code", [401, 402, 404, 429, 503])
def test_a_refused_key_or_account_or_a_busy_server_is_not_about_the_batch(code):
    with FaultServer(limited(), status(code)) as server, embedder_at(server, long_texts="split") as embedder:
        with pytest.raises(ChatError) as caught:
            embedder.embed(["a" * 300, "b"])
    assert caught.value.kind not in (ChatErrorKind.BAD_REQUEST, ChatErrorKind.REFUSES_ALL)
    assert len(sizes(server)) == (2 if code in (429, 503) else 1)


def test_a_server_that_comes_to_refuse_everything_ends_it_whatever_its_words():
    for how in ("refuse", "cut", "split"):
        with FaultServer(limited(), status(400, "the text is too long")) as server:
            with embedder_at(server, long_texts=how) as embedder, pytest.raises(ChatError) as caught:
                embedder.embed(["a" * 1000, "b" * 1000])
        assert caught.value.kind is ChatErrorKind.REFUSES_ALL and caught.value.fatal
        assert len(server.requests) < 10


def test_a_text_that_is_refused_alone_ends_it_and_names_the_key_to_set():
    with FaultServer(limited(chars=100)) as server, embedder_at(server) as embedder:
        with pytest.raises(
            ChatError, match="one text of 101 characters; set long_texts=cut or long_texts=split"
        ) as got:
            embedder.embed(["a", "b" * 101, "c"])
    assert got.value.kind is ChatErrorKind.BAD_REQUEST and "--embedding-endpoint" in str(got.value)
    with FaultServer(limited()) as server, embedder_at(server, max_text_chars=100) as embedder:
        with pytest.raises(ChatError, match="above max_text_chars=100; set long_texts=cut"):
            embedder.embed(["a", "b" * 101, "c"])
        assert sizes(server) == []


LONG = "a" * 100 + "b" * 100 + "ccc"


def test_a_long_text_is_cut_at_the_limit_that_is_set():
    long = set()
    with FaultServer(limited(chars=150)) as server:
        with embedder_at(server, max_text_chars=150, long_texts="cut", long=long) as embedder:
            rows = embedder.embed(["d", LONG])
    np.testing.assert_allclose(rows, [unit("d"), unit("a" * 100 + "b" * 50)], atol=1e-6)
    assert sizes(server) == [[1, 150]] and long == {LONG}


def test_a_split_text_is_the_mean_of_its_pieces_weighted_by_their_length_at_unit_length():
    long = set()
    with FaultServer(limited(chars=100)) as server:
        with embedder_at(server, max_text_chars=100, long_texts="split", long=long) as embedder:
            rows = embedder.embed([LONG, "d"])
    mean = (100 * unit("a" * 100) + 100 * unit("b" * 100) + 3 * unit("ccc")) / 203
    np.testing.assert_allclose(rows, [mean / np.linalg.norm(mean), unit("d")], atol=1e-6)
    assert rows.dtype == np.float32 and sizes(server) == [[100, 100, 3, 1]] and long == {LONG}


def test_more_pieces_than_a_batch_go_in_several_requests():
    with FaultServer(limited(texts=2, chars=100)) as server:
        with embedder_at(server, max_text_chars=100, long_texts="split", batch_size=2) as embedder:
            embedder.embed([LONG, "d"])
    assert sizes(server) == [[100, 100], [3, 1]]


def test_without_a_limit_that_is_set_a_refused_text_is_halved_until_the_server_takes_it():
    text = "a" * 200 + "b" * 200
    with FaultServer(limited(chars=210)) as server:
        with embedder_at(server, long_texts="cut") as cutting, embedder_at(server, long_texts="split") as splitting:
            np.testing.assert_allclose(cutting.embed([text])[0], unit("a" * 200), atol=1e-6)
            mean = unit("a" * 200) + unit("b" * 200)
            np.testing.assert_allclose(splitting.embed([text])[0], mean / np.linalg.norm(mean), atol=1e-6)


@pytest.mark.parametrize("how", ["cut", "split"])
def test_a_text_that_is_refused_for_something_else_than_its_length_is_never_halved_away(how):
    async def no_letter_d(request: Request, writer) -> None:
        refused = any("d" in text and text != "ready?" for text in request.body["input"])
        await (status(400, "no d here") if refused else limited())(request, writer)

    with FaultServer(no_letter_d) as server, embedder_at(server, long_texts=how) as embedder:
        for text, problem in (("d", "no d here"), ("d" * 500, "no d here"), ("a" * 200 + "\ud83d", "surrogate")):
            with pytest.raises(ChatError, match=problem) as caught:
                embedder.embed([text])
            assert ("long_texts" in str(caught.value)) == (problem == "no d here")


def test_cut_and_split_vectors_are_kept_apart_from_whole_ones(tmp_path):
    """Another way or another limit asks anew; the same one does not, and still tells that the text was long."""
    rows, asked, told = {}, {}, {}
    with FaultServer(limited()) as server:
        for name, settings in {
            "whole": {},
            "cut": {"max_text_chars": 100, "long_texts": "cut"},
            "split": {"max_text_chars": 100, "long_texts": "split"},
            "cut again": {"max_text_chars": 100, "long_texts": "cut"},
            "cut later": {"max_text_chars": 150, "long_texts": "cut"},
            "whole again": {"long_texts": "split"},
        }.items():
            before, cache, long = len(server.requests), AnswerCache(tmp_path), set()
            with embedder_at(server, cache=cache, long=long, **settings) as embedder:
                rows[name] = embedder.embed([LONG])[0]
            cache.close()
            asked[name], told[name] = len(server.requests) - before - 1, len(long)
    assert asked == {"whole": 1, "cut": 1, "split": 1, "cut again": 0, "cut later": 1, "whole again": 0}
    assert told == {"whole": 0, "cut": 1, "split": 1, "cut again": 1, "cut later": 1, "whole again": 0}
    np.testing.assert_array_equal(rows["cut"], rows["cut again"])
    np.testing.assert_array_equal(rows["whole"], rows["whole again"])
    np.testing.assert_allclose(rows["whole"], unit(LONG), atol=1e-6)
    np.testing.assert_allclose(rows["cut later"], unit(LONG[:150]), atol=1e-6)


def test_what_else_is_sent_is_part_of_what_is_kept(tmp_path):
    with FaultServer(limited()) as server:
        for extra in ({}, {"dimensions": 5}, {"dimensions": 5}):
            cache = AnswerCache(tmp_path)
            with embedder_at(server, cache=cache, extra_body=extra) as embedder:
                embedder.embed(["a"])
            cache.close()
    sent = [(request.body["input"], request.body.get("dimensions")) for request in server.requests]
    ready = ["ready?"]
    assert sent == [(ready, None), (["a"], None), (ready, 5), (["a"], 5), (ready, 5)]


@pytest.mark.parametrize(
    ("how", "fate"), [("cut", "behind its limit only index.pieces"), ("split", "embedded in pieces")]
)
def test_how_many_texts_were_long_is_told_once_at_the_end(how, fate, caplog):
    settings = (f"long_texts={how}", "max_text_chars=100")
    with FaultServer(limited(chars=100)) as server:
        options = EmbedderOptions(model="e", provider="vllm", base_url=server.base_url, settings=settings)
        with embedder_of(options, Costs(usage=Usage())) as embedder:
            for _ in range(2):
                embedder.embed([LONG, LONG + "d", "d"])
            assert not caplog.records
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and f"reads: 2; {fate}" in record.getMessage().replace("each was ", "")


def test_settings_of_a_server_that_would_have_no_effect_are_refused(tmp_path):
    server = {"model": "e", "provider": "vllm"}
    for given, says in (
        ({"settings": ("batch_size=2",)}, "need --embedding-provider"),
        ({**server, "cache": tmp_path}, "--embedding-cache keeps the vectors of a local model"),
        ({**server, "settings": ("temperature=0",)}, "unknown key 'temperature'"),
        ({**server, "settings": ("long_texts=shorten",)}, "one of refuse, cut, split"),
        ({**server, "settings": ("batch_size=0",)}, "at least 1"),
        ({**server, "settings": ("max_text_chars=0",)}, "at least 1"),
    ):
        with pytest.raises(ConfigError, match=says):
            EmbedderOptions(**given)
    with pytest.raises(ConfigError, match="--embedding-cache needs a model in a folder"):
        with embedder_of(EmbedderOptions(model="org/model", cache=tmp_path), Costs(usage=Usage())):
            pass


def test_a_key_comes_from_the_variable_that_the_endpoint_names(monkeypatch):
    monkeypatch.setenv("MINE", "sesame")
    monkeypatch.setenv("OPENAI_EMBEDDINGS_API_KEY", "other")
    with FaultServer(limited()) as server, embedder_at(server, api_key_env="MINE") as embedder:
        embedder.embed(["a"])
    assert {request.headers["authorization"] for request in server.requests} == {"Bearer sesame"}
    with FaultServer(status(401)) as server, pytest.raises(ChatError, match="--embedding-api-key or MINE"):
        embedder_at(server, api_key_env="MINE")


def test_a_memory_is_searched_in_pieces_of_the_limit_that_is_set():
    with FaultServer(limited(chars=100)) as server:
        with embedder_at(server, max_text_chars=100) as embedder:
            assert embedder.pieces(LONG + " " * 200) == ["a" * 100, "b" * 100, "ccc" + " " * 97]
            assert embedder.pieces("") == [""] and embedder.pieces("d") == ["d"]
        with embedder_at(server) as embedder, pytest.raises(ConfigError, match="max_text_chars"):
            embedder.pieces(LONG)


def test_pieces_that_cancel_out_are_an_error():
    async def opposite(request: Request, writer) -> None:
        rows = [[-1.0 if text.startswith("b") else 1.0] for text in request.body["input"]]
        await payload({"data": [{"index": n, "embedding": row} for n, row in enumerate(rows)]})(request, writer)

    with FaultServer(opposite) as server:
        with embedder_at(server, max_text_chars=100, long_texts="split") as embedder:
            with pytest.raises(ChatError, match="of length 0"):
                embedder.embed(["a" * 100 + "b" * 100])


def test_a_changed_model_is_found_among_vectors_of_cut_texts_too(tmp_path):
    settings = {"max_text_chars": 100, "long_texts": "cut"}
    with FaultServer(limited()) as server:
        cache = AnswerCache(tmp_path)
        with embedder_at(server, cache=cache, **settings) as embedder:
            embedder.embed([LONG])
        server.script = [payload({"data": [{"index": 0, "embedding": [1.0]}]})]
        with pytest.raises(CacheError, match="changed"), embedder_at(server, cache=cache, **settings) as embedder:
            embedder.embed([LONG])
        cache.close()
