"""The settings of the reward of `memalpha`: section `reward.memalpha`."""

from dataclasses import dataclass, field
from enum import StrEnum

from membuilder.value_types import NonNegativeFloat, PositiveFloat, Section, Share


class Credit(StrEnum):
    """Which chunks of an episode earn the answers at its end."""

    EPISODE = "episode"
    """Every chunk earns all of it: as published."""
    EVIDENCE = "evidence"
    """A chunk earns its share: that of the entries last written there which an answered question was given."""


class ValidityBy(StrEnum):
    """Who says whether what a call stored is valid."""

    RULES = "rules"
    LLM = "llm"


@dataclass(frozen=True, kw_only=True)
class MemAlphaRewardConfig(Section):
    beta: NonNegativeFloat = 0.05
    """Weight of r3, one minus memory tokens over chunk tokens."""
    gamma: NonNegativeFloat = 0.1
    """Weight of r4, the share of valid contents."""
    r1_threshold: Share | None = None
    """From which share of right answers on r1 is 1, and below it 0; null: r1 is that share."""
    empty_is_valid: bool = True
    """Whether a chunk in which the writer calls nothing has r2 and r4 of 1; false: 0, as published."""
    validity: ValidityBy = ValidityBy.RULES
    """Who judges contents: `rules`, offline, or `llm`, the model of `reward.validator`."""
    evidence_share: Share = 0.5
    """Share of r1 that `reward.credit: evidence` gives out by evidence; the rest is spread evenly over the chunks."""
    chunk_weight: NonNegativeFloat = 0.5
    """Weight of the chunk's own questions, of which `reward.chunk_questions` are asked right after it."""
    weights: dict[str, PositiveFloat] = field(default_factory=dict)
    """Source -> what the loss of its instances is multiplied by, such as {booksum: 2.0}; 1 where it is not named."""
