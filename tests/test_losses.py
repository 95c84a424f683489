import math
from dataclasses import replace

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from membuilder.config import load
from membuilder.errors import ConfigError
from membuilder.plugins import load_function
from tests.sequences import sequence
from trainer.advantages import StdScale
from trainer.batching.packing import Share, TrainSequence, build_tree, pack
from trainer.configs import Aggregation, KLEstimator, LossConfig
from trainer.experience.training_batch import Batch
from trainer.losses import (
    LOSSES,
    LossInputs,
    adrpo,
    cispo,
    dapo,
    grpo,
    gspo,
    mismatch_correction,
    needs_whole_sequences,
    regularizer,
    reinforce,
    resolve_loss,
)
from trainer.model.policy import Policy
from trainer.optimizer_step import Update, largest_norm, make_objective, with_proximal
from trainer.rl_config import RLConfig

NO_KL = LossConfig(kl_coef=0, clip=0.2)


def inputs_of(
    ratio=1.0,
    *,
    advantage=1.0,
    weight=1.0,
    mismatch=1.0,
    ref_minus_trainer: float | None = None,
    entropy: float = 0.0,
    truncated=0.0,
    sequence: list[int] | None = None,
) -> LossInputs:
    """One token per entry of `ratio` (trainer / behaviour); `mismatch` is behaviour / rollout."""
    ratio = torch.as_tensor(ratio, dtype=torch.float64).reshape(-1)
    behaviour = torch.full_like(ratio, -1.0)
    trainer = (behaviour + ratio.log()).requires_grad_()
    return LossInputs(
        trainer_logprobs=trainer,
        entropy=torch.full_like(ratio, entropy),
        proximal_logprobs=behaviour,
        rollout_logprobs=behaviour - torch.as_tensor(mismatch, dtype=torch.float64).log(),
        ref_logprobs=None if ref_minus_trainer is None else trainer.detach() + ref_minus_trainer,
        advantage=torch.as_tensor(advantage, dtype=torch.float64).expand_as(ratio),
        weight=torch.as_tensor(weight, dtype=torch.float64).expand_as(ratio),
        truncated=torch.as_tensor(truncated, dtype=torch.float64).expand_as(ratio),
        sequence=torch.arange(len(ratio)) if sequence is None else torch.tensor(sequence),
    )


def value(loss, inputs: LossInputs, config: LossConfig = NO_KL) -> float:
    return loss(inputs, config)[0].item()


def slope(loss, inputs: LossInputs, config: LossConfig = NO_KL) -> float:
    """Derivative of the loss by the trainer's log-prob."""
    return torch.autograd.grad(loss(inputs, config)[0].sum(), inputs.trainer_logprobs)[0].item()


# clipped objective


@pytest.mark.parametrize(
    "ratio, advantage, loss, derivative",
    [
        (1.0, 2, -2.0, -2.0),
        (1.1, 2, -2.2, -2.2),
        (1.5, 2, -2.4, 0.0),  # clipped at 1.2: no reason to go further up
        (0.5, 2, -1.0, -1.0),  # below the region but the advantage still pulls up
        (1.0, -2, 2.0, 2.0),
        (0.5, -2, 1.6, 0.0),  # clipped at 0.8
        (1.5, -2, 3.0, 3.0),  # a penalty is never clipped above
        (1.5, 0, 0.0, 0.0),
    ],
)
@pytest.mark.parametrize("loss_function", [adrpo, grpo])
def test_clipped_objective(loss_function, ratio, advantage, loss, derivative):
    assert value(loss_function, inputs_of(ratio, advantage=advantage)) == pytest.approx(loss)
    assert slope(loss_function, inputs_of(ratio, advantage=advantage)) == pytest.approx(derivative)


def test_loss_is_per_token():
    loss, metrics = adrpo(inputs_of([1.0, 1.5, 0.5], advantage=[1.0, 1.0, -1.0]), NO_KL)
    assert loss.tolist() == pytest.approx([-1.0, -1.2, 0.8])
    assert metrics["clip_ratio/mean"].tolist() == [0, 1, 1]
    assert not metrics["clip_ratio/mean"].requires_grad


