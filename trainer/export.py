"""Writes a checkpoint as a Hugging Face folder, which transformers and vLLM load.

    python -m trainer.export runs/rl/checkpoints/step_40 exported
    launch/serve.sh exported
    python -m trainer.export runs/rl/checkpoints/step_40 exported --push-to-hub me/my-memory --private

The folder holds safetensors in shards, tokenizer with chat template, generation config, and a model card.
Checkpoints of one process, DDP and DeepSpeed are taken, whatever their number of processes; no GPU is needed. Adapters
(`model.lora`) are merged into the model they were trained over, and stand by themselves in FOLDER_adapter.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from membuilder.command import ArgumentParser, clear_errors
from membuilder.errors import ConfigError, PushError
from membuilder.quiet import hide_loading_bars, quiet_libraries
from trainer.checkpoint import folders
from trainer.checkpoint.folders import MODEL

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

SHARD_SIZE = "5GB"
PREFIX = "model."
"""What trainer/model/policy.py puts before a weight's Hugging Face name."""


def export(checkpoint: Path, target: Path, shard_size: str = SHARD_SIZE) -> Path:
    """Verify the checkpoint and write it as a model to `target`, whole or not at all."""
    if target.exists():
        raise ConfigError(f"'{target}' exists: name another folder, or remove it")
    manifest = folders.verify(checkpoint)
    import torch  # here and below: neither --help nor a checkpoint that is refused waits for it
    from transformers import AutoTokenizer

    from trainer.checkpoint.files import files_of, model_folder, write_all
    from trainer.checkpoint.model_card import CARD, model_card

    hide_loading_bars()
    settings = manifest.meta["config"]
    dtype = getattr(torch, settings["model"]["dtype"])
    weights = _weights(checkpoint / "state")
    if settings["model"].get("lora") is not None:  # a checkpoint of an earlier version has no such key
        weights = _merged(weights, manifest.meta["settings"], target)
    model = _model(checkpoint / MODEL, weights, dtype)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint / MODEL)
    with model_folder(target) as partial:
        model.save_pretrained(partial, max_shard_size=shard_size)
        card = model_card(settings, checkpoint.absolute().parent.parent, manifest.step)
        write_all(partial, files_of(tokenizer) | {CARD: card.encode()})
    return target


def _model(folder: Path, weights: Mapping[str, "torch.Tensor"], dtype: "torch.dtype") -> "PreTrainedModel":
    """Return the model whose configuration stands in `folder`, with these weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    for name, tied_to in model.all_tied_weights_keys.items():  # a checkpoint has one of the two names
        weights.setdefault(name, weights.get(tied_to))
        weights.setdefault(tied_to, weights[name])
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _weights(state: Path) -> dict[str, "torch.Tensor"]:
    """Return the trained weights as Accelerate or DeepSpeed saved them; float32 from the latter."""
    if (state / "pytorch_model").is_dir():
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        saved = get_fp32_state_dict_from_zero_checkpoint(str(state), tag="pytorch_model")
    else:
        from safetensors.torch import load_file

        files = [load_file(path) for path in sorted(state.glob("model*.safetensors"))]
        saved = {name: tensor for file in files for name, tensor in file.items()}
    return {name.removeprefix(PREFIX): tensor for name, tensor in saved.items()}


def _merged(
    adapters: Mapping[str, "torch.Tensor"], settings: Mapping[str, Any], target: Path
) -> dict[str, "torch.Tensor"]:
    """Return the weights of the model that adapters were trained over, with them; write them alone beside `target`."""
    import torch
    from msgspec import convert

    from rollout.gguf import model_folder as base_folder
    from trainer.checkpoint.files import adapter_folder, model_folder
    from trainer.checkpoint.input_files import content_of
    from trainer.configs import ModelConfig
    from trainer.model.lora import add_adapters, merged_weights, write_adapter
    from trainer.model.policy import load_trainable

    config = convert(settings["model"], ModelConfig)
    base, known, beside = Path(config.path), settings["files"].get("model.path"), adapter_folder(target)
    if beside.exists():
        raise ConfigError(f"'{beside}' exists, where the adapters go: name another folder, or remove it")
    if known is not None and not (base.exists() and content_of(base) == known):
        raise ConfigError(f"'{base}' is no longer the model that the adapters were trained over: put it back")
    model = load_trainable(base_folder(config.path), config).model
    add_adapters(model, config.lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(adapters[name])
    with model_folder(beside) as partial:
        write_adapter(model, partial)
    return dict(merged_weights(model))


def push(folder: Path, repository: str, private: bool) -> str:
    """Upload a model folder to the hub, into a repository that is made where it is missing; return its address."""
    from httpx import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repository, commit_message="A memory builder (MemBuilder)")
    except (HTTPError, HfHubHTTPError, HFValidationError, OSError) as error:
        problem = f"{repository} was not uploaded ({error}); '{folder}' is whole: log in (`hf auth login`, or HF_TOKEN)"
        raise PushError(f"{problem} and run `hf upload {repository} {folder}`") from error
    return str(address)


@clear_errors("trainer.export")
def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m trainer.export", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="a folder OUT/checkpoints/step_N")
    parser.add_argument("folder", type=Path, help="folder to write; it must not exist")
    hub = "upload it too, into this repository of the hub, such as me/my-memory; log in by `hf auth login` or HF_TOKEN"
    parser.add_argument("--push-to-hub", metavar="NAME", help=hub)
    parser.add_argument("--private", action="store_true", help="a repository that is made shows itself to nobody else")
    given = parser.parse_args(argv)
    if given.private and given.push_to_hub is None:
        raise ConfigError("--private goes with --push-to-hub NAME")
    quiet_libraries(given.folder.with_name(f"{given.folder.name}.log"), at_once=False)
    print(f"wrote {export(given.checkpoint, given.folder)}")
    if given.push_to_hub is not None:
        print(f"uploaded to {push(given.folder, given.push_to_hub, given.private)}")


if __name__ == "__main__":
    main()
