"""What the expert did, as training samples: one packed tree per session, its roles sharing the dialogue."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from membuilder.errors import ConfigError
from membuilder.schemes.scheme import ProposesOthers, Scheme, Step, marks_of
from membuilder.trajectories.turns import LaterAnswer, answers
from membuilder.types import AgentUpdate
from rollout.tokens import encode_completion, encode_more, encode_prompt
from rollout.types import Completion
from trainer.batching.packing import Node, TrainSequence, sequences_of
from trainer.data.corpus import ExpertBuild
from trainer.data.truncation import LengthCounts, dialogue_span, fit, length
from trainer.sft_config import SFTConfig


def sft_trees(
    builds: Sequence[ExpertBuild], tokenizer: PreTrainedTokenizerBase, scheme: Scheme, config: SFTConfig
) -> tuple[list[Node], LengthCounts]:
    """Return the trees of all sessions, and what was done to samples longer than `config.max_length` tokens.

    A role whose update failed is not training data.
    """
    trees, counts, marks = [], LengthCounts(), marks_of(scheme)
    for build in builds:
        for step in build.steps:
            roles = [role for role in scheme.roles if role not in step.result.failures]
            asked = {role: scheme.ask(role, step.session, step.bank_before, step.shown) for role in roles}
            prompts = {role: encode_prompt(tokenizer, prompt) for role, prompt in asked.items()}
            sequences = [
                sequence
                for updates in _proposals(step, scheme)
                for role in roles
                for sequence in examples(tokenizer, prompts[role], *answers(scheme, role, updates[role], step), marks)
            ]
            long = any(length(sequence) > config.max_length for sequence in sequences)
            span = _dialogue(step, tokenizer, scheme) if long else range(0)
            session = f"{build.dialogue.id}/{step.session.index}"
            fitted, done = fit(sequences, span, config.max_length, config.over_long, session=session)
            trees += fitted
            counts += done
    return trees, counts


def _proposals(step: Step, scheme: Scheme) -> list[dict[str, AgentUpdate]]:
    others = isinstance(scheme, ProposesOthers)
    return [step.updates, *(scheme.other_proposals(step.session, step.bank_before, step.shown) if others else [])]


def split_sessions(trees: Sequence[Node], validation_share: float, seed: int) -> tuple[list[Node], list[Node]]:
    """(training, validation), apart by session: the trees of one session (same `id`) are all on one side.

    A session that counts several times (`data.repeat`) trains as often and is validated once.
    """
    sessions: dict[str, list[Node]] = defaultdict(list)
    for tree in trees:
        sessions[tree.id].append(tree)
    order = random.Random(seed).sample(list(sessions.values()), len(sessions))
    num_validation = max(1, round(validation_share * len(order)))
    if num_validation == len(order):
        raise ConfigError(f"validation_share={validation_share} of {len(order)} sessions leaves none to train on")
    training = [tree for session in order[num_validation:] for tree in session]
    return training, [
        tree
        for session in order[:num_validation]
        for number, tree in enumerate(session)
        if tree not in session[:number]
    ]


def smallest_group(trees: Sequence[Node]) -> list[list[TrainSequence]]:
    """Return the sequences of the smallest tree in which some share a prompt's start; none where nothing is shared."""
    sharing = [tree for tree in trees if len(sequences_of(tree)) > 1]
    return [sequences_of(min(sharing, key=lambda tree: tree.num_tokens))] if sharing else []


def examples(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    completion: str,
    later: Sequence[LaterAnswer],
    marks: Sequence[str],
) -> list[TrainSequence]:
    """Return the answers to imitate, each behind all that was said before; what a role is told carries no loss.

    `prompt` is token ids; `marks` are those of the scheme.
    """
    before, found = tuple(prompt), []
    for number, text in enumerate((completion, *(each.completion for each in later))):
        ids = tuple(encode_completion(tokenizer, text, marks))
        found.append(TrainSequence(prompt_token_ids=before, completion_token_ids=ids))
        if number < len(later):
            said = Completion(token_ids=ids, rollout_logprobs=(), finished=True, weight_version=0)
            before = (*before, *ids, *encode_more(tokenizer, said, later[number].told))
    return found


def _dialogue(step: Step, tokenizer: PreTrainedTokenizerBase, scheme: Scheme) -> range:
    """Tell where the turns stand in the session's prompts, which all begin alike up to the dialogue's end."""
    prompts = (
        encode_prompt(tokenizer, scheme.ask(scheme.roles[0], session, step.bank_before, step.shown))
        for session in (step.session, replace(step.session, turns=()))
    )
    return dialogue_span(*prompts)
