"""Adapters of low rank over a frozen model (LoRA, Hu et al. 2021, arXiv 2106.09685), as the library `peft` makes them.

An adapted layer computes W x + alpha / rank * B A x: W stays as it was loaded, A and B are float32 and trained. Outside
of this file a model has parameters that are trained and others, and weights under its own names: `merged_weights`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from membuilder.errors import ConfigError
from trainer.configs import ALL_LINEAR, LoRAConfig

NOT_ZERO3 = (
    "model.lora does not run under ZeRO-3, which divides the frozen weights that adapters are merged with: start with "
    "configs/accelerate/zero2.yaml, or model.lora=null"
)
READ_AS_EXPERTS = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
"""Names that peft takes, in a mixture, for those of experts and routers, and puts adapters over their tensors for."""
BASE = ".base_layer."
"""What peft puts into the name of a weight of a layer that got an adapter."""


def add_adapters(model: PreTrainedModel, config: LoRAConfig) -> None:
    """Freeze a model and put adapters over its layers; they add zero until they are trained.

    Raises ConfigError for a target that names no layer an adapter can stand on.
    """
    from peft import LoraConfig, inject_adapter_in_model  # here: only runs with adapters load it

    experts = expert_tensors(model)
    untouched = READ_AS_EXPERTS if experts else ()
    found = [name for name in _target_names(model) if not _ends([name], *untouched)]
    unknown = [] if config.targets == ALL_LINEAR else [name for name in config.targets if not _ends(found, name)]
    if stacked := [name for name in unknown if _ends(experts, name) or _ends([name], *untouched)]:
        raise ConfigError(
            f"model.lora.targets={list(config.targets)}: {' and '.join(stacked)} is of the experts of "
            f"{type(model).__name__}, over which no adapter stands here: leave it out (experts then stay as they are), "
            "or train the whole model (model.lora=null)"
        )
    if unknown or not config.targets:
        there = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in found))
        raise ConfigError(
            f"model.lora.targets={list(config.targets)}: {' and '.join(unknown) or 'no name'} is no linear layer below "
            f"the head of {type(model).__name__}; there are {there}, or {ALL_LINEAR}"
        )
    targets = config.targets if config.targets == ALL_LINEAR else list(config.targets)
    if experts and targets == ALL_LINEAR:
        targets = sorted({name.rpartition(".")[2] for name in found})
    inject_adapter_in_model(
        LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            target_modules=targets,
            task_type="CAUSAL_LM",
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
            base_model_name_or_path=model.name_or_path,
        ),
        model,
    )
    for parameter in trained_parameters(model):
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))


def _target_names(model: PreTrainedModel) -> list[str]:
    """Return the names of the layers that adapters can stand on: all linear ones but the head."""
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    ]


def expert_tensors(model: PreTrainedModel) -> list[str]:
    """Return the names of the parameters that hold a matrix for each expert; adapters stand on none of them."""
    return [
        f"{path}.{name}"
        for path, module in model.named_modules()
        if not isinstance(module, torch.nn.Conv1d)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3
    ]


def _ends(names: list[str], *ends: str) -> bool:
    return any(f".{name}".endswith(f".{end}") for name in names for end in ends)


def adapted_layers(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    """Return the layers that have adapters by their names; none in a model that is trained whole."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "base_layer")}


def trained_parameters(model: torch.nn.Module) -> Iterator[torch.nn.Parameter]:
    return (parameter for parameter in model.parameters() if parameter.requires_grad)


def base_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return all weights of a model under its own names, without adapters."""
    inside = tuple(f"{name}." for name in adapted_layers(model))
    return {
        name.replace(BASE, "."): tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if BASE in name or not name.startswith(inside)
    }


def merged_weights(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield all weights of a model under its own names, adapters added to them: one layer at a time, in new tensors."""
    layers = adapted_layers(model)
    for name, tensor in base_weights(model).items():
        layer = layers.get(name.removesuffix(".weight"))
        yield name, tensor if layer is None else _merged(layer)


@torch.no_grad()
def _merged(layer: torch.nn.Module) -> torch.Tensor:
    """Return W + alpha / rank * B A, rounded once to the type of W."""
    (adapter,) = layer.active_adapters
    weight = layer.base_layer.weight
    return layer.get_delta_weight(adapter).add_(weight).to(weight.dtype)


class WithoutAdapters(torch.nn.Module):
    """Runs a policy as it was before its adapters, without a second copy of it."""

    def __init__(self, policy: torch.nn.Module) -> None:
        super().__init__()
        self.policy = policy

    @property
    def model(self) -> PreTrainedModel:
        return self.policy.model

    def forward(self, *args, **kwargs):
        """Return what the policy returns."""
        with _adapters_off(self.model):
            return self.policy(*args, **kwargs)


@contextmanager
def _adapters_off(model: PreTrainedModel) -> Iterator[None]:
    layers = adapted_layers(model).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def keep_adapters_alone(policy: torch.nn.Module) -> None:
    """Leave what is frozen out of the state that a policy saves and loads: checkpoints then hold no copy of it."""

    def frozen(prefix: str) -> set[str]:
        parameters = policy.named_parameters(prefix.removesuffix("."), remove_duplicate=False)
        return {name for name, parameter in parameters if not parameter.requires_grad}

    def leave_out(_, state: dict, prefix: str, __) -> None:
        for name in frozen(prefix) & state.keys():
            del state[name]

    def expect_none(_, incompatible) -> None:
        names = frozen("") | frozen("module.")  # DDP's own prefix
        incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if name not in names]

    policy.register_state_dict_post_hook(leave_out)
    policy.register_load_state_dict_post_hook(expect_none)


def write_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Write a model's adapters into a folder that exists, as `peft.PeftModel.from_pretrained` reads them."""
    ((adapter, config),) = model.peft_config.items()
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    weights = {
        f"base_model.model.{name.replace(f'.{adapter}.', '.')}": each.detach().cpu() for name, each in trained.items()
    }
    config.save_pretrained(str(folder))
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
