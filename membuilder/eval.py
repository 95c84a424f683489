"""Evaluate ways of remembering on public benchmarks.

    python -m membuilder.eval --dataset locomo --dataset-path locomo10.json --system rules --system rag-turn
    python -m membuilder.eval --dataset longmemeval --split test --system rag-session-bm25 --output-dir runs/bm25
    python -m membuilder.eval --dataset memalpha --dataset-path test.parquet --scheme memalpha --system rules --model m
    python -m membuilder.eval compare runs/rules runs/rag --metric recall@10

Without --model nothing is asked of a language model: retrieval is scored, which needs no network. With it every
question is answered and judged, strictly and leniently. Building and answering in two steps, with different models:

    python -m membuilder.eval --mode build --system rules --db-path banks
    python -m membuilder.eval --mode answer --db-path banks --model gpt-4.1-mini
"""

import argparse
import sys
from collections.abc import Sequence

from membuilder.command import ArgumentParser, exit_status
from membuilder.evaluation.compare import as_text, compare, compare_memory, load_side, memory_as_text
from membuilder.evaluation.metrics import METRICS
from membuilder.evaluation.options import dialogues_of, parse
from membuilder.garbage import keep_loaded
from membuilder.quiet import LOG_FILE, quiet_libraries
from membuilder.value_types import Seed, flag_type


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["compare"]:
        return exit_status("membuilder.eval", lambda: _compare(argv[1:]))
    kept = "What is answered and built stays; the same command goes on behind it."
    return exit_status("membuilder.eval", lambda: _evaluate(argv), kept)


def _evaluate(argv: Sequence[str]) -> int:
    options = parse(argv)
    dialogues, path = dialogues_of(options.flags)
    quiet_libraries(options.flags.output_dir / LOG_FILE)
    from membuilder.evaluation.run import run  # it loads libraries that wrong flags and files need not wait for

    keep_loaded()
    return run(options, dialogues, path)


def _compare(argv: Sequence[str]) -> int:
    parser = ArgumentParser(
        prog="python -m membuilder.eval compare",
        description="Test B against A, question by question, and the size of its memories, dialogue by dialogue.",
        epilog="\n".join(["metrics:", *(f"  {metric.name}: {metric.meaning}" for metric in METRICS.values())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", metavar="A", help="output folder of a run, or FOLDER:SYSTEM")
    parser.add_argument("b", metavar="B", help="output folder of a run, or FOLDER:SYSTEM")
    parser.add_argument(
        "--metric",
        action="append",
        choices=METRICS,
        metavar="METRIC",
        help="repeatable; else recall@10, f1, judges, source",
    )
    parser.add_argument("--seed", type=flag_type(Seed), default=0)
    given = parser.parse_args(argv)
    metrics = given.metric or ("recall@10", "f1", "judge_strict", "judge_lenient", "source")
    sides = load_side(given.a), load_side(given.b)
    print(as_text(compare(*sides, metrics, given.seed)))
    print(memory_as_text(compare_memory(*sides, given.seed)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
