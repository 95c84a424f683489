"""One picture per run: evidence recall at 10 by category, a dot and interval per system."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from membuilder.evaluation.report import SET_APART

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000", "#8c6d31")
_CUTOFF = "10"


def draw(found: Mapping[str, Any], path: Path) -> None:
    """A row per category, all questions first; systems without recall there are left out of the row."""
    systems = found["systems"]
    groups = list(dict.fromkeys(group for system in systems.values() for group in system["by_category"]))
    rows = [("all questions", dict(systems))]
    rows += [(group, {name: system["by_category"].get(group) for name, system in systems.items()}) for group in groups]
    rows = [
        (title, {name: block for name, block in blocks.items() if _recall(block) is not None}) for title, blocks in rows
    ]
    rows = [(title, blocks) for title, blocks in rows if blocks]
    figure = Figure(figsize=(8, 1.6 + (0.28 + 0.16 * len(systems)) * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for height, (_, blocks) in enumerate(rows):
        for number, name in enumerate(systems):
            if name in blocks:
                _dot(axes, blocks[name], height, number, name, len(systems), labelled=height == 0)
    axes.set_yticks(range(len(rows)), [_title(title, blocks) for title, blocks in rows])
    axes.set(
        xlim=(0, 1.02), ylim=(len(rows) - 0.5, -0.5), xlabel="questions whose every evidence turn is found (k = 10)"
    )
    for height in range(len(rows) - 1):
        axes.axhline(height + 0.5, color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper left", ncols=4, frameon=False)
    figure.savefig(path, dpi=150)


def _dot(axes, block: Mapping, height: int, number: int, name: str, count: int, labelled: bool) -> None:
    centre = height + (number - (count - 1) / 2) * 0.7 / max(count, 1)
    colour = _COLOURS[number % len(_COLOURS)]
    interval = block["evidence_recall_interval"][_CUTOFF]
    if interval is not None:
        axes.plot(interval, [centre, centre], color=colour, linewidth=1.5, alpha=0.6)
    axes.plot([_recall(block)], [centre], "o", color=colour, markersize=5, label=name if labelled else None)


def _recall(block: Mapping | None) -> float | None:
    return None if block is None else block["evidence_recall"][_CUTOFF]


def _title(group: str, blocks: Mapping) -> str:
    apart = " (set apart)" if group in SET_APART else ""
    return f"{group}{apart}\n{next(iter(blocks.values()))['questions_with_evidence']} questions"
