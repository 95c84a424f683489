"""The configs of memalpha: the published numbers, the sweep, and the tiny run; instances as training data."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import Qwen3Config

from membuilder.building.baselines import part_of_turns, random_turns, store_all, store_within
from membuilder.config import load
from membuilder.generate.instances import generate_instances
from membuilder.schemes.load import scheme_of
from membuilder.schemes.memalpha.config import CoreOverLimit, MemAlphaConfig, View
from membuilder.schemes.scheme import build, entry_agents
from reward.memalpha_config import MemAlphaRewardConfig, ValidityBy
from reward.score import Baseline, Grading, RewardConfig
from rollout.types import SamplingConfig
from tests.fakes import HashEmbedder
from tests.memalpha_chunks import words, writer
from tests.test_dry_run import QWEN3_4B, dry_run
from trainer import quickstart, rl
from trainer.advantages import StdScale
from trainer.batching.packing import sequences_of
from trainer.configs import Aggregation, DataConfig, KLEstimator, LossConfig
from trainer.data.corpus import expert_builds, load_corpus, training_text
from trainer.data.sft_examples import sft_trees
from trainer.model.tiny_model import train_tokenizer
from trainer.rl_config import RLConfig
from trainer.sft_config import SFTConfig

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
QWEN3_8B = QWEN3_4B | dict(hidden_size=4096, intermediate_size=12288, tie_word_embeddings=False)
PUBLISHED = ("4b_32gpu", "8b_32gpu", "4b_8gpu", "8b_8gpu")
CHUNKS = 10.65
"""Mean of the published training instances."""


def published(name: str, *overrides: str) -> RLConfig:
    return load(RLConfig, CONFIGS / f"memalpha_qwen3_{name}.yaml", overrides)


@pytest.mark.parametrize("name", [*PUBLISHED, "4b_1gpu", "8b_1gpu"])
def test_the_configs_of_published_size_hold_the_published_numbers(name):
    config = published(name)
    assert config.model.path == f"Qwen/Qwen3-{name[:2].upper()}"
    assert (config.scheme, config.dense, config.num_rollouts) == ("memalpha", False, 8)
    assert config.memalpha == MemAlphaConfig(core_limit_tokens=512, view=View.RECENT, entries_shown=5, max_turns=1)
    assert config.memalpha.prompts.max_tokens == 6144
    assert config.sampling == SamplingConfig(temperature=1.0, top_p=1.0, max_tokens=2048)
    assert config.prompts.chat_template_kwargs == {"enable_thinking": False}
    assert config.reward.memalpha == MemAlphaRewardConfig(beta=0.05, gamma=0.1, validity=ValidityBy.LLM)
    assert (config.reward.baseline, config.reward.grading, config.reward.top_k) == (
        Baseline.INSTANCE,
        Grading.SOURCE,
        20,
    )
    loss = LossConfig(aggregation=Aggregation.SEQUENCE, clip=0.2, dual_clip=3.0, kl_coef=0.001)
    assert config.loss == loss and loss.kl_estimator is KLEstimator.K3 and loss.entropy_coef == 0
    optim = config.optim
    assert (optim.lr, optim.warmup_ratio, optim.min_lr_ratio, optim.weight_decay) == (1e-6, 0.05, 1.0, 0.01)
    assert (optim.max_grad_norm, config.advantage_std, config.eval_every) == (1.0, StdScale.GROUP_SAMPLE, 50)
    # an update is of 32 answers, as their mini-batch
    answers = round(config.instances_per_step * CHUNKS) * config.num_rollouts
    assert config.updates_per_step == answers // 32 and config.sessions_per_step == round(
        config.instances_per_step * CHUNKS
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_step_is_of_the_published_size(name):
    config = published(name)
    assert (config.instances_per_step, config.updates_per_step, config.save_every) == (32, 85, 1)
    assert config.num_steps == 5 * (567 // 32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes", "options"),
    [
        ("4b_32gpu", QWEN3_4B, ["--num-processes", "32"]),
        ("8b_32gpu", QWEN3_8B, ["--num-processes", "32"]),
        ("4b_8gpu", QWEN3_4B, ["--num-processes", "8"]),
        ("8b_8gpu", QWEN3_8B, ["--num-processes", "8"]),
        ("4b_1gpu", QWEN3_4B, ["--offload"]),
        ("8b_1gpu", QWEN3_8B, ["--offload"]),
    ],
)
def test_the_published_runs_fit(name, sizes, options, tmp_path, capsys):
    Qwen3Config(**sizes).save_pretrained(tmp_path)
    path = CONFIGS / f"memalpha_qwen3_{name}.yaml"
    assert f"--config configs/{path.name} --zero 2 {' '.join(options)}" in path.read_text(encoding="utf-8")
    command = ["--config", str(path), "--zero", "2", *options, f"model.path={tmp_path}"]
    assert dry_run(rl.main, *command) == 0, capsys.readouterr().out


def test_the_sweep_runs_the_published_weights(tmp_path):
    told = tmp_path / "told.sh"
    told.write_text('#!/bin/sh\nprintf "%s " "$@"\nprintf "\\n"\n', encoding="utf-8")
    told.chmod(0o755)
    sweep = ROOT / "launch" / "memalpha_sweep.sh"
    found = subprocess.run(
        [sweep, "--config", "C", "num_steps=3"],
        env=os.environ | {"MEMALPHA_RUN": str(told)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.split() for line in found.stdout.splitlines()]
    assert all(line[:3] == ["--config", "C", "num_steps=3"] for line in lines)
    runs = [published("4b_32gpu", *line[2:]) for line in lines]
    weights = [(run.reward.memalpha.beta, run.reward.memalpha.gamma) for run in runs]
    assert sorted(weights) == [(0.0, 0.1), (0.05, 0.0), (0.05, 0.1), (0.2, 0.1), (0.4, 0.1)]
    assert len({run.out for run in runs}) == 5 and {run.resume for run in runs} == {"auto"}
    validity = [ValidityBy.LLM if gamma else ValidityBy.RULES for _, gamma in weights]
    assert [run.reward.memalpha.validity for run in runs] == validity


def test_what_the_comments_of_a_config_name_can_be_said(tmp_path):
    closer = (
        "memalpha.prompts.order=published",
        "memalpha.core_over_limit=cut",
        "reward.memalpha.empty_is_valid=false",
    )
    text = (CONFIGS / "memalpha_qwen3_4b_32gpu.yaml").read_text(encoding="utf-8")
    assert all(each in text for each in closer)
    assert published("4b_32gpu", *closer).memalpha.core_over_limit is CoreOverLimit.CUT
    offline = ("reward.judge=offline", "reward.answerer=null", "reward.grader=null", "reward.grading=lenient")
    assert published("4b_32gpu", *offline).reward.judge == "offline"


def test_both_stages_of_the_tiny_run_read_the_same_prompts_and_data():
    sft_config, rl_config = quickstart.load_configs("runs/x", 1, scheme="memalpha")
    assert replace(sft_config.memalpha, expert_draws=1) == rl_config.memalpha
    assert sft_config.data == rl_config.data and sft_config.data.num_chunks == 4
    assert rl_config.model.path == "runs/x/sft/model"


def test_generated_instances_are_training_data_apart_from_the_held_out_ones():
    corpus = load_corpus(DataConfig(num_chunks=3, num_train=2, num_held_out=2, num_steering=1, seed=5))
    assert corpus.train == generate_instances(2, 5, "train", num_chunks=3)
    assert corpus.held_out + corpus.steering == generate_instances(3, 5, "heldout", num_chunks=3)
    with pytest.raises(ValueError, match="num_chunks is about generated instances"):
        DataConfig(num_chunks=3, path="train.parquet")


def test_sft_learns_from_all_that_the_expert_might_have_stored():
    config = load(SFTConfig, CONFIGS / "memalpha_tiny_sft.yaml", ["memalpha.expert_draws=6"])
    scheme = scheme_of(config, words)
    builds = expert_builds(generate_instances(3, 1, "train"), HashEmbedder(), scheme, "rules")
    tokenizer = train_tokenizer(training_text(builds, scheme), scheme.tiny_tokens(8), 600)
    trees, _ = sft_trees(builds, tokenizer, scheme, config)
    steps = [step for expert in builds for step in expert.steps]
    for tree, step in zip(trees, steps, strict=True):
        sequences = sequences_of(tree)
        assert len(sequences) == 6 and len({each.prompt_token_ids for each in sequences}) == 1
        answers = [tokenizer.decode(each.completion_token_ids[:-1]) for each in sequences]
        first = scheme.write("writer", step.updates["writer"], step.session, step.shown)
        assert first in answers and len(set(answers)) > 2
        for answer in answers:
            update = scheme.parse("writer", answer, step.session)
            applied = scheme.apply(step.session, step.bank_before, {"writer": update}, step.shown)
            assert len(applied.calls["writer"]) == 2 and not applied.failures
    alone, _ = sft_trees(builds, tokenizer, writer(**vars(config.memalpha) | {"expert_draws": 1}), config)
    assert all(len(sequences_of(tree)) == 1 for tree in alone)


@pytest.mark.parametrize(
    ("parts", "part"),
    [
        (("core", "episodic", "semantic", "procedural"), "episodic"),
        (("core", "semantic"), "semantic"),
        (("core",), "core"),
        (("keeper",), "keeper"),
    ],
)
def test_turns_are_stored_in_a_part_that_there_is(parts, part):
    assert part_of_turns(parts) == part


def test_baselines_store_where_the_scheme_finds_it():
    scheme = writer(exclude_memory=["core", "episodic"])
    (dialogue,) = generate_instances(1, 1, "train")
    part = part_of_turns(entry_agents(scheme))
    every = store_all(dialogue, part)
    some = store_within(dialogue, random_turns(dialogue), 40, words, part)
    question = dialogue.questions[0].text
    for bank in (every, some):
        (found,) = scheme.find(bank, [question], HashEmbedder(), 5)
        assert found.entries
    *_, last = build(dialogue, scheme.expert, scheme, HashEmbedder())
    assert {entry.agent for entry in last.result.bank.entries} == {part}


def test_weights_of_sources_are_refused_under_a_loss_that_reads_none():
    reward = RewardConfig(memalpha=MemAlphaRewardConfig(weights={"squad": 2.0}))
    RLConfig(scheme="memalpha", reward=reward, dense=False)
    with pytest.raises(ValueError, match=r"reward\.memalpha\.weights without effect: loss\.name=grpo"):
        RLConfig(scheme="memalpha", reward=reward, dense=False, loss=LossConfig(name="grpo"))


def test_the_quickstart_of_memalpha_refuses_a_model_and_says_what_trains_it(tmp_path):
    with pytest.raises(SystemExit, match=r"leave out --model.*memalpha_qwen3_4b_1gpu\.yaml model\.path=smollm2 data"):
        quickstart.main(["--scheme", "memalpha", "--out", str(tmp_path), "--model", "smollm2"])


def test_the_quickstart_of_memalpha_takes_a_file_and_another_one_to_judge_on():
    given = dict(data="a.parquet", eval_data="b.parquet", scheme="memalpha")
    for config in quickstart.load_configs("runs/x", 1, ["rl.num_steps=3"], **given):
        assert (config.data.path, config.data.eval_path, config.data.num_chunks) == ("a.parquet", "b.parquet", None)
    assert config.num_steps == 3 and config.reward.judge == "offline"
    assert quickstart.load_configs("runs/x", 1, data="a.parquet", scheme="memalpha")[1].data.holds_out
