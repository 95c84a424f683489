"""What a reward is made of, whatever the scheme: what was measured of a rollout goes in, a `Score` comes out.

The formula itself is a function `score(outputs, qa, config) -> Score` of a scheme's own: `reward/four_agents.py`, or
`reward.py` in the folder of a scheme of your own. It is pure, and what it cannot know stays missing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from membuilder.llm.endpoints import ModelEndpoint
from membuilder.schemes.scheme import Call
from membuilder.types import Failure, FailureKind
from membuilder.value_types import NonNegativeInt, PositiveFloat, PositiveInt, PositiveShare, Section, Share
from reward.judges import JudgeLimits
from reward.length import LengthConfig
from reward.memalpha_config import Credit, MemAlphaRewardConfig, ValidityBy
from reward.qa import QAResult

LLM, POLICY = "llm", "policy"


class Grading(StrEnum):
    """How `judge: llm` scores an answer: the first three are those of `Strictness`."""

    STRICT = "strict"
    LENIENT = "lenient"
    RUBRIC = "rubric"
    SOURCE = "source"


@dataclass(kw_only=True)
class RewardEndpoint(ModelEndpoint):
    """It describes a model that `judge: llm` asks. Its key comes from the environment."""

    concurrency: PositiveInt = 64
    """Requests in flight at this model; `max_concurrent` bounds those to both models together."""
    timeout_seconds: PositiveFloat = 60.0
    """For one request from sending to the last byte; waiting for a free place does not count."""


class Baseline(StrEnum):
    """What a reward is compared with (trainer/advantages.py)."""

    SESSION = "session"
    """The rewards of the same session and role in the other rollouts."""
    INSTANCE = "instance"
    """Those of all sessions of the dialogue in all rollouts: as Mem-alpha was published."""
    EPISODE = "episode"
    """An episode's mean reward with that of the dialogue's other episodes."""


@dataclass(frozen=True, kw_only=True)
class RewardConfig(Section):
    baseline: Baseline = Baseline.SESSION
    """What a reward is compared with: `session`, the same session in the other rollouts; with dense=false also
    `instance`, all sessions of the dialogue in all rollouts (Mem-alpha as published), or `episode`, the mean reward of
    the dialogue's other episodes, where every session of an episode has the same advantage."""
    episode_share: bool = True
    """Under `baseline: episode`: an advantage is divided by the number of sessions of its episode, in units of the
    step's mean, so that a long dialogue weighs no more than a short one."""
    judge: str = "evidence"
    """`evidence`, `coverage`; `excerpt`, `nearest` or, of these two what the source needs, `offline`; `llm` (`answerer`
    answers from the memory, `grader` grades the answer; both are sections, and `answerer=policy` is the policy as it
    started); or `path/to/file.py:function`."""
    answerer: RewardEndpoint | Literal["policy"] | None = None
    """Who answers under `judge: llm`: a model's endpoint, or `policy` for the frozen reference inside the engine."""
    grader: RewardEndpoint | None = None
    """Who grades the answers under `judge: llm`."""
    grading: Grading = Grading.LENIENT
    """How `judge: llm` grades: `strict` wants every fact of the gold answer, to `lenient` the same meaning counts,
    `rubric` judges as LongMemEval does by the question's type, and `source` scores by the metric of the question's
    source, which needs a grader only for sources that are graded by rubric."""
    policy_answer_tokens: PositiveInt = 256
    """Longest answer of `answerer: policy`; one without an end is missing."""
    cache: str | None = None
    """Folder of what `judge: llm` was answered, under a hash of all that shaped it: nothing is paid for twice."""
    max_concurrent: PositiveInt = 64
    """Questions that a judge other than the offline ones has in work at once, in each process."""
    question_timeout_seconds: PositiveFloat = 300.0
    """A verdict that takes longer, retries and all, is missing."""
    step_deadline_seconds: PositiveFloat = 600.0
    """How long a step waits for verdicts once everything is sampled; those that are not there then are missing."""
    num_questions: PositiveInt = 5
    """Questions asked after a session, at most."""
    earlier_questions: bool = False
    """Fill up with questions of earlier sessions where a session has fewer than `num_questions` of its own."""
    top_k: PositiveInt = 10
    """Entries retrieved per question."""
    length_weight: Share = 0.8
    """Share of the reward that a length penalty of 1 takes away."""
    alpha: PositiveFloat = 4.0
    """Attribution weight of the role whose entries were retrieved most."""
    length: LengthConfig = field(default_factory=LengthConfig)
    question_share: PositiveShare = 1.0
    """Share of an instance's questions that are asked at its end, the same for all its rollouts in a step."""
    credit: Credit = Credit.EPISODE
    """Who earns the answers at the end of a memalpha episode: every chunk all of it (`episode`, as published), or each
    the part that rests on the entries it wrote last (`evidence`)."""
    chunk_questions: NonNegativeInt = 0
    """Questions about a chunk alone that memalpha asks right after it, beside those at the end; 0: none."""
    validator: RewardEndpoint | None = None
    """Who judges contents under `memalpha.validity: llm`."""
    memalpha: MemAlphaRewardConfig = field(default_factory=MemAlphaRewardConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.episode_share and self.baseline is not Baseline.EPISODE:
            raise ValueError("episode_share=false without effect: it belongs to baseline: episode")
        given = [name for name in ("answerer", "grader", "cache") if getattr(self, name) is not None]
        needed = {"answerer"} if self.grading is Grading.SOURCE else {"answerer", "grader"}
        if self.judge == LLM and not needed <= set(given):
            names = " and ".join(sorted(needed))
            raise ValueError(f"judge: llm needs {names}, such as answerer: {{name: gpt-4.1-mini}}")
        asks = self.memalpha.validity is ValidityBy.LLM
        if asks != (self.validator is not None):
            text = "needs validator, such as validator: {name: gpt-4.1-mini}" if asks else "has no use for a validator"
            raise ValueError(f"memalpha.validity={self.memalpha.validity} {text}")
        if self.credit is Credit.EVIDENCE and self.memalpha.r1_threshold is not None:
            raise ValueError("memalpha.r1_threshold without effect under credit=evidence: leave one of the two out")
        if self.judge != LLM and asks:
            given = [name for name in given if name != "cache"]
        if self.judge != LLM and given:
            off = " ".join(f"reward.{name}=null" for name in given)
            raise ValueError(f"{', '.join(given)} without effect: they belong to judge: llm; set judge=llm or {off}")

    @property
    def limits(self) -> JudgeLimits:
        return JudgeLimits(
            max_concurrent=self.max_concurrent,
            question_seconds=self.question_timeout_seconds,
            step_seconds=self.step_deadline_seconds,
        )


class RewardStatus(StrEnum):
    SCORED = "scored"
    INVALID = "invalid"
    """The output could not be used: reward 0."""
    NO_QUESTIONS = "no_questions"
    """Nothing was asked: reward missing."""
    NOT_JUDGED = "not_judged"
    """No question could be judged: reward missing."""
    PROMPT_TOO_LONG = "prompt_too_long"
    """The role was never asked: reward missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoleOutput:
    """What scoring needs to know of one role's completion; both counts in tokens of the policy's tokenizer."""

    failure: Failure | None
    model_tokens: int
    """Tokens of the memory text that this role wrote; its JSON does not count."""
    expert_tokens: float | None
    """Tokens of the expert's memory text that it is measured against; None where the scheme has no expert."""
    calls: tuple[Call, ...] = ()
    """Calls of tools and what became of them."""
    validity: tuple[float | None, ...] = ()
    """Whether each text that the calls stored is valid, 0 or 1; None: that could not be had."""
    session: int = 0
    """Index of the chunk in its episode."""
    num_sessions: int = 1
    memory_tokens: int = 0
    """Tokens of the memory at the end of the episode."""
    chunk_tokens: int = 0
    """Tokens of all chunks of the episode."""
    chunk_qa: QAResult | None = None
    """Answers about this chunk alone, right after it; None where none were asked for."""
    source: str = ""
    """Where the instance comes from."""

    @property
    def is_valid(self) -> bool | None:
        """Tell whether the output could be used; None where there is none, because the role was not asked."""
        if self.failure is not None and self.failure.kind is FailureKind.PROMPT_TOO_LONG:
            return None
        return self.failure is None


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One rollout's reward per role and everything it was made of; `weights` multiply the loss, never the reward."""

    reward: dict[str, float | None]
    """None is missing: it joins no baseline and carries no weight."""
    status: dict[str, RewardStatus]
    qa: float | None
    """Shared by all roles."""
    parts: dict[str, dict[str, float | None]]
    """Part -> role -> value, logged as `part/role`; None where there was nothing to measure."""
    weights: dict[str, float]
    retrieval_counts: dict[str, int]
    """Entries found per role that wrote them, over all questions."""
    num_missing_verdicts: int
    missing: dict[str, int] = field(default_factory=dict)
    """Cause -> number of verdicts that are missing because of it; filled in after the formula."""


Formula = Callable[[Mapping[str, RoleOutput], QAResult, RewardConfig], Score]
"""What a scheme makes of one rollout's outputs, by role, and the answers that its bank gave."""


def status_of(valid: bool | None, qa: QAResult) -> RewardStatus:
    """Tell why a reward is what it is; `valid` as in `RoleOutput.is_valid`."""
    if valid is None:
        return RewardStatus.PROMPT_TOO_LONG
    if not qa.verdicts:
        return RewardStatus.NO_QUESTIONS
    if qa.accuracy is None:
        return RewardStatus.NOT_JUDGED
    return RewardStatus.SCORED if valid else RewardStatus.INVALID