@pytest.mark.parametrize("advantage", [3.0, -3.0])
def test_first_update_has_ratio_one_and_the_plain_policy_gradient(advantage):
    config = LossConfig(kl_coef=0, clip=0.01)  # even a narrow region does not clip it
    inputs = inputs_of(1.0, advantage=advantage)
    assert value(adrpo, inputs, config) == pytest.approx(-advantage)
    assert slope(adrpo, inputs, config) == pytest.approx(-advantage)
    assert adrpo(inputs, config)[1]["clip_ratio/mean"].item() == 0


def test_a_far_ratio_stays_finite():
    far = replace(inputs_of(1.0, advantage=-1), proximal_logprobs=torch.tensor([-500.0], dtype=torch.float64))
    assert value(adrpo, far) == pytest.approx(math.exp(20))


# attribution


@pytest.mark.parametrize(
    "ratio, advantage, loss, derivative",
    [
        (1.0, 2, -8.0, -8.0),
        (1.1, 2, -8.8, -8.8),
        (1.5, 2, -9.6, 0.0),  # 4 x 1.2 x 2
        (0.5, 2, -4.0, -4.0),
        (1.0, -2, 8.0, 8.0),
        (0.5, -2, 6.4, 0.0),  # 4 x 0.8 x 2
        (1.5, -2, 12.0, 12.0),
    ],
)
def test_weight_scales_both_sides_of_the_clip(ratio, advantage, loss, derivative):
    """Weighting the unclipped side alone gives min(4 r A, clip(r) A): -2, -2.2 and -2.4 in the first three rows, so
    rewards would not be boosted while penalties would."""
    inputs = inputs_of(ratio, advantage=advantage, weight=4)
    assert value(adrpo, inputs) == pytest.approx(loss)
    assert slope(adrpo, inputs) == pytest.approx(derivative)


@pytest.mark.parametrize("ratio", [0.5, 0.9, 1.0, 1.1, 1.5])
def test_rewards_and_penalties_are_boosted_alike(ratio):
    for advantage in (1.0, -1.0):
        plain = value(adrpo, inputs_of(ratio, advantage=advantage))
        assert value(adrpo, inputs_of(ratio, advantage=advantage, weight=4)) == pytest.approx(4 * plain)


def test_weight_below_one_damps():
    assert value(adrpo, inputs_of(1.5, advantage=2, weight=0.5)) == pytest.approx(-1.2)


def test_grpo_ignores_the_weight():
    assert value(grpo, inputs_of(1.1, advantage=2, weight=4)) == pytest.approx(-2.2)


def test_weight_leaves_the_penalty_alone():
    inputs = inputs_of(1.0, advantage=0, weight=4, ref_minus_trainer=math.log(2))
    assert value(adrpo, inputs, LossConfig(kl_coef=1)) == pytest.approx(1 - math.log(2))


# penalty


@pytest.mark.parametrize(
    "difference, k3", [(0.0, 0.0), (math.log(2), 0.306853), (-math.log(2), 0.193147), (1.0, 0.718282), (-1.0, 0.367879)]
)
def test_k3(difference, k3):
    inputs = inputs_of(1.0, advantage=0, ref_minus_trainer=difference)
    loss, metrics = adrpo(inputs, LossConfig(kl_coef=0.5))
    assert metrics["kl"].item() == pytest.approx(k3, abs=1e-6)
    assert loss.item() == pytest.approx(0.5 * k3, abs=1e-6)
    assert not metrics["kl"].requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("largest", [30.0, 1e-3])  # near 0, exp(d) - d - 1 in float32 is all rounding
def test_k3_is_never_negative(dtype, largest):
    trainer = zeros = torch.zeros(2001, dtype=dtype)
    inputs = LossInputs(
        trainer_logprobs=trainer,
        entropy=zeros,
        truncated=zeros,
        sequence=torch.arange(2001),
        proximal_logprobs=trainer,
        rollout_logprobs=trainer,
        ref_logprobs=torch.linspace(-largest, largest, 2001, dtype=dtype),
        advantage=zeros,
        weight=zeros,
    )
    assert adrpo(inputs, LossConfig())[1]["kl"].min() >= 0


