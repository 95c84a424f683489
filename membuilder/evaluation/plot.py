"""Draws one picture per run: each metric by category, with a dot and an interval per system."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from membuilder.colours import colours_of
from membuilder.evaluation.metrics import RECALLS, Metric
from membuilder.evaluation.report import Block, Summary
from membuilder.evaluation.table import categories, shown_metrics, title

_ALL = "all"


def draw(summaries: Mapping[str, Summary], path: Path) -> None:
    """Draw a panel per metric that was taken and a row per category, below the row of the mean that counts."""
    systems = {name: {**system.by_category, _ALL: system.overall} for name, system in summaries.items()}
    groups, metrics = [_ALL, *categories(summaries)], shown_metrics(summaries)
    height = 1.6 + (0.28 + 0.16 * len(systems)) * len(groups)
    figure = Figure(figsize=(3 + 4 * max(1, len(metrics)), height), layout="constrained")
    FigureCanvasAgg(figure)
    if metrics:
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for axes, metric in zip(panels, metrics, strict=True):
            _panel(axes, systems, groups, metric)
        panels[0].set_yticks(range(len(groups)), [_row_title(group, systems) for group in groups])
        panels[0].set_ylim(len(groups) - 0.5, -0.5)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False)
    figure.savefig(path, dpi=150)


def _panel(axes: Axes, systems: Mapping[str, Mapping[str, Block]], groups: list[str], metric: Metric) -> None:
    for number, (name, colour) in enumerate(colours_of(systems).items()):
        system = systems[name]
        axes.plot([], [], "o", color=colour, markersize=5, label=name)  # the legend names systems without values too
        for row, group in enumerate(groups):
            mean, interval = system[group].estimates[metric.name] if group in system else (None, None)
            height = row + (number - (len(systems) - 1) / 2) * 0.7 / len(systems)
            if interval is not None:
                axes.plot(interval, [height, height], color=colour, linewidth=1.5, alpha=0.6)
            if mean is not None:
                axes.plot([mean], [height], "o", color=colour, markersize=5)
    for row in range(len(groups) - 1):
        axes.axhline(row + 0.5, color="#dddddd", linewidth=0.8)
    label = metric.title if metric.name in RECALLS else f"{metric.title} ({_ALL}: answerable ones)"
    axes.set(xlim=(0, 1.02), xlabel=label)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)


def _row_title(group: str, systems: Mapping[str, Mapping[str, Block]]) -> str:
    sizes = [system[group].questions for system in systems.values() if group in system]
    return f"{title(group)}\n{max(sizes)} questions"
