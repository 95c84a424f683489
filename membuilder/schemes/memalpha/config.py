"""The settings of the scheme `memalpha`, section `memalpha:` of every configuration that names it."""

from argparse import ArgumentTypeError
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from membuilder.bank.ranking import SearchMethod
from membuilder.types import Agent
from membuilder.value_types import NonNegativeInt, PositiveInt, Section

TEMPLATES = Path(__file__).parent / "templates"
PARTS = (Agent.CORE, Agent.SEMANTIC, Agent.EPISODIC, Agent.PROCEDURAL)
"""The parts of the memory, in the order in which they are told and shown."""


class CallFormat(StrEnum):
    """How an answer writes its calls."""

    HERMES = "hermes"
    """JSON between `<tool_call>` tags, as the chat templates of Qwen3 and others have it."""
    MARKS = "marks"
    """The marks of Qwen-Agent, which the published checkpoints were trained on."""
    COMPACT = "compact"
    """`<semantic>#3<done>`: pointers at lines alone, two tokens each, for tiny policies."""


class CoreOverLimit(StrEnum):
    """What becomes of a call that would make the core longer than it may be."""

    REFUSE = "refuse"
    """It does not run, and the writer is told the length."""
    CUT = "cut"
    """Words at the end are dropped, and the call counts as run: as published."""


class View(StrEnum):
    """Which entries of each part the writer sees beside a chunk."""

    RECENT = "recent"
    """The last ones: as published."""
    RELATED = "related"
    """Those that are most like a line of the chunk."""
    BOTH = "both"
    """In turn one of the last and one of the related."""


class PromptOrder(StrEnum):
    CHUNK_FIRST = "chunk_first"
    """The memory stands last, so that the rollouts of a chunk share all that stands before it."""
    PUBLISHED = "published"
    """The memory stands before the chunk."""


@dataclass(kw_only=True)
class PromptsConfig(Section):
    template_set: str = "full"
    """Folder under membuilder/schemes/memalpha/templates: `full`, or `compact` for tiny policies."""
    order: PromptOrder = PromptOrder.CHUNK_FIRST
    """What stands first, chunk or memory; `published` is the other way round."""
    max_tokens: PositiveInt = 6144
    """Instructions, tools, chunk and memory together: where they are longer, fewer entries are shown. What a chat
    template adds is not counted. A chunk alone may be longer still; what is then too long for the engine is not asked.
    """
    max_entry_chars: PositiveInt = 4000
    """A longer entry is shown cut to this; the bank keeps it whole."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.order = PromptOrder(self.order)  # a text where a program gives it
        known = sorted(folder.name for folder in TEMPLATES.iterdir() if folder.is_dir())
        if self.template_set not in known:
            raise ValueError(f"template_set {self.template_set!r} is none of {known}")


@dataclass(kw_only=True)
class MemAlphaConfig(Section):
    response_format: CallFormat = CallFormat.HERMES
    """How calls are written: `hermes`, `marks` (checkpoints of the published program) or `compact` (tiny policies)."""
    procedural: bool = False
    """Whether there is a procedural part beside core, semantic and episodic."""
    exclude_memory: list[Agent] = field(default_factory=list)
    """Parts that the memory lacks, such as [core, episodic]; no prompt and no tool names them. Their order is of no
    influence."""
    core_limit_tokens: PositiveInt = 512
    """Longest core."""
    core_over_limit: CoreOverLimit = CoreOverLimit.REFUSE
    """What becomes of a longer one: `refuse`, or `cut` as published."""
    view: View = View.RECENT
    """Entries that the writer sees: `recent`, as published, `related` to the chunk, or `both`."""
    entries_shown: NonNegativeInt = 5
    """Entries of each part that the writer sees, where `prompts.max_tokens` leaves room."""
    line_pointers: bool = True
    """Whether a call may say `"lines": [3, 5]` in place of a text, which stores these lines of the chunk word for word.
    The format `compact` knows nothing else."""
    max_calls: PositiveInt = 64
    """Calls of one answer that are run; those behind them are refused."""
    expert_draws: PositiveInt = 1
    """Proposals of the offline expert for a chunk that SFT learns from. Where an answer may hold fewer calls than there
    are facts, each but the first has a taste of its own for what a line is about, and who imitates them has to read."""
    max_turns: PositiveInt = 1
    """Answers to one chunk. Above 1 the writer gets the results of its calls before it goes on, and it may search."""
    retrieval: SearchMethod = SearchMethod.BM25
    """How entries are found for a question, and for the views `related` and `both`: bm25, dense or hybrid."""
    answer_tokens: PositiveInt = 30_000
    """Tokens of core and found entries together that an answer is given; beyond them the lowest scores are left out."""
    tokenizer: str | None = None
    """Model folder whose tokenizer counts the tokens of these limits; null: that of the model in training, and where
    none is trained four characters are a token."""
    prompts: PromptsConfig = field(default_factory=PromptsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.response_format = CallFormat(self.response_format)  # texts where a program gives them
        self.core_over_limit, self.view = CoreOverLimit(self.core_over_limit), View(self.view)
        self.retrieval = SearchMethod(self.retrieval)
        excluded = {Agent(part) for part in self.exclude_memory}
        self.exclude_memory = [part for part in PARTS if part in excluded]
        if not self.parts:
            raise ValueError("exclude_memory leaves no part of the memory to write to; leave one out of it")
        if self.response_format is CallFormat.COMPACT and not self.line_pointers:
            raise ValueError("line_pointers=false leaves response_format=compact nothing to write; take another format")
        if self.response_format is CallFormat.COMPACT and self.max_turns > 1:
            raise ValueError("response_format=compact has no results to read; set max_turns=1, or take another format")

    @property
    def parts(self) -> tuple[Agent, ...]:
        """Return the parts that the memory has."""
        there = PARTS if self.procedural else PARTS[:-1]
        return tuple(part for part in there if part not in self.exclude_memory)


def parts_named(text: str) -> list[Agent]:
    """Read the parts that a flag names, such as `core,episodic`. Raises what argparse shows for a name that is none."""
    names = text.replace(",", " ").split()
    if wrong := [name for name in names if name not in PARTS]:
        raise ArgumentTypeError(f"{wrong[0]!r} is no part of the memory; those are {', '.join(PARTS)}")
    return [part for part in PARTS if part in names]
