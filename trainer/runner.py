"""Putting the parts of a run together, for the entry points: accelerator, log, model, engine, collector."""

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from membuilder.config import dump
from membuilder.embed import Embedder, TextEmbedder
from membuilder.errors import ConfigError, MemBuilderError
from membuilder.prompts import PromptConfig
from reward.judges import load_judge
from rollout.seeding import seed_everything
from rollout.tokens import TokenCounter, load_tokenizer
from rollout.types import Engine
from trainer.checkpoint import write_file
from trainer.collect import Collector
from trainer.corpus import ExpertBuild, training_text
from trainer.log import RunLog
from trainer.policy import ModelConfig, Policy, load_model
from trainer.provenance import provenance
from trainer.tiny import build_model, train_tokenizer
from trainer.world import World, start_accelerator

if TYPE_CHECKING:
    from trainer.rl_config import RLConfig


@contextmanager
def clear_errors(program: str) -> Iterator[None]:
    """Ours end a program with their message alone; anything else is a fault of ours and keeps its traceback."""
    try:
        yield
    except MemBuilderError as error:
        raise SystemExit(f"{program}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Run:
    accelerator: Accelerator
    world: World
    log: RunLog
    embedder: Embedder


def start_run(config, name: str, embedder: Embedder | None = None) -> Run:
    """Seed and start the log in `config.out`."""
    accelerator = start_accelerator(config.optim.max_grad_norm)
    if config.model.dtype == "bfloat16" and accelerator.distributed_type is not DistributedType.DEEPSPEED:
        raise ConfigError(
            "model.dtype=bfloat16 keeps no float32 weights for the optimizer, and steps as small as lr=1e-6 round to "
            "nothing: start with configs/accelerate/zero2.yaml (DeepSpeed keeps them, one GPU is enough) or set "
            "model.dtype=float32"
        )
    seed_everything(config.seed)
    out = Path(config.out)
    log = RunLog(out, config.wandb_project, asdict(config), name, enabled=accelerator.is_main_process)
    world = World.of(accelerator)
    return Run(accelerator=accelerator, world=world, log=log, embedder=embedder or Embedder(config.embedding_model))


def describe_run(config, accelerator: Accelerator) -> None:
    """Write the resolved config and where the code comes from into `config.out`.

    Called once the run is accepted: one that is refused must not change what stands there about another.
    """
    if accelerator.is_main_process:
        out = Path(config.out)
        out.mkdir(parents=True, exist_ok=True)
        write_file(out / "config.yaml", dump(config).encode())
        write_file(out / "provenance.json", json.dumps(provenance(), indent=2).encode())


def make_policy_model(
    config: ModelConfig, builds: Sequence[ExpertBuild], prompts: PromptConfig, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of `config.path`, or a tiny one with a tokenizer trained on the expert's prompts."""
    if config.path is not None:
        return load_model(config.path, config), load_tokenizer(config.path)
    max_turns = max(len(step.session.turns) for build in builds for step in build.steps)
    tokenizer = train_tokenizer(training_text(builds, prompts), max_turns, config.tiny.vocab_size)
    return build_model(tokenizer, config.tiny, seed), tokenizer


def make_engine(config: "RLConfig", model_dir: str | Path) -> Engine:
    """An engine holding the model of a folder. vLLM is imported only when it is asked for."""
    if config.engine == "vllm":
        from rollout.vllm_engine import VLLMEngine

        return VLLMEngine(
            model_dir,
            max_model_len=config.max_model_len,
            seed=config.seed,
            gpu_memory_utilization=config.engine_memory,
            dtype=config.model.dtype,
            sleep=config.engine_sleep,
            distributed=torch.distributed.is_available() and torch.distributed.is_initialized(),
        )
    from rollout.hf_engine import TransformersEngine

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, config.model.dtype)
    return TransformersEngine(model_dir, max_model_len=config.max_model_len, device=device, dtype=dtype)


def make_collector(
    config: "RLConfig",
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    embedder: TextEmbedder,
    world: World = World(),  # noqa: B008  (frozen)
) -> Collector:
    return Collector(
        engine=engine,
        tokenizer=tokenizer,
        embedder=embedder,
        judge=load_judge(config.reward.judge),
        prompts=config.prompts,
        sampling=config.sampling,
        reward=config.reward,
        num_rollouts=config.num_rollouts,
        count_tokens=TokenCounter(tokenizer),
        world=world,
    )


def frozen_copy(policy: Policy) -> Policy:
    """The reference of the KL term: the policy as it is now."""
    return copy.deepcopy(policy).eval().requires_grad_(False)