@pytest.mark.parametrize("difference", [math.log(2), -math.log(2)])
def test_k3_pulls_towards_the_reference(difference):
    # d/dx (exp(ref - x) - (ref - x) - 1) = 1 - exp(ref - x)
    inputs = inputs_of(1.0, advantage=0, ref_minus_trainer=difference)
    assert slope(adrpo, inputs, LossConfig(kl_coef=1)) == pytest.approx(1 - math.exp(difference))


def test_penalty_is_added_to_the_policy_term():
    inputs = inputs_of(1.0, advantage=2, weight=4, ref_minus_trainer=math.log(2))
    assert value(adrpo, inputs, LossConfig(kl_coef=0.02)) == pytest.approx(-8 + 0.02 * (1 - math.log(2)))
    assert value(grpo, inputs, LossConfig(kl_coef=0.02)) == pytest.approx(-2 + 0.02 * (1 - math.log(2)))


def test_without_a_reference_there_is_no_penalty():
    loss, metrics = adrpo(inputs_of(1.0, advantage=2), LossConfig(kl_coef=0.02))
    assert loss.item() == -2 and "kl" not in metrics


# truncated importance sampling


@pytest.mark.parametrize("mismatch, factor", [(1.0, 1.0), (0.5, 0.5), (1.9, 1.9), (2.0, 2.0), (8.0, 2.0)])
def test_importance_weight_is_capped_above_only(mismatch, factor):
    config = LossConfig(kl_coef=0, tis_cap=2.0)
    for advantage in (1.0, -1.0):
        inputs = inputs_of(1.0, advantage=advantage, weight=4, mismatch=mismatch)
        loss, metrics = adrpo(inputs, config)
        assert loss.item() == pytest.approx(-4 * factor * advantage)
        assert slope(adrpo, inputs, config) == pytest.approx(-4 * factor * advantage)
        assert metrics["sampling/importance_sampling_ratio/mean"].item() == pytest.approx(mismatch)


def test_importance_weight_leaves_the_penalty_alone():
    inputs = inputs_of(1.0, advantage=0, mismatch=2.0, ref_minus_trainer=1.0)
    assert value(adrpo, inputs, LossConfig(kl_coef=1, tis_cap=3)) == pytest.approx(math.e - 2)


def test_no_cap_is_no_correction():
    loss, metrics = adrpo(inputs_of(1.0, advantage=1, mismatch=8.0), NO_KL)
    assert loss.item() == -1 and list(metrics) == ["clip_ratio/mean"]


def test_no_gradient_reaches_the_engines_logprobs():
    inputs = inputs_of(1.1, advantage=1, mismatch=1.5)
    rollout = inputs.rollout_logprobs.requires_grad_()
    loss, _ = adrpo(inputs, LossConfig(kl_coef=0, tis_cap=2))
    assert torch.autograd.grad(loss.sum(), rollout, allow_unused=True) == (None,)


def test_a_completion_sampled_by_another_distribution_is_masked_whole():
    """Geometric means 2 and sqrt(2 x 0.5) = 1; a product would have masked both."""
    config = LossConfig(kl_coef=0, sequence_mask=[0.9, 1.1])
    inputs = inputs_of([1.0] * 4, advantage=1, mismatch=[2.0, 2.0, 2.0, 0.5], sequence=[0, 0, 1, 1])
    loss, metrics = adrpo(inputs, config)
    assert loss.tolist() == [0, 0, -1, -1]
    assert metrics["sampling/sequence_masked/mean"].tolist() == [1, 1, 0, 0]


def test_losses_change_nothing_they_were_given():
    """Metrics come back from every part; none is written into a dict of the caller's."""
    inputs = inputs_of([1.1, 0.9], advantage=1, mismatch=1.5, ref_minus_trainer=0.5, sequence=[0, 0])
    config = LossConfig(kl_coef=0.1, tis_cap=2.0, sequence_mask=[0.5, 2.0])
    before = inputs.columns()
    assert set(mismatch_correction(inputs, config)[1]) == {
        "sampling/importance_sampling_ratio/mean",
        "sampling/sequence_masked/mean",
    }
    assert set(regularizer(inputs, config)[1]) == {"kl"}
    for loss in LOSSES.values():
        loss(inputs, config)
    assert all(inputs.columns()[name] is column for name, column in before.items())


