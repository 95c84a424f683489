"""Draws the pictures of the README and of docs/, into this folder.

    python docs/pictures/make.py               all of them
    python docs/pictures/make.py results       one: pipeline, results, learning_curve, pretrained_curve or inspect

`inspect` needs Chromium. Beside results.png and the curves lies a JSON file with the numbers they show;
tests/test_docs.py compares it with the result files of tests/benchmarks/results.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
sys.path.insert(0, str(ROOT))
from membuilder.colours import PALETTE, colours_of  # noqa: E402
from membuilder.types import Agent  # noqa: E402
from tests.chromium import open_chromium  # noqa: E402
from trainer.plots import GREY, INK, STYLE  # noqa: E402

RESULTS = ROOT / "tests/benchmarks/results"
BLUE, ORANGE, *_ = PALETTE
SYSTEMS = {
    "random": "random turns",
    "longest": "longest turns",
    "sft": "after SFT",
    "rules": "rules",
    "adrpo": "after ADRPO",
}
"""The systems of results.png; `all`, which stores every turn, has three times the memory and stands in the text."""
BARS = {"adrpo": (ORANGE, "white"), "sft": (BLUE, "white")}
"""Colours of a bar and of the text in it; the others are grey."""
CURVE = "8 updates a step, entropy bonus 0.05, target 0.8"
"""The run of development.json that learning_curve.png shows."""


def read_result(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def results_numbers() -> dict[str, dict[str, list[float]]]:
    """Chart -> system -> accuracy and memory tokens."""
    charts = {
        "generated": read_result("learning")["mean"],
        "pretrained_generated": read_result("real_model")["parts"]["generated"]["systems"],
        "locomo": read_result("locomo")["systems"],
        "pretrained": read_result("real_model")["parts"]["locomo"]["systems"],
        "memalpha": _by_accuracy(read_result("memalpha")["mean"]),
        "memalpha_squad": _by_accuracy(read_result("memalpha_real")["squad"]["systems"]),
    }
    return {
        chart: {name: [round(systems[name]["accuracy"], 3), round(systems[name]["memory_tokens"])] for name in SYSTEMS}
        for chart, systems in charts.items()
    }


def _by_accuracy(systems: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the systems of a benchmark of memalpha, whose files have r1, under the names of the others."""
    names = {"rl": "adrpo"}
    return {names.get(name, name): row | {"accuracy": row["r1"]} for name, row in systems.items()}


def curve_numbers() -> dict[str, list[float]]:
    """Steps, held-out accuracy and memory tokens; step 0 is the model after SFT, `rules` has accuracy and memory."""
    development = read_result("development")["reward_per_window"]
    (points,) = (run["held_out"] for run in development["runs"] if run["what"] == CURVE)
    return {
        "steps": [0, *(point["step"] for point in points)],
        "accuracy": [0.481, *(point["accuracy"] for point in points)],
        "memory_tokens": [857, *(point["memory_tokens"] for point in points)],
        "rules": [0.511, 731],
    }


def pretrained_numbers() -> dict[str, list[float]]:
    """Of each RL step of SmolLM2: share of answered questions, memory beside the rules', and entropy in nats."""
    rows = read_result("real_model")["parts"]["generated"]["curves"]["rl"]
    return {name: [round(row[name], 3) for row in rows] for name in ("qa/accuracy", "memory_ratio", "entropy")}


def save(figure: plt.Figure, name: str) -> None:
    figure.savefig(FOLDER / f"{name}.png", dpi=130, facecolor="white")
    plt.close(figure)


def write_numbers(name: str, numbers: Any) -> None:
    (FOLDER / f"{name}.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def box(ax: Axes, x: float, y: float, width: float, height: float, colour: str, title: str, text: str = "") -> None:
    """A rounded box with a bold title, and plain text under it."""
    shape = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.12", facecolor=f"{colour}18", edgecolor=colour,
        linewidth=1.4,
    )  # fmt: skip
    ax.add_patch(shape)
    middle = x + width / 2
    if text:
        ax.text(middle, y + height - 0.16, title, ha="center", va="top", fontweight="bold", color=INK, fontsize=10.5)
        ax.text(middle, y + height - 0.55, text, ha="center", va="top", color=INK, fontsize=9.5, linespacing=1.35)
    else:
        ax.text(middle, y + height / 2, title, ha="center", va="center", fontweight="bold", color=INK, fontsize=10.5)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], bend: float = 0.0) -> None:
    style = f"arc3,rad={bend}"
    ax.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=13, color=GREY, linewidth=1.5, connectionstyle=style
        )
    )


