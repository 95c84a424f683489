"""Shows what a store holds: the bank, the history of an entry, what a session changed.

    python -m membuilder.inspect memory.db
    python -m membuilder.inspect memory.db --entry m12
    python -m membuilder.inspect memory.db --session 3
    python -m membuilder.inspect memory.db --html memory.html

Works while a build writes to the store.
"""

import argparse
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from membuilder.bank.history import history
from membuilder.bank.html_page import TIME_FORM, parts_of, render_page, role_colours
from membuilder.bank.store import reading
from membuilder.bank.store_rows import Answer, StoredSession, role_of
from membuilder.command import ArgumentParser, clear_errors
from membuilder.errors import MemBuilderError
from membuilder.files import write_atomic
from membuilder.types import Bank, Entry
from membuilder.value_types import NonNegativeInt, flag_type

_STEERING = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
"""Bidirectional classes of the characters that reorder what follows them."""


@dataclass(frozen=True, slots=True)
class Contents:
    """All that a store holds, and the colour of each role."""

    settings: Mapping[str, Any]
    sessions: tuple[StoredSession, ...]
    bank: Bank
    deleted: Mapping[str, int]
    """Id of each deleted entry -> the session that deleted it."""
    colours: Mapping[str, str]


def read_contents(path: str | Path) -> Contents:
    with reading(path) as store:
        settings, sessions, bank = store.settings(), store.sessions(), store.bank()
        deleted = store.deleted()
    return Contents(settings, sessions, bank, deleted, role_colours(sessions, bank))


def plain(text: str, style: str = "") -> Text:
    """Text as it is: no markup, and no control or direction character that could steer the terminal."""
    return Text("".join("\N{REPLACEMENT CHARACTER}" if _steers(each) else each for each in text), style=style)


def _steers(character: str) -> bool:
    is_control = unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t"
    return is_control or unicodedata.bidirectional(character) in _STEERING


def show_bank(contents: Contents) -> RenderableType:
    bank, settings = contents.bank, contents.settings
    head = f"{settings['dialogue']}: {' and '.join(settings['speakers'])}, written by {settings['model']}"
    writers = [entry.agent for entry in bank.entries]
    counts = ", ".join(f"{writers.count(role)} {role}" for role in parts_of(contents.sessions, bank))
    superseded = bank.superseded_ids()
    num_entries = f"{len(writers)} entries ({counts}), {len(superseded)} of them superseded"
    if num_deleted := len(set(bank.deleted) - superseded):
        num_entries += f", {num_deleted} deleted"
    about = Text(f"{len(contents.sessions)} sessions; {num_entries}")
    title, colour = f"core, {len(bank.core)} characters", contents.colours.get("core", "")
    core = Panel(plain(bank.core or "(empty)"), title=title, border_style=colour)
    return Group(plain(head, "bold"), about, core, _entries(contents, bank.entries))


def show_entry(contents: Contents, entry_id: str) -> RenderableType:
    """Return the history of an entry, and where its words come from."""
    entry = next((entry for entry in contents.bank.entries if entry.id == entry_id), None)
    if entry is None:
        raise MemBuilderError(f"no entry {entry_id!r}; this store has {len(contents.bank.entries)}, from m1 on")
    stored = contents.sessions[entry.session]
    role = role_of(entry, stored.answers) if stored.answers else None  # of an imported store an answer may be missing
    said = [turn for turn in stored.session.turns if turn.id in entry.source_turns]
    return Group(
        _entries(contents, history(contents.bank, entry_id)),
        plain(f"{entry_id} was written in session {entry.session} ({stored.session.id})", "bold"),
        *(plain(f"  {turn.id} {turn.speaker}: {turn.content}") for turn in said),
        *([] if said else [Text("  in words of the model's own")]),
        *([_answer(contents, role, stored.answers[role])] if role else []),
    )


def show_session(contents: Contents, number: int) -> RenderableType:
    """Return what each agent answered about a session and what that changed."""
    if not 0 <= number < len(contents.sessions):
        raise MemBuilderError(f"no session {number}; this store has {len(contents.sessions)}, numbered from 0")
    stored, session = contents.sessions[number], contents.sessions[number].session
    head = f"session {number} ({session.id}), {session.timestamp:{TIME_FORM}}, {len(session.turns)} turns"
    new = [entry for entry in contents.bank.entries if entry.session == number]
    before = contents.sessions[number - 1].core if number else ""
    changed = [] if before == stored.core else [_core_change(contents, before, stored.core)]
    changed += [_entries(contents, new)] if new else []
    gone = [entry for entry in contents.bank.entries if contents.deleted.get(entry.id) == number]
    if gone := [entry for entry in gone if entry.id not in contents.bank.superseded_ids()]:
        changed += [Text("deleted:"), _entries(contents, gone)]
    answers = [_answer(contents, role, answer) for role, answer in stored.answers.items()]
    return Group(plain(head, "bold"), *(changed or [Text("nothing changed")]), *answers)


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(
        prog="python -m membuilder.inspect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", help="the file that membuilder.build wrote")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--entry", metavar="ID", help="the history of one entry, such as m12")
    text = "what one session changed; the first is 0"
    what.add_argument("--session", type=flag_type(NonNegativeInt), metavar="N", help=text)
    what.add_argument("--html", metavar="FILE", help="write everything to one page, to be opened in a browser")
    given = parser.parse_args(argv)
    console = Console(highlight=False)
    if given.html == "":
        parser.error("--html needs the name of a file")
    with clear_errors("membuilder.inspect"):
        contents = read_contents(given.store)
        if given.html is not None:
            write_atomic(Path(given.html), render_page(contents.settings, contents.sessions, contents.bank))
            console.print(plain(f"{given.html}: written, open it in a browser"))
        elif given.entry is not None:
            console.print(show_entry(contents, given.entry))
        elif given.session is not None:
            console.print(show_session(contents, given.session))
        else:
            console.print(show_bank(contents))


def _entries(contents: Contents, entries: Sequence[Entry]) -> Table:
    superseded, deleted = contents.bank.superseded_ids(), set(contents.bank.deleted)
    table = Table("id", "agent", "date", "text", "replaces", box=None, header_style="dim", padding=(0, 2, 0, 0))
    for entry in entries:
        table.add_row(
            entry.id,
            Text(entry.agent, style=contents.colours[entry.agent]),
            f"{entry.timestamp:%Y-%m-%d}",
            plain(entry.text, "dim strike" if entry.id in superseded | deleted else ""),
            ", ".join(entry.supersedes),
        )
    return table


def _answer(contents: Contents, role: str, answer: Answer) -> Group:
    outcome = f"{len(answer.operations)} operations" if answer.failure is None else f"failed: {answer.failure.kind}"
    outcome += f", {len(answer.dropped)} dropped" if answer.dropped else ""
    head = plain(f"{role} answered in {answer.seconds:.2f} s, {outcome}", contents.colours[role])
    detail = [] if answer.failure is None else [plain(f"  {answer.failure.detail}", "red")]
    detail += [plain(f"  dropped, {each.kind}: {each.detail}\n    {each.operation}", "red") for each in answer.dropped]
    return Group(head, *detail, *([] if answer.text is None else [plain(answer.text, "dim")]))


def _core_change(contents: Contents, before: str, after: str) -> Group:
    old, new = before.split("\n") if before else [], after.split("\n") if after else []
    gone = [plain(f"- {line}", "red") for line in old if line not in new]
    come = [plain(f"+ {line}", "green") for line in new if line not in old]
    return Group(Text("core", style=contents.colours.get("core", "")), *gone, *come)


if __name__ == "__main__":
    main()
