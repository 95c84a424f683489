"""The policy losses: pure functions from per-token numbers to a per-token loss and detached metrics.

Every tensor is (M,): one value for each completion token that carries loss, over all agents and rollouts of a
micro-batch. The caller scales the tokens (`LossConfig.aggregation`) and sums, so a loss never averages by itself. A
config names a loss by its function name here, or as `path/to/file.py:function`.

Letters: r is the probability of a token under the trainer over that under the proximal policy, A its advantage, w its
attribution weight; sg() lets no gradient through.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Generic, NoReturn, TypeVar

import torch

from membuilder.errors import ConfigError
from membuilder.plugins import load_function, place_of
from trainer.configs import KLEstimator, LossConfig

Column = TypeVar("Column")

MAX_LOG_RATIO = 20.0
"""Log-ratios are cut to this before exp, so that one stray token cannot make a step overflow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenValues(Generic[Column]):
    """What is known of sampled tokens before the model runs.

    A column holds one number per completion token: it is a tuple (of one sequence) or a tensor (M,) (of a micro-batch).
    """

    advantage: Column
    weight: Column
    """Attribution weight of the agent that wrote the token, in its rollout."""
    truncated: Column
    """1 where the completion was cut at the length limit, else 0."""
    rollout_logprobs: Column
    """Log-probs that the engine reported when it sampled."""
    proximal_logprobs: Column | None = None
    """Log-probs under the policy at the start of the step's updates, computed by the trainer. None where there is one
    update: its own forward pass gives them."""

    def columns(self) -> dict[str, Column]:
        """Return the columns that are present, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(TokenValues)}
        return {name: column for name, column in found.items() if column is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class LossInputs(TokenValues[torch.Tensor]):
    """What a loss is given: `TokenValues` with `proximal_logprobs` present, and what the models say of the tokens."""

    trainer_logprobs: torch.Tensor
    """Log-probs under the policy being trained, with a gradient."""
    entropy: torch.Tensor
    """Entropy of the trained policy's distribution over the vocabulary at this token, with a gradient."""
    ref_logprobs: torch.Tensor | None
    """Log-probs under the frozen reference; None when kl_coef is 0."""
    sequence: torch.Tensor
    """int64 number of the completion that the token belongs to, from 0, without gaps."""


Metrics = dict[str, torch.Tensor]
Loss = Callable[[LossInputs, LossConfig], tuple[torch.Tensor, Metrics]]


def per_token(loss: Loss) -> Loss:
    """Mark a loss in which no token depends on another; without the mark the head does one more matmul."""
    loss.per_token = True
    return loss


@per_token
def adrpo(inputs: LossInputs, config: LossConfig) -> tuple[torch.Tensor, Metrics]:
    """-min(w r A, w clip(r) A) + beta KL - eta H: the attribution weight scales both sides of the min.

    This is the objective of MemBuilder (arXiv 2601.05488). If only the unclipped side were weighted, the weight would
    boost penalties only: for A > 0 and w > 1 the min would always take the unweighted side.
    """
    objective, clipping = clipped_objective(inputs, config)
    penalty, divergence = regularizer(inputs, config)
    return -inputs.weight * objective + penalty, clipping | divergence


@per_token
def grpo(inputs: LossInputs, config: LossConfig) -> tuple[torch.Tensor, Metrics]:
    """-min(r A, clip(r) A) + beta KL - eta H (Shao et al. 2024, arXiv 2402.03300); ignores attribution.

    It is as published with `aggregation: sequence`; later work takes the mean over tokens, the default here. Dr. GRPO
    (arXiv 2503.20783) has the same term: `loss.name: dr_grpo` sets the two keys in which it differs.
    """
    objective, clipping = clipped_objective(inputs, config)
    penalty, divergence = regularizer(inputs, config)
    return -objective + penalty, clipping | divergence


@per_token
def dapo(inputs: LossInputs, config: LossConfig) -> tuple[torch.Tensor, Metrics]:
    """GRPO with a higher upper clip, a mean over tokens and no signal from cut completions (arXiv 2503.14476).

    Masked tokens still count in the mean, so masking some does not make the others weigh more.
    """
    objective, clipping = clipped_objective(inputs, config)
    penalty, divergence = regularizer(inputs, config)
    metrics = clipping | divergence | {"overlong_masked/mean": inputs.truncated}
    return -(1 - inputs.truncated) * objective + penalty, metrics


