"""Answers of an engine, with a budget for the thinking before them.

    sampling = SamplingConfig(thinking_budget=1024, max_tokens=2048)

What does not end within the budget is stopped there and goes on behind it; thinking that is still open is closed first.
The tokens that close it are nobody's answer: they carry no log-prob and no loss.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from rollout.chat_template import THINK, THOUGHT
from rollout.tokens import decode_completion
from rollout.types import Completion, Engine, SamplingConfig

CLOSING = f"\n\nThat is enough thinking; now the answer.\n{THOUGHT}\n\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """What an engine answered, in one part, or in two around what closed its thinking."""

    first: Completion
    closing: tuple[int, ...] = ()
    rest: Completion | None = None
    """None where nothing was stopped."""

    def text(self, tokenizer: PreTrainedTokenizerBase, marks: Sequence[str]) -> str:
        """Return what it says, the thinking and what closed it too, without its end token; `marks` as for decoding."""
        last = self.rest or self.first
        ids = self.first.token_ids + self.closing + (() if self.rest is None else self.rest.token_ids)
        return decode_completion(tokenizer, ids[:-1] if last.finished else ids, marks)


class Drawn(NamedTuple):
    """An answer and where it belongs, as in `Sampled`."""

    prompt: int
    number: int
    answer: Answered


def longest_answer(sampling: SamplingConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> int:
    """Return how many tokens an answer takes at most, with its thinking and what closes it; None: of any tokenizer."""
    if sampling.thinking_budget is None:
        return sampling.max_tokens
    closing = len(CLOSING.encode() if tokenizer is None else _closing(tokenizer))  # no token is less than a byte
    return sampling.thinking_budget + closing + sampling.max_tokens


def answers(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    n: int,
    sampling: SamplingConfig,
    seed: int,
) -> Iterator[Drawn]:
    """Sample `n` answers of each prompt and yield each once it is whole: one call of the engine, two with a budget."""
    if sampling.thinking_budget is None:
        for prompt, number, completion in engine.stream(list(prompts), n, sampling, seed):
            yield Drawn(prompt, number, Answered(first=completion))
        return
    stopped: list[Drawn] = []
    thinking = replace(sampling, max_tokens=sampling.thinking_budget)
    for prompt, number, completion in engine.stream(list(prompts), n, thinking, seed):
        if completion.finished:
            yield Drawn(prompt, number, Answered(first=completion))
        else:
            text = decode_completion(tokenizer, completion.token_ids)
            is_open = text.rfind(THINK) > text.rfind(THOUGHT)
            closing = _closing(tokenizer) if is_open else ()
            stopped.append(Drawn(prompt, number, Answered(first=completion, closing=closing)))
    if stopped:
        given = [[*prompts[prompt], *answer.first.token_ids, *answer.closing] for prompt, _, answer in stopped]
        for place, _, rest in engine.stream(given, 1, sampling, zlib.crc32(f"{seed} answer".encode())):
            prompt, number, answer = stopped[place]
            yield Drawn(prompt, number, replace(answer, rest=rest))


def _closing(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    return tuple(tokenizer(CLOSING, add_special_tokens=False)["input_ids"])
