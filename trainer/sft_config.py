"""Every setting of the SFT loop. `python -m trainer.sft --help` prints them."""

from dataclasses import dataclass, field

from membuilder.value_types import PartialShare, PositiveInt
from trainer.configs import OptimConfig, OverLong, TrainConfig


@dataclass(kw_only=True)
class SFTConfig(TrainConfig):
    """The settings of supervised fine-tuning on an expert's memory operations."""

    out: str = "runs/sft"
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=5e-7, warmup_ratio=0.1, max_grad_norm=0.1))
    num_epochs: PositiveInt = 10
    max_steps: PositiveInt | None = None
    """Optimizer steps in all, however many epochs that is; null: as `num_epochs` says."""
    sessions_per_step: PositiveInt = 16
    max_length: PositiveInt = 20000
    """Longest sample, prompt and completion, in tokens."""
    over_long: OverLong = OverLong.DROP
    """What becomes of longer samples; they are counted (trainer/data/truncation.py)."""
    validation_share: PartialShare = 0.05
    """Share of the sessions that are not trained on, but kept for the validation loss."""
    save_every: PositiveInt = 1000