def gspo(inputs: LossInputs, config: LossConfig) -> tuple[torch.Tensor, Metrics]:
    """-min(s A, clip(s) A) with s = exp(mean log r) of the completion (Zheng et al. 2025, arXiv 2507.18071, eq. 5).

    It is computed per token, s_t = sg(s) trainer / sg(trainer): its value is s, and each token gets a gradient. The
    published settings are `aggregation: sequence`, `clip: 3e-4` and `clip_high: 4e-4`.
    """
    log_ratio = inputs.trainer_logprobs - inputs.proximal_logprobs
    mean = sequence_mean(log_ratio.detach(), inputs.sequence)
    ratio = (mean + inputs.trainer_logprobs - inputs.trainer_logprobs.detach()).clamp(max=MAX_LOG_RATIO).exp()
    objective, clipping = clipped_objective(inputs, config, ratio)
    penalty, divergence = regularizer(inputs, config)
    return -objective + penalty, clipping | divergence


@per_token
def cispo(inputs: LossInputs, config: LossConfig) -> tuple[torch.Tensor, Metrics]:
    """-sg(clip(r)) A log trainer (MiniMax-M1, arXiv 2506.13585).

    The clipped ratio is a weight without gradient, so every token keeps the gradient of its log-prob.
    """
    ratio = token_ratio(inputs).detach()
    low, high = bounds(config)
    clipping = {"clip_ratio/mean": ((ratio < low) | (ratio > high)).float()}
    correction, mismatch = mismatch_correction(inputs, config)
    penalty, divergence = regularizer(inputs, config)
    objective = ratio.clamp(low, high) * inputs.advantage * inputs.trainer_logprobs * correction
    return -objective + penalty, clipping | mismatch | divergence


@per_token
def reinforce(inputs: LossInputs, config: LossConfig) -> tuple[torch.Tensor, Metrics]:
    """-A log trainer (Williams 1992), which is right for one update per batch of samples."""
    correction, mismatch = mismatch_correction(inputs, config)
    penalty, divergence = regularizer(inputs, config)
    return -inputs.advantage * inputs.trainer_logprobs * correction + penalty, mismatch | divergence


def bounds(config: LossConfig) -> tuple[float, float]:
    """Return the lowest and the highest ratio that is not clipped."""
    return 1 - config.clip, 1 + (config.clip if config.clip_high is None else config.clip_high)


