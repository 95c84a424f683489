"""What a server's JSON must hold to be an answer. Untrusted: every shape is checked, and a wrong one is a ChatError."""

import json
from operator import attrgetter
from typing import Annotated

import msgspec

from membuilder.errors import ChatError, ChatErrorKind
from membuilder.llm.endpoints import SETTING_HINT
from membuilder.llm.usage import Tokens
from membuilder.text import HALF_CHARACTER, is_text


class _Embedding(msgspec.Struct):
    index: int
    embedding: Annotated[list[float], msgspec.Meta(min_length=1)]


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]


def read_chat(payload: object, with_calls: bool = False) -> str:
    """Return the text of a chat completion, and with it the calls of tools where those were offered.

    Raises ChatError: BAD_RESPONSE, TRUNCATED, DECLINED or NO_TEXT.
    """
    match payload:
        case {"choices": [{"message": {} as message, **choice}, *_]}:
            content, finish = message.get("content"), choice.get("finish_reason")
        case _:
            raise _bad(payload, "the answer holds no choice")
    if finish == "length":
        message = f"the answer reached the token limit and lacks its end; raise max_tokens {SETTING_HINT}"
        raise ChatError(ChatErrorKind.TRUNCATED, message)
    if finish == "content_filter" or message.get("refusal"):
        raise ChatError(ChatErrorKind.DECLINED, f"the model declined to answer: {message.get('refusal') or finish}")
    if isinstance(content, list):  # parts; those of other types, such as reasoning, are no part of the answer
        content = "".join(part["text"] for part in content if _is_text_part(part))
    if content is not None and not isinstance(content, str):
        raise _bad(payload, "the answer is no text")
    if with_calls:
        content = _with_calls(content, message.get("tool_calls"), payload)
    if content is None or not content.strip():
        problem = "the model answered without a text"
        if message.get("reasoning_content") or message.get("reasoning"):
            problem = "the server called the whole answer reasoning: serve the model without a reasoning parser, or"
            problem += f" switch its thinking off by extra_body {SETTING_HINT}"
        raise ChatError(ChatErrorKind.NO_TEXT, problem)
    if not is_text(content):
        raise ChatError(ChatErrorKind.NO_TEXT, f"the answer {HALF_CHARACTER}: {content[:200]!r}")
    return content


def _with_calls(content: str | None, calls: object, payload: object) -> str | None:
    """Return what was said with the calls of tools that a server names apart from it, as models write them."""
    if not calls:
        return content
    said = [] if content is None or not content.strip() else [content]
    for call in calls if isinstance(calls, list) else [calls]:
        match call:
            case {"function": {"name": str(name), "arguments": str(arguments)}}:
                # JSON's own spelling, so that a tag inside an argument ends no call
                for tag in ("<tool_call>", "</tool_call>"):
                    arguments = arguments.replace(tag, f"\\u003c{tag[1:]}")
                said.append(f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {arguments}}}\n</tool_call>')
            case _:
                raise _bad(payload, "the answer calls a tool without a name and arguments as text")
    return "\n".join(said)


def _is_text_part(part: object) -> bool:
    match part:
        case {"type": "text" | "output_text", "text": str()}:
            return True
    return False


def read_tokens(payload: object) -> Tokens | None:
    """Return what the server says it used; None when it does not say."""
    match payload:
        case {"usage": {"prompt_tokens": int(prompt), "completion_tokens": int(completion)}}:
            return Tokens(prompt=prompt, completion=completion)
        case {"usage": {"prompt_tokens": int(prompt)}, "data": list()}:  # embeddings write nothing
            return Tokens(prompt=prompt, completion=0)
    return None


def read_embeddings(payload: object, num_texts: int) -> list[list[float]]:
    """Return one vector per text in the order asked, all of one length. Raises ChatError (BAD_RESPONSE)."""
    try:
        rows = sorted(msgspec.convert(payload, _Embeddings).data, key=attrgetter("index"))
    except msgspec.ValidationError as error:
        raise _bad(payload, f"the answer holds no embeddings: {error}") from error
    if [row.index for row in rows] != list(range(num_texts)) or len({len(row.embedding) for row in rows}) != 1:
        raise _bad(payload, f"of {num_texts} embeddings some are missing, twice, or of different lengths")
    return [row.embedding for row in rows]


def read_model_names(payload: object) -> list[str]:
    match payload:
        case {"data": [*rows]}:
            return [name for row in rows if isinstance(row, dict) and isinstance(name := row.get("id"), str)]
    return []


def _bad(payload: object, problem: str) -> ChatError:
    if isinstance(payload, str):  # openai hands on as text what is not declared as JSON
        problem = "the answer is not declared as JSON; is the base URL the root of an OpenAI-compatible API?"
    start = payload if isinstance(payload, str) else json.dumps(payload)
    return ChatError(ChatErrorKind.BAD_RESPONSE, f"{problem}: {start[:200]!r}")
