"""Types of what keys and flags hold: numbers with their range, and how a user is told of them.

    @dataclass(kw_only=True)
    class RunConfig(Section):
        num_steps: PositiveInt = 100

RunConfig(num_steps=0)     raises ValueError, as membuilder.config raises ConfigError for the key of a file
parser.add_argument("--steps", type=flag_type(PositiveInt))
"""

import argparse
import math
import types
import typing
from collections.abc import Callable
from dataclasses import fields
from enum import Enum
from functools import cache
from typing import Annotated, Any

import msgspec
from msgspec import Meta

PositiveInt = Annotated[int, Meta(ge=1)]
NonNegativeInt = Annotated[int, Meta(ge=0)]
AtLeastTwo = Annotated[int, Meta(ge=2)]
Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]
"""Every library takes these, NumPy no others."""
AboveOne = Annotated[float, Meta(gt=1)]
PositiveFloat = Annotated[float, Meta(gt=0)]
NonNegativeFloat = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
PositiveShare = Annotated[float, Meta(gt=0, le=1)]
"""A share of something, not nothing."""
ShareBelowOne = Annotated[float, Meta(ge=0, lt=1)]
"""A share of something, not all of it."""
PartialShare = Annotated[float, Meta(gt=0, lt=1)]
"""A share of something that leaves a part on both sides."""

_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


class Section:
    """The base of every dataclass that holds keys: making one checks the range of its numbers.

    Raises ValueError. A section with a `__post_init__` of its own calls this one first.
    """

    def __post_init__(self) -> None:
        for field in fields(self):
            hint, value = _hints(type(self))[field.name], getattr(self, field.name)
            if ranges(hint):
                refusal = f"{field.name}={value!r} does not fit; expected {type_name(hint)}"
                try:
                    msgspec.convert(value, hint)
                except msgspec.ValidationError:
                    raise ValueError(refusal) from None
                if (problem := never_fits(value)) is not None:
                    raise ValueError(f"{refusal}: {problem}")


_hints = cache(lambda cls: typing.get_type_hints(cls, include_extras=True))


def flag_type(hint: Any) -> Callable[[str], Any]:
    """Return what argparse needs to read a number of this type, and to refuse another."""

    def read(text: str) -> Any:
        try:
            value = msgspec.convert(text, hint, strict=False)
        except msgspec.ValidationError:
            value = math.nan
        if never_fits(value) is not None:
            raise argparse.ArgumentTypeError(f"{text!r} does not fit; expected {type_name(hint)}")
        return value

    return read


def options(hint: Any) -> tuple[Any, ...]:
    """Return the types that a union allows, or the one type that is none."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def ranges(hint: Any) -> list[Meta]:
    """Return the ranges declared anywhere in a type."""
    if typing.get_origin(hint) is Annotated:
        return [part for part in hint.__metadata__ if isinstance(part, Meta)]
    return [found for part in typing.get_args(hint) for found in ranges(part)]


def type_name(hint: Any) -> str:
    """Write a type as a user would: `int (at least 1) | None`, `one of core, episodic`."""
    if typing.get_origin(hint) is Annotated:
        (given,) = ranges(hint)
        bounds = [f"{word} {bound}" for key, word in _BOUNDS.items() if (bound := getattr(given, key)) is not None]
        return f"{type_name(hint.__origin__)} ({', '.join(bounds)})"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "one of " + ", ".join(str(member.value) for member in hint)
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if len(options(hint)) > 1:
        return " | ".join("None" if option is type(None) else type_name(option) for option in options(hint))
    if typing.get_origin(hint) is not None:
        inner = ", ".join("..." if part is ... else type_name(part) for part in typing.get_args(hint))
        return f"{typing.get_origin(hint).__name__}[{inner}]"
    return getattr(hint, "__name__", str(hint))


def never_fits(value: Any) -> str | None:
    """Say why no key can hold a value: comparisons pass over NaN, and no file has a NUL in its name."""
    match value:
        case float() if not math.isfinite(value):
            return "it is not finite"
        case int() if abs(value) >= 2**63:
            return "it does not fit into 64 bits"
        case str() if "\0" in value:
            return "it holds a NUL character"
        case list():
            return next(filter(None, map(never_fits, value)), None)
        case dict():
            return never_fits(list(value.values()))
    return None
