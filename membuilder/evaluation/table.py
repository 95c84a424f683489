"""The numbers of a run -> `table.md`, and the same as wide as a terminal: all systems in one table, then each metric
by category.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

from membuilder.evaluation.by_source import SourceScores
from membuilder.evaluation.metrics import CUTOFFS, JUDGES, METRICS, RECALLS, SET_APART, Metric
from membuilder.evaluation.report import CATEGORY_POLICY, Estimate, Summary, intervals_text
from membuilder.evaluation.terminal import columns_within, lines_within

_APART = " (set apart)"


@dataclass(frozen=True, slots=True)
class _Grid:
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def categories(systems: Mapping[str, Summary]) -> list[str]:
    return list(dict.fromkeys(group for system in systems.values() for group in system.by_category))


def shown_metrics(systems: Mapping[str, Summary]) -> list[Metric]:
    """Return the metrics that are shown by category and were taken of some question."""
    blocks = [block for system in systems.values() for block in system.by_category.values()]
    return [
        metric
        for metric in METRICS.values()
        if metric.title and any(block.estimates[metric.name].mean is not None for block in blocks)
    ]


def title(group: str) -> str:
    return f"{group}{_APART}" if group in SET_APART else group


def table(systems: Mapping[str, Summary], seed: int) -> str:
    """Return the numbers as Markdown."""
    lines = []
    for part in _parts(systems, seed):
        lines += _markdown(part) if isinstance(part, _Grid) else [part]
    return "\n".join(lines)


def table_within(systems: Mapping[str, Summary], seed: int, width: int) -> str:
    """Return the same for a terminal of so many columns, without the columns in which no system has a number."""
    lines = []
    for part in _parts(systems, seed):
        if isinstance(part, _Grid):
            told = [any(cells) for cells in zip(*part.rows, strict=True)]
            head, *rows = (list(compress(row, told)) for row in (part.head, *part.rows))
            lines += columns_within(head, rows, width)
        else:
            lines += lines_within(part, width, indent="  " if part.startswith("- ") else "")
    return "\n".join(lines)


def _parts(systems: Mapping[str, Summary], seed: int) -> Iterator[_Grid | str]:
    """Yield grids and lines of text."""
    judges = [f"judge {name}" for name in JUDGES]
    head = ["system", "questions", *(f"recall@{k}" for k in CUTOFFS), "f1", *judges, f"abstention{_APART}"]
    head += [*(f"{judge}{_APART}" for judge in judges), "unanswered", "unjudged"]
    yield _Grid(head, [_row(name, system) for name, system in systems.items()])
    yield from _without_turns(systems)
    yield ""
    yield from _by_category(systems)
    yield from _by_source(systems)
    yield f"Intervals: {intervals_text(seed)}. What counts where:"
    yield ""
    yield from (f"- {name}: {text}." for name, text in CATEGORY_POLICY.items())
    yield ""


def _row(name: str, system: Summary) -> list[str]:
    judges = [f"judge_{judge}" for judge in JUDGES]
    shown = [system.overall.estimates[metric] for metric in (*(f"recall@{k}" for k in CUTOFFS), "f1", *judges)]
    apart = system.set_apart.estimates
    counts = [each for block in (system.overall, system.set_apart) for each in block.judges.values()]
    return [
        name,
        str(system.overall.questions),
        *map(_with_interval, shown),
        _mean(apart["abstention"]),
        *(_with_interval(apart[judge]) for judge in judges),
        "" if system.unanswered is None else str(system.unanswered),
        str(sum(each["unjudged"] for each in counts)) if counts else "",
    ]


def _without_turns(systems: Mapping[str, Summary]) -> Iterator[str]:
    """Say where recall by turns does not apply, because a model's own words stand for no turn."""
    for name, system in systems.items():
        block = system.overall
        if block.questions_without_turns:
            counts = f"{block.questions_without_turns} of {block.questions_with_evidence} questions with evidence"
            sessions = ", ".join(f"{_mean(block.estimates[f'session_recall@{k}'])} @{k}" for k in CUTOFFS)
            yield ""
            yield (
                f"{name}: for {counts} nothing but a model's own words was found, which stand for no turn. These count "
                f"in no recall by turns; recall by sessions is {sessions}."
            )


