"""Supervised fine-tuning on an expert's memory operations.

    accelerate launch --num_processes 1 -m trainer.sft --config configs/sft_qwen3_4b.yaml key=value ...
    python -m trainer.sft --config configs/quickstart_sft.yaml                  one process, CPU
    python -m trainer.sft --config configs/sft_qwen3_4b.yaml --dry-run          what it would need; starts nothing

The loss is taken on completion tokens and the end token only. The four agents of a session share the dialogue in one
packed prefix tree. The denominator of a step is the count of its loss tokens over all ranks and micro-batches.

Letters of shapes: M tokens of a micro-batch that carry loss.
"""

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from membuilder.command import clear_errors
from trainer.command_line import GOES_ON, parse
from trainer.sft_config import SFTConfig

if __name__ == "__main__":  # a mistake in the arguments is answered before PyTorch is loaded
    parse(SFTConfig, None, "trainer.sft")

import torch
from accelerate import Accelerator

from membuilder.progress import progress
from trainer.batching.loss_rows import cross_entropy
from trainer.batching.packing import Node, Share, sequences_of
from trainer.checkpoint.checkpoints import Best, Checkpoints, Progress
from trainer.checkpoint.files import save_model
from trainer.checkpoint.preemption import Stop
from trainer.data.sft_examples import smallest_group, split_sessions
from trainer.distributed.process_group import World, log_setup, start_device
from trainer.experience.idle import IdleSteps, sft_cause
from trainer.experience.parity import check_next_token, check_shared
from trainer.experience.sample_checks import check_template
from trainer.model.make_policy import make_policy
from trainer.model.policy import shares_prompts, windows
from trainer.optim import learning_rate, make_optimizer, set_learning_rate
from trainer.optimizer_step import Skips, make_update, micro_step, packed_tokens
from trainer.run_setup import SFTParts, describe_run, setup_sft

