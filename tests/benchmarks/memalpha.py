"""Does RL teach the writer of memalpha what is asked about? Generated instances, people never seen, three seeds.

    python -m tests.benchmarks.memalpha [--seeds 1 2 3] [--rows NAME ...] [--out FILE] [--folder DIR] [KEY=VALUE ...]

Every row starts from the seed's own SFT model and takes configs/memalpha_tiny_rl.yaml, with another credit, baseline or
view of the memory. r1 is the share of held-out questions answered; `r1_changed` is that of questions about a fact that
has changed, which is answered only where the older value was replaced or never stored. The file is written after every
run, and the same command goes on with what it lacks: SFT models are kept in DIR. Keys begin with `sft.` or `rl.`; what
is made with other keys needs a FILE and a DIR of its own.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from membuilder.embedding.local import Embedder
from membuilder.files import write_atomic
from membuilder.generate.instances import CHANGED_CATEGORY
from membuilder.schemes.load import MEMALPHA, scheme_of
from reward.rollouts import episode_questions
from rollout.tokens import load_tokenizer
from tests.benchmarks.learning import load_folder
from trainer import rl, sft
from trainer.data.corpus import SIDES, build_corpus
from trainer.experience.collector import Collector
from trainer.experience.evaluate import SystemResult, compare_baselines, judge_policy
from trainer.logs.provenance import provenance
from trainer.quickstart import load_configs
from trainer.run_setup import make_collector, make_engine, setup_rl, setup_sft

RESULTS = Path(__file__).parent / "results" / "memalpha.json"
CONFIGURED = "rl"
ROWS = {CONFIGURED: ()} | {
    f"credit {credit}, baseline {baseline}": (f"rl.reward.credit={credit}", f"rl.reward.baseline={baseline}")
    for credit in ("episode", "evidence")
    for baseline in ("session", "instance", "episode")
    if (credit, baseline) != ("evidence", "session")
}
"""The configuration as it is, which is that pair, and those that it is compared with."""
VIEWS = {"view recent": ("rl.memalpha.view=recent",)}
"""The other view, of the configured credit and baseline; the SFT model has seen the related entries."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, *VIEWS], default=list(ROWS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--folder", type=Path, default=Path("runs/memalpha_benchmark"), help="models and logs")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of all rows")
    given = parser.parse_args()
    report = Report(given.out, given.overrides)
    for row in given.rows:
        for seed in given.seeds:
            if not report.has(seed, row):
                run(given.folder, report, seed, row)


class Report:
    """The result file, read again by a command that goes on."""

    def __init__(self, path: Path, overrides: Sequence[str]) -> None:
        self.overrides = list(overrides)
        self._path = path
        self._found: dict[str, Any] = {"seeds": {}}
        if path.is_file():
            self._found = json.loads(path.read_text(encoding="utf-8"))
            if self._found.get("overrides", []) != self.overrides:
                raise ValueError(f"{path} was measured with other settings than {self.overrides}: give --out")

    def has(self, seed: int, row: str) -> bool:
        return row in self._found["seeds"].get(str(seed), {})

    def add(self, seed: int, rows: dict[str, dict[str, Any]]) -> None:
        seeds = self._found["seeds"]
        seeds.setdefault(str(seed), {}).update(rows)
        for name, row in rows.items():
            print(f"seed {seed}, {name}: {row}", flush=True)
        report = {"provenance": provenance(), "overrides": self.overrides, "seeds": seeds, "mean": means(seeds)}
        write_atomic(self._path, json.dumps(report, indent=2) + "\n")


def means(seeds: dict[str, dict[str, dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Return per system the mean over the seeds that ran it, and its distance to the SFT models of these seeds."""
    found = {}
    for name in dict.fromkeys(name for rows in seeds.values() for name in rows):
        ran = [rows for rows in seeds.values() if name in rows]
        own = {key: fmean(rows[name][key] for rows in ran) for key in ("r1", "r1_changed", "memory_tokens")}
        gains = [rows[name]["r1"] - rows["sft"]["r1"] for rows in ran]
        ratio = fmean(rows[name]["memory_tokens"] / rows["sft"]["memory_tokens"] for rows in ran)
        own |= {"over_sft": fmean(gains), "least_over_sft": min(gains), "memory_over_sft": ratio}
        found[name] = {key: round(value, 4) for key, value in own.items()} | {"num_seeds": len(ran)}
    return found


class Start:
    """What every row of a seed starts from: data, and the model that SFT has made of it."""

    def __init__(self, folder: Path, seed: int, overrides: Sequence[str], row: str = CONFIGURED) -> None:
        self.folder = folder / f"seed{seed}"
        overrides = ("sft.resume=auto", "rl.resume=auto", *overrides)
        self.sft_config, _ = load_configs(str(self.folder), seed, overrides, scheme=MEMALPHA)
        self.model_dir = Path(self.sft_config.out) / "model"
        given = (*overrides, f"rl.model.path={self.model_dir}")
        out = str(self.folder / row.replace(", ", "_").replace(" ", "_"))
        _, self.config = load_configs(out, seed, given, scheme=MEMALPHA)
        self.embedder = Embedder()

    @cached_property
    def builds(self):
        return build_corpus(self.sft_config.data, self.embedder, scheme_of(self.sft_config), *SIDES)

    def train(self) -> float | None:
        """Make the SFT model, where the folder has none, and return the seconds that took."""
        if self.model_dir.is_dir():
            return None
        began = time.perf_counter()
        sft.train(self.sft_config, setup_sft(self.sft_config, self.builds, self.embedder))
        return round(time.perf_counter() - began)

    def collector(self) -> Collector:
        """Return what samples from the SFT model and puts the questions."""
        engine = make_engine(self.config, self.model_dir)
        load_folder(engine, self.model_dir)
        return make_collector(self.config, engine, load_tokenizer(str(self.model_dir)), self.embedder)

    def row(self, result: SystemResult) -> dict[str, Any]:
        """Return what is kept of a system's result."""
        whole = replace(self.config.reward, question_share=1.0)
        asked = [q for build in self.builds.held_out for q in episode_questions(build.dialogue, whole, "")]
        pairs = zip(asked, result.verdicts, strict=True)
        changed = [verdict for question, verdict in pairs if question.category == CHANGED_CATEGORY]
        return {
            "r1": result.accuracy,
            "r1_changed": fmean(changed),
            "memory_tokens": result.memory_tokens,
            "format_valid": result.format_valid,
            "questions": result.questions,
            "questions_changed": len(changed),
        }


def run(folder: Path, report: Report, seed: int, row: str) -> None:
    """Train one row of one seed, and measure what it starts from where the report lacks that."""
    start = Start(folder, seed, (*report.overrides, *(ROWS | VIEWS)[row]), row)
    seconds = start.train()
    collector = start.collector()
    held_out = start.builds.held_out
    if not report.has(seed, "sft"):
        systems = compare_baselines(held_out, collector) | {"sft": judge_policy(held_out, collector, "sft")}
        rows = {name: start.row(result) for name, result in systems.items()}
        rows["sft"] |= {"steps": start.sft_config.max_steps, "seconds": seconds}
        report.add(seed, rows)
    began, load = time.perf_counter(), os.getloadavg()[0]
    rl.train(start.config, setup_rl(start.config, start.builds, collector))
    seconds = round(time.perf_counter() - began)
    found = start.row(judge_policy(held_out, collector, row))
    report.add(seed, {row: found | {"steps": start.config.num_steps, "seconds": seconds, "load_at_start": load}})
    collector.engine.close()


if __name__ == "__main__":
    main()
