"""Draws the figures of a run from its metrics.jsonl and summary.json.

    python -m trainer.plots runs/rl

A metric that was not logged has no panel.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct, structs

from membuilder.colours import PALETTE, colours_of
from membuilder.command import ArgumentParser, clear_errors
from membuilder.datasets.files import FILE, read_json
from membuilder.datasets.typed import typed
from membuilder.errors import ConfigError
from trainer.logs.run_log import METRICS_FILE, read_jsonl

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GREY = "#222222", "#9a9a9a"
BLUE, ORANGE, *_ = PALETTE
SUMMARY_FILE = "summary.json"
NO_LOG = "name the folder of a run, with its files as the run wrote them"
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


class Line(NamedTuple):
    metric: str
    label: str
    colour: str = INK
    style: str = "-"
    width: float = 1.8


class Panel(NamedTuple):
    title: str
    unit: str
    lines: Sequence[Line]
    floor: float | None = 0
    """Lowest value of the y axis, for quantities that cannot go below it."""


class _SystemRow(Struct):
    accuracy: float | None = None
    memory_tokens: float | None = None


class _Summary(Struct):
    """What the figure takes from summary.json."""

    systems: dict[str, _SystemRow]


def _per_role(prefix: str, style: str = "-", suffix: str = "") -> Line:
    """Make a line for each role, in the role's own colour; which roles there are, only the log of the run tells."""
    return Line(f"{prefix}/{ROLE}", f"{ROLE}{suffix}", style=style, width=1.3)


ROLE = "<role>"
"""What stands in a metric and in its label for the name of a role."""
REWARD = [
    Panel("Reward", "reward, 0 to 1", [_per_role("reward"), Line("reward/mean", "mean")]),
    Panel("Questions answered", "share of questions", [Line("qa/accuracy", "answered")]),
    Panel("Format kept", "share of outputs", [_per_role("format")]),
    Panel("Length penalty", "penalty, 0 to 1", [_per_role("length_penalty")]),
]
WRITTEN = [_per_role("memory_tokens"), _per_role("expert_tokens", ":", " (expert)")]
LENGTHS = [
    Panel("Memory written per session, against the expert", "tokens", WRITTEN),
    Panel("Completion length", "tokens", [Line("completions/mean_length", "mean")]),
    Panel("Memory of greedy decoding, over the expert's", "ratio", [Line("memory_ratio", "ratio")]),
    Panel("Weight of the length penalty", "weight, 0 to 1", [Line("length_weight", "weight")]),
]
EVALUATION = [
    Panel("Held-out accuracy", "share of questions", [Line("eval/accuracy", "accuracy")]),
    Panel("Held-out memory", "tokens per dialogue", [Line("eval/memory_tokens", "memory")]),
]
GAP = [Line("sampling/logp_difference/mean", "difference")]
DRIFT = [
    Panel("KL to the reference model", "nats per token", [Line("kl", "KL")], floor=None),
    Panel("Log-probability gap between engine and trainer", "nats, mean absolute", GAP),
    Panel("Entropy", "nats per token", [Line("entropy", "entropy")]),
    Panel("Clipped tokens", "share of tokens", [Line("clip_ratio/mean", "clipped")]),
    Panel("Gradient norm", "before clipping", [Line("grad_norm", "norm")]),
]
LOSSES = [Line("sft/loss", "training", BLUE), Line("sft/val_loss", "validation", ORANGE)]
SFT = [Panel("Supervised fine-tuning loss", "nats per token", LOSSES, floor=None)]
SECONDS = [Line("time/collect", "generate and score", BLUE), Line("time/learn", "learn", ORANGE)]
TIME = [Panel("Time per step", "seconds", SECONDS)]
FIGURES = {"reward": REWARD, "lengths": LENGTHS, "drift": DRIFT, "evaluation": EVALUATION, "sft": SFT, "time": TIME}

Series = dict[str, tuple[list[int], list[float]]]


def plot_run(run_dir: str | Path) -> list[Path]:
    """Draw every figure that a run has data for, as PNGs in `run_dir`/plots."""
    metrics, summary, out_dir = (Path(run_dir, name) for name in (METRICS_FILE, SUMMARY_FILE, "plots"))
    written = []
    if metrics.is_file():
        series = read_series(metrics)
        written += [plot_metrics(series, panels, out_dir / f"{name}.png") for name, panels in FIGURES.items()]
    if summary.is_file():
        written.append(plot_summary(summary, out_dir / "accuracy.png"))
    return [path for path in written if path is not None]


