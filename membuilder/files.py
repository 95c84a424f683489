"""Files that a reader finds whole or not at all, also after a kill, a full disk or a power cut."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from membuilder.errors import WriteError


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file, or create it with its folders. Raises WriteError and leaves the old one where that fails."""
    with atomic(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


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
