"""The output head: hidden states give log-probs, entropies and a loss, and never all logits (rows, vocabulary) at once.

The logits are made a chunk of rows at a time in one workspace. The caller gives the loss as a function. Where no token
of it depends on another, the gradients of a chunk are made in the same pass, with three matmuls:

    logits = hidden W^T; statistics of each row; the loss on these few numbers, and its gradient by autograd
    logits <- gradient by logits, in place; d hidden = that W; d W += that^T hidden, in float32

Some models add a bias, scale their logits or put a soft cap on them (`LogitScaling`). A scale divides the temperature,
and a cap is done by the kernels as they read the logits, so neither takes memory or a pass of its own.
A loss that mixes the tokens of a completion (`whole_sequences`) gets all log-probs at once and costs a fourth matmul.
The arithmetic is that of Liger-Kernel's fused cross-entropy (arXiv 2410.10989), for weighted policy gradients.
Letters: M rows, n rows of a chunk, H hidden width, V vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from trainer.kernels import plain_rows

Metrics = dict[str, torch.Tensor]
"""Name -> one value for each row."""
LossFunction = Callable[[torch.Tensor, torch.Tensor, slice], tuple[torch.Tensor, Metrics]]
"""(log-probs, entropies, which rows they belong to) -> (scaled loss of each row, metrics); the head sums the losses."""
Impl = Literal["auto", "plain", "triton"]
"""Kernels of the rows' statistics and gradients; `auto`: Triton on CUDA, else plain PyTorch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogitScaling:
    """What a model makes of x = hidden W^T + b: cap tanh(scale x / cap), or scale x where there is no cap."""

    scale: float = 1.0
    cap: float | None = None


AS_THEY_ARE = LogitScaling()


# Outputs of modules are named tuples, not dataclasses: ZeRO-3 hangs its backward hooks on tensors it finds in tuples.
class HeadOutput(NamedTuple):
    logprobs: torch.Tensor  # (M,) at least float32, no gradient
    entropy: torch.Tensor  # (M,)


class LossOutput(NamedTuple):
    loss: torch.Tensor
    """Sum of the scaled losses of all rows; its backward hands out gradients that are already made."""
    head: HeadOutput
    metrics: Metrics


def row_kernels(impl: Impl, device: torch.device):
    """Return the module with `statistics`, `write_gradient_` and `row_width` for tensors of this device."""
    if impl == "triton" or (impl == "auto" and device.type == "cuda"):
        from trainer.kernels import triton_rows

        return triton_rows
    return plain_rows


WORKSPACE_BYTES = 3 * 2**29
"""Memory that the head may take on a GPU beyond its inputs and their gradients."""
CPU_CHUNK_ROWS = 384
"""Rows of a chunk on a CPU: more of them make the matmuls no faster, and fewer take up to a tenth longer."""
SLICE = 2**22
"""Count of numbers that are rounded to a narrower type by way of a temporary."""


