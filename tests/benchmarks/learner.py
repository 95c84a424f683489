"""One policy-gradient step on a group: shared prompts against dense copies and against TRL, on the same weights and
tokens.

    python -m tests.benchmarks.learner --out tests/benchmarks/results/learner_cpu.json
    python -m tests.benchmarks.learner --shape memalpha --out tests/benchmarks/results/learner_memalpha_cpu.json
    python -m tests.benchmarks.learner --shape windows --out tests/benchmarks/results/learner_windows_cpu.json
    python -m tests.benchmarks.learner --shape hybrid --out tests/benchmarks/results/learner_hybrid_cpu.json
    python -m tests.benchmarks.learner --counted --out tests/benchmarks/results/learner_counted.json

shared    ours: the prompt runs once (trainer/batching/packing.py, trainer/model/shared_prefix.py), head fused
dense     ours, but every completion brings its own copy of the prompt, head fused
own       the same copies by the model's own attention, transformers' SDPA, head fused (of models with windows)
trl       `GRPOTrainer.compute_loss` of TRL with its own defaults
trl_tree  `AsyncGRPOTrainer.compute_loss` of TRL on its own packed prefix tree, with another attention kernel
          (tests/benchmarks/learner_rivals.py says why)
prefix_grouper  PrefixGrouper, by its README, with logits of every token
All compute GRPO's loss at ratio one, mean over tokens, KL off. Gaps are against `dense`, errors (on a CPU) against the
same weights in float64: largest log-prob difference and relative L2 difference of the whole gradient. `seconds` is
forward and backward; on a CPU the implementations take turns.

The shape `memalpha` is the trees of that scheme: each rollout has a memory of its own, so only instructions and chunk
are shared where the chunk comes first, and only the instructions in the published order.
The shape `windows` has a sliding window in every layer. Gaps are against `own` there, which the float64 is too.
The shape `hybrid` has Gated DeltaNet in most layers. Its row `own` is dense copies as transformers runs them, padded.
"""

import argparse
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch

from membuilder.schemes.memalpha.config import PromptOrder
from tests.benchmarks import learner_counted
from tests.benchmarks.common import device, peak_mb, rounds, write
from tests.benchmarks.learner_models import GROUP, PEAK_FLOPS, SIZES, Shape, layer_weights, model_of, tokens_of
from tests.benchmarks.learner_rivals import NOTES, prefix_grouper, trl, trl_tree
from tests.sequences import sequence
from trainer.batching.loss_rows import Objective
from trainer.batching.packing import build_tree, dense_tree, pack_on
from trainer.configs import LossConfig
from trainer.losses import grpo
from trainer.model.head import LossOutput
from trainer.model.policy import Policy

Result = TypeVar("Result")
CPU_SHAPES = [Shape(512, 128), Shape(2048, 128), Shape(2048, 128, sizes="medium")]
GPU_SHAPES = [Shape(6144, 512, torch.bfloat16, "4b"), Shape(2048, 512, torch.bfloat16, "4b")]
WINDOW_SHAPES = [Shape(2048, 128, window=512)]
INSTRUCTIONS, CHUNK, MEMORY, ANSWER = 900, 1100, 700, 500
ORDERS = {
    PromptOrder.CHUNK_FIRST: Shape(INSTRUCTIONS + CHUNK, ANSWER, own=MEMORY),
    PromptOrder.PUBLISHED: Shape(INSTRUCTIONS, ANSWER, own=MEMORY + CHUNK),
}


def ours(shape: Shape, shared: bool, own: bool = False) -> tuple[torch.nn.Module, Callable[[], LossOutput]]:
    sequences = [
        sequence(prompt, response, advantage=(advantage,) * len(response), weight=(1.0,) * len(response))
        for prompt, response, advantage in zip(*tokens_of(shape), strict=True)
    ]
    trees = [build_tree(sequences)] if shared else [dense_tree(sequence) for sequence in sequences]
    policy = Policy(model_of(shape), shares_prompts=not own).train()
    packed = pack_on(trees, device(), policy.windows)
    scale = torch.full(packed.targets.shape, 1 / len(packed.targets), device=device())
    config = LossConfig(name="grpo", kl_coef=0)
    known = {"values": packed.values, "sequence": packed.sequence, "ref_logprobs": None}
    objective = Objective(loss=grpo, config=config, scale=scale, **known)
    return policy, partial(policy, packed, 1.0, objective)


