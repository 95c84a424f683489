"""SFT on packed rows: no sample sees another, whatever the packing, and the benchmark compares like with like."""

import random

import pytest
import torch

from tests.benchmarks import sft
from tests.benchmarks.sft_data import Shape, num_completion_tokens, num_real_tokens, sessions_of
from tests.test_packing import (
    assert_same_gradients,
    dense_rows,
    double_precision,  # noqa: F401 (a fixture, used by name)
    gradients,
    make_model,
    packed_copy,
    tokens,
)
from trainer.batching.attention_plan import padded_calls, varlen_calls
from trainer.batching.loss_rows import cross_entropy
from trainer.batching.micro_batches import micro_batches
from trainer.batching.packing import Node, TrainSequence, build_tree, count_loss_tokens, dense_tree, pack
from trainer.model.head import LossOutput
from trainer.model.policy import Policy


def sample(prompt: tuple[int, ...], completion: tuple[int, ...]) -> TrainSequence:
    return TrainSequence(prompt_token_ids=prompt, completion_token_ids=completion)


def random_samples(number: int, seed: int = 1) -> list[TrainSequence]:
    source = random.Random(seed)
    return [sample(tokens(source, source.randint(1, 30)), tokens(source, source.randint(1, 9))) for _ in range(number)]


def supervised(policy: Policy, trees: list[Node], num_tokens: int, plan=padded_calls) -> LossOutput:
    """The forward of trainer/sft.py: cross-entropy over `num_tokens`, the tokens of the whole step."""
    batch = pack(trees, plan)
    return policy(batch, loss=cross_entropy(torch.ones(len(batch.targets)) / num_tokens))


def test_position_ids_restart_with_every_sample():
    batch = pack(
        [dense_tree(sample((5, 6, 7), (8, 9))), dense_tree(sample((5,), (6,))), dense_tree(sample((5, 6), (7,)))]
    )
    assert batch.token_ids.tolist() == [[5, 6, 7, 8, 5, 5, 6]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 0, 1]]
    assert batch.predict_from.tolist() == [2, 3, 4, 6]
    assert batch.targets.tolist() == [8, 9, 6, 7]
    assert batch.sequence.tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize("plan", [padded_calls, varlen_calls])
@pytest.mark.usefixtures("double_precision")
def test_packed_samples_have_the_loss_and_gradient_of_each_alone(plan):
    model, samples = make_model(), random_samples(7)
    num_tokens = 64  # stands in a float32 factor: a power of two is exact there
    alone = [dense_rows(model, each, temperature=1.0) for each in samples]
    expected_loss = -torch.cat(alone).sum() / num_tokens
    expected = gradients(model, expected_loss)

    policy = packed_copy(model)
    output = supervised(policy, [dense_tree(each) for each in samples], num_tokens, plan)
    assert (output.head.logprobs - torch.cat(alone)).abs().max() <= 1e-10
    assert (output.loss - expected_loss).abs() <= 1e-10
    assert_same_gradients(gradients(policy, output.loss), expected, relative=1e-10)


@pytest.mark.parametrize("plan", [padded_calls, varlen_calls])
def test_no_gradient_flows_into_another_sample(plan):
    policy = packed_copy(make_model(tied=False, dtype=torch.float32))
    mine, other = sample((1, 2, 3, 4), (5, 6, 7)), sample((11, 12, 13, 14), (15, 16, 17))
    batch = pack([dense_tree(other), dense_tree(mine), dense_tree(other)], plan)
    scale = (batch.sequence == 1).float() / 3  # only the sample in the middle carries loss
    policy(batch, loss=cross_entropy(scale)).loss.backward()
    embedding = policy.model.get_input_embeddings().weight.grad
    assert torch.count_nonzero(embedding[11:18]) == 0
    assert all(torch.count_nonzero(embedding[token]) for token in (1, 2, 3, 4, 5, 6))


@pytest.mark.parametrize("plan", [padded_calls, varlen_calls])
def test_changing_one_sample_leaves_the_others_as_they_are(plan):
    policy = packed_copy(make_model(dtype=torch.float32))
    first, last = sample((1, 2, 3), (4, 5)), sample((6, 7), (8, 9, 10))

    def logprobs(between: TrainSequence) -> torch.Tensor:
        return policy(pack([dense_tree(each) for each in (first, between, last)], plan)).logprobs

    before, after = (logprobs(sample((token, 21, 22), (23, 24))) for token in (20, 40))
    assert torch.equal(before[:2], after[:2]) and torch.equal(before[4:], after[4:])
    assert not torch.equal(before[2:4], after[2:4])


def test_any_split_and_order_gives_the_same_gradient():
    policy, samples = packed_copy(make_model(dtype=torch.float32)), random_samples(12)
    sessions = [samples[start : start + 4] for start in range(0, 12, 4)]  # share nothing, so a tree is four leaves
    dense = [dense_tree(each) for each in samples]
    num_tokens = sum(map(count_loss_tokens, dense))

    def summed(batches: list[list[Node]]) -> dict[str, torch.Tensor]:
        policy.zero_grad()
        for trees in batches:
            supervised(policy, trees, num_tokens).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in policy.named_parameters()}

    whole = summed([dense])
    norm = torch.cat([gradient.flatten() for gradient in whole.values()]).norm()
    splits = [micro_batches(dense, budget) for budget in (1, 60, 120)]
    assert len(splits[0]) == 12 > len(splits[1]) > len(splits[2]) > 1
    for split in (*splits, splits[1][::-1], [dense[::-1]], [[build_tree(session)] for session in sessions]):
        found = summed(split)
        gap = torch.cat([(found[name] - whole[name]).flatten() for name in whole]).norm()
        assert gap <= 1e-6 * norm


# the benchmark

SMALL = Shape(hidden=64, num_layers=1, vocab=64, num_steps=3, shortest=16, longest=48, max_tokens=100)


def test_sessions_of_the_benchmark_have_the_lengths_it_states():
    shape = Shape()
    steps = sessions_of(shape)
    sessions = [session for step in steps for session in step]
    sizes = [num_real_tokens([[each]]) for session in sessions for each in session]
    assert len(steps) == 20 and {len(session) for session in sessions} == {4}
    assert min(sizes) < 200 and 1000 < max(sizes) < 1300 * 1.1
    assert 0.05 < sum(map(num_completion_tokens, steps)) / sum(sizes) < 0.15
    packed = sum(build_tree(session).num_tokens for session in sessions)
    assert 0.4 < packed / sum(sizes) < 0.5  # 0.7 / 4 + 0.3, less the targets that are no inputs


@pytest.mark.parametrize("name", list(sft.IMPLEMENTATIONS))
def test_every_implementation_has_the_loss_curve_of_trl_train(name, trl_losses):
    steps = sessions_of(SMALL)
    run = sft.IMPLEMENTATIONS[name](SMALL, steps)
    for step in steps:
        run.step(step)
    assert run.losses == pytest.approx(trl_losses, abs=1e-4)
    assert trl_losses[0] - trl_losses[-1] > 0.01  # it learns: the optimizers take part


@pytest.fixture(scope="module")
def trl_losses() -> list[float]:
    """Of every step, as TRL's own training loop logs them: one sample at a time, in order."""
    pytest.importorskip("trl", reason="an optional rival (.[bench])")
    steps = sessions_of(SMALL)
    options = {"max_length": None, "per_device_train_batch_size": 1, "num_train_epochs": 1}
    trainer = sft.trl_trainer(SMALL, steps, gradient_accumulation_steps=8, **options)
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert len(losses) == SMALL.num_steps
    return losses
