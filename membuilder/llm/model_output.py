"""Reads what real models write: reasoning before the answer, a fence or prose around its JSON, small slips inside it.

    read_model_json('Let me see.</think>Here it is:\\n```json\\n{"operations": [],}\\n```')  ->  {"operations": []}

What stays ambiguous is refused and never guessed: two different values, a value or reasoning without its end. Rewards
use the strict `json_output.load_json` instead, so that a policy learns to write JSON and nothing else.
"""

import json
import re
from typing import Any

from membuilder.llm.json_output import no_duplicate_keys

_NAMES = "think|thinking|thought|thoughts|reasoning|reflection|seed:think"
_OPENING = re.compile(rf"<(?:{_NAMES})>|\[THINK\]|◁think▷", re.IGNORECASE)
_CLOSING = re.compile(rf"</(?:{_NAMES})>|\[/THINK\]|◁/think▷", re.IGNORECASE)
_MASK = "\ufffc"
"""Stands for each character of a JSON value where only what surrounds it is looked at."""
_CHANNEL = "<|channel|>"
_HEADER = re.compile(
    r"<\|channel\|>\s{0,3}(?P<channel>[a-z]{1,20})(?P<rest>[^<]{0,200})(?:<\|constrain\|>[^<]{0,40})?<\|message\|>"
)
"""Begins a message of harmony (gpt-oss), such as `<|channel|>commentary to=functions.answer json<|message|>`."""
_BARE_HEADER = re.compile(
    rf"(?:(?<=\S)assistant|\A(?=to=|commentary to=|(?:analysis|commentary|final)(?:[^\W\d_a-z]|[\"{{\[{_MASK}])))"
    r"(?P<recipient>\s?to=[\w.-]{1,80}?)?(?P<channel>analysis|commentary|final)(?P<rest>\s?to=[\w.-]{1,80})?"
)
"""The same as left by a server that drops special tokens: `analysisWe need ...assistantfinal{`."""
_RECIPIENT = re.compile(r"(?:\A|\s)to=(?!assistant)\S{1,80}\s?\Z")
"""Stands before the channel where a call names its function there: `assistant to=functions.answer<|channel|>`."""
_TURN = re.compile(r"\A<\|(?:im_start|start|start_header_id)\|>\s*assistant\s*(?:<\|end_header_id\|>\s*)?")
"""Begins an answer where the model writes again what the prompt ended with."""
_END = re.compile(
    r"<\|(?:im_end|im_start|endoftext|end_of_text|eot_id|eom_id|end|start|return|call)\|>|</s>|<end_of_turn>|<eos>"
)
"""Tokens that end an answer; what follows a leaked one is no part of it."""
_VALUE = re.compile(r'\{\s*["}]|\[\s*\{')
"""Where a JSON object or a list of them begins; `{name}` and `[1]` in prose begin none."""
_DRAFT = re.compile(r'(?:\[\s*)?\{\s*(?:"(?:[^"\\]|\\.)*"\s*:|\})')
"""The same with a whole key: what is no JSON after all costs little to find out."""
_LITERAL = re.compile(r"\b(?:true|false|none)\b", re.IGNORECASE)
_LITERALS = {"true": "true", "false": "false", "none": "null"}
"""Python's words, or shouted ones, and JSON's, each as long as the other: no position changes."""
_TRAILING_COMMA = re.compile(r",\s*[\]}]")


class _TooDeep(ValueError):
    """Python's reader gives up on JSON of a thousand levels, and would again at every level."""


def read_model_json(text: str) -> Any:
    """Return the one JSON value that a model answered with. Raises ValueError saying why there is none."""
    text = _stripped(text)
    try:
        value, end = _decode(text, 0)
        if end == len(text):
            return _unwrapped(value)
    except ValueError:
        pass  # there is more than a value, or none
    text = "\n".join(_final_messages(text, _masked(text), takes_calls=True))
    text = text[_reasoning_end(_masked(text)) :]
    if opening := _OPENING.search(_masked(text)):
        raise ValueError(f"the reasoning has no end: {_shown(text[opening.start() :])}")
    if leaked := _END.search(_masked(text)):
        text = text[: leaked.start()]
    different: list[Any] = []
    position = 0
    while (start := _VALUE.search(text, position)) is not None:
        value, position = _decode(text, start.start())
        if value not in different:
            different.append(value)
    if len(different) != 1:
        found = f"{len(different)} different JSON values" if different else "no JSON object"
        raise ValueError(f"the answer holds {found}: {_shown(text)}")
    return _unwrapped(different[0])


