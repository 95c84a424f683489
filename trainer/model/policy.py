"""The model being trained, as one module whose forward goes from packed tokens to log-probs.

Head and backbone run inside one forward, so a wrapper (DDP, DeepSpeed) sees every parameter it has to gather.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from membuilder.errors import ConfigError
from trainer.batching.packing import PackedBatch
from trainer.model.head import Head, HeadOutput, LossOutput, Objective
from trainer.model.shared_prefix import hidden_states, use_shared_prefix
from trainer.model.tiny_model import TinyConfig


@dataclass(kw_only=True)
class ModelConfig:
    path: str | None = None
    """Hugging Face folder or model name; null: a tiny model is made from `tiny`."""
    tiny: TinyConfig = field(default_factory=TinyConfig)
    dtype: str = "bfloat16"
    """Of the trained weights: bfloat16 or float32."""
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in ("bfloat16", "float32"):
            raise ValueError(f"dtype must be bfloat16 or float32, got '{self.dtype}'")


def load_model(path: str | Path, config: ModelConfig) -> PreTrainedModel:
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, config.dtype))
    except (OSError, ValueError) as error:  # a folder or hub name the user gave
        raise ConfigError(f"no model at '{path}': name a Hugging Face folder or model ({error})") from error
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def _check_plain_head(model: PreTrainedModel) -> None:
    """Our head computes softmax(hidden @ weight^T): one that does more would be silently wrong."""
    config = model.config
    scaled = [
        name
        for name in ("logit_scale", "logits_scaling", "final_logit_softcapping", "lm_head_multiplier")
        if getattr(config, name, None) not in (None, 1, 1.0)
    ]
    if getattr(model.get_output_embeddings(), "bias", None) is not None or scaled:
        raise ValueError(f"models whose head has a bias or scales its logits are not supported: {scaled or 'bias'}")


class Policy(torch.nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        use_shared_prefix(model)
        _check_plain_head(model)
        model.set_output_embeddings(Head(model.get_output_embeddings().weight))
        self.model = model

    def forward(
        self, batch: PackedBatch, temperature: float = 1.0, objective: Objective | None = None
    ) -> HeadOutput | LossOutput:
        """Log-prob and entropy of every target row (M,) of a packed batch, without gradient; or the loss on them."""
        hidden = hidden_states(self.model, batch)
        return self.model.get_output_embeddings()(hidden, batch.targets, temperature, objective)
