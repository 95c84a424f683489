"""What a run would need, before anything is started. Needs no GPU and no weights; only the model's config.json.

    python -m trainer.sft --dry-run --config configs/sft_qwen3_4b_8gpu.yaml --num-processes 8 --zero 2
    python -m trainer.rl --dry-run --config configs/rl_qwen3_4b_32gpu.yaml --num-processes 32 --zero 2

Prints memory per GPU (memory.py says how it is counted) and tokens per step, and what to change where it would not fit.
Ends with exit status 1 in that case.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from membuilder.config import load
from membuilder.errors import clear_errors
from membuilder.types import Agent
from trainer.memory_estimate.advice import advise, largest_micro_batch
from trainer.memory_estimate.estimate import (
    GIB,
    Estimate,
    Launch,
    Workload,
    estimate,
    of_rl,
    of_sft,
    parameter_sizes,
    session_tokens,
)


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Mean tokens of your data; without them the report says only what the caps allow."""

    prompt: int
    completion: int


def report(workload: Workload, launch: Launch, lengths: Lengths | None = None) -> str:
    """The whole answer, as text for a terminal."""
    found = estimate(workload, launch)
    lines = [
        f"{workload.model_path}: {sum(parameter_sizes(workload.model_path)):,} parameters; {launch.num_processes} GPU"
        f"{'s' * (launch.num_processes > 1)} of {launch.gpu_memory_gib:g} GiB, "
        + (f"ZeRO-{launch.zero_stage}" if launch.zero_stage else "no DeepSpeed"),
        "",
        *_table(workload, found),
        "",
        *_tokens(workload, launch, lengths),
        "",
        *(_warnings(workload, launch, found)),
        *([] if found.fits else advise(workload, launch)),
    ]
    return "\n".join(lines).rstrip()


def _table(workload: Workload, found: Estimate) -> list[str]:
    phases = ("generate", "update", "step") if workload.rollouts else ("update", "step")
    lines = ["GiB on each GPU".ljust(33) + "".join(f"{name:>10}" for name in phases)]
    for part in found.parts:
        values = {"generate": part.generate, "update": part.update, "step": part.step}
        if any(values[name] for name in phases):
            lines.append(f"  {part.name:31}" + "".join(f"{values[name] / GIB:10.2f}" for name in phases))
    sums = found.phases
    lines.append(f"  {'sum':31}" + "".join(f"{sums[name] / GIB:10.2f}" for name in phases))
    spare = (found.gpu_bytes - found.peak) / GIB
    lines.append(f"  fits, {spare:.2f} GiB to spare" if found.fits else f"  DOES NOT FIT: {-spare:.2f} GiB too much")
    return lines