def read_model_text(text: str) -> str:
    """Return an answer in words without reasoning and end tokens. Raises ValueError where the reasoning has no end."""
    text = _stripped(text)
    different = list(dict.fromkeys(_final_messages(text, text, takes_calls=False)))
    if len(different) > 1:
        raise ValueError(f"the answer holds {len(different)} different final messages: {_shown(text)}")
    text = different[0][_reasoning_end(different[0]) :].lstrip()
    if _OPENING.match(text):
        raise ValueError(f"the reasoning has no end: {_shown(text)}")
    return _END.split(text, maxsplit=1)[0].rstrip()


def _final_messages(text: str, masked: str, takes_calls: bool) -> list[str]:
    """Return the messages of harmony that are the answer: final ones, else calls of a function; else the whole text.

    Raises ValueError for reasoning and preambles without either.
    """
    headers = list(_HEADER.finditer(masked)) or list(_BARE_HEADER.finditer(masked))
    if not headers and _CHANNEL not in masked:
        return [text]
    finals, calls = [], []
    for header, following in zip(headers, [*headers[1:], None], strict=False):
        stop = len(text) if following is None else following.start()
        if (end := _END.search(masked, header.end(), stop)) is not None:
            stop = end.start()
        if header["channel"] == "final":
            finals.append(text[header.end() : stop])
        elif _calls_function(header, masked):
            calls.append(text[header.end() : stop])
        if end is not None and end[0] not in ("<|end|>", "<|start|>"):
            break  # the turn ends here
    answers = finals or (calls if takes_calls else [])
    if not answers:
        raise ValueError(f"the answer holds reasoning and no final message: {_shown(text)}")
    return answers


def _calls_function(header: re.Match, masked: str) -> bool:
    """Tell whether a message is the arguments of a call, and no preamble to one nor a call of a built-in tool."""
    parts = header.groupdict()
    before = _RECIPIENT.search(masked[max(0, header.start() - 100) : header.start()])
    recipient = f"{parts.get('recipient') or ''}{parts['rest'] or ''}{before[0] if before else ''}"
    return "to=functions." in recipient or ("to=" in recipient and parts["channel"] == "commentary")


def _reasoning_end(text: str) -> int:
    """Tell where the last piece of tagged reasoning ends."""
    return max((closing.end() for closing in _CLOSING.finditer(text)), default=0)


def _masked(text: str) -> str:
    """Return the text with a mask for every JSON value, because a tag inside a value is a part of it."""
    parts, position, past = [], 0, 0
    while (start := _DRAFT.search(text, position)) is not None:
        try:
            _, position = _decode(text, start.start())
        except _TooDeep:
            raise
        except ValueError:  # a draft in the reasoning
            position = start.start() + 1
            continue
        parts += [text[past : start.start()], _MASK * (position - start.start())]
        past = position
    return "".join(parts) + text[past:]


def _decode(text: str, start: int) -> tuple[Any, int]:
    """Return the JSON value at `start` and where it ends. Harmless: line breaks in strings, trailing commas, `True`."""
    while True:
        try:
            return _DECODER.raw_decode(text, start)
        except json.JSONDecodeError as error:
            if (word := _LITERAL.match(text, error.pos)) is not None:
                text = f"{text[: error.pos]}{_LITERALS[word[0].casefold()]}{text[word.end() :]}"
                continue
            comma = text.rfind(",", start, error.pos + 1)
            trailing = _TRAILING_COMMA.match(text, max(comma, 0))
            if trailing is None or trailing.end() <= error.pos:
                raise
            text = f"{text[:comma]} {text[comma + 1 :]}"  # a blank keeps every position
        except RecursionError as error:
            raise _TooDeep("the JSON is nested too deeply") from error


def _unwrapped(value: Any) -> Any:
    """Return the arguments of a single tool call, which some models wrap around what they were asked for."""
    match value:
        case {"tool_calls": [call], **rest} | {"function": {} as call, **rest} if not rest.keys() - {"type", "id"}:
            return _unwrapped(call)
        case {"name": str(), "arguments": arguments, **rest} if not rest.keys() - {"type", "id"}:
            return read_model_json(arguments) if isinstance(arguments, str) else arguments
        case {"name": str(), "parameters": {} as arguments, **rest} if not rest.keys() - {"type", "id"}:
            return arguments
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _stripped(text: str) -> str:
    return _TURN.sub("", text.strip("\ufeff\u200b \t\r\n"))


def _shown(text: str) -> str:
    return repr(text[:200])


_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=no_duplicate_keys, parse_constant=_refuse_constant)
