"""What a tokenizer puts around a prompt and an answer, found by rendering its chat template; the template's options.

set_template_kwargs(tokenizer, {"enable_thinking": False})     from now on, also where the tokenizer was saved to
chat_format(tokenizer)  ->  ChatFormat(begin_ids=(), end_id=151645, think_opening="")
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError, meta, nodes
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template  # vLLM renders with it too

from membuilder.errors import ConfigError
from membuilder.schemes.scheme import Message

KWARGS_KEY = "prompts.chat_template_kwargs"
_ALWAYS_GIVEN = {"messages", "tools", "documents", "add_generation_prompt"}
"""What transformers itself tells a template, besides the special tokens."""
THINK, THOUGHT = "<think>", "</think>"
_OPENED = re.compile(rf"{THINK}\s*\Z")
_GAP = "\n\n"
"""Stands between the tags of an empty think block, and behind it, in the templates of Qwen and DeepSeek."""
_QUESTION, _ANSWER = "the question", "the answer"
_TOOL = {"type": "function", "function": {"name": "probe_of_tools", "description": "", "parameters": {}}}


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatFormat:
    begin_ids: tuple[int, ...]
    """What the tokenizer puts before every text, such as a BOS; empty where a template says how a prompt begins."""
    end_id: int | None
    """The token that ends an answer: the one that the template writes, else the tokenizer's own."""
    think_opening: str
    """The start of a think block with which the template ends a prompt, such as `<think>\\n`; else empty."""

    def target(self, answer: str) -> str:
        """Return what a model should write for an answer: where it begins inside a think block, it closes that."""
        if not self.think_opening:
            return answer
        if answer.lstrip().startswith(THINK):
            return answer.lstrip().removeprefix(THINK).removeprefix("\n")
        return f"{_GAP[self.think_opening.count(chr(10)) :]}{THOUGHT}{_GAP}{answer}"


def chat_format(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    """Return what the tokenizer puts around texts; it is found once per tokenizer and template."""
    template = None if tokenizer.chat_template is None else tokenizer.get_chat_template()
    return _chat_format(tokenizer, template, tokenizer.eos_token_id)


@lru_cache(maxsize=8)
def _chat_format(tokenizer: PreTrainedTokenizerBase, template: str | None, own_end_id: int | None) -> ChatFormat:
    if template is None:
        return ChatFormat(begin_ids=_begin_ids(tokenizer), end_id=own_end_id, think_opening="")
    question = {"role": "user", "content": _QUESTION}
    try:
        prompt = tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
        turns = [question, {"role": "assistant", "content": _ANSWER}]
        answered = tokenizer.apply_chat_template(turns, tokenize=False)
    except (TemplateError, TypeError) as error:
        raise ConfigError(f"{_named(tokenizer)} cannot write a question and its answer: {error}; mend it") from error
    if _QUESTION not in prompt:
        raise ConfigError(f"{_named(tokenizer)} leaves out what a user says as plain text; mend it")
    opened, end_id = _OPENED.search(prompt), _end_id(tokenizer, answered)
    return ChatFormat(
        begin_ids=(),
        end_id=own_end_id if end_id is None else end_id,
        think_opening=opened[0] if opened else "",
    )


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()
) -> str:
    """Return what the chat template makes of messages, up to where the model answers. Raises ConfigError."""
    try:
        return tokenizer.apply_chat_template(
            list(messages), tools=list(tools) or None, add_generation_prompt=True, tokenize=False
        )
    except (TemplateError, TypeError) as error:
        roles = ", ".join(each["role"] for each in messages)
        raise ConfigError(f"{_named(tokenizer)} cannot write messages of the roles {roles}: {error}") from error


def check_tools(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError where a prompt with tools would lose them, because no template writes them into it."""
    template = None if tokenizer.chat_template is None else tokenizer.get_chat_template(tools=[_TOOL])
    if template is None or not _writes_tools(tokenizer, template):
        problem = "there is no chat template" if template is None else f"{_named(tokenizer)} leaves them out"
        raise ConfigError(
            f"the scheme's prompts hold tools, but {problem}: train a model whose template writes tools, or take an "
            "answer format of the scheme that needs none (for memalpha: memalpha.response_format)"
        )


@lru_cache(maxsize=8)
def _writes_tools(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    return _TOOL["function"]["name"] in render(tokenizer, [{"role": "user", "content": _QUESTION}], [_TOOL])


def behind_answer(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """Return what the chat template writes behind an answer where messages follow, up to where the next one begins."""
    answer = _ANSWER
    while any(answer in each["content"] for each in messages):
        answer += "."
    turns = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": answer}]
    before, _, tail = render(tokenizer, [*turns, *messages]).rpartition(answer)
    if not before:
        raise ConfigError(f"{_named(tokenizer)} leaves out an answer that messages follow: set the scheme to one turn")
    return tail


def _named(tokenizer: PreTrainedTokenizerBase) -> str:
    return f"the chat template of '{tokenizer.name_or_path}'" if tokenizer.name_or_path else "the chat template"


def _begin_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    plain, whole = (tokenizer(_QUESTION, add_special_tokens=special)["input_ids"] for special in (False, True))
    start = next(k for k in range(len(whole)) if whole[k : k + len(plain)] == plain)
    return tuple(whole[:start])


def _end_id(tokenizer: PreTrainedTokenizerBase, answered: str) -> int | None:
    """Return the first special token behind the answer; None: the template writes none, or leaves the answer out."""
    before, _, tail = answered.rpartition(_ANSWER)
    special = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"] if before else []
    return next((token_id for token_id in ids if token_id in special), None)


def _options(template: str) -> set[str]:
    """Return the names that a template takes from its caller; those that it sets itself it must ask for first."""
    environment = _compile_jinja_template(template).environment
    tree = environment.parse(template)
    own = {name.name for name in tree.find_all(nodes.Name) if name.ctx == "store"}
    asked_for = {
        each.node.name
        for each in tree.find_all((nodes.Test, nodes.Filter))
        if each.name in ("defined", "undefined", "default") and isinstance(each.node, nodes.Name)
    }
    return meta.find_undeclared_variables(tree) - environment.globals.keys() - (own - asked_for)


def set_template_kwargs(tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any]) -> None:
    """Make `kwargs` the defaults of the tokenizer's chat template; a caller who gives others is still heard.

    They become part of the template, so whoever loads the saved tokenizer, a server too, renders as training did.
    Raises ConfigError for a name that the template never reads.
    """
    if not kwargs:
        return
    if tokenizer.chat_template is None:
        raise ConfigError(f"{KWARGS_KEY}: the tokenizer has no chat template that could read {sorted(kwargs)}")
    template = tokenizer.get_chat_template()
    known = _options(template) - _ALWAYS_GIVEN - tokenizer.special_tokens_map.keys()
    if unknown := sorted(kwargs.keys() - known):
        remedy = f"it reads {sorted(known)}" if known else "it has no options"
        raise ConfigError(f"{KWARGS_KEY}: {_named(tokenizer)} never reads {unknown}; {remedy}")
    # the empty expression keeps a line break with which the template begins: Jinja drops one behind a block
    defaults = "".join(
        f"{{%- if {name} is not defined %}}{{%- set {name} = {ascii(value)} %}}{{%- endif %}}"
        for name, value in sorted(kwargs.items())
    )
    header = defaults + "{{ '' }}"
    if not template.startswith(header):
        tokenizer.chat_template = header + template
