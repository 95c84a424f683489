"""The model being trained, as one module whose forward goes from packed tokens to log-probs.

Head and backbone run inside one forward, so a wrapper (DDP, DeepSpeed) sees every parameter it has to gather.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from membuilder.errors import ConfigError
from rollout.policy_folder import PolicyFolder, load_policy
from trainer.batching.packing import PackedBatch
from trainer.configs import ModelConfig
from trainer.model import dense_copies, shared_prefix
from trainer.model.head import Head, HeadOutput, Impl, LogitScaling, LossFunction, LossOutput
from trainer.model.lora import adapted_layers, keep_adapters_alone
from trainer.model.router_replay import Replay, contexts_of_checkpoint, no_counts, replaying
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
        loaded.model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": contexts_of_checkpoint})
    return loaded


SCALES = ("logit_scale", "lm_head_multiplier", "logits_scaling")
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""What the configurations of transformers call them; make_policy.py proves the numbers that come of it."""


def logit_scaling(config: PreTrainedConfig) -> LogitScaling:
    """Return what a model makes of its logits. Raises ConfigError for a value that is no number, or 0."""
    text = config.get_text_config()
    found = {name: getattr(text, name, None) for name in (*SCALES, *CAPS)}
    scale, cap = 1.0, None
    for name, value in found.items():
        if value is None:
            continue
        if not isinstance(value, int | float) or not value:
            raise ConfigError(f"the model's config.json has {name}={value!r}: only numbers other than 0 are supported")
        if name in CAPS:
            cap = value
        elif name == "logits_scaling" and text.model_type != "hyperclovax":
            scale /= value  # Granite, MiniCPM 3; HyperCLOVA X multiplies by what it calls the same
        else:
            scale *= value
    return LogitScaling(scale=scale, cap=cap)


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
        self.replays_experts = False  # use_router_replay of router_replay.py sets it
        self.windows = windows_of(model) if shares_prompts else ()
        own = model.get_output_embeddings()
        model.set_output_embeddings(Head(own.weight, own.bias, logit_scaling(model.config), head_impl))
        self.model = model
        if adapted_layers(model):
            keep_adapters_alone(self)

    def forward(
        self,
        batch: PackedBatch,
        temperature: float = 1.0,
        loss: LossFunction | None = None,
        whole_sequences: bool = False,
        own_experts: bool = False,
    ) -> HeadOutput | LossOutput:
        """Return log-probs and entropies (M,) of a batch's targets, without gradient, or the loss on them.

        With `own_experts` routers choose by themselves, whatever an engine chose for the batch.
        """
        experts = None
        if self.replays_experts and not own_experts:
            experts = batch.experts if self.shares_prompts else dense_copies.expert_rows_of(batch)
        replay = None if experts is None else Replay(experts=experts)
        with replaying(replay):
            if self.shares_prompts:
                hidden = shared_prefix.hidden_states(self.model, batch)
            else:
                hidden = dense_copies.hidden_states(self.model, batch.sequences)
        output = self.model.get_output_embeddings()(hidden, batch.targets, temperature, loss, whole_sequences)
        if self.replays_experts and isinstance(output, LossOutput):
            counts = no_counts(hidden.device) if replay is None else replay.metrics()
            output = output._replace(metrics=output.metrics | counts)
        return output
