"""The whole chain on a laptop: data, rules, SFT, ADRPO with vLLM rollouts, evaluation on dialogues kept apart.

    ./launch/quickstart.sh [--scheme SCHEME] [--model MODEL] [--data PATH] [--eval-data PATH] [--out DIR] [--seed N]
        [--steps-rl N] [--resume]

Writes DIR/summary.json, metrics, completions, the models and plots, and prints a table.
"""

import argparse
import json
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from membuilder.command import ArgumentParser, clear_errors
from membuilder.config import load
from membuilder.errors import ConfigError
from membuilder.files import write_atomic
from membuilder.garbage import keep_loaded
from membuilder.quiet import LOG_FILE, quiet_libraries
from membuilder.schemes.load import BUILT_IN, FOUR_AGENTS, MEMALPHA
from membuilder.text import first_of
from membuilder.value_types import NonNegativeFloat, NonNegativeInt, Seed, flag_type
from trainer.command_line import GOES_ON, check_paths
from trainer.rl_config import RLConfig
from trainer.sft_config import SFTConfig

if TYPE_CHECKING:
    from trainer.data.corpus import ExpertBuild
    from trainer.experience.evaluate import SystemResult

say = partial(print, flush=True)
CONFIGS = Path(__file__).parent.parent / "configs"
TINY, PRETRAINED, INSTANCES = "quickstart", "pretrained", "memalpha_tiny"
"""How the configs of a model made for the run begin, those of one that can read already, and those of memalpha."""
FOR_A_FILE = (
    "reward.length_weight=0.04",  # lower, because on real talk a stored turn answers a question more rarely
    # Turns are longer than a tolerance made for the generated corpus: writing nothing must cost nothing here too.
    "reward.length.tolerance_tokens=0",
    "reward.length.ratio_lower=0",
    "reward.length.ratio_upper=0",
)
"""RL settings when the data is a file; those of the command line take precedence."""
TINY_ON_A_FILE = ("num_steps=20", "optim.lr=5e-4", "length_target=1.2", "length_gain=3")
"""Further ones of the tiny model: a few long conversations are learned by heart soon, so fewer and smaller steps."""

INSTANCES_OF_A_FILE = {"sft": ("max_steps=300",), "rl": ("reward.judge=offline", "num_steps=20")}
"""Those of memalpha on instances of real text, by stage: they have other metrics, and are fewer than generated ones."""


def main(argv: Sequence[str] | None = None) -> None:
    text = "Train and evaluate a tiny memory builder on this machine."
    parser = ArgumentParser(prog="python -m trainer.quickstart", description=text)
    what = "how memory is written: four_agents on dialogues, or memalpha on instances of chunks (default: %(default)s)"
    parser.add_argument("--scheme", choices=BUILT_IN, default=FOUR_AGENTS, help=what)
    parser.add_argument("--model", help="smollm2, a folder, hub name or GGUF file; default: a tiny model")
    parser.add_argument("--data", help="LoCoMo or LongMemEval JSON (gz or not), Memalpha Parquet; default: generated")
    parser.add_argument("--eval-data", help="file for the held-out side; default: --data is split by dialogue")
    parser.add_argument("--out", default="runs/quickstart", help="output folder (default: %(default)s)")
    parser.add_argument("--seed", type=flag_type(Seed), default=1)
    few = "RL steps (default: the config's); 0 evaluates what SFT has learned and stops there"
    parser.add_argument("--steps-rl", type=flag_type(NonNegativeInt), help=few)
    parser.add_argument("--resume", action="store_true", help="go on with what --out holds of a run that was stopped")
    parser.add_argument("--setup-seconds", type=flag_type(NonNegativeFloat), help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="sft.key=value or rl.key=value")
    with clear_errors("quickstart", GOES_ON.format("--resume")):
        run(parser.parse_args(argv))


