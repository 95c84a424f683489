"""Reinforcement learning of memory construction: ADRPO, or any loss of your own.

    accelerate launch --num_processes 1 -m trainer.rl --config configs/rl_qwen3_4b.yaml key=value ...
    python -m trainer.rl --config configs/quickstart_rl.yaml model.path=DIR          one process, CPU

Read `train` from top to bottom: sample sessions, generate, score, advantages, micro-batches, loss, step, sync, log,
evaluate, save. Differs from the published method where that had a fault: rewards are computed in this process and never
replaced by a fallback, sessions start from banks of the policy's own making, lengths share one unit.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from membuilder.config import parse_args
from membuilder.errors import ConfigError, clear_errors
from membuilder.progress import progress
from membuilder.schemes.load import load_scheme
from rollout.tokens import load_tokenizer
from trainer.batching.loss_rows import token_scale
from trainer.checkpoint.checkpoints import Best, Checkpoints
from trainer.checkpoint.files import save_model
from trainer.checkpoint.preemption import Stop, interrupted
from trainer.data.corpus import ExpertBuild, States, expert_builds
from trainer.distributed.process_group import log_setup
from trainer.experience.collector import Collector
from trainer.experience.evaluate import judge_policy
from trainer.experience.metrics import check_missing, completion_rows, rollout_metrics
from trainer.experience.parity import check_engine, check_shared, sample_sequences
from trainer.experience.rollout_cache import Experience, RolloutCache
from trainer.experience.session_stream import SessionStream, StreamState
from trainer.experience.training_batch import make_batch
from trainer.logs.run_log import RunLog
from trainer.losses import resolve_loss
from trainer.memory_estimate import dry_run
from trainer.model.head import Objective
from trainer.model.policy import Policy, load_model
from trainer.optim import learning_rate, make_optimizer, set_learning_rate
from trainer.optimizer_step import Skips, loss_rows, make_update, micro_step, named_weights, remember_proximal, shares
from trainer.rl_config import RLConfig
from trainer.run_setup import describe_run, frozen_copy, make_collector, make_engine, rl_builds, start_run

BEST = Best(metric="eval/accuracy", higher_is_better=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class RLProgress:
    """Where the loop stands, for a checkpoint."""

    step: int
    stream: StreamState
    steering: StreamState
    memory_ratio: float | None
    """Smoothed; None while nothing was measured."""
    best: float | None
    """The best evaluation so far; its checkpoint is kept."""
    wandb_run_id: str | None


def train(
    config: RLConfig,
    policy: Policy,
    reference: Policy | None,
    collector: Collector,
    builds: list[ExpertBuild],
    steering_builds: list[ExpertBuild],
    log: RunLog,
    accelerator: Accelerator,
    evaluate: Callable[[], Mapping[str, float]],
) -> Path:
    """Train `policy` in place; returns the folder of the saved model. `reference` is None when kl_coef is 0.

    `evaluate` measures the model the collector's engine holds; it is called every `config.eval_every` steps.
    """
    loss_function = resolve_loss(config.loss.name)
    model = policy.model
    policy, optimizer = accelerator.prepare(policy, make_optimizer(policy, config.optim))
    log_setup(accelerator, policy)
    if reference is not None:
        reference.to(accelerator.device)  # `prepare` moves the policy only
    slots = config.sessions_per_step
    stream = SessionStream(builds, collector.embedder, collector.scheme, slots, config.states, config.seed)
    steering = SessionStream(
        steering_builds or builds, collector.embedder, collector.scheme, slots, States.EXPERT, config.seed
    )
    world = collector.world
    num_dialogues = max(1, slots // max(len(build.steps) for build in builds))

    def collect(step: int) -> Experience:
        seed = config.seed * 1_000_003 + step
        if step % config.parity_every == 0:
            tasks = [stream.task(slot) for slot in range(min(2, slots))]
            fresh = sample_sequences(collector, tasks, config.sampling.temperature, seed)
            for check, bound in ((check_engine, config.parity_bound), (check_shared, config.shared_bound)):
                check(policy, fresh, config.sampling.temperature, bound, config.max_tokens, world)
        length_weight, steered = steer(collector, steering, config, memory_ratio)
        if config.dense:
            scored = collector.dense(stream, length_weight, seed)
        else:
            scored = collector.sparse(builds, num_dialogues, length_weight, seed)
        check_missing(scored, config.max_missing_share)
        return Experience(scored=scored, steered=steered)

    checkpoints = Checkpoints.of(config, accelerator, world, model, collector.tokenizer)
    stop, skips = Stop(world), Skips(limit=config.max_skipped)
    begun, anew = checkpoints.load(config.resume, RLProgress), config.resume == "never"
    cache = RolloutCache(Path(config.out) / "journal", world, checkpoints.settings, anew) if config.journal else None
    describe_run(config, accelerator)
    if begun is not None:
        stream.load_state(begun.stream)
        steering.load_state(begun.steering)
        collector.engine.load_weights(named_weights(accelerator, policy), version=begun.step)
    first, memory_ratio, best = (0, None, None) if begun is None else (begun.step, begun.memory_ratio, begun.best)
    log.drop_from(first)
    wandb_run_id = log.start_wandb(None if begun is None else begun.wandb_run_id, anew)
    bar = progress(total=config.num_steps, initial=first, label="RL", unit="step", enabled=accelerator.is_main_process)
    for step in range(first, config.num_steps):
        clock = {"start": time.perf_counter()}
        experience = collect(step) if cache is None else cache.cached_or_collect(step, collect)
        collector.engine.sleep()
        scored = experience.scored
        memory_ratio = experience.steered.get("memory_ratio/smoothed", memory_ratio)
        if config.dense:
            stream.advance(scored)
        steering.skip()
        clock["collected"] = time.perf_counter()

        batch = make_batch(scored, collector.scheme.roles, config.advantage_std)
        sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=accelerator.device))
        rate = learning_rate(step, config.num_steps, config.optim)
        set_learning_rate(optimizer, rate)
        updates = [
            make_update(trees, config.max_tokens, world, accelerator.device)
            for trees in shares(batch.trees, config.updates_per_step)
        ]
        if len(updates) > 1:
            remember_proximal(policy, updates, config.sampling.temperature)
        policy.train()
        norm = 0.0
        for update in updates:
            for packed, counts, last in update.weighted():
                scale = token_scale(
                    config.loss.aggregation,
                    packed.sequence,
                    update.num_tokens,
                    update.num_sequences,
                    config.sampling.max_tokens,
                )
                # wrappers average gradients over processes; ours is a sum
                rows = loss_rows(packed, scale * counts * world.size, reference, config.sampling.temperature)
                objective = Objective(loss=loss_function, config=config.loss, rows=rows)
                with micro_step(accelerator, policy, last):
                    output = policy(packed, config.sampling.temperature, objective)
                    accelerator.backward(output.loss)
                for name, values in output.metrics.items():
                    sums[name] += counts * values.sum()
                sums["entropy"] += counts * output.head.entropy.sum()
                proximal = output.head.logprobs if rows.proximal_logprobs is None else rows.proximal_logprobs
                sums["sampling/logp_difference/mean"] += counts * (proximal - rows.rollout_logprobs).abs().sum()
            norm = accelerator.clip_grad_norm_(policy.parameters(), config.optim.max_grad_norm)
            if skips.should_skip(float(norm), update.ids):
                log.log_skipped(step, update.ids)
            else:
                optimizer.step()
            optimizer.zero_grad()
        collector.engine.load_weights(named_weights(accelerator, policy), version=step + 1)
        clock["learned"] = time.perf_counter()

        sums = accelerator.reduce(dict(sums))
        learned = {name: float(total) / max(1, batch.num_tokens) for name, total in sums.items()}
        seen = rollout_metrics(scored, batch, collector.count_tokens)
        evaluated = evaluate() if config.eval_every and (step + 1) % config.eval_every == 0 else {}
        log.log(
            seen
            | experience.steered
            | learned
            | evaluated
            | {
                "grad_norm": float(norm),
                "lr": rate,
                "time/collect": clock["collected"] - clock["start"],
                "time/learn": clock["learned"] - clock["collected"],
            },
            step,
        )
        log.log_completions(completion_rows(scored, batch, step, config.log_completions))
        stopped, beaten = stop.asked, BEST.is_beaten(best, evaluated.get(BEST.metric))
        best = evaluated[BEST.metric] if beaten else best
        if stopped or beaten or (step + 1) % config.save_every == 0:
            here = RLProgress(
                step=step + 1,
                stream=stream.state,
                steering=steering.state,
                memory_ratio=memory_ratio,
                best=best,
                wandb_run_id=wandb_run_id,
            )
            checkpoints.save(step + 1, here, config.keep_last, evaluated, BEST)
            if cache is not None:
                cache.forget(step + 1)
        if stopped:
            raise interrupted(step)
        shown = {name: f"{seen[name]:.3f}" for name in ("reward/mean", "qa/accuracy") if name in seen}
        bar.set_postfix(shown, refresh=False)
        bar.update()
    bar.close()
    stop.close()
    return save_model(accelerator, policy, collector.tokenizer, Path(config.out) / "model")


def steer(
    collector: Collector, stream: SessionStream, config: RLConfig, smoothed: float | None
) -> tuple[float, dict[str, float]]:
    """The step's length weight, and what to log about it. `smoothed` is the memory ratio as of the steps before."""
    weight = config.reward.length_weight
    if config.length_target is None:
        return weight, {}
    ratio = collector.greedy_memory_ratio(stream)
    if math.isinf(ratio):  # the expert wrote nothing in these sessions, the policy did: no ratio to remember
        return 1.0, {"length_weight": 1.0}
    kept = 0.0 if smoothed is None else config.length_smoothing
    smoothed = kept * (smoothed or 0.0) + (1 - kept) * ratio
    weight = min(1.0, weight * (smoothed / config.length_target) ** config.length_gain)
    return weight, {"length_weight": weight, "memory_ratio": ratio, "memory_ratio/smoothed": smoothed}


