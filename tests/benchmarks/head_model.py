"""The fused head's time on GPUs that this machine lacks: modelled from kernels that others measured. Nothing is timed.

    python -m tests.benchmarks.head --model --out tests/benchmarks/results/head_model.json
    python -m tests.benchmarks.head_model --from FOLDER     writes head_products.json anew from an unpacked wheel of
                                                            aisimulate (PyPI, Apache-2.0, by NVIDIA)

products  three matmuls of each chunk, by a line through the times of products of 65,536 entries of the vocabulary, in
          proportion to it. The table's neighbours differ by up to a fifth (clocks, choice of kernel), which is no
          property of a chunk, hence the line. Layouts of the operands are not told apart.
sums      what adding to the weight's gradient moves beyond the product that was measured, which only writes bfloat16
rows      statistics and gradients of the logits: bytes over the lowest of three rates, that of a copy, that of the
          loads under way (by the registers of the compiled kernel), that of its instructions (by its machine code)
ends      scaling and rounding of the gradients in the backward
launches  of the chunks, each at 3 microseconds, as aisimulate takes it
`fourth_product_ms` is what making the logits again would add, as heads do that wait for the backward (Liger's, TRL's).
`low_ms` hides the traffic of sums behind the products, `high_ms` does not.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.kernel_times import COPY_SHARE
from trainer.model.head import WORKSPACE_BYTES, chunk_rows_within

TABLE = Path(__file__).with_name("head_products.json")
SYSTEMS = "aisimulate_core/systems/data"
TABLES = {
    "h100": "h100_sxm/gemm/vllm/0.31.0/gemm_perf.parquet",
    "a100": "a100_sxm/gemm/vllm/0.14.0/gemm_perf.parquet",
    "b200": "b200_sxm/gemm/vllm/0.27.1/gemm_perf.parquet",
}
VOCABULARY, SUMMED_ROWS = 65_536, 8192
"""Of the products that were measured; for the weight's gradient so many rows of it."""
WIDTHS = (2560, 4096)
ROWS = (256, 512, 768, 1024, 1536, 2048, 2560, 3072, 3584, 4096, 8192, 16_384)

LAUNCH_SECONDS = 3e-6
"""Assumed by aisimulate for every kernel on these GPUs."""
LOAD_SECONDS = 1e-6
"""Assumed: from a load of global memory to its number, on a busy GPU."""
SMALL_LAUNCHES = 12
"""Operators of a chunk that are neither products nor our kernels, with SFT's loss: counted by a test."""
ITEM, WIDE = 2, 4
"""Bytes of a number in bfloat16 and float32."""
THREADS = 128
"""Of a program of our kernels."""
PASSES = {"_statistics_kernel": 1, "_gradient_kernel": 2}
"""How often a kernel moves the logits: the second also writes them."""


@dataclass(frozen=True)
class Gpu:
    """Figures of NVIDIA's data sheets."""

    architecture: int
    bandwidth: float
    """Bytes per second."""
    processors: int
    clock: float
    """Boost clock, in Hz."""
    registers: int = 65_536
    """Of a processor."""
    threads: int = 2048


