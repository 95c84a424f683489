"""How should a memory be searched for an answer? The same banks of a trained run, searched in each way.

    python -m tests.benchmarks.answering OUT --name generated --out tests/benchmarks/results/answering.json

OUT is the folder of a quickstart. Its RL model builds the held-out banks once, as training searched (dense); then the
questions are put to these banks, and to those of the rules, by dense search, by BM25 and by both.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from membuilder.bank.ranking import SearchMethod
from membuilder.config import load
from membuilder.embedding.local import Embedder
from membuilder.schemes.load import load_scheme, scheme_of
from rollout.tokens import load_tokenizer
from tests.benchmarks.common import header
from trainer.data.corpus import ExpertBuild, expert_builds, load_corpus
from trainer.experience.collector import Collector
from trainer.experience.evaluate import BuiltBank, build_with_policy, summarize, tally, without_model
from trainer.rl_config import RLConfig
from trainer.run_setup import make_collector, make_engine


def measure(run: Path) -> dict[str, dict[str, dict]]:
    """System -> way of searching -> what the run's judge and recall say."""
    config = load(RLConfig, str(run / "rl" / "config.yaml"), [])
    model, embedder = run / "rl" / "model", Embedder(config.embedding_model)
    scheme = scheme_of(config)
    held_out = expert_builds(load_corpus(config.data).held_out, embedder, scheme, "held-out")
    engine = make_engine(config, model)
    collector = make_collector(config, engine, load_tokenizer(str(model)), embedder)
    systems = {
        "rules": without_model(lambda build: build.steps[-1].result.bank, held_out),
        "adrpo": build_with_policy([build.dialogue for build in held_out], collector, "the policy builds its banks"),
    }
    engine.close()
    return {name: searched(held_out, built, collector, config) for name, built in systems.items()}


def searched(
    held_out: Sequence[ExpertBuild], built: Sequence[BuiltBank], collector: Collector, config: RLConfig
) -> dict[str, dict]:
    dialogues, found = [build.dialogue for build in held_out], {}
    for method in SearchMethod:
        scheme = load_scheme(config.scheme, replace(config.prompts, retrieval=method))
        found[str(method)] = asdict(summarize(tally(dialogues, built, replace(collector, scheme=scheme))))
        print(f"{method}: {found[str(method)]}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", required=True, help="of the data, in the file of results")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    results = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
    results[given.name] = {"measured_on": header(), "systems": measure(given.run)}
    given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
