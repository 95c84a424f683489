"""Tests whether one run is better than another, question by question on the same questions, and what memory it took."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
from msgspec import UNSET

from membuilder.errors import EvaluationError
from membuilder.evaluation.intervals import Paired, paired
from membuilder.evaluation.metrics import METRICS
from membuilder.evaluation.records import Record, read_records

ANSWERS_FILE = "answers.jsonl"


class _Tokens(NamedTuple):
    memory: float
    whole: float


def load_side(name: str) -> list[Record]:
    """Return the records of `FOLDER` or `FOLDER:SYSTEM`; a folder of several systems needs the second form."""
    folder, colon, system = (name, "", None) if Path(name).is_dir() else name.rpartition(":")
    folder = folder if colon else name
    path = Path(folder) / ANSWERS_FILE
    if not path.is_file():
        raise EvaluationError(f"{name}: no {ANSWERS_FILE} at {path}; name the output folder of a run, or FOLDER:SYSTEM")
    records = read_records(path)
    systems = sorted({record.system for record in records})
    if system is None and len(systems) == 1:
        system = systems[0]
    if system not in systems:
        raise EvaluationError(f"{name}: the run has the systems {systems}; write {folder}:SYSTEM with one of them")
    return [record for record in records if record.system == system]


def compare(
    side_a: Sequence[Record], side_b: Sequence[Record], metrics: Sequence[str], seed: int
) -> dict[str, dict[str, Paired]]:
    """Return metric -> column (`answerable`, `set apart`) -> the paired result over what both sides could score.

    Raises EvaluationError unless both sides asked the same questions.
    """
    by_key_a, by_key_b = ({record.key[1:]: record for record in side} for side in (side_a, side_b))
    if by_key_a.keys() != by_key_b.keys():
        only_a, only_b = sorted(by_key_a.keys() - by_key_b.keys()), sorted(by_key_b.keys() - by_key_a.keys())
        raise EvaluationError(
            f"the two runs asked different questions: {len(only_a)} only in A {only_a[:3]}, {len(only_b)} only in B "
            f"{only_b[:3]}; run both on the same file and selection"
        )
    changed = [key for key in by_key_a if _asked(by_key_a[key]) != _asked(by_key_b[key])]
    if changed:
        raise EvaluationError(f"question {changed[0]} is not the same in both runs ({len(changed)} such); other data?")
    both = [(by_key_a[key], by_key_b[key]) for key in sorted(by_key_a)]  # the files are in the order of the answers
    found: dict[str, dict[str, Paired]] = {}
    for metric in metrics:
        for column, is_set_apart in (("answerable", False), ("set apart", True)):
            scores = [(a.scores[metric], b.scores[metric]) for a, b in both if a.is_set_apart == is_set_apart]
            pairs = np.array([pair for pair in scores if None not in pair], dtype=np.float64)  # (N, 2)
            if len(pairs):
                found.setdefault(metric, {})[column] = paired(pairs[:, 0], pairs[:, 1], seed)
    if not found:
        problem = f"no question has a score of {', '.join(metrics)} on both sides; known are {list(METRICS)}"
        raise EvaluationError(problem)
    return found


def compare_memory(side_a: Sequence[Record], side_b: Sequence[Record], seed: int) -> Paired | None:
    """Return the paired result over the tokens that the memories of the instances hold.

    It is None where a side has not counted them, or by another tokenizer than the other side: the instances themselves
    then count otherwise.
    """
    a, b = (_tokens_by_instance(side) for side in (side_a, side_b))
    if not a or a.keys() != b.keys() or any(a[name].whole != b[name].whole for name in a):
        return None
    memories = np.array([(a[name].memory, b[name].memory) for name in sorted(a)])  # (N, 2)
    return paired(memories[:, 0], memories[:, 1], seed)


def _tokens_by_instance(records: Sequence[Record]) -> dict[str, _Tokens]:
    """Map each instance to its mean over questions, since some systems keep another text for each of them."""
    found: dict[str, list[_Tokens]] = defaultdict(list)
    for record in records:
        if record.memory_tokens is not UNSET and record.chunk_tokens is not UNSET:
            found[record.dialogue].append(_Tokens(record.memory_tokens, record.chunk_tokens))
    return {name: _Tokens(*map(fmean, zip(*each, strict=True))) for name, each in found.items()}


def _asked(record: Record) -> tuple:
    return record.question, record.gold, record.evidence


def memory_as_text(found: Paired | None) -> str:
    if found is None:
        return "memory tokens are not compared: the two runs did not count them, or by different tokenizers"
    ratio = f"{found.mean_b / found.mean_a:.3f}" if found.mean_a else "-"
    return (
        f"memory tokens ({found.questions} dialogues): A {found.mean_a:.1f}, B {found.mean_b:.1f}, B / A {ratio}, "
        f"B - A {found.difference:+.1f} [{found.low:+.1f}, {found.high:+.1f}], p = {found.p_value:.4f} "
        f"({found.test}; A larger in {found.only_a}, B in {found.only_b})"
    )


def as_text(found: dict[str, dict[str, Paired]]) -> str:
    return "\n".join(
        f"{metric} ({column}, {result.questions} questions): A {result.mean_a:.3f}, B {result.mean_b:.3f}, "
        f"B - A {result.difference:+.3f} [{result.low:+.3f}, {result.high:+.3f}], p = {result.p_value:.4f} "
        f"({result.test}; A better on {result.only_a}, B on {result.only_b})"
        for metric, columns in found.items()
        for column, result in columns.items()
    )
