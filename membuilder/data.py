"""Fetches benchmarks from their public homes (membuilder/datasets/sources.py), checked by size and checksum.

    python -m membuilder.data fetch locomo
    python -m membuilder.data fetch longmemeval --data-dir /big/disk/data

Commands find a fetched file by its `--dataset` name alone. A file that is there already and whole is left alone, and a
file that came only in part never gets the name of a data file.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx

from membuilder.datasets.selection import DATA_FOLDER
from membuilder.datasets.sources import DATASETS, PublicDataset, RemoteFile
from membuilder.errors import FetchError, WriteError
from membuilder.files import atomic
from membuilder.progress import progress

_TIMEOUT = httpx.Timeout(60, connect=15)


def fetch(dataset: PublicDataset, data_folder: Path) -> list[Path]:
    """Puts each file where its loader looks for it and returns the paths; FetchError says how to do it by hand."""
    folder = data_folder / dataset.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_fetch_file(file, folder / file.name) for file in dataset.files]
    except (OSError, WriteError) as error:
        raise FetchError(f"{folder}: cannot be written: {error}; choose another --data-dir") from error


def _fetch_file(file: RemoteFile, path: Path) -> Path:
    if path.exists():
        problem = _difference(file, path.stat().st_size, _sha256(path))
        if problem is not None:
            raise FetchError(f"{path} is there already but {problem}; move it away and fetch again")
        return path
    with atomic(path) as partial:
        size, sha256 = _download(file, partial, path)
        problem = _difference(file, size, sha256)
        if problem is not None:
            raise FetchError(f"{file.url}: what came {problem}; {_by_hand(file, path)}")
    return path


def _download(file: RemoteFile, partial: Path, target: Path) -> tuple[int, str]:
    """Fetches into `part`; the size and checksum of what came."""
    digest, size = hashlib.sha256(), 0
    try:
        with (
            httpx.stream("GET", file.url, follow_redirects=True, timeout=_TIMEOUT) as response,
            partial.open("wb") as out,
        ):
            response.raise_for_status()
            with progress(total=file.size, label=file.name, unit="bytes") as bar:
                for block in response.iter_bytes(1 << 20):
                    out.write(block)
                    digest.update(block)
                    size += len(block)
                    bar.update(len(block))
    except httpx.HTTPStatusError as error:
        problem = f"{file.url}: the server answered {error.response.status_code}; {_by_hand(file, target)}"
        raise FetchError(problem) from error
    except httpx.HTTPError as error:
        problem = f"{file.url}: not reached or cut off ({type(error).__name__}: {error}); {_by_hand(file, target)}"
        raise FetchError(problem) from error
    return size, digest.hexdigest()


def _difference(file: RemoteFile, size: int, sha256: str) -> str | None:
    if file.size is not None and size != file.size:
        return f"has {size:,} bytes instead of {file.size:,}"
    if file.sha256 is not None and sha256 != file.sha256:
        return f"has sha256 {sha256} instead of {file.sha256}"
    return None


def _by_hand(file: RemoteFile, path: Path) -> str:
    return f"to do it by hand, get {file.url} on a machine with network and put it at {path.resolve()}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m membuilder.data", description="Fetch public benchmarks.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("fetch", help="fetch one dataset, checked by size and checksum")
    command.add_argument("name", choices=sorted(DATASETS))
    command.add_argument("--data-dir", type=Path, default=Path(DATA_FOLDER), help="default: %(default)s")
    arguments = parser.parse_args(argv)
    dataset = DATASETS[arguments.name]
    try:
        paths = fetch(dataset, arguments.data_dir)
    except FetchError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    for file, path in zip(dataset.files, paths, strict=True):
        checked = "size and checksum checked" if file.sha256 else "no checksum is known to us: not checked"
        print(f"{path}: {checked}")
    print(f"licence: {dataset.license}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
