"""Reads benchmark files, and splits their dialogues into those to train on and those to hold out.

Example:
    train, held_out = split(load("locomo10.json"), held_out=2, seed=0)
"""

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path

from membuilder.datasets import custom, locomo, longmemeval, memalpha, perltqa
from membuilder.datasets.files import FILE, read_json, read_lines
from membuilder.datasets.parsing import refuse_half_characters
from membuilder.errors import ConfigError, DataError
from membuilder.types import Dialogue


def load(path: str | Path, only: Collection[str] | None = None) -> list[Dialogue]:
    """Return the dialogues of a file, or of a folder with PerLTQA's two files.

    LoCoMo and LongMemEval (oracle, S or M) files are .json or .json.gz and told apart by their records; custom files
    are .jsonl or .jsonl.gz (membuilder/datasets/custom.py), those of Memalpha and MemoryAgentBench .parquet. `only`
    names the dialogues that are wanted: all are returned, but what was repaired in others is not logged. Raises
    DataError naming file, record and field if a file is unreadable or not what its format promises.
    """
    path = Path(path)
    dialogues = _parsed(path, only)
    refuse_half_characters(dialogues, path)
    return dialogues


def _parsed(path: Path, only: Collection[str] | None) -> list[Dialogue]:
    if (path / perltqa.MEMORY_FILE).is_file():
        return perltqa.load(path)
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return custom.parse(read_lines(path), path)
    if path.suffix == ".parquet":
        return memalpha.load(path)
    records = read_json(path)
    if not isinstance(records, list) or not records:
        found = "an empty list" if records == [] else type(records).__name__
        raise DataError(path, FILE, "top level", f"expected a list of LoCoMo or LongMemEval records, found {found}")
    keys = sorted(records[0]) if isinstance(records[0], dict) else []
    if "conversation" in keys:
        return locomo.parse(records, path, only)
    if "question_id" in keys:
        return longmemeval.parse(records, path, only)
    found = keys[:12] or type(records[0]).__name__
    problem = f"is missing, so this is neither LoCoMo nor LongMemEval (found {found}); give a file as its benchmark"
    example = "publishes it, e.g. locomo10.json or longmemeval_s_cleaned.json"
    raise DataError(path, "record 0", "conversation or question_id", f"{problem} {example}")


def split(dialogues: Sequence[Dialogue], held_out: int | float, seed: int) -> tuple[list[Dialogue], list[Dialogue]]:
    """Return whole dialogues to train on and to hold out, in the order given; `held_out` is a count or a fraction.

    Dialogues that share evidence stay on one side, so the held-out side may be a little smaller than asked for. Which
    side a dialogue falls on depends on seed and ids alone, not on the order of the file.
    """
    ids = [dialogue.id for dialogue in dialogues]
    repeated = sorted({dialogue_id for dialogue_id in ids if ids.count(dialogue_id) > 1})
    if repeated:
        raise ConfigError(f"cannot split: dialogue ids occur more than once ({repeated[:5]}); load each file once")
    if len(ids) < 2:
        raise ConfigError(f"cannot split {len(ids)} dialogue(s) into train and held-out; give at least 2")
    num_held_out = round(held_out * len(ids)) if isinstance(held_out, float) else held_out
    if not 0 < num_held_out < len(ids):
        raise ConfigError(
            f"held_out={held_out} leaves {len(ids) - num_held_out} of {len(ids)} dialogues to train on and "
            f"{num_held_out} held out; both sides need at least one: give a count from 1 to {len(ids) - 1} "
            "or a fraction between 0 and 1"
        )
    # A hash, not random.shuffle: the draw stays the same across Python versions.
    drawn = sorted(_families(dialogues), key=lambda ids: hashlib.sha256(f"{seed}:{ids[0]}".encode()).digest())
    chosen: set[str] = set()
    for family in drawn:
        if len(chosen) + len(family) <= num_held_out:
            chosen.update(family)
    if not chosen:
        raise ConfigError("cannot split: every dialogue shares evidence with too many others; use a file for each side")
    train = [dialogue for dialogue in dialogues if dialogue.id not in chosen]
    return train, [dialogue for dialogue in dialogues if dialogue.id in chosen]


def _families(dialogues: Sequence[Dialogue]) -> list[list[str]]:
    """Group the ids of dialogues that share an evidence turn word for word: LongMemEval asks some histories twice."""
    family_of: dict[str, list[str]] = {}
    first_with: dict[str, str] = {}
    for dialogue in dialogues:
        family_of[dialogue.id] = [dialogue.id]
        evidence = {turn_id for question in dialogue.questions for turn_id in question.evidence}
        texts = {turn.content for session in dialogue.sessions for turn in session.turns if turn.id in evidence}
        for text in sorted(texts):
            other = first_with.setdefault(text, dialogue.id)
            if family_of[other] is not family_of[dialogue.id]:
                merged = family_of[other] + family_of[dialogue.id]
                family_of |= dict.fromkeys(merged, merged)
    return list({id(family): sorted(family) for family in family_of.values()}.values())