# the other losses


def test_upper_clip_of_its_own():
    config = LossConfig(kl_coef=0, clip=0.2, clip_high=0.28)
    assert value(grpo, inputs_of(1.5, advantage=1), config) == pytest.approx(-1.28)
    assert value(grpo, inputs_of(0.5, advantage=-1), config) == pytest.approx(0.8)


@pytest.mark.parametrize(
    "ratio, advantage, expected, gradient",
    [(2.0, -1, 2.0, 2.0), (9.0, -1, 3.0, 0.0), (9.0, 1, -1.2, 0.0), (0.1, -1, 0.8, 0.0), (0.1, 1, -0.1, -0.1)],
)
def test_dual_clip_bounds_what_a_penalty_can_cost(ratio, advantage, expected, gradient):
    """Only a ratio above 3 with a negative advantage is changed: it costs 3 and pulls no more."""
    config = LossConfig(kl_coef=0, dual_clip=3.0)
    inputs = inputs_of(ratio, advantage=advantage)
    assert value(grpo, inputs, config) == pytest.approx(expected)
    assert slope(grpo, inputs, config) == pytest.approx(gradient)
    assert grpo(inputs, config)[1]["clip_ratio/dual"].tolist() == [float(ratio > 3 and advantage < 0)]


def test_dapo_masks_cut_completions_and_nothing_else():
    config = LossConfig(name="dapo", kl_coef=0, clip_high=0.28)
    inputs = inputs_of([1.0, 1.0, 1.5], advantage=2, truncated=[1.0, 0.0, 0.0])
    loss, metrics = dapo(inputs, config)
    assert loss.tolist() == pytest.approx([0, -2, -2.56])
    assert metrics["overlong_masked/mean"].tolist() == [1, 0, 0]


def test_dr_grpo_is_a_preset_of_two_keys():
    config = load(RLConfig, None, ["loss.name=dr_grpo", "loss.kl_coef=0"])
    assert (config.loss.name, config.loss.aggregation, config.loss.kl_coef) == ("grpo", Aggregation.CONSTANT, 0)
    assert config.advantage_std is StdScale.NONE
    assert load(RLConfig, None, ["loss.name=grpo"]).advantage_std is StdScale.GROUP
    for own in ("loss.aggregation=sequence", "advantage_std=batch"):
        with pytest.raises(ConfigError, match="dr_grpo sets loss.aggregation=constant and advantage_std=none"):
            load(RLConfig, None, ["loss.name=dr_grpo", own])


def test_gspo_clips_by_the_completions_geometric_mean_and_reaches_every_token():
    """Ratios 2 and 0.5 average to 1: nothing is clipped, though either token alone would be."""
    inputs = inputs_of([2.0, 0.5, 2.0], advantage=1, sequence=[0, 0, 1])
    loss, metrics = gspo(inputs, NO_KL)
    assert loss.tolist() == pytest.approx([-1, -1, -1.2])
    assert metrics["clip_ratio/mean"].tolist() == [0, 0, 1]
    (gradient,) = torch.autograd.grad(loss.sum(), inputs.trainer_logprobs)
    assert gradient.tolist() == pytest.approx([-1, -1, 0])


@pytest.mark.parametrize("ratio, factor", [(1.0, 1.0), (1.1, 1.1), (3.0, 1.2), (0.1, 0.8)])
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_cispo_weighs_by_the_clipped_ratio_and_never_stops_a_gradient(ratio, factor, advantage):
    inputs = inputs_of(ratio, advantage=advantage)
    assert value(cispo, inputs) == pytest.approx(-factor * advantage * inputs.trainer_logprobs.item())
    assert slope(cispo, inputs) == pytest.approx(-factor * advantage)


def test_reinforce_is_the_score_times_the_advantage():
    inputs = inputs_of(1.5, advantage=-2)
    assert slope(reinforce, inputs) == pytest.approx(2)
    assert slope(reinforce, inputs_of(1.0, advantage=1, mismatch=3.0), LossConfig(kl_coef=0, tis_cap=2)) == -2


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_every_loss_has_the_policy_gradient_at_the_start(loss):
    config = LossConfig(kl_coef=0, clip_high=0.28)
    assert slope(loss, inputs_of(1.0, advantage=-3), config) == pytest.approx(3)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_every_loss_has_the_entropy_bonus(loss):
    config = LossConfig(kl_coef=0, entropy_coef=0.1, clip_high=0.28)
    assert value(loss, inputs_of(1.0, advantage=0, entropy=2.0), config) == pytest.approx(-0.2)


