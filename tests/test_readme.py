"""What the README shows must work."""

import json
import re
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch

from membuilder.config import known_keys, load
from membuilder.embedding.local import DEFAULT_PACKAGE
from trainer.configs import LossConfig
from trainer.losses import LossInputs, resolve_loss
from trainer.rl_config import RLConfig
from trainer.sft_config import SFTConfig

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
RESULTS = Path(__file__).parent / "benchmarks/results"
PAGE = (RESULTS.parent / "README.md").read_text(encoding="utf-8")


def test_the_loss_of_the_readme_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "my_loss.py").write_text(code, encoding="utf-8")
    loss = resolve_loss(f"{tmp_path / 'my_loss.py'}:sqrt_weighted")
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    inputs = LossInputs(
        trainer_logprobs=logprobs,
        entropy=torch.zeros(2),
        proximal_logprobs=logprobs.detach(),
        rollout_logprobs=logprobs.detach(),
        ref_logprobs=None,
        advantage=torch.tensor([1.0, -0.5]),
        weight=torch.tensor([4.0, 1.0]),
        truncated=torch.zeros(2),
        sequence=torch.tensor([0, 0]),
    )
    per_token, _ = loss(inputs, LossConfig(kl_coef=0))
    assert per_token.tolist() == [-2.0, 0.5]  # -sqrt(4) * 1 and -sqrt(1) * -0.5


def test_every_path_the_readme_names_exists():
    root = Path(__file__).parent.parent
    for path in re.findall(r"(?:configs|launch|tests)/[\w/.]+\.(?:yaml|sh|json|md)", README):
        assert (root / path).is_file(), path
    for path in re.findall(r"`(\w+\.json)`", README + PAGE):
        assert (RESULTS / path).is_file(), path
    assert "@@" not in README


def result(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def test_the_learner_table_is_that_of_the_result_file():
    shapes: dict[tuple[int, int], dict] = {}
    for row in result("learner_cpu")["rows"]:
        shapes.setdefault((row["hidden"], row["P"]), {})[row["impl"]] = row
    for (hidden, prompt), each in shapes.items():
        shared, rivals = each["shared"], (each["dense"], each["trl"])
        speeds = " | ".join(f"{rival['seconds'] / shared['seconds']:.1f}x" for rival in rivals)
        gaps = f"{shared['logprob_gap']:.1e} | {shared['gradient_gap']:.1e}"
        peaks = ", ".join(f"{row['peak_mb']:.0f}" for row in (shared, *rivals))
        assert f"| {hidden} | {prompt}, {shared['R']} | {speeds} | {gaps} | {peaks} MB |" in README


def test_the_head_table_is_that_of_the_result_file():
    heads: dict[int, dict] = {}
    for row in result("head_cpu")["rows"]:
        heads.setdefault(row["rows"], {})[row["impl"]] = row
    for rows, each in heads.items():
        memory = " | ".join(f"{each[name]['extra_mb']:.0f} MB" for name in ("fused", "plain", "liger"))
        speeds = ", ".join(f"{each[name]['seconds'] / each['fused']['seconds']:.1f}x" for name in ("plain", "liger"))
        assert f"| {rows:,} | {memory} | {speeds} |" in README


@pytest.mark.parametrize(
    ("name", "page", "labels"),
    [
        ("locomo", README, ("rules", "turns, MiniLM", "turns, BM25", "turns, both")),
        ("longmemeval_s", PAGE, ("rules", "turns, MiniLM", "turns, BM25", "sessions, MiniLM", "sessions, BM25")),
    ],
)
def test_evidence_recall_is_that_of_the_result_files(name, page, labels):
    suffix = {"MiniLM": "", "BM25": "-bm25", "both": "-hybrid"}
    for label in labels:
        unit, _, method = label.partition("s, ")
        system = f"rag-{unit}{suffix[method]}" if method else label
        recall = result(f"retrieval_{name}")["systems"][system]["figures"]["evidence_recall"]
        assert f"| {label} | " + " | ".join(f"{recall[k]:.3f}" for k in ("5", "10", "20")) + " |" in page


# Known defect 32: a README whose formula, base model and defaults were not the code's


def default(key: str) -> Any:
    return reduce(getattr, key.split("."), RLConfig())


def named_keys(cell: str) -> list[str]:
    """The keys of RLConfig in a cell of the table; `.other` belongs to the section of the key before it."""
    keys: list[str] = []
    for name in re.findall(r"`([\w.]+)`", cell):
        full = keys[-1].rpartition(".")[0] + name if name.startswith(".") else name
        if full in known_keys(RLConfig):
            keys.append(full)
    return keys


def test_every_default_in_the_table_of_keys_is_the_codes():
    table = README.split("## Configuration, for users of the published code")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    seen = {}
    for _, ours, *told in rows:
        keys, values = named_keys(ours), told[0].strip("` ").split(", ") if told else []
        assert len(keys) == len(values) or not keys, ours
        seen |= dict(zip(keys, values, strict=True))
    assert seen.pop("embedding_model") == "MiniLM" and default("embedding_model") is None
    assert "minilm" in DEFAULT_PACKAGE
    assert {key: type(default(key))(text) for key, text in seen.items()} == {key: default(key) for key in seen}
    assert len(seen) >= 16


def test_the_numbers_of_the_formulas_are_the_defaults():
    section = README.split("## The reward")[1].split("\n## ")[0]
    for pattern, key in (
        (r"format x qa x \(1 - ([\d.]+) x length\)", "reward.length_weight"),
        (r"questions \(at most (\d+)\)", "reward.num_questions"),
        (r"the top (\d+) of the\s+whole bank", "reward.top_k"),
        (r"alpha = (\d+)", "reward.alpha"),
    ):
        assert float(re.search(pattern, section).group(1)) == default(key), key
    limit = re.search(r"a core beyond ([\d,]+)\s+characters", README).group(1)
    assert int(limit.replace(",", "")) == default("prompts.core_limit_chars")


def test_every_key_the_readme_names_exists():
    sections = {key for key, each in known_keys(RLConfig).items() if each.section} | {"optim", "data"}
    for name in re.findall(r"`(\w+(?:\.\w+)+)(?:=[^`]*)?`", README):
        first = name.split(".")[0]
        if first in sections and not name.endswith((".py", ".yaml", ".json")):
            assert name in known_keys(RLConfig) or name in known_keys(SFTConfig), name
    losses = re.search(r"`loss.name` is one of (.*?) \(", README, re.DOTALL).group(1)
    for name in re.findall(r"`(\w+)`", losses):
        resolve_loss(name)


def test_the_configs_of_published_size_hold_the_published_numbers():
    root = Path(__file__).parent.parent / "configs"
    sft, rl = load(SFTConfig, root / "sft_qwen3_4b_8gpu.yaml"), load(RLConfig, root / "rl_qwen3_4b_8gpu.yaml")
    assert (sft.model.path, sft.optim.lr, sft.num_epochs) == ("Qwen/Qwen3-4B-Instruct-2507", 5e-7, 10)
    assert (sft.optim.warmup_ratio, sft.optim.max_grad_norm) == (0.1, 0.1)
    assert (rl.num_rollouts, rl.sampling.temperature, rl.sampling.top_p, rl.sampling.max_tokens) == (8, 0.8, 0.9, 6000)
    assert (rl.optim.lr, rl.loss.kl_coef, rl.loss.clip) == (1e-6, 0.02, 0.2)
    assert (rl.reward.length_weight, rl.reward.alpha) == (0.8, 4.0)