def run(given: argparse.Namespace) -> None:
    """Run every stage in order."""
    steps = [f"rl.num_steps={given.steps_rl}"] if given.steps_rl else []
    resume = ["sft.resume=auto", "rl.resume=auto"] if given.resume else []
    overrides = [*steps, *resume, *given.overrides]
    named = (given.data, given.eval_data, given.model)
    sft_config, rl_config = load_configs(given.out, given.seed, overrides, *named, given.scheme)
    check_paths(sft_config)
    quiet_libraries(Path(given.out) / LOG_FILE)
    # after the arguments were checked: PyTorch and its company take seconds to load
    from membuilder.embedding.local import Embedder
    from membuilder.schemes.load import scheme_of
    from rollout.tokens import load_tokenizer
    from trainer import rl, sft
    from trainer.data.corpus import SIDES, build_corpus
    from trainer.experience.evaluate import compare_baselines, judge_policy
    from trainer.plots import plot_run
    from trainer.run_setup import make_collector, make_engine, setup_rl, setup_sft

    seconds: Counter[str] = Counter()
    with timed("sft", seconds):
        embedder, scheme = Embedder(sft_config.embedding_model), scheme_of(sft_config)
        builds = build_corpus(sft_config.data, embedder, scheme, *SIDES)
        say(f"data: {given.data or 'generated for this run'}\n  train on {ids(builds.train)}")
        say(f"  evaluate on {ids(builds.held_out)}, never trained on")
        imitated = "rules" if given.scheme == FOUR_AGENTS else "offline expert"
        say(f"SFT: {given.model or 'a small Qwen3'} learns to imitate the {imitated}")
        sft_result = sft.train(sft_config, setup_sft(sft_config, builds, embedder))
    with timed("eval", seconds):
        say(f"evaluation: the baselines, then {rl_config.engine} with the SFT model")
        engine = make_engine(rl_config, sft_result.model_dir)
        tokenizer = load_tokenizer(str(sft_result.model_dir), rl_config.prompts.chat_template_kwargs)
        collector = make_collector(rl_config, engine, tokenizer, embedder)
        measured = Measured(Path(given.out, "systems.json"), given.resume)
        systems = measured.once("baselines", lambda: compare_baselines(builds.held_out, collector))
        systems |= measured.once("sft", lambda: {"sft": judge_policy(builds.held_out, collector, "sft")})
    steps = {"sft": sft_result.num_steps, "rl": 0 if given.steps_rl == 0 else rl_config.num_steps}
    if steps["rl"]:
        with timed("rl", seconds):
            say(f"RL: {rl_config.num_steps} steps of {rl_config.loss.name}")
            parts = setup_rl(rl_config, builds, collector)
            keep_loaded()
            rl.train(rl_config, parts)
        with timed("eval", seconds):
            after = f"adrpo after {rl_config.num_steps} steps"  # a run may be made longer
            systems |= measured.once(after, lambda: {"adrpo": judge_policy(builds.held_out, collector, "adrpo")})
    engine.close()

    held_out, path = [build.dialogue.id for build in builds.held_out], Path(given.out, "summary.json")
    record = summary(given, rl_config.engine, held_out, steps, seconds, systems)
    write_atomic(path, json.dumps(record, indent=2) + "\n")
    print(table(systems, rl_config.reward.judge, "accuracy" if given.scheme == FOUR_AGENTS else "r1"))
    for picture in (picture for folder in ("", "sft", "rl") for picture in plot_run(path.parent / folder)):
        print(f"picture: {picture}")
    print(f"summary: {path}")


def summary(
    given: argparse.Namespace,
    engine: str,
    held_out: Sequence[str],
    steps: dict[str, int],
    seconds: Counter[str],
    systems: "dict[str, SystemResult]",
) -> dict[str, Any]:
    """Return what a run was and came to, for its file."""
    rows = {name: result.row() for name, result in systems.items()}
    return {
        "scheme": given.scheme,
        "model": given.model or "tiny",
        "data": given.data or "generated",
        "eval_data": given.eval_data or ("split of data" if given.data else "generated, other people"),
        "held_out": held_out,
        "seed": given.seed,
        "engine": engine,
        "steps": steps,
        "wall_seconds": {"setup": given.setup_seconds, **seconds},
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "systems": rows,
        "prompt_too_long": {name: row.pop("prompt_too_long") for name, row in rows.items()},
    }


