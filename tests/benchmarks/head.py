"""The output head with its loss: ours, fused, against others, forward and backward, on the same rows and weights.

    python -m tests.benchmarks.head --out tests/benchmarks/results/head_cpu.json
    python -m tests.benchmarks.head --model --out tests/benchmarks/results/head_model.json

fused   trainer/model/head.py: chunks, three matmuls, kernels of the device
plain   all logits at once, autograd
liger   Liger-Kernel's LigerFusedLinearGRPOLoss (advantages per sequence, no per-token weight), CUDA or CPU
cce     cut-cross-entropy's per-token loss, weighted outside; CUDA. By default it leaves out gradients that it takes for
        too small; `cce-exact` does not (filter_eps=None)
All minimise a policy gradient at ratio one: -A log p, so their gradients can be compared. Errors are relative L2 gaps
of the gradients to the plain head in float32 (CPU: float64). `peak_mb` counts the gradients that come out, `extra_mb`
does not. The row `gemm` holds the time of the three matmuls alone, all rows at once. All take turns.
With --model nothing is timed: head_model.py models the fused head on an H100, A100 and B200.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch

from tests.benchmarks import head_model
from tests.benchmarks.common import device, peak_mb, rounds, write
from trainer.batching.loss_rows import cross_entropy
from trainer.model.head import head_loss

SEQUENCE = 512
"""Tokens of a completion."""
TRUTH_ROWS = 2048
REPEATS = 9
GEMM = "gemm"


@dataclass(frozen=True)
class Shape:
    rows: int
    hidden: int
    vocab: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Case:
    hidden: torch.Tensor
    weight: torch.Tensor
    targets: torch.Tensor
    advantage: torch.Tensor


CPU_SHAPES = [Shape(rows, 256, 8192, torch.float32) for rows in (1024, 4096, 16384)]
GPU_SHAPES = [
    Shape(rows, hidden, 151_936, torch.bfloat16) for hidden in (2560, 4096) for rows in (4096, 8192, 16384, 32768)
]


def make(shape: Shape) -> Case:
    generator = torch.Generator(device()).manual_seed(0)
    options = {"generator": generator, "device": device()}
    hidden = torch.randn(shape.rows, shape.hidden, **options).to(shape.dtype).requires_grad_()
    weight = (torch.randn(shape.vocab, shape.hidden, **options) * shape.hidden**-0.5).to(shape.dtype).requires_grad_()
    targets = torch.randint(shape.vocab, (shape.rows,), **options)
    per_sequence = torch.randn(shape.rows // SEQUENCE, **options)
    return Case(hidden, weight, targets, per_sequence.repeat_interleave(SEQUENCE))


def fused(case: Case) -> torch.Tensor:
    scale = case.advantage / len(case.targets)
    return head_loss(case.hidden, case.weight, case.targets, 1.0, cross_entropy(scale)).loss


def plain(case: Case) -> torch.Tensor:
    logits = (case.hidden @ case.weight.T).to(torch.promote_types(case.hidden.dtype, torch.float32))
    logprobs = logits.gather(-1, case.targets[:, None]).squeeze(-1) - logits.logsumexp(-1)
    return -(case.advantage * logprobs).mean()


def liger(case: Case) -> torch.Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    loss = LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False, compiled=case.hidden.is_cuda, loss_type="bnpo")
    batch = (len(case.targets) // SEQUENCE, SEQUENCE)
    value, _ = loss(
        case.hidden.unflatten(0, batch),
        case.weight,
        case.targets.unflatten(0, batch),
        torch.ones(batch, device=case.targets.device),
        case.advantage[::SEQUENCE],
    )
    return value


def cce(case: Case, **options: object) -> torch.Tensor:
    from cut_cross_entropy import linear_cross_entropy

    per_token = linear_cross_entropy(case.hidden, case.weight, case.targets, reduction="none", **options)
    return (case.advantage * per_token).mean()


HEADS: dict[str, Callable[[Case], torch.Tensor]] = {
    "fused": fused,
    "plain": plain,
    "liger": liger,
    "cce": cce,
    "cce-exact": partial(cce, filter_eps=None),
}
OURS = ("fused", "plain")


def step(head: Callable[[Case], torch.Tensor], case: Case) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(head(case), (case.hidden, case.weight))


def prepare_step(name: str, shape: Shape) -> Callable[[], object]:
    """One measured step, after a small one that has loaded what it needs."""
    small = make(replace(shape, rows=SEQUENCE))
    step(HEADS[name], small)
    return partial(step, HEADS[name], make(shape))


def truth(shape: Shape) -> tuple[torch.Tensor, ...]:
    """Gradients of the plain head in a higher precision, some rows at a time."""
    case = make(shape)
    high = torch.float64 if case.hidden.device.type == "cpu" else torch.float32
    weight = case.weight.detach().to(high).requires_grad_()
    by_hidden, by_weight = [], torch.zeros_like(weight)
    for start in range(0, shape.rows, TRUTH_ROWS):
        rows = slice(start, start + TRUTH_ROWS)
        hidden = case.hidden.detach()[rows].to(high).requires_grad_()
        part = step(plain, Case(hidden, weight, case.targets[rows], case.advantage[rows].to(high)))
        share = len(hidden) / shape.rows  # the loss is a mean
        by_hidden.append(part[0] * share)
        by_weight += part[1] * share
    return torch.cat(by_hidden), by_weight


def gap(found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> float:
    return max(((a.to(b.dtype) - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True))


def products(case: Case) -> Callable[[], None]:
    """Return the three matmuls of a head alone, over all rows in one go: the floor."""
    hidden, weight = case.hidden.detach(), case.weight.detach()
    logits = hidden @ weight.T

    def run() -> None:
        torch.mm(hidden, weight.T, out=logits)
        torch.mm(logits, weight)
        torch.mm(logits.T, hidden)

    return run


def memory(name: str, shape: Shape) -> dict:
    peak, case = peak_mb(partial(prepare_step, name, shape)), make(shape)
    gradients = case.hidden.nbytes + case.weight.nbytes
    return {"peak_mb": peak, "extra_mb": round(peak - gradients / 1e6, 1)}


def measure(shape: Shape) -> list[dict]:
    """Return a row for each head, which take turns, and one for the matmuls alone."""
    case, expected = make(shape), truth(shape)
    notes, runs, gaps = {}, {}, {}
    for name, head in HEADS.items():
        try:
            step(head, make(replace(shape, rows=SEQUENCE)))
            gaps[name] = gap(step(head, case), expected)
            runs[name] = partial(step, head, case)
        except torch.OutOfMemoryError:
            notes[name] = "out of memory"
        except Exception as error:  # a rival that cannot run here, for whatever reason, ends nothing
            if name in OURS:
                raise
            notes[name] = f"does not run here: {type(error).__name__}: {error}"[:300]
    taken = rounds(runs | {GEMM: products(case)}, REPEATS)
    measured = {
        "rows": shape.rows,
        "hidden": shape.hidden,
        "vocab": shape.vocab,
        "dtype": str(shape.dtype).removeprefix("torch."),
    }
    rows = [{"impl": name} | measured | {"note": note} for name, note in notes.items()]
    for name, each in taken.items():
        found = {"impl": name} | measured | {"seconds": median(each), "all_seconds": each}
        rows.append(found | ({} if name == GEMM else {"gradient_gap": gaps[name]} | memory(name, shape)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="store_true", help="model GPUs that are not here; measure nothing")
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    if args.model:
        write(args.out, list(head_model.rows()))
        return
    rows = []
    for shape in GPU_SHAPES if device().type == "cuda" else CPU_SHAPES:
        found = measure(shape)
        print(*found, sep="\n", flush=True)
        rows += found
        write(args.out, rows)


if __name__ == "__main__":
    main()
