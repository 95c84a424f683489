"""Reads exported files with LLaMA-Factory's and veRL's own dataset code. It runs in their environment, without ours.

    ENV/bin/python tests/benchmarks/read_elsewhere.py FOLDER

FOLDER holds sft.json with dataset_info.json, rl.parquet, rl_flat.parquet and tokenizer/; what was read comes to
FOLDER/read.json: of LLaMA-Factory the token ids it would train on, of veRL the prompts it would sample from.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

MAX_TOKENS = 20000
"""The published cutoff of prompts and samples; LLaMA-Factory cuts at 2,048 tokens unless it is told otherwise."""
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""As the tokenizer's own chat template has it; LLaMA-Factory's template of the model ends it in a full stop."""
LIBRARIES = ("llamafactory", "verl", "torch", "transformers", "datasets", "pyarrow")


def with_llama_factory(folder: Path) -> list[dict]:
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments, ModelArguments
    from transformers import AutoTokenizer, Seq2SeqTrainingArguments

    data = DataArguments(
        dataset="sft",
        dataset_dir=str(folder),
        template="smollm2",
        default_system=SYSTEM,
        cutoff_len=MAX_TOKENS,
        overwrite_cache=True,
    )
    model = ModelArguments(model_name_or_path=str(folder / "tokenizer"), cache_dir=str(folder / "cache"))
    training = Seq2SeqTrainingArguments(output_dir=str(folder / "out"), do_train=True, use_cpu=True)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    template = get_template_and_fix_tokenizer(tokenizer, data)
    found = get_dataset(template, model, data, training, stage="sft", tokenizer=tokenizer)
    return [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in found["train_dataset"]]


def with_verl(folder: Path, name: str) -> list[dict]:
    from omegaconf import OmegaConf
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer
    from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    config = OmegaConf.create({"cache_dir": str(folder / "cache"), "max_prompt_length": MAX_TOKENS})
    dataset = RLHFDataset(str(folder / name), tokenizer, config)
    rows = []
    for batch in DataLoader(dataset, batch_size=4, collate_fn=collate_fn):
        for number, messages in enumerate(batch["raw_prompt"]):
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            rest = {
                name: values[number] for name, values in batch.items() if name not in ("raw_prompt", "dummy_tensor")
            }
            rows.append({"messages": messages, "prompt_token_ids": ids} | rest)
    return rows


def main() -> None:
    folder = Path(sys.argv[1])
    read = {
        "versions": {"python": sys.version.split()[0]} | {name: version(name) for name in LIBRARIES},
        "llama_factory": with_llama_factory(folder),
        "verl": with_verl(folder, "rl.parquet"),
        "verl_flat": with_verl(folder, "rl_flat.parquet"),
    }
    (folder / "read.json").write_text(json.dumps(read, default=str), encoding="utf-8")


if __name__ == "__main__":
    main()
