"""Checks, on fresh samples, that the trainer computes the log-probs that the engine sampled with.

Comparing the engine with the trainer catches stale weights, templates and temperatures. Comparing shared prompts with
dense copies catches an attention kernel or a model for which running the prompt once is not the same. Exchanging a
token catches targets that are shifted. All run in micro-batches like the learner's, so a check fits where a step fits.
All processes of a run call a check together, each with samples of its own.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from membuilder.errors import ParityError
from rollout.turns import Task
from trainer.batching.micro_batches import micro_batches
from trainer.batching.packing import Node, TrainSequence, as_run, build_tree, dense_tree, pack_on
from trainer.distributed.process_group import World
from trainer.experience.collector import Collector
from trainer.experience.sample_checks import check_prompts
from trainer.experience.training_batch import prompt_experts, sampled_sequences
from trainer.model.policy import shares_prompts, windows
from trainer.rl_config import RLConfig

Groups = list[list[TrainSequence]]
ALONE = World()
NEXT_TOKEN, ENGINE_LOGPROBS, STEP_LOGPROBS, SHARED_PROMPTS = (
    "next_token", "engine_logprobs", "step_logprobs", "shared_prompts",
)  # fmt: skip
GAP = "sampling/logp_difference/mean"
NUM_EXCHANGED = 3
"""Other tokens that are put in one place, so that no two that happen to be as likely as each other decide."""
UNCHANGED = 1e-3
"""What an exchanged token may move before it, as a share of what it moves behind it, where a kernel is not exact."""


def check_parity(policy, collector: Collector, tasks: list[Task], config: RLConfig, seed: int) -> None:
    """Sample the tasks and run all checks on what comes; raises ParityError, which names the check."""
    temperature, world, max_tokens = config.sampling.temperature, collector.world, config.max_tokens
    groups = sample_sequences(collector, tasks, temperature, seed)
    check_next_token(policy, groups, world)
    check_engine(policy, groups, temperature, config.parity_bound, max_tokens, world)
    check_shared(policy, groups, temperature, config.shared_bound, max_tokens, world)


def sample_sequences(collector: Collector, tasks: list[Task], temperature: float, seed: int) -> Groups:
    """Two rollouts of each task from the uncut distribution, whose prompts are checked; too long ones are left out."""
    sampling = replace(collector.sampling, temperature=temperature, top_p=1.0)
    groups = collector.sample(tasks, sampling, 2, seed)
    check_prompts(collector.tokenizer, collector.scheme, tasks, groups)
    found = []
    for group in groups:
        samples = [sample for rollout in group.rollouts for sample in rollout.samples.values() if sample.completion]
        of_prompts = prompt_experts(group.rollouts)
        found.append([each for sample in samples for each in sampled_sequences(sample, of_prompts=of_prompts)])
    return [sequences for sequences in found if sequences]


def check_step(metrics: Mapping[str, float], config: RLConfig, step: int) -> None:
    """Raise ParityError where the log-probs that a step learned from are not those the engine reported.

    An engine that samples with top_p below 1 reports up to -log(top_p) more than the trainer computes.
    """
    allowed = config.parity_bound - math.log(config.sampling.top_p)
    if metrics.get(GAP, 0.0) > allowed:  # nan is none of this check's: its update is left out (max_skipped)
        raise ParityError(
            STEP_LOGPROBS,
            f"engine and trainer differ by {metrics[GAP]:.2g} nats a token in step {step} (at most {allowed:.2g}): the "
            "engine holds other weights, or template, temperature or dtype differ. That step is not saved: mend it "
            "and go on with resume=auto. Raise parity_bound only if the gap is the known rounding of a low-precision "
            "dtype",
        )


@torch.no_grad()
def check_next_token(policy, groups: Groups, world: World = ALONE) -> None:
    """Raise ParityError where a token is not predicted from the tokens before it, and from all of them.

    One token of the shortest completion is exchanged: the distributions up to its own must stay, those behind it must
    change, and its own log-prob must be another.
    """
    fitting = [sequence for group in groups for sequence in group if len(sequence.completion_token_ids) > 1]
    sequences = _exchanged(min(fitting, key=_length)) if fitting else []
    # one a micro-batch: computed in the same shapes, what does not depend on the token is the same to the last bit
    outputs = _outputs(policy, map(dense_tree, sequences), sequences, 1.0, 1, world)
    if len(sequences) < 2:
        return
    outputs, place = outputs.view(2, len(sequences), -1), _place(sequences[0])
    logprobs, entropies = (outputs[:, 1:] - outputs[:, :1]).abs().amax(1)  # (C,) each: how far an exchange moved them
    before = max(*logprobs[:place].tolist(), *entropies[: place + 1].tolist(), 0.0)
    own, behind = float(logprobs[place]), max(float(logprobs[place + 1]), float(entropies[place + 1]))
    if not (own > 0 and behind > 0 and before <= UNCHANGED * behind):
        raise ParityError(
            NEXT_TOKEN,
            f"token {place} of a completion was exchanged: log-probs and entropies before it moved by {before:.2g}, "
            f"behind it by {behind:.2g}, its own log-prob by {own:.2g}. Targets are shifted against the hidden states "
            "that predict them (trainer/batching/packing.py), or the model ignores or foresees its input. Nothing was "
            "trained",
        )


def _place(sequence: TrainSequence) -> int:
    """Return the position in the completion whose token is exchanged; another one stands behind it."""
    return (len(sequence.completion_token_ids) - 1) // 2


def _length(sequence: TrainSequence) -> int:
    return len(sequence.prompt_token_ids) + len(sequence.completion_token_ids)


def _exchanged(sequence: TrainSequence) -> list[TrainSequence]:
    """Return the sequence, and copies in which another of its tokens stands in one place of the completion."""
    sequence = replace(sequence, routed_experts=())  # of tokens that the engine did not read nothing is known
    place, completion = _place(sequence), sequence.completion_token_ids
    others = dict.fromkeys(token for token in (*sequence.prompt_token_ids, *completion) if token != completion[place])
    return [sequence] + [
        replace(sequence, completion_token_ids=(*completion[:place], other, *completion[place + 1 :]))
        for other in list(others)[:NUM_EXCHANGED]
    ]


@torch.no_grad()
def check_engine(
    policy, groups: Groups, temperature: float, bound: float, max_tokens: int, world: World = ALONE
) -> float | None:
    """Mean |trainer - engine| log-prob in nats, None if nothing was sampled; ParityError above `bound`."""
    sequences = [sequence for group in groups for sequence in group]
    expected = torch.tensor([value for sequence in sequences for value in sequence.values.rollout_logprobs])
    found = _logprobs(policy, map(build_tree, groups), sequences, temperature, max_tokens, world)
    problem = "engine and trainer differ by {gap}: the engine holds other weights, or template, temperature or dtype "
    return _mean_gap(ENGINE_LOGPROBS, found, expected, bound, "parity_bound", problem + "differ")


@torch.no_grad()
def check_shared(
    policy, groups: Groups, temperature: float, bound: float, max_tokens: int, world: World = ALONE
) -> float | None:
    """Mean |packed trees - dense copies| log-prob in nats, None if nothing was sampled; ParityError above `bound`."""
    sequences = [sequence for group in groups for sequence in group]
    found, expected = (
        _logprobs(policy, trees, sequences, temperature, max_tokens, world)
        for trees in (map(build_tree, groups), map(dense_tree, sequences))
    )
    problem = "shared prompts give log-probs that differ from dense copies by {gap}: this model or attention kernel "
    return _mean_gap(SHARED_PROMPTS, found, expected, bound, "shared_bound", problem + "must not share prompts")


def _logprobs(
    policy, trees: Iterable[Node], sequences: Sequence[TrainSequence], temperature: float, max_tokens: int, world: World
) -> torch.Tensor:
    return _outputs(policy, trees, sequences, temperature, max_tokens, world)[0]


def _outputs(
    policy, trees: Iterable[Node], sequences: Sequence[TrainSequence], temperature: float, max_tokens: int, world: World
) -> torch.Tensor:
    """Return (2, M), log-probs and entropies of the trees' tokens on the CPU, in the order of `sequences`, their own.

    Processes run equally many micro-batches, so that their collectives meet.
    """
    policy.eval()
    device = next(policy.parameters()).device
    batches = micro_batches(as_run(trees, shares_prompts(policy)), max_tokens)
    spare = [dense_tree(TrainSequence(prompt_token_ids=(0,), completion_token_ids=(0,)))]
    found: dict[int, torch.Tensor] = {}  # by identity: packing and micro-batches change the order
    for number in range(max(world.gather(len(batches)))):
        packed = pack_on(batches[number] if number < len(batches) else spare, device, windows(policy))
        output = policy(packed, temperature)
        columns = torch.stack([output.logprobs, output.entropy]).cpu()
        lengths = [len(sequence.completion_token_ids) for sequence in packed.sequences]
        found |= zip(map(id, packed.sequences), columns.split(lengths, dim=1), strict=True)
    return torch.cat([torch.empty(2, 0), *(found[id(sequence)] for sequence in sequences)], dim=1)


def _mean_gap(
    check: str, found: torch.Tensor, expected: torch.Tensor, bound: float, key: str, problem: str
) -> float | None:
    gap = (found - expected).abs()
    if not len(gap):
        return None
    mean = float(gap.mean())
    if not mean <= bound:
        what = problem.format(gap=f"{mean:.2g} nats a token (bound {bound}, worst {float(gap.max()):.2g})")
        raise ParityError(
            check,
            f"{what}. Nothing was trained on these samples. Raise {key} only if the gap is the known rounding of a "
            "low-precision dtype.",
        )
    return mean
