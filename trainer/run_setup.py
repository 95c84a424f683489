"""Makes the parts of a run for both loops: accelerator, log, data, model, engine, collector."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from membuilder.config import dump
from membuilder.datasets.windows import in_windows
from membuilder.embedding.local import Embedder, TextEmbedder
from membuilder.errors import ConfigError
from membuilder.files import write_atomic
from membuilder.quiet import write_library_log
from membuilder.schemes.load import scheme_of
from membuilder.schemes.scheme import Scheme
from membuilder.types import CountTokens
from reward.formula import load_formula
from reward.judges import Judge
from reward.llm_judge import LLMJudge, judge_prompts, make_judge
from reward.score import POLICY
from reward.validity import Validity, ValidityModel, make_validity
from rollout.chat_template import set_template_kwargs
from rollout.equal_prompts import DrawsApart
from rollout.gguf import model_folder
from rollout.policy_folder import PolicyFolder
from rollout.routed_experts import RouterReplay, UnreportedError
from rollout.seeding import seed_everything
from rollout.tokens import TokenCounter
from rollout.types import Engine
from trainer.batching.packing import Node
from trainer.configs import TrainConfig
from trainer.data.corpus import (
    Corpus,
    ExpertBuild,
    apart,
    build_corpus,
    expert_builds,
    held_out_file,
    sft_builds,
    training_text,
    warn_of_lost_text,
)
from trainer.data.leak_check import refuse_leaks
from trainer.data.prepared import prepared_trees, read_builds
from trainer.data.sft_examples import sft_trees
from trainer.data.test_ids import refuse_trained_on
from trainer.data.truncation import LengthCounts
from trainer.distributed.process_group import World, deepspeed_dtype, start_accelerator, start_device, zero_stage
from trainer.experience.collector import Collector
from trainer.logs.provenance import provenance
from trainer.logs.run_log import RunLog
from trainer.model.lora import NOT_ZERO3, WithoutAdapters
from trainer.model.make_policy import make_policy, make_reference
from trainer.model.policy import Policy, load_trainable
from trainer.model.router_replay import use_router_replay
from trainer.model.tiny_model import build_model, train_tokenizer
from trainer.rl_config import RLConfig
from trainer.sft_config import SFTConfig

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Run:
    """The parts that every run has."""

    accelerator: Accelerator
    world: World
    log: RunLog
    embedder: Embedder


def start_run(config: TrainConfig, name: str, embedder: Embedder | None = None) -> Run:
    """Start the processes and the log in `config.out`, and seed. An embedder that stands already is used."""
    lora = config.model.lora
    accelerator = start_accelerator(config.optim.max_grad_norm, in_float32=lora is not None)
    if lora is not None and zero_stage(accelerator) == 3:
        raise ConfigError(NOT_ZERO3)
    trained = config.model.dtype if lora is None else "float32"
    if trained == "bfloat16" and accelerator.distributed_type is not DistributedType.DEEPSPEED:
        raise ConfigError(
            "model.dtype=bfloat16 keeps no float32 weights for the optimizer, and steps as small as lr=1e-6 round to "
            "nothing: start with configs/accelerate/zero2.yaml (DeepSpeed keeps them, one GPU is enough) or set "
            "model.dtype=float32"
        )
    kept = deepspeed_dtype(accelerator)
    if kept is not None and kept != trained:
        raise ConfigError(
            f"model.dtype={config.model.dtype}, but DeepSpeed's file would train in {kept}: set model.dtype={kept}, or "
            "bf16.enabled in the file that configs/accelerate names (configs/deepspeed/*.json)"
        )
    seed_everything(config.seed)
    log = RunLog(config.out, config.wandb_project, asdict(config), name, enabled=accelerator.is_main_process)
    world = World.of(accelerator)
    return Run(accelerator=accelerator, world=world, log=log, embedder=embedder or Embedder(config.embedding_model))


def describe_run(config: TrainConfig, accelerator: Accelerator) -> None:
    """Write the resolved config and where the code comes from into `config.out`.

    Called once the run is accepted: one that is refused must not change what stands there about another.
    """
    if accelerator.is_main_process:
        write_atomic(Path(config.out) / "config.yaml", dump(config))
        record = provenance()
        if config.model.lora is not None:
            record["lora"] = asdict(config.model.lora)
        if isinstance(config, RLConfig) and (prompts := judge_prompts(config.reward)):
            record["reward_prompts"] = prompts
        write_atomic(Path(config.out) / "provenance.json", json.dumps(record, indent=2))
        write_library_log()


def make_engine(config: RLConfig, model_dir: str | Path, routed_experts: bool = False) -> Engine:
    """Return an engine that holds the model of a folder. vLLM is imported only when it is asked for.

    With `routed_experts` it reports which experts it chooses, if it can. ConfigError where it must and cannot.
    """
    if config.engine == "vllm":
        from rollout.vllm_engine import VLLMEngine

        make_vllm = partial(
            VLLMEngine,
            model_dir,
            max_model_len=config.max_model_len,
            seed=config.seed,
            gpu_memory_utilization=config.engine_memory,
            dtype=config.model.dtype,
            sleep=config.engine_sleep,
            distributed=torch.distributed.is_available() and torch.distributed.is_initialized(),
        )
        try:
            return make_vllm(routed_experts=routed_experts)
        except UnreportedError as error:
            if config.router_replay is RouterReplay.ALWAYS:
                raise ConfigError(
                    f"router_replay=always: {error}. Set router_replay=auto, or engine=transformers, which reports them"
                ) from error
            _log.warning("the trainer's routers choose by themselves, no sampling/router_mismatch is known: %s", error)
            return make_vllm()
    from rollout.hf_engine import TransformersEngine

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, config.model.dtype)
    engine = TransformersEngine(
        model_dir, max_model_len=config.max_model_len, device=device, dtype=dtype, routed_experts=routed_experts
    )
    return DrawsApart(engine)


def make_collector(
    config: RLConfig,
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    embedder: TextEmbedder,
    world: World = World(),  # noqa: B008  (frozen)
    judge: Judge | None = None,
    validity: Validity | None = None,
) -> Collector:
    return Collector(
        engine=engine,
        tokenizer=tokenizer,
        embedder=embedder,
        judge=judge or make_judge(config.reward),
        scheme=scheme_of(config, TokenCounter(tokenizer)),
        formula=load_formula(config.scheme),
        validity=make_validity(config.reward) if validity is None else validity,
        sampling=config.sampling,
        reward=config.reward,
        num_rollouts=config.num_rollouts,
        count_tokens=TokenCounter(tokenizer),
        world=world,
    )


@dataclass(frozen=True, kw_only=True)
class SFTParts(Run):
    """The parts of an SFT run."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    trees: list[Node]
    """One prefix tree per session; a session that counts several times has as many."""