def token_ratio(inputs: LossInputs) -> torch.Tensor:
    """r = trainer / proximal, the ratio of each token's probabilities."""
    return (inputs.trainer_logprobs - inputs.proximal_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def clipped_objective(
    inputs: LossInputs, config: LossConfig, ratio: torch.Tensor | None = None
) -> tuple[torch.Tensor, Metrics]:
    """min(r A, clip(r) A) per token, corrected for the engine's mismatch where the config says so.

    `ratio` (M,) takes the place of r = trainer / proximal.
    """
    ratio = token_ratio(inputs) if ratio is None else ratio
    unclipped, clipped = ratio * inputs.advantage, ratio.clamp(*bounds(config)) * inputs.advantage
    metrics = {"clip_ratio/mean": (clipped < unclipped).float().detach()}
    objective = torch.minimum(unclipped, clipped)
    if config.dual_clip is not None:  # the min leaves r A unbounded where A < 0: one token could rule a whole update
        lowest = config.dual_clip * inputs.advantage
        capped = (inputs.advantage < 0) & (objective < lowest)
        metrics["clip_ratio/dual"] = capped.float()
        objective = torch.where(capped, lowest, objective)
    correction, mismatch = mismatch_correction(inputs, config)
    return objective * correction, metrics | mismatch


def mismatch_correction(inputs: LossInputs, config: LossConfig) -> tuple[torch.Tensor, Metrics]:
    """Return the factor, without gradient, of a policy term whose tokens the engine sampled and not the trainer.

    `tis_cap` gives min(proximal / rollout, cap) per token (Espeholt et al. 2018, arXiv 1802.01561). `sequence_mask`
    gives 0 for a completion whose geometric mean of that ratio leaves the band; a product would shrink with length.
    """
    log_mismatch = (inputs.proximal_logprobs - inputs.rollout_logprobs).detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    correction, metrics = torch.ones_like(log_mismatch), {}
    if config.tis_cap is not None:
        metrics["sampling/importance_sampling_ratio/mean"] = log_mismatch.exp()
        correction = log_mismatch.exp().clamp(max=config.tis_cap)
    if config.sequence_mask is not None:
        low, high = config.sequence_mask
        geometric = sequence_mean(log_mismatch, inputs.sequence).exp()
        kept = (geometric >= low) & (geometric <= high)
        metrics["sampling/sequence_masked/mean"] = 1 - kept.float()
        correction = correction * kept
    return correction, metrics


def regularizer(inputs: LossInputs, config: LossConfig) -> tuple[torch.Tensor, Metrics]:
    """kl_coef KL(trainer || reference) - entropy_coef H, per token, where H is the entropy; its metric is `kl`."""
    # at a coefficient of 0 the entropies must not be used: the head then leaves their gradient out
    bonus = config.entropy_coef * inputs.entropy if config.entropy_coef else torch.zeros_like(inputs.entropy)
    if inputs.ref_logprobs is None:
        return -bonus, {}
    difference = (inputs.ref_logprobs - inputs.trainer_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if config.kl_estimator is KLEstimator.K1:
        divergence = -difference
    elif config.kl_estimator is KLEstimator.K2:
        divergence = difference.square() / 2
    else:
        divergence = difference.expm1() - difference
    return config.kl_coef * divergence - bonus, {"kl": divergence.detach()}


def sequence_mean(values: torch.Tensor, sequence: torch.Tensor) -> torch.Tensor:
    """Return the mean of `values` over each token's completion, (M,)."""
    # there are at most as many completions as tokens; to count them, the host would have to wait for the GPU
    sums = torch.zeros_like(values).index_add(0, sequence, values)
    return sums[sequence] / sequence_lengths(sequence, values.dtype)


def sequence_lengths(sequence: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the number of tokens of each token's completion, (M,)."""
    ones = torch.ones(sequence.shape, dtype=dtype, device=sequence.device)
    return torch.zeros_like(ones).index_add(0, sequence, ones)[sequence]


LOSSES: dict[str, Loss] = {loss.__name__: loss for loss in (adrpo, grpo, dapo, gspo, cispo, reinforce)}


def resolve_loss(name: str) -> Loss:
    """Return the loss a config names. Raises ConfigError naming the known ones."""
    if name in LOSSES:
        return LOSSES[name]
    if ":" in name:
        return load_function(name, "inputs", "config")
    raise ConfigError(f"loss.name: '{name}' is none of {sorted(LOSSES)}; your own loss is path/to/file.py:function")


def checked(loss: Loss, result: object, logprobs: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
    """Return what a loss gave for `logprobs` (M,). Raises ConfigError, with the loss's file and line, for what is none.

    A scalar would be scaled as if it were a token's loss, which is another objective.
    """

    def refuse(problem: str) -> NoReturn:
        expected = f"return (loss, metrics), the loss and each metric a tensor of shape ({len(logprobs)},)"
        raise ConfigError(f"loss.name: {place_of(loss)} {problem}; {expected}")

    match result:
        case (torch.Tensor() as values, Mapping() as metrics):
            pass
        case _:
            refuse(f"returns {type(result).__name__}, not a pair of a loss and metrics")
    for name, column in {"the loss": values, **metrics}.items():
        if not isinstance(column, torch.Tensor) or column.shape != logprobs.shape:
            shape = tuple(column.shape) if isinstance(column, torch.Tensor) else type(column).__name__
            refuse(f"gives {name} as {shape}")
    if logprobs.requires_grad and torch.is_grad_enabled() and not values.requires_grad:
        refuse("gives a loss without a gradient: use inputs.trainer_logprobs, not detached")
    return values, dict(metrics)


def has_silent_terms(loss: Loss, config: LossConfig) -> bool:
    """Tell whether completions of advantage 0 may have a gradient: by KL, entropy, or what a loss of one's own adds."""
    return bool(config.kl_coef or config.entropy_coef) or loss not in LOSSES.values()


def needs_whole_sequences(loss: Loss, config: LossConfig) -> bool:
    """Tell whether tokens of one completion may depend on each other, so that the loss needs all of them at once."""
    return config.sequence_mask is not None or not getattr(loss, "per_token", False)
