"""Supervised fine-tuning on an expert's memory operations.

    accelerate launch --num_processes 1 -m trainer.sft --config configs/sft_qwen3_4b.yaml key=value ...
    python -m trainer.sft --config configs/quickstart_sft.yaml          one process, CPU

Loss on completion tokens and the end token only; the four agents of a session share the dialogue in one packed tree;
the denominator of a step is the count of its loss tokens over all ranks and micro-batches.
"""

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator

from membuilder.config import parse_args
from membuilder.errors import ConfigError, clear_errors
from membuilder.progress import progress
from membuilder.schemes.load import load_scheme
from rollout.tokens import load_tokenizer
from trainer.batching.loss_rows import supervised_rows
from trainer.batching.packing import Node
from trainer.checkpoint.checkpoints import Best, Checkpoints
from trainer.checkpoint.files import save_model
from trainer.checkpoint.preemption import Stop, interrupted
from trainer.data.corpus import ExpertBuild, expert_builds, load_corpus, sft_builds
from trainer.data.prepared import prepared_trees
from trainer.data.sft_examples import sft_trees, smallest_group, split_sessions
from trainer.data.truncation import LengthCounts
from trainer.distributed.process_group import World, log_setup
from trainer.experience.parity import check_shared
from trainer.logs.run_log import RunLog
from trainer.losses import LossConfig, cross_entropy
from trainer.memory_estimate import dry_run
from trainer.model.head import Objective
from trainer.model.policy import Policy, load_model
from trainer.optim import learning_rate, make_optimizer, set_learning_rate
from trainer.optimizer_step import Skips, make_update, micro_step
from trainer.run_setup import Run, describe_run, make_policy_model, start_run
from trainer.sft_config import SFTConfig

BEST = Best(metric="sft/val_loss", higher_is_better=False)
NO_CONFIG = LossConfig(kl_coef=0)
"""Cross-entropy has nothing to configure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SFTResult:
    model_dir: Path
    """After the last step; `best` beside it holds the weights with the lowest validation loss."""
    num_steps: int
    final_loss: float
    validation_loss: float


def make_trees(config: SFTConfig, builds: Sequence[ExpertBuild], tokenizer, accelerator: Accelerator) -> list[Node]:
    """The sessions' training trees; says how many samples were too long."""
    scheme = load_scheme(config.scheme, config.prompts)
    return _told(config, accelerator, *sft_trees(builds, tokenizer, scheme, config.max_length, config.over_long))


def _told(config: SFTConfig, accelerator: Accelerator, trees: list[Node], counts: LengthCounts) -> list[Node]:
    if counts.num_cut or counts.num_dropped:
        accelerator.print(
            f"longer than max_length={config.max_length} tokens: {counts.num_dropped} samples dropped, {counts.num_cut} cut by "
            f"{counts.num_cut_tokens} tokens in all; {counts.num_whole} are whole"
        )
    num_sessions = len({tree.id for tree in trees})
    if num_sessions < 2:
        raise ConfigError(f"{num_sessions} sessions to train on: at least two are needed, one of them for validation")
    return trees


@dataclass(frozen=True, kw_only=True, slots=True)
class SFTProgress:
    """Where the loop stands, for a checkpoint."""

    step: int
    best_validation_loss: float | None
    wandb_run_id: str | None


