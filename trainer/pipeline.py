"""The chain's stages as functions: data and expert, SFT, RL. The quickstart and the learning benchmark run them."""

from dataclasses import dataclass
from pathlib import Path

from membuilder.embedding.local import Embedder
from membuilder.schemes.load import load_scheme
from trainer import rl, sft
from trainer.data.corpus import Corpus, ExpertBuild, expert_builds, load_corpus, sft_builds
from trainer.experience.collector import Collector
from trainer.rl_config import RLConfig
from trainer.run_setup import RLBuilds, setup_rl, setup_sft
from trainer.sft import SFTResult
from trainer.sft_config import SFTConfig


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Data and the expert's work on it, made once for all stages."""

    corpus: Corpus
    for_sft: list[ExpertBuild]
    for_rl: RLBuilds
    embedder: Embedder


def prepare(config: SFTConfig, embedder: Embedder | None = None) -> Prepared:
    """Make data and the expert's work. An embedder that stands already does not embed its texts again."""
    scheme = load_scheme(config.scheme, config.prompts)
    corpus = load_corpus(config.data)  # first, because a wrong path should not cost the wait for a model
    embedder = embedder or Embedder(config.embedding_model)
    train, extra, steering, held_out = (
        expert_builds(dialogues, embedder, scheme, name)
        for name, dialogues in (
            ("training", corpus.train),
            ("extra", corpus.extra),
            ("steering", corpus.steering),
            ("held-out", corpus.held_out),
        )
    )
    for_rl = RLBuilds(train=train, steering=steering, held_out=held_out)
    return Prepared(corpus=corpus, for_sft=sft_builds(train, extra, config.data), for_rl=for_rl, embedder=embedder)


def run_sft(config: SFTConfig, prepared: Prepared) -> SFTResult:
    parts = setup_sft(config, prepared.for_sft, prepared.embedder)
    result = sft.train(config, parts)
    parts.log.close()
    return result


def run_rl(config: RLConfig, collector: Collector, prepared: Prepared) -> Path:
    """Run RL from the model of `config.model.path`, whose weights the collector's engine must hold."""
    parts = setup_rl(config, prepared.for_rl, collector)
    folder = rl.train(config, parts)
    parts.log.close()
    return folder
