"""Records between the engine, the sampler and the learner; this file imports neither torch nor vLLM.

completion = Completion(token_ids=[812, 7], rollout_logprobs=[-0.11, -0.02], finished=True, weight_version=3)
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from membuilder.schemes.scheme import Call
from membuilder.types import Bank, Failure, Session
from membuilder.value_types import NonNegativeFloat, PositiveInt, PositiveShare, Section
from rollout.routed_experts import RoutedExperts


@dataclass(kw_only=True)
class SamplingConfig(Section):
    temperature: NonNegativeFloat = 0.8
    """0 decodes greedily."""
    top_p: PositiveShare = 0.9
    """Below 1 the engine's distribution is cut, and its log-probs differ from the trainer's (docs/method.md)."""
    max_tokens: PositiveInt = 6000
    """Longest completion, in tokens."""
    thinking_budget: PositiveInt | None = None
    """Tokens after which thinking is closed, before an answer of up to `max_tokens`; null: `max_tokens` bounds both.
    Whether a model thinks is an option of its chat template (`prompts.chat_template_kwargs`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    token_ids: tuple[int, ...]
    """The sampled ids, with the end token when the model produced it."""
    rollout_logprobs: tuple[float, ...]
    """Log-probs of the sampled ids under the engine's processed distribution."""
    finished: bool
    """Whether it has an end token; else it was cut at max_tokens."""
    weight_version: int
    """Policy version that sampled it."""
    routed_experts: RoutedExperts | None = None
    """The experts of its inputs, all of its tokens but the last, and of tokens before them where they are not told
    elsewhere; None where the engine does not report them."""

    def behind(self, told: tuple[int, ...]) -> "Completion":
        """Return what it is behind another one and `told`: without the experts that the other one carries already."""
        if self.routed_experts is None:
            return self
        return replace(self, routed_experts=self.routed_experts.last(len(told) + len(self.token_ids)))


class Sampled(NamedTuple):
    """A completion and where it belongs."""

    prompt: int
    """Index of its prompt."""
    number: int
    """Which of the prompt's `n` it is, from 0."""
    completion: Completion


class Engine(Protocol):
    """What samples completions: it takes token ids and gives token ids."""

    max_model_len: int
    """Longest prompt plus completion, in tokens. A prompt without room for `max_tokens` more must not be given."""

    def stream(self, prompts: list[list[int]], n: int, sampling: SamplingConfig, seed: int) -> Iterator[Sampled]:
        """Sample `n` completions for each prompt and yield each one once it is finished.

        The same seed gives the same tokens, whatever is done or drawn between two of them. Weights stay as they are
        until the last one came.
        """

    def generate(self, prompts: list[list[int]], n: int, sampling: SamplingConfig, seed: int) -> list[list[Completion]]:
        """Return what `stream` yields, in the order of the prompts."""

    def load_weights(self, named_tensors, version: int) -> None:
        """Replace the whole model, drop every cached prefix, stamp later completions with `version`."""

    def sleep(self) -> None:
        """Give memory back until the next `load_weights`, where the engine can; nothing is generated in between."""

    def close(self) -> None: ...


def in_order(sampled: Iterable[Sampled], num_prompts: int, n: int) -> list[list[Completion]]:
    """Return the completions of each prompt, whatever order they finished in."""
    found = {(each.prompt, each.number): each.completion for each in sampled}
    return [[found[prompt, number] for number in range(n)] for prompt in range(num_prompts)]


@dataclass(frozen=True, kw_only=True, slots=True)
class LaterTurn:
    """An answer of a role that went on with the same session, or the rest of one that was stopped at its budget."""

    told_token_ids: tuple[int, ...]
    """What stands between the completion before it and this one, such as the results of calls."""
    completion: Completion
    text: str
    """The decoded answer, with its rest where it was stopped; a rest has none of its own."""
    is_rest: bool = False
    """Whether it belongs to the answer before it, whose thinking was stopped (rollout/thinking.py)."""


class Trained(NamedTuple):
    """A completion that is trained, behind all that stood before it."""

    prompt_token_ids: tuple[int, ...]
    completion: Completion
    is_cut: bool
    """Whether the answer lacks its end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One role's part of a joint rollout."""

    prompt_token_ids: tuple[int, ...]
    completion: Completion | None
    """None where the prompt is too long for the engine, so that nothing was sampled."""
    text: str | None
    """The decoded completion, with its rest where it was stopped."""
    written: tuple[str, ...]
    """Memory texts that it wrote, in all its turns; empty when it failed."""
    failure: Failure | None
    """Why nothing of it could be used."""
    calls: tuple[Call, ...] = ()
    """Calls of tools in all its turns and what became of them; a scheme without tools has none."""
    later: tuple[LaterTurn, ...] = ()
    """The turns behind the first."""

    @property
    def num_turns(self) -> int:
        """Return the number of answers."""
        return int(self.completion is not None) + sum(not turn.is_rest for turn in self.later)

    def turns(self) -> list[Trained]:
        """Return the completion of each turn behind its whole prompt; none where nothing was sampled."""
        if self.completion is None:
            return []
        found = [Trained(self.prompt_token_ids, self.completion, not self.completion.finished)]
        for turn in self.later:
            prompt, completion, _ = found[-1]
            if turn.is_rest:
                found[-1] = found[-1]._replace(is_cut=False)
            told = (*prompt, *completion.token_ids, *turn.told_token_ids)
            found.append(Trained(told, turn.completion, not turn.completion.finished))
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One joint sample of a session update: every role's answer, applied together."""

    samples: dict[str, Sample]
    """The roles' samples, by role."""
    bank: Bank
    """The memory bank after the session."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """All rollouts of one session. The id comes from the sampler, never from prompt text."""

    id: str
    dialogue_id: str
    session: Session
    rollouts: tuple[Rollout, ...]
