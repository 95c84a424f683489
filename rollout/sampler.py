"""Joint rollouts of session updates: one answer per role, applied together, G times per session."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from membuilder.embedding.local import TextEmbedder
from membuilder.schemes.scheme import Scheme, Shown
from membuilder.types import AgentUpdate, Bank, Failure, FailureKind, Session
from rollout.tokens import completion_text, encode_prompt
from rollout.types import Completion, Engine, Group, Rollout, Sample, SamplingConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One session to be sampled from one bank."""

    id: str
    dialogue_id: str
    session: Session
    bank: Bank
    shown: Shown


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


def sample_rollouts(
    tasks: Sequence[Task],
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    scheme: Scheme,
    sampling: SamplingConfig,
    num_rollouts: int,
    seed: int,
) -> Iterator[NumberedRollout]:
    """Sample rollouts of each task; each one comes once all its roles have answered. All prompts go in one call.

    A prompt that leaves the engine no room for `sampling.max_tokens` is not sampled: that role fails, the others go on.
    """
    prompts = [
        {role: encode_prompt(tokenizer, scheme.ask(role, task.session, task.bank, task.shown)) for role in scheme.roles}
        for task in tasks
    ]
    room = engine.max_model_len - sampling.max_tokens
    asked = [(number, role) for number, of_task in enumerate(prompts) for role in of_task]
    fitting = [(number, role) for number, role in asked if len(prompts[number][role]) <= room]
    num_roles = Counter(number for number, _ in fitting)
    for task in range(len(tasks)):
        for number in range(num_rollouts if not num_roles[task] else 0):  # nobody is asked
            yield NumberedRollout(task, number, _rollout(tasks[task], prompts[task], {}, tokenizer, scheme))
    if not fitting:
        return
    drawn: dict[tuple[int, int], dict[str, Completion]] = defaultdict(dict)
    given = [prompts[task][role] for task, role in fitting]
    for prompt, number, completion in engine.stream(given, num_rollouts, sampling, seed):
        task, role = fitting[prompt]
        drawn[task, number][role] = completion
        if len(drawn[task, number]) == num_roles[task]:
            answers = drawn.pop((task, number))
            yield NumberedRollout(task, number, _rollout(tasks[task], prompts[task], answers, tokenizer, scheme))


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


def _rollout(
    task: Task,
    prompts: Mapping[str, list[int]],
    drawn: Mapping[str, Completion],
    tokenizer: PreTrainedTokenizerBase,
    scheme: Scheme,
) -> Rollout:
    """Apply the roles' answers together; `drawn` lacks the roles whose prompts are too long."""
    texts = {role: completion_text(tokenizer, completion) for role, completion in drawn.items()}
    updates = {}
    for role in scheme.roles:
        if role not in drawn:
            problem = f"the prompt's {len(prompts[role])} tokens leave no room for an answer within max_model_len"
            updates[role] = _failed(FailureKind.PROMPT_TOO_LONG, problem)
        elif not drawn[role].finished:
            problem = f"no end token within {len(drawn[role].token_ids)} tokens"
            updates[role] = _failed(FailureKind.TRUNCATED, problem)
        else:
            updates[role] = scheme.parse(role, texts[role], task.session)
    result = scheme.apply(task.session, task.bank, updates, task.shown)
    samples = {
        role: Sample(
            prompt_token_ids=tuple(prompts[role]),
            completion=drawn.get(role),
            text=texts.get(role),
            written=result.written[role],
            failure=result.failures.get(role),
        )
        for role in scheme.roles
    }
    return Rollout(samples=samples, bank=result.bank)


def _failed(kind: FailureKind, detail: str) -> AgentUpdate:
    return AgentUpdate(failure=Failure(kind=kind, detail=detail))
