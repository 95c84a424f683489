"""The scores of instances by their sources: each source alone, and three means over all of it, each by its name."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from msgspec import UNSET, UnsetType

from membuilder.evaluation.intervals import bootstrap
from membuilder.evaluation.records import Record


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceScore:
    """One source: the mean over its instances of the mean over their questions."""

    instances: int
    questions: int
    unscored: int
    """Questions without an answer or a verdict; they count in no mean."""
    memory_tokens: float | None
    """Mean over the instances of what the system keeps of them, and of what they hold in all."""
    chunk_tokens: float | None
    cut_tokens: float | None
    """Mean over the questions of what was cut out of their context; None where nothing limits it."""
    score: float | None
    interval: tuple[float, float] | None
    """95% bootstrap interval over the instances; None where there is one instance only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceScores:
    """All sources of one system."""

    sources: dict[str, SourceScore]
    memory_tokens: float | None
    """Means over the sources, as `mean_of_sources` is."""
    chunk_tokens: float | None
    mean_of_sources: float | None
    """Every source counts alike."""
    mean_over_instances: float | None
    mean_over_questions: float | None


def by_source(records: Sequence[Record], seed: int) -> SourceScores | None:
    """Compute the scores of one system's records; None where they come from no sources."""
    grouped: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in sorted(records, key=lambda record: record.key):
        if isinstance(record.source, str):
            grouped[record.source][record.dialogue].append(record)
    if not grouped:
        return None
    sources = {name: _source(list(instances.values()), seed) for name, instances in sorted(grouped.items())}
    instances = [_scores(each) for of_source in grouped.values() for each in of_source.values()]
    return SourceScores(
        sources=sources,
        memory_tokens=_mean([each.memory_tokens for each in sources.values()]),
        chunk_tokens=_mean([each.chunk_tokens for each in sources.values()]),
        mean_of_sources=_mean([each.score for each in sources.values()]),
        mean_over_instances=_mean([_mean(each) for each in instances]),
        mean_over_questions=_mean([score for each in instances for score in each]),
    )


def _source(instances: Sequence[Sequence[Record]], seed: int) -> SourceScore:
    scores = [_scores(each) for each in instances]
    means = [mean for each in scores if (mean := _mean(each)) is not None]
    interval = None
    if len(means) > 1:
        ((low, high),) = bootstrap(np.array(means)[:, None], seed).tolist()
        interval = round(low, 6), round(high, 6)
    return SourceScore(
        instances=len(instances),
        questions=sum(map(len, instances)),
        unscored=sum(score is None for each in scores for score in each),
        memory_tokens=_mean([_mean([_counted(record.memory_tokens) for record in each]) for each in instances]),
        chunk_tokens=_mean([_mean([_counted(record.chunk_tokens) for record in each]) for each in instances]),
        cut_tokens=_mean([_counted(record.cut_tokens) for each in instances for record in each]),
        score=_mean(means),
        interval=interval,
    )


def _scores(records: Sequence[Record]) -> list[float | None]:
    return [record.scores["source"] for record in records]


def _counted(number: int | UnsetType) -> int | None:
    return None if number is UNSET else number


def _mean(values: Sequence[float | None]) -> float | None:
    had = [value for value in values if value is not None]
    return round(fmean(had), 6) if had else None
