"""Fills the prompts of the protocols, which are the files under templates/."""

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from string import Template

_FOLDER = Path(__file__).parent / "templates"
SEARCH, ANSWER_NOW = "search", "answer_now"
"""What a reader is told who may search, and who may no longer."""


def filled(name: str, **values: object) -> str:
    """Return a template with these values in it."""
    return _template(name).substitute(values)


def protocol_hashes(names: Iterable[str]) -> dict[str, str]:
    """Map `protocols/name` to the SHA-256 of each of these templates."""
    return {f"protocols/{name}": hashlib.sha256(_template(name).template.encode()).hexdigest() for name in names}


@cache
def _template(name: str) -> Template:
    return Template((_FOLDER / f"{name}.txt").read_text(encoding="utf-8"))
