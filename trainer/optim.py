"""AdamW groups and the learning-rate schedule."""

import math
from dataclasses import dataclass

import torch


@dataclass(kw_only=True)
class OptimConfig:
    lr: float = 1e-6
    """Peak learning rate."""
    weight_decay: float = 0.0
    """On matrices only; norms, biases and embeddings are never decayed."""
    beta1: float = 0.9
    beta2: float = 0.95
    warmup_ratio: float = 0.05
    """Share of all steps over which the rate rises linearly from 0."""
    min_lr_ratio: float = 0.1
    """Rate at the end, as a share of the peak (cosine in between)."""
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.max_grad_norm <= 0 or not 0 <= self.warmup_ratio < 1 or not 0 <= self.min_lr_ratio <= 1:
            raise ValueError("need lr > 0, max_grad_norm > 0, 0 <= warmup_ratio < 1 and 0 <= min_lr_ratio <= 1")


def make_optimizer(model: torch.nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        (decayed if parameter.ndim >= 2 and "embed" not in name else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2))


def learning_rate(step: int, num_steps: int, config: OptimConfig) -> float:
    """Rate of optimizer step `step` (from 0) out of `num_steps`: linear warm-up, then cosine."""
    num_warmup = math.ceil(config.warmup_ratio * num_steps)
    if step < num_warmup:
        return config.lr * (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    floor = config.min_lr_ratio
    return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
