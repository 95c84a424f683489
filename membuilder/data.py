"""Fetches benchmarks, builds instances of Memalpha out of raw files, and finds what two files share.

    python -m membuilder.data fetch longmemeval --data-dir /big/disk/data
    python -m membuilder.data build-memalpha --dataset squad --source raw/squad --out data/memalpha
    python -m membuilder.data build-memalpha --merge squad hotpotqa --out data/memalpha --limit-size 100
    python -m membuilder.data leaks data/memalpha/train.parquet data/memoryagentbench/test.parquet

fetch: files come from their public homes (membuilder/datasets/sources.py), checked by size and checksum. Commands find
a fetched file by its `--dataset` name alone. A file that is there already and whole is left alone, and a file that came
only in part never gets the name of a data file. The others: docs/data-formats.md.
"""

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from membuilder.command import ArgumentParser, exit_status
from membuilder.datasets.selection import DATA_FOLDER
from membuilder.datasets.sources import DATASETS, PublicDataset, RemoteFile
from membuilder.errors import ConfigError, FetchError, WriteError
from membuilder.files import atomic
from membuilder.instances.sources import SOURCES
from membuilder.llm.costs import Costs, counted
from membuilder.llm.endpoints import Provider
from membuilder.llm.flags import add_cost_flags, add_endpoint_flags, read_endpoint
from membuilder.llm.network import usable_network_settings
from membuilder.progress import progress
from membuilder.value_types import PositiveInt, Seed, ShareBelowOne, flag_type

if TYPE_CHECKING:
    from membuilder.instances.plan import Plan

USAGE_FILE = "build_usage.jsonl"
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
    text = "Fetch public benchmarks, build instances of Memalpha, find what two files share."
    parser = ArgumentParser(prog="python -m membuilder.data", description=text)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("fetch", help="fetch one dataset, checked by size and checksum")
    command.add_argument("name", choices=sorted(DATASETS))
    command.add_argument("--data-dir", type=Path, default=Path(DATA_FOLDER), help="default: %(default)s")
    command.set_defaults(run=lambda given: _fetch(DATASETS[given.name], given.data_dir))
    _add_build(commands.add_parser("build-memalpha", help="build one dataset from its raw files, or merge built ones"))
    command = commands.add_parser("leaks", help="count what two data files share, in each direction")
    command.add_argument("files", metavar="FILE", nargs=2, type=Path, help="of any format that --dataset can name")
    command.set_defaults(run=_leaks)
    given = parser.parse_args(argv)
    return exit_status("membuilder.data", lambda: given.run(given), "The same command goes on where it was.")


