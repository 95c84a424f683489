"""Shows what a store holds: the bank, the history of an entry, what a session changed.

    python -m membuilder.inspect memory.db
    python -m membuilder.inspect memory.db --entry m12
    python -m membuilder.inspect memory.db --session 3
    python -m membuilder.inspect memory.db --html memory.html

Works while a build writes to the store.
"""

import argparse
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from membuilder.bank.html_page import TIME_FORM, render_page
from membuilder.bank.store import reading
from membuilder.bank.store_rows import Answer, StoredSession
from membuilder.errors import MemBuilderError
from membuilder.files import write_atomic
from membuilder.types import ENTRY_AGENTS, Agent, Bank, Entry

COLOURS = {Agent.CORE: "yellow", Agent.EPISODIC: "blue", Agent.SEMANTIC: "green", Agent.PROCEDURAL: "magenta"}
_STEERING = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
"""Bidirectional classes of the characters that reorder what follows them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    settings: Mapping[str, Any]
    sessions: tuple[StoredSession, ...]
    bank: Bank


def read_contents(path: str | Path) -> Contents:
    with reading(path) as store:
        return Contents(settings=store.settings(), sessions=store.sessions(), bank=store.bank())


def plain(text: str, style: str = "") -> Text:
    """Text as it is: no markup, and no control or direction character that could steer the terminal."""
    return Text("".join("\N{REPLACEMENT CHARACTER}" if _steers(each) else each for each in text), style=style)


def _steers(character: str) -> bool:
    is_control = unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t"
    return is_control or unicodedata.bidirectional(character) in _STEERING


def show_bank(contents: Contents) -> RenderableType:
    bank, settings = contents.bank, contents.settings
    superseded = bank.superseded_ids()
    head = plain(
        f"{settings['dialogue']}: {' and '.join(settings['speakers'])}, written by {settings['model']}", "bold"
    )
    counts = ", ".join(f"{sum(entry.agent == agent for entry in bank.entries)} {agent}" for agent in ENTRY_AGENTS)
    num_entries = f"{len(bank.entries)} entries ({counts}), {len(superseded)} of them superseded"
    core = Panel(
        plain(bank.core or "(empty)"), title=f"core, {len(bank.core)} characters", border_style=COLOURS[Agent.CORE]
    )
    return Group(
        head, Text(f"{len(contents.sessions)} sessions; {num_entries}"), core, _entries(bank.entries, superseded)
    )


def history(bank: Bank, entry_id: str) -> list[Entry]:
    """What an entry replaced, the entry, and what replaced it, through any number of steps; the oldest first."""
    older, newer = {entry_id}, {entry_id}
    for entry in reversed(bank.entries):  # an entry is younger than those it supersedes
        if entry.id in older:
            older.update(entry.supersedes)
    for entry in bank.entries:
        if not newer.isdisjoint(entry.supersedes):
            newer.add(entry.id)
    return [entry for entry in bank.entries if entry.id in older | newer]


def show_entry(contents: Contents, entry_id: str) -> RenderableType:
    """The history of an entry, and where its words come from."""
    found = [entry for entry in contents.bank.entries if entry.id == entry_id]
    if not found:
        raise MemBuilderError(f"no entry {entry_id!r}; this store has {len(contents.bank.entries)}, from m1 on")
    (entry,) = found
    stored = contents.sessions[entry.session]
    said = [turn for turn in stored.session.turns if turn.id in entry.source_turns]
    return Group(
        _entries(history(contents.bank, entry_id), contents.bank.superseded_ids()),
        plain(f"{entry_id} was written in session {entry.session} ({stored.session.id})", "bold"),
        *(plain(f"  {turn.id} {turn.speaker}: {turn.content}") for turn in said),
        *([] if said else [Text("  in words of the model's own")]),
        _answer(entry.agent, stored.answers[entry.agent]),
    )


def show_session(contents: Contents, number: int) -> RenderableType:
    """What each agent answered about a session and what that changed."""
    if not 0 <= number < len(contents.sessions):
        raise MemBuilderError(f"no session {number}; this store has {len(contents.sessions)}, numbered from 0")
    stored, session = contents.sessions[number], contents.sessions[number].session
    head = plain(
        f"session {number} ({session.id}), {session.timestamp:{TIME_FORM}}, {len(session.turns)} turns", "bold"
    )
    new = [entry for entry in contents.bank.entries if entry.session == number]
    before = contents.sessions[number - 1].core if number else ""
    core = [] if before == stored.core else [_core_change(before, stored.core)]
    answers = [_answer(agent, answer) for agent, answer in stored.answers.items()]
    silent = [] if new or core else [Text("nothing changed")]
    return Group(head, *core, *([_entries(new, contents.bank.superseded_ids())] if new else []), *silent, *answers)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m membuilder.inspect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", help="the file that membuilder.build wrote")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--entry", metavar="ID", help="the history of one entry, such as m12")
    what.add_argument("--session", type=int, metavar="N", help="what one session changed; the first is 0")
    what.add_argument("--html", metavar="FILE", help="write everything to one page, to be opened in a browser")
    given = parser.parse_args(argv)
    console = Console(highlight=False)
    try:
        contents = read_contents(given.store)
        if given.html is not None:
            page = render_page(contents.settings, contents.sessions, contents.bank)
            write_atomic(Path(given.html), page)
            console.print(plain(f"{given.html}: written, open it in a browser"))
        elif given.entry is not None:
            console.print(show_entry(contents, given.entry))
        elif given.session is not None:
            console.print(show_session(contents, given.session))
        else:
            console.print(show_bank(contents))
    except MemBuilderError as error:
        sys.exit(f"membuilder.inspect: {error}")


def _entries(entries: Sequence[Entry], superseded: frozenset[str]) -> Table:
    table = Table("id", "agent", "date", "text", "replaces", box=None, header_style="dim", padding=(0, 2, 0, 0))
    for entry in entries:
        table.add_row(
            entry.id,
            Text(str(entry.agent), style=COLOURS[entry.agent]),
            f"{entry.timestamp:%Y-%m-%d}",
            plain(entry.text, "dim strike" if entry.id in superseded else ""),
            ", ".join(entry.supersedes),
        )
    return table


def _answer(agent: Agent, answer: Answer) -> Group:
    outcome = f"{len(answer.operations)} operations" if answer.failure is None else f"failed: {answer.failure.kind}"
    head = plain(f"{agent} answered in {answer.seconds:.2f} s, {outcome}", COLOURS[agent])
    detail = [] if answer.failure is None else [plain(f"  {answer.failure.detail}", "red")]
    return Group(head, *detail, *([] if answer.text is None else [plain(answer.text, "dim")]))


def _core_change(before: str, after: str) -> Group:
    old, new = before.split("\n") if before else [], after.split("\n") if after else []
    gone = [plain(f"- {line}", "red") for line in old if line not in new]
    return Group(
        Text("core", style=COLOURS[Agent.CORE]), *gone, *(plain(f"+ {x}", "green") for x in new if x not in old)
    )


if __name__ == "__main__":
    main()
