"""Errors a user can act on. Each message says what is wrong, where, and what to do."""


class MemBuilderError(Exception):
    """Base of every error this project raises on purpose."""


class DataError(MemBuilderError):
    """A data file is missing, unreadable or not what its format promises."""

    def __init__(self, path, record: str, field: str, problem: str):
        self.path, self.record, self.field, self.problem = str(path), record, field, problem
        super().__init__(f"{path}: {record}: field '{field}': {problem}")


class ConfigError(MemBuilderError):
    """A configuration key is unknown or its value has the wrong type or range."""


class ParityError(MemBuilderError):
    """Engine and trainer disagree about the probability of the same tokens."""


class RewardError(MemBuilderError):
    """Too many rewards could not be computed for a step to mean anything."""


class CheckpointError(MemBuilderError):
    """A checkpoint could not be written or read."""


class FetchError(MemBuilderError):
    """A public file could not be fetched, or what came is not that file."""


class EvaluationError(MemBuilderError):
    """An evaluation cannot go on, or its result would mislead."""
