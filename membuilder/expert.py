"""Expert trajectories: an expert builds the memory of each dialogue, and every prompt, answer and state is kept.

    python -m membuilder.expert --dataset longmemeval --split sft --expert-model claude-4.5-sonnet --skip-existing
    python -m membuilder.expert --dataset locomo --dataset-path locomo10.json --expert rules      (no API)
    python -m membuilder.expert --dataset memalpha --dataset-path train.parquet --scheme memalpha --expert-model m \\
        --provider vllm --exclude-memory core memalpha.max_turns=2

Writes OUTPUT_DIR/DATASET/SAMPLE (membuilder/trajectories/published_layout.py says what is in it); of another scheme
than four_agents that is the store and metadata. Settings of a scheme follow the flags as key=value, with the keys of
membuilder.build. A stopped run goes on where it was when the same command is run again: it loses at most the session in
flight.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from membuilder.bank.store import reading
from membuilder.building.config import EMBEDDING_KEYS, RULES, BuildConfig, Keys
from membuilder.building.dialogues import build_all
from membuilder.building.failed_answers import count_answers, status_of, summary
from membuilder.building.read_answer import OnBadOperation
from membuilder.command import ArgumentParser, exit_status
from membuilder.config import load
from membuilder.datasets.selection import add_data_flags, load_selected, shorten
from membuilder.datasets.windows import in_windows
from membuilder.embedding.naming import name_of
from membuilder.llm.chat_model import Role
from membuilder.llm.costs import Costs, counted
from membuilder.llm.flags import add_cost_flags, add_embedding_flags, add_endpoint_flags, read_endpoint
from membuilder.quiet import LOG_FILE, quiet_libraries
from membuilder.schemes.load import FOUR_AGENTS, MAX_TURNS, SchemeSettings
from membuilder.schemes.memalpha.config import parts_named
from membuilder.trajectories.published_layout import is_whole, publish
from membuilder.trajectories.trajectory import METADATA_FILE, STORE_FILE, sample_folder
from membuilder.types import Dialogue
from membuilder.value_types import PositiveInt, Share, flag_type

EXPERT_MODEL = "claude-4.5-sonnet"
"""The expert of the published document."""
USAGE_FILE = "usage.jsonl"
"""The file beside the samples that tells what each run used."""


def dialogues_of(given: argparse.Namespace, config: BuildConfig) -> list[Dialogue]:
    """Return the dialogues asked for, in the order of their file."""
    dialogues, _ = load_selected(given, () if given.conv_id is None else (given.conv_id,), "--conv-id")
    windows = [in_windows(dialogue, config.max_turns) for dialogue in dialogues]
    return shorten(windows, given.sessions, None)


def _publish(path: Path, max_failed: float) -> None:
    """Write the files that make a sample whole, or take its mark away where too many answers failed."""
    if not _is_within(path, max_failed):
        _withdraw(path)
        return
    with reading(path) as store:  # a connection belongs to its thread
        publish(path.parent, store)


def _is_within(path: Path, max_failed: float) -> bool:
    return count_answers([path]).failed_share <= max_failed


def _withdraw(path: Path) -> None:
    """Take away the one mark of a whole sample, by which every command knows it."""
    path.with_name(METADATA_FILE).unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> int:
    given = _parser().parse_intermixed_args(argv)
    kept = "What is stored stays; the same command goes on behind it."
    return exit_status("membuilder.expert", lambda: _write_samples(given), kept)


def _write_samples(given: argparse.Namespace) -> int:
    quiet_libraries(given.output_dir / given.dataset / LOG_FILE)
    config = _config(given)
    dialogues = dialogues_of(given, config)
    limit = 0.0 if given.retry_failed else config.max_failed  # of failed answers in a sample that is skipped
    todo = [dialogue for dialogue in dialogues if not (given.skip_existing and _is_done(config, dialogue, limit))]
    print(f"{len(dialogues)} dialogues, of which {len(dialogues) - len(todo)} are whole and skipped")
    stores = [(_store_path(config, dialogue), dialogue) for dialogue in todo]

    def run(costs: Costs) -> int:
        keys = Keys(chat=given.api_key, embedding=given.embedding_api_key)
        if stores:
            publish = partial(_publish, max_failed=config.max_failed)
            before_replace = _withdraw if given.retry_failed else None
            asyncio.run(build_all(config, stores, Role.EXPERT, keys, costs, publish, before_replace))
        for path, _ in stores:
            print(summary(path))
        return _status(config, dialogues)

    return counted(given, Path(config.out) / USAGE_FILE, "membuilder.expert", run)


def _status(config: BuildConfig, dialogues: Sequence[Dialogue]) -> int:
    """Return 1, said on stderr, where a sample is not whole; the skipped ones count too."""
    paths = [_store_path(config, dialogue) for dialogue in dialogues]
    above = [path for path in paths if not _is_within(path, config.max_failed)]
    if above:
        names = f"such as {above[0].parent}"
        problem = f"{len(above)} of {len(paths)} samples are not whole, {names}; qa and prepare leave them out"
        print(f"membuilder.expert: {problem}", file=sys.stderr)
    return status_of("membuilder.expert", above, config.max_failed)


def _store_path(config: BuildConfig, dialogue: Dialogue) -> Path:
    return sample_folder(Path(config.out), dialogue.id) / STORE_FILE


def _is_done(config: BuildConfig, dialogue: Dialogue, max_failed: float) -> bool:
    """Return whether this very expert has written all of it and few answers failed; a store refuses another later."""
    settings = config.settings(dialogue, name_of(config.embedder(Keys())))  # the embedder is not opened to skip
    path = _store_path(config, dialogue)
    if not is_whole(path.parent, len(dialogue.sessions), settings):
        return False
    return _is_within(path, max_failed)


def _config(given: argparse.Namespace) -> BuildConfig:
    model = read_endpoint(given, "", given.expert_model).endpoint
    if given.expert_model == RULES:
        model.temperature = None  # rules have none
    excluded = [] if given.exclude_memory is None else [f"memalpha.exclude_memory={json.dumps(given.exclude_memory)}"]
    how = load(SchemeSettings, None, [f"scheme={json.dumps(given.scheme)}", *excluded, *given.overrides])
    return BuildConfig(
        out=str(given.output_dir / given.dataset),
        model=model,
        max_turns=given.max_turns,
        parallel=given.workers if given.parallel else 1,
        scheme=how.scheme,
        prompts=how.prompts,
        memalpha=how.memalpha,
        max_failed=given.max_failed,
        on_bad_operation=given.on_bad_operation,
        **{key: getattr(given, key) for key in EMBEDDING_KEYS},
    )


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="python -m membuilder.expert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add_data_flags(parser)
    names, text = ("--expert-model", "--expert"), f"`rules` needs no API; default {EXPERT_MODEL}"
    add_endpoint_flags(parser, "", text, model_flags=names, model=EXPERT_MODEL, provider="openai")
    add("--scheme", default=FOUR_AGENTS, metavar="NAME", help="or memalpha, or a folder; default: %(default)s")
    without = "parts that the memory of scheme memalpha lacks, such as core,episodic"
    add("--exclude-memory", type=parts_named, metavar="PARTS", help=without)
    add("--output-dir", type=Path, default=Path("expert_trajectories"))
    text = f"turns read at once: a longer session becomes several of its date; default: {MAX_TURNS}; memalpha: all"
    add("--max-turns", type=flag_type(PositiveInt), help=text)
    add("--parallel", action="store_true", help="--workers dialogues at once")
    add("--workers", type=flag_type(PositiveInt), default=4)
    add("--skip-existing", action="store_true", help="leave samples alone that this expert has made whole")
    add("--retry-failed", action="store_true", help="ask again what failed; what stands is kept")
    text = "share of the answers that may have failed; default: %(default)s"
    add("--max-failed", type=flag_type(Share), default=0.01, help=text)
    text = "an answer that holds one: apply the others, ask once more first, or let it fail; default: %(default)s"
    choices = [str(each) for each in OnBadOperation]
    add("--on-bad-operation", default=str(OnBadOperation.APPLY), choices=choices, help=text)
    add_embedding_flags(parser)
    add_cost_flags(parser)
    text = "settings of the scheme, such as memalpha.view=both or prompts.entries_shown=10"
    add("overrides", nargs="*", metavar="key=value", help=text)
    return parser


if __name__ == "__main__":
    sys.exit(main())