GPUS = {
    "h100": Gpu(architecture=90, bandwidth=3.35e12, processors=132, clock=1.98e9),
    "a100": Gpu(architecture=80, bandwidth=2.039e12, processors=108, clock=1.41e9),
    "b200": Gpu(architecture=100, bandwidth=7.7e12, processors=148, clock=1.965e9),
}


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes, read from its machine code."""

    registers: int
    loop_instructions: int
    """Of a thread, for a block of logits."""
    block: int
    """Logits that a program reads at a time."""


@dataclass(frozen=True)
class Line:
    """Seconds of a product: some for the call, some for each row."""

    call: float
    row: float

    def at(self, rows: int) -> float:
        return self.call + self.row * rows


def fitted(points: list[list[float]]) -> Line:
    """Return the line of the least relative errors through [rows, microseconds]."""
    rows, seconds = np.array(points, dtype=float).T * [[1], [1e-6]]
    call, row = np.linalg.lstsq(np.stack([1 / seconds, rows / seconds], 1), np.ones(len(rows)), rcond=None)[0]
    return Line(float(max(call, 0.0)), float(row))


@cache
def read_products(gpu: str, hidden: int, path: Path = TABLE) -> dict[str, Line]:
    """Return the lines of the three products of this hidden width, over VOCABULARY entries."""
    measured = json.loads(path.read_text(encoding="utf-8"))["microseconds"][gpu]
    return {name: fitted(widths[str(hidden)]) for name, widths in measured.items()}


def resident(gpu: Gpu, kernel: Resources, rows: int) -> float:
    """Return how many programs a processor runs at once; each has a row of its own."""
    registers = -(-kernel.registers // 8) * 8 * THREADS  # handed out by eights to each thread
    return min(gpu.threads // THREADS, gpu.registers // registers, rows / gpu.processors)


def row_rates(gpu: Gpu, kernel: Resources, passes: int, rows: int) -> dict[str, float]:
    """Return the bytes per second that a kernel moves at most, by each of its limits."""
    block_bytes = kernel.block * ITEM
    # four schedulers issue for 32 threads each: 128 threads take a cycle for each of their instructions
    blocks_per_second = gpu.processors * gpu.clock / kernel.loop_instructions
    return {
        "copy": gpu.bandwidth * COPY_SHARE,
        "loads": passes * block_bytes * gpu.processors * resident(gpu, kernel, rows) / LOAD_SECONDS,
        "instructions": passes * block_bytes * blocks_per_second,
    }


def modelled(
    name: str, kernels: dict[str, Resources], num_rows: int, hidden: int, vocabulary: int, chunk: int
) -> dict[str, float]:
    """Return the milliseconds of the head's parts in bfloat16, forward and backward, in chunks of so many rows."""
    gpu, lines, share = GPUS[name], read_products(name, hidden), vocabulary / VOCABULARY
    chunks = [min(chunk, num_rows - start) for start in range(0, num_rows, chunk)]
    copy, weights = gpu.bandwidth * COPY_SHARE, vocabulary * hidden
    several = len(chunks) > 1
    item = WIDE if several else ITEM
    products = sum(share * line.at(rows) for line in lines.values() for rows in chunks)
    by_weight = [share * lines["by_weight"].at(rows) for rows in chunks]
    # the first chunk writes the sums, the others read them too; what was measured writes bfloat16
    moved = [weights * item * (1 if first else 2) for first in (True, *[False] * (len(chunks) - 1))]
    adding = sum((each - weights * ITEM) / copy for each in moved)
    hidden_adding = sum(max(0.0, each / copy - product) for each, product in zip(moved, by_weight, strict=True))
    rows = sum(
        passes * size * vocabulary * ITEM / min(row_rates(gpu, kernels[kernel], passes, size).values())
        for kernel, passes in PASSES.items()
        for size in chunks
    )
    ends = (weights * (item + ITEM) + num_rows * hidden * 2 * ITEM) / copy
    launches = LAUNCH_SECONDS * len(chunks) * (5 + SMALL_LAUNCHES)
    common = products + rows + ends + launches
    parts = {"products": products, "sums": adding, "rows": rows, "ends": ends, "launches": launches}
    found = parts | {"low": common + hidden_adding, "high": common + adding}
    found["fourth_product"] = sum(share * lines["logits"].at(rows) for rows in chunks)
    return {f"{part}_ms": round(1e3 * seconds, 2) for part, seconds in found.items()}


def workspace_bytes(num_rows: int, hidden: int, vocabulary: int, chunk: int) -> int:
    """Return what a chunk size takes beyond the inputs and their gradients: logits, and what float32 sums take more."""
    sums = vocabulary * hidden * (WIDE - ITEM) if chunk < num_rows else 0
    return min(chunk, num_rows) * vocabulary * ITEM + sums


GOAL = (8192, 4096, 131_072)
"""Rows, hidden width, vocabulary: 36 ms on an H100 is asked for."""
SHAPES = (GOAL, *((rows, 2560, 151_936) for rows in (4096, 8192, 16_384)))
"""And those of Qwen3-4B."""
SIZES = (256, 512, 1024, 1536, 2048, 2560, 3072, 4096, 6144, 8192, 16_384)


def compiled_kernels(gpu: Gpu, folder: Path) -> dict[str, Resources]:
    """Compile our kernels for a GPU, which need not be there, and read what they take."""
    from tests.test_compiled_kernels import compiled
    from trainer.kernels import triton_rows

    found = {name: compiled(name, gpu.architecture, ("row_stride", "width"), folder) for name in PASSES}
    return {name: Resources(each.registers, each.loop_instructions, triton_rows.BLOCK) for name, each in found.items()}


