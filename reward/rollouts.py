"""Scoring groups of rollouts: each bank answers questions, each role's text is measured against the expert's.

`score_group` scores the rollouts of one session; `score_episodes` those of whole dialogues, every session by the
answers at the end.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from statistics import fmean
from typing import Any

from membuilder.errors import ConfigError
from membuilder.evaluation.source_metrics import source_of
from membuilder.plugins import place_of
from membuilder.schemes.scheme import CallOutcome
from membuilder.types import Agent, Bank, CountTokens, Dialogue, Question, Session
from reward.judges import READERS
from reward.qa import QAResult
from reward.score import LLM, Formula, Grading, RewardConfig, RoleOutput, Score
from reward.validity import Stored, Validity
from rollout.types import Group, Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredGroup(Group):
    """A group whose rollouts have been scored."""

    scores: tuple[Score, ...]
    """One per rollout."""
    expert_tokens: Mapping[str, float]
    """What the length penalty compared each role's memory tokens with; empty where the scheme has no expert."""


def choose_questions(
    asked: Sequence[Sequence[Question]], session: int, config: RewardConfig, seed: str
) -> list[Question]:
    """Choose what is asked after a session, the same for all members of a group: its own questions, then earlier ones.

    `asked`: the questions of each session of the dialogue.
    """
    draw = random.Random(seed)
    chosen = draw.sample(asked[session], min(len(asked[session]), config.num_questions))
    if config.earlier_questions:
        earlier = [question for before in asked[:session] for question in before]
        chosen += draw.sample(earlier, min(len(earlier), config.num_questions - len(chosen)))
    return chosen


