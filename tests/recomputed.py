"""The numbers of an evaluation, worked out anew from the lines of its `answers.jsonl` and nothing else.

    check_numbers(Path("logs"))  # AssertionError names each number in which results.json or table.md differs

Plain arithmetic on what was found, answered and judged: nothing here imports membuilder, nor reads a line's `scores`.
"""

import json
import math
import re
import string
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from nltk.stem import PorterStemmer

CUTOFFS = (5, 10, 20)
JUDGES = ("strict", "lenient")
ANSWER_SCORES = ("f1", "exact", "substring", "abstention", "wrongly_abstained")
REFUSALS = (
    "no information available", "not mentioned", "not answerable", "unanswerable", "cannot be answered", "does not say",
    "not enough information", "no information about", "don't know", "do not know",
)  # fmt: skip
SESSION = re.compile(r"[A-Z](\d+):\d+")
"""A turn of a generated dialogue, or one without an id of its own, names its session."""
Line = dict[str, Any]
Score = Fraction | int | None


class Bootstrap(NamedTuple):
    level: float
    resamples: int
    seed: int

    @classmethod
    def stated(cls, text: str) -> Self:
        level, resamples, seed = map(int, re.search(r"(\d+)% .* (\d+) resamples, seed (\d+)", text).groups())
        return cls(level / 100, resamples, seed)

    def counts(self, num_questions: int) -> list[list[int]]:
        """How often each question is drawn, resample by resample."""
        rng = np.random.default_rng(self.seed)
        return rng.multinomial(num_questions, np.full(num_questions, 1 / num_questions), size=self.resamples).tolist()

    def interval(self, scores: Sequence[Score], counts: list[list[int]]) -> list[float] | None:
        """Percentiles of the means; None where a resample has no value."""
        there = [(n, float(score)) for n, score in enumerate(scores) if score is not None]
        sizes = [sum(drawn[n] for n, _ in there) for drawn in counts]
        if not all(sizes):
            return None
        sums = (sum(drawn[n] * score for n, score in there) for drawn in counts)
        means = sorted(total / size for total, size in zip(sums, sizes, strict=True))
        return [_percentile(means, (1 - self.level) / 2), _percentile(means, (1 + self.level) / 2)]


def _percentile(values: list[float], share: float) -> float:
    place = share * (len(values) - 1)
    below = math.floor(place)
    return values[below] + (values[below + 1] - values[below]) * (place - below)


def check_numbers(folder: Path) -> list[Line]:
    """Compare every number of `results.json` and `table.md`, up to its rounding; return the lines they come from."""
    lines = last_lines(folder / "answers.jsonl")
    for line in lines:
        assert not list(differences(line["scores"], scores(line), 1e-12)), line
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    text = (folder / "table.md").read_text(encoding="utf-8")
    assert f"Intervals: {results['intervals']}." in text
    bootstrap = Bootstrap.stated(results["intervals"])
    systems = {
        name: summary([line for line in lines if line["system"] == name], bootstrap) for name in results["systems"]
    }
    found = list(differences(results["systems"], systems, 0.5e-6 + 1e-12))
    found += differences(tables(text), expected_tables(systems), 0.5e-3 + 0.5e-6)  # rounded twice
    assert not found, "\n".join(found)
    return lines


def last_lines(path: Path) -> list[Line]:
    """The last line of each question and system, in the order of their names."""
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    last = {(line["system"], line["dialogue"], line["question_id"]): line for line in lines}
    return [last[key] for key in sorted(last)]


# Scores of one question


def scores(line: Line) -> dict[str, Score]:
    found: dict[str, Score] = {}
    for level in ("", "session_"):
        for k in CUTOFFS:
            share = _recall(line, k, by_session=bool(level))
            found[f"{level}recall@{k}"] = None if share is None else int(share == 1)
            found[f"{level}recall_any@{k}"] = None if share is None else int(share > 0)
            found[f"{level}recall_mean@{k}"] = share
    found |= dict.fromkeys(ANSWER_SCORES) if line["answer"] is None else _of_answer(line)
    for judge in JUDGES:
        correct = line["verdicts"].get(judge, {}).get("correct")
        found[f"judge_{judge}"] = None if correct is None else int(correct)
    return found | {"source": None}  # of instances alone


