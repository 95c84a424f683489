"""Models written so that a reader finds either the whole of them or none, also after a power cut."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from membuilder.errors import CheckpointError
from membuilder.files import durable_rename, fsync_tree
from trainer.checkpoint.model_card import CARD, model_card
from trainer.checkpoint.run_settings import resolved
from trainer.model.lora import adapted_layers, base_weights, merged_weights, write_adapter

if TYPE_CHECKING:
    from accelerate import Accelerator

    from trainer.configs import TrainConfig


def save_model(accelerator: "Accelerator", policy, tokenizer, config: "TrainConfig", step: int, name: str) -> Path:
    """Write the folder `name` of the run after `step` steps: safetensors, tokenizer and card, for Hugging Face.

    Adapters are merged into what stands there, and stand by themselves in the folder of `adapter_folder`.
    """
    folder = Path(config.out) / name
    state = accelerator.get_state_dict(policy)
    if accelerator.is_main_process:
        model = accelerator.unwrap_model(policy).model
        if adapted_layers(model):
            state = {f"model.{name}": tensor.cpu() for name, tensor in merged_weights(model)}
            with model_folder(adapter_folder(folder)) as partial:
                write_adapter(model, partial)
        # DeepSpeed gives a tied weight once for each of its names; here too it must be one tensor, which is saved once
        first: dict[int, str] = {}
        weights = {
            name: state[f"model.{first.setdefault(id(parameter), name)}"]
            for name, parameter in base_weights(model).items()
        }
        with model_folder(folder) as partial:
            model.save_pretrained(partial, state_dict=weights)
            card = model_card(resolved(config), folder.parent, step)
            write_all(partial, files_of(tokenizer) | {CARD: card.encode()})
    accelerator.wait_for_everyone()
    return folder


def adapter_folder(folder: Path) -> Path:
    """Return where the adapters of a merged model stand: `adapter` beside `model`, else with the model's name."""
    return folder.with_name("adapter" if folder.name == "model" else f"{folder.name}_adapter")


@contextmanager
def model_folder(folder: Path) -> Iterator[Path]:
    """Give a folder beside `folder` to write a model to, which takes its place when the block ends without an error."""
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        yield partial
        fsync_tree(partial)
        shutil.rmtree(folder, ignore_errors=True)
        durable_rename(partial, folder)
    except (OSError, SafetensorError) as error:  # a full disk, a folder we may not write
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(f"could not save the model to '{folder}': {error}; earlier files are kept") from error


def files_of(*parts) -> dict[str, bytes]:
    """Return what the parts' `save_pretrained` write, by path: a tokenizer's writer does not report a full disk."""
    with TemporaryDirectory() as name:
        for part in parts:
            part.save_pretrained(name)
        files = [path for path in Path(name).rglob("*") if path.is_file()]
        return {path.relative_to(name).as_posix(): path.read_bytes() for path in files}


def write_all(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
