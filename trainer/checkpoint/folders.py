"""Checkpoints of a run, `OUT/checkpoints/step_N`: each whole or not there, and none trusted before it is verified.

`step_N` was taken after N steps. The folder must be on a file system that all processes share. Names beside it, of
which `recover` leaves none: `.partial` is being written, `.whole` only waits for its name, `.discarded` is being
removed.
"""

import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from traceback import clear_frames
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from membuilder.errors import CheckpointError, ConfigError, WriteError
from membuilder.files import durable_rename, free_bytes, fsync, fsync_tree
from trainer.checkpoint.checksummed_json import encode, seal, unseal

if TYPE_CHECKING:
    from trainer.distributed.process_group import World

MANIFEST = "manifest.json"
MODEL = "model"
"""The folder inside a checkpoint that holds the tokenizer and the model's configuration."""
LABEL = "checkpoint"
NAME = re.compile(r"step_(\d+)")
# A full disk is a RuntimeError to torch.save and an error of its own to safetensors.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)
HASH_THREADS = 8
PREVIOUS = "give resume=previous to go on from the newest checkpoint that is whole"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileSum:
    size: int
    """In bytes."""
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    step: int
    """Steps done."""
    meta: dict[str, Any]
    """As given to `write`."""
    files: dict[str, FileSum]
    """By path in the folder; the manifest itself is not in it."""


def write(
    root: Path,
    step: int,
    fill: Callable[[Path], None],
    meta: dict[str, Any],
    world: "World",
    folders: Sequence[str] = (),
) -> Path:
    """Write checkpoint `step_N`; all processes call it, and each one's `fill` puts its files into the same folder.

    `folders` are made before any process fills: what meets the others inside `fill` (DeepSpeed's writer does) must not
    fail before that.

    Checkpoints of this step or later are of a line of training that the run has left: the new one replaces them. `meta`
    is JSON, None for what was not measured. Costs a sha256 of every byte in the main process, a few files at a time.

    Raises CheckpointError in every process when one of them could not write; earlier checkpoints are then kept.
    """
    encode(meta, dict[str, Any], f"meta of checkpoint {step}")
    folder = root / f"step_{step}"
    partial, is_main = folder.with_suffix(".partial"), world.rank == 0

    def together(action: Callable[[], Any], takes_part: bool = True) -> list:
        """Everybody's result; where one process fails, all raise its error."""
        result = failure = None
        try:
            result = action() if takes_part else None
        except (CheckpointError, WriteError) as error:  # says itself what could not be written
            failure = error
        except WRITE_ERRORS as error:
            failure = CheckpointError(
                f"could not write checkpoint '{folder}', {free_bytes(folder)} bytes are free on its disk: {error}; "
                "earlier checkpoints are kept: make room and start again with resume=auto"
            )
            failure.__cause__ = error
            _let_go(error)
        answers = world.gather((result, None if failure is None else str(failure)))
        failed = [f"rank {rank}: {reason}" for rank, (_, reason) in enumerate(answers) if reason is not None]
        if failed:
            if is_main:
                shutil.rmtree(partial, ignore_errors=True)
            raise failure or CheckpointError(failed[0])
        return [result for result, _ in answers]

    together(lambda: _begin(root, partial, folders), is_main)
    together(lambda: fill(partial))
    # asked of each process: a network file system may show one of them another's new files late
    names = {name for seen in together(lambda: sorted(_files(partial))) for name in seen}
    together(lambda: _finish(root, folder, partial, names, step, meta), is_main)
    return folder


def recover(root: Path) -> None:
    """Finish or remove what killed processes left. No other process may be writing there."""
    for whole in root.glob("step_*.whole"):
        _give_name(root, whole)
    for suffix in (".partial", ".discarded"):
        for left in root.glob(f"step_*{suffix}"):
            shutil.rmtree(left)


