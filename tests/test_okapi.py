"""Search by BM25 as the published numbers have it, per part of a memory and within a budget of tokens."""

import math
import random
import time
from collections import Counter
from datetime import datetime

import pytest

from membuilder.bank.okapi import Okapi, find_parts, okapi_weights, positive_weights, terms_of
from membuilder.bank.ranking import SearchMethod
from membuilder.types import Bank, Entry
from tests.fakes import HashEmbedder
from tests.patience import LINEAR

DAY = datetime(2024, 1, 1)
BM25 = SearchMethod.BM25


def rank_bm25(corpus: list[list[str]], query: list[str]) -> list[float]:
    """The formula of rank_bm25.BM25Okapi (0.2.2) with its default settings, number by number."""
    frequencies = Counter(term for text in corpus for term in set(text))
    weights = {term: math.log(len(corpus) - n + 0.5) - math.log(n + 0.5) for term, n in frequencies.items()}
    floor = 0.25 * sum(weights.values()) / len(weights)
    weights = {term: floor if weight < 0 else weight for term, weight in weights.items()}
    mean = sum(map(len, corpus)) / len(corpus)
    return [
        sum(
            (weights.get(term) or 0)
            * (text.count(term) * 2.5 / (text.count(term) + 1.5 * (0.25 + 0.75 * len(text) / mean)))
            for term in query
        )
        for text in corpus
    ]


def random_corpus(seed: int) -> tuple[list[list[str]], list[str]]:
    draw = random.Random(seed)
    words = [f"w{n}" for n in range(draw.randint(1, 30))]
    corpus = [draw.choices(words, k=draw.randint(0, 12)) for _ in range(draw.randint(1, 25))]
    corpus[0].append(words[0])  # the real package divides by zero where no text has a word
    return corpus, draw.choices([*words, "unknown"], k=draw.randint(0, 6))


def test_scores_are_those_of_rank_bm25_on_1000_random_corpora():
    num_scored = 0
    for seed in range(1000):
        corpus, query = random_corpus(seed)
        scores = Okapi(corpus).scores(query)
        assert scores == pytest.approx(rank_bm25(corpus, query), abs=1e-9), seed
        num_scored += (scores != 0).sum()
    assert num_scored > 1000


def test_the_reference_is_the_real_package_where_that_is_installed():
    package = pytest.importorskip("rank_bm25", reason="rank_bm25 is not installed")
    for seed in range(1000):
        corpus, query = random_corpus(seed)
        assert Okapi(corpus).scores(query) == pytest.approx(package.BM25Okapi(corpus).get_scores(query), abs=1e-9), seed


def test_a_frequent_term_weighs_a_quarter_of_the_mean_and_never_less_with_lucenes_weights():
    corpus = [["cat", "dog"], ["cat"], ["cat"], ["emu"]]
    # cat: log(1.5 / 3.5) = -0.847; dog and emu: 0.847; a quarter of their mean is 0.0706; 1 of 1.25 words in the mean
    assert Okapi(corpus).scores(["cat"])[1] == pytest.approx(
        0.0706083 * 2.5 / (1 + 1.5 * (0.25 + 0.75 * 0.8)), abs=1e-6
    )
    assert (Okapi([["cat"], ["dog"]], okapi_weights).scores(["cat"]) == 0).all()
    assert Okapi([["cat"], ["dog"]], positive_weights).scores(["cat"])[0] > 0


def test_texts_without_any_word_score_nothing():
    assert Okapi([]).scores(["cat"]).tolist() == []
    assert Okapi([[], []]).scores(["cat"]).tolist() == [0, 0]


def test_terms_are_the_published_ones_in_english_and_bigrams_where_there_are_no_spaces():
    assert terms_of("Label: 3, the CAT's a_b") == ["label", "3", "the", "cat", "s", "a_b"]
    assert terms_of("橘猫 3", with_characters=True) == ["橘猫", "橘", "猫", "3"]
    assert terms_of("Café 7") == ["café", "7"]


def entry(number: int, text: str, part: str = "semantic", supersedes: tuple[str, ...] = ()) -> Entry:
    return Entry(
        id=f"m{number}", agent=part, text=text, session=0, timestamp=DAY, source_turns=(), supersedes=supersedes
    )


def words(texts) -> int:
    return sum(len(text.split()) for text in texts)


def find(bank: Bank, question: str, k: int = 20, method: SearchMethod = BM25, budget: int | None = None):
    (found,) = find_parts(bank, [question], k, method, budget, words, HashEmbedder())
    return [each.id for each in found.entries], found.scores


def test_each_part_gives_its_best_and_what_shares_no_word_too():
    entries = [entry(n, f"note {n} of nothing") for n in range(3)]
    entries += [entry(3, "Ann has a cat"), entry(4, "a cat and a dog", "episodic"), entry(5, "rain", "episodic")]
    ids, scores = find(Bank(entries=tuple(entries)), "Whose cat is it?", k=2)
    assert ids == ["m3", "m4", "m0", "m5"] or ids == ["m3", "m0", "m4", "m5"]  # two of each part, the best first
    assert list(scores) == sorted(scores, reverse=True) and len(ids) == 4


def test_a_deleted_or_replaced_entry_is_never_found_or_weighed():
    old, new, gone = entry(1, "Ann's cat is Miso"), entry(2, "Ann's cat is Rex", supersedes=("m1",)), entry(3, "a cat")
    bank = Bank(entries=(old, new, gone), deleted=("m3",))
    assert find(bank, "Ann's cat?") == find(Bank(entries=(new,)), "Ann's cat?")
    assert find(Bank(entries=(gone,), deleted=("m3",)), "cat?") == ([], ())


def test_the_lowest_are_dropped_until_core_and_entries_fit_and_nothing_is_raised():
    entries = (
        entry(1, "cat cat cat"),
        entry(2, "cat dog emu"),
        entry(3, "rain and snow"),
        entry(4, "cat " + "x " * 99),
    )
    bank = Bank(core="two words", entries=entries)
    assert find(bank, "cat emu", budget=None)[0] == ["m2", "m1", "m4", "m3"]
    assert find(bank, "cat emu", budget=8)[0] == ["m2", "m1"]  # m4 fits into no budget and holds up nobody
    assert find(bank, "cat emu", budget=7)[0] == ["m2"]
    assert find(bank, "cat emu", budget=1)[0] == []  # the core alone is longer
    assert find(Bank(), "cat")[0] == []


@pytest.mark.parametrize("method", SearchMethod)
def test_words_meaning_and_both_find_the_same_fact(method):
    entries = (entry(1, "it rained"), entry(4, "it was late"), entry(2, "Ann lives in Oslo"))
    entries += (entry(3, "Oslo is far", "episodic"),)
    ids, _ = find(Bank(entries=entries), "Where does Ann live? Ann lives", k=1, method=method)
    assert ids[0] == "m2" and sorted(ids) == ["m2", "m3"]


def test_a_memory_of_50000_entries_is_searched_in_seconds():
    draw = random.Random(1)
    entries = tuple(entry(n, " ".join(f"w{draw.randint(0, 3000)}" for _ in range(8))) for n in range(50_000))
    bank = Bank(entries=(*entries, entry(50_000, "the needle is w1")))
    started = time.monotonic()
    found = find_parts(bank, ["where is the needle?"] * 20, 20, BM25, 30, words, HashEmbedder())
    assert all(each.entries[0].id == "m50000" for each in found) and time.monotonic() - started < LINEAR
