"""The benchmark of what a choice of turns can reach, on generated people in place of LoCoMo's conversations."""

import numpy as np
import pytest

from membuilder.generate.dialogue import generate
from tests.benchmarks.selection import Bench, chosen, fitted


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(lambda texts: sum(len(text.split()) for text in texts))


def test_evidence_is_worth_more_than_the_rules_choice_and_costs_no_more(bench):
    each = bench.conversation(generate(1, 1, "heldout")[0])
    bank = bench.within_budget(each, each.is_evidence.astype(float))
    assert bench.tokens(bank) <= bench.tokens(each.rules)
    assert sum(bench.verdicts(each, bank)) > sum(bench.verdicts(each, each.rules))


@pytest.mark.slow
def test_the_classifier_learns_which_turns_are_asked_about(bench):
    train = [bench.conversation(dialogue) for dialogue in generate(6, 1, "train")]
    numbers = chosen(bench, train, (0.0,))
    held_out = bench.conversation(generate(1, 1, "heldout")[0])
    scores = fitted(train, numbers["regularisation"]).decision_function(held_out.features)
    assert scores[held_out.is_evidence].mean() > scores[~held_out.is_evidence].mean() + np.std(scores) / 2
