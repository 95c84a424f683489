"""The dialogues of a run, and what the offline expert makes of them."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from membuilder.building.dialogues import warn_of_empty
from membuilder.datasets.load import load, split
from membuilder.datasets.memalpha import samples_of
from membuilder.datasets.selection import select
from membuilder.datasets.splits import split_ids
from membuilder.datasets.windows import in_windows
from membuilder.embedding.local import Embedder, TextEmbedder
from membuilder.errors import ConfigError
from membuilder.evaluation.source_metrics import source_of
from membuilder.generate.dialogue import generate
from membuilder.generate.instances import generate_instances
from membuilder.progress import progress
from membuilder.schemes.four_agents.rules import warn_of_unread_turns
from membuilder.schemes.load import FOUR_AGENTS
from membuilder.schemes.scheme import Scheme, Step, build, text_of
from membuilder.types import Dialogue, Question
from trainer.configs import DataConfig
from trainer.data.leak_check import refuse_leaks
from trainer.data.test_ids import refuse_test_ids, refuse_trained_on

_log = logging.getLogger(__name__)
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Corpus(Generic[Item]):
    """The dialogues of a run, or what the expert made of each; a side that nobody asked for is empty."""

    train: list[Item]
    extra: list[Item] = field(default_factory=list)
    """Dialogues that only SFT trains on."""
    steering: list[Item] = field(default_factory=list)
    """Dialogues apart from those of SFT and RL; where there are none, lengths are steered on RL's own."""
    held_out: list[Item] = field(default_factory=list)


SIDES = {"train": "training", "extra": "extra", "steering": "steering", "held_out": "held-out"}
"""The sides of a corpus, and what the user is told they are."""


def load_corpus(config: DataConfig) -> Corpus[Dialogue]:
    """Train and held-out dialogues; no dialogue (in the generated corpus: no person) is on both sides."""
    if config.prepared is not None:
        raise ConfigError("data.prepared holds no dialogues: trainer.sft and trainer.rl read it, each its own kind")
    if config.path is None:
        make = generate if config.num_chunks is None else partial(generate_instances, num_chunks=config.num_chunks)
        train = make(config.num_train, config.seed, "train")
        held_out = make(config.num_held_out + config.num_steering, config.seed, "heldout")
        held_out, steering = held_out[: config.num_held_out], held_out[config.num_held_out :]
    elif config.holds_out and config.eval_path is None:
        train, held_out = split(load(config.path), config.held_out, config.seed)
    else:
        train, held_out = _chosen(config), held_out_file(config)
    extra = []
    if config.path is not None:
        names = [dialogue.id for dialogue in train]
        samples = samples_of(Path(config.path))
        inside = (sample for name in names for sample in samples.get(name, ()))
        refuse_test_ids((*names, *inside), config, f"data.path={config.path}")
        refuse_trained_on(names, held_out, config)
        train, steering = apart(train, config.num_steering)
        extra = generate(config.num_extra, config.seed, "train") if config.num_extra else []
    source = "the generated corpus" if config.path is None else f"data.path={config.path}"
    refuse_leaks((*train, *extra), config, source, held_out if config.draws_instances else ())
    sides = zip(SIDES, (train, extra, steering, held_out), strict=True)
    return Corpus(**{side: [in_windows(each, config.max_turns) for each in dialogues] for side, dialogues in sides})


def _chosen(config: DataConfig) -> list[Dialogue]:
    """Return the dialogues of `config.path`, or those of one published split."""
    if config.split is None:
        return load(config.path)
    ids = split_ids(config.split, Path(config.path))
    return select(load(config.path, ids), ids, f"data.split={config.split}")


def held_out_file(config: DataConfig) -> list[Dialogue]:
    """Return the dialogues of `config.eval_path`; none without one."""
    return [] if config.eval_path is None else load(config.eval_path)


