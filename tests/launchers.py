"""Real launchers: launch/multinode.sh once for each node of a run, and what their processes wrote."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import psutil
import yaml

from tests import forks, found_processes
from tests.patience import HANGS

ROOT = Path(__file__).parent.parent
NODES = {"ddp": 1, "zero2": 2, "zero3": 1}
ADDRESSES = ("127.0.0.2", "127.0.0.3")
BECOME = 'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'
"""A shell's way to become a node: gloo binds to the address that the name of its host stands for."""


class Node(NamedTuple):
    launcher: subprocess.Popen
    log: Path


def accelerate_file(mode: str, folder: Path) -> str:
    """DeepSpeed as in the committed files, but in float32, because bfloat16 would hide gaps."""
    if mode == "ddp":
        return "configs/accelerate/cpu2.yaml"
    committed = "zero2_multinode" if mode == "zero2" else "zero3"
    content = yaml.safe_load((ROOT / f"configs/accelerate/{committed}.yaml").read_text(encoding="utf-8"))
    zero = {"stage": int(mode.removeprefix("zero")), "stage3_param_persistence_threshold": 0}
    zero["stage3_gather_16bit_weights_on_model_save"] = True
    deepspeed = {"zero_optimization": zero, "train_micro_batch_size_per_gpu": 1}
    (folder / "deepspeed.json").write_text(json.dumps(deepspeed), encoding="utf-8")
    content["deepspeed_config"]["deepspeed_config_file"] = str(folder / "deepspeed.json")
    (folder / "accelerate.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(folder / "accelerate.yaml")


@cache
def namespaces() -> list[str] | None:
    """How this user may give a process a host name and a hosts file of its own; None where that is not allowed."""
    if shutil.which("unshare") is None:
        return None
    for rights in ([], ["--map-root-user"]):
        command = ["unshare", *rights, "--uts", "--mount"]
        attempt = [*command, "sh", "-c", BECOME, "sh", "node", "/etc/hosts", "true"]
        if subprocess.run(attempt, capture_output=True, check=False).returncode == 0:
            return command
    return None


def as_node(rank: int, folder: Path) -> list[str]:
    """What to put before a command to run it on node `rank`, a host with a name and a loopback address of its own."""
    if namespaces() is None:
        return []
    lines = ["127.0.0.1 localhost", *(f"{address} node{number}" for number, address in enumerate(ADDRESSES))]
    (folder / "hosts").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [*namespaces(), "sh", "-c", BECOME, "sh", f"node{rank}", str(folder / "hosts")]


@contextmanager
def nodes(mode: str, folder: Path, *module: str) -> Iterator[list[Node]]:
    """Two processes of a module, by a launcher on each node."""
    several = NODES[mode] > 1
    shared = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu", "NNODES": str(NODES[mode]),
        "GPUS_PER_NODE": str(2 // NODES[mode]),
        "MASTER_ADDR": ADDRESSES[0] if several else "127.0.0.1", "MASTER_PORT": str(forks.free_port()),
        "ACCELERATE_CONFIG": accelerate_file(mode, folder), "TRITON_INTERPRET": "1",
    }  # fmt: skip
    started = []
    try:
        for rank in range(NODES[mode]):
            log = folder / f"node{rank}.log"
            with open(log, "w") as output:
                launcher = subprocess.Popen(
                    [*(as_node(rank, folder) if several else []), str(ROOT / "launch/multinode.sh"), *module],
                    stdout=output, stderr=output, env=shared | {"NODE_RANK": str(rank)},
                )  # fmt: skip
            started.append(Node(launcher, log))
        yield started
    finally:
        for node in started:
            node.launcher.kill()


def launched(mode: str, folder: Path, *arguments: str) -> str:
    """What the two processes of tests/both_loops.py say."""
    with nodes(mode, folder, "tests.both_loops", *arguments) as started:
        for node in started:
            assert node.launcher.wait(400) == 0, node.log.read_text()[-4000:]
        return "".join(node.log.read_text() for node in started)


def process_of_rank(node: Node, rank: int) -> psutil.Process:
    children = psutil.Process(node.launcher.pid).children(recursive=True)
    (process, *_) = found_processes.that(lambda each: each.environ().get("RANK") == str(rank), children)
    return process


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def await_steps(folder: Path, alive: Callable[[], bool], log: Path) -> None:
    """Until a run has logged two steps."""
    deadline = time.monotonic() + HANGS
    while not (folder / "metrics.jsonl").exists() or len(rows(folder)) < 2:
        assert time.monotonic() < deadline and alive(), log.read_text()[-3000:]
        time.sleep(0.1)
