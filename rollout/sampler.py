"""Joint rollouts of session updates: one answer per role, applied together, G times per session."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from membuilder.embedding.local import TextEmbedder
from membuilder.schemes.scheme import Scheme, Shown
from membuilder.types import AgentUpdate, Bank, Failure, FailureKind, Session
from rollout.tokens import decode_completion, encode_prompt
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


def sample_groups(
    tasks: Sequence[Task],
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    scheme: Scheme,
    sampling: SamplingConfig,
    num_rollouts: int,
    seed: int,
) -> list[Group]:
    """Sample one group per task, in order. All prompts go to the engine in one call.

    A prompt that leaves the engine no room for `sampling.max_tokens` is not sampled: that role fails, the others go on.
    """
    prompts = [
        {role: encode_prompt(tokenizer, scheme.ask(role, task.session, task.bank, task.shown)) for role in scheme.roles}
        for task in tasks
    ]
    room = engine.max_model_len - sampling.max_tokens
    asked = [(number, role) for number, of_task in enumerate(prompts) for role in of_task]
    fitting = [(number, role) for number, role in asked if len(prompts[number][role]) <= room]
    sampled = (
        engine.generate([prompts[n][role] for n, role in fitting], num_rollouts, sampling, seed) if fitting else []
    )
    completions = dict(zip(fitting, sampled, strict=True))
    groups = []
    for number, task in enumerate(tasks):
        rollouts = []
        for k in range(num_rollouts):
            drawn = {role: completions[number, role][k] for role in scheme.roles if (number, role) in completions}
            rollouts.append(_rollout(task, prompts[number], drawn, tokenizer, scheme))
        groups.append(Group(id=task.id, dialogue_id=task.dialogue_id, session=task.session, rollouts=tuple(rollouts)))
    return groups


def _rollout(
    task: Task,
    prompts: Mapping[str, list[int]],
    drawn: Mapping[str, Completion],
    tokenizer: PreTrainedTokenizerBase,
    scheme: Scheme,
) -> Rollout:
    """Apply the roles' answers together; `drawn` lacks the roles whose prompts are too long."""
    # an end token is no part of the text, also where the tokenizer does not know it as special
    ids = {role: each.token_ids[: len(each.token_ids) - each.finished] for role, each in drawn.items()}
    texts = {role: decode_completion(tokenizer, each) for role, each in ids.items()}
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
