"""Whether LLaMA-Factory and veRL read what `membuilder.prepare` exports, by their own dataset code, on a CPU.

    python -m tests.benchmarks.other_loaders --env /tmp/other-loaders

Makes an environment of their own in the folder (about 1.8 GB, some minutes; it stays for the next time), exports
scripted trajectories with odd texts, has read_elsewhere.py read them there and compares with our records. The result
tells versions, numbers of examples, tokens of the first, and how many are equal. The exit status is 1 if any is not.

Both are installed without what their dataset code never touches (GPU engines, web pages). LLaMA-Factory imports
torchaudio, of which the usual index has a CUDA build alone: its compiled part is removed, and text needs none of it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from membuilder import prepare
from membuilder.files import write_atomic
from membuilder.trajectories.published_formats import read_llama_factory, read_verl
from rollout.gguf import SMOLLM2, model_folder
from rollout.tokens import encode_completion, encode_prompt, load_tokenizer
from tests.benchmarks.common import header
from tests.scripted import talk
from tests.test_expert import THREE, make
from tests.test_qa_generation import Scripted, keep_all, sample, two_questions

HERE = Path(__file__).parent
TORCH = "torch==2.13.0"
NEEDED = (
    "transformers==5.5.4", "accelerate==1.11.0", "datasets==4.0.0", "peft==0.18.1", "trl==0.24.0", "ray>=2.41",
    "tensordict==0.10.0", "torchdata", "av<=16.0.0", "omegaconf", "hydra-core", "codetiming", "dill", "cachetools",
    "pillow", "pandas", "pyarrow", "numpy", "sentencepiece", "protobuf",
)  # fmt: skip
WITHOUT_THE_REST = ("llamafactory==0.9.5", "verl==0.9.1", "torchaudio==2.11.1")
ODD = talk(
    ['I paint <image> cats 猫 🐈 and say "hi".', "{{content}}"], ["```json\n{}\n```\nBread\u2028again."], name="odd/é"
)
IGNORED = -100
"""The label of tokens that carry no loss."""


def make_environment(folder: Path) -> Path:
    """Return the Python of an environment in which both libraries' dataset code runs."""
    python = folder / "bin/python"
    if (folder / "complete").exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    index = os.environ.get("MEMBUILDER_TORCH_INDEX")  # as in launch/setup.sh
    install = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, TORCH, *(["--index-url", index] if index else [])], check=True)
    subprocess.run([*install, TORCH, *NEEDED], check=True)
    subprocess.run([*install, "--no-deps", *WITHOUT_THE_REST], check=True)
    for library in folder.glob("lib/python*/site-packages/torchaudio/lib/*.so"):
        library.unlink()
    (folder / "complete").touch()
    return python


def export(root: Path) -> None:
    """Write files of both shapes, and a real tokenizer."""
    for number, dialogue in enumerate((THREE, ODD)):
        sample(make(root / "set" / str(number), dialogue, keep_all), Scripted(two_questions))
    common = ["--trajectories-dir", str(root / "set"), "--output-file"]
    for arguments in (
        ["sft", *common, str(root / "sft.json"), "--to", "llama-factory", "--write-out"],
        ["rl", *common, str(root / "rl.parquet"), "--to", "verl"],
        ["rl", *common, str(root / "rl_flat.parquet"), "--to", "verl-flat"],
    ):
        assert prepare.main(arguments) == 0
    (root / "dataset_info.json").write_text(json.dumps({"sft": {"file_name": "sft.json"}}))
    load_tokenizer(model_folder(SMOLLM2)).save_pretrained(root / "tokenizer")


def compare_sft(root: Path, tokenizer: PreTrainedTokenizerBase, read: Sequence[dict]) -> dict:
    """Tell how many examples have our prompt's and answer's token ids, as LLaMA-Factory would train on them."""
    records, left_out = read_llama_factory(root / "sft.json")
    outputs = [row["output"] for row in json.loads((root / "sft.json").read_text(encoding="utf-8"))]
    assert not left_out
    prompts = [[token for token, label in _pairs(row) if label == IGNORED] for row in read]
    answers = [[label for label in row["labels"] if label != IGNORED] for row in read]
    end = tokenizer.encode("\n")  # its template ends an answer by a line break
    return {
        "records": len(records),
        "examples": len(read),
        "first_prompt_tokens": len(prompts[0]),
        "first_answer_tokens": len(answers[0]),
        "equal_prompts": _equal(prompts, [encode_prompt(tokenizer, each.prompt) for each in records]),
        "equal_answers": _equal(answers, [encode_completion(tokenizer, text) + end for text in outputs]),
    }


def compare_rl(path: Path, tokenizer: PreTrainedTokenizerBase, read: Sequence[dict]) -> dict:
    """Tell how many prompts have our messages and token ids, as veRL would sample from them."""
    records, left_out = read_verl(path)
    calls = [call for record in records for call in record.calls]
    assert not left_out
    messages = [[{"role": "user", "content": call.prompt}] for call in calls]
    ids = [encode_prompt(tokenizer, call.prompt) for call in calls]
    return {
        "sessions": len(records),
        "records": len(calls),
        "examples": len(read),
        "first_prompt_tokens": len(read[0]["prompt_token_ids"]),
        "equal_messages": _equal([row["messages"] for row in read], messages),
        "equal_prompts": _equal([row["prompt_token_ids"] for row in read], ids),
        "indices": len({row["index"] for row in read}),
    }


def _pairs(row: dict) -> zip:
    return zip(row["input_ids"], row["labels"], strict=True)


def _equal(found: Sequence, wanted: Sequence) -> int:
    return sum(pair[0] == pair[1] for pair in zip(found, wanted, strict=True))


def is_equal(found: dict) -> bool:
    """Tell whether every record was read, and read as it is."""
    return all(found[name] == found["records"] for name in found if name == "examples" or name.startswith("equal_"))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=Path, required=True, help="folder of the other environment, made if not there")
    parser.add_argument("--out", type=Path, default=HERE / "results/other_loaders.json")
    given = parser.parse_args(argv)
    python = make_environment(given.env.absolute())
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        export(root)
        quiet = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(root / "hub"), "PYTHONPATH": ""}
        subprocess.run([python, HERE / "read_elsewhere.py", root], check=True, env=os.environ | quiet)
        read = json.loads((root / "read.json").read_text(encoding="utf-8"))
        tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer")
        found = {
            "llama_factory": compare_sft(root, tokenizer, read["llama_factory"]),
            "verl": compare_rl(root / "rl.parquet", tokenizer, read["verl"]),
            "verl_flat": compare_rl(root / "rl_flat.parquet", tokenizer, read["verl_flat"]),
        }
    result = header() | {"what": __doc__.splitlines()[0], "other_versions": read["versions"]} | found
    write_atomic(given.out, json.dumps(result, indent=2) + "\n")
    print(json.dumps(found, indent=2))
    return 0 if all(map(is_equal, found.values())) else 1


if __name__ == "__main__":
    sys.exit(main())
