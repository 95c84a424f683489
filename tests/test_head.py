"""The head against autograd on whole logits."""

import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.distributions import Categorical

from membuilder.errors import ConfigError
from tests.patience import HANGS
from trainer.batching.loss_rows import Objective, cross_entropy
from trainer.configs import KLEstimator, LossConfig
from trainer.kernels import plain_rows
from trainer.losses import LOSSES, TokenValues
from trainer.model.head import (
    AS_THEY_ARE,
    Head,
    LogitScaling,
    _scaled_,
    chunk_rows_within,
    head_loss,
    token_logprobs,
)

ROOT = Path(__file__).parent.parent
LENGTHS = (5, 1, 7, 3, 4)
NUM_ROWS, WIDTH, VOCAB = sum(LENGTHS), 6, 37


def config_of(name: str, **changes) -> LossConfig:
    own = {"dapo": {"clip_high": 0.28}}.get(name, {})
    return LossConfig(name=name, **{"kl_coef": 0.1, "entropy_coef": 0.05, "tis_cap": 1.1} | own | changes)


@pytest.fixture
def case():
    """float64 hidden states, weight, targets and an objective whose ratios lie on both sides of every bound."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, weight = normal(NUM_ROWS, WIDTH).requires_grad_(), normal(VOCAB, WIDTH).requires_grad_()
    targets = torch.randint(VOCAB, (NUM_ROWS,), generator=generator)
    near = token_logprobs(hidden, weight, targets, 0.7).logprobs
    objective = Objective(
        loss=LOSSES["grpo"],
        config=LossConfig(),
        scale=torch.rand(NUM_ROWS, generator=generator, dtype=torch.float64),
        values=TokenValues(
            proximal_logprobs=near + 0.3 * normal(NUM_ROWS),
            rollout_logprobs=near + 0.3 * normal(NUM_ROWS),
            advantage=normal(NUM_ROWS),
            weight=1 + 3 * torch.randint(2, (NUM_ROWS,), generator=generator).double(),
            truncated=torch.tensor([k % 2 for k, length in enumerate(LENGTHS) for _ in range(length)]).double(),
        ),
        ref_logprobs=near + 0.3 * normal(NUM_ROWS),
        sequence=torch.tensor([k for k, length in enumerate(LENGTHS) for _ in range(length)]),
    )
    return hidden, weight, targets, objective


@pytest.mark.parametrize(
    ("own", "problem"),
    [
        (lambda inputs, config: (inputs.trainer_logprobs.mean(), {}), "gives the loss as ()"),
        (lambda inputs, config: (inputs.trainer_logprobs[:, None], {}), f"gives the loss as ({NUM_ROWS}, 1)"),
        (lambda inputs, config: inputs.trainer_logprobs, "returns Tensor, not a pair"),
        (lambda inputs, config: None, "returns NoneType, not a pair"),
        (lambda inputs, config: (inputs.trainer_logprobs, None), "returns tuple, not a pair"),
        (lambda inputs, config: (inputs.trainer_logprobs, {"x": 1.0}), "gives x as float"),
        (lambda inputs, config: (inputs.trainer_logprobs, {"x": inputs.advantage.mean()}), "gives x as ()"),
        (lambda inputs, config: (inputs.trainer_logprobs.detach(), {}), "gives a loss without a gradient"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_a_loss_of_ones_own_that_is_none_is_refused_with_its_place(case, own, problem, whole):
    hidden, weight, targets, objective = case
    with pytest.raises(ConfigError, match=re.escape(problem)) as caught:
        head_loss(hidden, weight, targets, 0.7, replace(objective, loss=own), whole_sequences=whole)
    assert "test_head.py, line " in str(caught.value)


def by_autograd(hidden, weight, targets, loss_function, temperature: float, bias=None, scaling=AS_THEY_ARE):
    """Loss, metrics and gradients with all logits at once, every step by autograd."""
    logits = torch.nn.functional.linear(hidden, weight, bias) * scaling.scale
    if scaling.cap is not None:
        logits = scaling.cap * (logits / scaling.cap).tanh()
    distribution = Categorical(logits=logits / temperature)
    per_token, metrics = loss_function(distribution.log_prob(targets), distribution.entropy(), slice(None))
    loss = per_token.sum()
    return loss, metrics, torch.autograd.grad(loss, (hidden, weight) if bias is None else (hidden, weight, bias))


def assert_close(found: torch.Tensor, expected: torch.Tensor, relative: float = 1e-10) -> None:
    assert (found - expected).norm() <= relative * expected.norm()


CONFIGS = [config_of(name) for name in LOSSES]
CONFIGS += [config_of("adrpo", kl_estimator=estimator) for estimator in (KLEstimator.K1, KLEstimator.K2)]
CONFIGS += [config_of("adrpo", sequence_mask=[0.8, 1.25]), config_of("grpo", entropy_coef=0.0, kl_coef=0.0)]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.name}-{config.kl_estimator}")
@pytest.mark.parametrize("chunk_rows", [1, 3, 7, NUM_ROWS, 1000])
def test_every_loss_equals_autograd_whatever_the_chunk(case, config, chunk_rows):
    hidden, weight, targets, objective = case
    objective = replace(objective, loss=LOSSES[config.name], config=config)
    expected, metrics, gradients = by_autograd(hidden, weight, targets, objective, temperature=0.7)
    output = head_loss(hidden, weight, targets, 0.7, objective, objective.whole_sequences, chunk_rows)
    assert_close(output.loss, expected)
    for found, truth in zip(torch.autograd.grad(output.loss, (hidden, weight)), gradients, strict=True):
        assert_close(found, truth)
    assert set(output.metrics) == set(metrics) >= {"loss", "entropy", "sampling/logp_difference/mean"}
    for name, values in metrics.items():
        torch.testing.assert_close(output.metrics[name], values.detach())


SCALINGS = {
    "bias": (True, AS_THEY_ARE),
    "scale": (False, LogitScaling(scale=0.25)),
    "cap": (False, LogitScaling(cap=2.0)),
    "all": (True, LogitScaling(scale=-1.5, cap=3.0)),
}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_rows", [3, NUM_ROWS])
@pytest.mark.parametrize("whole_sequences", [False, True])
@pytest.mark.parametrize("name", SCALINGS)
def test_a_bias_a_scale_and_a_soft_cap_equal_autograd(case, name, whole_sequences, chunk_rows, temperature):
    hidden, weight, targets, objective = case
    has_bias, scaling = SCALINGS[name]
    bias = torch.randn(VOCAB, dtype=torch.float64).requires_grad_() if has_bias else None
    objective = replace(objective, config=config_of("grpo"))
    expected, metrics, gradients = by_autograd(hidden, weight, targets, objective, temperature, bias, scaling)
    options = {"chunk_rows": chunk_rows, "bias": bias, "scaling": scaling}
    output = head_loss(hidden, weight, targets, temperature, objective, whole_sequences, **options)
    assert_close(output.loss, expected)
    torch.testing.assert_close(output.metrics["entropy"], metrics["entropy"].detach())
    parameters = [each for each in (hidden, weight, bias) if each is not None]
    for found, truth in zip(torch.autograd.grad(output.loss, parameters), gradients, strict=True):
        assert_close(found, truth)
    alone = token_logprobs(hidden, weight, targets, temperature, **options)
    assert_close(alone.logprobs, output.head.logprobs)
    assert_close(alone.entropy, output.head.entropy)


@pytest.mark.parametrize("chunk_rows", [1, 256])
@pytest.mark.parametrize("dtype, largest", [(torch.float32, 1e-6), (torch.bfloat16, 0.005)])
def test_they_are_exact_to_the_rounding_of_low_precision(dtype, largest, chunk_rows):
    torch.manual_seed(0)
    parameters = [each.to(dtype) for each in (torch.randn(256, 32), torch.randn(64, 32) / 6, torch.randn(64))]
    scaling, targets, loss = LogitScaling(scale=2.0, cap=5.0), torch.randint(64, (256,)), cross_entropy(torch.ones(256))
    hidden, weight, bias = (each.double().requires_grad_() for each in parameters)
    truth = by_autograd(hidden, weight, targets, loss, 0.7, bias, scaling)[2]
    hidden, weight, bias = own = [each.requires_grad_() for each in parameters]
    output = head_loss(hidden, weight, targets, 0.7, loss, chunk_rows=chunk_rows, bias=bias, scaling=scaling)
    for found, exact in zip(torch.autograd.grad(output.loss, own), truth, strict=True):
        assert found.dtype == dtype
        assert_close(found.double(), exact, largest)


def test_a_loss_of_ones_own_that_mixes_tokens_is_never_cut(case):
    """A loss without the `per_token` mark is given all rows at once, however small the head's chunks."""
    hidden, weight, targets, objective = case

    def centred(inputs, config):
        return -(inputs.trainer_logprobs - inputs.trainer_logprobs.mean()) * inputs.advantage, {}

    objective = replace(objective, loss=centred)
    expected, _, gradients = by_autograd(hidden, weight, targets, objective, temperature=1.0)
    assert objective.whole_sequences
    output = head_loss(hidden, weight, targets, 1.0, objective, objective.whole_sequences, chunk_rows=3)
    assert_close(output.loss, expected)
    assert_close(torch.autograd.grad(output.loss, hidden)[0], gradients[0])


