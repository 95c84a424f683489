"""Relative time phrases and the date each one means when said in a session on a given day."""

import random
from collections.abc import Callable
from datetime import date, timedelta

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip


def day_name(day: date) -> str:
    """Write a day as 7 May 2023, spelled out here because strftime follows the locale."""
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}"


def month_name(day: date, months_later: int) -> str:
    """Write the month `months_later` after the month of `day`, as June 2023."""
    years, month = divmod(day.month - 1 + months_later, 12)
    return f"{MONTHS[month]} {day.year + years}"


def _days(count: int) -> Callable[[date], str]:
    return lambda said: day_name(said + timedelta(days=count))


def _week(count: int) -> Callable[[date], str]:
    return lambda said: f"the week of {day_name(_monday(said) + timedelta(weeks=count))}"


def _month(count: int) -> Callable[[date], str]:
    return lambda said: month_name(said, count)


def _monday(day: date) -> date:
    return day - timedelta(days=day.weekday())


def _last_weekend(said: date) -> str:
    return f"the weekend of {day_name(_monday(said) - timedelta(days=2))}"


def _last(weekday: int) -> Callable[[date], str]:
    return lambda said: day_name(said - timedelta(days=(said.weekday() - weekday - 1) % 7 + 1))


def _next(weekday: int) -> Callable[[date], str]:
    return lambda said: day_name(said + timedelta(days=(weekday - said.weekday() - 1) % 7 + 1))


PAST: dict[str, Callable[[date], str]] = {
    "this morning": _days(0),
    "yesterday": _days(-1),
    "two days ago": _days(-2),
    "three days ago": _days(-3),
    "four days ago": _days(-4),
    "a week ago": _days(-7),
    "two weeks ago": _days(-14),
    "last week": _week(-1),
    "last weekend": _last_weekend,
    "last month": _month(-1),
    **{f"last {name}": _last(index) for index, name in enumerate(WEEKDAYS)},
}

FUTURE: dict[str, Callable[[date], str]] = {
    "tomorrow": _days(1),
    "in three days": _days(3),
    "in ten days": _days(10),
    "in two weeks": _days(14),
    "next week": _week(1),
    "next month": _month(1),
    **{f"this coming {name}": _next(index) for index, name in enumerate(WEEKDAYS)},
}


def draw_phrase(rng: random.Random, slot: str) -> str:
    return rng.choice(tuple(PAST if slot == "past" else FUTURE))


def resolve(phrase: str, said: date) -> str:
    """Write the date a phrase means, at its own precision: resolve("last month", 8 May 2023) is April 2023."""
    return (PAST | FUTURE)[phrase](said)