def rows_of(name: str, kernels: dict[str, Resources]) -> Iterator[dict[str, Any]]:
    """Yield what our kernels take and reach, every chunk size at the goal's shape, and the product's choices."""
    gpu = GPUS[name]
    for kernel, resources in kernels.items():
        rates = row_rates(gpu, resources, PASSES[kernel], SHAPES[0][0])
        row = {"what": "kernel", "kind": "compiled", "gpu": name, "architecture": gpu.architecture, "kernel": kernel}
        row |= vars(resources) | {"programs_at_once": resident(gpu, resources, SHAPES[0][0])}
        yield row | {"tb_per_second_at_most": {limit: round(rate / 1e12, 2) for limit, rate in rates.items()}}
    for num_rows, hidden, vocabulary in SHAPES:
        shape = {"kind": "MODELLED", "gpu": name, "rows": num_rows, "hidden": hidden, "vocabulary": vocabulary}
        chosen = chunk_rows_within(WORKSPACE_BYTES, num_rows, vocabulary, hidden, ITEM)
        sweep = []
        for chunk in sorted({min(each, num_rows) for each in (*SIZES, chosen)}):
            size = workspace_bytes(num_rows, hidden, vocabulary, chunk)
            times = modelled(name, kernels, num_rows, hidden, vocabulary, chunk)
            sweep.append({"chunk": chunk, "workspace_mib": round(size / 2**20), **times})
        if (num_rows, hidden, vocabulary) == GOAL:
            yield from ({"what": "chunk", **shape, **each} for each in sweep)
        (ours,) = (each for each in sweep if each["chunk"] == chosen)
        fitting = [each for each in sweep if each["workspace_mib"] <= WORKSPACE_BYTES / 2**20]
        row = {"what": "choice", **shape, **ours}
        for label, among in (("best_that_fits", fitting), ("best", sweep)):
            best = min(among, key=lambda each: each["low_ms"] + each["high_ms"])
            row[label] = {key: best[key] for key in ("chunk", "workspace_mib", "low_ms", "high_ms")}
        yield row


def rows() -> Iterator[dict[str, Any]]:
    """Yield the rows of all GPUs, with our kernels compiled for each."""
    for name, gpu in GPUS.items():
        with tempfile.TemporaryDirectory() as folder:
            yield from rows_of(name, compiled_kernels(gpu, Path(folder)))


def derive(folder: Path) -> dict[str, Any]:
    """Return the part of aisimulate's tables that is kept here; `folder` holds its unpacked wheel."""
    from pyarrow import parquet

    measured: dict[str, Any] = {}
    devices = {}
    for name, path in TABLES.items():
        rows = [row for row in parquet.read_table(folder / SYSTEMS / path).to_pylist() if _is_bfloat16(row)]
        devices[name] = rows[0]["device"]
        known = {(row["m"], row["n"], row["k"]): row["latency"] for row in rows}
        measured[name] = {
            "logits": {h: _points(known, [(rows, (rows, VOCABULARY, h)) for rows in ROWS]) for h in WIDTHS},
            "by_hidden": {h: _points(known, [(rows, (rows, h, VOCABULARY)) for rows in ROWS]) for h in WIDTHS},
            "by_weight": {
                h: _points(known, [(rows, (SUMMED_ROWS, h, rows)) for rows in ROWS], VOCABULARY / SUMMED_ROWS)
                for h in WIDTHS
            },
        }
    (metadata,) = folder.glob("*.dist-info")
    return {
        "source": f"{metadata.stem} (PyPI, Apache-2.0, (c) 2026 NVIDIA CORPORATION & AFFILIATES), {SYSTEMS}",
        "tables": TABLES,
        "devices": devices,
        "microseconds": measured,
    }


def _is_bfloat16(row: dict[str, Any]) -> bool:
    return row["gemm_dtype"] == "bfloat16"


def _points(known: dict, places: list[tuple[int, tuple[int, int, int]]], times: float = 1) -> list[list[float]]:
    """Return [rows, microseconds] of the products that were measured."""
    return [[rows, round(1e3 * times * known[place], 2)] for rows, place in places if place in known]


def main() -> None:
    parser = argparse.ArgumentParser(description="Times of the head's products, from measured tables.")
    parser.add_argument("--from", dest="folder", type=Path, required=True, help="unpacked wheel of aisimulate")
    text = json.dumps(derive(parser.parse_args().folder), separators=(",", ":"))
    TABLE.write_text(text.replace(']],"', ']],\n"').replace('":{"', '":{\n"') + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