IMPLEMENTATIONS = {
    "dense": partial(ours, shared=False),
    "shared": partial(ours, shared=True),
    "own": partial(ours, shared=False, own=True),
    "trl": trl,
    "trl_tree": trl_tree,
    "prefix_grouper": prefix_grouper,
}
RIVALS = ("trl", "trl_tree", "prefix_grouper")
HYBRID = Shape(2048, 128, sizes="hybrid")
SHARING = ("shared", "trl_tree", "prefix_grouper")


def compared(shape: Shape) -> list[str]:
    """Return the names of the implementations to measure; gaps are against the first."""
    if shape.window is not None:
        return ["own", "shared"]
    return ["dense", "shared", *(["own"] if shape.sizes == "hybrid" else RIVALS)]


def loss_of(output: LossOutput | torch.Tensor) -> torch.Tensor:
    return output.loss if isinstance(output, LossOutput) else output


def step(model: torch.nn.Module, forward: Callable[[], LossOutput | torch.Tensor]) -> None:
    model.zero_grad()
    loss_of(forward()).backward()


def prepare_step(name: str, shape: Shape) -> Callable[[], object]:
    step(*IMPLEMENTATIONS[name](replace(shape, prompt=16, own=0, response=4)))
    return partial(step, *IMPLEMENTATIONS[name](shape))


def gradient(model: torch.nn.Module) -> torch.Tensor:
    grads = [parameter.grad.flatten().cpu() for parameter in model.parameters()]
    return torch.cat([grad.to(torch.promote_types(grad.dtype, torch.float32)) for grad in grads])


@dataclass(frozen=True)
class Found:
    loss: float
    gradient: torch.Tensor
    logprobs: torch.Tensor | None
    """None of TRL, which keeps them to itself."""


def find(name: str, shape: Shape) -> Found:
    model, forward = IMPLEMENTATIONS[name](shape)
    step(model, forward)
    output = forward()
    return Found(
        loss=loss_of(output).item(),
        gradient=gradient(model),
        logprobs=output.head.logprobs.double().cpu() if isinstance(output, LossOutput) else None,
    )


def truth(shape: Shape) -> Found | None:
    """In float64, of the same weights; None on a GPU, where the models are too large for it."""
    name = "shared" if shape.window is None else "own"
    return find(name, replace(shape, dtype=torch.float64)) if device().type == "cpu" else None


def distance(found: Found, other: Found | None, kind: str) -> dict:
    if other is None:
        return {}
    gaps = {f"gradient_{kind}": ((found.gradient - other.gradient).norm() / other.gradient.norm()).item()}
    if found.logprobs is not None and other.logprobs is not None:
        gaps[f"logprob_{kind}"] = (found.logprobs - other.logprobs).abs().max().item()
    return gaps


def flops_of(name: str, shape: Shape) -> float:
    """Return the FLOPs of a forward and a backward over the tokens run, without what is computed again."""
    sizes = SIZES[shape.sizes]
    shares = name in SHARING and not (shape.own and name == "prefix_grouper")  # it shares whole prompts alone
    copies = 1 if shares else GROUP
    own = shape.own + shape.response
    tokens = copies * shape.prompt + GROUP * own
    read = copies * shape.prompt**2 / 2 + GROUP * (shape.prompt * own + own**2 / 2)  # pairs
    read = min(read, tokens * (shape.window or read))
    heads = sizes["num_attention_heads"] * sizes["head_dim"]
    flops = sizes["num_hidden_layers"] * (6 * layer_weights(sizes) * tokens + 12 * heads * read)
    return flops + 6 * GROUP * shape.response * sizes["hidden_size"] * sizes["vocab_size"]


def throughput(name: str, shape: Shape, taken: float) -> dict:
    """Return response tokens per second, and on a known GPU the share of its peak."""
    speed = {"response_tokens_per_second": GROUP * shape.response / taken}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((peak for known, peak in PEAK_FLOPS.items() if gpu.startswith(known)), None)
    return speed if peak is None else speed | {"mfu": flops_of(name, shape) / taken / peak}


