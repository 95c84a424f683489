"""Files that `python -m membuilder.prepare sft|rl` wrote, as the loops take them (`data.prepared`).

A file for SFT holds pairs of prompt and completion; those of one session share a packed tree. A file for RL holds
single sessions, each with the expert's memory before it, the questions after it and what the expert wrote. Sessions
without questions are not in it, so every session starts from the expert's memory (`states: expert`).
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from membuilder.datasets.splits import split_ids
from membuilder.errors import ConfigError, DataError
from membuilder.schemes.load import scheme_of
from membuilder.schemes.scheme import Scheme, Step, marks_of, text_of
from membuilder.trajectories.records import ExpertCall, RLRecord, SFTRecord, read_records
from membuilder.types import AgentUpdate, Dialogue, Session
from rollout.tokens import encode_prompt
from trainer.batching.packing import Node, TrainSequence
from trainer.configs import DataConfig, OverLong
from trainer.data.corpus import ExpertBuild
from trainer.data.leak_check import dialogues_of_prompts, refuse_leaks
from trainer.data.sft_examples import examples
from trainer.data.test_ids import refuse_test_ids
from trainer.data.truncation import LengthCounts, fit
from trainer.sft_config import SFTConfig

_log = logging.getLogger(__name__)


def prepared_trees(tokenizer: PreTrainedTokenizerBase, config: SFTConfig) -> tuple[list[Node], LengthCounts]:
    """Return the trees of the sessions in `config.data.prepared`; a pair without a session has one of its own."""
    if config.over_long is OverLong.CUT:
        raise ConfigError(
            "over_long=cut takes tokens out of the dialogue, and a prepared file does not say where in a prompt that "
            "is: set over_long=drop or over_long=error"
        )
    sessions: dict[tuple, list[TrainSequence]] = defaultdict(list)
    records, scheme = _read(config.data, SFTRecord, "sft"), scheme_of(config)
    marks = marks_of(scheme)
    _refuse_other_roles(records, scheme, config)
    refuse_leaks(dialogues_of_prompts(records), config.data, f"data.prepared={config.data.prepared}")
    for number, record in enumerate(records):
        alone = record.dialogue is None or record.session is None
        place = ("line", number) if alone else (record.dialogue, record.session)
        prompt = encode_prompt(tokenizer, record.asked)
        sessions[place] += examples(tokenizer, prompt, record.completion, record.later, marks)
    trees, counts = [], LengthCounts()
    for (name, number), sequences in sessions.items():
        fitted, done = fit(sequences, range(0), config.max_length, config.over_long, session=f"{name}/{number}")
        trees += fitted
        counts += done
    return trees, counts


def _refuse_other_roles(records: Iterable[SFTRecord], scheme: Scheme, config: SFTConfig) -> None:
    """Raise ConfigError for answers of a role that the run's scheme has not, and so would never ask."""
    known = {None, *scheme.roles}
    if other := next((record.agent for record in records if record.agent not in known), None):
        raise ConfigError(
            f"data.prepared={config.data.prepared} holds answers of role {other!r}, which scheme={config.scheme} has "
            "not: give the scheme and the settings that the expert had (keys scheme, prompts and memalpha)"
        )


def read_builds(config: DataConfig, scheme: Scheme) -> list[ExpertBuild]:
    """Return the sessions of an RL file, dialogue by dialogue; positions count only the sessions that are there."""
    dialogues: dict[str, list[RLRecord]] = defaultdict(list)
    for record in _read(config, RLRecord, "rl"):
        dialogues[record.dialogue].append(record)
    ordered = {name: sorted(records, key=lambda each: each.session_index) for name, records in dialogues.items()}
    builds = [_build(config.prepared, name, records, scheme) for name, records in ordered.items()]
    pairs = zip(chain(*ordered.values()), chain(*(build.steps for build in builds)), strict=True)
    _warn_of_other_prompts(config.prepared, pairs, scheme)
    return builds


