"""Holds the addresses, sizes and checksums of the public benchmarks, which no other file does.

LoCoMo and LongMemEval are pinned to a revision and checked by size and checksum. PerLTQA comes from the newest revision
and is not checked: neither size nor checksum is known to us.
"""

from dataclasses import dataclass

_LOCOMO = "https://raw.githubusercontent.com/snap-research/locomo/3eb6f2c585f5e1699204e3c3bdf7adc5c28cb376/data"
_LONGMEMEVAL = (
    "https://huggingface.co/datasets/xiaowu0162/longmemeval-cleaned/resolve/98d7416c24c778c2fee6e6f3006e7a073259d48f"
)
_PERLTQA = "https://raw.githubusercontent.com/Elvin-Yiming-Du/PerLTQA/main/Dataset/en_v2"


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    url: str
    size: int | None = None
    """Size in bytes; None means that it is not known to us, so not checked."""
    sha256: str | None = None
    """None means that it is not known to us, so not checked."""

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicDataset:
    folder: str
    """Folder of its files, under the data folder."""
    files: tuple[RemoteFile, ...]
    license: str
    whole_folder: bool = False
    """Whether the dataset is the folder, not its first file."""

    @property
    def place(self) -> str:
        """Path that a loader reads, under the data folder."""
        return self.folder if self.whole_folder else f"{self.folder}/{self.files[0].name}"


_LOCOMO_10 = RemoteFile(
    url=f"{_LOCOMO}/locomo10.json",
    size=2_805_274,
    sha256="79fa87e90f04081343b8c8debecb80a9a6842b76a7aa537dc9fdf651ea698ff4",
)
_PERLTQA_FILES = tuple(RemoteFile(url=f"{_PERLTQA}/{name}_en_v2.json") for name in ("perltmem", "perltqa"))


def _longmemeval(name: str, size: int, sha256: str) -> PublicDataset:
    file = RemoteFile(url=f"{_LONGMEMEVAL}/{name}", size=size, sha256=sha256)
    return PublicDataset(folder="longmemeval", files=(file,), license="MIT")


_LONGMEMEVAL_S = _longmemeval(
    "longmemeval_s_cleaned.json", 277_383_467, "d6f21ea9d60a0d56f34a05b609c79c88a451d2ae03597821ea3d5a9678c3a442"
)
DATASETS = {
    "locomo": PublicDataset(folder="locomo", files=(_LOCOMO_10,), license="CC BY-NC 4.0"),
    "longmemeval": _LONGMEMEVAL_S,
    "longmemeval-s": _LONGMEMEVAL_S,
    "longmemeval-m": _longmemeval(
        "longmemeval_m_cleaned.json", 2_737_100_077, "9d79e5524794a2e6900a3aa9cb7d9152c5a3e8319c9a87c25494ba1eacee495f"
    ),
    "longmemeval-oracle": _longmemeval(
        "longmemeval_oracle.json", 15_388_478, "821a2034d219ab45846873dd14c14f12cfe7776e73527a483f9dac095d38620c"
    ),
    "perltqa": PublicDataset(folder="perltqa", files=_PERLTQA_FILES, license="CC BY-NC 4.0", whole_folder=True),
}
