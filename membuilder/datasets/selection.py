"""Finds a benchmark by its name, and chooses which of its dialogues and questions a run takes."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from membuilder.datasets.files import FILE, read_json
from membuilder.datasets.load import load
from membuilder.datasets.sources import DATASETS
from membuilder.datasets.splits import Split, split_ids
from membuilder.datasets.typed import typed
from membuilder.errors import ConfigError, DataError
from membuilder.types import Dialogue
from membuilder.value_types import PositiveInt, flag_type

DATA_FOLDER = "data"
"""Folder where `python -m membuilder.data fetch` puts files, and where commands and configs look for them."""
DATASET_NAMES = (
    *("locomo", "longmemeval", "longmemeval-s", "longmemeval-m", "longmemeval-oracle", "perltqa"),
    *("memalpha", "memoryagentbench", "custom"),
)


def add_data_flags(flags: argparse._ActionsContainer, default: str | None = None) -> None:
    """Add the flags that name a dataset and choose its dialogues; without a `default` the dataset must be named."""
    flags.add_argument("--dataset", default=default, required=default is None, choices=DATASET_NAMES)
    flags.add_argument("--dataset-path", type=Path, help="the raw file; else where `membuilder.data fetch` put it")
    flags.add_argument("--data-dir", type=Path, default=Path(DATA_FOLDER), help="of `membuilder.data fetch`")
    flags.add_argument("--conv-id", help="one conversation only")
    flags.add_argument("--split", choices=[str(each) for each in Split], help="published split (longmemeval)")
    flags.add_argument("--subset-file", type=Path, help="JSON file with a list of ids")
    text = "first sessions of each dialogue only"
    flags.add_argument("--sessions", type=flag_type(PositiveInt), metavar="N", help=text)


def load_selected(given: argparse.Namespace, ids: Sequence[str], ids_from: str) -> tuple[list[Dialogue], Path]:
    """Return the dialogues that `add_data_flags` and these ids (none: all) choose, and their file or folder.

    `ids_from` says in messages where the ids stand.
    """
    path = place_of(given.dataset, given.dataset_path, given.data_dir)
    chosen = []
    if given.split is not None:
        chosen.append((split_ids(given.split, path), f"split {given.split}"))
    if given.subset_file is not None:
        chosen.append((subset_ids(given.subset_file), str(given.subset_file)))
    if ids:
        chosen.append((ids, ids_from))
    only = set.intersection(*(set(each) for each, _ in chosen)) if chosen else None
    dialogues = load(path, only)
    for wanted, source in chosen:
        dialogues = select(dialogues, wanted, source)
    return dialogues, path


def place_of(name: str, path: str | Path | None, data_folder: str | Path) -> Path:
    """Return where a dataset lies: `path`, or where `membuilder.data` puts it. Raises ConfigError or DataError."""
    if path is None:
        if name not in DATASETS:
            raise ConfigError(f"dataset {name!r} has no public home; name its file by --dataset-path")
        path = Path(data_folder) / DATASETS[name].place
        if not path.exists():
            hint = f"run `python -m membuilder.data fetch {name}`, or name a file by --dataset-path"
            raise DataError(path, FILE, "path", f"no such file; {hint}")
    return Path(path)


def select(dialogues: Sequence[Dialogue], ids: Sequence[str], source: str) -> list[Dialogue]:
    """Return the dialogues with these ids, in the file's order. Raises ConfigError if none of them is there.

    Ids that are not in the file are ignored: a split names a whole benchmark, of which the file may be a part.
    """
    wanted = set(ids)
    chosen = [dialogue for dialogue in dialogues if dialogue.id in wanted]
    if not chosen:
        have = [dialogue.id for dialogue in dialogues[:5]]
        raise ConfigError(f"{source}: none of its {len(wanted)} ids is in the dataset, which has {have} ...")
    return chosen


def subset_ids(path: Path) -> list[str]:
    """Read ids from a JSON file that is a list of them."""
    return typed(list[str], read_json(path), path, FILE, advice="expected a list of ids")


def shorten(dialogues: Sequence[Dialogue], sessions: int | None, questions: int | None) -> list[Dialogue]:
    """Cut each dialogue to its first sessions and questions, without questions about turns that were cut away."""
    short = []
    for dialogue in dialogues:
        kept = dialogue.sessions[:sessions]
        turn_ids = {turn.id for session in kept for turn in session.turns}
        asked = [question for question in dialogue.questions if turn_ids.issuperset(question.evidence)]
        short.append(replace(dialogue, sessions=kept, questions=tuple(asked[:questions])))
    return short