def test_a_tied_weight_gets_both_gradients(case):
    """The weight also makes the hidden states, as an embedding does."""
    _, weight, targets, objective = case
    loss = cross_entropy(objective.scale)
    embedded = weight[targets.roll(1)].tanh()
    expected = torch.autograd.grad(by_autograd_loss(embedded, weight, targets, loss), weight)[0]
    embedded = weight[targets.roll(1)].tanh()
    output = head_loss(embedded, weight, targets, 1.0, loss, chunk_rows=4)
    assert_close(torch.autograd.grad(output.loss, weight)[0], expected)


def by_autograd_loss(hidden, weight, targets, loss_function) -> torch.Tensor:
    logprobs = (hidden @ weight.T).log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    return loss_function(logprobs, torch.zeros_like(logprobs), slice(None))[0].sum()


def test_an_outer_factor_reaches_both_gradients(case):
    hidden, weight, targets, objective = case
    loss = cross_entropy(objective.scale)
    once = torch.autograd.grad(head_loss(hidden, weight, targets, 1.0, loss).loss, (hidden, weight))
    thrice = torch.autograd.grad(3 * head_loss(hidden, weight, targets, 1.0, loss).loss, (hidden, weight))
    for one, three in zip(once, thrice, strict=True):
        assert_close(three, 3 * one)


