"""The picture of scaling.py: where a step's time goes, and how much more many GPUs get done."""

from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from trainer.plots import INK, STYLE

# From the bottom up: label, colour, parts of scaling.py. Work in colour, waiting in grey.
BANDS = (
    ("generate", "#0072B2", ("generate",)),
    ("update", "#D55E00", ("update",)),
    ("judge", "#CC79A7", ("judge",)),
    ("communicate", "#009E73", ("reduce", "sync")),
    ("wait for the slowest", "#cfcfcf", ("wait_rewards", "wait_update")),
)
LINES = {
    "equal lengths": ("equal lengths", "#009E73"),
    "assumed": ("lengths as assumed", INK),
    "long tail": ("long-tailed lengths", "#D55E00"),
}


def draw(scenarios: dict[str, list[dict]], out: Path) -> None:
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5.2), width_ratios=(1.35, 1), layout="constrained")
        _shares(left, scenarios["assumed"])
        _throughput(right, scenarios)
        figure.suptitle(
            "Modelled from measured kernels: one ADRPO step of Qwen3-4B on H100s, 32 sessions for every node of eight",
            x=0.008, ha="left", fontsize=13, fontweight="bold", color=INK,
        )  # fmt: skip
        figure.get_layout_engine().set(w_pad=0.15, h_pad=0.12)
        figure.savefig(out)
        plt.close(figure)


def _shares(ax: Axes, rows: list[dict]) -> None:
    """Stacked bars of 100%, each band named once beside the last bar."""
    places, bottoms = range(len(rows)), [0.0] * len(rows)
    for name, colour, parts in BANDS:
        shares = [100 * sum(row["seconds"][part] for part in parts) / row["step_seconds"] for row in rows]
        ax.bar(places, shares, bottom=bottoms, color=colour, width=0.8, edgecolor="white", linewidth=0.8)
        middle = bottoms[-1] + shares[-1] / 2
        ax.text(len(rows) - 0.48, middle, f"{shares[-1]:.0f}%  {name}", va="center", color=INK)
        bottoms = [bottom + share for bottom, share in zip(bottoms, shares, strict=True)]
    for place, row in zip(places, rows, strict=True):
        ax.text(place, 101.5, f"{row['step_seconds']:,.0f} s", ha="center", va="bottom", color=INK)
    ax.set_title("Where an average GPU's time goes, and seconds of a step", pad=26)
    ax.set_ylabel("share of the step, %")
    ax.set_xlabel("GPUs")
    ax.set_xticks(list(places), [str(row["gpus"]) for row in rows])
    ax.tick_params(axis="x", length=0)
    ax.spines["bottom"].set_visible(False)
    ax.set_xlim(-0.5, len(rows) - 0.5)
    ax.set_ylim(0, 100)
    ax.set_yticks([0, 25, 50, 75, 100])


def _throughput(ax: Axes, scenarios: dict[str, list[dict]]) -> None:
    """What each GPU gets done next to one alone, each line named at its end."""
    for scenario, rows in scenarios.items():
        name, colour = LINES[scenario]
        sizes = [row["gpus"] for row in rows]
        alone = rows[0]["sessions_per_hour"]
        shares = [100 * row["sessions_per_hour"] / row["gpus"] / alone for row in rows]
        ax.plot(sizes, shares, "-o", color=colour, linewidth=1.8, markersize=4.5, clip_on=False)
        ax.annotate(
            f"{shares[-1]:.0f}%  {name}", (sizes[-1], shares[-1]), (9, 0), textcoords="offset points", va="center",
            color=colour,
        )  # fmt: skip
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(sizes))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter("{x:g}")
    ax.grid(axis="y", color="#ececec")
    ax.set_title("Sessions per hour and GPU, against one GPU alone", pad=26)
    ax.set_xlabel("GPUs")
    ax.set_ylabel("% of one GPU's")
    ax.set_ylim(0, 100)
    ax.set_yticks([0, 25, 50, 75, 100])
