"""What TRL's own code makes of rewards and log-probs, some groups of which are silent; tests/test_trl.py compares ours.

    pip install --no-deps --target DIR trl==1.16.0 datasets pandas python-dateutil six dill multiprocess xxhash
    PYTHONPATH=DIR python -m tests.benchmarks.trl_losses --out tests/benchmarks/results/trl_losses.json

`GRPOTrainer._compute_loss` is called as it stands on a stand-in for the trainer that holds settings and the model's
numbers. Everything is float64.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch

from tests.benchmarks.common import write

REWARDS = {
    "all_groups_carry": [[1.0, 0.0, 0.5, 0.0], [0.2, 0.2, 0.8, 0.2], [0.0, 1.0, 1.0, 1.0], [0.6, 0.4, 0.0, 0.1]],
    "one_of_two_silent": [[1.0, 0.0, 0.5, 0.0], [0.3, 0.3, 0.3, 0.3]],
    "seven_of_eight_silent": [[1.0, 0.0, 0.5, 0.0], *[[0.25 * k, 0.25 * k, 0.25 * k, 0.25 * k] for k in range(7)]],
}
AGGREGATIONS = {"sequence": "grpo", "token": "bnpo", "constant": "dr_grpo"}
"""Our name of the mean, and TRL's name of the loss that takes it."""
MAX_TOKENS = 7
SETTINGS = ({"beta": 0.0, "entropy_coef": 0.0}, {"beta": 0.1, "entropy_coef": 0.0}, {"beta": 0.1, "entropy_coef": 0.05})
CLIP = 0.2


def numbers(rewards: list[list[float]]) -> dict[str, torch.Tensor]:
    """Return what is known of each completion token, (B, T), and which tokens there are."""
    rng, num = torch.Generator().manual_seed(7), sum(map(len, rewards))
    lengths = torch.randint(1, MAX_TOKENS + 1, (num,), generator=rng)
    logprobs = -3 * torch.rand(num, MAX_TOKENS, generator=rng, dtype=torch.float64)
    noise = torch.randn(2, num, MAX_TOKENS, generator=rng, dtype=torch.float64)
    return {
        "mask": (torch.arange(MAX_TOKENS) < lengths[:, None]).long(),
        "logprobs": logprobs,
        "proximal": logprobs + 0.3 * noise[0],
        "reference": logprobs + 0.5 * noise[1],
        "entropy": torch.rand(num, MAX_TOKENS, generator=rng, dtype=torch.float64),
    }


def trl_advantages(rewards: list[list[float]]) -> torch.Tensor:
    """(B,), as `GRPOTrainer` divides by the group's sample deviation (`scale_rewards="group"`)."""
    groups = torch.tensor(rewards, dtype=torch.float64)
    return ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten()


def trl_loss(known: dict[str, torch.Tensor], advantages: torch.Tensor, loss_type: str, settings: dict) -> dict:
    """Return TRL's loss and its gradients by log-probs and entropies."""
    from trl import GRPOTrainer

    logprobs, entropy = (known[name].clone().requires_grad_() for name in ("logprobs", "entropy"))
    whole = SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x, num_processes=1, sync_gradients=True)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, entropy, None),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        accelerator=whole,
        model=SimpleNamespace(training=True),
        _metrics={"train": defaultdict(list)},
        loss_type=loss_type,
        beta=settings["beta"],
        entropy_coef=settings["entropy_coef"],
        _entropy_bonus_enabled=settings["entropy_coef"] > 0,
        use_adaptive_entropy=False,
        epsilon_low=CLIP,
        epsilon_high=CLIP,
        max_completion_length=MAX_TOKENS,
        current_gradient_accumulation_steps=1,
        importance_sampling_level="token",
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        aux_loss_enabled=False,
        use_vllm=False,
    )
    ids = torch.zeros_like(known["mask"])
    inputs = {
        **{
            "prompt_ids": ids[:, :1],
            "prompt_mask": ids[:, :1],
            "completion_ids": ids,
            "completion_mask": known["mask"],
        },
        **{"advantages": advantages, "old_per_token_logps": known["proximal"]},
        "ref_per_token_logps": known["reference"],
    }
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    loss.backward()
    real = known["mask"].bool()
    by_entropy = torch.zeros_like(entropy) if entropy.grad is None else entropy.grad
    gradients = {"by_logprob": logprobs.grad[real].tolist(), "by_entropy": by_entropy[real].tolist()}
    return {"loss": loss.item(), **gradients}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    cases = []
    for name, rewards in REWARDS.items():
        known, advantages = numbers(rewards), trl_advantages(rewards)
        for aggregation, loss_type in AGGREGATIONS.items():
            for settings in SETTINGS:
                # TRL's entropy bonus is a mean over tokens whatever the loss: it can be compared where ours is one too
                if settings["entropy_coef"] and aggregation != "token":
                    continue
                result = trl_loss(known, advantages, loss_type, settings)
                case = {"rewards": name, "aggregation": aggregation, "loss_type": loss_type, **settings}
                cases.append({**case, "advantages": advantages.tolist(), **result})
    write(args.out, cases)


if __name__ == "__main__":
    main()
