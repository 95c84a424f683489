"""Files and models written so that a reader finds either the whole of them or none, also after a power cut."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from membuilder.errors import CheckpointError

if TYPE_CHECKING:
    from accelerate import Accelerator


def save_model(accelerator: "Accelerator", policy, tokenizer, folder: Path) -> Path:
    """Write a Hugging Face folder (safetensors and tokenizer) beside its place, then rename it there."""
    state = accelerator.get_state_dict(policy)
    if accelerator.is_main_process:
        model = accelerator.unwrap_model(policy).model
        # DeepSpeed gives a tied weight once for each of its names; here too it must be one tensor, which is saved once
        first: dict[int, str] = {}
        weights = {
            name: state[f"model.{first.setdefault(id(parameter), name)}"]
            for name, parameter in model.state_dict(keep_vars=True).items()
        }
        partial = folder.with_name(folder.name + ".partial")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            model.save_pretrained(partial, state_dict=weights)
            write_all(partial, files_of(tokenizer))
            fsync_tree(partial)
            shutil.rmtree(folder, ignore_errors=True)
            durable_rename(partial, folder)
        except (OSError, SafetensorError) as error:  # a full disk, a folder we may not write
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(f"could not save the model to '{folder}': {error}; earlier files are kept") from error
    accelerator.wait_for_everyone()
    return folder


def files_of(*parts) -> dict[str, bytes]:
    """What the parts' `save_pretrained` write, by path: a tokenizer's writer has no error of its own for a full disk."""
    with TemporaryDirectory() as name:
        for part in parts:
            part.save_pretrained(name)
        files = [path for path in Path(name).rglob("*") if path.is_file()]
        return {path.relative_to(name).as_posix(): path.read_bytes() for path in files}


def write_all(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def write_file(path: Path, data: bytes) -> None:
    """Replace a file, or create it. Raises CheckpointError and leaves the old one where that fails."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        durable_rename(partial, path)
    except OSError as error:
        free = free_bytes(path.parent)
        partial.unlink(missing_ok=True)
        raise CheckpointError(
            f"could not write '{path}' ({len(data)} bytes, {free} free on its disk): {error}; what stood there is kept"
        ) from error


def durable_rename(source: Path, target: Path) -> None:
    """A rename that is on the disk itself once this returns; what is renamed must be there already."""
    os.replace(source, target)
    fsync(target.parent)


def fsync_tree(folder: Path) -> None:
    """Every file and folder under `folder`, and itself, is on the disk itself once this returns."""
    for path in (*folder.rglob("*"), folder):
        fsync(path)


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(folder: Path) -> int:
    """Left on the disk of a folder, which need not exist yet; a user's quota may allow less."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(nearest).free
