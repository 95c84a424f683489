"""Memory that a run needs on each GPU, part by part, in the three phases of a step.

Parameters are counted on the real architecture (its config.json), activations on its real forward and backward
(activations.py), optimizer and gradients as AdamW and DeepSpeed keep them, the head as trainer/model/head.py works.
What is assumed instead of counted carries that word in its name.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from transformers import AutoConfig, PretrainedConfig

from membuilder.errors import ConfigError
from membuilder.schemes.load import scheme_of
from rollout.gguf import model_folder
from rollout.hf_engine import TOKENS_AT_ONCE
from trainer.configs import LoRAConfig, TrainConfig
from trainer.memory_estimate.activations import ActivationBytes, activation_bytes, make_meta_model
from trainer.memory_estimate.options import Launch
from trainer.memory_estimate.sequence_cache import SequenceCache, sequence_cache
from trainer.model.head import WORKSPACE_BYTES, chunk_rows_within
from trainer.model.lora import NOT_ZERO3, trained_parameters
from trainer.rl_config import RLConfig

GIB = 2**30
# configs/deepspeed/*.json say the same; a test holds both together
BUCKET_ELEMENTS = 200_000_000
LIVE_ELEMENTS = 1_000_000_000
# Assumptions: nothing here can be counted without the machine.
CONTEXT_BYTES = int(1.5 * GIB)  # CUDA context, cuBLAS, NCCL
FRAGMENTATION = 0.05  # of what comes and goes
ENGINE_WORKSPACE_BYTES = 3 * GIB  # vLLM's own activations and CUDA graphs


def num_roles(config: TrainConfig) -> int:
    """Tell how many sequences an answer to one session takes."""
    return len(scheme_of(config).roles)


def session_tokens(config: TrainConfig, prompt: int, completion: int) -> int:
    """Tell how many packed tokens a session has at most: as if its roles shared nothing of their prompts."""
    copies = config.num_rollouts if isinstance(config, RLConfig) else 1
    return num_roles(config) * (prompt + copies * completion)


def longest_sequence(config: TrainConfig) -> tuple[int, str]:
    """Return the longest prompt and completion that a run trains on, in tokens, and the key that says so."""
    if isinstance(config, RLConfig):
        return config.max_model_len, "max_model_len"
    return config.max_length, "max_length"


class Part(NamedTuple):
    """Bytes of one thing on one GPU, in the three phases of a step."""

    name: str
    generate: float = 0
    update: float = 0
    step: float = 0

    @classmethod
    def always(cls, name: str, num_bytes: float) -> "Part":
        return cls(name=name, generate=num_bytes, update=num_bytes, step=num_bytes)


class Estimate(NamedTuple):
    parts: tuple[Part, ...]
    gpu_bytes: float
    kv_bytes: float | None
    """vLLM's room for keys and values; None without vLLM."""
    cache: SequenceCache

    @property
    def phases(self) -> dict[str, float]:
        return {name: sum(getattr(part, name) for part in self.parts) for name in ("generate", "update", "step")}

    @property
    def peak(self) -> float:
        return max(self.phases.values())

    @property
    def excess(self) -> float:
        """Tell how many bytes are too many, summed over the phases."""
        return sum(max(0.0, size - self.gpu_bytes) for size in self.phases.values())

    @property
    def fits(self) -> bool:
        return self.excess == 0


@cache
def model_config(path: str) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.path: no config.json at '{path}' ({str(error).splitlines()[0]}). Name a folder that has one, or "
            "the model the run starts from: model.path=DIR"
        ) from error


@cache
def parameter_sizes(path: str) -> tuple[int, ...]:
    """Return the number of elements of each parameter; a tied head counts once."""
    return tuple(parameter.numel() for parameter in make_meta_model(model_config(path), torch.bfloat16).parameters())


@cache
def num_adapter_parameters(path: str, lora: LoRAConfig) -> int:
    return sum(each.numel() for each in trained_parameters(make_meta_model(model_config(path), torch.bfloat16, lora)))


@cache
def _activations(
    path: str, num_tokens: int, dtype: torch.dtype, checkpointing: bool, lora: LoRAConfig | None
) -> ActivationBytes:
    return activation_bytes(
        model_config(path), num_tokens=num_tokens, dtype=dtype, checkpointing=checkpointing, lora=lora
    )


def state_parts(num_parameters: int, dtype: torch.dtype, launch: Launch) -> list[Part]:
    """Weights, gradients, optimizer and communication, as plain AdamW or DeepSpeed keep them."""
    count, ranks, stage, item = num_parameters, launch.num_processes, launch.zero_stage, dtype.itemsize
    if stage == 0:
        copies = 2 if ranks > 1 else 1  # DDP reduces in buckets that are a second copy of the gradients
        return [
            Part.always("weights", count * item),
            Part(name="gradients", update=count * item * copies, step=count * item * copies),
            Part.always("AdamW moments", 2 * count * item),
            Part(name="AdamW temporaries", step=count * item),
        ]
    # weights; float32 master, moments and summed gradients, each rank its share (grad_accum_dtype fp32)
    share, on_gpu = 1 / ranks, 0 if launch.offload_optimizer else 1
    gradients = item * count if stage == 1 else 4 * count * share * on_gpu
    bucket = item * BUCKET_ELEMENTS * (1 if stage == 3 else 2)  # stages 1 and 2 fill one while the other travels
    parts = [
        Part.always("weights", item * count * (share if stage == 3 else 1)),
        Part(name="gradients", update=gradients, step=4 * count * share * on_gpu + (gradients if stage == 1 else 0)),
        Part.always("float32 master weights", 4 * count * share * on_gpu),
        Part.always("AdamW moments", 8 * count * share * on_gpu),
        Part(name="AdamW temporaries", step=4 * count * share * on_gpu),
        Part(name="communication buckets", update=min(bucket, 2 * item * count)),
    ]
    if stage == 3:
        parts.append(Part(name="gathered layers", update=item * min(count, LIVE_ELEMENTS)))
    return parts


