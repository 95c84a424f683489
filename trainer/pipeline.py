"""The chain's stages as functions: data and expert, SFT, RL, judging. Quickstart and the learning benchmark run them."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from membuilder.embedding.local import Embedder
from membuilder.schemes.load import load_scheme
from trainer import rl, sft
from trainer.data.corpus import Corpus, ExpertBuild, expert_builds, load_corpus, sft_builds
from trainer.experience.collector import Collector
from trainer.experience.evaluate import judge_policy
from trainer.model.policy import Policy, load_model
from trainer.rl_config import RLConfig
from trainer.run_setup import frozen_copy, make_policy_model, start_run
from trainer.sft import SFTResult
from trainer.sft_config import SFTConfig


@dataclass(frozen=True, kw_only=True)
class Prepared:
    corpus: Corpus
    train: list[ExpertBuild]
    for_sft: list[ExpertBuild]
    steering: list[ExpertBuild]
    held_out: list[ExpertBuild]
    embedder: Embedder


def prepare(config: SFTConfig, embedder: Embedder | None = None) -> Prepared:
    """`embedder`: one that stands already; its texts are then not embedded again."""
    scheme = load_scheme(config.scheme, config.prompts)
    corpus = load_corpus(config.data)  # first, because a wrong path should not cost the wait for a model
    embedder = embedder or Embedder(config.embedding_model)
    train = expert_builds(corpus.train, embedder, scheme, "rules build the training banks")
    extra = expert_builds(corpus.extra, embedder, scheme, "rules build extra banks") if corpus.extra else []
    return Prepared(
        corpus=corpus,
        train=train,
        for_sft=sft_builds(train, extra, config.data),
        steering=expert_builds(corpus.steering, embedder, scheme, "rules build the steering banks"),
        held_out=expert_builds(corpus.held_out, embedder, scheme, "rules build the held-out banks"),
        embedder=embedder,
    )


def run_sft(config: SFTConfig, prepared: Prepared) -> tuple[SFTResult, PreTrainedTokenizerBase]:
    run = start_run(config, "sft", prepared.embedder)
    model, tokenizer = make_policy_model(
        config.model, prepared.for_sft, load_scheme(config.scheme, config.prompts), config.seed
    )
    trees = sft.make_trees(config, prepared.for_sft, tokenizer, run.accelerator)
    result = sft.train(config, model, tokenizer, trees, run.log, run.accelerator, run.world)
    run.log.close()
    return result, tokenizer


def run_rl(config: RLConfig, model_dir: str | Path, collector: Collector, prepared: Prepared) -> Path:
    """RL from the model of a folder; the collector's engine must hold the same weights."""
    run = start_run(config, "rl", collector.embedder)
    policy = Policy(load_model(model_dir, config.model))
    reference = frozen_copy(policy) if config.loss.kl_coef else None

    def evaluate() -> dict[str, float]:
        return judge_policy(prepared.held_out, collector, "evaluation").metrics()

    folder = rl.train(
        config, policy, reference, collector, prepared.train, prepared.steering, run.log, run.accelerator, evaluate
    )
    run.log.close()
    return folder
