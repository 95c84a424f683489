"""The benchmark of memalpha on real data: how it builds both sides and what it measures, on made-up raw files."""

import numpy as np
import pytest

from membuilder.building.baselines import store_all
from membuilder.datasets.load import load
from membuilder.schemes.load import scheme_of
from reward.judges import load_judge
from tests import raw_data
from tests.benchmarks import memalpha_real as real
from tests.fakes import HashEmbedder
from trainer.configs import DataConfig
from trainer.data.corpus import load_corpus
from trainer.experience.evaluate import SystemResult
from trainer.quickstart import load_configs


@pytest.mark.parametrize("name", real.DATASETS)
def test_both_sides_are_small_and_nothing_held_out_is_trained_on(tmp_path, name):
    source = tmp_path / "raw"
    if name == "hotpotqa":  # the first of the questions stand in both files
        raw_data.hotpotqa(source, questions=30).rename(source / "hotpot_dev_fullwiki.json")
        raw_data.hotpotqa(source, questions=200).rename(source / "hotpot_dev_distractor.json")
    else:
        getattr(raw_data, name)(source)
    train, held_out, num_shared = real.sides(name, source, tmp_path / "work")
    corpus = load_corpus(DataConfig(path=str(train), eval_path=str(held_out)))  # its leak check is on
    assert corpus.train and corpus.held_out and (num_shared > 0) == (name == "hotpotqa")
    for dialogue in (*load(train), *load(held_out)):
        assert len(dialogue.sessions) <= real.CHUNKS
        for session in dialogue.sessions:
            assert sum(len(turn.content) for turn in session.turns) <= 4 * real.DATASETS[name].chunk_tokens
    assert not {q.text for d in corpus.train for q in d.questions} & {
        q.text for d in corpus.held_out for q in d.questions
    }


def test_a_policy_of_the_configuration_reads_what_is_built(tmp_path):
    """Its expert stores as many examples as it may call, and SFT learns from several draws."""
    raw_data.banking77(tmp_path / "raw")
    train, held_out, _ = real.sides("banking77", tmp_path / "raw", tmp_path)
    sft, _ = load_configs(str(tmp_path), real.SEED, real.settings("banking77", train, held_out), scheme="memalpha")
    scheme = scheme_of(sft)
    session = load(train)[0].sessions[0]
    shown = scheme.show(session, store_all(load(train)[0]), HashEmbedder())
    (update,) = scheme.expert(session, store_all(load(train)[0]), shown).values()
    assert [len(each.quote) for each in update.operations] == [2] * real.DATASETS["banking77"].max_calls
    assert sft.memalpha.expert_draws == 8


def test_an_example_that_is_stored_whole_can_be_read(tmp_path):
    raw_data.banking77(tmp_path / "raw")
    train, _, _ = real.sides("banking77", tmp_path / "raw", tmp_path)
    dialogue = load(train)[0]
    judge, scheme = load_judge("nearest"), scheme_of(load_configs(str(tmp_path), 1, scheme="memalpha")[0])

    def answered(told) -> float:
        bank, asked = store_all(told, "semantic"), dialogue.questions
        found = scheme.find(bank, [question.text for question in asked], HashEmbedder(), 100)
        return sum(judge(question, bank, each).correct for question, each in zip(asked, found, strict=True))

    assert answered(dialogue) == 0  # a label in an entry of its own is nobody's
    assert answered(real.with_whole_examples(dialogue)) > 0


def test_systems_are_measured_with_intervals_and_rl_is_paired_with_sft():
    def result(verdicts, tokens) -> SystemResult:
        return SystemResult(
            accuracy=float(np.mean(verdicts)),
            recall_at_10=None,
            memory_tokens=tokens,
            format_valid=1.0,
            questions=len(verdicts),
            prompt_too_long=0.0,
            verdicts=verdicts,
        )

    found = real.measured({"sft": result([0.0, 1.0] * 20, 50), "rl": result([0.0, 1.0, 1.0, 1.0] * 10, 60)})
    assert (
        found["systems"]["sft"]["r1"] == 0.5 and found["systems"]["rl"]["low"] < 0.75 < found["systems"]["rl"]["high"]
    )
    compared = found["rl_over_sft"]
    assert compared["difference"] == 0.25 and compared["low"] > 0 and compared["memory_over_sft"] == 1.2
    assert (compared["questions"], compared["only_a"], compared["only_b"]) == (40, 0, 10)
    whole = {"random": {"r1": 0.1}, "rules": {"r1": 0.2}, "all": {"r1": 1.0}} | found["systems"]
    row = real.table_row("squad", found | {"systems": whole})
    assert row.startswith("| `squad` | 0.10 | 0.20 | 0.50 | 0.75 | 1.00 | +0.25 (+0.1")
    assert row.endswith(") | +20% | 40 |")
