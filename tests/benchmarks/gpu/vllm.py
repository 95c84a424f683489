"""Stage 5: vLLM in the training process: log-prob parity, weight sync, sleep and wake, compiled and eager."""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import torch

from rollout.gguf import SMOLLM2, model_folder
from rollout.policy_folder import load_policy
from rollout.types import Completion, SamplingConfig
from tests.benchmarks.gpu.record import Record
from trainer.batching.packing import TrainSequence
from trainer.configs import TinyConfig
from trainer.model.dense_copies import own_logprobs
from trainer.model.tiny_model import build_model, train_tokenizer

LONGEST = 1024
LARGEST_GAP = {"float32": 1e-3, "bfloat16": 0.05}
"""Mean gap of log-probs, in nats, between vLLM and transformers that rounding explains."""
PLAIN = SamplingConfig(temperature=1.0, top_p=1.0, max_tokens=24)
GREEDY = SamplingConfig(temperature=0.0, top_p=1.0, max_tokens=24)


def run(record: Record) -> None:
    """Start each kind of engine in a process of its own, because vLLM leaves a GPU only with its process."""
    if find_spec("vllm") is None:
        record.fail("vllm", "it is not importable: carry its wheel, as docs/performance.md says, or run another stage")
        return
    folder = tiny_folder(record.work) if record.tiny else Path(model_folder(SMOLLM2))
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        record.skip("compiled", "vLLM compiles and captures graphs on CUDA only")
        record.skip("sleep and wake", "vLLM frees memory on CUDA only")
    for eager in (False, True) if on_gpu else (True,):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as own_process:
            row = own_process.submit(engine_row, folder, eager, record.tiny).result()
        record.add(row)
        for what, bound in (("gap", row["bound"]), ("synced_gap", row["bound"])):
            if row[what] > bound:
                record.fail(what, f"{row[what]:.2g} nats a token between vLLM and transformers (bound {bound})")
        if row.get("same_after_sleep") is False:
            record.fail("sleep", "the engine answers otherwise once it has its weights again")


def tiny_folder(folder: Path) -> Path:
    """Return a folder with a model of random weights."""
    sizes = TinyConfig(vocab_size=600, hidden_size=64, num_layers=2, intermediate_size=96)
    tokenizer = train_tokenizer(["Ann: I adopted a cat called Miso. #1"] * 5, ["#1"], sizes.vocab_size)
    build_model(tokenizer, sizes, seed=1).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


def engine_row(folder: Path, eager: bool, tiny: bool) -> dict:
    """Return what one engine did."""
    from rollout.vllm_engine import VLLMEngine  # it takes many seconds to import

    on_gpu = torch.cuda.is_available()
    device, dtype = ("cuda", "bfloat16") if on_gpu else ("cpu", "float32")
    began = time.perf_counter()
    engine = VLLMEngine(
        folder, max_model_len=LONGEST, seed=0, gpu_memory_utilization=0.3, dtype=dtype, sleep=True, eager=eager
    )
    row = {"what": "eager" if eager else "compiled", "start_seconds": time.perf_counter() - began, "dtype": dtype}
    model = load_policy(folder, dtype=getattr(torch, dtype)).model.to(device).eval()
    prompts = [[5 + number, *range(6, 20 + 7 * number)] for number in range(4)]
    row |= {"bound": LARGEST_GAP[dtype], "gap": _gap(model, prompts, engine.generate(prompts, 4, PLAIN, seed=0))}

    torch.manual_seed(0)
    for parameter in model.parameters():  # as a large optimizer step would leave them
        parameter.data += 0.02 * parameter.data.std() * torch.randn_like(parameter.data)
    began = time.perf_counter()
    engine.load_weights(model.state_dict().items(), version=1)
    row["sync_seconds"] = time.perf_counter() - began
    row["synced_gap"] = _gap(model, prompts, engine.generate(prompts, 4, PLAIN, seed=1))

    many, sampling = prompts * (1 if tiny else 64), PLAIN
    began = time.perf_counter()
    written = sum(len(each.token_ids) for group in engine.generate(many, 8, sampling, seed=2) for each in group)
    row["tokens_per_second"] = written / (time.perf_counter() - began)
    if on_gpu:
        row |= _sleep_and_wake(engine, model, prompts)
    engine.close()
    return row


def _sleep_and_wake(engine, model: torch.nn.Module, prompts: list[list[int]]) -> dict:
    before = [group[0].token_ids for group in engine.generate(prompts, 1, GREEDY, seed=0)]
    free, began = torch.cuda.mem_get_info()[0], time.perf_counter()
    engine.sleep()
    row = {"freed_gib": (torch.cuda.mem_get_info()[0] - free) / 2**30, "sleep_seconds": time.perf_counter() - began}
    began = time.perf_counter()
    engine.load_weights(model.state_dict().items(), version=2)
    row["wake_and_sync_seconds"] = time.perf_counter() - began
    after = [group[0].token_ids for group in engine.generate(prompts, 1, GREEDY, seed=0)]
    return row | {"same_after_sleep": before == after}


def _gap(model: torch.nn.Module, prompts: list[list[int]], completions: list[list[Completion]]) -> float:
    """Mean gap between the log-probs that the engine reports and those of transformers on the same tokens."""
    pairs = [(prompt, each) for prompt, group in zip(prompts, completions, strict=True) for each in group]
    sequences = [
        TrainSequence(prompt_token_ids=tuple(prompt), completion_token_ids=each.token_ids) for prompt, each in pairs
    ]
    reported = torch.tensor([value for _, each in pairs for value in each.rollout_logprobs])
    return float((own_logprobs(model, sequences).cpu() - reported).abs().mean())
