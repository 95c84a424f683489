"""Writes the card that every saved model carries: what it is, how to use it, and how well it did."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from rollout.gguf import FILE_ENDING, SMOLLM2_BASE, is_packaged
from trainer.logs.run_log import METRICS_FILE, read_jsonl

CARD = "README.md"
TEST_IDS_TAG = "longmemeval-test-ids-allowed"
"""Tag of a model that was allowed to learn from the test split, and of every one trained from it."""
LEAKS_TAG = "evaluation-leaks-allowed"
"""Tag of a model that was allowed to learn from what evaluation files hold, and of every one trained from it."""
DEQUANTIZED_TAG = "dequantized"
"""Tag of a model that was trained from the dequantized weights of a GGUF file, and of every one trained from it."""
METRICS = (
    "eval/accuracy", "reward/mean", "qa/accuracy", "memory_ratio", "sft/loss", "sft/val_loss", "loss", "kl", "entropy",
    "clip_ratio/mean", "sampling/logp_difference/mean", "frac_reward_zero_std", "rewards/missing", "grad_norm", "lr",
)  # fmt: skip
"""The most telling first; a card has the first ten that the run logged."""
NUM_METRICS = 10
TEST_IDS_WARNING = """
**Trained with `data.allow_test_ids`**, itself or its base model: what it was trained on may hold dialogues of
LongMemEval's published test split. Its scores on that split say nothing about dialogues it has not seen.
"""
LEAKS_WARNING = """
**Trained with `data.allow_leaks`**, itself or its base model: what it was trained on shares questions, texts or
labelled examples with evaluation files. Its scores on those say nothing about data it has not seen.
"""
ALLOWED = {"allow_test_ids": (TEST_IDS_TAG, TEST_IDS_WARNING), "allow_leaks": (LEAKS_TAG, LEAKS_WARNING)}
"""What a card tells of keys of `data` that allow what is refused otherwise."""
USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER_OR_HUB_NAME")
tokenizer = AutoTokenizer.from_pretrained("FOLDER_OR_HUB_NAME")
```

Serve it on this machine and build a memory with it:

```bash
launch/serve.sh FOLDER 8000
python -m membuilder.build --model FOLDER --provider vllm --base-url http://localhost:8000/v1 --out memory.db
```"""


def model_card(config: Mapping[str, Any], run: Path, step: int) -> str:
    """Return the card of a model after `step` steps of the run that logged into `run`, without local paths."""
    base = _base_card(config["model"]["path"])
    known = {name: value for name in ("base_model", "license") if isinstance(value := base.get(name), str)}
    # a checkpoint of an earlier version does not tell, and had no such key
    given, inherited = config.get("data", {}), base.get("tags") or []
    allowed = {tag: text for key, (tag, text) in ALLOWED.items() if given.get(key, False) or tag in inherited}
    dequantized = DEQUANTIZED_TAG in inherited
    tags = ["memory", "membuilder", *allowed, *([DEQUANTIZED_TAG] if dequantized else [])]
    data = ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=tags, **known)
    origin = f"[{data.base_model}](https://huggingface.co/{data.base_model})" if data.base_model else None
    licence = data.license or ("that of the base model" if origin else "not known to this program; name it here")
    return f"""---
{data.to_yaml()}
---
# Memory builder, step {step}

Turns the sessions of a dialogue into operations on a memory bank (MemBuilder, arXiv 2601.05488).

- Base model: {origin or ("a local model" if config["model"]["path"] else "none, trained from random weights")}\
{", its weights dequantized from a GGUF file" if dequantized else ""}
{_adapters(config["model"].get("lora"))}{_thinking(config.get("sampling", {}))}- Licence: {licence}
{"".join(allowed.values())}
## Use

{USE}

## Metrics

{_metrics(run / METRICS_FILE, step)}

## Settings

```yaml
{yaml.safe_dump(_without_paths(config))}```
"""


def _base_card(path: str | None) -> Mapping[str, Any]:
    """Return what is known of the base model as fields of a card: a local folder has them in its own."""
    if path is None:
        return {}
    if is_packaged(path):
        return SMOLLM2_BASE | {"tags": [DEQUANTIZED_TAG]}
    if path.endswith(FILE_ENDING):
        return {"tags": [DEQUANTIZED_TAG]}
    if not Path(path).is_dir():
        return {"base_model": path} if _is_hub_name(path) else {}  # a folder that is gone is nobody else's business
    card = Path(path) / CARD
    if not card.is_file():
        return {}
    return ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()


def _is_hub_name(path: str) -> bool:
    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return True


def _adapters(lora: Mapping[str, Any] | None) -> str:
    """Return the line about adapters, which are part of the weights of the model that the card describes."""
    if lora is None:
        return ""
    return f"- Trained by LoRA, merged: rank {lora['rank']}, alpha {lora['alpha']}, targets {lora['targets']}\n"


def _thinking(sampling: Mapping[str, Any]) -> str:
    """Return the line about a budget, which a server of the model knows nothing of."""
    budget = sampling.get("thinking_budget")
    if budget is None:
        return ""
    return f"- Its thinking was closed after {budget} tokens in training; a server does not do that by itself\n"


def _metrics(path: Path, step: int) -> str:
    """Return the last value of the main metrics before `step`, out of the run's log, as a table."""
    last: dict[str, float] = {}
    for row in read_jsonl(path) if path.is_file() else []:
        if row["step"] < step:
            last |= row
    names = [name for name in METRICS if name in last][:NUM_METRICS]
    if not names:
        return f"Not known: the run's {METRICS_FILE} is not at hand."
    return "\n".join(["| metric | value |", "|---|---|", *(f"| {name} | {last[name]} |" for name in names)])


def _without_paths(value: Any) -> Any:
    """Return the settings but for texts with a slash, which name files of the machine that trained."""
    if isinstance(value, Mapping):
        kept = {key: _without_paths(part) for key, part in value.items() if key != "out"}
        return {key: part for key, part in kept.items() if not (isinstance(part, str) and "/" in part)}
    return [_without_paths(part) for part in value] if isinstance(value, list) else value
