"""Every setting of the SFT loop. `python -m trainer.sft --help` prints them."""

from dataclasses import dataclass, field

from trainer.configs import OptimConfig, OverLong, TrainConfig


@dataclass(kw_only=True)
class SFTConfig(TrainConfig):
    """The settings of supervised fine-tuning on an expert's memory operations."""

    out: str = "runs/sft"
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=5e-7, warmup_ratio=0.1, max_grad_norm=0.1))
    num_epochs: int = 10
    max_steps: int | None = None
    """Optimizer steps in all, however many epochs that is; null: as `num_epochs` says."""
    sessions_per_step: int = 16
    max_length: int = 20000
    """Longest sample, prompt and completion, in tokens."""
    over_long: OverLong = OverLong.DROP
    """What becomes of longer samples; they are counted (trainer/data/truncation.py)."""
    validation_share: float = 0.05
    """Share of the sessions that are not trained on, but kept for the validation loss."""
    save_every: int = 1000

    def __post_init__(self) -> None:
        max_steps = 1 if self.max_steps is None else self.max_steps
        if min(self.num_epochs, self.sessions_per_step, self.max_tokens, max_steps, self.save_every) < 1:
            raise ValueError("num_epochs, max_steps, sessions_per_step, max_tokens and save_every must be at least 1")
