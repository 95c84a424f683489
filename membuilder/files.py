"""Files that a reader finds whole or not at all, also after a kill, a full disk or a power cut."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from membuilder.errors import WriteError

MAX_NAME_BYTES = 100
"""Of the name made of an id: file systems allow 255, and `.db.retry-wal` and the like come behind it."""
_PLAIN = re.compile(r"[a-z0-9_%](?:[a-z0-9_%. -]*[a-z0-9_%-])?")
"""Lower case only: two names that differ in case are one to many file systems. Escapes are taken out before."""
_TAKEN = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?|manifest|usage\.jsonl|run\.log")
"""Windows' devices, and files of our own beside those named after ids."""


def file_name(identifier: str) -> str:
    """Turn any id into an ASCII file name that no other id has, whatever the file system makes of case and length.

    A plain id is its own name and a short one of other characters is escaped as in a URL; any other name ends in `~`
    and a hash, which those never hold: "conv-26", "a%2Fb", "Ann~5f6b1c2d3e4f5a6b".
    """
    name = _escaped(identifier)
    plain = re.sub("%[0-9A-F]{2}", "%", name)
    if len(name) <= MAX_NAME_BYTES and _PLAIN.fullmatch(plain) and not _TAKEN.fullmatch(name):
        return name
    shown = re.sub(r"[^A-Za-z0-9]+", "_", identifier).strip("_")[:40] or "id"
    return f"{shown}~{hashlib.sha256(identifier.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def path_of(folder: Path, identifier: str, suffix: str = "") -> Path:
    """Return where the file or folder of an id lies: under `file_name`, or the name that earlier versions gave it."""
    now, before = (f"{name}{suffix}" for name in (file_name(identifier), _escaped(identifier)))
    is_name = before != now and identifier.strip(".") and not _TAKEN.fullmatch(identifier)
    # listed, because "Ann.db" exists to many a file system where it has "ann.db"
    return folder / (before if is_name and folder.is_dir() and before in os.listdir(folder) else now)


def _escaped(identifier: str) -> str:
    return quote(identifier, safe=" ", errors="surrogatepass")


def user_cache(name: str) -> Path:
    """Return the folder of that name in MEMBUILDER_CACHE, else in the user's own cache."""
    return Path(os.environ.get("MEMBUILDER_CACHE") or Path.home() / ".cache" / "membuilder") / name


def write_atomic(path: Path, *content: str | bytes) -> None:
    """Replace a file, or create it with its folders. Raises WriteError and leaves the old one where that fails."""
    with atomic(path) as partial, partial.open("wb") as file:
        file.writelines(part.encode() if isinstance(part, str) else part for part in content)


@contextmanager
def atomic(path: Path, *, many_writers: bool = False) -> Iterator[Path]:
    """Give a file beside `path` to write to, which takes the place of `path` when the block ends without an error.

    `many_writers`: processes may write the same file at once, each a partial one of its own. Raises WriteError for an
    OSError in the block, or where the file cannot take its place; what stood there is kept.
    """
    writer = f".{os.getpid()}" if many_writers else ""
    partial = path.with_name(f"{path.name}{writer}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        fsync(partial)
        durable_rename(partial, path)
    except OSError as error:
        raise WriteError(path, error, free_bytes(path.parent)) from error
    finally:
        if partial.is_file():
            partial.unlink()


def durable_rename(source: Path, target: Path) -> None:
    """Rename a file or folder that is on the disk itself already; the new name is there too once this returns."""
    os.replace(source, target)
    fsync(target.parent)


def fsync_tree(folder: Path) -> None:
    """Wait until every file and folder under `folder`, and itself, is on the disk itself."""
    for path in (*folder.rglob("*"), folder):
        fsync(path)


def fsync(path: Path) -> None:
    """Wait until a file or folder is on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(folder: Path) -> int:
    """Tell how much is free on the disk of a folder, which need not exist yet; a user's quota may allow less."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(nearest).free
