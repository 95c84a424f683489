"""SFT steps on sessions like the memory data: ours against TRL's SFTTrainer, on the same weights, samples and order.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.sft          writes tests/benchmarks/results/sft_cpu.json

shared            ours: the four agents of a session share their dialogue in one packed tree
dense             ours without sharing: every sample brings its whole prompt, packed all the same
trl_packed        TRL: packing=True, its default "bfd", the samples of each step packed by its own `pack_dataset`
trl_padding_free  TRL: padding_free=True, four samples flattened into a row
trl_padded        TRL: its default collator, four samples padded to the longest
trl_single        TRL: one sample at a time, so nothing is padded and nothing is masked
trl_compact       trl_single with its head on loss tokens alone, as TRL does on CUDA only: patched, not stock TRL

Every implementation trains a model of its own through the same optimizer steps: same samples per step, AdamW, clipping
and denominator (completion tokens of the step). They take turns step by step, so that other jobs on the machine hit all
alike; ratios are medians over steps of paired ratios, with quartiles. `cpu_` figures count processor time, which other
jobs disturb less. TRL's packing over a whole dataset would move samples to other steps, so each step is packed by
itself, before the clock starts; collating and our packing are inside. TRL runs through `training_step`, whose curve
tests/test_sft_packing.py holds to that of `train()`. TRL's defaults that would slow it here are off: bf16,
recomputation. The first step warms up: its time is not counted.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tests.benchmarks.common import device, write
from tests.benchmarks.sft_data import Session, Shape, num_completion_tokens, num_real_tokens, sessions_of
from trainer.batching.loss_rows import cross_entropy
from trainer.batching.micro_batches import micro_batches
from trainer.batching.packing import TrainSequence, build_tree, count_loss_tokens, dense_tree, pack_on
from trainer.configs import OptimConfig
from trainer.model.policy import Policy
from trainer.optim import make_optimizer

OPTIM = OptimConfig(lr=1e-3, beta2=0.999, max_grad_norm=1.0)
STOCK = ("trl_packed", "trl_padding_free", "trl_padded", "trl_single")
TRL_BATCH = 4
"""Samples per micro-batch where TRL does not pack: those of one session, which are of about the same length."""

Step = list[Session]
Backward = Callable[[Step], Callable[[], float]]
"""Prepares a step outside the clock; what it returns adds the step's gradients and gives its mean loss."""


@dataclass
class Run:
    name: str
    model: torch.nn.Module
    backward: Backward
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizer = make_optimizer(self.model, OPTIM)

    def step(self, step: Step) -> None:
        backward = self.backward(step)
        began, cpu_began = time.perf_counter(), time.process_time()
        self.losses.append(backward())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), OPTIM.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if device().type == "cuda":
            torch.cuda.synchronize()
        self.cpu_seconds.append(time.process_time() - cpu_began)
        self.seconds.append(time.perf_counter() - began)


def model_of(shape: Shape) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=shape.hidden,
        intermediate_size=3 * shape.hidden,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.hidden // 32,
        num_key_value_heads=shape.hidden // 64,
        head_dim=32,
        vocab_size=shape.vocab,
        tie_word_embeddings=True,
        max_position_embeddings=32768,
    )
    with torch.device(device()):
        return Qwen3ForCausalLM(config)


def ours(shape: Shape, steps: Sequence[Step], shared: bool) -> Run:
    policy = Policy(model_of(shape)).train()

    def prepare(step: Step) -> Callable[[], float]:
        trees = [
            tree
            for session in step
            for tree in ([build_tree(session)] if shared else [dense_tree(sample) for sample in session])
        ]
        return partial(backward, trees)

    def backward(trees) -> float:
        num_tokens = sum(count_loss_tokens(tree) for tree in trees)
        total = torch.zeros((), device=device())
        for nodes in micro_batches(trees, shape.max_tokens):
            packed = pack_on(nodes, device())
            scale = torch.ones(packed.targets.shape, device=device()) / num_tokens
            output = policy(packed, loss=cross_entropy(scale))
            output.loss.backward()
            total -= output.head.logprobs.sum() / num_tokens
        return float(total)

    return Run("shared" if shared else "dense", policy, prepare)


def example(sample: TrainSequence) -> dict[str, list[int]]:
    prompt, completion = sample.prompt_token_ids, sample.completion_token_ids
    return {"input_ids": [*prompt, *completion], "labels": [-100] * len(prompt) + list(completion)}


