"""Putting the parts of a run together, for the entry points: accelerator, log, model, engine, collector."""

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from membuilder.config import dump
from membuilder.datasets.load import load
from membuilder.datasets.windows import in_windows
from membuilder.embedding.local import Embedder, TextEmbedder
from membuilder.errors import ConfigError
from membuilder.quiet import LOG_FILE, quiet_libraries, write_library_log
from membuilder.schemes.load import load_scheme
from membuilder.schemes.scheme import Scheme
from membuilder.types import Dialogue
from reward.formula import load_formula
from reward.judges import load_judge
from rollout.seeding import seed_everything
from rollout.tokens import TokenCounter, load_tokenizer
from rollout.types import Engine
from trainer.checkpoint.files import write_file
from trainer.data.corpus import ExpertBuild, States, apart, expert_builds, load_corpus, training_text
from trainer.data.prepared import read_builds
from trainer.distributed.process_group import World, start_accelerator
from trainer.experience.collector import Collector
from trainer.logs.provenance import provenance
from trainer.logs.run_log import RunLog
from trainer.model.policy import ModelConfig, Policy, load_model
from trainer.model.tiny_model import build_model, train_tokenizer

if TYPE_CHECKING:
    from trainer.rl_config import RLConfig


@dataclass(frozen=True, kw_only=True)
class Run:
    accelerator: Accelerator
    world: World
    log: RunLog
    embedder: Embedder


def start_run(config, name: str, embedder: Embedder | None = None) -> Run:
    """Seed and start the log in `config.out`."""
    quiet_libraries(Path(config.out) / LOG_FILE, at_once=False)
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
        write_library_log()


def make_policy_model(
    config: ModelConfig, builds: Sequence[ExpertBuild], scheme: Scheme, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of `config.path`, or a tiny one with a tokenizer trained on the expert's prompts."""
    if config.path is not None:
        return load_model(config.path, config), load_tokenizer(config.path)
    max_turns = max(len(step.session.turns) for build in builds for step in build.steps)
    tokenizer = train_tokenizer(training_text(builds, scheme), scheme.tiny_tokens(max_turns), config.tiny.vocab_size)
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
        scheme=load_scheme(config.scheme, config.prompts),
        formula=load_formula(config.scheme),
        sampling=config.sampling,
        reward=config.reward,
        num_rollouts=config.num_rollouts,
        count_tokens=TokenCounter(tokenizer),
        world=world,
    )


def frozen_copy(policy: Policy) -> Policy:
    """The reference of the KL term: the policy as it is now."""
    return copy.deepcopy(policy).eval().requires_grad_(False)


def rl_builds(
    config: "RLConfig", embedder: TextEmbedder
) -> tuple[list[ExpertBuild], list[ExpertBuild], list[Dialogue]]:
    """To train on, to steer lengths on, and dialogues to evaluate on: from dialogues or from a prepared file."""
    data, scheme = config.data, load_scheme(config.scheme, config.prompts)
    if data.prepared is None:
        corpus = load_corpus(data)
        builds, steering = (
            expert_builds(dialogues, embedder, scheme, f"rules build the {name} banks")
            for dialogues, name in ((corpus.train, "training"), (corpus.steering, "steering"))
        )
        return builds, steering, corpus.held_out
    if config.states is not States.EXPERT or not config.dense:
        raise ConfigError(
            "data.prepared holds single sessions with the expert's memory before them, not every session of a dialogue: set "
            "states=expert and dense=true, or make dialogues (python -m membuilder.prepare rl --to dialogues) for data.path"
        )
    if config.eval_every and data.eval_path is None:
        raise ConfigError(
            "eval_every evaluates whole dialogues, which data.prepared has not: name some in data.eval_path"
        )
    builds, steering = apart(read_builds(data.prepared, scheme), data.num_steering)
    held_out = [] if data.eval_path is None else load(data.eval_path)
    return builds, steering, [in_windows(dialogue, data.max_turns) for dialogue in held_out]
