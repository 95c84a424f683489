"""Scored groups of made-up ids, as long as those of Mem-alpha's published run, for tests/benchmarks/episodes.py."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from membuilder.schemes.memalpha.scheme import WRITER
from membuilder.schemes.scheme import Call, CallOutcome
from membuilder.types import Agent, Bank, Dialogue, Entry, Session
from reward.rollouts import ScoredGroup
from reward.score import RewardStatus, Score
from rollout.types import Completion, Rollout, Sample

INSTANCES, ROLLOUTS = 32, 8
CHUNKS = (10, 20)
"""Fewest and most of an instance."""
CALLS = 8
VOCABULARY, SHARED_TOKENS, OWN_TOKENS, ANSWER_TOKENS = 151_936, 2000, 1000, 500
"""The vocabulary is Qwen3's; the rollouts of a chunk share instructions and chunk, not the memory."""


def made_up_step(dialogues: Sequence[Dialogue], seed: int = 1) -> list[ScoredGroup]:
    """Return the scored groups of a step of whole episodes, each rollout with a memory of its own that grows."""
    draw, groups = np.random.default_rng(seed), []
    for dialogue in dialogues:
        banks = [Bank()] * ROLLOUTS
        for index in range(int(draw.integers(*CHUNKS, endpoint=True))):
            session = replace(dialogue.sessions[index % len(dialogue.sessions)], index=index)
            shared = draw.integers(VOCABULARY, size=SHARED_TOKENS).tolist()
            rollouts = [made_up_rollout(draw, shared, session, bank) for bank in banks]
            banks = [rollout.bank for rollout in rollouts]
            groups.append(
                ScoredGroup(
                    id=f"{dialogue.id}/{index}",
                    dialogue_id=dialogue.id,
                    session=session,
                    rollouts=tuple(rollouts),
                    scores=tuple(made_up_score(draw) for _ in rollouts),
                    expert_tokens={},
                )
            )
    return groups


def made_up_rollout(draw: np.random.Generator, shared: list[int], session: Session, bank: Bank) -> Rollout:
    """Return an answer whose calls each store a line with something of its own."""
    prompt = (*shared, *draw.integers(VOCABULARY, size=OWN_TOKENS).tolist())
    completion = Completion(
        token_ids=tuple(draw.integers(VOCABULARY, size=ANSWER_TOKENS).tolist()),
        rollout_logprobs=tuple((-draw.exponential(0.3, ANSWER_TOKENS)).tolist()),
        finished=True,
        weight_version=0,
    )
    texts = [
        f"{session.turns[line].text} ({draw.integers(1000)})" for line in draw.integers(len(session.turns), size=CALLS)
    ]
    entries = tuple(
        Entry(
            id=f"m{number}",
            agent=Agent.SEMANTIC,
            text=text,
            session=session.index,
            timestamp=session.timestamp,
            source_turns=(),
        )
        for number, text in enumerate(texts, start=len(bank.entries) + 1)
    )
    calls = tuple(
        Call(
            name="memory_insert",
            arguments={"memory_type": "semantic_memory", "content": entry.text},
            outcome=CallOutcome.RAN,
            text=entry.text,
            entry=entry.id,
        )
        for entry in entries
    )
    sample = Sample(
        prompt_token_ids=prompt,
        completion=completion,
        text="\n".join(str(call.arguments) for call in calls),
        written=tuple(texts),
        failure=None,
        calls=calls,
    )
    return Rollout(samples={WRITER: sample}, bank=Bank(entries=bank.entries + entries))


def made_up_score(draw: np.random.Generator) -> Score:
    parts = {f"r{number}": {WRITER: float(draw.random())} for number in range(1, 5)}
    return Score(
        reward={WRITER: float(draw.random())},
        status={WRITER: RewardStatus.SCORED},
        qa=float(draw.random()),
        parts=parts,
        weights={WRITER: 1.0},
        retrieval_counts={Agent.SEMANTIC: 20},
        num_missing_verdicts=0,
    )