def _by_category(systems: Mapping[str, Summary]) -> Iterator[_Grid | str]:
    groups = categories(systems)
    blocks = next(iter(systems.values())).by_category
    for metric in shown_metrics(systems):
        rows = []
        for name, system in systems.items():
            found = [system.by_category.get(group) for group in groups]
            rows.append([name, *("" if block is None else _mean(block.estimates[metric.name]) for block in found)])
        is_recall = metric.name in RECALLS
        sizes = [blocks[group].questions_with_evidence if is_recall else blocks[group].questions for group in groups]
        rows.append([f"questions{' with evidence' if is_recall else ''}", *map(str, sizes)])
        yield f"{metric.title[0].upper()}{metric.title[1:]} by category:"
        yield ""
        yield _Grid(["system", *map(title, groups)], rows)
        yield ""


def _by_source(systems: Mapping[str, Summary]) -> Iterator[_Grid | str]:
    """Show the score of each source, and the means over sources, instances and questions."""
    found = {name: system.sources for name, system in systems.items() if system.sources is not None}
    if not found:
        return
    names = list(dict.fromkeys(source for scores in found.values() for source in scores.sources))
    rows = []
    for name, scores in found.items():
        of_sources = [scores.sources.get(source) for source in names]
        means = [scores.mean_of_sources, scores.mean_over_instances, scores.mean_over_questions]
        shown = ["" if each is None else _with_interval(Estimate(each.score, each.interval)) for each in of_sources]
        rows.append([name, *shown, *(_mean(Estimate(each)) for each in means)])
    first = next(iter(found.values())).sources
    unscored = {name: sum(each.unscored for each in scores.sources.values()) for name, scores in found.items()}
    sizes = [f"{first[name].instances} / {first[name].questions}" if name in first else "" for name in names]
    rows.append(["instances / questions", *sizes, "", "", ""])
    yield "Score by source, the mean over instances of the mean over questions, with intervals over instances:"
    yield ""
    yield _Grid(["system", *names, "mean of sources", "mean over instances", "mean over questions"], rows)
    yield ""
    for name, missing in unscored.items():
        if missing:
            yield f"{name}: {missing} questions could not be scored, and count in no mean."
            yield ""
    yield from _memory_by_source(found, names)


def _memory_by_source(found: Mapping[str, SourceScores], names: Sequence[str]) -> Iterator[_Grid | str]:
    """Show the tokens that each system keeps of an instance, beside those of its chunks."""
    if all(scores.memory_tokens is None for scores in found.values()):
        return
    of = {
        name: ([scores.sources[source].memory_tokens if source in scores.sources else None for source in names], scores)
        for name, scores in found.items()
    }
    rows = [[name, *map(_tokens, [*kept, scores.memory_tokens])] for name, (kept, scores) in of.items()]
    first = next(iter(found.values()))
    whole = [first.sources[source].chunk_tokens if source in first.sources else None for source in names]
    rows.append(["chunks", *map(_tokens, [*whole, first.chunk_tokens])])
    yield "Memory tokens by source, what a system keeps of an instance to answer from, the mean over instances:"
    yield ""
    yield _Grid(["system", *names, "mean of sources"], rows)
    yield ""
    for name, scores in found.items():
        cut = {source: each.cut_tokens for source, each in scores.sources.items() if each.cut_tokens}
        if cut:
            told = ", ".join(f"{source} {_tokens(tokens)}" for source, tokens in cut.items())
            yield f"{name}: tokens cut out of the middle, the mean over questions: {told}."
            yield ""


def _tokens(count: float | None) -> str:
    return "" if count is None else f"{count:.0f}"


def _mean(estimate: Estimate) -> str:
    return "" if estimate.mean is None else f"{estimate.mean:.3f}"


def _with_interval(estimate: Estimate) -> str:
    interval = "" if estimate.interval is None else " [{:.3f}, {:.3f}]".format(*estimate.interval)
    return f"{_mean(estimate)}{interval}"


def _markdown(grid: _Grid) -> list[str]:
    lines = [grid.head, ["---"] * len(grid.head), *grid.rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
