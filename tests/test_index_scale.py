"""Approximate indexes: what they find, when they are used, and that a stored one is used only where it fits."""

import json
import logging

import faiss
import numpy as np
import pytest

from membuilder.bank.index import IndexConfig, IndexKind, VectorIndex, top_k
from membuilder.bank.index_file import index_path, open_index

NUM_ROWS, WIDTH = 2500, 16
RNG = np.random.default_rng(0)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


VECTORS = unit(RNG.standard_normal((NUM_ROWS, WIDTH)))
QUERIES = unit(RNG.standard_normal((50, WIDTH)))


def index_of(kind: IndexKind, vectors: np.ndarray = VECTORS, **settings) -> VectorIndex:
    index = VectorIndex(vectors.shape[1], kind, IndexConfig(kind=kind, gpu=False, **settings))
    index.add(vectors)
    return index


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    return sum(len(set(a) & set(b)) for a, b in zip(found.tolist(), truth.tolist(), strict=True)) / truth.size


@pytest.mark.parametrize("k", [0, 1, 10, NUM_ROWS + 5])
def test_an_exact_index_finds_the_largest_products(k):
    products = QUERIES @ VECTORS.T
    expected, found = np.argsort(-products, axis=1, kind="stable")[:, :k], index_of(IndexKind.EXACT).search(QUERIES, k)
    assert (found[0] == expected).all()
    np.testing.assert_allclose(found[1], np.take_along_axis(products, expected, axis=1), rtol=1e-4, atol=1e-6)
    one = index_of(IndexKind.EXACT).search(QUERIES[3], k)
    assert (one[0] == expected[3]).all()


def test_equal_rows_come_in_their_order_even_across_the_cut():
    rows = np.repeat(np.eye(2, dtype=np.float32), 50, axis=0)  # fifty times (1, 0), fifty times (0, 1)
    index, allowed = index_of(IndexKind.EXACT, rows), np.arange(100) % 2 == 1
    assert index.search(np.array([0.9, 0.1], np.float32), 3)[0].tolist() == [0, 1, 2]
    assert index.search(np.array([0.1, 0.9], np.float32), 52)[0].tolist() == [*range(50, 100), 0, 1]
    assert index.search(np.array([0.9, 0.1], np.float32), 3, allowed)[0].tolist() == [1, 3, 5]


def test_an_approximate_index_finds_nearly_all():
    ids, scores = index_of(IndexKind.HNSW).search(QUERIES, 10)
    truth, true_scores = top_k(VECTORS, QUERIES, 10)
    assert recall(ids, truth) > 0.97
    assert (np.diff(scores, axis=1) <= 0).all()
    same = ids == truth
    np.testing.assert_allclose(scores[same], true_scores[same], rtol=1e-5)


def test_less_work_finds_less():
    """Otherwise the test above would pass for an index that is not approximate at all."""
    few = index_of(IndexKind.HNSW, hnsw_search_width=2, hnsw_neighbors=4, hnsw_build_width=4).search(QUERIES, 1)[0]
    assert recall(few, top_k(VECTORS, QUERIES, 1)[0]) < 0.9


@pytest.mark.parametrize("kind", list(IndexKind)[1:])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.6])
def test_candidates_are_chosen_before_the_search(kind, share):
    allowed = np.random.default_rng(1).random(NUM_ROWS) < share
    rows = np.flatnonzero(allowed)
    ids, _ = index_of(kind).search(QUERIES, 10, allowed)
    truth = rows[top_k(VECTORS[allowed], QUERIES, 10)[0]]
    assert ids.shape == truth.shape  # as many as there are
    assert allowed[ids].all()
    assert recall(ids, truth) > (0.97 if share == 0.6 and kind is not IndexKind.EXACT else 0.9999)


def test_as_many_rows_come_back_as_asked_for():
    ids, _ = index_of(IndexKind.HNSW, hnsw_search_width=2, hnsw_neighbors=2).search(QUERIES[:3], 1000)
    assert all(len(set(found)) == 1000 and min(found) >= 0 for found in ids.tolist())


def test_the_size_decides_unless_the_kind_is_named():
    auto = IndexConfig(approximate_from=100, gpu=False)
    assert [auto.kind_for(size) for size in (0, 99, 100)] == [IndexKind.EXACT, IndexKind.EXACT, IndexKind.HNSW]
    assert IndexConfig(kind=IndexKind.HNSW).kind_for(1) is IndexKind.HNSW


