"""Joint rollouts of session updates: one answer per agent, applied together, G times per session."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from membuilder.apply import apply_session
from membuilder.build import Shown
from membuilder.operations import parse
from membuilder.prompts import PromptConfig, render_prompt
from membuilder.types import Agent, AgentUpdate, Bank, Failure, FailureKind, Session
from membuilder.windows import Window, join, windows
from rollout.tokens import decode_completion, encode_prompt
from rollout.types import AgentSample, Completion, Engine, Group, Part, Rollout, SamplingConfig


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
    """One group per task, in order. All prompts go to the engine in one call."""
    read = [windows(task.session, prompts.max_turns) for task in tasks]
    prompt_ids = [
        encode_prompt(tokenizer, render_prompt(agent, window.session, task.bank, task.shown[agent], prompts))
        for task, task_windows in zip(tasks, read, strict=True)
        for agent in Agent
        for window in task_windows
    ]
    drawn = iter(zip(prompt_ids, engine.generate(prompt_ids, num_rollouts, sampling, seed), strict=True))
    groups = []
    for task, task_windows in zip(tasks, read, strict=True):
        answers = {agent: [next(drawn) for _ in task_windows] for agent in Agent}
        rollouts = tuple(_rollout(task, task_windows, answers, k, tokenizer, prompts) for k in range(num_rollouts))
        groups.append(Group(id=task.id, dialogue_id=task.dialogue_id, session=task.session, rollouts=rollouts))
    return groups


Drawn = Mapping[Agent, list[tuple[list[int], list[Completion]]]]
"""Per agent and window: the prompt and its completions, one per rollout."""


def _rollout(
    task: Task,
    task_windows: list[Window],
    answers: Drawn,
    k: int,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptConfig,
) -> Rollout:
    parts = {
        agent: tuple(
            Part(
                prompt_token_ids=tuple(prompt),
                completion=completions[k],
                text=decode_completion(tokenizer, completions[k].token_ids),
            )
            for prompt, completions in drawn
        )
        for agent, drawn in answers.items()
    }
    updates = {
        agent: join(
            [(window, _read(part, agent, window, prompts)) for window, part in zip(task_windows, own, strict=True)]
        )
        for agent, own in parts.items()
    }
    result = apply_session(task.bank, task.session, updates, task.shown, prompts.core_limit_chars)
    samples = {
        agent: AgentSample(parts=own, written=result.written[agent], failure=result.failures.get(agent))
        for agent, own in parts.items()
    }
    return Rollout(samples=samples, bank=result.bank)


def _read(part: Part, agent: Agent, window: Window, prompts: PromptConfig) -> AgentUpdate:
    if not part.completion.finished:
        detail = f"no end token within {len(part.completion.token_ids)} tokens"
        return AgentUpdate(failure=Failure(kind=FailureKind.TRUNCATED, detail=detail))
    return parse(part.text, agent, len(window.session.turns), prompts.response_format)