@pytest.mark.parametrize(
    "estimator, divergence, derivative",
    [("k1", -0.5, 1.0), ("k2", 0.125, -0.5), ("k3", math.exp(0.5) - 1.5, 1 - math.exp(0.5))],
)
def test_kl_estimators(estimator, divergence, derivative):
    config = LossConfig(kl_coef=1, kl_estimator=KLEstimator(estimator))
    inputs = inputs_of(1.0, advantage=0, ref_minus_trainer=0.5)
    loss, metrics = adrpo(inputs, config)
    assert loss.item() == pytest.approx(divergence) and metrics["kl"].item() == pytest.approx(divergence)
    assert slope(adrpo, inputs, config) == pytest.approx(derivative)


def test_only_losses_that_mix_tokens_need_whole_sequences():
    assert [name for name, loss in LOSSES.items() if needs_whole_sequences(loss, NO_KL)] == ["gspo"]
    assert needs_whole_sequences(adrpo, LossConfig(sequence_mask=[0.5, 2.0]))
    assert needs_whole_sequences(lambda inputs, config: None, NO_KL), "a loss of one's own may mix tokens"


NO_COUNTS = {"num_packed_tokens": 0, "num_repeated_tokens": 0}


@pytest.mark.parametrize(
    "aggregation, scale",
    [
        (Aggregation.TOKEN, [1 / 12] * 3),
        (Aggregation.SEQUENCE, [1 / 8, 1 / 8, 1 / 4]),  # lengths 2 and 1, four completions in all
        (Aggregation.CONSTANT, [1 / 40] * 3),
    ],
)
def test_aggregation(aggregation, scale):
    update = Update(batches=[], num_real=0, num_tokens=12, num_sequences=4, ids=[], **NO_COUNTS)
    found = update.token_scale(aggregation, torch.tensor([0, 0, 1]), max_tokens=10)
    assert found.tolist() == pytest.approx(scale)


# what the loop hands to a loss


def tiny_policy(seed: int) -> Policy:
    torch.manual_seed(seed)
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8)
    return Policy(Qwen3ForCausalLM(Qwen3Config(vocab_size=16, num_key_value_heads=2, **sizes)))


def test_the_objective_of_a_batch_knows_everything_but_the_policy():
    values = {"rollout_logprobs": (-1.0, -2.0), "advantage": (1.0, 1.0), "weight": (4.0, 4.0)}
    packed = pack([build_tree([sequence((1, 2), (3, 4), **values)])])
    reference = tiny_policy(1)
    objective = make_objective(adrpo, LossConfig(), packed, torch.tensor([0.5, 0.5]), reference, temperature=1.0)
    assert objective.values.rollout_logprobs.tolist() == [-1, -2] and objective.values.weight.tolist() == [4, 4]
    torch.testing.assert_close(objective.ref_logprobs, reference(packed).logprobs)
    assert not objective.ref_logprobs.requires_grad

    logprobs = torch.tensor([-0.5, -0.7], requires_grad=True)
    inputs = objective.inputs(logprobs, torch.zeros(2), slice(0, 2))
    assert inputs.trainer_logprobs is logprobs
    assert torch.equal(inputs.proximal_logprobs, logprobs) and not inputs.proximal_logprobs.requires_grad
    assert objective.inputs(logprobs[1:], torch.zeros(1), slice(1, 2)).rollout_logprobs.tolist() == [-2]


def test_several_updates_share_the_behaviour_of_the_first():
    packed = pack([build_tree([sequence((1, 2), (3, 4), advantage=(0.0, 0.0))])])
    policy = tiny_policy(0)
    before = policy(packed).logprobs
    update = Update(batches=[packed], num_real=1, num_tokens=2, num_sequences=1, ids=[""], **NO_COUNTS)
    (filled,) = with_proximal(policy, [update], temperature=1.0)
    assert packed.values.proximal_logprobs is None, "what was given is left as it was"
    with torch.no_grad():
        policy.model.get_input_embeddings().weight.mul_(2)
    objective = make_objective(adrpo, NO_KL, filled.batches[0], torch.ones(2), None, temperature=1.0)
    assert torch.equal(objective.values.proximal_logprobs, before) and not torch.equal(policy(packed).logprobs, before)


