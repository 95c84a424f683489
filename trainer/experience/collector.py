"""The experience of one step: sessions are sampled, applied to the bank, asked about and scored.

Rewards are dense (right after each session) or given to whole episodes (at the dialogue's end).
"""

import math
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from membuilder.embedding.local import TextEmbedder
from membuilder.errors import ConfigError
from membuilder.schemes.scheme import Scheme
from membuilder.types import Bank, Dialogue, Question
from reward.alongside import WriteAnswers
from reward.asking import answer_banks, asking
from reward.judges import Judge
from reward.length import expert_lengths
from reward.llm_judge import LLMJudge
from reward.qa import QAResult
from reward.rollouts import (
    Episode,
    ScoredGroup,
    choose_questions,
    chunk_questions,
    dated,
    episode_questions,
    score_episodes,
    score_group,
)
from reward.score import POLICY, Formula, RewardConfig
from reward.validity import Validity, ValidityModel, make_validity
from rollout.sampler import grouped, make_task, sample_groups, sample_rollouts
from rollout.turns import Task
from rollout.types import Engine, Group, SamplingConfig
from trainer.data.corpus import ExpertBuild
from trainer.distributed.process_group import World
from trainer.experience.episode_stream import EpisodeStream
from trainer.experience.session_stream import SessionStream