def chunk_rows_within(num_bytes: int, num_rows: int, vocabulary: int, hidden: int, item: int) -> int:
    """Take all rows at once if their logits fit, else as few chunks as fit beside the float32 sums, of even size.

    Every chunk reads and writes the whole sums, so few are the fastest on an A100, H100 and B200 alike, as
    tests/benchmarks/head_model.py models it.
    """
    if num_rows * vocabulary * item <= num_bytes:
        return max(num_rows, 1)
    sums = vocabulary * hidden * max(4 - item, 0)
    largest = max((num_bytes - sums) // (vocabulary * item) // 256 * 256, 256)
    num_chunks = -(-num_rows // largest)
    return -(-num_rows // (256 * num_chunks)) * 256


class Head(torch.nn.Module):
    """The module that replaces a model's output layer and owns its weights, so wrappers that gather them see them."""

    def __init__(
        self,
        weight: torch.nn.Parameter,
        bias: torch.nn.Parameter | None = None,
        scaling: LogitScaling = AS_THEY_ARE,
        impl: Impl = "auto",
    ) -> None:
        super().__init__()
        self.weight = weight  # (V, H)
        self.bias = bias  # (V,)
        self.scaling = scaling
        self.impl = impl

    def forward(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        temperature: float,
        loss: LossFunction | None = None,
        whole_sequences: bool = False,
    ) -> HeadOutput | LossOutput:
        """Of hidden states (M, H) and target ids (M,) return log-probs under softmax(logits / T), or the loss."""
        options = {"bias": self.bias, "scaling": self.scaling, "impl": self.impl}
        if loss is None:
            return token_logprobs(hidden, self.weight, targets, temperature, **options)
        return head_loss(hidden, self.weight, targets, temperature, loss, whole_sequences, **options)


@torch.no_grad()
def token_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    temperature: float = 1.0,
    chunk_rows: int | None = None,
    impl: Impl = "auto",
    bias: torch.Tensor | None = None,
    scaling: LogitScaling = AS_THEY_ARE,
) -> HeadOutput:
    """Compute log-probs and entropies of the targets, without gradient."""
    return _Work(hidden, weight, bias, targets, temperature, scaling, chunk_rows, impl).logprobs()


def head_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    temperature: float,
    loss: LossFunction,
    whole_sequences: bool = False,
    chunk_rows: int | None = None,
    impl: Impl = "auto",
    bias: torch.Tensor | None = None,
    scaling: LogitScaling = AS_THEY_ARE,
) -> LossOutput:
    """Sum the loss over all rows; its one backward hands out gradients by hidden, weight, bias that are made here."""
    names: list[str] = []
    if not torch.is_grad_enabled():
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    total, logprobs, entropy, *metrics = _HeadLoss.apply(
        hidden, weight, bias, targets, temperature, scaling, loss, whole_sequences, chunk_rows, impl, names
    )
    return LossOutput(total, HeadOutput(logprobs, entropy), dict(zip(names, metrics, strict=True)))


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, hidden, weight, bias, targets, temperature, scaling, loss, whole_sequences, chunk_rows, impl, names
    ):
        work = _Work(hidden, weight, bias, targets, temperature, scaling, chunk_rows, impl, ctx.needs_input_grad[:3])
        result = work.two_passes(loss) if whole_sequences else work.one_pass(loss)
        names += result.metrics
        ctx.save_for_backward(*work.gradients)
        ctx.dtypes = [None if each is None else each.dtype for each in (hidden, weight, bias)]
        ctx.set_materialize_grads(False)
        outputs = (*result.head, *result.metrics.values())
        ctx.mark_non_differentiable(*outputs)
        return result.loss, *outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, loss_gradient, *_):
        scaled = [
            None if gradient is None or loss_gradient is None else _scaled_(gradient, loss_gradient, dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *scaled, *[None] * 8


class _Work:
    """The sweeps over the chunks, and the gradients they leave behind."""

    def __init__(self, hidden, weight, bias, targets, temperature, scaling, chunk_rows, impl, wants=(False,) * 3):
        self.hidden, self.weight, self.bias, self.targets = hidden, weight, bias, targets
        # cap tanh(scale x / cap) / T is the same formula of x without a scale, but another cap and temperature
        self.temperature = temperature / scaling.scale
        self.cap = None if scaling.cap is None else scaling.cap / scaling.scale
        self.kernels = row_kernels(impl, hidden.device)
        if chunk_rows is None and weight.device.type == "cuda":
            chunk_rows = chunk_rows_within(WORKSPACE_BYTES, len(hidden), *weight.shape, weight.element_size())
        self.chunk_rows = chunk_rows or CPU_CHUNK_ROWS
        # float32 over several chunks: rounding to bfloat16 after every add costs 1% of the gradient after 64 chunks
        wide = torch.promote_types(weight.dtype, torch.float32)
        of_weight = weight.dtype if len(hidden) <= self.chunk_rows else wide
        self.gradients = self.by_hidden, self.by_weight, self.by_bias = (
            torch.empty_like(hidden) if wants[0] else None,
            torch.empty_like(weight, dtype=of_weight) if wants[1] else None,
            torch.zeros_like(bias, dtype=wide) if wants[2] else None,
        )
        if self.by_weight is not None and not len(hidden):
            self.by_weight.zero_()  # no chunk will write it
        self.wants_gradients = any(wants)

    def chunks(self) -> Iterator[tuple[slice, torch.Tensor, plain_rows.RowStatistics]]:
        """Yield rows, logits and statistics. All logits stand in one workspace: use one before drawing the next."""
        num_rows = len(self.hidden)
        width = self.kernels.row_width(len(self.weight))
        workspace = self.hidden.new_empty(min(self.chunk_rows, num_rows), width)[:, : len(self.weight)]
        for start in range(0, num_rows, self.chunk_rows):
            chunk = slice(start, min(start + self.chunk_rows, num_rows))
            logits = workspace[: chunk.stop - start]
            if self.bias is None:
                torch.mm(self.hidden[chunk], self.weight.T, out=logits)
            else:
                torch.addmm(self.bias, self.hidden[chunk], self.weight.T, out=logits)
            yield chunk, logits, self.kernels.statistics(logits, self.targets[chunk], self.temperature, self.cap)

    def room(self) -> HeadOutput:
        """Empty tensors for all results: many small ones between large ones would fragment the memory."""
        dtype = torch.promote_types(self.hidden.dtype, torch.float32)
        return HeadOutput(*(self.hidden.new_empty(len(self.hidden), dtype=dtype) for _ in range(2)))

    def logprobs(self) -> HeadOutput:
        found = self.room()
        for chunk, _, rows in self.chunks():
            found.logprobs[chunk], found.entropy[chunk] = rows.logprobs, rows.entropy
        return found

    def one_pass(self, loss: LossFunction) -> LossOutput:
        head, metrics = self.room(), {}
        total = torch.zeros((), dtype=head.logprobs.dtype, device=self.hidden.device)
        for chunk, logits, rows in self.chunks():
            part, coefficients = _evaluate(loss, rows.logprobs, rows.entropy, chunk)
            self._gradients(chunk, logits, rows, coefficients)
            total += part.loss
            head.logprobs[chunk], head.entropy[chunk] = rows.logprobs, rows.entropy
            for name, values in part.metrics.items():
                metrics.setdefault(name, values.new_empty(len(self.targets)))[chunk] = values
        return LossOutput(total, head, metrics)

    def two_passes(self, loss: LossFunction) -> LossOutput:
        result, coefficients = _evaluate(loss, *self.logprobs(), slice(None))
        if self.wants_gradients:
            for chunk, logits, rows in self.chunks():
                self._gradients(chunk, logits, rows, [None if each is None else each[chunk] for each in coefficients])
        return result

    def _gradients(self, chunk: slice, logits: torch.Tensor, rows: plain_rows.RowStatistics, coefficients) -> None:
        """Add the gradients of these rows; `coefficients` are the loss's gradients by their log-probs and entropies."""
        if not self.wants_gradients:
            return
        self.kernels.write_gradient_(logits, self.targets[chunk], rows, *coefficients, self.temperature, self.cap)
        if self.by_hidden is not None:
            torch.mm(logits, self.weight, out=self.by_hidden[chunk])
        if self.by_weight is not None:
            _add_product_(self.by_weight, logits.T, self.hidden[chunk], keeps=chunk.start > 0)
        if self.by_bias is not None:
            self.by_bias += logits.sum(0, dtype=self.by_bias.dtype)


def _evaluate(
    loss: LossFunction, logprobs: torch.Tensor, entropy: torch.Tensor, chunk: slice
) -> tuple[LossOutput, tuple[torch.Tensor, torch.Tensor | None]]:
    """Return the loss on some rows and its gradients by log-probs and entropies; None where it ignores entropies."""
    logprobs, entropy = logprobs.detach().requires_grad_(), entropy.detach().requires_grad_()
    with torch.enable_grad():
        per_token, metrics = loss(logprobs, entropy, chunk)
        total = per_token.sum()
    by_logprob, by_entropy = torch.autograd.grad(total, (logprobs, entropy), allow_unused=True)
    by_logprob = torch.zeros_like(logprobs) if by_logprob is None else by_logprob
    metrics = {name: value.detach() for name, value in metrics.items()}
    output = LossOutput(total.detach(), HeadOutput(logprobs.detach(), entropy.detach()), metrics)
    return output, (by_logprob, by_entropy)


def _scaled_(gradient: torch.Tensor, factor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the gradient times the factor, in `dtype`, written into the storage of the gradient to save memory."""
    if gradient.dtype == dtype:
        return gradient.mul_(factor)
    flat = gradient.view(-1)
    narrow = flat.view(dtype)[: len(flat)]
    narrow[:SLICE] = flat[:SLICE] * factor
    start = SLICE
    while start < len(flat):  # half as wide or less, so the narrow slice ends where the wide one begins at the latest
        part = slice(start, 2 * start)
        torch.mul(flat[part], factor, out=narrow[part])
        start = part.stop
    return narrow.view(gradient.shape)


def _add_product_(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, keeps: bool) -> None:
    """Add left @ right to the total in its type, or overwrite what it does not keep, without reading it."""
    if left.dtype == total.dtype:
        total.addmm_(left, right, beta=int(keeps))
    elif total.device.type == "cuda":
        torch.ops.aten.addmm.dtype_out(total, left, right, total.dtype, beta=int(keeps), out=total)
    else:  # CPU has no mixed-type product
        total.addmm_(left.to(total.dtype), right.to(total.dtype), beta=int(keeps))
