"""What the expert did, as training samples: one packed tree per session, its four agents sharing the dialogue."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from membuilder.schemes.four_agents.operations import render
from membuilder.schemes.four_agents.prompts import PromptConfig, render_prompt
from membuilder.schemes.four_agents.session import Step
from membuilder.types import Agent
from rollout.tokens import encode_completion, encode_prompt
from trainer.batching.packing import Node, TrainSequence, count_sequences, sequences_of
from trainer.configs import OverLong
from trainer.data.corpus import ExpertBuild
from trainer.data.truncation import LengthCounts, dialogue_span, fit, length


def sft_trees(
    builds: Sequence[ExpertBuild],
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptConfig,
    max_length: int,
    over_long: OverLong,
) -> tuple[list[Node], LengthCounts]:
    """The trees of all sessions, and what was done to samples longer than `max_length` tokens.

    An agent whose operations failed is not training data.
    """
    trees, counts = [], []
    for build in builds:
        for step in build.steps:
            agents = [agent for agent in Agent if agent not in step.result.failures]
            sequences = [_sequence(step, agent, tokenizer, prompts) for agent in agents]
            long = any(length(sequence) > max_length for sequence in sequences)
            span = _dialogue(step, tokenizer, prompts) if long else range(0)
            session = f"{build.dialogue.id}/{step.session.index}"
            fitted = fit(sequences, span, max_length, over_long, session=session)
            trees += fitted.trees()
            counts.append(fitted.counts)
    return trees, LengthCounts.sum(counts)


def split_sessions(trees: Sequence[Node], validation_share: float, seed: int) -> tuple[list[Node], list[Node]]:
    """(training, validation), apart by session: the trees of one session (same `id`) are all on one side.

    A session that counts several times (`data.repeat`) trains as often and is validated once.
    """
    sessions: dict[str, list[Node]] = defaultdict(list)
    for tree in trees:
        sessions[tree.id].append(tree)
    order = random.Random(seed).sample(list(sessions.values()), len(sessions))
    num_validation = max(1, round(validation_share * len(order)))
    training = [tree for session in order[num_validation:] for tree in session]
    return training, [tree for session in order[:num_validation] for tree in _distinct(session)]


def _distinct(trees: Sequence[Node]) -> list[Node]:
    return [tree for number, tree in enumerate(trees) if tree not in trees[:number]]


def smallest_group(trees: Sequence[Node]) -> list[list[TrainSequence]]:
    """The sequences of the smallest tree in which some share a prompt's start; none where nothing is shared."""
    sharing = [tree for tree in trees if count_sequences(tree) > 1]
    return [sequences_of(min(sharing, key=lambda tree: tree.num_tokens))] if sharing else []


def _sequence(step: Step, agent: Agent, tokenizer: PreTrainedTokenizerBase, prompts: PromptConfig) -> TrainSequence:
    shown, num_turns = step.shown[agent], len(step.session.turns)
    answer = render(step.updates[agent], agent, num_turns, shown, prompts.response_format)
    return TrainSequence(
        prompt_token_ids=tuple(_prompt(step, agent, tokenizer, prompts)),
        completion_token_ids=tuple(encode_completion(tokenizer, answer)),
    )


def _dialogue(step: Step, tokenizer: PreTrainedTokenizerBase, prompts: PromptConfig) -> range:
    """Where the turns stand in the session's prompts; the dialogue comes first in all of them."""
    without = replace(step, session=replace(step.session, turns=()))
    agent = Agent.CORE
    return dialogue_span(_prompt(step, agent, tokenizer, prompts), _prompt(without, agent, tokenizer, prompts))


def _prompt(step: Step, agent: Agent, tokenizer: PreTrainedTokenizerBase, prompts: PromptConfig) -> list[int]:
    return encode_prompt(tokenizer, render_prompt(agent, step.session, step.bank_before, step.shown[agent], prompts))
