"""Runs stages of the GPU check one after the other, each in a process of its own, and says which did not end well.

    OUT=folder launch/gpu_check.sh [stage ...] [--tiny] [--again] [--limit SECONDS] [--carried FOLDER]

A stage whose JSON in the folder is complete, of this very code, is not run again. A stage that fails stops no other;
the exit status is then 1. This file needs nothing but Python.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.gpu.identity import ROOT, STAGES, source_digest

LIMIT_SECONDS, GRACE_SECONDS = 430, 40
"""A lent machine ends a command after ten minutes; what is asked to stop may still save for as long as the grace."""
TAIL = 15
"""Lines of a failed stage's log that are shown."""


def is_complete(path: Path, digest: str, tiny: bool) -> bool:
    """Tell whether a stage's file is whole and was made by this code, at this size."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return bool(found.get("complete")) and (found["source"], found["tiny"]) == (digest, tiny)


def run_stage(name: str, given: argparse.Namespace) -> str | None:
    """Run a stage; returns what went wrong, None if nothing did."""
    log, path = given.out / f"{name}.log", given.out / f"{name}.json"
    path.unlink(missing_ok=True)
    command = ["timeout", f"--kill-after={GRACE_SECONDS}", str(given.limit), sys.executable]
    command += ["-m", "tests.benchmarks.gpu.stage", name, "--out", str(given.out), *(["--tiny"] if given.tiny else [])]
    paths = [str(ROOT), str(given.carried / "site"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    environment |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "TOKENIZERS_PARALLELISM": "false"}
    with open(log, "w", encoding="utf-8") as output:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=output, check=False)
    if done.returncode == 0:
        return None
    ended = f"ran past {given.limit:g} s" if done.returncode in (124, 137) else f"exit status {done.returncode}"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"stage": name, "complete": False}
    path.write_text(json.dumps(found | {"ended": ended}, indent=2) + "\n", encoding="utf-8")
    return ended


def main() -> None:
    parser = argparse.ArgumentParser(prog="launch/gpu_check.sh", description="Prove the GPU side, stage by stage.")
    parser.add_argument("stages", nargs="*", metavar="stage", help=f"{', '.join(STAGES)}; default: all, in this order")
    parser.add_argument("--tiny", action="store_true", help="rehearse at tiny size, also without a GPU")
    parser.add_argument("--again", action="store_true", help="run stages that are complete already, too")
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, help="seconds of a stage (%(default)s)")
    parser.add_argument("--carried", type=Path, default=Path("/tmp/carried"), help="folder of what was carried here")
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT"), help="folder for results (or OUT=folder)")
    given = parser.parse_args()
    if unknown := sorted(set(given.stages) - set(STAGES)):
        parser.error(f"no stage {', '.join(unknown)}: there are {', '.join(STAGES)}")
    if given.out is None:
        parser.error("name the folder for the results: OUT=folder launch/gpu_check.sh")
    if not given.tiny and shutil.which("nvidia-smi") is None:
        sys.exit("gpu_check: no NVIDIA GPU here (--tiny rehearses without one)")
    given.out = given.out.resolve()
    given.out.mkdir(parents=True, exist_ok=True)
    digest, wrong = source_digest(), {}
    for name in given.stages or STAGES:
        if not given.again and is_complete(given.out / f"{name}.json", digest, given.tiny):
            print(f"{name}: complete already", flush=True)
            continue
        began = time.monotonic()
        if problem := run_stage(name, given):
            wrong[name] = problem
            lines = (given.out / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
            print("\n".join(f"    {line}" for line in lines[-TAIL:]))
        print(f"{name}: {problem or 'complete'} after {time.monotonic() - began:.0f} s", flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
