"""An expert's building of one dialogue, read back from its store, and the folders of such samples.

    SAMPLE/memory.db                  the durable store, from which a stopped build goes on
    SAMPLE/metadata.json              written last: a folder without it is not whole, and no command takes it

What else a sample of the four agents has is told in `published_layout.py`. Everything here goes through the seam of
schemes, so that a scheme of your own is read as the built-in ones are.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from membuilder.bank.store import Store
from membuilder.bank.store_rows import Answer
from membuilder.datasets.files import FILE
from membuilder.errors import ConfigError, DataError, StoreError
from membuilder.files import path_of
from membuilder.schemes.load import SchemeSettings, scheme_of, templates_of
from membuilder.schemes.scheme import Call, CallOutcome, Prompt, Scheme, Step
from membuilder.trajectories.turns import LaterAnswer, answers
from membuilder.types import AgentUpdate, Bank

STORE_FILE, METADATA_FILE = "memory.db", "metadata.json"
QA_FILE = "rl_training_data.jsonl"
"""The questions that membuilder.qa writes into the folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertStep:
    """One session of an expert's building."""

    step: Step
    """A role whose answer failed has no operations here, and of calls only those that ran."""
    answers: Mapping[str, Answer]
    """Empty for a session without turns, about which nobody is asked."""

    @property
    def usable(self) -> tuple[str, ...]:
        """Return the roles whose answer was parsed and applied: all that is training data."""
        return tuple(role for role, answer in self.answers.items() if answer.failure is None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectory:
    dialogue: str
    speakers: tuple[str, ...]
    expert: str
    temperature: float | None
    scheme: Scheme
    steps: tuple[ExpertStep, ...]

    def prompt(self, number: int, role: str) -> str | Prompt:
        """Return what the role was asked about session `number`."""
        step = self.steps[number].step
        return self.scheme.ask(role, step.session, step.bank_before, step.shown)

    def target(self, number: int, role: str) -> tuple[str, tuple[LaterAnswer, ...]]:
        """Return what the role answered, as a model would have written it: for a core what is appended, not the whole.

        Of a scheme of several turns the later answers stand beside the first, each behind what the role was told.
        """
        step = self.steps[number].step
        return answers(self.scheme, role, step.updates[role], step)


def sample_folder(output: Path, dialogue_id: str) -> Path:
    return path_of(output, dialogue_id)


def sample_folders(folder: Path) -> list[Path]:
    """Return whole trajectories at `folder`, `folder`/SAMPLE or `folder`/DATASET/SAMPLE; DataError if there is none."""
    found = sorted({path.parent for depth in ("", "*/", "*/*/") for path in folder.glob(depth + METADATA_FILE)})
    if not found:
        others = f", but {number} that are not" if (number := len(unfinished_folders(folder))) else ""
        problem = f"holds no whole trajectory{others}; make one with `python -m membuilder.expert`"
        raise DataError(folder, FILE, METADATA_FILE, problem)
    return found


def unfinished_folders(folder: Path) -> list[Path]:
    """Return the samples at `folder` that are not whole: still being built, or with too many failed answers."""
    stores = {path.parent for depth in ("", "*/", "*/*/") for path in folder.glob(depth + STORE_FILE)}
    return sorted(path for path in stores if not (path / METADATA_FILE).exists())


def read_trajectory(store: Store) -> Trajectory:
    """Read a store session by session. The stored operations, applied once more, must give the stored bank."""
    settings, sessions, last = store.settings(), store.sessions(), store.bank()
    scheme = _scheme(store, settings)
    entries = {entry.id: entry for entry in last.entries}
    bank, steps = Bank(), []
    for stored in sessions:
        updates, shown = dict.fromkeys(scheme.roles, AgentUpdate()), dict.fromkeys(scheme.roles, ())
        answers = {role: stored.answers[role] for role in scheme.roles if role in stored.answers}
        for role, answer in answers.items():
            shown[role] = tuple(entries[each] for each in answer.shown)
            if answer.failure is None:
                updates[role] = AgentUpdate(operations=answer.operations)
        result = scheme.apply(stored.session, bank, updates, shown)
        if result.failures or result.bank.core != stored.core:
            problem = f"the answers about session {stored.session.id} do not give the bank stored for it; build anew"
            raise StoreError(store.path, problem)
        updates = {role: _that_ran(update, result.calls.get(role, ())) for role, update in updates.items()}
        step = Step(session=stored.session, bank_before=bank, shown=shown, updates=updates, result=result)
        steps.append(ExpertStep(step=step, answers=answers))
        bank = result.bank
    if bank != last:
        problem = "its answers do not give the bank stored with them; build anew"
        raise StoreError(store.path, problem)
    return Trajectory(
        dialogue=settings["dialogue"],
        speakers=tuple(settings["speakers"]),
        expert=settings["model"],
        temperature=settings["temperature"],
        scheme=scheme,
        steps=tuple(steps),
    )


def _scheme(store: Store, settings: Mapping[str, Any]) -> Scheme:
    """Return the scheme that a store was built by. Raises StoreError where it is not there, or asks otherwise today."""
    named = {key: settings[key] for key in ("scheme", "prompts", "memalpha") if key in settings}
    config = msgspec.convert(named, SchemeSettings)
    try:
        scheme = scheme_of(config)
    except ConfigError as error:
        advice = "run the command where membuilder.expert ran, with that scheme's folder there"
        raise StoreError(store.path, f"the scheme that built it cannot be had: {error}; {advice}") from error
    if settings["templates_sha256"] != templates_of(config):
        problem = "its model read other templates than today's"
        raise StoreError(store.path, f"{problem}; take those back, or build anew")
    return scheme


def _that_ran(update: AgentUpdate, calls: Iterable[Call]) -> AgentUpdate:
    """Return an update without the calls that did not run, which a model's stored answers have none of."""
    outcomes = [call.outcome for call in calls]
    if not outcomes or not update.operations:
        return update
    pairs = zip(update.operations, outcomes, strict=True)
    return replace(update, operations=tuple(each for each, outcome in pairs if outcome is CallOutcome.RAN))
