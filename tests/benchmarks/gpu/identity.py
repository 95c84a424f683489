"""Names of the stages, and a digest of the code that they run. It needs nothing but Python."""

import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
STAGES = ("kernels", "learner", "learning", "step", "vllm")
SOURCES = ("membuilder", "rollout", "reward", "trainer", "configs", "tests")


def source_digest() -> str:
    """Return a digest of all code and settings that a stage may use: the copy on a lent machine has no git."""
    digest = hashlib.sha256()
    paths = (path for folder in SOURCES for ending in ("py", "yaml") for path in (ROOT / folder).rglob(f"*.{ending}"))
    for path in sorted(paths):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]