def main(argv: Sequence[str] | None = None) -> None:
    if dry_run.asked(argv):
        dry_run.main(["rl", *dry_run.arguments(argv)])
        return
    config = parse_args(RLConfig, argv, "Reinforcement learning of memory construction (ADRPO).")
    if config.model.path is None:
        raise ConfigError("model.path: name the folder or model to start from (trainer.sft writes OUT/model)")
    run = start_run(config, "rl")
    builds, steering, dialogues = rl_builds(config, run.embedder)
    held_out = expert_builds(
        dialogues, run.embedder, load_scheme(config.scheme, config.prompts), "rules build the held-out banks"
    )
    policy, tokenizer = Policy(load_model(config.model.path, config.model)), load_tokenizer(config.model.path)
    reference = frozen_copy(policy) if config.loss.kl_coef else None
    engine = make_engine(config, config.model.path)
    collector = make_collector(config, engine, tokenizer, run.embedder, run.world)

    def evaluate() -> dict[str, float]:
        return judge_policy(held_out, collector, "evaluation").metrics()

    with run.world.watched():
        folder = train(config, policy, reference, collector, builds, steering, run.log, run.accelerator, evaluate)
    run.log.close()
    engine.close()
    run.accelerator.print(f"saved {folder}")


if __name__ == "__main__":
    with clear_errors("trainer.rl"):
        main()