def _recall(line: Line, k: int, by_session: bool) -> Score:
    """The share of the evidence among the first k; the core counts in each k."""

    def places(turns: list[str]) -> set:
        return {int(SESSION.fullmatch(turn)[1]) - 1 for turn in turns} if by_session else set(turns)

    def of(item: dict) -> set:
        return places(item["source_turns"]) or ({item["session"]} if by_session else set())

    core = places(line["core_turns"])
    shown = core.union(*map(of, line["retrieved"]))
    if not line["evidence"] or (line["retrieved"] and not shown):
        return None
    evidence = places(line["evidence"])
    return Fraction(len(evidence & core.union(*map(of, line["retrieved"][:k]))), len(evidence))


def _of_answer(line: Line) -> dict[str, Score]:
    """Of a category that LoCoMo scores plainly: as ours are."""
    refuses = int(any(phrase in line["answer"].lower() for phrase in REFUSALS))
    if not line["answerable"]:
        return dict.fromkeys(ANSWER_SCORES) | {"abstention": refuses}
    given, gold = words(line["answer"]), words(line["gold"])
    windows = [given[n : n + len(gold)] for n in range(len(given))]
    return {
        "f1": f1(line["answer"], line["gold"]),
        "exact": int(set(given) == set(gold)),
        "substring": int(gold in windows),
        "abstention": None,
        "wrongly_abstained": refuses,
    }


def words(text: str) -> list[str]:
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
    return [word for word in plain.split() if word not in ("a", "an", "the", "and")]


def f1(answer: str, gold: str) -> Fraction:
    stem = PorterStemmer().stem
    given, wanted = [stem(word) for word in words(answer)], [stem(word) for word in words(gold)]
    left = list(wanted)
    common = sum(word in left and left.remove(word) is None for word in given)
    if not common:
        return Fraction(0)
    precision, recall = Fraction(common, len(given)), Fraction(common, len(wanted))
    return 2 * precision * recall / (precision + recall)


# Means over questions


def block(lines: list[Line], bootstrap: Bootstrap) -> dict[str, Any]:
    """The numbers over some questions, as `results.json` has them."""
    columns = [scores(line) for line in lines]
    counts = bootstrap.counts(len(lines)) if lines else []

    def mean(name: str) -> float | None:
        values = [column[name] for column in columns if column[name] is not None]
        return float(Fraction(sum(values), len(values))) if values else None

    def interval(name: str) -> list[float] | None:
        return bootstrap.interval([column[name] for column in columns], counts) if lines else None

    def judged(judge: str) -> dict[str, Any] | None:
        verdicts = [line["verdicts"][judge]["correct"] for line in lines if judge in line["verdicts"]]
        missing = verdicts.count(None)
        known = {"judged": len(verdicts) - missing, "unjudged": missing}
        name = f"judge_{judge}"
        return {"accuracy": mean(name), "interval": interval(name)} | known if verdicts else None

    with_evidence = [column for line, column in zip(lines, columns, strict=True) if line["evidence"]]
    recalls = {
        f"evidence_recall{'_' * bool(by)}{by}{kind}": {
            str(k): mean(f"{by}{'_' * bool(by)}recall{kind}@{k}") for k in CUTOFFS
        }
        for by in ("", "session")
        for kind in ("", "_any", "_mean")
    }
    return recalls | {
        "questions": len(lines),
        "questions_with_evidence": len(with_evidence),
        "questions_without_turns": sum(column["recall@5"] is None for column in with_evidence),
        "evidence_recall_interval": {str(k): interval(f"recall@{k}") for k in CUTOFFS},
        **{name: mean(name) for name in ANSWER_SCORES},
        "judge": {judge: judged(judge) for judge in JUDGES},
        "intervals": {name: interval(name) for name in ANSWER_SCORES},
    }


def group(line: Line) -> str:
    return line["category"] if line["answerable"] else "abstention"


