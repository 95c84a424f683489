"""Which entries the writer sees beside a chunk: the last, the related or both, as many as there is room for."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice, zip_longest

from membuilder.bank.retrieve import related
from membuilder.embedding.local import TextEmbedder
from membuilder.schemes.memalpha.config import MemAlphaConfig, View
from membuilder.types import Agent, Bank, Entry, Session


def shown_entries(
    session: Session,
    bank: Bank,
    config: MemAlphaConfig,
    embedder: TextEmbedder,
    room_tokens: int,
    tokens_of: Callable[[Entry], int],
) -> tuple[Entry, ...]:
    """Return the entries to show, by part and then by age.

    Of every part the first choice comes before the second of any: room is given in this order, and an entry too long
    for what is left of it is passed over.
    """
    current = bank.current()
    choices = [_choices(session, bank, current, part, config, embedder) for part in config.parts]
    chosen: set[str] = set()
    for entry in _in_turn(*choices):
        if (tokens := tokens_of(entry)) <= room_tokens:
            chosen.add(entry.id)
            room_tokens -= tokens
    shown = [entry for entry in current if entry.id in chosen]
    return tuple(sorted(shown, key=lambda entry: config.parts.index(Agent(entry.agent))))


def _choices(
    session: Session, bank: Bank, current: Sequence[Entry], part: Agent, config: MemAlphaConfig, embedder: TextEmbedder
) -> list[Entry]:
    """Return the entries of one part to show, the most wanted first; the core has none."""
    most = config.entries_shown
    if not most or part is Agent.CORE:
        return []
    recent = list(islice((entry for entry in reversed(current) if entry.agent == part), most))
    if config.view is View.RECENT:
        return recent
    alike = related(bank, session, part, embedder, most, include_superseded=False, method=config.retrieval)
    if config.view is View.RELATED:
        return list(alike)
    return list(islice(_in_turn(recent, alike), most))


def _in_turn(*lists: Sequence[Entry]) -> Iterator[Entry]:
    """Yield the first of each list, then the second of each, and so on; nothing twice."""
    entries = chain.from_iterable(zip_longest(*lists))
    return iter({entry.id: entry for entry in entries if entry is not None}.values())
