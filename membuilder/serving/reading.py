"""Reads one session into a user's memory, wherever its time puts it. Nothing here knows of requests."""

from dataclasses import replace

from membuilder.bank.memory_store import MemoryStore, TransientStore
from membuilder.building.builder import Builder
from membuilder.building.rebuild import until
from membuilder.datasets.windows import in_windows
from membuilder.serving.errors import SessionConflict
from membuilder.types import Dialogue, Session


async def read_session(session: Session, store: MemoryStore, builder: Builder, max_turns: int | None) -> None:
    """Let the builder read a session; one that lies before others has these read again behind it.

    What of it stands in the store already, as after a kill, is not read again. Raises as `Builder.build` does, and
    SessionConflict where the store has a session of this id and other words.
    """
    before = tuple(each.session for each in store.sessions())
    session = _zoned_as(session, before)
    alone = Dialogue(id=store.settings()["dialogue"], speakers=(), sessions=(session,), questions=())
    windows = in_windows(alone, max_turns).sessions
    stored = {each.id: each for each in before}
    for window in windows:
        if window.id in stored and not _same(stored[window.id], window):
            raise SessionConflict(session.id)
    missing = [window for window in windows if window.id not in stored]
    if not missing:
        return
    place = sum(each.timestamp <= session.timestamp for each in before)
    sessions = [*before[:place], *missing, *before[place:]]
    dialogue = replace(alone, sessions=tuple(replace(each, index=index) for index, each in enumerate(sessions)))
    if place == len(before):
        await builder.build(dialogue, store)
    else:
        await _read_again(dialogue, place, store, builder)


async def _read_again(dialogue: Dialogue, first: int, store: MemoryStore, builder: Builder) -> None:
    """Let the store hold the memory of a dialogue whose sessions from `first` on are read anew, in one transaction."""
    fresh = TransientStore(store.path, until(store.memory(), first))
    await builder.build(dialogue, fresh)
    store.replace(fresh.memory())


def _zoned_as(session: Session, before: tuple[Session, ...]) -> Session:
    """Sessions come in UTC; in an imported memory whose times have no zone they have none either."""
    if before and before[-1].timestamp.tzinfo is None:
        return replace(session, timestamp=session.timestamp.replace(tzinfo=None))
    return session


def _same(one: Session, other: Session) -> bool:
    return (one.timestamp, one.turns) == (other.timestamp, other.turns)
