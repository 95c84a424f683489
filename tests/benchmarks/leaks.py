"""The leak comparison of two files of 62 MB: seconds and peak memory of the command.

    python -m tests.benchmarks.leaks                    # on a machine with two idle cores
    python -m tests.benchmarks.leaks --megabytes 1 --out /tmp/leaks.json

The size is that of the JSON text in each file, of made-up words that are drawn as words of a language are; the two
files share no line, so that every line is looked up to its end.
"""

import argparse
import tempfile
from pathlib import Path

from tests.benchmarks.common import write
from tests.large_files import instances, measured

RESULT = Path(__file__).parent / "results" / "leaks.json"


def measure(megabytes: float, repeats: int) -> dict:
    """Median of some runs, by the clock."""
    with tempfile.TemporaryDirectory() as folder:
        files = [instances(Path(folder) / f"{seed}.parquet", seed, int(megabytes * 1e6)) for seed in (1, 2)]
        runs = sorted((measured("leaks", *files) for _ in range(repeats)), key=lambda run: run.seconds)
    middle = runs[len(runs) // 2]
    return {
        "megabytes_of_each_file": megabytes,
        "seconds": round(middle.seconds, 1),
        "processor_seconds": round(middle.processor_seconds, 1),
        "peak_mb": round(max(run.megabytes for run in runs)),
        "runs": len(runs),
    }


def main() -> None:
    flags = argparse.ArgumentParser(description="Measure the leak comparison of two large files.")
    flags.add_argument("--megabytes", type=float, default=62)
    flags.add_argument("--repeats", type=int, default=3)
    flags.add_argument("--out", type=Path, default=RESULT)
    given = flags.parse_args()
    row = measure(given.megabytes, given.repeats)
    print(row)
    write(given.out, [row])


if __name__ == "__main__":
    main()
