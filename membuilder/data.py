"""Fetches benchmarks from their public homes (membuilder/datasets/sources.py), checked by size and checksum.

    python -m membuilder.data fetch locomo
    python -m membuilder.data fetch longmemeval --data-dir /big/disk/data

Commands find a fetched file by its `--dataset` name alone. A file that is there already and whole is left alone, and a
file that came only in part never gets the name of a data file.
"""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx

from membuilder.command import ArgumentParser, exit_status
from membuilder.datasets.selection import DATA_FOLDER
from membuilder.datasets.sources import DATASETS, PublicDataset, RemoteFile
from membuilder.errors import FetchError, WriteError
from membuilder.files import atomic
from membuilder.llm.network import usable_network_settings
from membuilder.progress import progress

_TIMEOUT = httpx.Timeout(60, connect=15)


def fetch(dataset: PublicDataset, data_folder: Path) -> list[Path]:
    """Put each file where its loader looks for it and return the paths; FetchError says how to do it by hand."""
    folder = data_folder / dataset.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_fetch_file(file, folder / file.name) for file in dataset.files]
    except (OSError, WriteError) as error:
        raise FetchError(f"{folder}: cannot be written: {error}; choose another --data-dir") from error


def _client() -> httpx.Client:
    """Make a client as the environment says: HTTPS_PROXY, SSL_CERT_FILE and the like. Raises ConfigError."""
    with usable_network_settings():
        return httpx.Client(follow_redirects=True, timeout=_TIMEOUT)


def _fetch_file(file: RemoteFile, path: Path) -> Path:
    if path.exists():
        if problem := _difference(file, path):
            raise FetchError(f"{path} is there already but {problem}; move it away and fetch again")
        return path
    by_hand = f"to do it by hand, get {file.url} on a machine with network and put it at {path.resolve()}"
    with atomic(path) as partial:
        try:
            _download(file, partial)
        except httpx.HTTPError as error:
            problem = f"not reached or cut off ({type(error).__name__}: {error})"
            if isinstance(error, httpx.HTTPStatusError):
                problem = f"the server answered {error.response.status_code}"
            raise FetchError(f"{file.url}: {problem}; {by_hand}") from error
        if problem := _difference(file, partial):
            raise FetchError(f"{file.url}: what came {problem}; {by_hand}")
    return path


def _download(file: RemoteFile, path: Path) -> None:
    with _client() as client, client.stream("GET", file.url) as response, path.open("wb") as out:
        response.raise_for_status()
        with progress(total=file.size, label=file.name, unit="bytes") as bar:
            for block in response.iter_bytes(1 << 20):
                out.write(block)
                bar.update(len(block))


def _difference(file: RemoteFile, path: Path) -> str | None:
    """Say what tells the file at `path` from the public one; None where nothing that is known does."""
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"has {size:,} bytes instead of {file.size:,}"
    with path.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    return None if file.sha256 in (None, sha256) else f"has sha256 {sha256} instead of {file.sha256}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(prog="python -m membuilder.data", description="Fetch public benchmarks.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("fetch", help="fetch one dataset, checked by size and checksum")
    command.add_argument("name", choices=sorted(DATASETS))
    command.add_argument("--data-dir", type=Path, default=Path(DATA_FOLDER), help="default: %(default)s")
    arguments = parser.parse_args(argv)
    return exit_status("membuilder.data", lambda: _fetch(DATASETS[arguments.name], arguments.data_dir))


def _fetch(dataset: PublicDataset, data_folder: Path) -> int:
    paths = fetch(dataset, data_folder)
    for file, path in zip(dataset.files, paths, strict=True):
        checked = "size and checksum checked" if file.sha256 else "no checksum is known to us: not checked"
        print(f"{path}: {checked}")
    print(f"licence: {dataset.license}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