BEST = Best(metric="sft/val_loss", higher_is_better=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class SFTResult:
    model_dir: Path
    """After the last step; `best` beside it holds the weights with the lowest validation loss."""
    num_steps: int
    validation_loss: float


def train(config: SFTConfig, parts: SFTParts) -> SFTResult:
    """Train the model in place and save it."""
    accelerator, world, log, tokenizer = parts.accelerator, parts.world, parts.log, parts.tokenizer
    training, validation = split_sessions(parts.trees, config.validation_share, config.seed)
    policy = make_policy(parts.model, config.model.attention, start_device(accelerator), lora=config.model.lora)
    policy, optimizer = accelerator.prepare(policy, make_optimizer(policy, config.optim))
    log_setup(accelerator, policy)
    check_template(tokenizer)
    check_next_token(policy, [sequences_of(tree) for tree in training], world)
    check_shared(policy, smallest_group(training), 1.0, config.shared_bound, config.max_tokens, world)
    steps_per_epoch = -(-len(training) // config.sessions_per_step)
    num_steps = config.num_epochs * steps_per_epoch if config.max_steps is None else config.max_steps

    # Start anew, or go on from a checkpoint.
    checkpoints = Checkpoints(config, accelerator, world, parts.model, tokenizer, BEST)
    begun = checkpoints.load(Progress) or Progress(step=0, best=None, wandb_run_id=None)
    if checkpoints.is_finished(begun, num_steps, "num_epochs" if config.max_steps is None else "max_steps"):
        loss = mean_loss(policy, validation, config.max_tokens, accelerator, world)
        model_dir = save_model(accelerator, policy, tokenizer, config, begun.step, "model")
        return SFTResult(model_dir=model_dir, num_steps=begun.step, validation_loss=loss)
    stop, skips = Stop(world), Skips(limit=config.max_skipped)
    idle_steps = IdleSteps(config.max_idle_steps, accelerator.print)
    describe_run(config, accelerator)
    best = begun.best
    log.drop_from(begun.step)
    wandb_run_id = log.start_wandb(begun.wandb_run_id, anew=config.resume == "never")

    validation_loss = math.nan
    bar = progress(total=num_steps, initial=begun.step, label="SFT", unit="step", enabled=accelerator.is_main_process)
    for step in range(begun.step, num_steps):
        # 1. Sessions: every epoch in an order of its own.
        began = time.perf_counter()
        epoch, position = divmod(step, steps_per_epoch)
        order = random.Random(f"{config.seed}-{epoch}").sample(training, len(training))
        chosen = order[position * config.sessions_per_step : (position + 1) * config.sessions_per_step]
        how = (accelerator.device, shares_prompts(policy), windows(policy))
        update = make_update(Share.of(chosen), config.max_tokens, world, *how)

        # 2. Update: the loss is a sum over the step's tokens, so micro-batches and ranks may cut it anywhere.
        rate = learning_rate(step, num_steps, config.optim)
        set_learning_rate(optimizer, rate)
        policy.train()
        total = torch.zeros((), device=accelerator.device)
        for packed, is_real, is_last in update.weighted():
            # (M,); wrappers average over ranks, ours is a sum
            scale = torch.ones(packed.sequence.shape, device=accelerator.device)
            scale = scale / (update.num_tokens / world.size) * is_real
            with micro_step(accelerator, policy, is_last):
                output = policy(packed, loss=cross_entropy(scale))
                accelerator.backward(output.loss)
            total -= is_real * output.head.logprobs.sum() / update.num_tokens
        norm = accelerator.clip_grad_norm_(policy.parameters(), config.optim.max_grad_norm)
        loss, norm = _on_host(accelerator.reduce(total), norm)
        if skips.should_skip(norm, update.ids):
            log.log_skipped(step, update.ids)
        else:
            optimizer.step()
        optimizer.zero_grad()
        metrics = {"sft/loss": loss, "grad_norm": norm, "lr": rate, "time/step": time.perf_counter() - began}
        metrics |= packed_tokens([update])

        # 3. Validate at the end of every epoch; the best weights are kept as a model.
        if position == steps_per_epoch - 1 or step == num_steps - 1:
            validation_loss = mean_loss(policy, validation, config.max_tokens, accelerator, world)
            metrics[BEST.metric] = validation_loss
            if BEST.is_beaten(best, validation_loss):
                best = validation_loss
                save_model(accelerator, policy, tokenizer, config, step + 1, "best")

        # 4. Log and save.
        log.log(metrics, step)
        stopped, idle = stop.asked, idle_steps.count(sft_cause(norm, rate))
        if stopped or idle or checkpoints.is_due(step + 1, num_steps):
            here = Progress(step=step + 1, best=best, wandb_run_id=wandb_run_id)
            checkpoints.save(here, metrics)
        if stopped or idle:
            raise idle or stop.interrupted(step)
        shown = {"loss": loss} | ({} if math.isnan(validation_loss) else {"val": validation_loss})
        bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()}, refresh=False)
        bar.update()
    for each in (bar, stop, log, idle_steps):
        each.close()
    model_dir = save_model(accelerator, policy, tokenizer, config, num_steps, "model")
    return SFTResult(model_dir=model_dir, num_steps=num_steps, validation_loss=validation_loss)


def _on_host(loss: torch.Tensor, norm: torch.Tensor | float) -> tuple[float, float]:
    """Return both numbers in the one transfer of a step; DeepSpeed knows the norm on the host already."""
    if isinstance(norm, float):
        return float(loss), norm
    return tuple(torch.stack([loss, norm.to(loss)]).tolist())


@torch.no_grad()
def mean_loss(policy, trees: Sequence[Node], max_tokens: int, accelerator: Accelerator, world: World) -> float:
    """Mean cross-entropy per completion token over all ranks."""
    policy.eval()
    how = (accelerator.device, shares_prompts(policy), windows(policy))
    update = make_update(Share.of(trees), max_tokens, world, *how)
    total = torch.zeros((), device=accelerator.device)
    for packed, is_real, _ in update.weighted():
        total -= is_real * policy(packed).logprobs.sum() / update.num_tokens
    return float(accelerator.reduce(total))


@clear_errors("trainer.sft", GOES_ON.format("resume=auto"))
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(SFTConfig, argv, "trainer.sft")
    parts = setup_sft(config)
    with parts.world.watched():
        result = train(config, parts)
    parts.accelerator.print(f"saved {result.model_dir}; validation loss {result.validation_loss:.3f} nats per token")


if __name__ == "__main__":
    main()