def draw_pipeline() -> None:
    figure, ax = plt.subplots(figsize=(10, 5.6), layout="constrained")
    ax.set_xlim(0, 12.4)
    ax.set_ylim(0, 6.4)
    ax.axis("off")
    box(ax, 0.1, 3.2, 1.9, 1.5, GREY, "One session", "of the dialogue,\nand the memory\nbefore it")
    ax.text(4.0, 6.3, "scheme four_agents", ha="center", va="top", color=INK, fontsize=9.5, style="italic")
    for number, (agent, colour) in enumerate(colours_of(Agent).items()):
        y = 5.4 - number * 0.66
        box(ax, 3.0, y, 2.0, 0.52, colour, f"{agent} agent")
        arrow(ax, (2.08, 3.95), (2.95, y + 0.26))
        arrow(ax, (5.05, y + 0.26), (5.95, 3.95))
    ax.text(4.0, 3.12, "or scheme memalpha", ha="center", va="top", color=INK, fontsize=9.5, style="italic")
    box(ax, 3.0, 1.8, 2.0, 0.95, INK, "one writer", "calls tools")
    arrow(ax, (2.08, 3.95), (2.95, 2.28))
    arrow(ax, (5.05, 2.28), (5.95, 3.95))
    box(ax, 6.0, 3.2, 1.9, 1.5, GREY, "Memory", "after the session:\nadded, updated\nor left alone")
    arrow(ax, (7.95, 3.95), (8.55, 3.95))
    box(ax, 8.6, 3.2, 1.7, 1.5, GREY, "Questions", "right away, or\nat the end of\nthe dialogue")
    arrow(ax, (10.35, 3.95), (10.75, 3.95))
    box(ax, 10.8, 3.2, 1.5, 1.5, INK, "Reward", "correct, short,\nwell-formed")
    ax.add_patch(
        FancyArrowPatch(
            (11.55, 3.13), (5.05, 0.5), arrowstyle="-|>", mutation_scale=13, color=GREY, linewidth=1.5,
            connectionstyle="angle,angleA=-90,angleB=180,rad=8",
        )
    )  # fmt: skip
    told = (
        "RL: each answer learns from its reward against the mean of 8 rollouts;",
        "in ADRPO the agent whose memories were used weighs more",
    )
    ax.text(8.2, 0.62, "\n".join(told), ha="center", va="bottom", color=INK, fontsize=9.5, linespacing=1.35)
    box(ax, 3.0, 0.05, 2.0, 0.9, INK, "The model")
    ax.text(3.85, 1.38, "one model,\n8 rollouts", ha="right", va="center", color=INK, fontsize=9.5)
    arrow(ax, (4.0, 1.0), (4.0, 1.75))
    box(ax, 0.1, 0.05, 1.9, 0.9, GREY, "SFT", "on expert answers")
    arrow(ax, (2.05, 0.5), (2.95, 0.5))
    save(figure, "pipeline")


def draw_results() -> None:
    numbers = results_numbers()
    write_numbers("results", numbers)
    titles = {
        "generated": "Generated people, tiny model",
        "pretrained_generated": "Generated people, SmolLM2-135M",
        "locomo": "Real LoCoMo, tiny model",
        "pretrained": "Real LoCoMo, SmolLM2-135M",
        "memalpha": "Mem-alpha, generated chunks, tiny model",
        "memalpha_squad": "Mem-alpha, SQuAD, tiny model",
    }
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(3, 2, figsize=(9.5, 8.6), layout="constrained")
        for ax, (chart, systems) in zip(axes.flat, numbers.items(), strict=True):
            ordered = sorted(systems.items(), key=lambda item: item[1][0])
            for place, (name, (accuracy, memory)) in enumerate(ordered):
                colour, ink = BARS.get(name, ("#c4c4c4", INK))
                ax.barh(place, accuracy, color=colour, height=0.68)
                ax.text(accuracy + 0.012, place, f"{accuracy:.3f}", va="center", color=INK, fontweight="bold")
                ax.text(0.012, place, f"{memory:,} tokens", va="center", color=ink, fontsize=8.5)
            ax.set_yticks(range(len(ordered)), [SYSTEMS[name] for name, _ in ordered])
            ax.tick_params(axis="y", length=0)
            ax.set_xlim(0, 0.75)
            ax.set_xticks([])
            ax.spines[["left", "bottom"]].set_visible(False)
            ax.set_title(titles[chart])
        what = "share of questions whose evidence is found; in the bars: size of a dialogue's memory"
        figure.supxlabel(what, fontsize=9.5, color=INK)
        save(figure, "results")


