"""Does RL teach what SFT on rules does not? Generated corpus, held-out people, three seeds, three ablations.

    python -m tests.benchmarks.learning --out tests/benchmarks/results/learning.json [--seeds 1 2 3] [--folder DIR]

Every variant starts from the seed's own SFT model and uses the quickstart's configuration, one thing changed:
`no_attribution` sets alpha to 1, `sparse_reward` gives one reward at the dialogue's end, `no_length_penalty` sets its
weight to 0. The file is rewritten after every variant, so a run that is stopped keeps what it has.
"""

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from transformers import PreTrainedTokenizerBase

from membuilder.embedding.local import Embedder
from membuilder.schemes.load import scheme_of
from rollout.tokens import load_tokenizer
from trainer import rl, sft
from trainer.configs import ModelConfig
from trainer.data.corpus import SIDES, Corpus, ExpertBuild, build_corpus
from trainer.experience.collector import Collector
from trainer.experience.evaluate import compare_baselines, judge_policy
from trainer.logs.provenance import provenance
from trainer.model.policy import load_trainable
from trainer.quickstart import load_configs
from trainer.rl_config import RLConfig
from trainer.run_setup import make_collector, make_engine, setup_rl, setup_sft

VARIANTS = {
    "adrpo": (),
    "no_attribution": ("rl.reward.alpha=1",),
    "sparse_reward": ("rl.dense=false",),
    "no_length_penalty": ("rl.reward.length_weight=0",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--ablation-seeds", type=int, nargs="*", default=None, help="default: all of --seeds")
    parser.add_argument("--folder", help="where models and logs go (default: a temporary folder)")
    args = parser.parse_args()
    folder = Path(args.folder or tempfile.mkdtemp(prefix="membuilder-learning-"))
    benchmark = Benchmark(folder, args.out)
    for seed in args.seeds:
        benchmark.run(seed, "adrpo")
    for seed in args.seeds if args.ablation_seeds is None else args.ablation_seeds:
        for name in VARIANTS:
            if name != "adrpo":
                benchmark.run(seed, name)
    benchmark.engine.close()


@dataclass(frozen=True)
class Start:
    """What every variant of a seed starts from."""

    builds: Corpus[ExpertBuild]
    model_dir: Path
    tokenizer: PreTrainedTokenizerBase


class Benchmark:
    """One engine serves every run; a seed's data and SFT model are made once."""

    def __init__(self, folder: Path, out: Path) -> None:
        self.folder, self.out = folder, out
        self.embedder, self.engine = Embedder(), None
        self.starts: dict[int, Start] = {}
        self.report = {"provenance": provenance(), "seeds": {}, "mean": {}}

    def run(self, seed: int, name: str) -> None:
        start = self.starts.get(seed) or self._start(seed)
        began = time.perf_counter()
        config, collector = self._collector(seed, name, start)
        rl.train(config, setup_rl(config, start.builds, collector))
        result = judge_policy(start.builds.held_out, collector, name).row()
        seconds = round(time.perf_counter() - began)
        self._add(seed, {name: result | {"steps": config.num_steps, "seconds": seconds}})

    def _start(self, seed: int) -> Start:
        config, _ = load_configs(str(self.folder / f"seed{seed}"), seed)
        scheme = scheme_of(config)
        builds = build_corpus(config.data, self.embedder, scheme, *SIDES)
        model_dir = Path(config.out) / "model"
        if not model_dir.is_dir():  # a folder of an earlier run has it already
            sft.train(config, setup_sft(config, builds, self.embedder))
        start = self.starts[seed] = Start(builds, model_dir, load_tokenizer(str(model_dir)))
        _, collector = self._collector(seed, "adrpo", start)
        rows = {name: row.row() for name, row in compare_baselines(builds.held_out, collector).items()}
        self._add(seed, rows | {"sft": judge_policy(builds.held_out, collector, "sft").row()})
        return start

    def _collector(self, seed: int, name: str, start: Start) -> tuple[RLConfig, Collector]:
        """The variant's config, and an engine that holds the seed's SFT model."""
        overrides = (*VARIANTS[name], f"rl.model.path={start.model_dir}")
        _, config = load_configs(str(self.folder / f"seed{seed}" / name), seed, overrides)
        if self.engine is None:
            self.engine = make_engine(config, start.model_dir)
        load_folder(self.engine, start.model_dir)
        return config, make_collector(config, self.engine, start.tokenizer, self.embedder)

    def _add(self, seed: int, rows: dict[str, dict]) -> None:
        for name, row in rows.items():
            print(f"seed {seed} {name}: {row}", flush=True)
        self.report["seeds"].setdefault(str(seed), {}).update(rows)
        self.report["mean"] = means(self.report["seeds"])
        self.out.write_text(json.dumps(self.report, indent=2) + "\n", encoding="utf-8")


def load_folder(engine, model_dir: Path) -> None:
    """Put the SFT model back into the engine: one engine serves every run of the benchmark."""
    model = load_trainable(model_dir, ModelConfig(dtype="float32")).model
    engine.load_weights([(name, tensor.detach()) for name, tensor in model.state_dict().items()], version=0)


def means(seeds: dict[str, dict]) -> dict[str, dict]:
    """Per system the mean over the seeds that ran it."""
    names = dict.fromkeys(name for rows in seeds.values() for name in rows)
    return {
        name: {
            key: fmean(rows[name][key] for rows in seeds.values() if name in rows)
            for key in ("accuracy", "recall_at_10", "memory_tokens", "format_valid")
        }
        | {"num_seeds": sum(name in rows for rows in seeds.values())}
        for name in names
    }


if __name__ == "__main__":
    main()
