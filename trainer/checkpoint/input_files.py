"""The files that a run reads, known by what they hold: the same model or data elsewhere is the same run's."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from trainer.checkpoint.model_card import CARD

KEYS = (
    "model.path", "data.path", "data.prepared", "data.eval_path", "embedding_model", "scheme", "reward.judge",
    "loss.name",
)  # fmt: skip
"""Settings that may name a file or folder of this machine, or a function as path/to/file.py:function."""
HASH_THREADS = 8


def contents(settings: Mapping[str, Any]) -> dict[str, str]:
    """Map each of KEYS whose value names a file or folder that is there to a hash of what it holds."""
    found = {}
    for key in KEYS:
        path = Path(str(_at(settings, key)).partition(":")[0])
        if path.exists():
            found[key] = content_of(path)
    return found


def content_of(path: Path) -> str:
    """Hash a file, or a folder's files by name and content; not a model's card, which tells of metrics and paths.

    Hidden files are left out too: an editor or a download leaves them, and nothing reads them.
    """
    if path.is_file():
        return _sum(path)
    names = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    kept = [name for name in sorted(names) if name != CARD and not _is_left_out(name)]
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        sums = pool.map(_sum, [names[name] for name in kept])
    return sha256("".join(f"{name} {each}\n" for name, each in zip(kept, sums, strict=True)).encode()).hexdigest()


def _is_left_out(name: str) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in name.split("/"))


def _sum(path: Path) -> str:
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _at(settings: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key, None where a section or the key is absent."""
    value: Any = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
