"""Stage 1: the GPU tests, and the head's kernels: machine code, exactness, time and bandwidth."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from functools import partial
from types import ModuleType

import torch

from tests.benchmarks import head
from tests.benchmarks.common import device, seconds
from tests.benchmarks.gpu.identity import ROOT
from tests.benchmarks.gpu.record import Record
from tests.test_compiled_kernels import compiled
from trainer.kernels import plain_rows

HOPPER = 90
"""Compute capability that the kernels are compiled for where there is no GPU."""
REASON = re.compile(r"(?:Skipped: |:\d+: )([^']*)")
"""What pytest says of a test, or a file, that is left out, behind the place in the code."""
KERNELS, MOST_REGISTERS = ("_statistics_kernel", "_gradient_kernel"), 96
"""Above it too few rows are under way at once. Releases of Triton differ: 3.6 takes 51 where 3.9 takes 35."""
ROW_SHAPES = [(4096, 151_936, torch.bfloat16), (8192, 49_152, torch.bfloat16), (4096, 49_152, torch.float32)]
TINY_ROW_SHAPES = [(8, 97, torch.float32), (5, 130, torch.bfloat16)]
HEAD_SHAPES = [head.Shape(rows, 2560, 151_936, torch.bfloat16) for rows in (4096, 16384)]
TINY_HEAD_SHAPES = [head.Shape(1024, 16, 97, torch.float32)]


def run(record: Record) -> None:
    """Run every part; one that fails stops no other."""
    gpu_tests(record)
    machine_code(record)
    copy_bandwidth(record)
    for shape in TINY_ROW_SHAPES if record.tiny else ROW_SHAPES:
        row_kernels(record, *shape)
    for shape in TINY_HEAD_SHAPES if record.tiny else HEAD_SHAPES:
        heads(record, shape)


def gpu_tests(record: Record) -> None:
    """Run tests/gpu as pytest does, and count."""
    report = record.work / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    command += ["tests/gpu", f"--junitxml={report}"]
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    cases = list(ElementTree.parse(report).iter("testcase"))
    skipped = {case.get("name"): REASON.search(each.text)[1] for case in cases for each in case.iter("skipped")}
    failed = [case.get("name") for case in cases if any(each.tag in ("failure", "error") for each in case)]
    passed = len(cases) - len(skipped) - len(failed)
    record.add({"what": "tests/gpu", "passed": passed, "failed": failed})
    for name, why in skipped.items():
        record.skip(name, why)
    if failed or status not in (0, 5) or (torch.cuda.is_available() and not passed):  # 5: no file had a test to run
        record.fail("tests/gpu", f"pytest ended with {status}, {passed} passed, failed: {', '.join(failed) or 'none'}")


def machine_code(record: Record) -> None:
    """Compile both kernels for this GPU, and read registers, spills and widths off the machine code."""
    architecture = HOPPER
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        architecture = 10 * major + minor
    for name in KERNELS:
        found = compiled(name, architecture, ("row_stride", "width"), record.work)
        row = {"what": name, "sm": architecture, "registers": found.registers, "spilled_bytes": found.spilled_bytes}
        record.add(row | {"loop_instructions": found.loop_instructions, "accesses": dict(found.accesses)})
        if found.spilled_bytes or found.registers > MOST_REGISTERS:
            record.fail(
                name, f"{found.registers} registers (at most {MOST_REGISTERS}), {found.spilled_bytes} bytes spilled"
            )


def median_seconds(run: Callable[[], object]) -> float:
    """Time by device events where there are some."""
    if not torch.cuda.is_available():
        return seconds(run)
    from triton.testing import do_bench

    return do_bench(run, return_mode="median") / 1e3


def copy_bandwidth(record: Record) -> None:
    """Measure what a kernel that only moves bytes may reach."""
    source = torch.randn(10**4 if record.tiny else 10**9, device=device())
    target = torch.empty_like(source)
    taken = median_seconds(lambda: target.copy_(source))
    record.add({"what": "copy", "seconds": taken, "gb_per_second": 2 * source.nbytes / taken / 1e9})


def row_kernels(record: Record, num_rows: int, vocabulary: int, dtype: torch.dtype) -> None:
    """Compare the kernels with their plain twin, and both with the plain twin in a higher precision."""
    kinds: dict[str, ModuleType] = {"plain": plain_rows}
    if torch.cuda.is_available():
        from trainer.kernels import triton_rows

        kinds["triton"] = triton_rows
    else:
        record.skip(f"triton kernels on {num_rows} x {vocabulary}", "needs a CUDA GPU")
    torch.manual_seed(0)
    logits = (3 * torch.randn(num_rows, vocabulary, device=device())).to(dtype)
    targets = torch.randint(vocabulary, (num_rows,), device=device())
    by_logprob, by_entropy = torch.randn(2, num_rows, device=device()) / num_rows
    high = torch.float64 if record.tiny else torch.float32
    found, errors = {}, {}
    for name, kernels in {"truth": plain_rows, **kinds}.items():
        own = logits.to(high) if name == "truth" else logits.clone()
        rows = kernels.statistics(own, targets, 1.0)
        given = [each.to(high) if name == "truth" else each for each in (by_logprob, by_entropy)]
        kernels.write_gradient_(own, targets, rows, *given, 1.0)
        found[name] = rows.logprobs, rows.entropy, own
        if name == "truth":
            continue
        errors[name] = [_distance(mine, exact) for mine, exact in zip(found[name], found["truth"], strict=True)]
        work = logits.clone()
        times = {
            "statistics": median_seconds(partial(kernels.statistics, work, targets, 1.0)),
            "gradient": median_seconds(
                partial(kernels.write_gradient_, work, targets, rows, by_logprob, by_entropy, 1.0)
            ),
        }
        row = {"what": "row kernels", "impl": name, "rows": num_rows, "vocabulary": vocabulary, "dtype": str(dtype)}
        row |= dict(zip(("logprob_error", "entropy_error", "gradient_error"), errors[name], strict=True))
        for what, passes in (("statistics", 1), ("gradient", 2)):  # each reads, the second also writes
            row |= {f"{what}_seconds": times[what]}
            row |= {f"{what}_gb_per_second": passes * logits.nbytes / times[what] / 1e9}
        record.add(row)
        del found[name], own, work
    for mine, plain in zip(errors.get("triton", []), errors["plain"], strict=False):
        if mine > 1.1 * plain + 1e-5:
            record.fail("row kernels", f"errors {errors} on {num_rows} x {vocabulary} {dtype}")


def _distance(found: torch.Tensor, exact: torch.Tensor) -> float:
    return ((found.to(exact.dtype) - exact).norm() / exact.norm()).item()


def heads(record: Record, shape: head.Shape) -> None:
    """Measure the head with its loss against plain logits, rivals and the matmuls alone."""
    rows = {row["impl"]: row for row in head.measure(shape)}
    for name, row in rows.items():
        record.add({"what": "head"} | row)
        if "does not run" in row.get("note", ""):
            record.skip(f"head of {name}", row["note"])
    fused, plain = rows["fused"]["gradient_gap"], rows["plain"].get("gradient_gap")
    if plain is not None and fused > 1.1 * plain + 1e-5:
        record.fail("head", f"gradient {fused:.2g} from the truth, plain logits {plain:.2g}")
