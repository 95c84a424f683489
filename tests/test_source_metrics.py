"""The metric of each source, on cases made by hand, which the published scorers often judge wrong."""

import json
from pathlib import Path

import pytest

from membuilder.evaluation.source_metrics import SourceMetric, form_of, metric_of, source_of, source_score
from membuilder.llm.answer_and_judge import (
    FORMS,
    RUBRICS,
    SOURCE_PROMPTS,
    Strictness,
    answer_prompt,
    judge_prompt,
    prompt_hashes,
)
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


RUBRIC_CASES = [
    ("single-session-user", True, "holds the reference answer"),
    ("single-session-assistant", True, "holds the reference answer"),
    ("multi-session", True, "only a part"),
    ("lme_train", True, "holds the reference answer"),
    ("temporal-reasoning", True, "off by one"),
    ("knowledge-update", True, "how it stands last"),
    ("single-session-preference", True, "The reference is no answer"),
    ("temporal-reasoning", False, "only right answer says so"),
    ("single-session-preference", False, "only right answer says so"),
]


@pytest.mark.parametrize("category, answerable, told", RUBRIC_CASES)
def test_each_type_of_question_has_a_rubric_of_its_own(category, answerable, told):
    """The published judge graded every type by the rubric of preferences."""
    asked = question("Oslo", category, answerable=answerable)
    prompt = judge_prompt(asked, "in $5 Oslo", Strictness.RUBRIC)
    assert " ".join(told.split()) in " ".join(prompt.split()) and "in $5 Oslo" in prompt and "Oslo" in prompt
    for other in {told for _, _, told in RUBRIC_CASES} - {told, "only a part", "holds the reference answer"}:
        assert other not in " ".join(prompt.split())


def test_an_answer_is_asked_for_in_the_form_that_its_source_is_scored_in():
    label, summary, fact = (question("3", each) for each in ("icl_nlu", "booksum", "squad"))
    assert [form_of(each) for each in (label, summary, fact)] == ["label", "keywords", None]
    plain = answer_prompt(label, core="", memories=["a note"])
    assert answer_prompt(label, core="", memories=["a note"], form="label").startswith(plain)
    assert "as \\boxed{number}" in answer_prompt(label, core="", memories=[], form="label")
    assert "summary" in answer_prompt(summary, core="", memories=[], form="keywords") and "summary" not in plain


def test_every_prompt_of_sources_has_a_hash():
    assert set(prompt_hashes(SOURCE_PROMPTS)) == set(SOURCE_PROMPTS)
    assert {f"rubric_{each}" for each in RUBRICS.values()} | {f"form_{each}" for each in FORMS} < set(SOURCE_PROMPTS)
