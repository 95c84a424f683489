"""Reads the sessions of a store again from one of them on, after a turn was corrected or a late session came.

As in retry.py a new store is written beside the old one, NAME.db.rebuild, which takes its place in one transaction. The
sessions before stay as they are stored. A kill leaves the old store whole; the same command goes on beside it.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from membuilder.bank.erase import REBUILD, erase_traces
from membuilder.bank.session_ids import free_session_id, without_ids
from membuilder.bank.store import Store, remove_store, writing
from membuilder.bank.store_rows import StoredMemory
from membuilder.building.builder import Builder
from membuilder.building.retry import digest_of, is_begun_with
from membuilder.datasets.windows import in_windows
from membuilder.errors import DataError
from membuilder.text import HALF_CHARACTER, is_text
from membuilder.types import Dialogue, Session


async def rebuild(
    dialogue: Dialogue, store: Store, builder: Builder, first: int, advance: Callable[[int], object]
) -> None:
    """Let `store` hold the memory of `dialogue`, whose sessions from `first` on are read again.

    `advance` hears how many more sessions are dealt with. Raises as `Builder.build` does.
    """
    memory, beside = store.memory(), Path(f"{store.path}{REBUILD}")
    work = digest_of((memory.sessions, dialogue.sessions, first))
    settings = dict(memory.settings) | {"rebuild_of": work}
    if not is_begun_with(beside, settings):
        remove_store(beside)
    with writing(beside, settings) as fresh:
        if first and not fresh.num_sessions():
            fresh.replace(until(replace(memory, settings=settings), first))
        advance(fresh.num_sessions())
        await builder.build(dialogue, fresh, on_session=lambda session: advance(1))
    store.take_over(beside)
    erase_traces(store)


def dialogue_of(memory: StoredMemory) -> Dialogue:
    """Return what was read into a memory."""
    settings, sessions = memory.settings, tuple(stored.session for stored in memory.sessions)
    return Dialogue(id=settings["dialogue"], speakers=tuple(settings["speakers"]), sessions=sessions, questions=())


def until(memory: StoredMemory, first: int) -> StoredMemory:
    """Return the memory after the session before `first`."""
    entries = tuple(entry for entry in memory.entries if entry.session < first)
    deleted = {entry: session for entry, session in memory.deleted.items() if session < first}
    vectors = memory.vectors[: len(entries)]
    return replace(memory, sessions=memory.sessions[:first], entries=entries, vectors=vectors, deleted=deleted)


def corrected(dialogue: Dialogue, turn_id: str, text: str, path: Path) -> tuple[Dialogue, int]:
    """Return the dialogue in which a turn says `text`, and the index of its session. Raises DataError."""
    index = dialogue.session_of_turn().get(turn_id)
    if index is None:
        problem = "no turn has this id; `python -m membuilder.edit DB export FILE.jsonl` writes all of them"
        raise DataError(path, f"turn {turn_id}", "id", problem)
    if not text.strip() or not is_text(text):
        problem = "is blank; to remove a turn, delete its session, or an entry with the turns that it quotes"
        raise DataError(path, f"turn {turn_id}", "text", problem if is_text(text) else HALF_CHARACTER)
    session = dialogue.sessions[index]
    turns = tuple(replace(turn, text=text) if turn.id == turn_id else turn for turn in session.turns)
    if turns == session.turns:
        raise DataError(path, f"turn {turn_id}", "text", "is what the turn says already; nothing to correct")
    sessions = list(dialogue.sessions)
    sessions[index] = replace(session, turns=turns)
    return replace(dialogue, sessions=tuple(sessions)), index


def with_late_sessions(dialogue: Dialogue, late: Dialogue, max_turns: int | None, path: Path) -> tuple[Dialogue, int]:
    """Return the dialogue with the sessions of `late` that it lacks, by time, and the index of the first of them.

    `late` holds these sessions alone, or the whole dialogue with them; `path` is its file. Raises DataError.
    """
    held = [_words(session) for session in dialogue.sessions]
    given = in_windows(late, max_turns).sessions
    new = [session for session in given if _words(session) not in held]
    if not new:
        raise DataError(path, late.id, "sessions", "the store holds all of them already; nothing to insert")
    said = [_words(session) for session in given]
    lacking = [session.id for session, words in zip(dialogue.sessions, held, strict=True) if words not in said]
    if len(new) < len(given) and lacking:
        problem = f"the file lacks session {lacking[0]} as the store holds it; give the late sessions alone"
        raise DataError(path, late.id, "sessions", f"{problem}, or correct that one first (correct-turn)")
    sessions, inserted = list(dialogue.sessions), []
    for session in new:
        _check_fits(session, dialogue, path)
        at = sum(each.timestamp <= session.timestamp for each in sessions)
        sessions.insert(at, _named(session, dialogue, sessions))
        inserted.append(sessions[at].id)
    sessions = [replace(session, index=index) for index, session in enumerate(sessions)]
    first = next(session.index for session in sessions if session.id in inserted)
    return replace(dialogue, sessions=tuple(sessions)), first


def _words(session: Session) -> tuple:
    """Return what is said in a session and when; ids and roles may be those of a shorter file."""
    bare = without_ids(session)
    return bare.timestamp, tuple((turn.speaker, turn.text, turn.caption) for turn in bare.turns)


def _check_fits(session: Session, dialogue: Dialogue, path: Path) -> None:
    strangers = [turn.speaker for turn in session.turns if turn.speaker not in dialogue.speakers]
    if strangers and dialogue.speakers:
        known = ", ".join(dialogue.speakers)
        problem = f"{strangers[0]!r} does not speak in this memory ({known}); spell the name so, or build anew"
        raise DataError(path, f"session {session.id}", "speaker", problem)
    zones = {each.timestamp.tzinfo is None for each in (*dialogue.sessions, session)}
    if len(zones) > 1:
        problem = "give a zone as all other sessions do, or none as they do"
        raise DataError(path, f"session {session.id}", "timestamp", problem)


def _named(session: Session, dialogue: Dialogue, sessions: list[Session]) -> Session:
    """Return a session under ids that are free, in which a known speaker has the role of all other sessions."""
    roles = {turn.speaker: turn.role for each in dialogue.sessions for turn in each.turns}
    turns = [replace(turn, role=roles.get(turn.speaker, turn.role)) for turn in session.turns]
    used = {turn.id for each in sessions for turn in each.turns}
    name = session.id
    if name in {each.id for each in sessions} or any(turn.id in used for turn in turns):
        name = free_session_id([*sessions, session], len(sessions) + 1)
        turns = [replace(turn, id=f"{name}:{number}") for number, turn in enumerate(turns, start=1)]
    return replace(session, id=name, turns=tuple(turns))
