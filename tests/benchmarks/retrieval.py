"""Evidence recall and cost of each system on a real benchmark file, without a language model.

    python -m tests.benchmarks.retrieval --dataset locomo --dataset-path locomo10-dev.json --out locomo_retrieval.json
    python -m tests.benchmarks.retrieval --dataset longmemeval --dataset-path longmemeval_s-dev.json.gz \
        --system rag-turn-bm25 --again --out longmemeval_s_retrieval.json

Each system is one `python -m membuilder.eval` in a process of its own; `--again` runs it twice, the second time with
the embeddings of the first. The result file holds figures only, no text of the benchmark; systems already in it stay.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from membuilder.bank.ranking import SearchMethod
from membuilder.evaluation.names import SYSTEMS
from tests.benchmarks.common import header

DEFAULT = ("rules", "rag-turn", "rag-session", "full-context")


def measure(flags: list[str], system: str, again: bool) -> dict:
    """The figures of one system: what it found, and what finding it cost."""
    costs = []
    for _ in range(2 if again else 1):
        with TemporaryDirectory() as folder:
            command = ["-m", "membuilder.eval", *flags, "--system", system, "--output-dir", folder]
            costs.append(_cost([sys.executable, *command]))
            found = json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))
    kept = ("dataset_sha256", "dialogues", "split", "embedding_model", "embedding_precision", "seed")
    return {
        "figures": found["systems"][system],
        "cost": dict(zip(("first", "second"), costs, strict=False)),
        "run": {key: found["run"][key] for key in kept},
    }


def _cost(command: list[str]) -> dict:
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return {
        "wall_seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gib": round(usage.ru_maxrss / 2**20, 2),
        "load_average": round(os.getloadavg()[0], 1),  # wall time says little on a busy machine
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--dataset-path", required=True)
    parser.add_argument("--subset-file")
    parser.add_argument("--embedding-cache")
    parser.add_argument("--system", action="append", choices=SYSTEMS, help=f"repeatable; else {', '.join(DEFAULT)}")
    parser.add_argument("--retrieval", choices=[str(each) for each in SearchMethod], help="of system rules")
    parser.add_argument("--index", metavar="KEY=VALUE", help="as in membuilder.eval, such as pieces=true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    flags = [
        part
        for name in ("dataset", "dataset_path", "subset_file", "embedding_cache", "retrieval", "index")
        if (value := getattr(given, name)) is not None
        for part in (f"--{name.replace('_', '-')}", value)
    ]
    before = json.loads(given.out.read_text(encoding="utf-8"))["systems"] if given.out.exists() else {}
    systems = dict(before)
    for system in given.system or DEFAULT:
        name = ", ".join(filter(None, (system, given.retrieval, given.index)))
        systems[name] = measure(flags, system, given.again) | {"measured_on": header()}
        given.out.parent.mkdir(parents=True, exist_ok=True)
        record = {"dataset": given.dataset, "file": Path(given.dataset_path).name, "systems": systems}
        given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(name, systems[name]["figures"]["evidence_recall"], systems[name]["cost"], flush=True)


if __name__ == "__main__":
    main()
