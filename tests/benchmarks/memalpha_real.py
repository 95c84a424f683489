"""Does RL help the writer of memalpha on real text? The tiny policy on small instances of four public datasets.

    python -m tests.benchmarks.memalpha_real --dataset squad --source DIR [--out FILE] [--folder DIR] [KEY=VALUE ...]

Instances are built by the product's builders, as small as the policy's prompts need: four chunks of about eight
labelled examples, or of the sentences of a paragraph, a line each. Held out are labels or articles that training has
none of. An instance that shares an example or a sentence with training is left out too, and the leak check stays on.
r1 is the share of held-out questions answered, with bootstrap intervals over questions. The same command goes on with
what --folder holds of a run that was stopped; FILE keeps the results of the other datasets.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from membuilder.datasets.memalpha import dialogue_of, read_rows, write_rows
from membuilder.datasets.streams import files_of
from membuilder.evaluation.intervals import bootstrap, paired
from membuilder.files import write_atomic
from membuilder.instances.build import build
from membuilder.instances.leaks import compared, shared
from membuilder.instances.plan import Plan
from membuilder.schemes.load import scheme_of
from membuilder.types import Dialogue, Session, Turn
from tests.benchmarks.memalpha import Start
from trainer import rl
from trainer.data.corpus import training_text
from trainer.experience.evaluate import SystemResult, compare_baselines, judge_policy
from trainer.logs.provenance import provenance
from trainer.quickstart import INSTANCES_OF_A_FILE
from trainer.run_setup import setup_rl

RESULTS = Path(__file__).parent / "results" / "memalpha_real.json"
SEED, CHUNKS, TEST_SHARE = 1, 4, 0.3


@dataclass(frozen=True, kw_only=True)
class Dataset:
    chunk_tokens: int
    questions: tuple[int, int]
    max_calls: int
    """Of a chunk: so many lines, or labelled examples, as the memory may keep of it."""
    files: tuple[str, str] | None = None
    """Raw files of training and of what is held out; None: labels or articles are drawn."""
    has_labels: bool = False


DATASETS = {
    "banking77": Dataset(chunk_tokens=230, questions=(10, 20), max_calls=3, has_labels=True),
    "clinc150": Dataset(chunk_tokens=200, questions=(10, 20), max_calls=3, has_labels=True),
    "squad": Dataset(chunk_tokens=300, questions=(6, 100), max_calls=2),
    # half of its questions name one article on each side of a split
    "hotpotqa": Dataset(
        chunk_tokens=400, questions=(2, 100), max_calls=2, files=("hotpot*fullwiki*", "hotpot*distractor*")
    ),
}
FOR_SFT = (*INSTANCES_OF_A_FILE["sft"], "save_every=100")
FOR_RL = (*INSTANCES_OF_A_FILE["rl"], "save_every=5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, choices=DATASETS)
    parser.add_argument("--source", required=True, type=Path, help="folder of its raw files")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--folder", type=Path, default=Path("runs/memalpha_real"), help="instances, models and logs")
    parser.add_argument("overrides", nargs="*", help="sft.key=value or rl.key=value")
    given = parser.parse_args()
    found = run(given.dataset, given.source, given.folder / given.dataset, given.overrides)
    kept = json.loads(given.out.read_text(encoding="utf-8")) if given.out.is_file() else {}
    write_atomic(given.out, json.dumps(kept | {given.dataset: found}, indent=2) + "\n")
    print(json.dumps(found, indent=2))
    print(table_row(given.dataset, found))


def run(name: str, source: Path, folder: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Build, imitate, reinforce and measure; return what goes into the file."""
    dataset, began, load = DATASETS[name], time.perf_counter(), os.getloadavg()[0]
    train, held_out, num_shared = sides(name, source, folder)
    start = Start(folder, SEED, [*settings(name, train, held_out), *overrides])
    start.train()
    collector, builds = start.collector(), start.builds.held_out
    whole = [replace(each, dialogue=with_whole_examples(each.dialogue)) for each in builds]
    systems = compare_baselines(whole if dataset.has_labels else builds, collector)
    systems["sft"] = judge_policy(builds, collector, "sft")
    rl.train(start.config, setup_rl(start.config, start.builds, collector))
    systems["rl"] = judge_policy(builds, collector, "rl")
    collector.engine.close()
    prompts = [collector.count_tokens([text]) for text in training_text(builds, scheme_of(start.sft_config))]
    return {
        "provenance": provenance(),
        "instances": {"train": len(start.builds.train), "held_out": len(builds), "left_out_as_shared": num_shared},
        "steps": {"sft": start.sft_config.max_steps, "rl": start.config.num_steps},
        "expert_prompt_tokens": {"mean": fmean(prompts), "max": max(prompts)},
        "seconds": round(time.perf_counter() - began),
        "load_at_start": load,
        **measured(systems),
    }


