"""Our losses with silent groups, from rewards to gradients, beside TRL's own (tests/benchmarks/trl_losses.py)."""

import json
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from membuilder.types import Bank, Session
from reward.rollouts import ScoredGroup
from rollout.types import Completion, Rollout, Sample
from tests.benchmarks.trl_losses import CLIP, MAX_TOKENS, REWARDS, numbers
from trainer.advantages import StdScale
from trainer.batching.loss_rows import Objective
from trainer.configs import Aggregation, LossConfig
from trainer.distributed.process_group import World
from trainer.experience.training_batch import make_batch
from trainer.losses import grpo, has_silent_terms
from trainer.optimizer_step import make_update

RESULTS = Path(__file__).parent / "benchmarks" / "results" / "trl_losses.json"
ROWS = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
ROLE = "writer"


def scored(rewards: list[list[float]], mask: torch.Tensor) -> list[ScoredGroup]:
    """Groups in which completion b of the step is the tokens 100 b, 100 b + 1, ..."""
    groups, number = [], 0
    for name, group in enumerate(rewards):
        rollouts = []
        for _ in group:
            ids = tuple(range(100 * number, 100 * number + int(mask[number].sum())))
            completion = Completion(token_ids=ids, rollout_logprobs=(0.0,) * len(ids), finished=True, weight_version=0)
            sample = Sample(prompt_token_ids=(9, name), completion=completion, text="", written=(), failure=None)
            rollouts.append(Rollout(samples={ROLE: sample}, bank=Bank()))
            number += 1
        scores = tuple(SimpleNamespace(reward={ROLE: reward}, weights={ROLE: 1.0}) for reward in group)
        session = Session(id="s", index=0, timestamp=datetime(2024, 1, 1), turns=())
        groups.append(
            ScoredGroup(
                id=str(name),
                dialogue_id="d",
                session=session,
                rollouts=tuple(rollouts),
                scores=scores,
                expert_tokens={},
            )
        )
    return groups


@pytest.mark.parametrize("max_tokens", [10_000, 16], ids=["one_micro_batch", "several"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: "{rewards}-{aggregation}-{beta}-{entropy_coef}".format(**row))
def test_losses_and_gradients_are_trls(row, max_tokens):
    known = numbers(REWARDS[row["rewards"]])
    config = LossConfig(
        name="grpo",
        aggregation=Aggregation(row["aggregation"]),
        clip=CLIP,
        kl_coef=row["beta"],
        entropy_coef=row["entropy_coef"],
    )
    groups = scored(REWARDS[row["rewards"]], known["mask"])
    batch = make_batch(groups, [ROLE], StdScale.GROUP_SAMPLE, has_silent_terms(grpo, config))
    found = [advantage for group in batch.advantages for advantage in group[ROLE]]
    assert found == pytest.approx(row["advantages"], abs=1e-12)
    (share,) = batch.shares(1)
    if config.kl_coef == 0:
        assert share.num_run_tokens < share.num_tokens or row["rewards"] == "all_groups_carry"

    real = known["mask"].bool()
    logprobs, entropy = (known[name].clone().requires_grad_() for name in ("logprobs", "entropy"))
    total = torch.zeros((), dtype=torch.float64)
    update = make_update(share, max_tokens, World(), torch.device("cpu"))
    assert (len(update.batches) > 1) == (max_tokens == 16)
    for packed, is_real, _ in update.weighted():
        at = (packed.targets // 100, packed.targets % 100)  # of each row
        scale = update.token_scale(config.aggregation, packed.sequence, MAX_TOKENS).double() * is_real
        values = packed.values
        values = type(values)(**values.columns() | {"proximal_logprobs": known["proximal"][at]})
        ref = known["reference"][at] if config.kl_coef else None
        objective = Objective(
            loss=grpo, config=config, scale=scale, values=values, ref_logprobs=ref, sequence=packed.sequence
        )
        total = total + objective(logprobs[at], entropy[at], slice(None))[0].sum()
    total.backward()
    assert total.item() == pytest.approx(row["loss"], rel=1e-6, abs=1e-8)
    assert logprobs.grad[real].tolist() == pytest.approx(row["by_logprob"], rel=1e-6, abs=1e-9)
    by_entropy = torch.zeros_like(entropy) if entropy.grad is None else entropy.grad
    assert by_entropy[real].tolist() == pytest.approx(row["by_entropy"], rel=1e-6, abs=1e-9)