def dated(questions: Sequence[Question], now: datetime) -> list[Question]:
    """Return the questions as asked at this time, unless they have one of their own."""
    return [question if question.asked_at else replace(question, asked_at=now) for question in questions]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What is known of one rollout of a session that is a part of an episode."""

    validity: Mapping[str, tuple[float | None, ...]]
    """Of each role: whether each text it stored is valid."""
    of_all: Mapping[str, Any]
    """Further fields of `RoleOutput`, the same for every role."""
    missing: Mapping[str, int]
    """Cause -> verdicts on texts that are missing because of it."""


_MEASURED = Measured(validity={}, of_all={}, missing={})


def score_group(
    group: Group,
    answers: Sequence[QAResult],
    expert_tokens: Mapping[str, float],
    count_tokens: CountTokens,
    formula: Formula,
    config: RewardConfig,
    measured: Sequence[Measured] = (),
) -> ScoredGroup:
    """Put each rollout's answers and its roles' outputs together; `answers` has one result per rollout.

    `measured` has what else is known of each rollout, where they are parts of episodes.
    """
    scores = []
    for rollout, answer, more in zip(group.rollouts, answers, measured or [_MEASURED] * len(answers), strict=True):
        outputs = {
            role: RoleOutput(
                failure=sample.failure,
                model_tokens=count_tokens(sample.written),
                expert_tokens=expert_tokens.get(role),
                calls=sample.calls,
                validity=more.validity.get(role, ()),
                **more.of_all,
            )
            for role, sample in rollout.samples.items()
        }
        score = formula(outputs, answer, config)
        if not isinstance(score, Score):
            raise ConfigError(f"scheme: {place_of(formula)} returns {score!r:.80}; expected reward.score.Score")
        scores.append(replace(score, missing=dict(Counter(answer.missing) + Counter(more.missing))))
    own = {each.name: getattr(group, each.name) for each in fields(group)}
    return ScoredGroup(**own, scores=tuple(scores), expert_tokens=expert_tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class Episode:
    """All rollouts of one dialogue from its first session to its last, and what their banks answered."""

    dialogue: Dialogue
    groups: Sequence[Group]
    """The rollouts of each session; rollout g of every group goes on with the bank of rollout g before it."""
    answers: Sequence[QAResult]
    """What the bank at the end answered, one per rollout."""
    expert_tokens: Sequence[Mapping[str, float]]
    """Per session, as `score_group` takes them."""
    chunk_answers: Sequence[Sequence[QAResult]] = ()
    """Per session and rollout what the bank right after it answered about it; empty where nothing was asked."""


def episode_questions(dialogue: Dialogue, config: RewardConfig, seed: str) -> list[Question]:
    """Choose what is asked at the end of an episode, the same for all its rollouts.

    Judges that read replies ask every question; the others those that have an answer and evidence, if any has.
    """
    reads = config.judge in READERS or (config.judge == LLM and config.grading in (Grading.SOURCE, Grading.RUBRIC))
    with_evidence = [each for each in dialogue.questions if each.answerable and each.evidence]
    asked = list(dialogue.questions) if reads else with_evidence or list(dialogue.questions)
    if config.question_share < 1 and asked:
        kept = random.Random(f"{seed}-{dialogue.id}").sample(
            range(len(asked)), max(1, round(config.question_share * len(asked)))
        )
        asked = [asked[place] for place in sorted(kept)]
    return dated(asked, dialogue.sessions[-1].timestamp)


def chunk_questions(dialogue: Dialogue, config: RewardConfig, seed: str) -> list[list[Question]]:
    """Choose per session what is asked about it alone, right after it: at most `config.chunk_questions`."""
    draw = random.Random(f"{seed}-{dialogue.id}-chunks")
    chosen = []
    for session, own in zip(dialogue.sessions, dialogue.questions_by_session(), strict=True):
        chosen.append(dated(draw.sample(own, min(len(own), config.chunk_questions)), session.timestamp))
    return chosen


def score_episodes(
    episodes: Sequence[Episode],
    count_tokens: CountTokens,
    formula: Formula,
    config: RewardConfig,
    validity: Validity,
) -> list[list[ScoredGroup]]:
    """Score every session of each episode. Texts are judged all at once, each text of a part once."""
    groups = [group for episode in episodes for group in episode.groups]
    stored = [of_role for group in groups for of_roles in _stored(group) for of_role in of_roles.values()]
    texts = list(dict.fromkeys(each for of_role in stored for each in of_role))
    verdicts = dict(zip(texts, validity(texts), strict=True)) if texts else {}
    scored = []
    for episode in episodes:
        chunks = [_chunk_text(session) for session in episode.dialogue.sessions]
        whole = {"num_sessions": len(episode.groups), "chunk_tokens": count_tokens(chunks)}
        whole["source"] = source_of(episode.dialogue)
        memories = [count_tokens(rollout.bank.memory_text()) for rollout in episode.groups[-1].rollouts]
        of_episode = []
        for session, group in enumerate(episode.groups):
            measured = []
            for number, of_roles in enumerate(_stored(group)):
                found = {role: [verdicts[each] for each in texts] for role, texts in of_roles.items()}
                causes = Counter(one.cause for each in found.values() for one in each if one.correct is None)
                of_all = {**whole, "session": session, "memory_tokens": memories[number]}
                if episode.chunk_answers:
                    of_all["chunk_qa"] = episode.chunk_answers[session][number]
                values = {role: tuple(one.correct for one in each) for role, each in found.items()}
                measured.append(Measured(validity=values, of_all=of_all, missing=causes))
            expert = episode.expert_tokens[session]
            of_episode.append(score_group(group, episode.answers, expert, count_tokens, formula, config, measured))
        scored.append(of_episode)
    return scored


def _chunk_text(session: Session) -> str:
    return "\n".join(turn.content for turn in session.turns)


def _stored(group: Group) -> list[dict[str, list[Stored]]]:
    """Return of each rollout what the calls of its roles stored that ran: parts and texts, in their order."""
    return [
        {role: _texts(sample, rollout.bank) for role, sample in rollout.samples.items()} for rollout in group.rollouts
    ]


def _texts(sample: Sample, bank: Bank) -> list[Stored]:
    part_of = {entry.id: entry.agent for entry in bank.entries} if sample.calls else {}
    ran = [call for call in sample.calls if call.outcome is CallOutcome.RAN and call.text is not None]
    return [(Agent.CORE.value if call.entry is None else str(part_of[call.entry]), call.text) for call in ran]


def means_by_source(scored: Sequence[ScoredGroup], sources: Mapping[str, str]) -> dict[str, float]:
    """Return the mean of every part over the rollouts of each source, as `r1/squad`.

    `sources`: the source of each dialogue, by its id. What is missing counts in no mean.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for group in scored:
        for score in group.scores:
            for part, of_roles in score.parts.items():
                values[f"{part}/{sources[group.dialogue_id]}"] += [
                    each for each in of_roles.values() if each is not None
                ]
    return {name: fmean(found) for name, found in values.items() if found}