def setup_sft(
    config: SFTConfig, builds: Corpus[ExpertBuild] | None = None, embedder: TextEmbedder | None = None
) -> SFTParts:
    """Make the parts of a run. Builds that stand already are used instead of those of `config.data`."""
    if config.data.prepared is not None and config.model.path is None:
        raise ConfigError(
            "model.path: name the folder or model to start from, which data.prepared needs; to try things out, "
            "`python -m trainer.tiny --out DIR` makes a tiny one"
        )
    run = start_run(config, "sft", embedder)
    scheme_of(config)  # a mistake in its settings is told before a model is loaded
    loaded = None if config.model.path is None else _load(config, "max_length")
    scheme = scheme_of(config, None if loaded is None else TokenCounter(loaded.tokenizer))
    if builds is None and config.data.prepared is None:
        builds = build_corpus(config.data, run.embedder, scheme, "train", "extra")
    if builds is not None and run.world.rank == 0:
        warn_of_lost_text(builds, scheme, run.embedder)
    epoch = [] if builds is None else sft_builds(builds, config.data)
    model, tokenizer = _tiny(config, epoch, scheme) if loaded is None else (loaded.model, loaded.tokenizer)
    found = sft_trees(epoch, tokenizer, scheme, config) if builds else prepared_trees(tokenizer, config)
    trees = checked_trees(config, run.accelerator, *found)
    return SFTParts(**vars(run), model=model, tokenizer=tokenizer, trees=trees)


