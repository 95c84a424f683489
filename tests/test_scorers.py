"""Scorers by hand: LoCoMo's F1 per category, matches, abstention, evidence recall, intervals and paired tests."""

import numpy as np
import pytest

from membuilder.evaluation.intervals import bootstrap, paired
from membuilder.evaluation.metrics import (
    SET_APART,
    abstention,
    exact_match,
    group_of,
    substring_match,
    token_f1,
    wrongly_abstained,
)
from membuilder.evaluation.recall import Item, Ranking, evidence_recall
from membuilder.types import Question


def asked(gold: str | None = "a red kayak", category: str = "single-hop", **fields) -> Question:
    fields = {"evidence": ("D1:1",), "answerable": gold is not None} | fields
    return Question(id="q", text="What did Ann buy?", answer=gold, category=category, **fields)


def found(*turns: tuple[str, ...], core: tuple[str, ...] = ()) -> Ranking:
    always = Item(text="core", source_turns=core) if core else None
    return Ranking(items=tuple(Item(text="", source_turns=sources) for sources in turns), always=always)


# LoCoMo's token F1


def test_f1_counts_stemmed_words_without_articles_and_punctuation():
    # kayak | kayak, red: precision 1, recall 1/2
    assert token_f1(asked("A red kayak"), "the Kayaks!") == pytest.approx(2 / 3)


def test_f1_counts_a_repeated_word_as_often_as_both_have_it():
    # "red red boat" against "red boat boat": two words in common of three each
    assert token_f1(asked("red boat boat"), "red red boat") == pytest.approx(2 / 3)


def test_f1_drops_commas_of_numbers_before_it_splits_words():
    assert token_f1(asked("1,000 miles"), "1000 miles") == 1.0


def test_f1_of_a_multi_hop_answer_takes_each_gold_part_at_its_best():
    # gold parts: "kayak" (found whole: 1), "green tent" (best: "tent", 2/3)
    assert token_f1(asked("kayak, green tent", "multi-hop"), "tent, kayak, a dog") == pytest.approx((1 + 2 / 3) / 2)


def test_f1_of_other_categories_does_not_split_at_commas():
    # 2 common words (kayak, tent), 4 given and 3 wanted
    assert token_f1(asked("kayak, green tent", "temporal"), "tent, kayak, big dog") == pytest.approx(4 / 7)


def test_f1_of_open_domain_looks_at_the_gold_before_the_semicolon():
    assert token_f1(asked("Likely yes; because she sings", "open-domain"), "likely yes") == 1.0


@pytest.mark.parametrize(
    ("answer", "score"), [("It is Not mentioned here.", 1.0), ("No information available", 1.0), ("a kayak", 0.0)]
)
def test_f1_of_an_adversarial_question_is_locomos_phrase(answer, score):
    assert token_f1(asked(None, "adversarial"), answer) == score


def test_f1_of_an_empty_answer_is_0_and_without_a_gold_answer_missing():
    assert token_f1(asked(), "") == 0.0
    assert token_f1(asked("nothing says so", "multi-session", answerable=False), "a kayak") is None


# matches and abstention


def test_exact_match_ignores_order_as_locomo_does_and_substring_match_does_not():
    assert exact_match(asked("red kayak"), "kayak, red") == 1.0
    assert exact_match(asked("red kayak"), "a red kayak from Bob") == 0.0
    assert substring_match(asked("red kayak"), "She bought a red kayak.") == 1.0
    assert substring_match(asked("red kayak"), "a kayak, red") == 0.0
    assert substring_match(asked("art"), "She left a party") == 0.0  # whole words only


def test_adversarial_and_abstention_questions_are_set_apart_from_every_answer_score():
    """Known defect 23: adversarial questions were graded against an empty gold answer, within the mean."""
    adversarial, unknown = asked(None, "adversarial"), asked("not said", "multi-session", answerable=False)
    odd = asked("No", "adversarial")  # two of LoCoMo's adversarial questions do have an answer
    for question in (adversarial, unknown, odd):
        assert group_of(question) in SET_APART
        assert exact_match(question, "") is None and substring_match(question, "") is None
    assert [abstention(question, "I don\u2019t know.") for question in (adversarial, unknown, odd)] == [1.0, 1.0, None]
    assert abstention(adversarial, "a kayak") == 0.0


