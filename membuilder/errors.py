"""Errors a user can act on. Each message says what is wrong, where, and what to do."""

from enum import StrEnum


class MemBuilderError(Exception):
    """Base of every error this project raises on purpose."""


class DataError(MemBuilderError):
    """A data file is missing, unreadable or not what its format promises."""

    def __init__(self, path, record: str, field: str, problem: str):
        self.path, self.record, self.field, self.problem = str(path), record, field, problem
        super().__init__(f"{path}: {record}: field '{field}': {problem}")


class WriteError(MemBuilderError):
    """A file could not be written; what stood in its place is kept."""

    def __init__(self, path, error: OSError, free_bytes: int):
        self.path = str(path)
        super().__init__(
            f"could not write '{path}' ({free_bytes:,} bytes free on its disk): {error}; what stood there is kept"
        )


class ConfigError(MemBuilderError):
    """A configuration key is unknown or its value has the wrong type or range."""


class StoreError(MemBuilderError):
    """A memory store cannot be opened or written."""

    def __init__(self, path, problem: str):
        self.path = str(path)
        super().__init__(f"{path}: {problem}")


class ParityError(MemBuilderError):
    """A check found that prompts, engine and trainer do not agree; `check` is its name (docs/troubleshooting.md)."""

    def __init__(self, check: str, problem: str):
        self.check = check
        super().__init__(f"check {check}: {problem}")


class RewardError(MemBuilderError):
    """Too many rewards could not be computed for a step to mean anything."""


class CheckpointError(MemBuilderError):
    """A checkpoint could not be written or read."""


class RankError(MemBuilderError):
    """Another process of the run is gone."""


class Interrupted(MemBuilderError):
    """The run was asked to stop and saved first. `status` is the exit status that tells of the signal."""

    def __init__(self, message: str, status: int):
        self.status = status
        super().__init__(message)


class DivergedError(MemBuilderError):
    """Too many updates in a row had a gradient that is not finite."""


class NothingLearnedError(MemBuilderError):
    """Nothing could be learned from too many steps in a row; what was learned before is saved."""


class CacheError(MemBuilderError):
    """The folder of cached answers cannot be read."""


class ChatErrorKind(StrEnum):
    REFUSED_KEY = "refused_key"
    NO_CREDIT = "no_credit"
    UNKNOWN_MODEL = "unknown_model"
    UNREACHABLE = "unreachable"
    """No connection, or each one broke, in every attempt; or the server is elsewhere."""
    TIMEOUT = "timeout"
    EXHAUSTED = "exhausted"
    """The server asked to be tried again (408, 409, 429, 5xx) until the attempts were used up."""
    REFUSES_ALL = "refuses_all"
    """The server refused a request and the small check request after it: an empty balance, a closed endpoint."""
    BAD_REQUEST = "bad_request"
    """The server refuses this one request; it answered the small check request after it."""
    UNFIT_PROMPT = "unfit_prompt"
    """The prompt is longer than the model's context, as the server's own code says, or is no text."""
    BAD_RESPONSE = "bad_response"
    """What came back is not an answer: not JSON, or cut short."""
    NO_TEXT = "no_text"
    """The model answered with nothing, or with what is no text, in every attempt."""
    TRUNCATED = "truncated"
    """The answer reached the token limit."""
    DECLINED = "declined"
    """The model or a content filter would not answer."""


FATAL_CHAT_ERRORS = frozenset(
    {
        ChatErrorKind.REFUSED_KEY,
        ChatErrorKind.NO_CREDIT,
        ChatErrorKind.UNKNOWN_MODEL,
        ChatErrorKind.UNREACHABLE,
        ChatErrorKind.REFUSES_ALL,
    }
)
MODEL_FAULTS = frozenset(
    {
        ChatErrorKind.BAD_REQUEST,
        ChatErrorKind.UNFIT_PROMPT,
        ChatErrorKind.TRUNCATED,
        ChatErrorKind.DECLINED,
        ChatErrorKind.NO_TEXT,
    }
)


class ChatError(MemBuilderError):
    """A model endpoint gave no usable answer.

    `fatal`: no later call can fare better, so stop and tell the user. `models_fault`: this model fails on this prompt,
    today and tomorrow. All others tell of a server or an account, and may be kept by nobody as the model's answer.
    """

    def __init__(self, kind: ChatErrorKind, message: str, retry_after_seconds: float | None = None):
        self.kind, self.retry_after_seconds = kind, retry_after_seconds
        super().__init__(message)

    @property
    def fatal(self) -> bool:
        return self.kind in FATAL_CHAT_ERRORS

    @property
    def models_fault(self) -> bool:
        return self.kind in MODEL_FAULTS


class BuildStopped(MemBuilderError):
    """A server failed in the middle of a dialogue. The sessions before are stored; nothing of this one is."""

    def __init__(self, store, dialogue: str, session: str, num_stored: int, cause: ChatError):
        self.store, self.dialogue, self.session = str(store), dialogue, session
        self.num_stored, self.cause = num_stored, cause
        super().__init__(
            f"{store}: stopped at session {session} of dialogue {dialogue}: {cause} Sessions stored before it and safe:"
            f" {num_stored}. Once the server answers again, run the same command again; it goes on with this session."
        )


class LeakError(MemBuilderError):
    """Training and evaluation data share what is asked or read."""


class FetchError(MemBuilderError):
    """A public file could not be fetched, or what came is not that file."""


class PushError(MemBuilderError):
    """A model could not be uploaded; its folder stands."""


class EvaluationError(MemBuilderError):
    """An evaluation cannot go on, or its result would mislead."""
