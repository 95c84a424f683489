"""One stage, in this process. `python -m tests.benchmarks.gpu` starts it, with a limit of time.

python -m tests.benchmarks.gpu.stage kernels --out FOLDER [--tiny]
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path

from tests.benchmarks.gpu.identity import STAGES


def main() -> None:
    parser = argparse.ArgumentParser(description="Run one stage of the GPU check in this process.")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    from tests.benchmarks.gpu.record import Record  # it loads PyTorch

    record = Record(given.out, given.stage, given.tiny)
    import_module(f"tests.benchmarks.gpu.{given.stage}").run(record)
    sys.exit(0 if record.finish() else 1)


if __name__ == "__main__":
    main()