def _warn_of_other_prompts(path: str, pairs: Iterable[tuple[RLRecord, Step]], scheme: Scheme) -> None:
    """Log where the run asks otherwise than the expert was asked, and so otherwise than SFT on its answers taught."""
    is_other = [
        text_of(call.asked) != text_of(scheme.ask(call.agent, step.session, step.bank_before, step.shown))
        for record, step in pairs
        for call in record.calls
    ]
    if any(is_other):
        problem = "%s: %d of %d prompts are not those that the expert was asked: its settings were others (key prompts)"
        _log.warning(problem, path, sum(is_other), len(is_other))


def _build(path: str, name: str, records: list[RLRecord], scheme: Scheme) -> ExpertBuild:
    steps = tuple(_step(path, record, scheme) for record in records)
    speakers = dict.fromkeys(turn.speaker for step in steps for turn in step.session.turns)
    questions = tuple(tuple(question for question in record.questions if question.answerable) for record in records)
    return ExpertBuild(
        dialogue=Dialogue(
            id=name,
            speakers=tuple(speakers),
            sessions=tuple(step.session for step in steps),
            questions=tuple(question for asked in questions for question in asked),
        ),
        steps=steps,
        questions=questions,
    )


def _step(path: str, record: RLRecord, scheme: Scheme) -> Step:
    """Return what the expert did, its operations applied once more: they must write what the file says they wrote."""
    where = f"dialogue '{record.dialogue}', session {record.session_index}"
    if record.session is None or record.bank_before is None:
        problem = "is missing: a file of prompts alone cannot be sampled from; prepare it with --trajectories-dir"
        raise DataError(path, where, "session, bank_before", problem)
    calls = {call.agent: call for call in record.calls}
    if set(calls) != set(scheme.roles):
        problem = f"need one of each role ({', '.join(scheme.roles)}), found {sorted(map(str, calls))}"
        raise DataError(path, where, "calls", problem)
    entries = {entry.id: entry for entry in record.bank_before.entries}
    shown = {role: tuple(entries[each] for each in calls[role].shown) for role in scheme.roles}
    updates = {role: _update(calls[role], record.session, scheme) for role in scheme.roles}
    result = scheme.apply(record.session, record.bank_before, updates, shown)
    for role in scheme.roles:
        if result.written[role] != calls[role].written:
            remedy = f"give the settings the expert had (keys scheme, prompts and memalpha), not {scheme}"
            problem = f"the operations of role {role} do not write what stands in `written`: {remedy}"
            raise DataError(path, where, "calls", problem)
    return Step(session=record.session, bank_before=record.bank_before, shown=shown, updates=updates, result=result)


def _update(call: ExpertCall, session: Session, scheme: Scheme) -> AgentUpdate:
    """Return what the expert asked for in all its answers, as it was applied when they were written."""
    texts = [] if call.completion is None else [call.completion, *(each.completion for each in call.later)]
    read = [scheme.parse(call.agent, text, session) for text in texts]
    failure = next((update.failure for update in read if update.failure is not None), None)
    return AgentUpdate(operations=tuple(each for update in read for each in update.operations), failure=failure)


def _read(config: DataConfig, kind: type, stage: str) -> Sequence:
    """Return the records of `config.prepared`, of one published split where that is asked for."""
    path = config.prepared
    try:
        records = read_records(Path(path), kind)
    except DataError as error:
        remedy = f"data.prepared of trainer.{stage} is a file of `python -m membuilder.prepare {stage}`"
        raise DataError(error.path, error.record, error.field, f"{error.problem}; {remedy}") from error
    if not records:
        problem = f"there is none; make some: python -m membuilder.prepare {stage}"
        raise DataError(path, "whole file", "records", problem)
    if num_unnamed := sum(record.dialogue is None for record in records):
        problem = "%s: %d of %d records name no dialogue; whether they are of a published split cannot be told"
        _log.warning(problem, path, num_unnamed, len(records))
    if config.split is not None:
        ids = set(split_ids(config.split, Path(path)))
        names = sorted({str(record.dialogue) for record in records})
        records = [record for record in records if record.dialogue in ids]
        if not records:
            problem = f"none of its {len(ids)} ids is in {path}, which has {names[:5]} ...; data.split=null takes all"
            raise ConfigError(f"data.split={config.split}: {problem}")
    refuse_test_ids((record.dialogue for record in records), config, f"data.prepared={path}")
    return records
