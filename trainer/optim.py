"""AdamW groups and the learning-rate schedule."""

import math

import torch

from trainer.configs import OptimConfig


def make_optimizer(model: torch.nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW that decays matrices alone: no norm, no bias, no embedding, nor a head that is tied to one."""
    modules = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    embeddings = {id(parameter) for module in modules for parameter in module.parameters()}
    decayed, plain = [], []
    for parameter in filter(lambda each: each.requires_grad, model.parameters()):
        (decayed if parameter.ndim >= 2 and id(parameter) not in embeddings else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]  # of adapters there are matrices alone
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2))


def learning_rate(step: int, num_steps: int, config: OptimConfig) -> float:
    """Return the rate of step `step` (from 0) out of `num_steps`: it warms up linearly, then follows a cosine."""
    num_warmup = math.ceil(config.warmup_ratio * num_steps)
    if step < num_warmup:
        return config.lr * (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    floor = config.min_lr_ratio
    return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