def test_the_largest_norm_is_that_of_the_updates_that_were_taken():
    assert largest_norm([0.5, 2.0, 1.0]) == 2.0
    assert largest_norm([math.nan, 0.5, math.inf]) == 0.5
    assert math.isnan(largest_norm([math.nan])) and largest_norm([]) == 0.0


def test_shares_deal_every_tree_once():
    trees = [
        build_tree([TrainSequence(prompt_token_ids=(1,), completion_token_ids=(2,) * length)]) for length in range(1, 8)
    ]
    groups = [Share.of([tree]) for tree in trees]
    dealt = Batch(groups=groups, advantages=[], zero_std_share=0.0).shares(3)
    assert sorted(map(id, trees)) == sorted(id(tree) for share in dealt for tree in share.trees)
    assert [share.num_run_tokens for share in dealt] == [share.num_tokens for share in dealt] == [12, 9, 7]
    few = Batch(groups=groups[:2], advantages=[], zero_std_share=0.0)
    assert len(few.shares(3)) == 2, "no update without samples"


# configuration


@pytest.mark.parametrize(
    "wrong, problem",
    [
        ({"clip": 0}, r"clip=0 does not fit; expected float \(above 0, below 1\)"),
        ({"dual_clip": 1.2}, "dual_clip must lie above the trust region's end, 1.2"),
        ({"sequence_mask": [0.9]}, "sequence_mask needs"),
        ({"sequence_mask": [1.1, 1.2]}, "sequence_mask needs"),
        ({"name": "dapo"}, "dapo needs clip_high"),
    ],
    ids=str,
)
def test_config_out_of_range(wrong, problem):
    with pytest.raises(ValueError, match=problem):
        LossConfig(**wrong)


def test_known_losses():
    assert resolve_loss("adrpo") is adrpo and resolve_loss("gspo") is gspo
    assert sorted(LOSSES) == ["adrpo", "cispo", "dapo", "grpo", "gspo", "reinforce"]


@pytest.mark.parametrize("name", ["ppo", "clipped_objective", "ADRPO", ""])
def test_unknown_loss_names_the_known_ones(name):
    with pytest.raises(ConfigError, match=rf"loss\.name: '{name}' is none of \['adrpo', .*'grpo', "):
        resolve_loss(name)


OWN_LOSS = """
from trainer.losses import adrpo

SCALE = 3


def tripled(inputs, config):
    loss, metrics = adrpo(inputs, config)
    return SCALE * loss, metrics
"""


def test_a_loss_of_ones_own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OWN_LOSS)
    assert value(resolve_loss(f"{path}:tripled"), inputs_of(1.0, advantage=2)) == -6


def test_own_file_may_define_dataclasses(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n\n"
        "@dataclass\nclass Options:\n    scale: float = 2.0\n\n\ndef mine():\n    return Options().scale\n"
    )
    assert load_function(f"{path}:mine")() == 2


@pytest.mark.parametrize(
    "name, problem",
    [
        ("{folder}/absent.py:tripled", "no file is at '{folder}/absent.py'"),
        ("{folder}:tripled", "no file is at '{folder}'"),
        ("{folder}/mine.py:", "expected path/to/file.py:function"),
        ("{folder}/mine.py:double", "'{folder}/mine.py' defines no function 'double'"),
        ("{folder}/mine.py:SCALE", "defines no function 'SCALE'"),
        ("{folder}/notes.txt:tripled", "'{folder}/notes.txt' is not a Python file"),
    ],
)
def test_wrong_path_says_what_is_wrong(tmp_path, name, problem):
    (tmp_path / "mine.py").write_text(OWN_LOSS)
    (tmp_path / "notes.txt").write_text("no code")
    with pytest.raises(ConfigError) as caught:
        resolve_loss(name.format(folder=tmp_path))
    assert problem.format(folder=tmp_path) in str(caught.value)
