"""Joint rollouts of session updates: one answer per agent, applied together, G times per session."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from membuilder.schemes.four_agents.apply import apply_session
from membuilder.schemes.four_agents.operations import parse
from membuilder.schemes.four_agents.prompts import PromptConfig, render_prompt
from membuilder.schemes.four_agents.session import Shown
from membuilder.types import Agent, AgentUpdate, Bank, Failure, FailureKind, Session
from rollout.tokens import decode_completion, encode_prompt
from rollout.types import AgentSample, Completion, Engine, Group, Rollout, SamplingConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One session to be sampled from one bank."""

    id: str
    dialogue_id: str
    session: Session
    bank: Bank
    shown: Shown


def sample_groups(
    tasks: Sequence[Task],
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptConfig,
    sampling: SamplingConfig,
    num_rollouts: int,
    seed: int,
) -> list[Group]:
    """One group per task, in order. All prompts go to the engine in one call.

    A prompt that leaves the engine no room for `sampling.max_tokens` is not sampled: that agent fails, the others go on.
    """
    if not tasks:
        return []
    prompt_ids = [
        encode_prompt(tokenizer, render_prompt(agent, task.session, task.bank, task.shown[agent], prompts))
        for task in tasks
        for agent in Agent
    ]
    room = engine.max_model_len - sampling.max_tokens
    fitting = [prompt for prompt in prompt_ids if len(prompt) <= room]
    sampled = iter(engine.generate(fitting, num_rollouts, sampling, seed) if fitting else [])
    drawn = ((prompt, next(sampled) if len(prompt) <= room else [None] * num_rollouts) for prompt in prompt_ids)
    groups = []
    for task in tasks:
        answers = {agent: next(drawn) for agent in Agent}
        rollouts = tuple(_rollout(task, answers, k, tokenizer, prompts) for k in range(num_rollouts))
        groups.append(Group(id=task.id, dialogue_id=task.dialogue_id, session=task.session, rollouts=rollouts))
    return groups


Drawn = Mapping[Agent, tuple[list[int], Sequence[Completion | None]]]
"""Per agent its prompt and the completions of it, one per rollout; None where the prompt is too long."""


def _rollout(task: Task, answers: Drawn, k: int, tokenizer: PreTrainedTokenizerBase, prompts: PromptConfig) -> Rollout:
    texts = {agent: _text(drawn[k], tokenizer) for agent, (_, drawn) in answers.items()}
    updates = {
        agent: _too_long(prompt)
        if drawn[k] is None
        else _read(drawn[k], texts[agent], agent, len(task.session.turns), prompts)
        for agent, (prompt, drawn) in answers.items()
    }
    result = apply_session(task.bank, task.session, updates, task.shown, prompts.core_limit_chars)
    samples = {
        agent: AgentSample(
            prompt_token_ids=tuple(prompt),
            completion=drawn[k],
            text=texts[agent],
            written=result.written[agent],
            failure=result.failures.get(agent),
        )
        for agent, (prompt, drawn) in answers.items()
    }
    return Rollout(samples=samples, bank=result.bank)


def _text(completion: Completion | None, tokenizer: PreTrainedTokenizerBase) -> str | None:
    return None if completion is None else decode_completion(tokenizer, completion.token_ids)


def _too_long(prompt: Sequence[int]) -> AgentUpdate:
    detail = f"the prompt's {len(prompt)} tokens leave no room for an answer within max_model_len"
    return AgentUpdate(failure=Failure(kind=FailureKind.PROMPT_TOO_LONG, detail=detail))


def _read(completion: Completion, text: str, agent: Agent, num_turns: int, prompts: PromptConfig) -> AgentUpdate:
    if not completion.finished:
        detail = f"no end token within {len(completion.token_ids)} tokens"
        return AgentUpdate(failure=Failure(kind=FailureKind.TRUNCATED, detail=detail))
    return parse(text, agent, num_turns, prompts.response_format)
