"""Stage 4: an optimizer step of a model of Qwen3-4B's shape with random weights: time, utilisation and memory.

Prompts shared and dense copies run the same sessions; memory is held against what a dry run promises.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.benchmarks.common import device
from tests.benchmarks.gpu.record import Record
from tests.benchmarks.learner import cleanly
from tests.benchmarks.learner_models import PEAK_FLOPS, SIZES
from tests.sequences import sequence
from trainer.batching.loss_rows import Objective
from trainer.batching.micro_batches import micro_batches
from trainer.batching.packing import Node, PackedBatch, as_run, build_tree, count_loss_tokens, pack_on
from trainer.configs import LossConfig, ModelConfig, OptimConfig
from trainer.losses import grpo
from trainer.memory_estimate.estimate import GIB, Estimate, estimate
from trainer.memory_estimate.options import Launch
from trainer.model.policy import Policy
from trainer.optim import make_optimizer
from trainer.sft_config import SFTConfig

TINY_SIZES = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
                  num_key_value_heads=1, head_dim=32, vocab_size=512)  # fmt: skip
ROLES, ROLLOUTS = 4, 8
SLACK = 1.05
"""Measured memory over the estimate's, above which the dry run promised too much."""


@dataclass(frozen=True)
class Size:
    model: dict[str, int]
    dtype: torch.dtype
    dialogue: int
    """Tokens that a session's agents share."""
    question: int
    """Further tokens of an agent's prompt."""
    response: int
    sessions: int = 2
    max_tokens: int = 40_000
    repeats: int = 2


FULL = Size(SIZES["4b"], torch.bfloat16, dialogue=4000, question=500, response=300)
TINY = Size(TINY_SIZES, torch.float32, dialogue=20, question=5, response=4, max_tokens=400)


def run(record: Record) -> None:
    """Measure a step with shared prompts, then with dense copies."""
    size = TINY if record.tiny else FULL
    config = Qwen3Config(**size.model, tie_word_embeddings=True, max_position_embeddings=32768)
    config.save_pretrained(record.work)  # a dry run reads no more of a model than this
    trees = [session(size, seed) for seed in range(size.sessions)]
    if not torch.cuda.is_available():
        record.skip("peak memory", "it is read from CUDA's allocator")
    for shared in (True, False):
        record.add(cleanly(partial(measure, record, size, config, as_run(trees, shared), shared)))


def session(size: Size, seed: int) -> Node:
    """Return the prefix tree of a session: random tokens, advantages that are not zero."""
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> list[int]:
        return torch.randint(size.model["vocab_size"], (count,), generator=generator).tolist()

    dialogue = ids(size.dialogue)
    ones = (1.0,) * size.response
    return build_tree(
        [
            sequence(prompt, ids(size.response), advantage=tuple((-1.0) ** k for _ in ones), weight=ones)
            for prompt in (dialogue + ids(size.question) for _ in range(ROLES))
            for k in range(ROLLOUTS)
        ]
    )


def measure(record: Record, size: Size, config: Qwen3Config, trees: Sequence[Node], shared: bool) -> dict:
    """Return the row of one way to run the sessions."""
    batches = micro_batches(trees, size.max_tokens)
    largest = max(sum(tree.num_tokens for tree in batch) for batch in batches)
    promised = dry_run(record.work, size, largest)
    policy = Policy(random_model(config, size.dtype)).train()
    optimizer = make_optimizer(policy, OptimConfig(lr=1e-6))
    packed = [pack_on(batch, device()) for batch in batches]
    num_loss_tokens = sum(map(count_loss_tokens, trees))
    times, peaks = [], {}
    for _ in range(1 + size.repeats):
        began = _now()
        peaks["update"] = _peak(lambda: backward(policy, packed, num_loss_tokens))
        peaks["step"] = _peak(optimizer.step)
        optimizer.zero_grad()
        times.append(_now() - began)
    taken, flops = min(times[1:]), sum(step_flops(size, tree) for tree in trees)
    tokens = sum(tree.num_tokens for tree in trees)
    row = {"what": "shared" if shared else "dense", "sessions": size.sessions, "packed_tokens": tokens}
    row |= {"micro_batches": len(batches), "largest_micro_batch": largest, "seconds": taken, "all_seconds": times}
    row |= {"response_tokens_per_second": num_loss_tokens / taken, "packed_tokens_per_second": tokens / taken}
    row |= {"tflops": flops / taken / 1e12, "mfu": utilisation(flops / taken)}
    for phase, peak in peaks.items():
        expected = sum(getattr(part, phase) for part in promised.parts if "assumed" not in part.name)
        row |= {f"{phase}_estimate_gib": expected / GIB, f"{phase}_gib": peak / GIB if peak else None}
        if peak > SLACK * expected:
            record.fail(f"memory of {row['what']}", f"{phase}: {peak / GIB:.2f} GiB, promised {expected / GIB:.2f}")
    return row


def dry_run(folder: Path, size: Size, num_tokens: int) -> Estimate:
    """Return what a dry run says of one plain process with a micro-batch of so many tokens."""
    name = str(size.dtype).removeprefix("torch.")
    model = ModelConfig(path=str(folder), dtype=name, gradient_checkpointing=True)
    return estimate(SFTConfig(out="unused", model=model), Launch(), num_tokens)


def random_model(config: Qwen3Config, dtype: torch.dtype) -> Qwen3ForCausalLM:
    """Return a model on the device that recomputes its activations."""
    torch.manual_seed(0)
    with torch.device(device()):
        model = Qwen3ForCausalLM(config)
    for parameter in model.parameters():  # not its buffers: real runs keep the angles of positions in float32
        parameter.data = parameter.data.to(dtype)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def backward(policy: Policy, batches: Sequence[PackedBatch], num_loss_tokens: int) -> None:
    """Add the gradients of all micro-batches: GRPO's at ratio one, a mean over tokens."""
    config = LossConfig(name="grpo", kl_coef=0)
    for packed in batches:
        scale = torch.full(packed.targets.shape, 1 / num_loss_tokens, device=device())
        known = {"values": packed.values, "sequence": packed.sequence, "ref_logprobs": None}
        policy(packed, 1.0, Objective(loss=grpo, config=config, scale=scale, **known)).loss.backward()


def step_flops(size: Size, node: Node, above: int = 0) -> float:
    """Floating-point operations of a tree's forward and backward, without what is computed again."""
    model, length = size.model, len(node.token_ids)
    heads = model["num_attention_heads"] * model["head_dim"]
    groups = model["num_key_value_heads"] * model["head_dim"]
    layer = model["hidden_size"] * (2 * heads + 2 * groups + 3 * model["intermediate_size"])
    pairs = length * above + length**2 / 2
    own = model["num_hidden_layers"] * (6 * layer * length + 12 * heads * pairs)
    num_loss_tokens = sum(len(sequence.completion_token_ids) for sequence in node.sequences)
    own += 6 * num_loss_tokens * model["hidden_size"] * model["vocab_size"]
    return own + sum(step_flops(size, child, above + length) for child in node.children)


def utilisation(flops_per_second: float) -> float | None:
    """Return the share of a known GPU's peak."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((flops_per_second / peak for known, peak in PEAK_FLOPS.items() if name.startswith(known)), None)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak(run) -> int:
    """Return the most bytes that were allocated while it ran; 0 without CUDA."""
    if not torch.cuda.is_available():
        run()
        return 0
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()
