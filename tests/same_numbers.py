"""Do two commits train to the same numbers? Ten steps of SFT and five of RL, on one process and on two, bit for bit.

    python -m tests.same_numbers BEFORE [AFTER] [--folder DIR]        AFTER: the files as they are here

Both commits run the commands a user would type, in worktrees of their own, with the tiny model, real embeddings and the
transformers engine. Metrics (all but `time/`), every value of the journals and the weights must be equal. A change of
names is no change of numbers: what was renamed since stands in RENAMED, and both sides are compared under the new name.
One value may differ: `grad_norm` of RL was the last update's of a step and is now the largest, so it may be larger.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["data.num_train=12", "data.num_held_out=2", "data.num_steering=2", "max_tokens=250"]
TINY = ["vocab_size=600", "hidden_size=32", "num_layers=2", "intermediate_size=64"]
SFT = [
    "trainer.sft", "--config", "configs/quickstart_sft.yaml", *SMALL, *(f"model.tiny.{size}" for size in TINY),
    "data.num_extra=2", "sessions_per_step=7", "validation_share=0.02",
]  # fmt: skip
RL = [
    "trainer.rl", "--config", "configs/quickstart_rl.yaml", *SMALL, "engine=transformers", "num_steps=5",
    "sessions_per_step=3", "num_rollouts=6", "updates_per_step=2", "parity_every=2", "eval_every=4", "journal=true",
    "prompts.entries_shown=3", "sampling.max_tokens=16",
]  # fmt: skip
RUNS = {
    "sft": [*SFT, "max_steps=10"],
    "rl": RL,
    "rl_published": [
        *RL, "num_steps=2", "states=expert", "advantage_std=group", "length_target=null", "reward.length.scope=session",
        "loss.aggregation=sequence", "updates_per_step=1",
    ],
    "rl_sparse": [*RL, "num_steps=2", "dense=false", "sessions_per_step=60"],
}  # fmt: skip
"""Name -> module and arguments of a run; RL starts from a model that BEFORE trained for 80 steps."""
RENAMED: list[tuple[str, str]] = [
    (r"^(\.scored\[\d+\])\.group\.", r"\1."),
    (r"^(\.scored\[\d+\]\.scores\[\d+\])\.format\.", r"\1.parts.format."),
    (r"^(\.scored\[\d+\]\.scores\[\d+\])\.length\.", r"\1.parts.length_penalty."),
]
"""(pattern, replacement) over the paths of journal values and the names of metrics of BEFORE, as in `re.sub`."""


def run(checkout: Path, out: Path, arguments: list[str], processes: int) -> None:
    """One run in a checkout; its output goes to OUT.log."""
    python = [sys.executable, "-m"]
    if processes > 1:
        python += ["accelerate.commands.launch", "--config_file", "configs/accelerate/cpu2.yaml", "-m"]
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with open(f"{out}.log", "w") as log:
        done = subprocess.run(
            [*python, *arguments, f"out={out}"], cwd=checkout, env=environment, stdout=log, stderr=log, check=False
        )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} in {checkout} failed:\n{Path(f'{out}.log').read_text()[-3000:]}")


def renamed(name: str) -> str:
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Every value of a JSON document by its path."""
    if isinstance(value, dict):
        items = [(f"{path}.{key}", inner) for key, inner in value.items()]
    elif isinstance(value, list):
        items = [(f"{path}[{index}]", inner) for index, inner in enumerate(value)]
    else:
        return {renamed(path): value}
    return {name: leaf for inner_path, inner in items for name, leaf in leaves(inner, inner_path).items()}


def whole_prompts(journal: dict[str, Any]) -> dict[str, Any]:
    """Put what prompts begin with, which a group has once, back to where it stood before that."""
    for group in journal["scored"]:
        for role, beginning in group.pop("shared_prompts", {}).items():
            for samples in (rollout["samples"] for rollout in group["rollouts"]):
                if role in samples:
                    samples[role]["prompt_token_ids"][:0] = beginning
    return journal


def numbers(out: Path) -> dict[str, dict[str, Any]]:
    """File -> everything in it that two runs must share."""
    found: dict[str, dict[str, Any]] = {}
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        kept = {renamed(name): value for name, value in row.items() if not name.startswith("time/")}
        found[f"metrics of step {row['step']}"] = kept
    for path in sorted((out / "journal").glob("step_*.json")):
        found[f"journal {path.stem}"] = leaves(whole_prompts(json.loads(path.read_text())["content"]))
    found["weights"] = load_file(out / "model" / "model.safetensors")
    return found


def differences(before: dict[str, Any], after: dict[str, Any], larger: set[str]) -> list[str]:
    """What is not the same, each with both values; of the names in `larger`, what is smaller than before."""
    found = [f"only before: {name}" for name in before.keys() - after.keys()]
    found += [f"only after: {name}" for name in after.keys() - before.keys()]
    for name in before.keys() & after.keys():
        one, two = before[name], after[name]
        same = torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two or (name in larger and two > one)
        if not same:
            found.append(f"{name}: {one} -> {two}" if not isinstance(one, torch.Tensor) else name)
    return sorted(found)


def compare(before: Path, after: Path, larger: set[str]) -> int:
    """Print a line per file of a pair of runs; returns how many values differ. Those in `larger` may have grown."""
    one, two = numbers(before), numbers(after)
    total = 0
    for name in dict.fromkeys([*one, *two]):
        found = differences(one.get(name, {}), two.get(name, {}), larger)
        total += len(found)
        print(f"  {name}: {len(one.get(name, {}))} values, {len(found)} differ")
        for line in found[:5]:
            print(f"      {line[:300]}")
    return total


def worktree(commit: str, folder: Path) -> Path:
    subprocess.run(["git", "worktree", "add", "--detach", "--force", str(folder), commit], cwd=ROOT, check=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", help="commit")
    parser.add_argument("after", nargs="?", help="commit; default: the files as they are here")
    parser.add_argument(
        "--folder", type=Path, help="where runs are kept and, if there, taken from (default: a new one)"
    )
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=RUNS)
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="same_numbers_"))
    folder.mkdir(parents=True, exist_ok=True)
    checkout = folder / "before"
    if not checkout.exists():
        worktree(given.before, checkout)
    policy = folder / "policy"
    if not (policy / "model").exists():
        run(checkout, policy, [*SFT, "max_steps=80"], 1)
    now = ROOT if given.after is None else worktree(given.after, folder / "after")
    total = 0
    for processes in given.processes:
        for name in given.runs:
            arguments = RUNS[name] + ([f"model.path={policy}/model"] if name.startswith("rl") else [])
            old, new = folder / f"{name}_{processes}_before", folder / f"{name}_{processes}_after"
            if not (old / "model").exists():
                run(checkout, old, arguments, processes)
            subprocess.run(["rm", "-rf", str(new)], check=True)
            run(now, new, arguments, processes)
            print(f"{name}, {processes} process(es):")
            total += compare(old, new, {"grad_norm"} if name.startswith("rl") else set())
    print(f"{total} values differ" if total else "every value is the same")
    raise SystemExit(1 if total else 0)


if __name__ == "__main__":
    main()