def test_abstaining_where_there_is_an_answer_is_counted():
    assert wrongly_abstained(asked(), "That is not mentioned.") == 1.0
    assert wrongly_abstained(asked(), "a kayak") == 0.0
    assert wrongly_abstained(asked(None, "adversarial"), "not mentioned") is None


# evidence recall


def test_recall_needs_every_evidence_turn_among_the_first_k():
    question = asked(evidence=("D1:1", "D2:4"))
    ranking = found(("D1:1",), ("D9:9",), ("D2:4", "D2:5"))
    at_2, at_3 = (evidence_recall(question, ranking, k, None) for k in (2, 3))
    assert (at_2.all, at_2.any, at_2.mean) == (0.0, 1.0, 0.5)
    assert (at_3.all, at_3.any, at_3.mean) == (1.0, 1.0, 1.0)


def test_recall_by_session_is_content_with_another_turn_of_it():
    question = asked(evidence=("D1:1", "D1:2", "D2:4"))
    ranking = found(("D1:7",))
    sessions = {"D1:1": 0, "D1:2": 0, "D1:7": 0, "D2:4": 1}
    by_turn, by_session = (evidence_recall(question, ranking, 5, each) for each in (None, sessions))
    assert (by_turn.any, by_session.all, by_session.any, by_session.mean) == (0.0, 0.0, 1.0, 0.5)


def test_recall_counts_the_core_outside_the_k_and_is_missing_without_evidence():
    assert evidence_recall(asked(), found(("D9:9",), core=("D1:1",)), 1, None).all == 1.0
    assert evidence_recall(asked(), found(), 5, None).any == 0.0
    assert evidence_recall(asked(evidence=()), found(("D1:1",)), 5, None) is None


# intervals


def test_bootstrap_interval_of_a_share_is_near_the_normal_one():
    values = np.repeat([1.0, 0.0], [300, 700])[:, None]  # standard error: sqrt(0.3 * 0.7 / 1000) = 0.0145
    low, high = bootstrap(values, seed=0)[0]
    assert (low, high) == (pytest.approx(0.3 - 1.96 * 0.0145, abs=0.004), pytest.approx(0.3 + 1.96 * 0.0145, abs=0.004))
    assert np.array_equal(bootstrap(values, seed=0), bootstrap(values, seed=0))
    assert not np.array_equal(bootstrap(values, seed=0), bootstrap(values, seed=1))


def test_bootstrap_leaves_missing_values_out():
    values = np.full((100, 3), np.nan)
    values[:50, 0], values[:, 1] = 1.0, 0.25
    bounds = bootstrap(values, seed=0)
    assert bounds[:2].tolist() == [[1.0, 1.0], [0.25, 0.25]] and np.isnan(bounds[2]).all()


def test_paired_shares_are_tested_by_mcnemar():
    a, b = np.array([1.0] * 10 + [0.0] * 8), np.array([1.0] * 9 + [0.0] + [1.0] * 7 + [0.0])
    result = paired(a, b, seed=0)
    # 1 against 7 discordant: 2 * (C(8,0) + C(8,1)) / 2**8 = 18 / 256
    assert (result.only_a, result.only_b, result.test) == (1, 7, "McNemar, exact")
    assert result.p_value == pytest.approx(18 / 256)
    assert result.difference == pytest.approx(6 / 18) and result.low < 6 / 18 < result.high


def test_paired_means_are_tested_by_a_permutation_of_signs():
    a = np.zeros(10)
    b = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    # All 2**10 sign patterns are tried; only all plus and all minus are as extreme.
    result = paired(a, b, seed=0)
    assert (result.test, result.p_value) == ("permutation of signs", pytest.approx(2 / 1024))
    assert paired(b, b, seed=0).p_value == 1.0


def test_a_paired_test_refuses_unequal_sides():
    with pytest.raises(ValueError, match="got 2 and 3"):
        paired(np.zeros(2), np.zeros(3), seed=0)