def summary(lines: list[Line], bootstrap: Bootstrap) -> dict[str, Any]:
    """The numbers of one system: recall over all questions, answers and verdicts over those that have an answer."""
    every = block(lines, bootstrap)
    answerable = block([line for line in lines if line["answerable"]], bootstrap)
    apart = block([line for line in lines if not line["answerable"]], bootstrap)
    of_answers = {name: answerable[name] for name in (*ANSWER_SCORES, "judge", "intervals")}
    groups = {name: [line for line in lines if group(line) == name] for name in map(group, lines)}
    return every | of_answers | {
        "questions_set_apart": apart["questions"],
        "unanswered": sum(line["answer"] is None for line in lines),
        "answerable": answerable,
        "set_apart": apart,
        "by_category": {name: block(each, bootstrap) for name, each in groups.items()},
    }  # fmt: skip


# The table

_ABSENT = object()


def tables(text: str) -> dict[str, list[dict[str, str]]]:
    """The rows of each Markdown table, column -> cell, under the line before it; the first has none."""
    found: dict[str, list[dict[str, str]]] = {}
    title, head = "", None
    for line in text.splitlines():
        if not line.startswith("|"):
            title, head = (line or title), None
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if head is None:
            head, found[title] = cells, []
        elif set(cells) != {"---"}:
            found[title].append(dict(zip(head, cells, strict=True)))
    return found


def expected_tables(systems: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Every table that is shown of these summaries; a cell is a name, a count, a mean, or (mean, interval)."""
    by_category = {
        "Evidence recall@10": ("questions_with_evidence", lambda block: block["evidence_recall"]["10"]),
        "F1": ("questions", lambda block: block["f1"]),
        "Judge, strict": ("questions", lambda block: (block["judge"]["strict"] or {}).get("accuracy")),
        "Judge, lenient": ("questions", lambda block: (block["judge"]["lenient"] or {}).get("accuracy")),
    }
    found = {"": [_row(name, system) for name, system in systems.items()]}
    for title, (size, number) in by_category.items():
        rows = [
            {"system": name} | {_column(each): number(block) for each, block in system["by_category"].items()}
            for name, system in systems.items()
        ]
        sizes = {_column(each): block[size] for each, block in next(iter(systems.values()))["by_category"].items()}
        found[f"{title} by category:"] = [*rows, {"system": size.replace("_", " ")} | sizes]
    return found


def _row(name: str, system: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"system": name, "questions": system["questions"]}
    for k in map(str, CUTOFFS):
        row[f"recall@{k}"] = system["evidence_recall"][k], system["evidence_recall_interval"][k]
    row["f1"] = system["f1"], system["intervals"]["f1"]
    row["abstention (set apart)"] = system["set_apart"]["abstention"]
    for place, numbers in (("", system["judge"]), (" (set apart)", system["set_apart"]["judge"])):
        for judge, of in numbers.items():
            row[f"judge {judge}{place}"] = (of["accuracy"], of["interval"]) if of else None
    counts = [of for part in (system, system["set_apart"]) for of in part["judge"].values() if of]
    return row | {"unanswered": system["unanswered"], "unjudged": sum(of["unjudged"] for of in counts)}


def _column(name: str) -> str:
    return f"{name} (set apart)" if name == "abstention" else name


def differences(found: Any, expected: Any, rounding: float, where: str = "") -> Iterator[str]:
    """What differs by more than rounding, place by place; a cell of a table is read as the numbers in it."""
    if isinstance(found, str) and not isinstance(expected, str):
        shown = [float(number) for number in re.findall(r"[\d.]+", found)]
        mean, interval = expected if isinstance(expected, tuple) else (expected, None)
        found, expected = shown, [number for number in (mean, *(interval or ())) if number is not None]
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in found.keys() | expected.keys():
            yield from differences(found.get(key, _ABSENT), expected.get(key, _ABSENT), rounding, f"{where}/{key}")
    elif isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        for n, pair in enumerate(zip(found, expected, strict=True)):
            yield from differences(*pair, rounding, f"{where}/{n}")
    elif isinstance(expected, float | Fraction) and isinstance(found, float | int):
        if abs(found - expected) > rounding:
            yield f"{where}: {found} is not {float(expected)}"
    elif found != expected:
        yield f"{where}: {found!r} is not {expected!r}"