def test_what_does_not_fit_is_refused():
    index = index_of(IndexKind.EXACT)
    for call in (
        lambda: index.add(np.zeros((1, WIDTH + 1), np.float32)),
        lambda: index.search(QUERIES.astype(np.float64), 1),
        lambda: index.search(QUERIES, 1, np.ones(3, bool)),
    ):
        with pytest.raises(ValueError, match="float32|bool"):
            call()


# The file beside the store


CONFIG = IndexConfig(kind=IndexKind.HNSW, gpu=False)


def test_an_exact_index_needs_no_file(tmp_path):
    index = open_index(tmp_path / "i", VECTORS, IndexConfig(gpu=False))
    assert (index.kind, len(index), list(tmp_path.iterdir())) == (IndexKind.EXACT, NUM_ROWS, [])


def test_a_stored_index_is_read_back_and_not_written_again(tmp_path):
    path = index_path(tmp_path / "memory.db")
    first = open_index(path, VECTORS, CONFIG)
    written = path.stat()
    again = open_index(path, VECTORS, CONFIG)
    assert path.name == "memory.db.index"
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (written.st_mtime_ns, written.st_ino)
    assert (again.search(QUERIES, 10)[0] == first.search(QUERIES, 10)[0]).all()


def test_an_index_that_lacks_the_newest_rows_is_extended(tmp_path):
    open_index(tmp_path / "i", VECTORS[:1500], CONFIG)
    grown = open_index(tmp_path / "i", VECTORS, CONFIG)
    assert (len(grown), len(open_index(tmp_path / "i", VECTORS, CONFIG))) == (NUM_ROWS, NUM_ROWS)
    assert recall(grown.search(QUERIES, 10)[0], top_k(VECTORS, QUERIES, 10)[0]) > 0.97


def flip(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: flip(content, len(content) // 2),
        lambda content: content[:-1],
        lambda content: content[:10],
        lambda content: b"",
        lambda content: b"[]\n" + content,
        lambda content: json.dumps({"num_rows": -5}).encode() + b"\n" + content,
    ],
    ids=["a bit", "the last byte", "most of it", "all of it", "another header", "a header of lies"],
)
def test_a_damaged_index_is_built_anew(tmp_path, damage, caplog):
    path = tmp_path / "i"
    whole = open_index(path, VECTORS, CONFIG).search(QUERIES, 10)[0]
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        found = open_index(path, VECTORS, CONFIG).search(QUERIES, 10)[0]
    assert "building it anew" in caplog.text
    assert (found == whole).all()
    assert (open_index(path, VECTORS, CONFIG).search(QUERIES, 10)[0] == whole).all()


def test_an_index_of_another_bank_or_other_settings_is_built_anew(tmp_path, caplog):
    path = tmp_path / "i"
    open_index(path, VECTORS, CONFIG)
    other = np.ascontiguousarray(VECTORS[::-1])
    assert open_index(path, other, CONFIG).search(other[7], 1)[0].tolist() == [7]
    open_index(path, other[:1500], CONFIG)  # more rows than the bank
    open_index(path, other[:1500], IndexConfig(kind=IndexKind.HNSW, hnsw_neighbors=8, gpu=False))
    assert caplog.text.count("building it anew") == 3


def test_where_no_file_can_be_written_it_says_so_and_searches(tmp_path, caplog):
    (tmp_path / "file").touch()  # where a folder is needed
    index = open_index(tmp_path / "file" / "i", VECTORS, CONFIG)
    assert len(index) == NUM_ROWS
    assert "not stored" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(faiss.get_num_gpus() == 0, reason="needs a CUDA device and faiss-gpu")
def test_on_cuda_the_exact_search_runs_there():
    on_gpu = VectorIndex(WIDTH, IndexKind.EXACT, IndexConfig(kind=IndexKind.EXACT))
    on_gpu.add(VECTORS)
    ids, scores = on_gpu.search(QUERIES, 10)
    truth, true_scores = top_k(VECTORS, QUERIES, 10)
    assert (ids == truth).all()
    np.testing.assert_allclose(scores, true_scores, rtol=1e-4)