def trl_trainer(shape: Shape, steps: Sequence[Step], **options):
    """An SFTTrainer on the samples in order; it never cuts one."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from trl import SFTConfig, SFTTrainer

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a")),
        eos_token="</s>",
        pad_token="</s>",
    )
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        completion_only_loss=True,
        learning_rate=OPTIM.lr,
        lr_scheduler_type="constant",
        weight_decay=OPTIM.weight_decay,
        adam_beta1=OPTIM.beta1,
        adam_beta2=OPTIM.beta2,
        max_grad_norm=OPTIM.max_grad_norm,
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=device().type == "cpu",
        logging_steps=1,
        disable_tqdm=True,
        save_strategy="no",
        report_to=[],
        **options,
    )
    samples = [example(sample) for step in steps for session in step for sample in session]
    dataset = Dataset.from_list(samples)
    return SFTTrainer(model=model_of(shape), args=config, train_dataset=dataset, processing_class=tokenizer)


def trl(shape: Shape, steps: Sequence[Step], name: str) -> Run:
    """TRL's own collator, head and `training_step`; the optimizer step is that of every run."""
    from datasets import Dataset
    from trl import pack_dataset

    batch = TRL_BATCH if name in ("trl_padding_free", "trl_padded") else 1
    longest = max(num_real_tokens([[sample]]) for step in steps for session in step for sample in session)
    options = {
        "trl_packed": {"packing": True, "max_length": longest},
        "trl_padding_free": {"padding_free": True, "max_length": None},
    }.get(name, {"max_length": None})
    trainer = trl_trainer(shape, steps, per_device_train_batch_size=batch, **options)
    trainer.current_gradient_accumulation_steps = 1  # its training loop sets this

    def prepare(step: Step) -> Callable[[], float]:
        dataset = Dataset.from_list([example(sample) for session in step for sample in session])
        if name == "trl_packed":
            dataset = pack_dataset(dataset, longest, "bfd")
        rows = dataset.to_list()
        return partial(backward, [rows[start : start + batch] for start in range(0, len(rows), batch)])

    def backward(batches) -> float:
        num_tokens = torch.tensor(sum(label != -100 for rows in batches for row in rows for label in row["labels"]))
        with mock.patch("trl.trainer.utils._use_triton", lambda _: True) if name == "trl_compact" else nullcontext():
            losses = [trainer.training_step(trainer.model, trainer.data_collator(rows), num_tokens) for rows in batches]
        return float(sum(losses))

    return Run(name, trainer.model, prepare)


def trl_train(shape: Shape, steps: Sequence[Step]) -> list[float]:
    """The loss of every step as TRL's own training loop logs it."""
    (num_samples,) = {sum(len(session) for session in step) for step in steps}
    options = {"max_length": None, "per_device_train_batch_size": 1, "num_train_epochs": 1}
    trainer = trl_trainer(shape, steps, gradient_accumulation_steps=num_samples, **options)
    trainer.train()
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


IMPLEMENTATIONS: dict[str, Callable[[Shape, Sequence[Step]], Run]] = {
    "shared": partial(ours, shared=True),
    "dense": partial(ours, shared=False),
    **{name: partial(trl, name=name) for name in (*STOCK, "trl_compact")},
}


def take_turns(runs: Sequence[Run], step: Step, number: int) -> None:
    """All runs through one step, in another order every time."""
    first = number % len(runs)
    for run in (*runs[first:], *runs[:first]):
        run.step(step)


def quartiles(values: Sequence[float]) -> list[float]:
    return [round(value, 3) for value in statistics.quantiles(values, n=4)]


def times_faster(run: Run, base: Run) -> dict[str, list[float]]:
    """Quartiles over steps of how many times as long `base` took for the same step."""
    pairs = {"": (run.seconds, base.seconds), "cpu_": (run.cpu_seconds, base.cpu_seconds)}
    return {
        f"{prefix}times_faster_than_{base.name}": quartiles([b / a for a, b in zip(*each, strict=True)][1:])
        for prefix, each in pairs.items()
    }


def row(run: Run, runs: Sequence[Run], steps: Sequence[Step]) -> dict:
    """Figures of one run; its loss is compared with that of the fastest stock TRL."""
    counted = steps[1 : len(run.seconds)]
    num_completion, num_real = (sum(map(count, counted)) for count in (num_completion_tokens, num_real_tokens))
    trl_runs = [other for other in runs if other.name in STOCK]
    best = min(trl_runs, key=lambda other: statistics.median(other.cpu_seconds[1:]))
    gaps = [abs(a - b) for a, b in zip(run.losses, best.losses, strict=True)]
    return {
        "impl": run.name,
        "steps": len(run.seconds),
        "completion_tokens_per_second": round(num_completion / sum(run.seconds[1:]), 1),
        "real_tokens_per_second": round(num_real / sum(run.seconds[1:]), 1),
        "cpu_completion_tokens_per_second": round(num_completion / sum(run.cpu_seconds[1:]), 1),
        "cpu_real_tokens_per_second": round(num_real / sum(run.cpu_seconds[1:]), 1),
        "seconds": quartiles(run.seconds[1:]),
        "cpu_seconds": quartiles(run.cpu_seconds[1:]),
        **{name: value for base in runs if base is not run for name, value in times_faster(run, base).items()},
        "best_stock_trl": best.name,
        "largest_loss_gap_to_it": max(gaps),
        "losses": [round(loss, 6) for loss in run.losses],
    }


def options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results = Path(__file__).with_name("results") / f"sft_{device().type}.json"
    parser.add_argument("--out", type=Path, default=results, help="file for the figures (%(default)s)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--impl", nargs="+", choices=IMPLEMENTATIONS, default=list(IMPLEMENTATIONS))
    args = parser.parse_args(argv)
    if not set(args.impl) & set(STOCK):
        parser.error(f"--impl needs one of {', '.join(STOCK)} to compare with")
    return args


def main() -> None:
    args = options()
    shape = Shape(num_steps=args.steps)
    steps = sessions_of(shape)
    runs = [IMPLEMENTATIONS[name](shape, steps) for name in args.impl]
    for number, step in enumerate(steps):
        take_turns(runs, step, number)
        print(number, {run.name: (round(run.losses[-1], 4), round(run.cpu_seconds[-1], 2)) for run in runs}, flush=True)
        if number > 1 and (number % 5 == 4 or number == len(steps) - 1):
            write(args.out, [{"shape": vars(shape)}, *(row(run, runs, steps) for run in runs)])


if __name__ == "__main__":
    main()
