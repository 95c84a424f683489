"""`results.json` -> `table.md`: all systems in one table, then each measure by category."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from membuilder.evaluation.records import JUDGES
from membuilder.evaluation.report import SET_APART
from membuilder.evaluation.scorers import CUTOFFS

Block = Mapping[str, Any]
"""The numbers of one system over some of the questions."""
CUTOFF = "10"
"""Of the evidence recall that is shown by category."""


def _judge(name: str) -> Callable[[Block], tuple[float | None, Sequence[float] | None]]:
    def read(block: Block) -> tuple[float | None, Sequence[float] | None]:
        judge = block["judge"][name]
        return (None, None) if judge is None else (judge["accuracy"], judge["interval"])

    return read


BY_CATEGORY: dict[str, Callable[[Block], tuple[float | None, Sequence[float] | None]]] = {
    f"evidence recall@{CUTOFF}": lambda block: (
        block["evidence_recall"][CUTOFF],
        block["evidence_recall_interval"][CUTOFF],
    ),
    "F1": lambda block: (block["f1"], block["intervals"]["f1"]),
    **{f"judge, {name}": _judge(name) for name in JUDGES},
}
"""Measure -> its mean and interval in a block; None where it does not apply or was not taken."""


def categories(systems: Mapping[str, Block]) -> list[str]:
    return list(dict.fromkeys(group for system in systems.values() for group in system["by_category"]))


def is_measured(systems: Mapping[str, Block], measure: str) -> bool:
    blocks = [block for system in systems.values() for block in system["by_category"].values()]
    return any(BY_CATEGORY[measure](block)[0] is not None for block in blocks)


def title(group: str) -> str:
    return f"{group} (set apart)" if group in SET_APART else group


def table(found: Mapping[str, Any]) -> str:
    """The numbers as Markdown."""
    systems = found["systems"]
    head = ["system", "questions", *(f"recall@{k}" for k in CUTOFFS), "f1", *(f"judge {name}" for name in JUDGES)]
    head += ["abstention (set apart)", *(f"judge {name} (set apart)" for name in JUDGES), "unanswered", "unjudged"]
    policy = [f"- {name}: {text}." for name, text in found["category_policy"].items()]
    return "\n".join(
        [
            *_markdown(head, [_row(name, system) for name, system in systems.items()]),
            *_without_turns(systems),
            "",
            *_by_category(systems),
            f"Intervals: {found['intervals']}. What counts where:",
            "",
            *policy,
            "",
        ]
    )


def _row(name: str, system: Block) -> list[str]:
    judges = [system["judge"][judge] for judge in JUDGES]
    apart = [BY_CATEGORY[f"judge, {judge}"](system["set_apart"]) for judge in JUDGES]
    return [
        name,
        str(system["questions"]),
        *(_number(system["evidence_recall"][str(k)], system["evidence_recall_interval"][str(k)]) for k in CUTOFFS),
        _number(system["f1"], system["intervals"]["f1"]),
        *("" if judge is None else _number(judge["accuracy"], judge["interval"]) for judge in judges),
        _number(system["set_apart"]["abstention"]),
        *(_number(*each) for each in apart),
        "" if system["unanswered"] is None else str(system["unanswered"]),
        _unjudged([block["judge"][name] for block in (system, system["set_apart"]) for name in JUDGES]),
    ]


def _unjudged(judges: Sequence[Block | None]) -> str:
    return "" if not any(judges) else str(sum(judge["unjudged"] for judge in judges if judge))


def _without_turns(systems: Mapping[str, Block]) -> Iterator[str]:
    """Recall by turns does not apply to memories in a model's own words; that by sessions does."""
    for name, system in systems.items():
        if system["questions_without_turns"]:
            counts = (
                f"{system['questions_without_turns']} of {system['questions_with_evidence']} questions with evidence"
            )
            sessions = ", ".join(f"{_number(system['evidence_recall_session'][str(k)])} @{k}" for k in CUTOFFS)
            yield ""
            yield (
                f"{name}: for {counts} nothing but a model's own words was found, which stand for no turn. These count in no "
                f"recall by turns; recall by sessions is {sessions}."
            )


def _by_category(systems: Mapping[str, Block]) -> Iterator[str]:
    groups = categories(systems)
    for measure, read in BY_CATEGORY.items():
        if not is_measured(systems, measure):
            continue
        rows = [
            [
                name,
                *(
                    _number(read(system["by_category"][group])[0]) if group in system["by_category"] else ""
                    for group in groups
                ),
            ]
            for name, system in systems.items()
        ]
        yield f"{measure[0].upper()}{measure[1:]} by category:"
        yield ""
        yield from _markdown(["system", *map(title, groups)], [*rows, _sizes(systems, groups, measure)])
        yield ""


def _sizes(systems: Mapping[str, Block], groups: Sequence[str], measure: str) -> list[str]:
    counts = next(iter(systems.values()))["by_category"]
    key = "questions_with_evidence" if "recall" in measure else "questions"
    return [key.replace("_", " "), *(str(counts[group][key]) for group in groups)]


def _number(value: float | None, interval: Sequence[float] | None = None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if interval is None else f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