def _add_build(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--dataset", choices=sorted(SOURCES), help="what is built")
    what.add_argument("--merge", nargs="+", choices=sorted(SOURCES), metavar="NAME", help="datasets built before")
    add("--out", type=Path, default=Path(DATA_FOLDER) / "memalpha", help="default: %(default)s")
    add("--seed", type=flag_type(Seed), default=42, help="default: %(default)s")
    text = "with --merge: the most instances that a dataset gives to training"
    add("--limit-size", type=flag_type(PositiveInt), metavar="N", help=text)
    add("--source", type=Path, help="with --dataset: its raw file, or their folder")
    text = "share of the documents, or of the labels, for the test side; default: 0.1; 0: none"
    add("--split", type=flag_type(ShareBelowOne), metavar="SHARE", help=text)
    add("--tokenizer", type=Path, help="folder of the model whose tokens count; else four characters are one")
    add("--chunk-tokens", type=flag_type(PositiveInt), metavar="N", help="of the largest chunk; else as published")
    add("--chunks", type=flag_type(PositiveInt), metavar="N", help="of an instance at most; else as published")
    text = "of an instance; else as published"
    add("--questions", type=flag_type(PositiveInt), nargs=2, metavar=("LEAST", "MOST"), help=text)
    text = "a line for every sentence that is read, so that a line pointer can name it; else one for a paragraph"
    add("--sentence-lines", action="store_true", help=text)
    text = "no keys that the published files have not, such as evidence"
    add("--published", action="store_true", help=text)
    text = "data file with which training may share nothing; repeatable"
    add("--evaluation", type=Path, action="append", metavar="FILE", help=text)
    text = "go on where it does, and write so into every row; take LongMemEval's test samples too"
    add("--allow-leak", action="store_true", help=text)
    text = "finds the keywords of summaries, or drops questions that it answers without the text; default: no model"
    add_endpoint_flags(command, "", text)
    add_cost_flags(command)
    command.set_defaults(run=_build)


def _build(given: argparse.Namespace) -> int:
    names = ("source", "split", "tokenizer", "chunk_tokens", "chunks", "questions", "sentence_lines", "published")
    given_here = {name: getattr(given, name) for name in (*names, "model")}
    of_one = {name: value for name, value in given_here.items() if value is not None and value is not False}
    evaluation, allow_leak = tuple(given.evaluation or ()), given.allow_leak
    if given.merge:
        if of_one:
            flags = ", ".join("--" + name.replace("_", "-") for name in of_one)
            raise ConfigError(f"{flags}: nothing is built by --merge; give it with --dataset")
        from membuilder.instances.merge import merge

        made = merge(given.merge, given.out, given.limit_size, given.seed, evaluation, allow_leak)
        told = f"{made.num_train} instances in train.parquet, {made.num_test} instances in test.parquet"
        print(f"{given.out}: {told}")
        for (name, place), counts in made.leaks.items():
            _print_shared(f"training on {name}", place, counts)
        return 0
    if given.limit_size is not None:
        raise ConfigError("--limit-size limits what --merge takes; it has no effect on --dataset")
    if given.model is None and (given.provider or given.base_url):
        raise ConfigError("--provider and --base-url need --model: who is asked there")
    if given.source is None:
        raise ConfigError("--dataset needs --source: the raw file, or the folder that holds it")
    from membuilder.instances.build import build  # they load what wrong flags need not wait for
    from membuilder.instances.plan import Plan

    renamed = {"test_share": of_one.pop("split", None)}
    renamed |= {"questions": tuple(of_one.pop("questions"))} if "questions" in of_one else {}
    more = {"evaluation": evaluation, "allow_leak": allow_leak, **renamed, **of_one}
    plan = Plan(dataset=given.dataset, out=given.out, seed=given.seed, **more)
    report = build(plan) if given.model is None else _build_with_model(given, plan)
    for side in (side for side in ("train", "test") if side in report):
        told = report[side]
        reasons = ", ".join(f"{count} {reason}" for reason, count in told["dropped"].items()) or "nothing"
        place = plan.folder / f"{side}.parquet"
        print(f"{place}: {told['instances']} instances, {told['questions']} questions; dropped: {reasons}")
    for place, counts in report["leaks"].items():
        _print_shared("training", place, counts)
    return 0


def _print_shared(what: str, place: str, counts: Mapping[str, int]) -> None:
    print(f"{what} shares with {place}: " + ", ".join(f"{count} {kind}s" for kind, count in counts.items()))


def _build_with_model(given: argparse.Namespace, plan: "Plan") -> dict[str, Any]:
    from membuilder.instances.build import build
    from membuilder.instances.model_steps import model_step

    task = SOURCES[plan.dataset].model
    if task is None:
        used = ", ".join(name for name, source in SOURCES.items() if source.model is not None)
        raise ConfigError(f"--model has nothing to do for {plan.dataset}; it has for {used}")
    access = read_endpoint(given, "", given.model, provider=Provider.OPENAI)
    found = {}

    def run(costs: Costs) -> int:
        with model_step(access, costs, task) as step:
            found.update(build(plan, step))
        return 0

    counted(given, given.out / USAGE_FILE, "membuilder.data", run)
    return found


def _leaks(given: argparse.Namespace) -> int:
    from membuilder.instances.leaks import compared, dialogues_of, shared

    sides = [compared(dialogues_of(path)) for path in given.files]
    print("lines of           kind          lines   exact    near  such as")
    for checked, other in ((0, 1), (1, 0)):
        for each in shared(sides[checked], sides[other]):
            counts = f"{each.lines:>8,}{each.exact:>8,}{each.near:>8,}"
            print(f"{given.files[checked].name:18.18} {each.kind:10}{counts}  {each.example:.60}")
    return 0


def _fetch(dataset: PublicDataset, data_folder: Path) -> int:
    paths = fetch(dataset, data_folder)
    for file, path in zip(dataset.files, paths, strict=True):
        checked = "size and checksum checked" if file.sha256 else "no checksum is known to us: not checked"
        print(f"{path}: {checked}")
    print(f"licence: {dataset.license}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
