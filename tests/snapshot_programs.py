"""Programs that tests/test_snapshots.py starts and kills. They import no torch, so that a start takes a moment."""

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

from trainer.checkpoint import folders
from trainer.checkpoint.folders import choose, prune, write

NUM_FILES = 3


def content(step: int, k: int) -> bytes:
    return f"{step} {k};".encode() * 2000


def fill(step: int):
    def put(folder: Path) -> None:
        (folder / "deep").mkdir()
        for k in range(NUM_FILES):
            (folder / "deep" / f"{k}.bin").write_bytes(content(step, k))

    return put


def is_whole(folder: Path) -> bool:
    step = int(folder.name.removeprefix("step_"))
    return [(folder / "deep" / f"{k}.bin").read_bytes() for k in range(NUM_FILES)] == [
        content(step, k) for k in range(NUM_FILES)
    ]


def alone(root: Path, step: int, put=None, **meta) -> Path:
    """`write` by the only process of a run."""
    return write(root, step, put or fill(step), meta, SimpleNamespace(rank=0, gather=lambda value: [value]))


def write_forever(root: Path) -> None:
    """Go on from the newest; a line of output per checkpoint."""
    newest = choose(root, "auto")
    step = 0 if newest is None else int(newest.name.removeprefix("step_"))
    while True:
        step += 1
        alone(root, step)
        prune(root, keep_last=2, best=1)
        print(step, flush=True)


def die_everywhere(base: Path) -> None:
    """Child after child rewrites step 2, leaves step 3, prunes step 1, dies before the k-th thing it does to files."""
    for k in range(1000):
        root = base / str(k)
        for step in (1, 2, 3):
            alone(root, step)
        child = os.fork()
        if child == 0:
            _die_before(k)
            alone(root, 2)
            prune(root, keep_last=1, best=None)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            print(k)
            return


def _die_before(count: int) -> None:
    left = [count]

    def watch(event: str, arguments: tuple) -> None:
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

    sys.addaudithook(watch)


def one_of_two(root: Path, rank: int, barrier, values, fault: tuple[str, int | None], answers) -> None:
    """One of two processes that write step 1 together. `fault`: what goes wrong, and in which of them."""
    kind, faulty_rank = fault
    rounds = iter(range(100))

    def gather(value) -> list:
        number = next(rounds)
        values[number, rank] = value
        barrier.wait(30)
        return [values[number, other] for other in (0, 1)]

    def put(folder: Path) -> None:
        if rank == faulty_rank and kind == "full":
            raise OSError(122, "Disk quota exceeded")
        folder.mkdir(exist_ok=True)  # as save_pretrained does
        (folder / f"rank_{rank}.bin").write_bytes(content(1, rank))

    own = root / "of its own" if rank == faulty_rank and kind == "unshared" else root
    own.mkdir(exist_ok=True)
    if rank == faulty_rank and kind == "begin":
        folders.recover = lambda root: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    try:
        answers.put((rank, write(own, 1, put, {}, SimpleNamespace(rank=rank, gather=gather)).name))
    except Exception as error:
        answers.put((rank, f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    os.fsync = lambda descriptor: None  # slow, and only a power cut can tell
    {"write_forever": write_forever, "die_everywhere": die_everywhere}[sys.argv[1]](Path(sys.argv[2]))
