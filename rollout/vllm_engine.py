"""An engine that runs vLLM in this process; no other file imports vllm.

Weights are swapped by one whole-model `reload_weights`. A bare call would re-read the original checkpoint, one call
per chunk would finalise layers half filled, and the prefix cache survives either: it is reset here, and checked.
"""

import gc
import os
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from membuilder.errors import MemBuilderError
from rollout.policy_folder import load_policy
from rollout.routed_experts import RoutedExperts, UnreportedError, routers
from rollout.seeding import isolated_rng, with_own_rng
from rollout.types import Completion, Sampled, SamplingConfig, in_order
from rollout.weights import checked

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the engine core must live in this process
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB, read by the CPU build only

from vllm import LLM, EngineArgs, SamplingParams  # noqa: E402  (the variables above are read at import)


class VLLMEngine:
    def __init__(
        self,
        model_dir: str | Path,
        *,
        max_model_len: int,
        seed: int,
        gpu_memory_utilization: float = 0.6,
        dtype: str,
        sleep: bool = False,
        eager: bool = False,
        distributed: bool = False,
        routed_experts: bool = False,
    ) -> None:
        """Start the engine; with `sleep` and on CUDA the method of that name frees weights and cache.

        With `eager`, and on a CPU always, nothing is compiled and no CUDA graphs are captured.
        With `distributed` every rank of an initialised process group builds its own engine at the same moment. With
        `routed_experts` completions carry the experts that were chosen; UnreportedError where vLLM cannot.
        """
        self._sleeps = sleep and torch.cuda.is_available()
        self._asleep = False
        policy = load_policy(model_dir, weights=False, lengths={"max_model_len": max_model_len})
        self._stop_ids, self._names = list(policy.stop_ids), set(policy.model.state_dict())
        self._routed_layers = list(routers(policy.model)) if routed_experts else []
        settings = dict(
            model=str(model_dir),
            tensor_parallel_size=1,
            distributed_executor_backend="external_launcher" if distributed else None,
            max_model_len=max_model_len,
            dtype=dtype,
            seed=seed,
            gpu_memory_utilization=gpu_memory_utilization,
            enable_prefix_caching=True,
            enable_sleep_mode=self._sleeps,
            logprobs_mode="processed_logprobs",
            enforce_eager=eager or not torch.cuda.is_available(),
            skip_tokenizer_init=True,
            disable_log_stats=True,
            max_num_seqs=256,
            # rollouts of a prompt share whole blocks only, and the CPU build's default of 128 is too long for that
            **({} if torch.cuda.is_available() else {"block_size": 32}),
            **({"enable_return_routed_experts": True} if routed_experts else {}),
        )
        with isolated_rng(), _out_of_sight("llvmlite.binding.ffi"):
            if routed_experts:
                _check_reporting(settings)
            self._llm = LLM(use_tqdm_on_load=False, **settings)
        self.max_model_len = max_model_len
        self._version = 0
        self._rank = torch.distributed.get_rank() if distributed else 0

    def generate(self, prompts: list[list[int]], n: int, sampling: SamplingConfig, seed: int) -> list[list[Completion]]:
        return in_order(self.stream(prompts, n, sampling, seed), len(prompts), n)

    def stream(self, prompts: list[list[int]], n: int, sampling: SamplingConfig, seed: int) -> Iterator[Sampled]:
        """Yield each completion in the step that ends it.

        On CPU vLLM draws from torch's global generator, which `seed` sets; ranks sample different prompts, so they must
        not draw the same numbers.
        """
        if self._asleep:
            raise MemBuilderError("the engine is asleep: load_weights wakes it")
        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            logprobs=0,
            detokenize=False,
            stop_token_ids=self._stop_ids,
        )
        return with_own_rng(seed + self._rank, self._finished(prompts, n, params))

    def _finished(self, prompts: list[list[int]], n: int, params: SamplingParams) -> Generator[Sampled, None, None]:
        """A request of n becomes n requests inside vLLM too, which gives its completions back together only."""
        engine = self._llm.llm_engine
        requests = [{"prompt_token_ids": prompt} for prompt in prompts for _ in range(n)]
        each = [self._own_params(params, prompt, number) for prompt in prompts for number in range(n)]
        ids = self._llm.enqueue(requests, each, use_tqdm=False) if requests else []
        first = int(ids[0].partition("-")[0]) if ids else 0  # vLLM numbers requests, and may add letters of its own
        try:
            while engine.has_unfinished_requests():
                for output in engine.step():
                    prompt, number = divmod(int(output.request_id) - first, n)
                    yield Sampled(prompt, number, self._completion(output.outputs[0]))
        finally:
            if engine.has_unfinished_requests():  # whoever took them stopped before the last one
                engine.abort_request(ids, internal=True)

    def _own_params(self, params: SamplingParams, prompt: list[int], number: int) -> SamplingParams:
        """Let the first completion alone carry the experts of the prompt: the others read it from the same cache."""
        if not (self._routed_layers and number):
            return params
        own = params.clone()
        own.routed_experts_prompt_start = len(prompt)
        return own

    def _completion(self, output) -> Completion:
        token_ids = tuple(output.token_ids)
        logprobs = tuple(step[token].logprob for step, token in zip(output.logprobs, token_ids, strict=True))
        return Completion(
            token_ids=token_ids,
            rollout_logprobs=logprobs,
            finished=output.finish_reason == "stop",
            weight_version=self._version,
            routed_experts=self._experts(output.routed_experts),
        )

    def _experts(self, rows: np.ndarray | None) -> RoutedExperts | None:
        """Return what vLLM reports (T, layers, k), without the layers that have no router."""
        return RoutedExperts.of(rows[:, self._routed_layers]) if self._routed_layers else None

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        weights = checked(named_tensors, self._names)
        with isolated_rng():
            if self._asleep:  # the cache comes back last: weights first need room to load
                self._wake("weights")
            self._llm.collective_rpc(
                "reload_weights", kwargs={"weights_iterator": weights, "is_checkpoint_format": True}
            )
            if self._asleep:
                self._wake("kv_cache")
                self._asleep = False
        if not self._llm.reset_prefix_cache():
            raise MemBuilderError("vLLM kept cached prefixes of the old weights: a request was still running")
        self._version = version

    def sleep(self) -> None:
        """Free weights and cache; weights are not kept, because new ones are loaded before anything is generated."""
        if self._sleeps and not self._asleep:
            self._llm.sleep(level=2)
            self._asleep = True

    def _wake(self, part: str) -> None:
        """Give back what torch still holds of the update, because vLLM asks the driver for its memory."""
        gc.collect()
        torch.cuda.empty_cache()
        self._llm.wake_up([part])

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()


def _check_reporting(settings: dict) -> None:
    """Raise UnreportedError, with vLLM's own reason, where it takes these settings for nothing but reporting experts.

    Its second model runner alone reports them, which needs Triton: the CPU build has none.
    """
    try:
        EngineArgs(**settings).create_engine_config()
    except ValueError as error:
        raise UnreportedError(f"vLLM cannot report here which experts it chooses: {error}") from error


@contextmanager
def _out_of_sight(name: str) -> Iterator[None]:
    """Leave a loaded module out of sys.modules for a while.

    vLLM's CPU build looks into every object of every loaded module, and llvmlite's lazy library (numba loads it, BM25
    loads numba) claims to have any attribute one asks for, which ends vLLM's start with an AttributeError.
    """
    module = sys.modules.pop(name, None)
    try:
        yield
    finally:
        if module is not None:
            sys.modules[name] = module
