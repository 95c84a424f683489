"""Benchmark files from disk, and the split into dialogues to train on and dialogues to hold out.

Example:
    train, held_out = split(load("locomo10.json"), held_out=2, seed=0)
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

from membuilder.datasets import locomo, longmemeval
from membuilder.errors import DataError
from membuilder.types import Dialogue

_FILE = "whole file"


def load(path: str | Path) -> list[Dialogue]:
    """Dialogues of a LoCoMo or LongMemEval (oracle or S) file, .json or .json.gz; told apart by their records.

    Raises DataError naming file, record and field if the file is unreadable or not what its format promises.
    """
    records = _decode(_read(Path(path)), path)
    if not isinstance(records, list) or not records:
        found = "an empty list" if records == [] else type(records).__name__
        raise DataError(path, _FILE, "top level", f"expected a list of LoCoMo or LongMemEval records, found {found}")
    keys = sorted(records[0]) if isinstance(records[0], dict) else []
    if "conversation" in keys:
        return locomo.parse(records, path)
    if "question_id" in keys:
        return longmemeval.parse(records, path)
    raise DataError(
        path,
        "record 0",
        "conversation or question_id",
        f"is missing, so this is neither LoCoMo nor LongMemEval (found {keys[:12] or type(records[0]).__name__}); "
        "give a file as its benchmark publishes it, e.g. locomo10.json or longmemeval_s_cleaned.json",
    )


def split(dialogues: Sequence[Dialogue], held_out: int | float, seed: int) -> tuple[list[Dialogue], list[Dialogue]]:
    """(train, held-out), whole dialogues each, in the order given; `held_out` is a count (int) or a fraction (float).

    Dialogues that share evidence stay on one side, so the held-out side may come out a little smaller than asked for.

    Which side a dialogue falls on depends on seed and ids alone, not on the order of the file.
    """
    ids = [dialogue.id for dialogue in dialogues]
    repeated = sorted({dialogue_id for dialogue_id in ids if ids.count(dialogue_id) > 1})
    if repeated:
        raise ValueError(f"cannot split: dialogue ids occur more than once ({repeated[:5]}); load each file once")
    if len(ids) < 2:
        raise ValueError(f"cannot split {len(ids)} dialogue(s) into train and held-out; give at least 2")
    num_held_out = round(held_out * len(ids)) if isinstance(held_out, float) else held_out
    if not 0 < num_held_out < len(ids):
        raise ValueError(
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
        raise ValueError("cannot split: every dialogue shares evidence with too many others; use a file for each side")
    train = [dialogue for dialogue in dialogues if dialogue.id not in chosen]
    return train, [dialogue for dialogue in dialogues if dialogue.id in chosen]


def _families(dialogues: Sequence[Dialogue]) -> list[list[str]]:
    """Ids of dialogues that share an evidence turn word for word, together: LongMemEval asks some histories twice."""
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


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        problem = "no such file; check the path (the benchmarks are not shipped with this repository)"
        raise DataError(path, _FILE, "path", problem) from None
    except OSError as error:
        raise DataError(path, _FILE, "path", f"cannot be read: {error.strerror}") from error
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        problem = f"not a whole gzip file ({error}); fetch it again, or drop .gz from its name if it is plain JSON"
        raise DataError(path, _FILE, "gzip", problem) from error


def _decode(content: bytes, path: str | Path) -> object:
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 at byte {error.start}; save it as UTF-8, or name it .json.gz if it is compressed"
        raise DataError(path, _FILE, "encoding", problem) from error
    except (ValueError, RecursionError) as error:  # huge ints and deep nesting raise these too
        raise DataError(path, _FILE, "JSON", f"not one JSON document ({error}); fetch it again") from error
