"""SFT and RL in miniature, in this process: the real loops, a tiny model, the transformers engine."""

import copy
from pathlib import Path

import torch
from accelerate import Accelerator

from membuilder.datasets.windows import in_windows
from membuilder.generate.dialogue import generate
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.four_agents.schemas import ResponseFormat
from membuilder.schemes.load import scheme_of
from reward.score import POLICY, RewardConfig
from rollout.types import SamplingConfig
from tests.fakes import HashEmbedder
from trainer import rl, sft
from trainer.configs import LossConfig, ModelConfig, OptimConfig, TinyConfig
from trainer.data.corpus import Corpus, ExpertBuild, expert_builds, training_text
from trainer.data.sft_examples import sft_trees
from trainer.distributed.process_group import World, start_accelerator
from trainer.experience.collector import Collector
from trainer.logs.run_log import RunLog, read_jsonl
from trainer.model.policy import Policy, load_trainable
from trainer.model.router_replay import use_router_replay
from trainer.model.tiny_model import build_model, train_tokenizer
from trainer.rl_config import RLConfig
from trainer.run_setup import RLParts, SFTParts, make_collector, make_engine
from trainer.sft_config import SFTConfig

SIZES = TinyConfig(vocab_size=600, hidden_size=32, num_layers=2, intermediate_size=64)


def config_of(out: Path, **changed) -> RLConfig:
    settings = dict(
        out=str(out),
        model=ModelConfig(dtype="float32"),
        prompts=PromptConfig(template_set="compact", response_format=ResponseFormat.TURNS, entries_shown=3),
        sampling=SamplingConfig(temperature=1.0, top_p=1.0, max_tokens=6),
        reward=RewardConfig(judge="evidence", earlier_questions=True),
        loss=LossConfig(kl_coef=0.02),
        optim=OptimConfig(lr=1e-3),
        engine="transformers",
        num_steps=2,
        sessions_per_step=3,
        num_rollouts=3,
        max_tokens=600,
        max_model_len=1000,
        parity_every=1,
        parity_bound=0.001,
        shared_bound=1e-5,
    )
    return RLConfig(**settings | changed)


def builds_of(config: RLConfig) -> list[ExpertBuild]:
    dialogues = [in_windows(dialogue, 3) for dialogue in generate(2, 1, "train", num_sessions=2)]
    return expert_builds(dialogues, HashEmbedder(), scheme_of(config), "rules")


class Run:
    """The parts of a run, before it runs."""

    def __init__(self, config: RLConfig, builds: list[ExpertBuild] | None = None) -> None:
        self.config = config
        self.builds = builds_of(config) if builds is None else builds
        self.scheme = scheme = scheme_of(config)
        self.tokenizer = train_tokenizer(training_text(self.builds, scheme), scheme.tiny_tokens(3), SIZES.vocab_size)
        folder = Path(config.out) / "start"
        self.accelerator: Accelerator = start_accelerator(config.optim.max_grad_norm)
        self._learn_the_format(folder)
        self.policy = Policy(load_trainable(folder, config.model).model)
        needs_reference = config.loss.kl_coef or config.reward.answerer == POLICY
        self.reference = copy.deepcopy(self.policy).requires_grad_(False) if needs_reference else None
        use_router_replay(self.policy, config.router_replay)
        self.engine = make_engine(config, folder, self.policy.replays_experts)
        self.collector: Collector = make_collector(config, self.engine, self.tokenizer, HashEmbedder(), World())

    def _learn_the_format(self, folder: Path) -> None:
        """A model that answers in the format often enough for RL to have something to reward."""
        config = SFTConfig(
            out=str(folder.parent / "sft"), optim=OptimConfig(lr=2e-2), max_steps=16, sessions_per_step=8
        )
        model = build_model(self.tokenizer, SIZES, seed=1)
        trees, _ = sft_trees(self.builds, self.tokenizer, self.scheme, config)
        parts = SFTParts(
            model=model,
            tokenizer=self.tokenizer,
            trees=trees,
            accelerator=self.accelerator,
            world=World(),
            embedder=HashEmbedder(),
            log=RunLog(config.out, None, {}, "sft"),
        )
        sft.train(config, parts)
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def train(self) -> list[dict]:
        """The lines of metrics.jsonl."""
        parts = RLParts(
            policy=self.policy,
            reference=self.reference,
            collector=self.collector,
            builds=Corpus(train=self.builds, held_out=self.builds),
            accelerator=self.accelerator,
            world=World(),
            embedder=HashEmbedder(),
            log=RunLog(self.config.out, None, {}, "rl"),
        )
        rl.train(self.config, parts)
        return read_jsonl(Path(self.config.out) / "metrics.jsonl")


def weights(policy: Policy) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().cpu() for parameter in policy.parameters()])
