"""The numbers of a run -> `table.md`: all systems in one table, then each metric by category."""

from collections.abc import Iterator, Mapping, Sequence

from membuilder.evaluation.metrics import CUTOFFS, JUDGES, METRICS, SET_APART, Metric
from membuilder.evaluation.report import CATEGORY_POLICY, Block, Estimate, Summary, intervals_text

_APART = " (set apart)"


def categories(systems: Mapping[str, Summary]) -> list[str]:
    return list(dict.fromkeys(group for system in systems.values() for group in system.by_category))


def shown_metrics(systems: Mapping[str, Summary]) -> list[Metric]:
    """The metrics that are shown by category and were taken of some question."""
    blocks = [block for system in systems.values() for block in system.by_category.values()]
    return [
        metric
        for metric in METRICS.values()
        if metric.by_category and any(block.estimates[metric.name].mean is not None for block in blocks)
    ]


def title(group: str) -> str:
    return f"{group}{_APART}" if group in SET_APART else group


def table(systems: Mapping[str, Summary], seed: int) -> str:
    """The numbers as Markdown."""
    judges = [f"judge {name}" for name in JUDGES]
    head = ["system", "questions", *(f"recall@{k}" for k in CUTOFFS), "f1", *judges, f"abstention{_APART}"]
    head += [*(f"{judge}{_APART}" for judge in judges), "unanswered", "unjudged"]
    return "\n".join(
        [
            *_markdown(head, [_row(name, system) for name, system in systems.items()]),
            *_without_turns(systems),
            "",
            *_by_category(systems),
            f"Intervals: {intervals_text(seed)}. What counts where:",
            "",
            *(f"- {name}: {text}." for name, text in CATEGORY_POLICY.items()),
            "",
        ]
    )


def _row(name: str, system: Summary) -> list[str]:
    judges = [f"judge_{judge}" for judge in JUDGES]
    shown = [system.overall.estimates[metric] for metric in (*(f"recall@{k}" for k in CUTOFFS), "f1", *judges)]
    counts = [each for block in (system.overall, system.set_apart) for each in block.judges.values()]
    return [
        name,
        str(system.overall.questions),
        *map(_number, shown),
        _mean(system.set_apart.estimates["abstention"]),
        *(_number(system.set_apart.estimates[judge]) for judge in judges),
        "" if system.unanswered is None else str(system.unanswered),
        str(sum(each.unjudged for each in counts)) if counts else "",
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


def _by_category(systems: Mapping[str, Summary]) -> Iterator[str]:
    groups = categories(systems)
    for metric in shown_metrics(systems):
        rows = [
            [name, *(_cell(system.by_category.get(group), metric) for group in groups)]
            for name, system in systems.items()
        ]
        yield f"{metric.title[0].upper()}{metric.title[1:]} by category:"
        yield ""
        yield from _markdown(["system", *map(title, groups)], [*rows, _sizes(systems, groups, metric)])
        yield ""


def _cell(block: Block | None, metric: Metric) -> str:
    return "" if block is None else _mean(block.estimates[metric.name])


def _sizes(systems: Mapping[str, Summary], groups: Sequence[str], metric: Metric) -> list[str]:
    blocks = [next(iter(systems.values())).by_category[group] for group in groups]
    if metric.is_recall:
        return ["questions with evidence", *(str(block.questions_with_evidence) for block in blocks)]
    return ["questions", *(str(block.questions) for block in blocks)]


def _mean(estimate: Estimate) -> str:
    return "" if estimate.mean is None else f"{estimate.mean:.3f}"


def _number(estimate: Estimate) -> str:
    if estimate.mean is None or estimate.interval is None:
        return _mean(estimate)
    return f"{_mean(estimate)} [{estimate.interval[0]:.3f}, {estimate.interval[1]:.3f}]"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