def read_series(path: str | Path) -> Series:
    """Metric -> (steps, values), leaving out the steps where it was not logged or not finite."""
    series: Series = {}
    for number, line in enumerate(read_jsonl(path), start=1):
        row, where = typed(dict, line, path, f"row {number}"), f"row {number}"
        step = typed(int, row.pop("step", None), path, where, "step", NO_LOG)
        row.pop("nonfinite", None)
        for name, value in typed(dict[str, float | None], row, path, where, advice=NO_LOG).items():
            if value is not None:
                steps, values = series.setdefault(name, ([], []))
                steps.append(step)
                values.append(value)
    return series


def plot_metrics(series: Series, panels: Sequence[Panel], out: Path) -> Path | None:
    """Draw one figure, a panel below the other over the same steps; None when no line of any panel has data."""
    panels = [panel._replace(lines=_lines(panel, series)) for panel in panels]
    present = [panel for panel in panels if any(line.metric in series for line in panel.lines)]
    if not present:
        return None
    with _figure(out, 8, 0.5 + 2.4 * len(present)) as figure:
        axes = figure.subplots(len(present), 1, sharex=True, squeeze=False)
        for ax, panel in zip(axes[:, 0], present, strict=True):
            _draw_panel(ax, panel, series)
        figure.align_ylabels()
        axes[-1, 0].set_xlabel("optimizer step")
        axes[-1, 0].locator_params("x", integer=True, min_n_ticks=1)
    return out


def _lines(panel: Panel, series: Series) -> list[Line]:
    """Return the lines of a panel, with one for each role in the place of one for all."""
    every = "prompt_too_long/"  # logged at every step for every role of the scheme, in its order
    roles = [name.removeprefix(every) for name in series if name.startswith(every)]
    lines = []
    for line in panel.lines:
        for role, colour in colours_of(roles).items() if ROLE in line.metric else [("", line.colour)]:
            metric, label = (text.replace(ROLE, role) for text in (line.metric, line.label))
            lines.append(line._replace(metric=metric, label=label, colour=colour))
    return lines


def plot_summary(path: str | Path, out: Path) -> Path | None:
    """Accuracy per system, best first, with the memory it needed; None when no system has an accuracy."""
    found = typed(_Summary, read_json(Path(path)), path, FILE, advice=NO_LOG).systems
    systems = {name: structs.asdict(row) for name, row in found.items()}
    scored = {name: system for name, system in systems.items() if system["accuracy"] is not None}
    if not scored:
        return None
    names = sorted(scored, key=lambda name: scored[name]["accuracy"])
    columns = [("accuracy", "Questions answered", BLUE, "{:.1%}")]
    if any(system.get("memory_tokens") is not None for system in scored.values()):
        columns.append(("memory_tokens", "Memory, tokens per dialogue", GREY, "{:,.0f}"))
    with _figure(out, 9, 0.9 + 0.4 * len(names), grid=False) as figure:
        axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)
        for ax, (key, title, colour, text) in zip(axes[0], columns, strict=True):
            _draw_bars(ax, names, [scored[name].get(key) for name in names], colour, text)
            ax.set_title(title)
    return out


@contextmanager
def _figure(out: Path, width: float, height: float, grid: bool = True) -> "Iterator[Figure]":
    """Give a figure to draw in, its size in inches, which is written to `out` in the end."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE | {"axes.grid": grid}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out)


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


def _draw_bars(ax: "Axes", names: list[str], values: list[float | None], colour: str, text: str) -> None:
    bars = ax.barh(names, [value or 0 for value in values], color=colour, height=0.62)
    labels = ["not measured" if value is None else text.format(value) for value in values]
    ax.bar_label(bars, labels, padding=4)
    ax.margins(x=0.18)
    ax.set_xlim(left=0)
    ax.xaxis.set_visible(False)
    ax.spines["bottom"].set_visible(False)
    ax.tick_params(axis="y", length=0)


@clear_errors("trainer.plots")
def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m trainer.plots", description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path, help=f"folder with {METRICS_FILE}, {SUMMARY_FILE} or both")
    run_dir = parser.parse_args(argv).run_dir
    if not any((run_dir / name).is_file() for name in (METRICS_FILE, SUMMARY_FILE)):
        raise ConfigError(f"'{run_dir}' holds neither {METRICS_FILE} nor {SUMMARY_FILE}: name the folder of a run")
    for written in plot_run(run_dir):
        print(written)


if __name__ == "__main__":
    main()