def draw_learning_curve() -> None:
    numbers = curve_numbers()
    write_numbers("learning_curve", numbers)
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
        panels = (
            (left, "accuracy", "Questions answerable, held-out people", 0, "share of questions", 0.75),
            (right, "memory_tokens", "Memory written", 1, "tokens per dialogue", 1250),
        )
        for ax, name, title, place, unit, top in panels:
            ax.plot(numbers["steps"], numbers[name], "-o", color=ORANGE, linewidth=1.8, markersize=4.5)
            ax.axhline(numbers["rules"][place], color=GREY, linewidth=1.2, linestyle="--")
            ax.text(50, numbers["rules"][place] - top * 0.02, "rules", color=INK, va="top", ha="right")
            ax.set_title(title)
            ax.set_ylabel(unit)
            ax.set_xlabel("RL step (0: after SFT)")
            ax.set_ylim(0, top)
        save(figure, "learning_curve")


def draw_pretrained_curve() -> None:
    numbers = pretrained_numbers()
    write_numbers("pretrained_curve", numbers)
    titles = {
        "qa/accuracy": "Questions answered, share",
        "memory_ratio": "Memory, times the rules'",
        "entropy": "Entropy of a token, nats",
    }
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(10, 2.9), layout="constrained")
        for ax, (name, values) in zip(axes, numbers.items(), strict=True):
            ax.plot(range(len(values)), values, "-o", color=ORANGE, linewidth=1.6, markersize=3)
            ax.set_title(titles[name], fontsize=10.5)
            ax.set_xlabel("RL step")
            ax.set_ylim(0)
        axes[1].axhline(1, color=GREY, linewidth=1.2, linestyle="--")
        save(figure, "pretrained_curve")


def draw_inspect() -> None:
    """The page that `membuilder.inspect --html` writes, of a memory that the rules built from a generated dialogue."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_generated(folder / "talk.jsonl")
        command = [sys.executable, "-m"]
        store, page = folder / "talk.db", folder / "talk.html"
        data = ["--dataset", "custom", "--dataset-path", str(folder / "talk.jsonl")]
        built = [*command, "membuilder.build", *data, "--model", "rules", "--out", str(store)]
        subprocess.run(built, cwd=ROOT, check=True)
        shown = [*command, "membuilder.inspect", str(store), "--html", str(page)]
        subprocess.run(shown, cwd=ROOT, check=True)
        with open_chromium(folder / "profile") as browser:
            browser.open(page, width=1100, height=720)
            browser.picture(FOLDER / "inspect.png")


def write_generated(path: Path) -> None:
    """One generated dialogue in the format of your own data (docs/data-formats.md)."""
    from membuilder.generate.dialogue import generate

    (dialogue,) = generate(1, 1, "heldout")
    sessions = [
        {
            "timestamp": session.timestamp.isoformat(),
            "turns": [{"id": turn.id, "speaker": turn.speaker, "text": turn.text} for turn in session.turns],
        }
        for session in dialogue.sessions
    ]
    line = {"id": dialogue.id, "speakers": list(dialogue.speakers), "sessions": sessions, "questions": []}
    path.write_text(json.dumps(line) + "\n", encoding="utf-8")


PICTURES = {
    "pipeline": draw_pipeline,
    "results": draw_results,
    "learning_curve": draw_learning_curve,
    "pretrained_curve": draw_pretrained_curve,
    "inspect": draw_inspect,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(PICTURES)}; default: all")
    for name in parser.parse_args().names or PICTURES:
        PICTURES[name]()
        print(f"wrote {FOLDER / f'{name}.png'}")


if __name__ == "__main__":
    main()