def settings(name: str, train: Path, held_out: Path) -> list[str]:
    """Return what is laid over the tiny configs."""
    data = (f"data.path={train}", f"data.eval_path={held_out}", f"memalpha.max_calls={DATASETS[name].max_calls}")
    both = [f"{stage}.{each}" for stage in ("sft", "rl") for each in ("data.num_chunks=null", *data)]
    return [*both, *(f"sft.{each}" for each in FOR_SFT), *(f"rl.{each}" for each in FOR_RL)]


def sides(name: str, source: Path, folder: Path) -> tuple[Path, Path, int]:
    """Build both sides and return their files, and how many held-out instances share something with training."""
    dataset = DATASETS[name]
    small = {"chunk_tokens": dataset.chunk_tokens, "questions": dataset.questions, "chunks": CHUNKS}
    small |= {"dataset": name, "sentence_lines": not dataset.has_labels, "seed": SEED}
    if dataset.files is None:
        plan = Plan(source=source, out=folder / "data", test_share=TEST_SHARE, **small)
        build(plan)
        train, test = (plan.folder / f"{side}.parquet" for side in ("train", "test"))
    else:
        raw = [files_of(source, [pattern])[0] for pattern in dataset.files]
        places = [folder / "data" / side for side in ("train", "held_out")]
        plans = [Plan(source=file, out=out, test_share=0, **small) for file, out in zip(raw, places, strict=True)]
        for plan in plans:
            build(plan)
        train, test = (plan.folder / "train.parquet" for plan in plans)
    held_out = folder / "data" / "held_out.parquet"
    return train, held_out, write_unshared(test, train, held_out)


def write_unshared(test: Path, train: Path, out: Path) -> int:
    """Write the instances that share nothing with training, and return how many do."""
    trained = compared(map(dialogue_of, read_rows(train)))
    rows = list(read_rows(test))
    kept = [row for row in rows if not any(each.count for each in shared(compared([dialogue_of(row)]), trained))]
    write_rows(out, kept)
    return len(rows) - len(kept)


def with_whole_examples(dialogue: Dialogue) -> Dialogue:
    """Make one turn of a text and its label: what stores single lines would tear them apart."""

    def joined(session: Session) -> Session:
        turns: list[Turn] = []
        for turn in session.turns:
            if turn.text.startswith("Label: "):
                turns[-1] = replace(turns[-1], text=f"{turns[-1].text}\n{turn.text}")
            else:
                turns.append(turn)
        return replace(session, turns=tuple(turns))

    return replace(dialogue, sessions=tuple(map(joined, dialogue.sessions)))


def measured(systems: dict[str, SystemResult]) -> dict[str, Any]:
    """Return r1 of every system with its interval, and how RL does against SFT on the same questions."""
    verdicts = {name: np.array(result.verdicts, dtype=np.float64) for name, result in systems.items()}
    intervals = bootstrap(np.stack(list(verdicts.values()), axis=1), SEED)
    rows = {
        name: {
            "r1": result.accuracy,
            "low": low,
            "high": high,
            "memory_tokens": result.memory_tokens,
            "format_valid": result.format_valid,
        }
        for (name, result), (low, high) in zip(systems.items(), intervals.tolist(), strict=True)
    }
    ratio = systems["rl"].memory_tokens / systems["sft"].memory_tokens
    against = paired(verdicts["sft"], verdicts["rl"], SEED)._asdict()
    return {"systems": rows, "rl_over_sft": against | {"memory_over_sft": ratio}}


def table_row(name: str, found: dict[str, Any]) -> str:
    """Return what docs/memalpha.md shows of a dataset: r1 by system, what RL adds to r1 and to memory, questions."""
    systems, against = found["systems"], found["rl_over_sft"]
    shown = [f"{systems[each]['r1']:.2f}" for each in ("random", "rules", "sft", "rl", "all")]
    shown.append(f"{against['difference']:+.2f} ({against['low']:+.2f} to {against['high']:+.2f})")
    shown += [f"{against['memory_over_sft'] - 1:+.0%}", str(against["questions"])]
    return f"| `{name}` | {' | '.join(shown)} |"


if __name__ == "__main__":
    main()