class Measured:
    """What was evaluated already, in a file beside the models: an evaluation takes minutes, and its model is done."""

    def __init__(self, path: Path, resume: bool) -> None:
        self._path = path
        self._rows = json.loads(path.read_text(encoding="utf-8")) if resume and path.is_file() else {}

    def once(self, name: str, evaluate: "Callable[[], dict[str, SystemResult]]") -> "dict[str, SystemResult]":
        """Return the results of that name, evaluated now if they are not in the file."""
        from trainer.experience.evaluate import SystemResult

        if name not in self._rows:
            self._rows[name] = {system: asdict(result) for system, result in evaluate().items()}
            write_atomic(self._path, json.dumps(self._rows, indent=2) + "\n")
        return {system: SystemResult(**row) for system, row in self._rows[name].items()}


@contextmanager
def timed(stage: str, seconds: Counter[str]) -> Iterator[None]:
    """Add what runs inside to the seconds of a stage."""
    began = time.perf_counter()
    yield
    seconds[stage] = round(seconds[stage] + time.perf_counter() - began, 1)


def load_configs(
    out: str,
    seed: int,
    overrides: Sequence[str] = (),
    data: str | None = None,
    eval_data: str | None = None,
    model: str | None = None,
    scheme: str = FOUR_AGENTS,
) -> tuple[SFTConfig, RLConfig]:
    """Return both stages' configs with the command line laid over them; RL starts from the model that SFT writes.

    `overrides` are further `sft.key=value` and `rl.key=value`.
    """
    if scheme == MEMALPHA and model:
        raise ConfigError(
            "--scheme memalpha is shown by a tiny model made for the run: leave out --model, or train that model by "
            f"`launch/rl.sh --config configs/memalpha_qwen3_4b_1gpu.yaml model.path={model} data.path=train.parquet`, "
            "and by trainer.sft before it (docs/memalpha.md: From an expert that is a model)"
        )
    kind = INSTANCES if scheme == MEMALPHA else TINY if model is None else PRETRAINED
    given = [f"seed={seed}", f"data.seed={seed}"]
    for_rl, for_sft = [], [] if model is None else [f"model.path={model}"]
    if data is not None and kind == INSTANCES:
        given += [f"data.path={data}", "data.num_chunks=null"]
        for_sft += INSTANCES_OF_A_FILE["sft"]
        for_rl += INSTANCES_OF_A_FILE["rl"]
    elif data is not None:
        given += [f"data.path={data}", "data.num_steering=0"]  # a file has few dialogues
        for_rl += FOR_A_FILE if kind == PRETRAINED else (*FOR_A_FILE, *TINY_ON_A_FILE)
    if eval_data is not None:
        given.append(f"data.eval_path={eval_data}")
    own: dict[str, list[str]] = {"sft": [], "rl": []}
    for text in overrides:
        stage, _, setting = text.partition(".")
        if stage not in own:
            raise ConfigError(f"'{text}': say which stage it is for: start it with sft. or rl.")
        own[stage].append(setting)
    sft_config = load(SFTConfig, CONFIGS / f"{kind}_sft.yaml", [*given, *for_sft, f"out={out}/sft", *own["sft"]])
    if not sft_config.data.holds_out:
        raise ConfigError("a split leaves no dialogues to evaluate on: name some by --eval-data")
    start = [f"out={out}/rl", f"model.path={sft_config.out}/model"]
    return sft_config, load(RLConfig, CONFIGS / f"{kind}_rl.yaml", [*given, *for_rl, *start, *own["rl"]])


def ids(builds: "Sequence[ExpertBuild]") -> str:
    return f"{len(builds)} dialogues ({first_of([build.dialogue.id for build in builds], 8)})"


def table(systems: dict[str, "SystemResult"], judge: str, score: str = "accuracy") -> str:
    """Return the table of all systems; `score` is what the first column is called."""
    lines = ["", f"{'system':<10}{score:>10}{'recall@10':>11}{'memory tokens':>15}{'format valid':>14}"]
    for name, result in systems.items():
        lines.append(
            f"{name:<10}{_share(result.accuracy):>10}{_share(result.recall_at_10):>11}{result.memory_tokens:>15.0f}"
            f"{_share(result.format_valid):>14}"
        )
    questions = next(iter(systems.values())).questions
    measured = "whose whole evidence is found" if judge == "evidence" else f"as the judge '{judge}' sees them answered"
    lines.append(f"{score}: share of {questions} questions about held-out dialogues {measured}")
    lines += [
        f"{name}: {result.prompt_too_long:.1%} of its prompts were too long to be answered (max_model_len)"
        for name, result in systems.items()
        if result.prompt_too_long
    ]
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "missing" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
