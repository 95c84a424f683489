"""Turns decoded JSON or TOML into typed values, and refuses what does not fit with its path, record and field."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from membuilder.errors import DataError

Text = Annotated[str, msgspec.Meta(pattern=r"\S")]
"""A string that is not blank."""
T = TypeVar("T")


class FieldError(ValueError):
    """A field does not fit. Code that knows no file raises it; `located` makes a DataError of it."""

    def __init__(self, field: str, problem: str):
        self.field, self.problem = field, problem
        super().__init__(f"field '{field}': {problem}")


@contextmanager
def located(path: str | Path, where: str, advice: str = "") -> Iterator[None]:
    """Turn a FieldError in the block into a DataError about the record `where` of a file."""
    try:
        yield
    except FieldError as error:
        problem = f"{error.problem}; {advice}" if advice else error.problem
        raise DataError(path, where, error.field, problem) from error


def typed(kind: type[T], value: object, path: str | Path, where: str, field: str = "", advice: str = "") -> T:
    """Return `value` as an instance of `kind`; DataError names `where` and the full name of the field that is wrong."""
    with located(path, where, advice):
        return convert(kind, value, field)


def convert(kind: type[T], value: object, field: str = "") -> T:
    """Return the value of `field` as an instance of `kind`; FieldError names the part of it that does not fit."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        # Such as: Object contains unknown field `text` - at `$.questions[0]`
        problem, _, place = str(error).partition(" - at `$")
        place, named = place.rstrip("`"), re.search("field `(.+)`", problem)
        if named is None and "got" not in problem:
            problem += f", found {_part(value, place)!r:.80}"
        problem = problem.replace(r"matching regex '\\S'", "that is not blank; fill it in or remove what it belongs to")
        name = f"{field}{place}.{named[1]}" if named else f"{field}{place}"
        raise FieldError(name.lstrip(".") or "top level", problem) from error


def one_of(names: tuple[str, ...]) -> Any:
    """Return the type of a string that is one of these names."""
    return Annotated[str, msgspec.Meta(pattern=rf"^({'|'.join(names)})\Z")]


def _part(value: Any, place: str) -> Any:
    """Return what lies at a place such as `.questions[0].answer`, or above it where a key is not named (`[...]`)."""
    for key, index in re.findall(r"\.([^.\[]+)|\[(\d+)\]", place.partition("[...]")[0]):
        value = value[key or int(index)]
    return value
