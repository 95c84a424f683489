"""Does a reward that is asked of models teach as the same reward without any? The quickstart, twice, on one thread.

    python -m tests.benchmarks.reward_agrees [--steps 40]       # writes results/reward_agrees.json

Once with the judge `evidence`, once with `judge: llm` and a server whose model answers and grades as `evidence` does.
Data, SFT, seed and thread are the same, so the learning curves, the tables and the weights must be.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from membuilder.llm.endpoints import Provider
from tests.benchmarks.common import write
from tests.evidence_stub import EvidenceStub
from tests.fault_server import FaultServer, answering
from trainer.data.corpus import SIDES, load_corpus
from trainer.logs.run_log import METRICS_FILE, read_jsonl
from trainer.quickstart import load_configs

RESULTS = Path(__file__).parent / "results" / "reward_agrees.json"
OWN = ("time/", "llm/")
"""How metrics begin that only one of the two runs has, or that say how long it took."""


def run(out: Path, arguments: list[str]) -> float:
    """Run the quickstart; returns its seconds."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "trainer.quickstart", "--out", str(out), *arguments], env=environment, check=True
    )
    return round(time.perf_counter() - began, 1)


def asked_of(url: str) -> list[str]:
    """Return the settings of a reward whose two models are served at an address."""
    settings = {"name": "stub", "provider": Provider.VLLM, "base_url": url}
    roles = [f"rl.reward.{role}.{key}={value}" for role in ("answerer", "grader") for key, value in settings.items()]
    return ["rl.reward.judge=llm", *roles]


def stub() -> EvidenceStub:
    """Return the model for the people that the quickstart generates."""
    config, _ = load_configs("unused", seed=1)
    corpus = load_corpus(config.data)
    return EvidenceStub(dialogue for side in SIDES for dialogue in getattr(corpus, side))


def outcome(out: Path) -> dict:
    """Return what a run has learned: curve, table and the digest of its weights."""
    rows = read_jsonl(out / "rl" / METRICS_FILE)
    curve = [{key: value for key, value in row.items() if not key.startswith(OWN)} for row in rows]
    weights = hashlib.sha256((out / "rl/model/model.safetensors").read_bytes()).hexdigest()
    return {"curve": curve, "systems": json.loads((out / "summary.json").read_text())["systems"], "weights": weights}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="RL steps (default: the quickstart's)")
    steps = ["--steps-rl", str(parser.parse_args().steps)]
    with tempfile.TemporaryDirectory() as folder:
        plain, asked = Path(folder, "evidence"), Path(folder, "llm")
        model = stub()
        with FaultServer(answering(model)) as server:
            seconds = [run(plain, steps), run(asked, [*steps, *asked_of(server.base_url)])]
        expected, found = outcome(plain), outcome(asked)
    same = {name: found[name] == expected[name] for name in expected}
    kept = ("step", "reward/mean", "qa/accuracy")
    write(RESULTS, [
        {
            "steps": len(expected["curve"]),
            "same": same,
            "metrics_per_step": len(expected["curve"][0]),
            "calls": {"answerer": model.answered, "grader": model.graded},
            "seconds": dict(zip(("evidence", "llm"), seconds, strict=True)),
            "adrpo": expected["systems"]["adrpo"],
            "curve": [{name: row[name] for name in kept} for row in expected["curve"]],
        }
    ])  # fmt: skip
    print(same)
    sys.exit(0 if all(same.values()) else 1)


if __name__ == "__main__":
    main()
