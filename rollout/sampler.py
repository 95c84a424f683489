"""Joint rollouts of session updates: one answer per role, applied together, G times per session.

A role may answer several times (turns.py). The answers of one turn of all tasks are one call of the engine, and one
more where thinking has a budget (thinking.py).
"""

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from membuilder.embedding.local import TextEmbedder
from membuilder.schemes.scheme import Scheme
from membuilder.types import Bank, Session
from rollout.thinking import Answered, answers, longest_answer
from rollout.tokens import encode_prompt
from rollout.turns import Task, Told, Turns
from rollout.types import Engine, Group, Rollout, SamplingConfig


def make_task(dialogue_id: str, session: Session, bank: Bank, scheme: Scheme, embedder: TextEmbedder) -> Task:
    """Make the task of a session, to be sampled from this bank; it searches what each role is shown of the bank."""
    shown = scheme.show(session, bank, embedder)
    return Task(id=f"{dialogue_id}/{session.index}", dialogue_id=dialogue_id, session=session, bank=bank, shown=shown)


class NumberedRollout(NamedTuple):
    """A rollout and where it belongs."""

    task: int
    """Index of its task."""
    number: int
    """Which of the task's rollouts it is, from 0."""
    rollout: Rollout


class Waiting(NamedTuple):
    """A rollout some of whose roles go on."""

    each: NumberedRollout
    told: dict[str, Told]


def sample_rollouts(
    tasks: Sequence[Task],
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    scheme: Scheme,
    sampling: SamplingConfig,
    num_rollouts: int,
    seed: int,
) -> Iterator[NumberedRollout]:
    """Sample rollouts of each task; each one comes once all its roles are done. All prompts of a turn go in one call.

    A prompt that leaves the engine no room for the longest answer is not sampled: that role fails, the others go on.
    """
    room = engine.max_model_len - longest_answer(sampling, tokenizer)
    turns = Turns(tokenizer=tokenizer, scheme=scheme, room=room)
    waiting: list[Waiting] = []
    for each, told in _first_turn(tasks, engine, turns, sampling, num_rollouts, seed):
        if told:
            waiting.append(Waiting(each, told))
        else:
            yield each
    turn = 1
    while waiting:
        turn, going, waiting = turn + 1, waiting, []
        of_turn = zlib.crc32(f"{seed} turn {turn}".encode())
        for each, told in _later_turn(tasks, going, engine, turns, sampling, of_turn):
            if told:
                waiting.append(Waiting(each, told))
            else:
                yield each


def _first_turn(
    tasks: Sequence[Task], engine: Engine, turns: Turns, sampling: SamplingConfig, num_rollouts: int, seed: int
) -> Iterator[Waiting]:
    scheme, tokenizer = turns.scheme, turns.tokenizer
    prompts = [
        {role: encode_prompt(tokenizer, scheme.ask(role, task.session, task.bank, task.shown)) for role in scheme.roles}
        for task in tasks
    ]
    asked = [(number, role) for number, of_task in enumerate(prompts) for role in of_task]
    fitting = [(number, role) for number, role in asked if len(prompts[number][role]) <= turns.room]
    num_roles = Counter(number for number, _ in fitting)

    def answered(task: int, number: int, of_roles: dict[str, Answered]) -> Waiting:
        rollout, told = turns.first(tasks[task], prompts[task], of_roles)
        return Waiting(NumberedRollout(task, number, rollout), told)

    for task in range(len(tasks)):
        for number in range(num_rollouts if not num_roles[task] else 0):  # nobody is asked
            yield answered(task, number, {})
    if not fitting:
        return
    drawn: dict[tuple[int, int], dict[str, Answered]] = defaultdict(dict)
    given = [prompts[task][role] for task, role in fitting]
    for prompt, number, answer in answers(engine, tokenizer, given, num_rollouts, sampling, seed):
        task, role = fitting[prompt]
        drawn[task, number][role] = answer
        if len(drawn[task, number]) == num_roles[task]:
            yield answered(task, number, drawn.pop((task, number)))


def _later_turn(
    tasks: Sequence[Task],
    going: Sequence[Waiting],
    engine: Engine,
    turns: Turns,
    sampling: SamplingConfig,
    seed: int,
) -> Iterator[Waiting]:
    """Sample one more answer of every role that goes on."""
    asked = [(place, role) for place, (_, told) in enumerate(going) for role in told]
    given = [list(going[place].told[role].prompt_token_ids) for place, role in asked]
    drawn: dict[int, dict[str, Answered]] = defaultdict(dict)
    for prompt, _, answer in answers(engine, turns.tokenizer, given, 1, sampling, seed):
        place, role = asked[prompt]
        drawn[place][role] = answer
        (task, number, rollout), told = going[place]
        if len(drawn[place]) == len(told):
            after, told = turns.next(tasks[task], rollout, told, drawn.pop(place))
            yield Waiting(NumberedRollout(task, number, after), told)


def sample_groups(
    tasks: Sequence[Task],
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    scheme: Scheme,
    sampling: SamplingConfig,
    num_rollouts: int,
    seed: int,
) -> list[Group]:
    """Sample one group per task, in order, as `sample_rollouts` does."""
    return grouped(tasks, sample_rollouts(tasks, engine, tokenizer, scheme, sampling, num_rollouts, seed))


def grouped(tasks: Sequence[Task], rollouts: Iterable[NumberedRollout]) -> list[Group]:
    """Return the group of each task, its rollouts in the order of their numbers."""
    found: list[dict[int, Rollout]] = [{} for _ in tasks]
    for task, number, rollout in rollouts:
        found[task][number] = rollout
    return [
        Group(
            id=task.id,
            dialogue_id=task.dialogue_id,
            session=task.session,
            rollouts=tuple(rollout for _, rollout in sorted(of_task.items(), key=itemgetter(0))),
        )
        for task, of_task in zip(tasks, found, strict=True)
    ]
