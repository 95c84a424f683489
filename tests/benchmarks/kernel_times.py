"""How busy an H100 is in training and in vLLM, from kernels that others measured on one; scaling.py reads it.

    python -m tests.benchmarks.kernel_times                    prints the rates
    python -m tests.benchmarks.kernel_times --from FOLDER      writes kernel_times_h100.json anew from an unpacked wheel
                                                               of aisimulate (PyPI, Apache-2.0, by NVIDIA)

A rate is what the model's formula counts over the time that its kernels take back to back: matrix products of
Qwen3-4B's shapes (of the nearest shape measured, by their size), attention, collectives, and for all other operators
the bytes they move. Gaps between kernels are left out. So it is modelled from measured kernels, not measured.
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

TABLE = Path(__file__).with_name("kernel_times_h100.json")
SYSTEM = "aisimulate_core/systems/data/h100_sxm"
TABLES = {
    "linear": "gemm/vllm/0.31.0/gemm_perf.parquet",
    "prefill": "attention/vllm/0.25.0/context_attention_perf.parquet",
    "decode": "attention/vllm/0.25.0/generation_attention_perf.parquet",
    "collective": "comm/nccl/2.29.2/nccl_perf.parquet",
}

HIDDEN, HEADS, GROUPS, MIDDLE, VOCABULARY, LAYERS = 2560, 4096, 1024, 9728, 151_936, 36
"""Widths of Qwen3-4B: heads and key heads together, 128 wide each."""
APART = [(HEADS, HIDDEN), (GROUPS, HIDDEN), (GROUPS, HIDDEN), (HIDDEN, HEADS), (MIDDLE, HIDDEN), (MIDDLE, HIDDEN)]
APART += [(HIDDEN, MIDDLE)]
"""(out, in) of a layer's products, as transformers runs them."""
FUSED = [(HEADS + 2 * GROUPS, HIDDEN), (HIDDEN, HEADS), (2 * MIDDLE, HIDDEN), (HIDDEN, MIDDLE)]
"""As vLLM runs them."""
ROWS = (1, 16, 32, 64, 128, 256, 512, 1024, 2048, 2560, 4096, 8192, 16384, 32768)
SHAPES = ((6144, 2560), (4096, 2560), (1024, 2560), (10240, 2560), (16384, 2560), (2560, 4096), (2560, 1024),
          (2560, 10240), (154880, 4096), (2560, 51200), (4096, 51200), (10240, 51200))  # fmt: skip
"""(n, k) of the products that are kept of the table: what a layer's forward and backward and the head come near to."""

MOVED = {"forward": 601_000, "backward": 1_401_000}
"""Bytes that a layer's other operators read and write for each token, in transformers: counted by moved_bytes.py."""
MOVED_BY_VLLM = 2 * (2 * 4 * HIDDEN + 2 * 2 * (HEADS + GROUPS) + 3 * MIDDLE)
"""The same in vLLM, whose norms take the residual along: two norms, norm and rotation of heads, gate."""
COPY_SHARE = 0.8
"""Assumed: share of the data sheet's bandwidth that operators reach which only move bytes."""
BACKWARD_ATTENTION = 3.5
"""Assumed: attention's backward over its forward: 2.5 times the operations, at 0.7 of the rate."""
BATCHED_TOKENS = 8192
"""Tokens that vLLM reads at once (its default on an H100)."""


@dataclass(frozen=True)
class Kernels:
    """Seconds of kernels."""

    linear: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]
    """(n, k) -> rows m, seconds of (m, k) x (k, n)."""
    prefill: tuple[np.ndarray, np.ndarray]
    """Lengths of one causal sequence, seconds of a layer."""
    decode: dict[int, tuple[np.ndarray, np.ndarray]]
    """Sequences -> context lengths, seconds of a layer."""
    collective: dict[str, tuple[np.ndarray, np.ndarray]]
    """Name -> bytes, seconds on eight GPUs of a node."""

    def product(self, m: int, n: int, k: int) -> float:
        """Seconds of a product (m, k) x (k, n), by the nearest shape that was measured."""
        near = min(self.linear, key=lambda shape: abs(np.log(shape[0] / n)) + abs(np.log(shape[1] / k)))
        return _at(self.linear[near], m) * (n * k) / (near[0] * near[1])

    def forward(self, tokens: int, products: Iterable[tuple[int, int]]) -> float:
        """Seconds of the products of all layers."""
        return LAYERS * sum(self.product(tokens, n, k) for n, k in products)

    def backward(self, tokens: int) -> float:
        """Seconds of the gradients by inputs and by weights."""
        return LAYERS * sum(self.product(tokens, k, n) + self.product(n, k, tokens) for n, k in APART)

    def attention(self, tokens: float, context: float) -> float:
        """Seconds of all layers where each token reads half of `context` on average."""
        return LAYERS * tokens * context / 2 * _at(self.prefill, context) / (context**2 / 2)

    def decoding(self, sequences: int, context: float) -> float:
        """Seconds of attention of all layers in which each sequence writes a token."""
        known = sorted(self.decode)
        times = [_at(self.decode[count], context) for count in known]
        return LAYERS * float(np.interp(sequences, known, times))


def _at(points: tuple[np.ndarray, np.ndarray], place: float) -> float:
    """Between measured points on the line; beyond the last one in proportion."""
    places, seconds = points
    return float(np.interp(place, places, seconds)) * max(1.0, place / places[-1])


