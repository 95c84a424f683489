"""Checkpoints: killed anywhere, on a full disk, by two processes, damaged, chosen, pruned."""

import errno
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from membuilder.errors import CheckpointError, ConfigError, WriteError
from membuilder.files import write_atomic
from tests.patience import HANGS
from tests.snapshot_programs import alone, content, is_whole, one_of_two
from trainer.checkpoint import folders
from trainer.checkpoint.folders import FileSum, best_step, checkpoints, choose, prune, recover, verify

REPOSITORY = Path(__file__).resolve().parent.parent


def program(name: str, folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.snapshot_programs", name, str(folder)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_a_checkpoint_holds(tmp_path):
    root = tmp_path / "out" / "checkpoints"
    folder = alone(root, 40, lambda partial: (partial / "a.txt").write_text("abc"), loss=0.1, val=None)
    assert folder == root / "step_40" and names(root) == ["step_40"] and names(folder) == ["a.txt", "manifest.json"]
    manifest = verify(folder)
    assert (manifest.step, manifest.meta) == (40, {"loss": 0.1, "val": None})
    # sha256 of "abc", FIPS 180-2 appendix B.1
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert manifest.files == {"a.txt": FileSum(size=3, sha256=digest)}


def test_a_metric_that_json_would_change_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(CheckpointError, match="meta of checkpoint 1 cannot be kept exactly"):
        alone(tmp_path / "root", 1, loss=float("nan"))
    assert not (tmp_path / "root").exists()


def test_nothing_gets_its_name_before_it_is_on_the_disk(tmp_path, monkeypatch):
    """What a power cut needs and no kill can show: the order of fsync and rename."""
    events = []
    fsync, rename = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        events.append(f"fsync {os.readlink(f'/proc/self/fd/{descriptor}').removeprefix(str(tmp_path))}")
        fsync(descriptor)

    def record_rename(source: Path, target: Path) -> None:
        events.append(f"{source.name} -> {target.name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_rename)
    root = tmp_path / "checkpoints"
    alone(root, 1)
    tree = ["/deep/0.bin", "/deep/1.bin", "/deep/2.bin", "/deep", "/manifest.json", ""]
    first = events.index("step_1.partial -> step_1.whole")
    assert set(events[:first]) == {"fsync "} | {f"fsync /checkpoints/step_1.partial{path}" for path in tree}
    assert events[first + 1 :] == ["fsync /checkpoints", "step_1.whole -> step_1", "fsync /checkpoints"]
    events.clear()
    write_atomic(tmp_path / "a.json", b"{}")
    assert events == ["fsync /a.json.partial", "a.json.partial -> a.json", "fsync "]


@pytest.mark.slow
def test_killed_at_random_points_the_newest_is_whole(tmp_path):
    draw, seen, reached = random.Random(0), set(), []
    for _ in range(10):
        process = program("write_forever", tmp_path)
        for _ in range(draw.randint(1, 5)):
            process.stdout.readline()
        time.sleep(draw.uniform(0, 0.01))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        seen |= {path.suffix for path in tmp_path.iterdir()}
        recover(tmp_path)
        assert {path.suffix for path in tmp_path.iterdir()} == {""}
        newest = choose(tmp_path, "auto")
        assert is_whole(newest)
        reached.append(verify(newest).step)
    assert reached == sorted(reached) and len(set(reached)) == 10, "every start goes on from the one before"
    assert ".partial" in seen, "none was killed while it wrote"


@pytest.mark.slow
def test_killed_before_any_change_to_a_file_the_newest_is_whole(tmp_path):
    """Steps 1 to 3 stand, step 2 is written anew: after each death the newest is the old 3, the old 2 or the new 2."""
    process = program("die_everywhere", tmp_path)
    num_points = int(process.communicate(timeout=HANGS)[0])
    assert process.returncode == 0 and num_points > 30
    seen = set()
    for root in tmp_path.iterdir():
        seen |= {path.suffix for path in root.iterdir()}
        recover(root)
        newest = choose(root, "auto")
        assert newest.name in ("step_2", "step_3") and is_whole(newest)
        assert all(is_whole(folder) for folder in checkpoints(root).values() if verify(folder))
    assert names(tmp_path / str(num_points)) == ["step_2"]
    assert seen == {"", ".partial", ".whole", ".discarded"}


def run_two(root: Path, kind: str = "none", faulty_rank: int | None = None) -> dict[int, str]:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        barrier, answers, values = context.Barrier(2), context.Queue(), manager.dict()
        processes = [
            context.Process(target=one_of_two, args=(root, rank, barrier, values, (kind, faulty_rank), answers))
            for rank in (0, 1)
        ]
        for process in processes:
            process.start()
        said = dict(answers.get(timeout=HANGS) for _ in processes)
        for process in processes:
            process.join(timeout=HANGS)
    return said


def test_two_processes_fill_one_checkpoint(tmp_path):
    assert run_two(tmp_path) == {0: "step_1", 1: "step_1"}
    assert list(verify(tmp_path / "step_1").files) == ["rank_0.bin", "rank_1.bin"]
    assert (tmp_path / "step_1" / "rank_1.bin").read_bytes() == content(1, 1)


@pytest.mark.parametrize(
    ("kind", "faulty_rank", "message"),
    [("full", 0, "Disk quota exceeded"), ("full", 1, "Disk quota exceeded"), ("begin", 0, "No space left on device")],
)
def test_when_one_of_two_cannot_write_both_say_why_and_nothing_is_left(tmp_path, kind, faulty_rank, message):
    alone(tmp_path, 0)
    before = alone(tmp_path, 1).stat().st_ino
    said = run_two(tmp_path, kind, faulty_rank)
    assert f"{message}; earlier checkpoints are kept" in said[faulty_rank]
    assert f"CheckpointError: rank {faulty_rank}: could not write" in said[1 - faulty_rank]
    assert message in said[1 - faulty_rank]
    assert names(tmp_path) == ["step_0", "step_1"] and (tmp_path / "step_1").stat().st_ino == before


def test_processes_that_do_not_share_the_folder_are_told_so(tmp_path):
    said = run_two(tmp_path, "unshared", 1)
    for rank in (0, 1):
        assert "is not on a file system that all processes share (rank_1.bin is not there)" in said[rank]
    assert not (tmp_path / "step_1").exists()


@pytest.fixture
def small_disk(tmp_path):
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("a disk of 256 KiB needs the right to mount one")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def put_bytes(folder: Path) -> None:
    (folder / "a.bin").write_bytes(bytes(10**6))


def put_torch(folder: Path) -> None:
    import torch

    torch.save(torch.zeros(250_000), folder / "a.pt")


def put_safetensors(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(250_000)}, folder / "a.safetensors")


def put_file(folder: Path) -> None:
    write_atomic(folder / "progress", bytes(10**6))


@pytest.mark.parametrize("put", [put_bytes, put_torch, put_safetensors])
def test_a_full_disk_keeps_what_stood_there(small_disk, put):
    root = small_disk / "checkpoints"
    alone(root, 1)
    free = shutil.disk_usage(root).free
    with pytest.raises(
        CheckpointError, match=r"step_2', \d+ bytes are free on its disk: .*earlier checkpoints are kept"
    ):
        alone(root, 2, put)
    assert names(root) == ["step_1"] and is_whole(choose(root, "auto"))
    assert shutil.disk_usage(root).free == free, "the half-written folder is gone"
    alone(root, 2)


def test_a_full_disk_that_one_of_our_own_files_meets_leaves_nothing_either(small_disk):
    root = small_disk / "checkpoints"
    alone(root, 1)
    with pytest.raises(WriteError, match=r"progress' \([\d,]+ bytes free on its disk\)"):
        alone(root, 2, put_file)
    assert names(root) == ["step_1"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_while_the_manifest_is_written(tmp_path, monkeypatch, code):
    """The twin of the test above where no disk can be mounted."""
    alone(tmp_path, 1)

    def full(folder):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(folders, "fsync_tree", full)
    with pytest.raises(CheckpointError, match=os.strerror(code)) as caught:
        alone(tmp_path, 2)
    assert caught.value.__cause__.errno == code
    assert names(tmp_path) == ["step_1"] and is_whole(choose(tmp_path, "auto"))


def test_a_file_on_a_full_disk_keeps_its_old_content(small_disk):
    path = small_disk / "a.json"
    write_atomic(path, b"old")
    with pytest.raises(WriteError, match=r"\([\d,]+ bytes free on its disk\).*what stood there is kept"):
        write_atomic(path, bytes(10**6))
    assert names(small_disk) == ["a.json"] and path.read_bytes() == b"old"


def test_a_model_that_does_not_fit_is_a_clear_error(small_disk):
    import torch
    from accelerate import Accelerator
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from trainer.checkpoint.files import save_model
    from trainer.sft_config import SFTConfig

    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=8192, hidden_size=16, intermediate_size=16, num_hidden_layers=1))
    policy = torch.nn.Module()
    policy.model = model
    (small_disk / "model").mkdir()
    (small_disk / "model" / "old").write_bytes(b"old")
    with pytest.raises(CheckpointError, match="could not save the model to .*No space left on device"):
        save_model(Accelerator(cpu=True), policy, None, SFTConfig(out=str(small_disk)), 1, "model")
    assert names(small_disk) == ["model"]
    assert (small_disk / "model" / "old").read_bytes() == b"old"


