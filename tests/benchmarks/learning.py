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
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

from membuilder.embed import Embedder
from trainer.pipeline import judge_policy, prepare, run_rl, run_sft
from trainer.policy import ModelConfig, load_model
from trainer.provenance import provenance
from trainer.quickstart import Options, load_configs
from trainer.runner import make_collector, make_engine
from trainer.systems import compare_baselines

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
    ablation_seeds = args.seeds if args.ablation_seeds is None else args.ablation_seeds
    report = {"provenance": provenance(), "seeds": {}, "mean": {}}
    embedder, engine = Embedder(), None
    for seed in args.seeds:
        names = VARIANTS if seed in ablation_seeds else ("adrpo",)
        engine = run_seed(seed, names, folder, embedder, engine, report, args.out)
    engine.close()


def run_seed(seed, names, folder: Path, embedder, engine, report: dict, out: Path):
    sft_config, rl_config = load_configs(Options(seed=seed, out=str(folder / f"seed{seed}")))
    prepared = prepare(sft_config, embedder)
    sft_result, tokenizer = run_sft(sft_config, prepared)
    engine = engine or make_engine(rl_config.engine, sft_result.model_dir, rl_config.max_model_len, "float32", seed)
    rows = report["seeds"][str(seed)] = {}
    for name in names:
        options = Options(seed=seed, out=str(folder / f"seed{seed}" / name), overrides=VARIANTS[name])
        _, config = load_configs(options)
        collector = make_collector(config, engine, tokenizer, prepared.embedder)
        load_folder(engine, sft_result.model_dir)
        if not rows:
            rows |= {key: asdict(result) for key, result in compare_baselines(prepared.held_out, collector).items()}
            rows["sft"] = asdict(judge_policy(prepared, collector, "sft"))
        began = time.perf_counter()
        run_rl(config, sft_result.model_dir, collector, prepared.train)
        rows[name] = asdict(judge_policy(prepared, collector, name)) | {"steps": config.num_steps}
        print(f"seed {seed} {name}: {rows[name]} in {time.perf_counter() - began:.0f} s", flush=True)
        report["mean"] = means(report["seeds"])
        out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return engine


def load_folder(engine, model_dir: Path) -> None:
    """Put the SFT model back into the engine: one engine serves every run of the benchmark."""
    model = load_model(model_dir, ModelConfig(dtype="float32"))
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
