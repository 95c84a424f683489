"""Text <-> token ids, through a chat template where the tokenizer has one."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from membuilder.errors import ConfigError
from membuilder.model_folders import loading
from membuilder.schemes.scheme import Message, Prompt, messages_of, text_of
from rollout.chat_template import THINK, THOUGHT, behind_answer, chat_format, check_tools, render, set_template_kwargs
from rollout.types import Completion


def load_tokenizer(path: str, template_kwargs: Mapping[str, Any] | None = None) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder or hub name; `template_kwargs` become defaults of its chat template."""
    with loading("tokenizer", path):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    if not tokenizer("a word", add_special_tokens=False)["input_ids"]:  # what becomes of a folder without its files
        raise ConfigError(f"no tokenizer at '{path}': the one there knows no words; copy the model's tokenizer files")
    chat_format(tokenizer)  # a template that fails is told before anything is rendered
    set_template_kwargs(tokenizer, template_kwargs or {})
    return tokenizer


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str | Prompt) -> list[int]:
    """Return a prompt's ids: its messages and tools through the chat template, or their text if there is no template.

    A control token spelt out in a dialogue or a tool stays text: it never ends or opens a message. Raises ConfigError
    where there are tools and the template writes none.
    """
    tools = () if isinstance(prompt, str) else prompt.tools
    if tools:
        check_tools(tokenizer)
    if tokenizer.chat_template is None:
        ids = tokenizer(text_of(prompt), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [*chat_format(tokenizer).begin_ids, *ids]
    written = render(tokenizer, _spelt(tokenizer, messages_of(prompt)), _spelt(tokenizer, tools))
    return tokenizer(written, add_special_tokens=False)["input_ids"]


def encode_more(tokenizer: PreTrainedTokenizerBase, answer: Completion, messages: Sequence[Message]) -> list[int]:
    """Return the ids between a sampled answer and the next one: the messages, and where the next answer begins.

    With the answer's ids before them nothing that was sampled is rendered again. An answer that was cut gets its end.
    """
    chat = chat_format(tokenizer)
    if tokenizer.chat_template is None:
        said = "".join(f"\n{each['content']}" for each in messages)
        ids = tokenizer(said, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    else:
        ids = tokenizer(behind_answer(tokenizer, _spelt(tokenizer, messages)), add_special_tokens=False)["input_ids"]
        ids = ids[ids.index(chat.end_id) + 1 :] if chat.end_id in ids else ids
    return ids if answer.finished or chat.end_id is None else [chat.end_id, *ids]


def _spelt(tokenizer: PreTrainedTokenizerBase, value: Any) -> Any:
    """Return texts, also those inside records and lists, with every control token taken apart."""
    # not every tokenizer lists all that were added as special among its special tokens
    tokens = list(dict.fromkeys([*tokenizer.all_special_tokens, *_special(tokenizer).values()]))

    def spelt(value: Any) -> Any:
        match value:
            case str():
                for token in tokens:
                    value = value.replace(token, f"{token[0]}\u200b{token[1:]}")
            case Mapping():
                return {spelt(key): spelt(inner) for key, inner in value.items()}
            case list() | tuple():
                return [spelt(inner) for inner in value]
        return value

    return spelt(value)


def _special(tokenizer: PreTrainedTokenizerBase) -> Mapping[int, str]:
    """Return the texts of added tokens that are special; they are read once per tokenizer, some have hundreds."""
    return _special_of(tokenizer, len(tokenizer))


@lru_cache(maxsize=8)
def _special_of(tokenizer: PreTrainedTokenizerBase, size: int) -> Mapping[int, str]:
    added = tokenizer.added_tokens_decoder
    return MappingProxyType({number: token.content for number, token in added.items() if token.special})


def encode_completion(tokenizer: PreTrainedTokenizerBase, text: str, marks: Sequence[str] = ()) -> list[int]:
    """Return the ids of a target: what a model should write behind the prompt, with the end token last.

    `marks` are those of the scheme (`WritesMarks`): where the tokenizer has them as special they are these tokens.
    """
    chat = chat_format(tokenizer)
    target = chat.target(text)
    spelt = {special for special in _special(tokenizer).values() if special in target}
    is_split = not spelt or not spelt <= {THINK, THOUGHT, *marks}
    ids = tokenizer(target, add_special_tokens=False, split_special_tokens=is_split)["input_ids"]
    return [*ids, chat.end_id]


def completion_text(tokenizer: PreTrainedTokenizerBase, completion: Completion) -> str:
    """Return what a completion says; its end token is no part of that, also where the tokenizer thinks it a word."""
    ids = completion.token_ids
    return decode_completion(tokenizer, ids[:-1] if completion.finished else ids)


def decode_completion(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], marks: Sequence[str] = ()) -> str:
    """Return what a completion says, with the start of its think block where the prompt holds that.

    Special tokens are no part of it but tags of thinking and `marks`, those of the scheme (`WritesMarks`).
    """
    special = _special(tokenizer)
    kept = {number for number, text in special.items() if text in (THINK, THOUGHT, *marks)}
    if kept.isdisjoint(token_ids):
        said = tokenizer.decode(token_ids, skip_special_tokens=True)
    else:
        said = tokenizer.decode([number for number in token_ids if number in kept or number not in special])
    return chat_format(tokenizer).think_opening + said


KEPT_CHARS = 4000
"""Longest text whose count `TokenCounter` remembers: entries of a memory, not whole prompts."""


class TokenCounter:
    """Counts tokens of memory text, the unit of every length in rewards and reports; an entry is tokenised once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._counts: dict[str, int] = {}

    def __call__(self, texts: Sequence[str]) -> int:
        counts = {text: self._counts[text] for text in texts if text in self._counts}
        if new := [text for text in dict.fromkeys(texts) if text not in counts]:
            ids = self._tokenizer(new, add_special_tokens=False)["input_ids"]
            counts |= zip(new, map(len, ids), strict=True)
            self._counts |= {text: counts[text] for text in new if len(text) <= KEPT_CHARS}
        return sum(counts[text] for text in texts)