def cut(folder: Path) -> None:
    os.truncate(folder / "deep" / "1.bin", 10)


def flip(folder: Path) -> None:
    data = bytearray((folder / "deep" / "1.bin").read_bytes())
    data[100] ^= 1
    (folder / "deep" / "1.bin").write_bytes(data)


def lose(folder: Path) -> None:
    (folder / "deep" / "1.bin").unlink()


def add(folder: Path) -> None:
    (folder / "stray.bin").write_bytes(b"")


def lose_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def forge_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"loss":0.5', '"loss":0.1'))


DAMAGE = [
    (cut, "deep/1.bin has 10 bytes where 10000 were written"),
    (flip, "deep/1.bin does not hold what was written"),
    (lose, "deep/1.bin is missing"),
    (add, "stray.bin is not in its manifest"),
    (lose_manifest, "manifest.json' is missing or damaged"),
    (forge_manifest, "manifest.json' is damaged: its checksum"),
]


@pytest.mark.parametrize("damage, problem", DAMAGE, ids=[damage.__name__ for damage, _ in DAMAGE])
def test_a_damaged_checkpoint_is_named_and_left_only_on_request(tmp_path, damage, problem):
    for step in (9, 10):
        alone(tmp_path, step, loss=0.5)
    damage(tmp_path / "step_10")
    with pytest.raises(CheckpointError, match=problem) as caught:
        choose(tmp_path, "auto")
    assert "step_10" in str(caught.value) and "resume=previous" in str(caught.value)
    assert choose(tmp_path, "previous") == tmp_path / "step_9"
    cut(tmp_path / "step_9")
    with pytest.raises(CheckpointError, match="none is whole"):
        choose(tmp_path, "previous")