def row(name: str, shape: Shape, dense: Found | None, exact: Found | None) -> tuple[dict, Found | None]:
    """What is written down of an implementation beside its time, and what it computed; None where it does not run."""
    described = {"impl": name, "G": GROUP, "P": shape.prompt, "own": shape.own, "R": shape.response}
    described |= {} if shape.window is None else {"window": shape.window}
    described |= {key: SIZES[shape.sizes][f"{key}_size"] for key in ("hidden", "vocab")}
    described |= {"dtype": str(shape.dtype).removeprefix("torch.")} | NOTES.get(name, {})
    try:
        measured, found = fitting(name, shape)
    except torch.OutOfMemoryError:
        return described | {"note": "out of memory"}, None
    except Exception as error:  # a rival that cannot run here, for whatever reason, ends nothing
        if name not in RIVALS:
            raise
        return described | {"note": f"does not run here: {type(error).__name__}: {error}"[:300]}, None
    return described | measured | distance(found, dense, "gap") | distance(found, exact, "error"), found


def fitting(name: str, shape: Shape) -> tuple[dict, Found]:
    """Figures without checkpointed activations where they fit, else with them. Raises OutOfMemoryError."""
    try:
        return figures(name, shape)
    except torch.OutOfMemoryError:
        pass  # outside the handler the error no longer holds on to the tensors
    return figures(name, replace(shape, checkpointed=True))


def figures(name: str, shape: Shape) -> tuple[dict, Found]:
    found = cleanly(partial(find, name, shape))
    memory = cleanly(lambda: peak_mb(partial(prepare_step, name, shape)))
    return {"peak_mb": memory, "loss": found.loss, "checkpointed": shape.checkpointed}, found


def cleanly(run: Callable[[], Result]) -> Result:
    """TRL's trainers hold themselves in cycles: without a collection their models would stand beside this one's."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return run()


def rows_of(shape: Shape, repeats: int = 5) -> Iterator[tuple[dict, Found | None]]:
    """Yield the row of each implementation, timed, and what it computed; a GPU has room for one model at a time."""
    dense, exact, names = None, truth(shape), compared(shape)
    for together in [names] if device().type == "cpu" else [[name] for name in names]:
        rows = []
        for name in together:
            described, found = row(name, shape, dense, exact)
            dense = found if name == names[0] else dense
            rows.append((described, found))
        cleanly(partial(add_times, shape, [described for described, found in rows if found is not None], repeats))
        yield from rows


def add_times(shape: Shape, rows: list[dict], repeats: int) -> None:
    """Add to each row the time that a step takes while those of the other rows take turns with it."""
    runs = {}
    for described in rows:
        name, fitting = described["impl"], replace(shape, checkpointed=described["checkpointed"])
        runs[name] = partial(step, *IMPLEMENTATIONS[name](fitting))
    taken = rounds(runs, repeats)
    for described in rows:
        each = taken[described["impl"]]
        described |= {"seconds": median(each), "all_seconds": each} | throughput(described["impl"], shape, median(each))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = ("group", "memalpha", "windows", "hybrid")
    parser.add_argument("--shape", choices=kinds, default="group", help="what the rollouts share, of which model")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each (default: %(default)s)")
    parser.add_argument("--counted", action="store_true", help="count from shapes (learner_counted.py), run nothing")
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    if args.counted:
        write(args.out, list(learner_counted.rows()))
        return
    if args.shape == "memalpha":
        shapes = [({"order": order}, shape) for order, shape in ORDERS.items()]
    elif args.shape == "hybrid":
        shapes = [({}, HYBRID)]
    else:
        known = GPU_SHAPES if device().type == "cuda" else CPU_SHAPES
        shapes = [({}, shape) for shape in (WINDOW_SHAPES if args.shape == "windows" else known)]
    rows = []
    for label, shape in shapes:
        for described, _ in rows_of(shape, args.repeats):
            rows.append(label | described)
            print(rows[-1], flush=True)
            write(args.out, rows)


if __name__ == "__main__":
    main()
