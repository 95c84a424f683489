"""The model being trained, as one module whose forward goes from packed tokens to log-probs.

Head and backbone run inside one forward, so a wrapper (DDP, DeepSpeed) sees every parameter it has to gather.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from membuilder.errors import ConfigError
from rollout.policy_folder import PolicyFolder, load_policy
from trainer.batching.packing import PackedBatch
from trainer.configs import ModelConfig
from trainer.model import dense_copies, shared_prefix
from trainer.model.head import Head, HeadOutput, Impl, LossFunction, LossOutput
from trainer.model.lora import adapted_layers, keep_adapters_alone
from trainer.model.shared_prefix import use_shared_prefix, windows_of


def load_trainable(
    path: str | Path,
    config: ModelConfig,
    lengths: Mapping[str, int] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> PolicyFolder:
    """Return the model and tokenizer of a folder or hub name as a run trains them; see `load_policy`."""
    dtype = getattr(torch, config.dtype)
    loaded = load_policy(path, dtype=dtype, lengths=lengths, template_kwargs=template_kwargs)
    if config.gradient_checkpointing:
        loaded.model.gradient_checkpointing_enable({"use_reentrant": False})
    return loaded


def _check_plain_head(model: PreTrainedModel) -> None:
    """Refuse models whose head does more than softmax(hidden @ weight^T), which is what ours computes."""
    config = model.config.get_text_config()
    scaled = [
        name
        for name in ("logit_scale", "logits_scaling", "final_logit_softcapping", "lm_head_multiplier")
        if getattr(config, name, None) not in (None, 1, 1.0)
    ]
    if getattr(model.get_output_embeddings(), "bias", None) is not None or scaled:
        raise ConfigError(f"models whose head has a bias or scales its logits are not supported: {scaled or 'bias'}")


def shares_prompts(policy: torch.nn.Module) -> bool:
    """Tell whether a policy, in a wrapper or not, runs what a session's prompts share once."""
    return getattr(policy, "module", policy).shares_prompts


def windows(policy: torch.nn.Module) -> tuple[int, ...]:
    """Return the sizes of the sliding windows that a policy's batches are packed for; none where copies are run."""
    return getattr(policy, "module", policy).windows


class Policy(torch.nn.Module):
    """A decoder that runs the sequences of packed prefix trees, with our head in place of its own."""

    def __init__(self, model: PreTrainedModel, shares_prompts: bool = True, head_impl: Impl = "auto") -> None:
        """Replace the model's head, and where prompts are shared its attention; make_policy.py proves the numbers."""
        super().__init__()
        if shares_prompts:
            use_shared_prefix(model)
        self.shares_prompts = shares_prompts
        self.windows = windows_of(model) if shares_prompts else ()
        _check_plain_head(model)
        model.set_output_embeddings(Head(model.get_output_embeddings().weight, head_impl))
        self.model = model
        if adapted_layers(model):
            keep_adapters_alone(self)

    def forward(
        self,
        batch: PackedBatch,
        temperature: float = 1.0,
        loss: LossFunction | None = None,
        whole_sequences: bool = False,
    ) -> HeadOutput | LossOutput:
        """Return log-probs and entropies (M,) of a batch's targets, without gradient, or the loss on them."""
        if self.shares_prompts:
            hidden = shared_prefix.hidden_states(self.model, batch)
        else:
            hidden = dense_copies.hidden_states(self.model, batch.sequences)
        return self.model.get_output_embeddings()(hidden, batch.targets, temperature, loss, whole_sequences)
