"""Reinforcement learning of memory construction: ADRPO, or any loss of your own.

    accelerate launch --num_processes 1 -m trainer.rl --config configs/rl_qwen3_4b.yaml key=value ...
    python -m trainer.rl --config configs/quickstart_rl.yaml model.path=DIR          one process, CPU
    python -m trainer.rl --config configs/rl_qwen3_4b.yaml --dry-run                 what it would need; starts nothing

Read `train` from top to bottom. It differs from the published method where that had a fault: rewards are computed in
this process and never replaced by a fallback, sessions start from banks of the policy's own making, lengths share one
unit.

Letters of shapes: S sessions of a step, A roles, G rollouts of a session; M tokens of a micro-batch that carry loss.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from membuilder.command import clear_errors
from trainer.command_line import GOES_ON, parse
from trainer.rl_config import RLConfig

if __name__ == "__main__":  # a mistake in the arguments is answered before PyTorch is loaded
    parse(RLConfig, None, "trainer.rl")

import torch

from membuilder.garbage import keep_loaded
from membuilder.progress import progress
from reward.score import POLICY
from trainer.checkpoint.checkpoints import Best, Checkpoints, Progress
from trainer.checkpoint.files import save_model
from trainer.checkpoint.preemption import Stop
from trainer.data.corpus import sources_of
from trainer.distributed.process_group import log_setup
from trainer.experience.engine_weights import EngineWeights
from trainer.experience.episode_stream import make_stream
from trainer.experience.evaluate import judge_policy
from trainer.experience.idle import IdleSteps, rl_cause
from trainer.experience.length_controller import LengthController, LengthState
from trainer.experience.metrics import check_missing, completion_rows, rollout_metrics
from trainer.experience.parity import check_parity, check_step
from trainer.experience.rollout_cache import Experience, RolloutCache
from trainer.experience.sample_checks import check_versions
from trainer.experience.session_stream import StreamState
from trainer.experience.training_batch import make_batch
from trainer.losses import has_silent_terms, resolve_loss
from trainer.model.policy import shares_prompts, windows
from trainer.model.router_replay import take_mismatch
from trainer.optim import learning_rate, make_optimizer, set_learning_rate
from trainer.optimizer_step import (
    Skips,
    largest_norm,
    make_objective,
    make_update,
    means_over_tokens,
    micro_step,
    named_weights,
    packed_tokens,
    with_proximal,
)
from trainer.run_setup import RLParts, describe_run, setup_rl

BEST = Best(metric="eval/accuracy", higher_is_better=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class RLProgress(Progress):
    """The loop's state as a checkpoint keeps it."""

    stream: StreamState
    lengths: LengthState


