"""What a run would need, before anything is started. It takes no GPU and no weights, only the model's config.json.

    python -m trainer.sft --dry-run --config configs/sft_qwen3_4b_8gpu.yaml --num-processes 8 --zero 2
    python -m trainer.rl --dry-run --config configs/rl_qwen3_4b_32gpu.yaml --num-processes 32 --zero 2

The report says memory per GPU (estimate.py says how it is counted), tokens per step, and what to change where it would
not fit; the exit status is 1 in that case.
"""

from rollout.gguf import model_folder
from rollout.thinking import longest_answer
from trainer.configs import TrainConfig
from trainer.memory_estimate.advice import advise, largest_micro_batch
from trainer.memory_estimate.estimate import (
    GIB,
    Estimate,
    Part,
    estimate,
    longest_sequence,
    num_adapter_parameters,
    num_roles,
    parameter_sizes,
    session_tokens,
)
from trainer.memory_estimate.options import Launch
from trainer.rl_config import RLConfig


def report(config: TrainConfig, launch: Launch) -> tuple[str, bool]:
    """Return the whole answer, as text for a terminal, and whether the run fits."""
    found = estimate(config, launch)
    path, lora = model_folder(config.model.path), config.model.lora
    trained = "" if lora is None else f" frozen, {num_adapter_parameters(path, lora):,} in adapters of rank {lora.rank}"
    lines = [
        f"{config.model.path}: {sum(parameter_sizes(path)):,} parameters{trained}; {launch.num_processes} GPU"
        f"{'s' * (launch.num_processes > 1)} of {launch.gpu_memory_gib:g} GiB, "
        + (f"ZeRO-{launch.zero_stage}" if launch.zero_stage else "no DeepSpeed"),
        "",
        *_table(config, found),
        "",
        *_tokens(config, launch),
        "",
        *_warnings(config, launch, found),
        *([] if found.fits else advise(config, launch)),
    ]
    return "\n".join(lines).rstrip(), found.fits


def _table(config: TrainConfig, found: Estimate) -> list[str]:
    phases = ("generate", "update", "step") if isinstance(config, RLConfig) else ("update", "step")
    lines = ["GiB on each GPU".ljust(33) + "".join(f"{name:>10}" for name in phases)]
    for part in (*found.parts, Part(name="sum", **found.phases)):
        sizes = [getattr(part, name) for name in phases]
        if any(sizes):
            lines.append(f"  {part.name:31}" + "".join(f"{size / GIB:10.2f}" for size in sizes))
    spare = (found.gpu_bytes - found.peak) / GIB
    verdict = f"  fits, {spare:.2f} GiB to spare" if found.fits else f"  DOES NOT FIT: {-spare:.2f} GiB too much"
    return [*lines, verdict]


def _tokens(config: TrainConfig, launch: Launch) -> list[str]:
    """Return what one step generates and trains on."""
    is_rl = isinstance(config, RLConfig)
    # how many sessions whole dialogues have is in the data: their numbers are those of one session of each
    instances = config.instances_per_step if is_rl else None
    sessions, unit, whole = config.sessions_per_step, "sessions", "a step"
    if instances is not None:
        sessions, unit, whole = instances, "instances", "for one session of each"
    per_rank = -(-sessions // launch.num_processes)
    sequences = sessions * num_roles(config) * (config.num_rollouts if is_rl else 1)
    lines = [
        f"A step: {sessions} {unit} (about {per_rank} on a GPU), {sequences:,} sequences"
        f"{'' if instances is None else f' {whole}'}; "
        f"micro-batches of {config.max_tokens:,} packed tokens (a larger session is split)"
    ]
    if sessions < launch.num_processes:
        lines.append(f"  {launch.num_processes - sessions} GPUs get none: raise {unit}_per_step")
    if is_rl:
        lines.append(f"  generates at most {sequences * longest_answer(config.sampling):,} tokens {whole}")
    prompt, completion = launch.prompt_tokens, launch.completion_tokens
    if prompt is None:
        most = sessions * config.max_tokens
        return lines + [
            f"  trains on at most {most:,} packed tokens {whole}, if no session is longer than max_tokens; "
            "--prompt-tokens and --completion-tokens tell of your data"
        ]
    packed = session_tokens(config, prompt, completion)
    over = " (over max_tokens: split)" * (packed > config.max_tokens)
    return lines + [
        f"  at {prompt:,} + {completion:,} tokens: {sequences * completion:,} tokens to learn "
        f"from, at most {packed:,} packed tokens a session{over}, {sessions * packed:,} {whole}"
    ]


def _warnings(config: TrainConfig, launch: Launch, found: Estimate) -> list[str]:
    lines = []
    if not launch.zero_stage and config.model.dtype == "bfloat16" and config.model.lora is None:
        lines.append(
            "No float32 master weights: steps smaller than bfloat16 resolves are lost (at lr 1e-6 nearly all). "
            "Use --zero 2 (configs/accelerate/zero2.yaml) or model.dtype=float32."
        )
    longest, key = longest_sequence(config)
    if longest > config.max_tokens and found.fits and longest > (limit := largest_micro_batch(config, launch)):
        lines.append(
            f"Longest sequence at the caps: {longest:,} tokens; {limit:,} would fit. A sequence is never split: if "
            f"yours come near, lower {key}."
        )
    if not isinstance(config, RLConfig):
        return lines
    if found.kv_bytes is not None:
        # in tokens of sequences that long: windows and states make a shorter one dearer or cheaper
        room = int(found.kv_bytes * config.max_model_len / found.cache.bytes_of(config.max_model_len))
        if room < config.max_model_len:
            lines.append(
                f"vLLM WOULD NOT START: room for {max(0, room):,} tokens of keys and values, max_model_len is "
                f"{config.max_model_len:,}. Raise engine_memory or lower max_model_len."
            )
        else:
            count = room // config.max_model_len
            lines.append(f"KV cache: {room:,} tokens, {count} sequence{'s' * (count > 1)} of max_model_len at once.")
    return lines
