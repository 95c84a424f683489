"""What is asked of a build: raw files, sides, and how large an instance is."""

from dataclasses import dataclass, replace
from pathlib import Path

from membuilder.datasets.memalpha import MAX_QUESTIONS
from membuilder.errors import ConfigError
from membuilder.instances import reading
from membuilder.instances.sources import SOURCES, Source

TRAIN, TEST = SIDES = ("train", "test")
TEST_SHARE = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is asked for."""

    dataset: str
    source: Path
    out: Path
    seed: int = 42
    test_share: float | None = None
    """Of the documents, or of the labels; None: 0.1."""
    tokenizer: Path | None = None
    chunk_tokens: int | None = None
    """Largest chunk; None: as published for the dataset."""
    chunks: int | None = None
    """Of an instance, at most; None: as published."""
    questions: tuple[int, int] | None = None
    """Of an instance, at least and at most; None: as published."""
    sentence_lines: bool = False
    """Every sentence of a passage has a line of its own, at which a writer can point."""
    published: bool = False
    """Only `question` and `answer` of each question."""
    evaluation: tuple[Path, ...] = ()
    """Files that training may share nothing with."""
    allow_leak: bool = False
    model: str | None = None
    """What is asked about each instance (sources.ModelTask); None: no model."""

    @property
    def share(self) -> float:
        return TEST_SHARE if self.test_share is None else self.test_share

    @property
    def sides(self) -> tuple[str, ...]:
        if SOURCES[self.dataset].only_test:
            return (TEST,)
        return SIDES if self.share else (TRAIN,)

    @property
    def folder(self) -> Path:
        return self.out / self.dataset

    def shaped(self) -> Source:
        """Return the source with instances of the size asked for. Raises ConfigError for what it cannot have."""
        source = SOURCES[self.dataset]
        _refuse(self, source)
        shape = replace(source.shape, sentence_lines=self.sentence_lines)
        if self.chunk_tokens is not None:
            shape = replace(shape, chunk_tokens=(min(shape.chunk_tokens[0], self.chunk_tokens), self.chunk_tokens))
        if self.chunks is not None:
            shape = replace(shape, chunks=self.chunks)
        if self.questions is not None:
            shape = replace(shape, questions=self.questions)
        return replace(source, shape=shape)


def _refuse(plan: Plan, source: Source) -> None:
    if source.only_test and (plan.test_share is not None or plan.evaluation):
        raise ConfigError(f"--split and --evaluation are about training, and all of {plan.dataset} is for the test")
    if not source.is_sized and (plan.chunks is not None or plan.questions is not None):
        names = ", ".join(name for name, each in SOURCES.items() if each.is_sized)
        raise ConfigError(f"--chunks and --questions have no effect on {plan.dataset}; they have on {names}")
    if plan.sentence_lines and source.pack is not reading.pack:
        names = ", ".join(name for name, each in SOURCES.items() if each.pack is reading.pack)
        raise ConfigError(f"--sentence-lines has no effect on {plan.dataset}; it has on {names}")
    if plan.questions is not None and not 1 <= plan.questions[0] <= plan.questions[1] <= MAX_QUESTIONS:
        least, most = plan.questions
        raise ConfigError(f"--questions {least} {most}: give the least and the most, from 1 to {MAX_QUESTIONS}")
