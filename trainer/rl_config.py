"""Every setting of the RL loop. `python -m trainer.rl --help` prints them."""

from dataclasses import dataclass, field, replace
from typing import Literal

from membuilder.value_types import (
    AtLeastTwo,
    NonNegativeInt,
    PartialShare,
    PositiveFloat,
    PositiveInt,
    Share,
    ShareBelowOne,
)
from reward.memalpha import refuse_unused
from reward.score import Baseline, RewardConfig
from rollout.routed_experts import RouterReplay
from rollout.types import SamplingConfig
from trainer.advantages import StdScale
from trainer.configs import Aggregation, LossConfig, States, TrainConfig


@dataclass(kw_only=True)
class RLConfig(TrainConfig):
    """The settings of reinforcement learning of memory construction (ADRPO)."""

    out: str = "runs/rl"
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    engine: Literal["vllm", "transformers"] = "vllm"
    """What samples the rollouts."""
    engine_memory: PartialShare = 0.6
    """Share of a GPU's memory that vLLM may use while it is awake (its gpu_memory_utilization)."""
    engine_sleep: bool = True
    """On CUDA vLLM gives its memory back while the policy learns."""
    router_replay: RouterReplay = RouterReplay.AUTO
    """Whether the tokens of a mixture of experts are trained with the experts that the engine chose; `auto`: where it
    reports them."""
    num_steps: PositiveInt = 100
    sessions_per_step: PositiveInt = 32
    updates_per_step: PositiveInt = 1
    """Optimizer steps over the samples of one step, each on its own share of the groups (PPO's mini-batches)."""
    num_rollouts: AtLeastTwo = 8
    """Rollouts per session: the group size. An advantage compares members of a group."""
    length_target: PositiveFloat | None = None
    """Memory that greedy decoding writes, over the expert's, which the length weight steers to: it is
    `reward.length_weight` x (ratio / target) ** `length_gain`, at most 1, with the ratio on as many sessions as a step
    has, of `data.num_steering` dialogues kept apart. null: the weight stays."""
    length_gain: PositiveFloat = 3.0
    length_smoothing: ShareBelowOne = 0.7
    """Share of the steps before in that ratio: one step's sessions are few, their ratio alone jumps."""
    dense: bool = True
    """Reward right after each session; false: one reward at the dialogue's end (whole dialogues are sampled)."""
    instances_per_step: PositiveInt | None = None
    """Dialogues of a step with dense=false; null: as many as `sessions_per_step` sessions of the longest dialogue."""
    states: States | None = None
    """Whose banks sessions start from; null: `policy`, and `expert` with `data.prepared`, which has no other."""
    advantage_std: StdScale = StdScale.GROUP
    """What advantages are divided by."""
    max_model_len: AtLeastTwo = 26000
    """Longest prompt plus completion of the engine. A prompt that leaves no room for `sampling.max_tokens` is not
    answered: its agent has no reward in that session (metric `prompt_too_long`)."""
    parity_every: PositiveInt = 10
    """Steps between checks that engine and trainer, and shared prompts and dense copies, agree on log-probs."""
    parity_bound: PositiveFloat = 0.02
    """Largest mean |trainer - engine| log-prob gap; a larger one stops the run."""
    max_missing_share: Share = 0.2
    """Share of a step's rewards that may be missing because no question could be judged; more stops the run."""
    eval_every: NonNegativeInt = 0
    """Steps between evaluations on the held-out dialogues; 0: none."""
    save_every: PositiveInt = 50
    journal: bool = True
    """Keep what was sampled and scored since the last checkpoint, so that going on costs no generation."""
    log_completions: NonNegativeInt = 8
    """Completions written to the table per step and agent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_unused(self.scheme, self.reward, self.dense)
        prepared = self.data.prepared is not None
        self.states = self.states or (States.EXPERT if prepared else States.POLICY)
        if prepared and (self.states is not States.EXPERT or not self.dense):
            raise ValueError(
                "data.prepared holds single sessions with the expert's memory before them, not every session of a "
                "dialogue: leave states and dense out, or make dialogues (python -m membuilder.prepare rl --to "
                "dialogues) for data.path"
            )
        if self.eval_every and not self.data.holds_out:
            raise ValueError(
                f"eval_every={self.eval_every} evaluates on whole dialogues that are not trained on, and of a split or "
                "a prepared file none are left: name some in data.eval_path, or set eval_every=0"
            )
        if self.dense and self.instances_per_step is not None:
            raise ValueError("instances_per_step without effect: dense=true takes sessions_per_step; set dense=false")
        if self.dense and self.reward.baseline is not Baseline.SESSION:
            raise ValueError(
                f"reward.baseline={self.reward.baseline} is about whole dialogues, but dense=true takes single "
                "sessions: set dense=false or reward.baseline=session"
            )
        if self.sampling.temperature == 0:
            raise ValueError(
                f"sampling.temperature={self.sampling.temperature} decodes greedily, so that all rollouts of a group "
                "are the same and none has an advantage; expected float (above 0)"
            )
        thinking = self.sampling.thinking_budget
        if self.max_model_len <= self.sampling.max_tokens + (thinking or 0):
            beside = "" if thinking is None else f" and sampling.thinking_budget={thinking}"
            raise ValueError(
                f"max_model_len={self.max_model_len} leaves no prompt room beside "
                f"sampling.max_tokens={self.sampling.max_tokens}{beside}"
            )
        if self.reward.memalpha.weights and self.loss.name != "adrpo" and ":" not in self.loss.name:
            raise ValueError(
                f"reward.memalpha.weights without effect: loss.name={self.loss.name} reads no weights; take adrpo, "
                "which is GRPO where they are 1"
            )
        if self.loss.name != "dr_grpo":
            return
        # Dr. GRPO (Liu et al. 2025, arXiv 2503.20783) is GRPO without its biases to length and difficulty.
        if self.loss.aggregation is Aggregation.SEQUENCE or self.advantage_std is StdScale.BATCH:
            raise ValueError(
                "loss.name=dr_grpo sets loss.aggregation=constant and advantage_std=none: leave both out, or take "
                "loss.name=grpo with your own"
            )
        self.loss = replace(self.loss, name="grpo", aggregation=Aggregation.CONSTANT)
        self.advantage_std = StdScale.NONE
