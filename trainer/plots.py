"""Draws the figures of a run from its metrics.jsonl and summary.json.

    python -m trainer.plots runs/rl

A metric that was not logged has no panel.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from membuilder.errors import ConfigError, clear_errors
from membuilder.types import Agent
from trainer.logs.run_log import METRICS_FILE, read_jsonl

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# These are Okabe and Ito's colours, which colour-blind readers can tell apart; an agent has one colour in every figure.
INK, GREY = "#222222", "#9a9a9a"
COLOURS = {Agent.CORE: "#0072B2", Agent.EPISODIC: "#D55E00", Agent.SEMANTIC: "#009E73", Agent.PROCEDURAL: "#CC79A7"}
SUMMARY_FILE = "summary.json"
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.w_pad": 0.12,
    "savefig.dpi": 150,
}


@dataclass(frozen=True, kw_only=True)
class Line:
    metric: str
    label: str
    colour: str
    style: str = "-"
    width: float = 1.3


@dataclass(frozen=True, kw_only=True)
class Panel:
    title: str
    unit: str
    lines: tuple[Line, ...]
    floor: float | None = None
    """Lowest value of the y axis, for quantities that cannot go below it."""


def _per_agent(prefix: str, *, style: str = "-", suffix: str = "") -> tuple[Line, ...]:
    return tuple(
        Line(metric=f"{prefix}/{agent}", label=f"{agent}{suffix}", colour=COLOURS[agent], style=style)
        for agent in Agent
    )


def _one(metric: str, label: str, colour: str = INK) -> tuple[Line, ...]:
    return (Line(metric=metric, label=label, colour=colour, width=1.8),)


REWARD = (
    Panel(title="Reward", unit="reward, 0 to 1", lines=_per_agent("reward") + _one("reward/mean", "mean"), floor=0),
    Panel(title="Questions answered", unit="share of questions", lines=_one("qa/accuracy", "answered"), floor=0),
    Panel(title="Format kept", unit="share of outputs", lines=_per_agent("format"), floor=0),
    Panel(title="Length penalty", unit="penalty, 0 to 1", lines=_per_agent("length_penalty"), floor=0),
)
LENGTHS = (
    Panel(
        title="Memory written per session, against the expert",
        unit="tokens",
        lines=_per_agent("memory_tokens") + _per_agent("expert_tokens", style=":", suffix=" (expert)"),
        floor=0,
    ),
    Panel(title="Completion length", unit="tokens", lines=_one("completions/mean_length", "mean"), floor=0),
    Panel(
        title="Memory of greedy decoding, over the expert's", unit="ratio", lines=_one("memory_ratio", "ratio"), floor=0
    ),
    Panel(title="Weight of the length penalty", unit="weight, 0 to 1", lines=_one("length_weight", "weight"), floor=0),
)
EVALUATION = (
    Panel(title="Held-out accuracy", unit="share of questions", lines=_one("eval/accuracy", "accuracy"), floor=0),
    Panel(title="Held-out memory", unit="tokens per dialogue", lines=_one("eval/memory_tokens", "memory"), floor=0),
)
DRIFT = (
    Panel(title="KL to the reference model", unit="nats per token", lines=_one("kl", "KL")),
    Panel(
        title="Log-probability gap between engine and trainer",
        unit="nats, mean absolute",
        lines=_one("sampling/logp_difference/mean", "difference"),
        floor=0,
    ),
    Panel(title="Entropy", unit="nats per token", lines=_one("entropy", "entropy"), floor=0),
    Panel(title="Clipped tokens", unit="share of tokens", lines=_one("clip_ratio/mean", "clipped"), floor=0),
    Panel(title="Gradient norm", unit="before clipping", lines=_one("grad_norm", "norm"), floor=0),
)
SFT = (
    Panel(
        title="Supervised fine-tuning loss",
        unit="nats per token",
        lines=_one("sft/loss", "training", COLOURS[Agent.CORE])
        + _one("sft/val_loss", "validation", COLOURS[Agent.EPISODIC]),
    ),
)
TIME = (
    Panel(
        title="Time per step",
        unit="seconds",
        lines=_one("time/collect", "generate and score", COLOURS[Agent.CORE])
        + _one("time/learn", "learn", COLOURS[Agent.EPISODIC]),
        floor=0,
    ),
)
FIGURES = {"reward": REWARD, "lengths": LENGTHS, "drift": DRIFT, "evaluation": EVALUATION, "sft": SFT, "time": TIME}

Series = dict[str, tuple[list[int], list[float]]]


def plot_run(run_dir: str | Path) -> list[Path]:
    """Draw every figure that a run has data for, as PNGs in `run_dir`/plots."""
    run_dir = Path(run_dir)
    out_dir = run_dir / "plots"
    written = []
    if (run_dir / METRICS_FILE).is_file():
        series = read_series(run_dir / METRICS_FILE)
        written += [plot_metrics(series, panels, out_dir / f"{name}.png") for name, panels in FIGURES.items()]
    if (run_dir / SUMMARY_FILE).is_file():
        written.append(plot_summary(run_dir / SUMMARY_FILE, out_dir / "accuracy.png"))
    return [path for path in written if path is not None]


def read_series(path: str | Path) -> Series:
    """Metric -> (steps, values), leaving out the steps where it was not logged or not finite."""
    series: Series = {}
    for line in read_jsonl(path):
        for name, value in line.items():
            if name not in ("step", "nonfinite") and value is not None:
                steps, values = series.setdefault(name, ([], []))
                steps.append(line["step"])
                values.append(value)
    return series


def plot_metrics(series: Series, panels: Sequence[Panel], out: Path) -> Path | None:
    """One figure, a panel below the other over the same steps; None when no line of any panel has data."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    present = [panel for panel in panels if any(line.metric in series for line in panel.lines)]
    if not present:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(8, 0.5 + 2.4 * len(present)), layout="constrained")
        axes = figure.subplots(len(present), 1, sharex=True, squeeze=False)
        for ax, panel in zip(axes[:, 0], present, strict=True):
            _draw_panel(ax, panel, series)
        figure.align_ylabels()
        axes[-1, 0].set_xlabel("optimizer step")
        axes[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        return _save(figure, out)


def plot_summary(path: str | Path, out: Path) -> Path | None:
    """Accuracy per system, best first, with the memory it needed; None when no system has an accuracy."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    systems = json.loads(Path(path).read_text(encoding="utf-8"))["systems"]
    scored = [(name, system) for name, system in systems.items() if system.get("accuracy") is not None]
    if not scored:
        return None
    scored.sort(key=lambda item: item[1]["accuracy"])
    names = [name for name, _ in scored]
    columns = [("accuracy", "Questions answered", COLOURS[Agent.CORE])]
    if any(system.get("memory_tokens") is not None for _, system in scored):
        columns.append(("memory_tokens", "Memory, tokens per dialogue", GREY))
    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(9, 0.9 + 0.4 * len(names)), layout="constrained")
        axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)
        for ax, (key, title, colour) in zip(axes[0], columns, strict=True):
            _draw_bars(ax, names, [system.get(key) for _, system in scored], colour, is_share=key == "accuracy")
            ax.set_title(title)
        return _save(figure, out)


def _draw_panel(ax: "Axes", panel: Panel, series: Series) -> None:
    for line in panel.lines:
        if line.metric in series:
            steps, values = series[line.metric]
            # A metric logged once has no line to draw.
            marker = "o" if len(steps) == 1 else None
            ax.plot(steps, values, line.style, color=line.colour, linewidth=line.width, label=line.label, marker=marker)
    ax.set_title(panel.title)
    ax.set_ylabel(panel.unit)
    if panel.floor is not None:
        height = ax.dataLim.ymax - panel.floor
        ax.set_ylim(bottom=panel.floor, top=panel.floor + 1.08 * height if height > 0 else None)
    if len(panel.lines) > 1:
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_bars(ax: "Axes", names: list[str], values: list[float | None], colour: str, *, is_share: bool) -> None:
    present = [(name, value) for name, value in zip(names, values, strict=True) if value is not None]
    bars = ax.barh([name for name, _ in present], [value for _, value in present], color=colour, height=0.62)
    ax.bar_label(bars, [f"{value:.1%}" if is_share else f"{value:,.0f}" for _, value in present], padding=4)
    for name, value in zip(names, values, strict=True):
        if value is None:
            ax.text(0, name, "  not measured", va="center", color=GREY)
    ax.margins(x=0.18)
    ax.set_xlim(left=0)
    ax.xaxis.set_visible(False)
    ax.spines["bottom"].set_visible(False)
    ax.tick_params(axis="y", length=0)


def _save(figure: "Figure", out: Path) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    return out


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.plots", description="Draw the figures of a run into its plots/ folder."
    )
    parser.add_argument("run_dir", type=Path, help=f"folder with {METRICS_FILE}, {SUMMARY_FILE} or both")
    run_dir = parser.parse_args(argv).run_dir
    if not any((run_dir / name).is_file() for name in (METRICS_FILE, SUMMARY_FILE)):
        raise ConfigError(f"'{run_dir}' holds neither {METRICS_FILE} nor {SUMMARY_FILE}: name the folder of a run")
    for written in plot_run(run_dir):
        print(written)


if __name__ == "__main__":
    with clear_errors("trainer.plots"):
        main()