def train(
    config: SFTConfig, model, tokenizer, trees: Sequence[Node], log: RunLog, accelerator: Accelerator, world: World
) -> SFTResult:
    """Train `model` in place on the trees (one per session, again for each time that it counts) and save it."""
    training, validation = split_sessions(trees, config.validation_share, config.seed)
    policy = Policy(model)
    policy, optimizer = accelerator.prepare(policy, make_optimizer(policy, config.optim))
    log_setup(accelerator, policy)
    check_shared(policy, smallest_group(training), 1.0, config.shared_bound, config.max_tokens, world)
    steps_per_epoch = -(-len(training) // config.sessions_per_step)
    num_steps = config.num_epochs * steps_per_epoch if config.max_steps is None else config.max_steps
    checkpoints = Checkpoints.of(config, accelerator, world, model, tokenizer)
    stop, skips = Stop(world), Skips(limit=config.max_skipped)
    begun = checkpoints.load(config.resume, SFTProgress) or SFTProgress(
        step=0, best_validation_loss=None, wandb_run_id=None
    )
    describe_run(config, accelerator)
    best = begun.best_validation_loss
    log.drop_from(begun.step)
    wandb_run_id = log.start_wandb(begun.wandb_run_id, anew=config.resume == "never")
    loss = validation_loss = float("nan")
    bar = progress(total=num_steps, initial=begun.step, label="SFT", unit="step", enabled=accelerator.is_main_process)
    for step in range(begun.step, num_steps):
        began = time.perf_counter()
        epoch, position = divmod(step, steps_per_epoch)
        order = random.Random(f"{config.seed}-{epoch}").sample(training, len(training))
        chosen = order[position * config.sessions_per_step : (position + 1) * config.sessions_per_step]
        rate = learning_rate(step, num_steps, config.optim)
        set_learning_rate(optimizer, rate)
        loss = _backward(config, policy, chosen, accelerator, world)
        norm = accelerator.clip_grad_norm_(policy.parameters(), config.optim.max_grad_norm)
        if skips.should_skip(float(norm), [tree.id for tree in chosen]):
            log.log_skipped(step, [tree.id for tree in chosen])
        else:
            optimizer.step()
        optimizer.zero_grad()
        metrics = {"sft/loss": loss, "grad_norm": float(norm), "lr": rate, "time/step": time.perf_counter() - began}
        if position == steps_per_epoch - 1 or step == num_steps - 1:
            validation_loss = mean_loss(policy, validation, config.max_tokens, accelerator, world)
            metrics["sft/val_loss"] = validation_loss
            if BEST.is_beaten(best, validation_loss):
                best = validation_loss
                save_model(accelerator, policy, tokenizer, Path(config.out) / "best")
        log.log(metrics, step)
        stopped = stop.asked
        if stopped or (step + 1) % config.save_every == 0:
            here = SFTProgress(step=step + 1, best_validation_loss=best, wandb_run_id=wandb_run_id)
            checkpoints.save(step + 1, here, config.keep_last, metrics, BEST)
        if stopped:
            raise interrupted(step)
        shown = {"loss": loss} | ({} if math.isnan(validation_loss) else {"val": validation_loss})
        bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()}, refresh=False)
        bar.update()
    bar.close()
    stop.close()
    model_dir = save_model(accelerator, policy, tokenizer, Path(config.out) / "model")
    return SFTResult(model_dir=model_dir, num_steps=num_steps, final_loss=loss, validation_loss=validation_loss)


def _backward(config: SFTConfig, policy, trees: list[Node], accelerator: Accelerator, world: World) -> float:
    """Gradients of one optimizer step; returns its mean loss per token over all ranks."""
    policy.train()
    update = make_update(trees, config.max_tokens, world, accelerator.device)
    total = torch.zeros((), device=accelerator.device)
    for packed, counts, last in update.weighted():
        # wrappers average over ranks; ours is a sum
        rows = supervised_rows(packed.sequence, update.num_tokens / world.size)
        rows = replace(rows, scale=rows.scale * counts)
        with micro_step(accelerator, policy, last):
            output = policy(packed, objective=Objective(loss=cross_entropy, config=NO_CONFIG, rows=rows))
            accelerator.backward(output.loss)
        total -= counts * output.head.logprobs.sum() / update.num_tokens
    return float(accelerator.reduce(total))  # the one host sync of a step


@torch.no_grad()
def mean_loss(policy, trees: Sequence[Node], max_tokens: int, accelerator: Accelerator, world: World) -> float:
    """Mean cross-entropy per completion token over all ranks."""
    policy.eval()
    update = make_update(trees, max_tokens, world, accelerator.device)
    total = torch.zeros((), device=accelerator.device)
    for packed, counts, _ in update.weighted():
        total -= counts * policy(packed).logprobs.sum() / update.num_tokens
    return float(accelerator.reduce(total))


def main(argv: Sequence[str] | None = None) -> None:
    if dry_run.asked(argv):
        dry_run.main(["sft", *dry_run.arguments(argv)])
        return
    config = parse_args(SFTConfig, argv, "Supervised fine-tuning on an expert's memory operations.")
    if config.data.prepared is not None and config.model.path is None:
        raise ConfigError(
            "model.path: name a model; a tiny one is made from dialogues (data.path), not from data.prepared"
        )
    run = start_run(config, "sft")
    model, tokenizer, trees = _prepared(config, run) if config.data.prepared else _from_dialogues(config, run)
    with run.world.watched():
        result = train(config, model, tokenizer, trees, run.log, run.accelerator, run.world)
    run.log.close()
    run.accelerator.print(f"saved {result.model_dir}; validation loss {result.validation_loss:.3f} nats per token")


def _prepared(config: SFTConfig, run: Run):
    """Model, tokenizer and trees."""
    model, tokenizer = load_model(config.model.path, config.model), load_tokenizer(config.model.path)
    found = prepared_trees(config.data.prepared, tokenizer, config.max_length, config.over_long)
    return model, tokenizer, _told(config, run.accelerator, *found)


def _from_dialogues(config: SFTConfig, run: Run):
    """Model, tokenizer and trees."""
    corpus, scheme = load_corpus(config.data), load_scheme(config.scheme, config.prompts)
    train_builds, extra = (
        expert_builds(dialogues, run.embedder, scheme, "rules build the training banks")
        for dialogues in (corpus.train, corpus.extra)
    )
    builds = sft_builds(train_builds, extra, config.data)
    model, tokenizer = make_policy_model(config.model, builds, scheme, config.seed)
    return model, tokenizer, make_trees(config, builds, tokenizer, run.accelerator)


if __name__ == "__main__":
    with clear_errors("trainer.sft"):
        main()
