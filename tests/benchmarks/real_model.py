"""Does a pretrained model learn to remember? SmolLM2-135M-Instruct, SFT on the rules' choices, then ADRPO.

    python -m tests.benchmarks.real_model --out FILE --hours 2 --data locomo10.json [--parts locomo operations]

`locomo` trains on conversations 26, 30, 41 and 42 and is judged on 43, 44 and 47; `generated` is the quickstart with
this model and more people, `quickstart` with its own few and more steps; `operations` imitates the expert's operations
in the published format, and is judged after SFT; `own_words` imitates a teacher that writes in words of its own
(tests/benchmarks/own_words.py).

Every other part is a run of `trainer.quickstart --resume` in a folder of `--folder`. A benchmark that is stopped goes
on with the same command, and `--hours` may be few: when they are over, the step in hand is saved and what has been
learned so far is evaluated. FILE is rewritten after every part.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np

from membuilder.evaluation.intervals import paired
from membuilder.files import write_atomic
from tests.benchmarks import own_words
from tests.benchmarks.common import header, train_until
from trainer.logs.run_log import METRICS_FILE, read_jsonl

TRAIN, HELD_OUT = ("conv-26", "conv-30", "conv-41", "conv-42"), ("conv-43", "conv-44", "conv-47")
LOCOMO = (
    "sft.max_steps=61",  # every window of the four conversations once
    "rl.num_steps=54",
    "rl.sessions_per_step=16",
    "rl.updates_per_step=1",
    "rl.sampling.temperature=1.2",
    "rl.loss.entropy_coef=0.02",  # at 5e-5 and without it, nine groups of ten agreed after 30 steps
    "rl.optim.lr=2e-5",
    "rl.length_gain=3",
    "rl.length_target=1.0",
)
GENERATED = (
    *(f"{stage}.data.num_held_out=16" for stage in ("sft", "rl")),
    "sft.max_steps=120",
    "rl.num_steps=70",
    "rl.loss.entropy_coef=0.06",  # at 0.03 the entropy was gone after 25 steps
    "rl.length_target=1.4",  # what is sampled, and counts in training, is longer than the answers that are judged
    "rl.save_every=5",
)
OPERATIONS = (
    *(f"{stage}.prompts.response_format=operations" for stage in ("sft", "rl")),
    *(f"{stage}.prompts.entries_shown=4" for stage in ("sft", "rl")),
    *(f"{stage}.data.num_held_out=4" for stage in ("sft", "rl")),
    "sft.sessions_per_step=8",
    "sft.max_steps=60",
    "rl.sampling.max_tokens=192",
    "rl.reward.judge=coverage",
)
PARTS = {
    "locomo": LOCOMO,
    "generated": GENERATED,
    "operations": ("--steps-rl=0", *OPERATIONS),
    "quickstart": ("rl.num_steps=60",),
    "own_words": own_words.OVERRIDES,
}
METRICS = ("step", "sft/loss", "sft/val_loss", "reward/mean", "reward/std", "qa/accuracy", "frac_reward_zero_std",
           "entropy", "memory_ratio", "length_weight")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--data", type=Path, help="locomo10.json; needed for the part locomo")
    parser.add_argument("--folder", type=Path, default=Path("runs/real_model"), help="models and logs")
    parser.add_argument("--hours", type=float, default=math.inf, help="for training and evaluating, all parts together")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=tuple(PARTS))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("overrides", nargs="*", help="sft.key=value or rl.key=value, for every part")
    given = parser.parse_args()
    ends = time.monotonic() + 3600 * given.hours
    for name in given.parts:
        folder, overrides = given.folder / name, [*PARTS[name], *given.overrides]
        if name == "own_words":
            found = own_words.run(folder, given.model, overrides, ends)
        else:
            data = locomo_files(given.data, given.folder) if name == "locomo" else []
            run_part([*data, *overrides], given.model, folder, ends)
            found = result(folder) if (folder / "summary.json").is_file() else None
        if found is None:
            print(f"{name}: stopped before anything was evaluated; the same command goes on")
            continue
        record = json.loads(given.out.read_text(encoding="utf-8")) if given.out.is_file() else {"parts": {}}
        record["parts"][name] = header() | {"model": given.model} | found
        write_atomic(given.out, json.dumps(record, indent=2) + "\n")


def locomo_files(path: Path | None, folder: Path) -> list[str]:
    """Return the arguments that name the two sides of the benchmark, each written to a file of its own."""
    if path is None:
        raise SystemExit("real_model: the part locomo needs --data locomo10.json")
    conversations = json.loads(path.read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    arguments = []
    for flag, name, ids in (("--data", "train", TRAIN), ("--eval-data", "held_out", HELD_OUT)):
        side = [each for each in conversations if each["sample_id"] in ids]
        if len(side) != len(ids):
            raise SystemExit(f"real_model: {path} lacks some of {', '.join(ids)}")
        file = folder / f"{name}.json"
        file.write_text(json.dumps(side), encoding="utf-8")
        arguments += [flag, str(file)]
    return arguments


def run_part(arguments: list[str], model: str, folder: Path, ends: float) -> None:
    """Run the quickstart until it ends or the time is over; then evaluate what has been learned so far."""
    command = [sys.executable, "-m", "trainer.quickstart", "--model", model, "--out", str(folder), "--resume"]
    train_until([*command, *arguments], ends, folder / "rl", "rl.num_steps")


def result(folder: Path) -> dict:
    """Return what a part has come to: the table, the curve, and the last policy beside the rules and its SFT model."""
    measured: dict[str, dict[str, dict]] = json.loads((folder / "systems.json").read_text(encoding="utf-8"))
    systems = {name: row for rows in measured.values() for name, row in rows.items()}  # the last policy wins
    logs = {stage: folder / stage / METRICS_FILE for stage in ("sft", "rl")}
    curves = {stage: read_jsonl(log) if log.is_file() else [] for stage, log in logs.items()}  # RL may not have begun
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    found = {
        "run": {name: summary[name] for name in ("seed", "engine", "steps", "held_out", "peak_memory_gib")},
        "systems": {name: {key: row[key] for key in row if key != "verdicts"} for name, row in systems.items()},
        "compared": {},
        "training_seconds": {stage: round(sum(map(seconds, rows))) for stage, rows in curves.items()},
        "curves": {
            stage: [{key: row[key] for key in METRICS if key in row} for row in rows] for stage, rows in curves.items()
        },
    }
    for policy, other in (("sft", "rules"), ("adrpo", "sft"), ("adrpo", "rules")):
        if policy in systems:
            sides = np.array([systems[other]["verdicts"], systems[policy]["verdicts"]], dtype=np.float64)
            both = sides[:, ~np.isnan(sides).any(axis=0)]
            mine, others = (systems[name]["memory_tokens"] for name in (policy, other))
            ratio = mine / others if others else None  # a policy may write nothing
            found["compared"][f"{policy} over {other}"] = paired(*both, seed=1)._asdict() | {"memory_ratio": ratio}
    return found


def seconds(row: dict) -> float:
    """Return how long the step of a log's row took."""
    return sum(value for key, value in row.items() if key.startswith("time/"))


if __name__ == "__main__":
    main()