def apart(dialogues: list[Item], number: int) -> tuple[list[Item], list[Item]]:
    """Return the last `number` dialogues apart from the others."""
    if number >= len(dialogues):
        raise ConfigError(f"data.num_steering={number} of {len(dialogues)} training dialogues leaves none to train on")
    return dialogues[: len(dialogues) - number], dialogues[len(dialogues) - number :]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertBuild:
    """What the expert did with one dialogue: one step a session, none where the scheme has no expert."""

    dialogue: Dialogue
    steps: tuple[Step, ...]
    questions: tuple[tuple[Question, ...], ...] | None = None
    """What is asked after each step, where the data says so; None: each question is asked where its evidence is."""

    def asked(self) -> Sequence[Sequence[Question]]:
        """Return the questions that are asked after each step."""
        return self.dialogue.questions_by_session() if self.questions is None else self.questions

    def tokens_written(self, count_tokens: Callable[[Sequence[str]], int]) -> list[dict[str, int]]:
        """Tell how many memory tokens each role wrote in each session."""
        return [{role: count_tokens(texts) for role, texts in step.result.written.items()} for step in self.steps]


def sft_builds(builds: Corpus[ExpertBuild], config: DataConfig) -> list[ExpertBuild]:
    """Return what an epoch of SFT goes through."""
    return builds.train * (1 if config.path is None else config.repeat) + builds.extra


def build_corpus(
    config: DataConfig, embedder: TextEmbedder, scheme: Scheme, *sides: str, is_needed: bool = True
) -> Corpus[ExpertBuild]:
    """Return what the scheme's offline expert makes of some sides of the corpus that `load_corpus` gives.

    Where no expert `is_needed`, a scheme may lack one: the dialogues then stand alone.
    """
    corpus = load_corpus(config)
    if scheme.expert is None and not is_needed:
        return Corpus(**{side: [ExpertBuild(dialogue=d, steps=()) for d in getattr(corpus, side)] for side in sides})
    return Corpus(**{side: expert_builds(getattr(corpus, side), embedder, scheme, SIDES[side]) for side in sides})


def expert_builds(
    dialogues: Sequence[Dialogue], embedder: TextEmbedder, scheme: Scheme, name: str
) -> list[ExpertBuild]:
    """Return what the scheme's offline expert makes of each dialogue. Raises ConfigError for a scheme without one."""
    propose = scheme.expert
    if propose is None:
        raise ConfigError(
            f"scheme '{scheme.name}' has no offline expert, which SFT imitates and RL starts sessions from: give "
            "data.prepared, or in RL dense=false, which needs none"
        )
    label = f"rules build the {name} banks"
    bar = progress(dialogues, label=label, unit="dialogue", enabled=bool(dialogues))
    return [ExpertBuild(dialogue=d, steps=tuple(build(d, propose, scheme, embedder))) for d in bar]


def warn_of_lost_text(builds: Corpus[ExpertBuild], scheme: Scheme, embedder: Embedder) -> None:
    """Log how many turns the rules cannot read, of how many dialogues nothing was stored, and which texts were cut."""
    experts = builds.train + builds.extra + builds.steering + builds.held_out
    if scheme.name == FOUR_AGENTS:
        warn_of_unread_turns(build.dialogue for build in experts)
    empty = [build.dialogue.id for build in experts if build.steps and not build.steps[-1].result.bank.memory_text()]
    warn_of_empty("expert", empty, len(experts))
    if embedder.num_cut:
        problem = "texts longer than the embedding model reads: %d; what stands behind its limit is not searched"
        _log.warning(problem, embedder.num_cut)


def sources_of(builds: Sequence[ExpertBuild]) -> dict[str, str]:
    """Return where each dialogue comes from, by its id; one that is a source of its own is left out."""
    found = {build.dialogue.id: source_of(build.dialogue) for build in builds}
    return {name: source for name, source in found.items() if source != name}


def training_text(builds: Sequence[ExpertBuild], scheme: Scheme) -> list[str]:
    """Return every prompt of the expert's builds: what a tiny run's tokenizer is trained on."""
    return [
        text_of(scheme.ask(role, step.session, step.bank_before, step.shown))
        for expert in builds
        for step in expert.steps
        for role in scheme.roles
    ]
