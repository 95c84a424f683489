"""A memory searched by meaning, by words and by both: one key, wherever it is built, trained, judged or asked."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from membuilder import eval as eval_command
from membuilder.bank.index import IndexConfig
from membuilder.bank.indexed_bank import memory_of
from membuilder.bank.ranking import ANSWERING, SearchMethod, best_of
from membuilder.bank.retrieve import related, retrieve
from membuilder.embedding.local import Embedder
from membuilder.embedding.pieces import in_pieces
from membuilder.memory import Memory
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.four_agents.scheme import FourAgents
from membuilder.types import Agent, Bank
from tests.fakes import HashEmbedder
from tests.test_retrieve import entry, ids, session_of

DENSE, BM25, HYBRID = SearchMethod
MEANT, SAID = entry(1, "My puppy chewed the couch."), entry(2, "Budget figures of the quarter.")
QUESTION = "Which budget did the dog ruin?"
"""It means the first and shares a word with the second."""


class MeaningEmbedder:
    """Knows that a puppy is a dog and that a couch gets ruined."""

    dimension = 2

    def embed(self, texts):
        about_dogs = np.array([any(word in text for word in ("puppy", "dog")) for text in texts])
        return np.stack([about_dogs, ~about_dogs], axis=1).astype(np.float32).reshape(len(texts), 2)

    def pieces(self, text):
        return [text]


@pytest.mark.parametrize(("method", "found"), [(DENSE, ["m1", "m2"]), (BM25, ["m2"]), (HYBRID, ["m2", "m1"])])
def test_each_way_finds_its_own(method, found):
    bank, embedder = Bank(entries=(MEANT, SAID)), MeaningEmbedder()
    (result,) = retrieve(bank, [QUESTION], embedder, method=method)
    assert ids(result.entries) == found
    if method is HYBRID:  # m1 is nearest and shares no word; m2 is second by meaning and first by words
        assert result.scores == pytest.approx((1 / 62 + 1 / 61, 1 / 61))
    for approximate in (False, True):
        kind = "hnsw" if approximate else "exact"
        memory = memory_of(bank, embedder, IndexConfig(kind=kind))
        assert memory.retrieve([QUESTION], method=method) == [result]


@pytest.mark.parametrize("method", SearchMethod)
def test_an_index_finds_what_the_bank_does(method):
    words = "cat dog boat tent Leeds nurse coffee rain budget puppy".split()
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(words, size=4)) for _ in range(300)]
    entries = tuple(
        entry(number, text, supersedes=(f"m{number - 1}",) if number % 7 == 0 else ())
        for number, text in enumerate(texts, start=1)
    )
    bank, embedder, queries = Bank(entries=entries), HashEmbedder(), ["cat boat", "nurse", "nothing of it"]
    memory = memory_of(bank, embedder)
    for superseded in (True, False):
        expected = retrieve(bank, queries, embedder, 10, include_superseded=superseded, method=method)
        assert memory.retrieve(queries, 10, superseded, method) == expected
        assert memory.retrieve([], 10, superseded, method) == []
    assert memory_of(Bank(), embedder).retrieve(["cat"], method=method)[0].entries == ()


def test_what_an_agent_is_shown_is_found_the_same_way():
    session, embedder = session_of("The dog is ill.", "Here are the budget figures."), MeaningEmbedder()
    other = entry(3, "Figures, figures.", agent=Agent.SEMANTIC)
    bank = Bank(entries=(SAID, MEANT, entry(4, "It rained."), other))
    shown = {method: ids(related(bank, session, "episodic", embedder, k=3, method=method)) for method in SearchMethod}
    # by meaning all fit some turn equally; by words only the figures do
    assert shown == {DENSE: ["m2", "m1", "m4"], BM25: ["m2"], HYBRID: ["m2", "m1", "m4"]}


@pytest.mark.parametrize("method", [None, *SearchMethod])
def test_one_key_is_how_a_scheme_shows_and_finds(method):
    scheme, embedder = FourAgents(PromptConfig(retrieval=method)), MeaningEmbedder()
    bank, session = Bank(entries=(MEANT, SAID)), session_of("The budget and the dog.")
    used = method or DENSE  # as published
    assert scheme.find(bank, [QUESTION], embedder, 5) == retrieve(bank, [QUESTION], embedder, 5, method=used)
    assert scheme.show(session, bank, embedder)["episodic"] == related(bank, session, "episodic", embedder, method=used)


def test_a_memory_answers_by_both_unless_told_otherwise(tmp_path):
    said = [("Ann", "I adopted a cat called Miso in May 2023."), ("Ann", "I moved to Leeds in 2021 as a nurse.")]
    messages = [{"role": "user", "name": name, "content": text} for name, text in said]
    with Memory(tmp_path / "a.db") as memory:
        memory.add(messages)
        found = memory.search("Miso")
    assert ANSWERING is HYBRID and found.entries[0].text.endswith("Miso in May 2023.")
    assert found.scores[0] == pytest.approx(2 / 61)
    with Memory(tmp_path / "b.db", prompts=PromptConfig(retrieval=BM25)) as memory:
        memory.add(messages)
        assert len(memory.search("Miso").entries) == 1


def dialogue_file(tmp_path, question: str, *texts: str) -> list[str]:
    """Write a dialogue of one session whose first turn holds the answer; return the flags that name it."""
    turns = [{"speaker": "Ann", "text": text, "id": f"t{number}"} for number, text in enumerate(texts, start=1)]
    dialogue = {
        "id": "a",
        "speakers": ["Ann"],
        "sessions": [{"timestamp": "2023-05-08T13:56", "turns": turns}],
        "questions": [{"question": question, "answer": "?", "category": "x", "evidence": ["t1"]}],
    }
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(dialogue) + "\n", encoding="utf-8")
    return ["--dataset", "custom", "--dataset-path", str(path)]


def evaluated(out: Path, *flags: str) -> dict:
    assert eval_command.main([*flags, "--output-dir", str(out)]) == 0
    return json.loads((out / "results.json").read_text(encoding="utf-8"))


def test_an_evaluation_searches_as_it_is_told_and_writes_down_how(tmp_path):
    told = "I finished the budget of my shop in Leeds in May 2023.", "I adopted a puppy called Miso last year."
    data = dialogue_file(tmp_path, "Budget?", *told)
    for method in (None, *SearchMethod):
        out, flags = tmp_path / str(method), [] if method is None else ["--retrieval", method]
        run = evaluated(out, *data, "--system", "rules", *flags)["run"]
        (line,) = (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()
        best = json.loads(line)["retrieved"][0]
        assert "budget" in best["text"]
        assert (best["score"] == pytest.approx(2 / 61)) is (method in (None, HYBRID))
        assert (method or "hybrid") in run["retrieval"]


# long texts in pieces

LONG = "lorem ipsum dolor sit amet. " * 120 + "The cat is called Miso."
ASKED = "What is the cat called?"


@pytest.fixture(scope="module")
def minilm():
    return Embedder()


@pytest.mark.parametrize("text", ["", "Miso.", LONG, "我领养了一只橘猫。" * 60, "x" * 5000, "🐱 \n" * 400])
def test_pieces_are_the_text_and_are_read_whole(minilm, text):
    pieces = minilm.pieces(text)
    assert "".join(pieces) == text and all(pieces) is bool(text)
    cut: set[str] = set()
    Embedder(cut=cut).embed(pieces)
    assert not cut and (len(text) < 300 or len(pieces) > 1 or text.startswith("🐱") or text.startswith("x"))


def test_a_text_is_as_near_as_its_nearest_piece(minilm):
    texts, queries = ["The weather is nice.", LONG, "A dog barks."], minilm.embed([ASKED, "Does a dog bark?"])
    whole, pieces = queries @ minilm.embed(texts).T, in_pieces(texts, minilm)
    found = pieces.similarities(queries)
    assert found[:, [0, 2]] == pytest.approx(whole[:, [0, 2]], abs=1e-6)
    last = minilm.embed([minilm.pieces(LONG)[-1]])[0]
    assert found[0, 1] >= queries[0] @ last - 1e-6 and found[0, 1] > whole[0, 1]


def test_an_index_of_pieces_finds_the_nearest_texts():
    words = "cat dog boat tent Leeds nurse coffee rain budget puppy".split()
    random = np.random.default_rng(1)
    texts = [" ".join(random.choice(words, size=random.integers(1, 40))) for _ in range(200)]
    entries = tuple(
        entry(number, text, supersedes=(f"m{number - 1}",) if number % 5 == 0 else ())
        for number, text in enumerate(texts, start=1)
    )
    bank, embedder = Bank(entries=entries), HashEmbedder()
    queries, config = ["cat boat", "nurse coffee"], IndexConfig(pieces=True)
    for superseded in (True, False):
        kept = [e for e in entries if superseded or e.id not in bank.superseded_ids()]
        similar = in_pieces([e.text for e in kept], embedder).similarities(embedder.embed(queries))
        found = memory_of(bank, embedder, config).retrieve(queries, 10, superseded)
        expected = np.sort(similar, axis=1)[:, ::-1][:, :10]
        np.testing.assert_allclose([each.scores for each in found], expected, atol=1e-6)
        assert all(len(set(ids(each.entries))) == 10 for each in found)
    whole = memory_of(bank, embedder, replace(config, pieces=False)).retrieve(queries, 10)
    assert whole != memory_of(bank, embedder, config).retrieve(queries, 10)


def test_what_stands_behind_the_limit_is_found_in_pieces_only(tmp_path):
    others = [f"Today was day {number} of the fair, and the cat show was open." for number in range(12)]
    data = [*dialogue_file(tmp_path, ASKED, LONG, *others), "--system", "rag-turn"]
    recall = evaluated(tmp_path / "whole", *data)["systems"]["rag-turn"]["evidence_recall"]
    assert recall["10"] == 0.0
    recall = evaluated(tmp_path / "pieces", *data, "--index", "pieces=true")["systems"]["rag-turn"]["evidence_recall"]
    assert recall["5"] == 1.0


def test_the_best_are_those_of_all_in_order_ties_included():
    draw = np.random.default_rng(0)
    for num, k in ((1, 1), (7, 3), (50, 10), (50, 50), (50, 80), (50, 0), (400, 10)):
        scores = draw.integers(-2, 4, (5, num)).astype(np.float32)
        scores[0], scores[1, ::2] = 0.0, -np.inf
        everything = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        for method in SearchMethod:
            for row, all_places, (places, found) in zip(scores, everything, best_of(scores, k, method), strict=True):
                kept = [place for place in all_places.tolist() if method is DENSE or row[place] > 0]
                assert (places, found) == (kept, row[kept].tolist())
