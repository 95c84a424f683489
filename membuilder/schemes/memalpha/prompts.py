"""What the writer reads: instructions, a chunk, and the memory as far as it is shown; templates in two sets.

Lines of a chunk are numbered where calls may point at them. Entries and the core are shown on one line each, and marks
of calls that a chunk or an entry spells out are taken apart, so that neither can pass for anything but text.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache
from string import Template
from typing import Any

from membuilder.schemes.memalpha import compact
from membuilder.schemes.memalpha.calls import ARGUMENTS, CLOSE, FUNCTION, OPEN, RESULT, RETURN
from membuilder.schemes.memalpha.config import TEMPLATES, CallFormat, MemAlphaConfig, PromptOrder
from membuilder.schemes.memalpha.tools import SUFFIX, tools
from membuilder.schemes.scheme import Prompt
from membuilder.text import on_one_line
from membuilder.types import Agent, Bank, Entry, Session

UNNAMED = "text"
"""The speaker of lines that nobody is said to say (membuilder/datasets/memalpha.py)."""
CUT = "..."
EMPTY = "(empty)"
_MARKS = (OPEN, CLOSE, "<tool_response>", "</tool_response>", "<think>", "</think>", "<chunk>", "</chunk>")
_MARK = re.compile("|".join(map(re.escape, (*_MARKS, FUNCTION, ARGUMENTS, RESULT, RETURN, *compact.TAGS))))


def template_hashes(template_set: str) -> dict[str, str]:
    """Map `memalpha/set/name` to the SHA-256 of each file of a template set: an edited one makes other prompts."""
    files = sorted((TEMPLATES / template_set).glob("*.txt"))
    return {f"memalpha/{template_set}/{file.stem}": hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def write_prompt(session: Session, bank: Bank, shown: Sequence[Entry], config: MemAlphaConfig) -> str | Prompt:
    """Write the prompt for one chunk; a text alone where the templates have no instructions and there are no tools."""
    chunk = _chunk(session, config)
    memory = _filled(config, "memory", memory=shown_memory(bank, shown, config))
    parts, system = [chunk, memory], None
    if _has(config, "system"):
        system = instructions(config)
    if config.prompts.order is PromptOrder.PUBLISHED:
        parts = [memory, chunk] if system is None else [chunk]
        system = system if system is None else f"{system}\n\n{memory}"
    user = "\n".join([*parts, _filled(config, "ending")])
    messages = [{"role": "user", "content": user}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    called = tools(config) if config.response_format is CallFormat.HERMES else ()
    return user if system is None and not called else Prompt(messages=tuple(messages), tools=called)


def bare_texts(session: Session, bank: Bank, config: MemAlphaConfig) -> list[str]:
    """Return what a prompt says that shows no entries, in pieces: most of them are the same in many prompts.

    What counts their tokens may keep the count of every text that it saw.
    """
    called = tools(config) if config.response_format is CallFormat.HERMES else ()
    said = [instructions(config)] if _has(config, "system") else []
    headings = _filled(config, "memory", memory=shown_memory(Bank(), (), config))
    core = [disarmed(on_one_line(bank.core))] if Agent.CORE in config.parts and bank.core else []
    ending = _filled(config, "ending")
    return [*(json.dumps(each) for each in called), *said, _chunk(session, config), headings, *core, ending]


def instructions(config: MemAlphaConfig) -> str:
    """Write what the writer is told before any chunk."""
    parts = [_filled(config, f"part_{part}", core_limit=config.core_limit_tokens) for part in config.parts]
    said = [_filled(config, "system", parts="\n".join(parts))]
    if config.response_format is CallFormat.MARKS:
        listed = "\n".join(json.dumps(each["function"], ensure_ascii=False) for each in tools(config))
        said.append(_filled(config, "calls_marks", tools=listed))
    elif config.response_format is CallFormat.COMPACT:
        said.append(_filled(config, "calls_compact", examples="\n".join(_compact_examples(config))))
    elif config.line_pointers:
        said.append(_filled(config, "lines"))
    if config.response_format is not CallFormat.COMPACT:
        said.append(_filled(config, "turns" if config.max_turns > 1 else "one_turn", most=config.max_turns))
    return "\n".join(said)


def shown_memory(bank: Bank, shown: Sequence[Entry], config: MemAlphaConfig) -> str:
    """Write the core and the entries shown, part by part; in the compact set the entries alone, without headings."""
    lines = []
    labels = {entry.id: label_of(entry, place, config) for place, entry in enumerate(shown, start=1)}
    numbers = {part: 0 for part in config.parts}
    for entry in bank.current():
        if entry.agent in numbers:
            numbers[Agent(entry.agent)] += 1
    has_headings = _has(config, "heading")
    for part in config.parts:
        own = [entry for entry in shown if entry.agent == part]
        core = [disarmed(on_one_line(bank.core))] if part is Agent.CORE and bank.core else []
        if has_headings:
            seen = "" if part is Agent.CORE else f", {len(own)} of {numbers[part]} shown"
            lines.append(_filled(config, "heading", part=f"{part}{SUFFIX}", seen=seen))
        written = core + [f"{labels[entry.id]} {shown_text(entry, config)}" for entry in own]
        lines += written or ([EMPTY] if has_headings else [])
    return "\n".join(lines) or EMPTY


def label_of(entry: Entry, place: int, config: MemAlphaConfig) -> str:
    """Return what names an entry in a call: its place among those shown in the compact format, else its id."""
    return f"e{place}" if config.response_format is CallFormat.COMPACT else f"[{entry.id}]"


def shown_text(entry: Entry, config: MemAlphaConfig) -> str:
    text = disarmed(on_one_line(entry.text))
    most = config.prompts.max_entry_chars
    return text if len(text) <= most else text[:most] + CUT


def disarmed(text: str) -> str:
    """Take apart the marks of calls and results that a text spells out: they stay readable, and are no marks."""
    return _MARK.sub(lambda mark: f"{mark[0][0]}\u200b{mark[0][1:]}", text)


def _compact_examples(config: MemAlphaConfig) -> list[str]:
    stored = [f"<{part}>#3" for part in config.parts]
    has_entries = any(part is not Agent.CORE for part in config.parts)
    return [*stored, *([f"{compact.UPDATE}e2#5", f"{compact.DELETE}e1"] if has_entries else [])]


def _chunk(session: Session, config: MemAlphaConfig) -> str:
    names = {turn.speaker for turn in session.turns}
    # a chunk of this scheme's data says itself who speaks
    is_marked = any(turn.content.lstrip().startswith(f"<{turn.speaker}>") for turn in session.turns)
    is_plain = is_marked or names == {UNNAMED}
    said = [disarmed(turn.content if is_plain else f"{turn.speaker}: {turn.content}") for turn in session.turns]
    if config.line_pointers:
        numbered = enumerate(map(on_one_line, said), start=1)
        said = [_filled(config, "line", number=number, text=text) for number, text in numbered]
    date = f"{session.timestamp:%Y-%m-%d %H:%M}"
    return _filled(config, "chunk", date=date, chunk="\n".join(said) or EMPTY)


def _filled(config: MemAlphaConfig, name: str, **values: Any) -> str:
    return _template(config.prompts.template_set, name).substitute(values)


def _has(config: MemAlphaConfig, name: str) -> bool:
    return (TEMPLATES / config.prompts.template_set / f"{name}.txt").is_file()


@cache
def _template(template_set: str, name: str) -> Template:
    return Template((TEMPLATES / template_set / f"{name}.txt").read_text(encoding="utf-8").strip("\n"))
