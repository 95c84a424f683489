"""Policy losses a researcher edits: pure functions from per-token numbers to a per-token loss and detached metrics.

Every tensor is (M,): one value per completion token that carries loss, over all agents and rollouts of a micro-batch.
The caller sums the loss and divides by the global count of loss tokens, so a loss never averages by itself.
A config names a loss by its function name here, or as `path/to/file.py:function`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from membuilder.errors import ConfigError
from membuilder.plugins import load_function


@dataclass(kw_only=True)
class LossConfig:
    name: str = "adrpo"
    """Function in trainer/losses.py, or path/to/file.py:function."""
    clip: float = 0.2
    """Trust region of the probability ratio: [1 - clip, 1 + clip]."""
    kl_coef: float = 0.02
    """Weight of the k3 divergence from the reference; 0 drops the reference pass."""
    tis_cap: float | None = None
    """Cap of the truncated importance weight behaviour / rollout; null: no correction."""

    def __post_init__(self) -> None:
        if not 0 < self.clip < 1 or self.kl_coef < 0 or (self.tis_cap is not None and self.tis_cap <= 0):
            raise ValueError("need 0 < clip < 1, kl_coef >= 0, tis_cap > 0 or null")


@dataclass(frozen=True, kw_only=True, slots=True)
class LossInputs:
    trainer_logprobs: torch.Tensor
    """Under the policy being trained; the only one with a gradient."""
    behaviour_logprobs: torch.Tensor
    """Under the policy at the start of this batch's updates, as the trainer computes it."""
    rollout_logprobs: torch.Tensor
    """As the engine reported them when it sampled."""
    ref_logprobs: torch.Tensor | None
    """Under the frozen reference; None when kl_coef is 0."""
    advantage: torch.Tensor
    weight: torch.Tensor
    """Attribution weight of the token's agent in its rollout."""


Metrics = dict[str, torch.Tensor]
Loss = Callable[[LossInputs, LossConfig], tuple[torch.Tensor, Metrics]]


def adrpo(inputs: LossInputs, config: LossConfig) -> tuple[torch.Tensor, Metrics]:
    """-min(w r A, w clip(r) A) + beta KL: the attribution weight scales both sides of the min.

    Objective of MemBuilder (arXiv 2601.05488). Weighting the unclipped side alone would boost only penalties: for
    A > 0 and w > 1 the min then always takes the unweighted side.
    """
    policy, metrics = clipped_objective(inputs, config)
    penalty = kl_penalty(inputs, config, metrics)
    return -inputs.weight * policy + penalty, metrics


def grpo(inputs: LossInputs, config: LossConfig) -> tuple[torch.Tensor, Metrics]:
    """-min(r A, clip(r) A) + beta KL (Shao et al. 2024, arXiv 2402.03300); ignores attribution."""
    policy, metrics = clipped_objective(inputs, config)
    return -policy + kl_penalty(inputs, config, metrics), metrics


def clipped_objective(inputs: LossInputs, config: LossConfig) -> tuple[torch.Tensor, Metrics]:
    """min(r A, clip(r) A) per token, r = exp(trainer - behaviour), times the truncated importance weight if set."""
    ratio = (inputs.trainer_logprobs - inputs.behaviour_logprobs).clamp(-20, 20).exp()
    unclipped = ratio * inputs.advantage
    clipped = ratio.clamp(1 - config.clip, 1 + config.clip) * inputs.advantage
    objective = torch.minimum(unclipped, clipped)
    metrics = {"clip_ratio/mean": (clipped < unclipped).float()}
    if config.tis_cap is not None:
        # samples come from the engine's distribution: Espeholt et al. 2018 (arXiv 1802.01561), per token
        mismatch = (inputs.behaviour_logprobs - inputs.rollout_logprobs).clamp(-20, 20).exp()
        objective = objective * mismatch.clamp(max=config.tis_cap).detach()
        metrics["sampling/importance_sampling_ratio/mean"] = mismatch
    return objective, {name: value.detach() for name, value in metrics.items()}


def kl_penalty(inputs: LossInputs, config: LossConfig, metrics: Metrics) -> torch.Tensor:
    """kl_coef times k3 = exp(d) - d - 1 with d = ref - trainer (Schulman 2020); adds `kl` to the metrics."""
    if inputs.ref_logprobs is None:
        return torch.zeros_like(inputs.trainer_logprobs)
    difference = (inputs.ref_logprobs - inputs.trainer_logprobs).clamp(-20, 20)
    k3 = difference.expm1() - difference
    metrics["kl"] = k3.detach()
    return config.kl_coef * k3


def resolve_loss(name: str) -> Loss:
    """The loss a config names. Raises ConfigError naming the known ones."""
    known = {"adrpo": adrpo, "grpo": grpo}
    if name in known:
        return known[name]
    if ":" in name:
        return load_function(name)
    raise ConfigError(f"loss.name: '{name}' is none of {sorted(known)}; a loss of your own is path/to/file.py:function")