def _load(config: TrainConfig, length_key: str) -> PolicyFolder:
    """Return the model of `config.model.path`; whatever is wrong with it is said before any data is built."""
    lengths = {length_key: getattr(config, length_key)}
    return load_trainable(model_folder(config.model.path), config.model, lengths, config.prompts.chat_template_kwargs)


def _tiny(
    config: SFTConfig, builds: Sequence[ExpertBuild], scheme: Scheme
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a tiny model with a tokenizer trained on the expert's prompts."""
    added = scheme.tiny_tokens(max(len(step.session.turns) for build in builds for step in build.steps))
    tokenizer = train_tokenizer(training_text(builds, scheme), added, config.model.tiny.vocab_size)
    set_template_kwargs(tokenizer, config.prompts.chat_template_kwargs)
    return build_model(tokenizer, config.model.tiny, config.seed), tokenizer


def checked_trees(config: SFTConfig, accelerator: Accelerator, trees: list[Node], counts: LengthCounts) -> list[Node]:
    """Print how many samples were too long and return the trees; ConfigError where too few sessions are left."""
    if counts.num_cut or counts.num_dropped:
        accelerator.print(
            f"longer than max_length={config.max_length} tokens: {counts.num_dropped} samples dropped, "
            f"{counts.num_cut} cut by {counts.num_cut_tokens} tokens in all; {counts.num_whole} are whole"
        )
    num_sessions = len({tree.id for tree in trees})
    if num_sessions < 2:
        raise ConfigError(f"{num_sessions} sessions to train on: at least two are needed, one of them for validation")
    return trees


def rl_builds(config: RLConfig, embedder: TextEmbedder, count_tokens: CountTokens | None = None) -> Corpus[ExpertBuild]:
    """Return the expert's work on dialogues, or what a prepared file holds of it."""
    data, scheme = config.data, scheme_of(config, count_tokens)
    if data.prepared is None:
        return build_corpus(data, embedder, scheme, "train", "steering", "held_out", is_needed=config.dense)
    held_out = [in_windows(each, data.max_turns) for each in held_out_file(data)]
    builds = read_builds(data, scheme)
    refuse_trained_on((build.dialogue.id for build in builds), held_out, data)
    refuse_leaks((build.dialogue for build in builds), data, f"data.prepared={data.prepared}")
    train, steering = apart(builds, data.num_steering)
    return Corpus(train=train, steering=steering, held_out=expert_builds(held_out, embedder, scheme, "held-out"))


@dataclass(frozen=True, kw_only=True)
class RLParts(Run):
    """The parts of an RL run."""

    policy: Policy
    reference: Policy | WithoutAdapters | None
    """The policy as it starts, for the KL term and for `reward.answerer: policy`; None where neither needs it."""
    collector: Collector
    """What samples and scores; its engine holds the weights of `policy`."""
    builds: Corpus[ExpertBuild]


def setup_rl(
    config: RLConfig, builds: Corpus[ExpertBuild] | None = None, collector: Collector | None = None
) -> RLParts:
    """Make the parts of a run. Builds and a collector that stand already are used instead of new ones."""
    if config.model.path is None:
        raise ConfigError("model.path: name the folder or model to start from (trainer.sft writes OUT/model)")
    judge = make_judge(config.reward) if collector is None else collector.judge
    validity = make_validity(config.reward) if collector is None else collector.validity
    for model in (judge, validity):
        if isinstance(model, LLMJudge | ValidityModel):
            model.check()
    run = start_run(config, "rl", None if collector is None else collector.embedder)
    loaded = _load(config, "max_model_len")
    if builds is None:
        builds = rl_builds(config, run.embedder, TokenCounter(loaded.tokenizer))
        if run.world.rank == 0:
            warn_of_lost_text(builds, scheme_of(config), run.embedder)
    policy = make_policy(loaded.model, config.model.attention, start_device(run.accelerator), lora=config.model.lora)
    use_router_replay(policy, config.router_replay)
    needs_reference = config.loss.kl_coef or config.reward.answerer == POLICY
    reference = make_reference(policy) if needs_reference else None
    if collector is None:
        engine = make_engine(config, model_folder(config.model.path), policy.replays_experts)
        collector = make_collector(config, engine, loaded.tokenizer, run.embedder, run.world, judge, validity)
    return RLParts(**vars(run), policy=policy, reference=reference, collector=collector, builds=builds)