@dataclass(frozen=True, kw_only=True)
class Collector:
    """Everything sampling and scoring need besides the sessions of the step."""

    engine: Engine
    tokenizer: PreTrainedTokenizerBase
    embedder: TextEmbedder
    judge: Judge
    scheme: Scheme
    formula: Formula
    sampling: SamplingConfig
    reward: RewardConfig
    num_rollouts: int
    count_tokens: Callable[[Sequence[str]], int]
    validity: Validity = make_validity(RewardConfig())
    """Judges what calls stored in an episode."""
    world: World = World()
    """The processes that sessions are dealt to; every one gets all results."""
    write_answers: WriteAnswers | None = None
    """What answers under `reward.answerer: policy`, in a training run."""

    @property
    def greedy(self) -> SamplingConfig:
        """Return the settings with which the policy answers outside training."""
        return replace(self.sampling, temperature=0.0, top_p=1.0)

    def dense(self, stream: SessionStream, length_weight: float, seed: int) -> list[ScoredGroup]:
        """Take G rollouts of each slot's session from one bank, and ask them the session's questions."""
        mine = self.world.shard(stream.costs())
        tasks, experts = [stream.task(slot) for slot in mine], [stream.expert(slot) for slot in mine]
        asked = [
            dated(choose_questions(build.asked(), session, self.reward, f"{seed}-{task.id}"), task.session.timestamp)
            for task, (build, session) in zip(tasks, experts, strict=True)
        ]
        groups, answers = self._sample_and_ask(tasks, asked, seed)
        scored = [
            self._score(group, self._expert_tokens(build)[session], of_group, length_weight)
            for group, of_group, (build, session) in zip(groups, answers, experts, strict=True)
        ]
        return self.world.gather_in_order(mine, scored)

    def _sample_and_ask(
        self, tasks: Sequence[Task], asked: Sequence[Sequence[Question]], seed: int
    ) -> tuple[list[Group], list[list[QAResult]]]:
        """Return each task's group and what its banks answered; an async judge works while others are decoded."""
        size, came = self.num_rollouts, []
        with asking(*self._how) as step:
            for each in sample_rollouts(tasks, self.engine, self.tokenizer, self.scheme, self.sampling, size, seed):
                came.append(each)
                step.add((each.task, each.number), each.rollout.bank, asked[each.task])
            results = step.results()
        answers = [[results[task, number] for number in range(size)] for task in range(len(tasks))]
        return grouped(tasks, came), answers

    def greedy_memory_ratio(self, stream: SessionStream) -> float:
        """Memory tokens that greedy decoding writes in the stream's current sessions, over the expert's in the same.

        Where the expert wrote nothing it is 1 for writing nothing too, else infinite. Measuring both in the same
        sessions takes a quarter off the noise, because both write more where more is told.
        """
        mine = self.world.shard(stream.costs())
        groups = self.sample([stream.task(slot) for slot in mine], self.greedy, 1, seed=0)
        lengths = []
        for slot, group in zip(mine, groups, strict=True):
            build, session = stream.expert(slot)
            # a role whose prompt was too long is left out on both sides
            asked = {role: s for role, s in group.rollouts[0].samples.items() if s.completion is not None}
            written = sum(self.count_tokens(sample.written) for sample in asked.values())
            expert = build.steps[session].result.written
            lengths.append((written, sum(self.count_tokens(expert[role]) for role in asked)))
        written, expert = (sum(column) for column in zip(*self.world.gather_in_order(mine, lengths), strict=True))
        if expert == 0:
            return math.inf if written else 1.0
        return written / expert

    def episodes(self, stream: EpisodeStream, length_weight: float, seed: int) -> list[ScoredGroup]:
        """Take G rollouts of whole dialogues, each with its own bank; every session gets the reward of the end.

        All dialogues of this process advance side by side: the sessions at one place are one call of the engine.
        """
        builds, mine = stream.builds(), self.world.shard(stream.costs())
        builds = [builds[number] for number in mine]
        walked = self.walk([build.dialogue for build in builds], seed)
        asked = [self._asked(build.dialogue, groups, str(seed)) for build, groups in zip(builds, walked, strict=True)]
        # all banks in one call, because the answers of a reference cost the engine's weights twice a call
        tasks = [
            (rollout.bank, questions) for pairs in asked for group, questions in pairs for rollout in group.rollouts
        ]
        answers = iter(self.answer(tasks))
        episodes = []
        for build, groups, pairs in zip(builds, walked, asked, strict=True):
            *of_chunks, at_the_end = [[next(answers) for _ in group.rollouts] for group, _ in pairs]
            lengths = self._expert_tokens(build)
            episodes.append(
                Episode(
                    dialogue=build.dialogue,
                    groups=groups,
                    answers=at_the_end,
                    expert_tokens=lengths,
                    chunk_answers=of_chunks,
                )
            )
        reward = replace(self.reward, length_weight=length_weight)
        scored = score_episodes(episodes, self.count_tokens, self.formula, reward, self.validity)
        return [group for groups in self.world.gather_in_order(mine, scored) for group in groups]

    def _asked(self, dialogue: Dialogue, groups: Sequence[Group], seed: str) -> list[tuple[Group, list[Question]]]:
        """Return whose banks are asked what: of each session about itself, if that is asked; last those at the end."""
        at_the_end = (groups[-1], episode_questions(dialogue, self.reward, seed))
        if not self.reward.chunk_questions:
            return [at_the_end]
        return [*zip(groups, chunk_questions(dialogue, self.reward, seed), strict=True), at_the_end]

    def walk(self, dialogues: Sequence[Dialogue], seed: int) -> list[list[Group]]:
        """Return the group of each session of each dialogue."""
        banks = [[Bank()] * self.num_rollouts for _ in dialogues]
        groups: list[list[Group]] = [[] for _ in dialogues]
        for index in range(max((len(dialogue.sessions) for dialogue in dialogues), default=0)):
            going = [number for number, dialogue in enumerate(dialogues) if index < len(dialogue.sessions)]
            tasks = [
                make_task(dialogues[number].id, dialogues[number].sessions[index], bank, self.scheme, self.embedder)
                for number in going
                for bank in banks[number]
            ]
            sampled = iter(self.sample(tasks, self.sampling, 1, zlib.crc32(f"{seed} session {index}".encode())))
            for number in going:
                first, *others = (next(sampled) for _ in range(self.num_rollouts))
                rollouts = tuple(group.rollouts[0] for group in (first, *others))
                groups[number].append(replace(first, rollouts=rollouts))
                banks[number] = [rollout.bank for rollout in rollouts]
        return groups

    def _score(
        self, group: Group, expert_tokens: dict[str, float], answers: Sequence[QAResult], length_weight: float
    ) -> ScoredGroup:
        reward = replace(self.reward, length_weight=length_weight)
        return score_group(group, answers, expert_tokens, self.count_tokens, self.formula, reward)

    def _expert_tokens(self, build: ExpertBuild) -> list[dict[str, float]]:
        """Return what the length penalty compares with, of each session and role; nothing where no expert built it."""
        if not build.steps:
            return [{} for _ in build.dialogue.sessions]
        return expert_lengths(build.tokens_written(self.count_tokens), self.reward.length.scope)

    def sample(self, tasks: Sequence[Task], sampling: SamplingConfig, num_rollouts: int, seed: int) -> list[Group]:
        """Return a group of rollouts for each task."""
        return sample_groups(tasks, self.engine, self.tokenizer, self.scheme, sampling, num_rollouts, seed)

    def answer(self, banks: Sequence[tuple[Bank, Sequence[Question]]]) -> list[QAResult]:
        """Put questions to each bank and judge the answers."""
        return answer_banks(banks, *self._how)

    @property
    def _how(self) -> tuple:
        """Return what `asking` and `answer_banks` must know of how questions are judged."""
        reward = self.reward
        if reward.answerer == POLICY and self.write_answers is None:
            raise ConfigError("reward.answerer=policy answers inside a run of trainer.rl only: name a model's endpoint")
        return self.scheme, self.embedder, self.judge, reward.top_k, reward.limits, self.write_answers

    def judge_metrics(self) -> dict[str, float]:
        """Return what the calls of models that judge came to since it was last asked, over all processes."""
        sums: Counter[str] = Counter()
        for model in (self.judge, self.validity):
            if isinstance(model, LLMJudge | ValidityModel):
                for of_process in self.world.gather(model.metrics()):
                    sums.update(of_process)
        return dict(sums)