def verify(folder: Path) -> Manifest:
    """Compare every file with the manifest; CheckpointError names the first that is damaged, missing or unexpected."""
    manifest = read_manifest(folder)
    written, found = manifest.files, _sums(_files(folder))
    for name in sorted(written | found):
        if name not in found:
            problem = "is missing"
        elif name not in written:
            problem = "is not in its manifest"
        elif found[name].size != written[name].size:
            problem = f"has {found[name].size} bytes where {written[name].size} were written"
        elif found[name] != written[name]:
            problem = "does not hold what was written (sha256)"
        else:
            continue
        raise CheckpointError(f"checkpoint '{folder}' is damaged: {name} {problem}; {PREVIOUS}")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Return what the manifest says, without looking at the files it lists."""
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint folder '{folder}'")
    return unseal(folder / MANIFEST, LABEL, Manifest, PREVIOUS)


def choose(root: Path, resume: str) -> Path | None:
    """Return the verified checkpoint to go on from; None to start anew. A run calls `recover` first.

    `never` starts anew and raises ConfigError where checkpoints stand already. `auto` is the newest, and raises
    CheckpointError when that one is damaged. `previous` is the newest that is whole. Anything else is a folder.
    """
    folders = list(checkpoints(root).values())
    if resume == "never":
        if folders:
            raise ConfigError(
                f"resume=never, but '{root}' holds checkpoints, the newest '{folders[-1].name}': give resume=auto to "
                "go on from it, or another `out` to start anew"
            )
        return None
    if resume == "previous":
        return _newest_whole(root, folders)
    if resume == "auto" and not folders:
        return None
    folder = folders[-1] if resume == "auto" else Path(resume)
    verify(folder)
    return folder


def best_step(root: Path, metric: str, higher_is_better: bool) -> int | None:
    """Return the step whose meta has the best value of a metric, the later of equals; None where none was measured."""
    values = {step: read_manifest(folder).meta.get(metric) for step, folder in checkpoints(root).items()}
    sign = 1 if higher_is_better else -1
    return max(((sign * value, step) for step, value in values.items() if value is not None), default=(0, None))[1]


def prune(root: Path, keep_last: int, best: int | None) -> None:
    """Remove all checkpoints but the last `keep_last` and step `best`; called by one process."""
    if keep_last < 1:
        raise ValueError(f"keep_last must be at least 1, got {keep_last}")
    for step, folder in list(checkpoints(root).items())[:-keep_last]:
        if step != best:
            _discard(folder)


def checkpoints(root: Path) -> dict[int, Path]:
    """Step -> folder, in the order of the steps; not verified."""
    found = [(NAME.fullmatch(path.name), path) for path in root.glob("step_*") if path.is_dir()]
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def _newest_whole(root: Path, folders: list[Path]) -> Path:
    problems = []
    for folder in reversed(folders):
        try:
            verify(folder)
            return folder
        except CheckpointError as error:  # the user asked for the one before it
            problems.append(str(error))
    reason = f"none is whole, the newest: {problems[0]}" if problems else "there is none"
    raise CheckpointError(f"resume=previous: no checkpoint in '{root}' to go on from: {reason}")


def _begin(root: Path, partial: Path, folders: Sequence[str]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    fsync(root.parent)
    recover(root)
    partial.mkdir()
    for name in folders:
        (partial / name).mkdir(parents=True)


def _finish(root: Path, folder: Path, partial: Path, names: Iterable[str], step: int, meta: dict[str, Any]) -> None:
    files = {name: partial / name for name in sorted(names)}
    for name, path in files.items():
        if not path.exists():
            raise FileNotFoundError(f"'{root}' is not on a file system that all processes share ({name} is not there)")
    manifest = Manifest(step=step, meta=meta, files=_sums(files))
    sealed = seal(LABEL, encode(manifest, Manifest, f"manifest of checkpoint {step}"))
    (partial / MANIFEST).write_bytes(b"".join(sealed))
    fsync_tree(partial)
    whole = folder.with_suffix(".whole")
    durable_rename(partial, whole)
    _give_name(root, whole)


def _give_name(root: Path, whole: Path) -> None:
    """From `.whole` on nothing is lost any more: a process killed in here leaves it to `recover`."""
    folder = whole.with_suffix("")
    step = int(NAME.fullmatch(folder.name)[1])
    for later, left in checkpoints(root).items():
        if later >= step:
            _discard(left)
    durable_rename(whole, folder)


def _discard(folder: Path) -> None:
    """Take the name away first: half a removed checkpoint must not look like a damaged one."""
    discarded = folder.with_suffix(".discarded")
    durable_rename(folder, discarded)
    shutil.rmtree(discarded)


def _let_go(error: BaseException | None) -> None:
    """torch.save's writer would live on in the traceback and hold the space of its file after the folder is gone."""
    while error is not None:
        clear_frames(error.__traceback__)
        error = error.__context__


def _files(folder: Path) -> dict[str, Path]:
    """Path in the folder -> file, sorted, without the manifest."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return {path.relative_to(folder).as_posix(): path for path in paths}


def _sums(files: Mapping[str, Path]) -> dict[str, FileSum]:
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        return dict(zip(files, pool.map(_sum, files.values()), strict=True))


def _sum(path: Path) -> FileSum:
    with open(path, "rb") as file:
        return FileSum(sha256=file_digest(file, "sha256").hexdigest(), size=path.stat().st_size)