def _tokens(workload: Workload, launch: Launch, lengths: Lengths | None) -> list[str]:
    """What one step generates and trains on."""
    sessions, rollouts = workload.sessions_per_step, workload.rollouts
    per_rank = -(-sessions // launch.num_processes)
    sequences = sessions * len(Agent) * (rollouts.num_rollouts if rollouts else 1)
    lines = [
        f"A step: {sessions} sessions (about {per_rank} on a GPU), {sequences:,} sequences; "
        f"micro-batches of {workload.max_tokens:,} packed tokens (a session is never split)"
    ]
    if sessions < launch.num_processes:
        lines.append(f"  {launch.num_processes - sessions} GPUs get no session: raise sessions_per_step")
    if rollouts:
        lines.append(f"  generates at most {sequences * rollouts.max_completion_tokens:,} tokens")
    if lengths is None:
        lines.append(
            f"  trains on at most {sessions * workload.max_tokens:,} packed tokens, if no session is longer than max_tokens; "
            "--prompt-tokens and --completion-tokens tell of your data"
        )
    else:
        packed = session_tokens(workload, lengths.prompt, lengths.completion)
        lines.append(
            f"  at {lengths.prompt:,} + {lengths.completion:,} tokens: {sequences * lengths.completion:,} tokens to learn "
            f"from, at most {packed:,} packed tokens a session"
            f"{' (over max_tokens: a micro-batch of its own)' * (packed > workload.max_tokens)}, {sessions * packed:,} a step"
        )
    return lines


def _warnings(workload: Workload, launch: Launch, found: Estimate) -> list[str]:
    lines = []
    if not launch.zero_stage and workload.dtype.itemsize == 2:
        lines.append(
            "No float32 master weights: steps smaller than bfloat16 resolves are lost (at lr 1e-6 nearly all). "
            "Use --zero 2 (configs/accelerate/zero2.yaml) or model.dtype=float32."
        )
    rollouts = workload.rollouts
    if rollouts is None:
        return lines
    if found.kv_bytes is not None:
        room = int(found.kv_bytes / found.kv_bytes_per_token)
        if room < rollouts.max_model_len:
            lines.append(
                f"vLLM WOULD NOT START: room for {max(0, room):,} tokens of keys and values, max_model_len is "
                f"{rollouts.max_model_len:,}. Raise engine_memory or lower max_model_len."
            )
        else:
            count = room // rollouts.max_model_len
            lines.append(f"KV cache: {room:,} tokens, {count} sequence{'s' * (count > 1)} of max_model_len at once.")
    prompt = rollouts.max_model_len - rollouts.max_completion_tokens
    largest = session_tokens(workload, prompt, rollouts.max_completion_tokens)
    limit = largest_micro_batch(workload, launch)
    if largest > workload.max_tokens and found.fits and largest > limit:
        lines.append(
            f"Longest session at the caps: {largest:,} packed tokens; {limit:,} would fit. A session is never split: "
            "if yours come near, lower sampling.max_tokens or num_rollouts."
        )
    return lines


def parse(argv: Sequence[str] | None) -> tuple[Workload, Launch, Lengths | None]:
    parser = argparse.ArgumentParser(description="Memory per GPU and tokens per step of a run, without starting it.")
    parser.add_argument("stage", choices=("sft", "rl"))
    parser.add_argument("--config", required=True, metavar="FILE", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for the trainer itself")
    parser.add_argument("--num-processes", type=int, default=1, help="GPUs over all nodes")
    parser.add_argument("--gpu-memory-gib", type=float, default=80.0)
    parser.add_argument("--zero", type=int, default=0, choices=(0, 1, 2, 3), help="ZeRO stage; 0: no DeepSpeed")
    parser.add_argument("--offload", action="store_true", help="optimizer in host memory")
    parser.add_argument("--prompt-tokens", type=int, help="mean prompt of your data, for the tokens of a step")
    parser.add_argument("--completion-tokens", type=int, help="mean completion of your data")
    given = parser.parse_intermixed_args(argv)
    if (given.prompt_tokens is None) != (given.completion_tokens is None):
        parser.error("--prompt-tokens and --completion-tokens go together")
    launch = Launch(
        num_processes=given.num_processes,
        gpu_memory_gib=given.gpu_memory_gib,
        zero_stage=given.zero,
        offload_optimizer=given.offload,
    )
    lengths = None
    if given.prompt_tokens is not None:
        lengths = Lengths(prompt=given.prompt_tokens, completion=given.completion_tokens)
    return _load(given.stage, given.config, given.overrides), launch, lengths


def _load(stage: str, config: Path, overrides: Sequence[str]) -> Workload:
    """The trainers are imported here because they import this file."""
    if stage == "sft":
        from trainer.sft_config import SFTConfig

        return of_sft(load(SFTConfig, config, overrides))
    from trainer.rl_config import RLConfig

    return of_rl(load(RLConfig, config, overrides))


FLAG = "--dry-run"


def asked(argv: Sequence[str] | None) -> bool:
    """Whether a trainer's command line asks for a dry run."""
    return FLAG in (sys.argv[1:] if argv is None else argv)


def arguments(argv: Sequence[str] | None) -> list[str]:
    """The rest of that command line."""
    return [text for text in (sys.argv[1:] if argv is None else argv) if text != FLAG]


def main(argv: Sequence[str] | None = None) -> None:
    workload, launch, lengths = parse(argv)
    print(report(workload, launch, lengths))
    if not estimate(workload, launch).fits:
        raise SystemExit(1)


if __name__ == "__main__":
    with clear_errors("trainer.dry_run"):
        main()
