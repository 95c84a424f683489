"""What a request to the memory server may run into. Messages are for the operator's log; replies have other words."""

from membuilder.errors import ChatError, MemBuilderError, StoreError


class ServingError(MemBuilderError):
    """The server cannot start, or cannot do what a request asks for."""


class NotThereError(ServingError):
    """There is no such job, entry, session or memory."""

    def __init__(self, what: str, name: str):
        self.what = what
        super().__init__(f"no {what} {name!r}")


class SessionConflict(ServingError):
    """A session of this id and other words is there already."""

    def __init__(self, session_id: str):
        super().__init__(f"session {session_id!r} was given before, with other words or another date")


class MemoryConflict(ServingError):
    """What was asked for does not fit the memory as it stands, such as an import into one that is begun."""


class InUseError(StoreError):
    """Another process changes this user's memory at the moment."""


class NoAnswererError(ServingError):
    """Nobody answers questions here: the server was started without --answer-model."""


class BusyError(ServingError):
    """Too much waits already, or the server is about to end; later it may be taken."""


class UnavailableError(ServingError):
    """A model, an embedder or a database that is needed does not answer."""

    def __init__(self, what: str, cause: ChatError):
        self.what = what
        # not its message, which may repeat what was asked or answered
        super().__init__(f"{what} cannot be had ({cause.kind})")