def _adapter_parts(path: str, lora: LoRAConfig, launch: Launch) -> list[Part]:
    if launch.zero_stage == 3:
        raise ConfigError(NOT_ZERO3)
    parts = state_parts(num_adapter_parameters(path, lora), torch.float32, launch)
    return [part._replace(name=f"adapters: {part.name}") for part in parts]


def head_bytes(rows: int, hidden: int, vocabulary: int, item: int, is_frozen: bool = False) -> int:
    """Most that the head holds on CUDA: a chunk's logits, hidden states, their gradient and the weight's.

    The weight's gradient is float32 where there are several chunks; one that is frozen has none. A soft cap takes
    nothing (the kernels put it on as they read), and the gradient of a bias is one number for each column.
    """
    chunk = chunk_rows_within(WORKSPACE_BYTES, rows, vocabulary, hidden, item)
    logits = min(rows, chunk) * vocabulary * item
    weight = (item if rows <= chunk else max(item, 4)) * vocabulary * hidden
    return 2 * rows * hidden * item + weight * (not is_frozen) + logits


def estimate(config: TrainConfig, launch: Launch, num_tokens: int | None = None) -> Estimate:
    """Memory of one GPU; `num_tokens` packed tokens of a micro-batch instead of `max_tokens`."""
    num_tokens = num_tokens or config.max_tokens
    if config.model.path is None:
        raise ConfigError("model.path: a dry run needs a Hugging Face folder or model name; its config.json is enough")
    path = model_folder(config.model.path)
    model, sizes = model_config(path).get_text_config(), parameter_sizes(path)
    lora = config.model.lora
    by_deepspeed = launch.zero_stage and lora is None  # configs/deepspeed: bf16
    dtype = torch.bfloat16 if by_deepspeed else getattr(torch, config.model.dtype)
    active = _activations(path, num_tokens, dtype, config.model.gradient_checkpointing, lora)
    head = head_bytes(num_tokens, model.hidden_size, model.vocab_size, dtype.itemsize, is_frozen=lora is not None)
    passing = max(active.saved + head, active.peak)
    if lora is None:
        parts = state_parts(sum(sizes), dtype, launch)
    else:
        parts = [Part.always("frozen weights", sum(sizes) * dtype.itemsize), *_adapter_parts(path, lora, launch)]
    parts += [
        Part(name="activations kept for backward", update=active.saved),
        Part(name="head workspace", update=head),
        Part(name="backward temporaries", update=passing - active.saved - head),
        Part(name="fragmentation (assumed)", update=FRAGMENTATION * passing),
        Part.always("CUDA, NCCL (assumed)", CONTEXT_BYTES),
    ]
    cache = sequence_cache(model, dtype.itemsize)
    kv_bytes = None
    if isinstance(config, RLConfig):
        engine, kv_bytes = _engine_parts(config, sizes, dtype.itemsize, cache, launch)
        parts += engine
    gpu_bytes = launch.gpu_memory_gib * GIB
    return Estimate(parts=tuple(parts), gpu_bytes=gpu_bytes, kv_bytes=kv_bytes, cache=cache)


def _engine_parts(
    config: RLConfig, sizes: Sequence[int], item: int, cache: SequenceCache, launch: Launch
) -> tuple[list[Part], float | None]:
    """Return the engine in the same process, the reference, and vLLM's room for keys and values."""
    weights = item * sum(sizes)
    has_copy = config.loss.kl_coef and config.model.lora is None  # else the reference is the policy without adapters
    parts = [Part.always("reference policy (KL)", weights)] if has_copy else []
    # the largest weight stands in the trainer's form and the engine's; under ZeRO-3 it is gathered first
    parts.append(Part(name="weight sync", generate=item * max(sizes) * (2 if launch.zero_stage == 3 else 1)))
    if config.engine != "vllm":
        # rollout/hf_engine.py decodes one prompt after another where layers carry a state
        at_once = 0 if cache.state_bytes else TOKENS_AT_ONCE / config.max_model_len
        cache_bytes = max(config.num_rollouts, at_once) * cache.bytes_of(config.max_model_len)
        cache_part = Part(name="KV cache", generate=cache_bytes)
        return [*parts, Part.always("engine weights", weights), cache_part], None
    kv_bytes = config.engine_memory * launch.gpu_memory_gib * GIB - weights - ENGINE_WORKSPACE_BYTES
    workspace = ("engine workspace (assumed)", ENGINE_WORKSPACE_BYTES)
    for name, size in (("engine weights", weights), workspace, ("KV cache", max(0.0, kv_bytes))):
        parts.append(Part(name=name, generate=size) if config.engine_sleep else Part.always(name, size))
    return parts, kv_bytes