@cache
def read_kernels(path: Path = TABLE) -> Kernels:
    rows = json.loads(path.read_text(encoding="utf-8"))["microseconds"]

    def columns(points: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
        places, times = np.array(sorted(points), dtype=float).T
        return places, times / 1e6

    return Kernels(
        linear={tuple(map(int, name.split(" x "))): columns(points) for name, points in rows["linear"].items()},
        prefill=columns(rows["prefill"]),
        decode={int(name): columns(points) for name, points in rows["decode"].items()},
        collective={name: columns(points) for name, points in rows["collective"].items()},
    )


def rates(given: dict[str, Any], kernels: Kernels | None = None) -> dict[str, float]:
    """Return what scaling_inputs.json leaves open, at the lengths that it gives."""
    kernels, peak = kernels or read_kernels(), given["peak_flops"]
    prompt, written = given["prompt_mean"], given["completion_mean"]
    rows = int(given["agents"] * given["num_rollouts"] * written)
    tokens = int(prompt * (given["shared_share"] + given["agents"] * (1 - given["shared_share"])) + rows)
    copy = given["memory_bandwidth"] * COPY_SHARE

    def counted(num_tokens: float) -> float:
        """The operations of a forward, as scaling.forward_flops counts them."""
        return num_tokens * (2 * given["parameters"] + 4 * given["attention_width"] * given["layers"] * prompt / 2)

    head, attention = kernels.product(rows, VOCABULARY, HIDDEN), kernels.attention(tokens, prompt)
    forward = kernels.forward(tokens, APART) + attention + LAYERS * tokens * MOVED["forward"] / copy
    backward = kernels.backward(tokens) + BACKWARD_ATTENTION * attention + LAYERS * tokens * MOVED["backward"] / copy
    # policy: forward, the same again and backward, head in three products; reference: forward, head in one
    update = 3 * forward + backward + 4 * head
    read = kernels.forward(BATCHED_TOKENS, FUSED) + kernels.attention(BATCHED_TOKENS, prompt)
    read += LAYERS * BATCHED_TOKENS * MOVED_BY_VLLM / copy
    sequences, context = given["max_num_seqs"] // 2, prompt + written / 2
    token = kernels.forward(sequences, FUSED) + kernels.product(sequences, VOCABULARY, HIDDEN)
    token += kernels.decoding(sequences, context)
    moved = 2 * given["parameters"] + sequences * context * given["kv_bytes_per_token"]
    sizes, seconds = kernels.collective["reduce_scatter"]
    ranks = given["gpus_per_node"]
    return {
        "train_mfu": 5 * counted(tokens) / peak / update,
        "prefill_mfu": counted(BATCHED_TOKENS) / peak / read,
        "decode_bandwidth": moved / given["memory_bandwidth"] / token,
        "node_bandwidth": sizes[-1] * (ranks - 1) / ranks / seconds[-1],
    }


def derive(folder: Path) -> dict[str, Any]:
    """Return the part of aisimulate's tables that is kept here; `folder` holds its unpacked wheel."""
    from pyarrow import parquet

    found = {name: parquet.read_table(folder / SYSTEM / path).to_pylist() for name, path in TABLES.items()}
    heads = {"num_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "window_size": 0}
    heads |= {"attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16"}
    linear: dict[str, list] = {f"{n} x {k}": [] for n, k in SHAPES}
    for row in found["linear"]:
        if row["gemm_dtype"] == "bfloat16" and (row["n"], row["k"]) in SHAPES and row["m"] in ROWS:
            linear[f"{row['n']} x {row['k']}"].append((row["m"], row["latency"]))
    prefill = [(row["isl"], row["latency"]) for row in _where(found["prefill"], heads | {"batch_size": 1})]
    decode: dict[int, list] = {}
    for row in _where(found["decode"], heads):
        if row["step"] + 1 >= ROWS[1]:
            decode.setdefault(row["batch_size"], []).append((row["step"] + 1, row["latency"]))
    collective: dict[str, list] = {"all_gather": [], "reduce_scatter": []}
    for row in _where(found["collective"], {"num_gpus": 8, "nccl_dtype": "half"}):
        if row["op_name"] in collective and row["message_size"] >= 2**20:  # of numbers of two bytes
            collective[row["op_name"]].append((2 * row["message_size"], row["latency"]))
    tables = {"linear": linear, "prefill": prefill, "decode": decode, "collective": collective}
    (metadata,) = folder.glob("*.dist-info")
    return {
        "source": f"{metadata.stem} (PyPI, Apache-2.0, (c) 2026 NVIDIA CORPORATION & AFFILIATES), {SYSTEM}",
        "tables": TABLES,
        "device": found["linear"][0]["device"],
        "microseconds": _in_microseconds(tables),
    }


def _where(rows: Iterable[dict[str, Any]], wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows with these values, of FlashAttention 3 where there are several kernels."""
    return [
        row
        for row in rows
        if all(row[name] == value for name, value in wanted.items()) and not row["kernel_source"].endswith("fa4")
    ]


def _in_microseconds(table: Any) -> Any:
    """Return the tables with points in order, and their milliseconds in microseconds."""
    if isinstance(table, dict):
        return {str(name): _in_microseconds(each) for name, each in table.items()}
    return [[place, round(1e3 * latency, 2)] for place, latency in sorted(dict(table).items())]


def main() -> None:
    parser = argparse.ArgumentParser(description="Rates of an H100 from measured kernels.")
    parser.add_argument("--from", dest="folder", type=Path, help="unpacked wheel of aisimulate")
    given = parser.parse_args()
    if given.folder is not None:
        text = json.dumps(derive(given.folder), indent=None, separators=(",", ":"))
        TABLE.write_text(text.replace('],"', '],\n"').replace('{"', '{\n"') + "\n", encoding="utf-8")
    from tests.benchmarks.scaling import read_inputs

    inputs = vars(read_inputs())
    print(json.dumps({name: round(inputs[name], 4) for name in rates(inputs)}, indent=2))


if __name__ == "__main__":
    main()
