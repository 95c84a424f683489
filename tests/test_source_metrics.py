"""The metric of each source, on cases made by hand, which the published scorers often judge wrong."""

import json
from pathlib import Path

import pytest

from membuilder.evaluation.source_metrics import SourceMetric, metric_of, source_of, source_score
from membuilder.types import Dialogue, Question

CASES = json.loads((Path(__file__).parent / "source_metric_cases.json").read_text(encoding="utf-8"))
"""Metric -> rows of gold (a text or a list), reply, score, and what the published scorer gives where that differs."""
SOURCES = {"keywords": "booksum", "label": "icl_banking77_5900shot_balance", "parts": "perltqa", "contains": "squad"}


def question(gold: str | list[str] | None, category: str, **changed) -> Question:
    first, *others = [gold] if gold is None or isinstance(gold, str) else gold
    return Question(
        id="q", text="?", answer=first, category=category, evidence=(), other_answers=tuple(others) or None, **changed
    )


@pytest.mark.parametrize("metric", SOURCES)
def test_cases_made_by_hand(metric):
    wrong = [
        (gold, reply, score, found)
        for gold, reply, score, *_ in CASES[metric]
        if (found := source_score(question(gold, SOURCES[metric]), reply)) != pytest.approx(score, abs=1e-3)
    ]
    assert wrong == [] and len(CASES[metric]) >= 60


def test_misjudgements_of_the_published_scorers_are_among_the_cases():
    misjudged = {metric: sum(len(row) == 4 for row in rows) for metric, rows in CASES.items()}
    assert min(misjudged.values()) >= 10, misjudged


@pytest.mark.parametrize(
    "category, metric",
    [
        ("booksum", "keywords"), ("infbench_sum_eng_shots2", "keywords"), ("pubmed-rct", "label"),
        ("csabstruct", "label"), ("icl_nlu_8296shot_balance", "label"), ("icl_banking77", "label"),
        ("icl_clinic150_7050shot_balance", "label"), ("trec_fine", "label"), ("nlu", "label"), ("clinc150", "label"),
        ("perltqa", "parts"), ("lme_train", "rubric"), ("longmemeval_s*", "rubric"),
        ("temporal-reasoning", "rubric"), ("single-session-preference", "rubric"), ("squad", "contains"),
        ("hotpotqa", "contains"), ("ruler_qa1_197K", "contains"), ("a source of your own", "contains"),
    ],
)  # fmt: skip
def test_every_source_has_one_metric(category, metric):
    assert metric_of(question("gold", category)) is SourceMetric(metric)


def test_a_score_that_cannot_be_had_is_none_and_no_zero():
    assert source_score(question(None, "squad"), "Ada Bell") is None
    assert source_score(question(["", "  "], "icl_nlu"), "\\boxed{3}") is None
    assert source_score(question("gold", "lme_train"), "gold") is None
    unanswerable = question("not told", "squad", answerable=False)
    assert metric_of(unanswerable) is SourceMetric.RUBRIC and source_score(unanswerable, "not told") is None


def test_the_source_of_an_instance_is_its_questions_or_stands_in_its_id():
    def instance(name: str, *categories: str) -> Dialogue:
        asked = tuple(question("gold", each) for each in categories)
        return Dialogue(id=name, speakers=(), sessions=(), questions=asked)

    assert source_of(instance("instance 7", "squad", "squad")) == "squad"
    assert source_of(instance("lme_train-7", "temporal-reasoning", "multi-session")) == "lme_train"
    assert source_of(instance("squad-7")) == "squad"