@pytest.mark.parametrize("trained", ["hidden", "weight", "bias"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_its_own(case, trained):
    hidden, weight, targets, objective = case
    loss = cross_entropy(objective.scale)
    tensors = {"hidden": hidden, "weight": weight, "bias": torch.randn(VOCAB, dtype=torch.float64).requires_grad_()}
    gradients = by_autograd(hidden, weight, targets, loss, 1.0, tensors["bias"])[2]
    expected = dict(zip(tensors, gradients, strict=True))[trained]
    given = {name: each if name == trained else each.detach() for name, each in tensors.items()}
    output = head_loss(given["hidden"], given["weight"], targets, 1.0, loss, chunk_rows=4, bias=given["bias"])
    assert_close(torch.autograd.grad(output.loss, given[trained])[0], expected)


def test_without_gradients_none_are_made(case, monkeypatch):
    hidden, weight, targets, objective = case
    monkeypatch.setattr(plain_rows, "write_gradient_", lambda *_: pytest.fail("a gradient nobody asked for"))
    objective = replace(objective, loss=LOSSES["gspo"], config=config_of("gspo"))
    with torch.no_grad():
        assert not head_loss(hidden, weight, targets, 1.0, objective, True, chunk_rows=4).loss.requires_grad


def test_rows_are_worked_on_in_blocks_that_change_nothing(case, monkeypatch):
    hidden, weight, targets, objective = case
    objective = replace(objective, config=config_of("grpo"))

    def found() -> list[torch.Tensor]:
        output = head_loss(hidden, weight, targets, 0.7, objective, chunk_rows=7)
        return [*output.head, *torch.autograd.grad(output.loss, (hidden, weight))]

    whole = found()
    monkeypatch.setattr(plain_rows, "BLOCK", 3 * VOCAB)
    assert all(torch.equal(*pair) for pair in zip(found(), whole, strict=True))
    monkeypatch.setattr(plain_rows, "BLOCK", 1)
    assert all(torch.equal(*pair) for pair in zip(found(), whole, strict=True))
    assert token_logprobs(hidden[:0], weight, targets[:0]).logprobs.shape == (0,)


def test_huge_logits_stay_finite():
    hidden = torch.tensor([[200.0, 0.0], [-300.0, 1.0]], requires_grad=True)
    weight = torch.tensor([[100.0, 0.0], [0.0, 100.0], [-100.0, 0.0]], requires_grad=True)
    targets = torch.tensor([0, 1])
    output = head_loss(hidden, weight, targets, 1.0, cross_entropy(torch.tensor([0.5, 0.5])))
    assert output.head.logprobs.tolist() == pytest.approx([0.0, -29900.0])
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(output.loss, (hidden, weight)))


def test_low_precision_weights_gather_their_gradient_in_float32():
    """256 chunks of bfloat16: adding up in bfloat16 loses over 1%, in float32 it leaves the products' own error."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(256, 32), torch.randn(64, 32) / 6
    targets, cross = torch.randint(64, (256,)), cross_entropy(torch.ones(256))

    def weight_gradient(dtype: torch.dtype, chunk_rows: int) -> torch.Tensor:
        own = weight.bfloat16().to(dtype).requires_grad_()
        loss = head_loss(hidden.bfloat16().to(dtype), own, targets, 1.0, cross, chunk_rows=chunk_rows).loss
        return torch.autograd.grad(loss, own)[0].float()

    truth = weight_gradient(torch.float32, 256)
    error = (weight_gradient(torch.bfloat16, 1) - truth).norm() / truth.norm()
    whole = (weight_gradient(torch.bfloat16, 256) - truth).norm() / truth.norm()
    assert error <= 1.05 * whole and error < 0.005


@pytest.mark.parametrize("slice_size", [1, 5, 62, 100])
def test_sums_over_chunks_are_rounded_once_where_they_stand(monkeypatch, slice_size):
    """The narrow gradient is written over the wide one, slice by slice, and is what rounding a copy would give."""
    monkeypatch.setattr("trainer.model.head.SLICE", slice_size)
    torch.manual_seed(0)
    wide = torch.randn(7, 9)
    expected, storage = (wide * 0.3).bfloat16(), wide.data_ptr()
    found = _scaled_(wide, torch.tensor(0.3), torch.bfloat16)
    assert torch.equal(found, expected) and found.data_ptr() == storage


def test_rows_of_a_chunk_leave_room_for_the_sums():
    """On a GPU: 1.5 GiB beyond the gradients in bfloat16, at the vocabulary of Qwen3."""
    vocabulary, budget = 151_936, 3 * 2**29
    for hidden in (2560, 4096):
        assert chunk_rows_within(budget, 4096, vocabulary, hidden, 2) == 4096  # at once: nothing to sum
        chunk = chunk_rows_within(budget, 32_768, vocabulary, hidden, 2)
        assert chunk % 256 == 0 and chunk >= 1024
        assert budget - 256 * vocabulary * 2 < chunk * vocabulary * 2 + vocabulary * hidden * 2 <= budget
    assert chunk_rows_within(budget, 32_768, vocabulary, 8192, 2) == 256  # the sums alone are over it
    assert chunk_rows_within(budget, 0, vocabulary, 8, 2) == 1
    # 2,560 rows fit; 8,192 are four chunks of 2,048 rather than three of them and one of 512
    assert chunk_rows_within(budget, 8192, vocabulary, 2560, 2) == 2048
    assert chunk_rows_within(budget, 8193, vocabulary, 2560, 2) == 2304


def test_gradients_of_the_weight_are_written_not_added_to_what_stood_in_memory(case, monkeypatch):
    hidden, weight, targets, objective = case
    loss = cross_entropy(objective.scale)
    expected = by_autograd(hidden, weight, targets, loss, 1.0)[2][1]
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *args, **options: empty_like(*args, **options).fill_(math.nan))
    for chunk_rows in (3, NUM_ROWS):
        output = head_loss(hidden, weight, targets, 1.0, loss, chunk_rows=chunk_rows)
        assert_close(torch.autograd.grad(output.loss, weight)[0], expected)


def test_no_rows_give_no_gradient(case):
    hidden, weight, targets, _ = case
    none = hidden.detach()[:0].requires_grad_()
    output = head_loss(none, weight, targets[:0], 1.0, cross_entropy(torch.ones(0, dtype=torch.float64)))
    by_hidden, by_weight = torch.autograd.grad(output.loss, (none, weight))
    assert by_hidden.shape == none.shape and not by_weight.any()


# statistics


def test_two_way_distribution_by_hand():
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [math.log(3)]])  # probabilities 1/4 and 3/4
    output = token_logprobs(hidden, weight, torch.tensor([1]))
    assert output.logprobs.item() == pytest.approx(-0.287682)  # ln 3/4
    assert output.entropy.item() == pytest.approx(0.562335)  # 1/4 ln 4 + 3/4 ln 4/3


def test_temperature_divides_logits_before_everything():
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [math.log(3)]])
    output = token_logprobs(hidden, weight, torch.tensor([0]), temperature=0.5)  # probabilities 1/10 and 9/10
    assert output.logprobs.item() == pytest.approx(-2.302585)
    assert output.entropy.item() == pytest.approx(0.325083)


@pytest.mark.parametrize("chunk_rows", [1, 4, 100])
def test_logprobs_equal_torch_distributions(chunk_rows):
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(7, 16), torch.randn(33, 16), torch.randint(33, (7,))
    expected = Categorical(logits=hidden @ weight.T / 0.5)
    output = token_logprobs(hidden, weight, targets, 0.5, chunk_rows)
    torch.testing.assert_close(output.logprobs, expected.log_prob(targets), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.entropy, expected.entropy(), rtol=1e-5, atol=1e-5)


def test_statistics_of_bfloat16_are_float32():
    hidden, weight = torch.randn(3, 4).bfloat16(), torch.randn(5, 4).bfloat16()
    output = token_logprobs(hidden, weight, torch.tensor([0, 1, 2]))
    assert output.logprobs.dtype == output.entropy.dtype == torch.float32


@pytest.mark.parametrize("bias", [None, torch.nn.Parameter(torch.randn(5))])
def test_the_module_owns_its_parameters_under_their_usual_names(bias):
    head = Head(torch.nn.Parameter(torch.randn(5, 4)), bias)
    assert list(dict(head.named_parameters())) == ["weight", "bias"][: 1 if bias is None else 2]
    assert not head(torch.randn(2, 4), torch.tensor([0, 1]), 1.0).logprobs.requires_grad


# Triton


@pytest.mark.slow
def test_the_triton_kernels_equal_their_plain_twin():
    """In a process of its own: Triton decides when it is first imported whether to interpret."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/interpreted_kernels.py"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=HANGS)
    assert result.returncode == 0, result.stdout[-3000:]
    assert " passed" in result.stdout


def test_the_gradient_is_given_once(case):
    """It is scaled in place: a second backward of the same graph must not give it scaled twice."""
    hidden, weight, targets, objective = case
    config = config_of("grpo")
    loss = head_loss(hidden, weight, targets, 0.7, replace(objective, config=config)).loss
    (3 * loss).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
