"""Saving a model so that a reader finds either the whole of it or none."""

import os
import shutil
from pathlib import Path

from accelerate import Accelerator

from membuilder.errors import CheckpointError


def save_model(accelerator: Accelerator, policy, tokenizer, folder: Path) -> Path:
    """Write a Hugging Face folder (safetensors and tokenizer) beside its place, then rename it there."""
    state = accelerator.get_state_dict(policy)
    if accelerator.is_main_process:
        model = accelerator.unwrap_model(policy).model
        weights = {name: state[f"model.{name}"] for name in model.state_dict()}
        partial = folder.with_name(folder.name + ".partial")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            model.save_pretrained(partial, state_dict=weights)
            tokenizer.save_pretrained(partial)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
        except OSError as error:  # a full disk, a folder we may not write
            raise CheckpointError(f"could not save the model to '{folder}': {error}; earlier files are kept") from error
    accelerator.wait_for_everyone()
    return folder