def train(config: RLConfig, parts: RLParts) -> Path:
    """Train the policy in place; returns the folder of the saved model."""
    accelerator, collector, log = parts.accelerator, parts.collector, parts.log
    engine, world, temperature = collector.engine, collector.world, config.sampling.temperature
    policy, optimizer = accelerator.prepare(parts.policy, make_optimizer(parts.policy, config.optim))
    log_setup(accelerator, policy)
    weights = EngineWeights(engine, partial(named_weights, accelerator, policy))
    if config.reward.answerer == POLICY:
        answers = weights.answers_of(parts.reference, collector.tokenizer, config.reward.policy_answer_tokens)
        collector = replace(collector, write_answers=answers)
    reference = parts.reference if config.loss.kl_coef else None
    if reference is not None:
        reference.to(accelerator.device)  # `prepare` moves the policy only
    loss_function = resolve_loss(config.loss.name)
    run_silent = has_silent_terms(loss_function, config.loss)
    stream = make_stream(config, parts.builds.train, collector.embedder, collector.scheme)
    sources = {} if config.dense else sources_of(parts.builds.train)
    lengths = LengthController(config, parts.builds.steering or parts.builds.train, collector)

    # Start anew, or go on from a checkpoint.
    checkpoints = Checkpoints(config, accelerator, world, parts.policy.model, collector.tokenizer, BEST)
    begun, anew = checkpoints.load(RLProgress), config.resume == "never"
    if checkpoints.is_finished(begun, config.num_steps, "num_steps"):
        weights.load_policy(begun.step)  # whoever evaluates with the engine now evaluates this policy
        return save_model(accelerator, policy, collector.tokenizer, config, begun.step, "model")
    stop, skips = Stop(world), Skips(limit=config.max_skipped)
    idle_steps = IdleSteps(config.max_idle_steps, accelerator.print)
    cache = RolloutCache(Path(config.out) / "journal" if config.journal else None, world, checkpoints.settings, anew)
    describe_run(config, accelerator)
    if begun is not None:
        stream.load_state(begun.stream)
        lengths.load(begun.lengths)
        weights.load_policy(begun.step)
    first, best = (0, None) if begun is None else (begun.step, begun.best)
    log.drop_from(first)
    wandb_run_id = log.start_wandb(None if begun is None else begun.wandb_run_id, anew)

    bar = progress(total=config.num_steps, initial=first, label="RL", unit="step", enabled=accelerator.is_main_process)
    for step in range(first, config.num_steps):
        # 1. Rollouts: S sessions, each answered G times by its A roles, and rewarded. What a run that was killed has
        # sampled already comes from the journal.
        began, seed = time.perf_counter(), config.seed * 1_000_003 + step
        if step % config.parity_every == 0:
            check_parity(policy, collector, stream.tasks(2), config, seed)
        experience = cache.read(step)
        if experience is None:
            length_weight, measured = lengths.weight()
            if config.dense:
                scored = collector.dense(stream, length_weight, seed)
            else:
                scored = collector.episodes(stream, length_weight, seed)
            check_missing(scored, config.max_missing_share)
            experience = Experience(scored=scored, steered=measured)
            cache.write(step, experience)
        engine.sleep()
        scored = experience.scored
        check_versions(scored, step)
        lengths.advance(experience.steered)
        stream.advance(scored)
        collected = time.perf_counter()

        # 2. Advantages: of each (session, role) over its G rewards. All that have one count in the loss's mean.
        baseline = (config.reward.baseline, config.reward.episode_share)
        batch = make_batch(scored, collector.scheme.roles, config.advantage_std, run_silent, *baseline)
        updates = [
            make_update(share, config.max_tokens, world, accelerator.device, shares_prompts(policy), windows(policy))
            for share in batch.shares(config.updates_per_step)
        ]
        if len(updates) > 1:
            updates = with_proximal(policy, updates, temperature)

        # 3. Update: the loss of an update is a sum over its tokens, so micro-batches and ranks may cut it anywhere.
        rate = learning_rate(step, config.num_steps, config.optim)
        set_learning_rate(optimizer, rate)
        policy.train()
        sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=accelerator.device))
        norms: list[float] = []
        for update in updates:
            for packed, is_real, is_last in update.weighted():
                scale = update.token_scale(config.loss.aggregation, packed.sequence, config.sampling.max_tokens)
                scale = scale * is_real * world.size  # (M,); wrappers average gradients over processes, ours is a sum
                objective = make_objective(loss_function, config.loss, packed, scale, reference, temperature)
                with micro_step(accelerator, policy, is_last):
                    output = policy(packed, temperature, objective, objective.whole_sequences)
                    accelerator.backward(output.loss)
                for name, values in output.metrics.items():  # (M,)
                    sums[name] += is_real * values.sum()
            # The host must know the norm to leave an update out, so it waits for each; DeepSpeed has stepped by then.
            norms.append(float(accelerator.clip_grad_norm_(policy.parameters(), config.optim.max_grad_norm)))
            if skips.should_skip(norms[-1], update.ids):
                log.log_skipped(step, update.ids)
            else:
                optimizer.step()
            optimizer.zero_grad()

        # 4. Sync: the engine samples the next step with these weights.
        weights.load_policy(step + 1)
        learned = time.perf_counter()

        # 5. Log and save.
        metrics = rollout_metrics(scored, batch, collector.count_tokens, sources) | experience.steered
        metrics |= collector.judge_metrics()
        metrics |= take_mismatch(means_over_tokens(sums, batch.num_run_tokens, accelerator)) | packed_tokens(updates)
        if config.eval_every and (step + 1) % config.eval_every == 0:
            metrics |= judge_policy(parts.builds.held_out, collector, "evaluation").metrics()
        metrics |= {"grad_norm": largest_norm(norms), "lr": rate}
        log.log(metrics | {"time/collect": collected - began, "time/learn": learned - collected}, step)
        log.log_completions(completion_rows(scored, batch, step, config.log_completions))
        check_step(metrics, config, step)
        stopped, is_best = stop.asked, BEST.is_beaten(best, metrics.get(BEST.metric))
        best = metrics[BEST.metric] if is_best else best
        idle = idle_steps.count(rl_cause(scored, batch, norms, rate, config, collector.tokenizer))
        if stopped or idle or is_best or checkpoints.is_due(step + 1, config.num_steps):
            here = RLProgress(
                step=step + 1, stream=stream.state, lengths=lengths.state(), best=best, wandb_run_id=wandb_run_id
            )
            checkpoints.save(here, metrics)
            cache.forget(step + 1)
        if stopped or idle:
            raise idle or stop.interrupted(step)
        shown = {name: f"{metrics[name]:.3f}" for name in ("reward/mean", "qa/accuracy") if name in metrics}
        bar.set_postfix(shown, refresh=False)
        bar.update()
    for each in (bar, stop, log, idle_steps):
        each.close()
    return save_model(accelerator, policy, collector.tokenizer, config, config.num_steps, "model")


@clear_errors("trainer.rl", GOES_ON.format("resume=auto"))
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(RLConfig, argv, "trainer.rl")
    parts = setup_rl(config)
    keep_loaded()
    with parts.collector.world.watched():
        folder = train(config, parts)
    parts.collector.engine.close()
    parts.accelerator.print(f"saved {folder}")


if __name__ == "__main__":
    main()