def test_where_a_run_starts(tmp_path):
    root = tmp_path / "checkpoints"
    assert choose(root, "never") is None and choose(root, "auto") is None
    with pytest.raises(CheckpointError, match="there is none"):
        choose(root, "previous")
    with pytest.raises(CheckpointError, match="there is no checkpoint folder 'step_9'"):
        choose(root, "step_9")
    for step in (9, 10):
        alone(root, step)
    assert choose(root, "auto") == choose(root, "previous") == root / "step_10"
    assert choose(root, str(root / "step_9")) == root / "step_9"
    with pytest.raises(ConfigError, match="newest 'step_10': give resume=auto .*another `out`"):
        choose(root, "never")


def test_a_run_that_went_back_leaves_the_later_checkpoints_behind(tmp_path):
    for step in (5, 10, 15):
        alone(tmp_path, step)
    lose(tmp_path / "step_15")
    assert choose(tmp_path, "previous").name == "step_10"
    alone(tmp_path, 12)
    assert choose(tmp_path, "auto").name == "step_12" and list(checkpoints(tmp_path)) == [5, 10, 12]


def test_the_last_and_the_best_are_kept(tmp_path):
    for step, loss in {1: 0.2, 2: None, 3: 0.1, 9: 0.1, 10: 0.3, 11: 0.4}.items():
        alone(tmp_path, step, loss=loss)
    assert best_step(tmp_path, "loss", higher_is_better=False) == 9
    assert best_step(tmp_path, "loss", higher_is_better=True) == 11
    assert best_step(tmp_path, "accuracy", higher_is_better=True) is None
    prune(tmp_path, keep_last=2, best=3)
    assert list(checkpoints(tmp_path)) == [3, 10, 11] and names(tmp_path) == ["step_10", "step_11", "step_3"]
    prune(tmp_path, keep_last=1, best=None)
    assert list(checkpoints(tmp_path)) == [11]
    with pytest.raises(ValueError, match="keep_last"):
        prune(tmp_path, keep_last=0, best=None)
