"""Writes a checkpoint as a Hugging Face folder, which transformers and vLLM load.

    python -m trainer.export runs/rl/checkpoints/step_40 exported
    launch/serve.sh exported

The folder holds safetensors in shards, tokenizer, generation config, and a model card with the run's settings and
metrics. Checkpoints of one process, DDP and DeepSpeed are taken, whatever their number of processes; no GPU is needed.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from membuilder.errors import ConfigError, clear_errors
from membuilder.quiet import hide_loading_bars
from trainer.checkpoint import folders
from trainer.checkpoint.files import files_of, model_folder, write_all
from trainer.checkpoint.folders import MODEL, Manifest
from trainer.logs.run_log import METRICS_FILE, read_jsonl

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

    hide_loading_bars()
    dtype = getattr(torch, manifest.meta["config"]["model"]["dtype"])
    model = _model(checkpoint / MODEL, checkpoint / "state", dtype)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint / MODEL)
    with model_folder(target) as partial:
        model.save_pretrained(partial, max_shard_size=shard_size)
        write_all(partial, files_of(tokenizer) | {"README.md": model_card(checkpoint, manifest).encode()})
    return target


def _model(folder: Path, state: Path, dtype: "torch.dtype") -> "PreTrainedModel":
    """The model whose configuration stands in `folder`, with the weights of `state`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    weights = {name.removeprefix(PREFIX): tensor.to(dtype) for name, tensor in _weights(state).items()}
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _weights(state: Path) -> dict[str, "torch.Tensor"]:
    """The policy's weights as Accelerate or DeepSpeed saved them; float32 from the latter."""
    if (state / "pytorch_model").is_dir():
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        return get_fp32_state_dict_from_zero_checkpoint(str(state), tag="pytorch_model")
    from safetensors.torch import load_file

    return {
        name: tensor for path in sorted(state.glob("model*.safetensors")) for name, tensor in load_file(path).items()
    }


def model_card(checkpoint: Path, manifest: Manifest) -> str:
    """What the model is, how it was trained and how well it did, as a Hugging Face README."""
    settings, path = manifest.meta["settings"], manifest.meta["config"]["model"]["path"]
    origin = f"`{path}`" if path else "random weights"
    metrics = "\n".join(_metrics(checkpoint, manifest.step))
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [memory, membuilder]
---
# Memory builder, step {manifest.step}

Turns the sessions of a dialogue into operations on a memory bank (MemBuilder). Trained from {origin}.

## Metrics

{metrics}

## Settings

```yaml
{yaml.safe_dump(settings)}```
"""


def _metrics(checkpoint: Path, step: int) -> list[str]:
    """The last value of each metric up to the checkpoint, out of the run's log."""
    path = checkpoint.absolute().parent.parent / METRICS_FILE
    if not path.is_file():
        return [f"Not known: the run's {METRICS_FILE} does not stand beside its checkpoints."]
    last: dict[str, float] = {}
    for row in read_jsonl(path):
        if row["step"] < step:
            last |= {name: value for name, value in row.items() if name not in ("step", "nonfinite")}
    return ["| metric | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in sorted(last.items()))]


@clear_errors("trainer.export")
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m trainer.export", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="a folder OUT/checkpoints/step_N")
    parser.add_argument("folder", type=Path, help="folder to write; it must not exist")
    given = parser.parse_args(argv)
    print(f"wrote {export(given.checkpoint, given.folder)}")


if __name__ == "__main__":
    main()
