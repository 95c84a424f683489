"""Text <-> token ids, through a chat template where the tokenizer has one."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from membuilder.errors import ConfigError
from membuilder.model_folders import loading
from rollout.chat_template import chat_format, set_template_kwargs
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


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return a prompt's ids: one user message through the chat template, or the text itself if there is no template.

    A control token spelt out in a dialogue stays text: it never ends or opens a message.
    """
    if tokenizer.chat_template is None:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [*chat_format(tokenizer).begin_ids, *ids]
    for token in tokenizer.all_special_tokens:
        text = text.replace(token, f"{token[0]}\u200b{token[1:]}")
    message = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=True, return_dict=False)


def encode_completion(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a target: what a model should write behind the prompt, with the end token last."""
    chat = chat_format(tokenizer)
    ids = tokenizer(chat.target(text), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [*ids, chat.end_id]


def completion_text(tokenizer: PreTrainedTokenizerBase, completion: Completion) -> str:
    """Return what a completion says; its end token is no part of that, also where the tokenizer thinks it a word."""
    ids = completion.token_ids
    return decode_completion(tokenizer, ids[:-1] if completion.finished else ids)


def decode_completion(tokenizer: PreTrainedTokenizerBase, token_ids: list[int] | tuple[int, ...]) -> str:
    """Return what a completion says, with the start of its think block where the prompt holds that."""
    return chat_format(tokenizer).think_opening + tokenizer.decode(token_ids, skip_special_tokens=True)


class TokenCounter:
    """Counts tokens of memory text, the unit of every length in rewards and reports; each text is tokenised once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._counts: dict[str, int] = {}

    def __call__(self, texts: Sequence[str]) -> int:
        new = [text for text in dict.fromkeys(texts) if text not in self._counts]
        if new:
            ids = self._tokenizer(new, add_special_tokens=False)["input_ids"]
            self._counts.update(zip(new, map(len, ids), strict=True))
        return sum(self._counts[text] for text in texts)
