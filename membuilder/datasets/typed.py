"""Turns decoded JSON or TOML into a msgspec type, and refuses what does not fit with its path, record and field."""

import re
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from membuilder.errors import DataError

Text = Annotated[str, msgspec.Meta(pattern=r"\S")]
"""A string that is not blank."""
T = TypeVar("T")


def typed(kind: type[T], value: object, path: str | Path, where: str) -> T:
    """`value` as an instance of `kind`; DataError names `where` and the full name of the field that does not fit."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        # Such as: Object contains unknown field `text` - at `$.questions[0]`
        problem, _, place = str(error).partition(" - at `$")
        named = re.search(r"field `(\w+)`", problem)
        field = ".".join(filter(None, (place.strip(".`"), named[1] if named else "")))
        problem = problem.replace("matching regex '\\\\S'", "that is not blank")
        raise DataError(path, where, field or "contents", problem) from error
