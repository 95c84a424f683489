"""One picture per run: each measure by category, a dot and interval per system."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from membuilder.evaluation.table import BY_CATEGORY, Block, categories, is_measured, title

_ALL = "all"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000", "#8c6d31")


def draw(found: Mapping[str, Any], path: Path) -> None:
    """A panel per measure that was taken, a row per category in it; systems without a value there are left out of the row.

    The first row is the mean that counts: all questions with evidence, and for answers the answerable ones.
    """
    systems = {name: {**system["by_category"], _ALL: system} for name, system in found["systems"].items()}
    groups = [_ALL, *categories(found["systems"])]
    measures = [measure for measure in BY_CATEGORY if is_measured(found["systems"], measure)]
    height = 1.6 + (0.28 + 0.16 * len(systems)) * len(groups)
    figure = Figure(figsize=(3 + 4 * max(1, len(measures)), height), layout="constrained")
    FigureCanvasAgg(figure)
    if measures:
        panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
        for axes, measure in zip(panels, measures, strict=True):
            _panel(axes, systems, groups, measure)
        panels[0].set_yticks(range(len(groups)), [_row_title(group, systems) for group in groups])
        panels[0].set_ylim(len(groups) - 0.5, -0.5)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False)
    figure.savefig(path, dpi=150)


def _panel(axes: Axes, systems: Mapping[str, Mapping[str, Block]], groups: list[str], measure: str) -> None:
    for number, (name, system) in enumerate(systems.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        axes.plot(
            [], [], "o", color=colour, markersize=5, label=name
        )  # for the legend, whatever the system has values of
        for row, group in enumerate(groups):
            if group in system:
                height = row + (number - (len(systems) - 1) / 2) * 0.7 / len(systems)
                _dot(axes, *BY_CATEGORY[measure](system[group]), height, colour)
    for row in range(len(groups) - 1):
        axes.axhline(row + 0.5, color="#dddddd", linewidth=0.8)
    axes.set(xlim=(0, 1.02), xlabel=measure if "recall" in measure else f"{measure} ({_ALL}: answerable ones)")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)


def _dot(axes: Axes, mean: float | None, interval: list[float] | None, height: float, colour: str) -> None:
    if interval is not None:
        axes.plot(interval, [height, height], color=colour, linewidth=1.5, alpha=0.6)
    if mean is not None:
        axes.plot([mean], [height], "o", color=colour, markersize=5)


def _row_title(group: str, systems: Mapping[str, Mapping[str, Block]]) -> str:
    sizes = [system[group]["questions"] for system in systems.values() if group in system]
    return f"{title(group)}\n{max(sizes)} questions"
