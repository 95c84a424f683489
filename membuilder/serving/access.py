"""Who may do what: keys that name the users they are for. Only their hashes are kept.

    python -m membuilder.serve --new-key ann 'team-*' >> keys.jsonl      prints the key once, on standard error

A line of the file is {"sha256": "...", "users": ["ann", "team-*"]}; `*` stands for any characters.
"""

import fnmatch
import hashlib
import json
import secrets
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from membuilder.datasets.files import read_lines
from membuilder.datasets.typed import typed
from membuilder.serving.problems import Problem

_UNKNOWN = Problem(
    HTTPStatus.UNAUTHORIZED,
    "no-key",
    "This server needs a key: Authorization: Bearer KEY.",
    {"WWW-Authenticate": "Bearer"},
)
_OTHER = Problem(HTTPStatus.FORBIDDEN, "other-user", "This key is not for this user.")


@dataclass(frozen=True, slots=True)
class _Line:
    sha256: str
    users: list[str]


class Keys:
    """The keys of a file; None lets everybody do everything, which a server does on loopback alone."""

    def __init__(self, path: Path | None):
        self._path = path
        self._users: dict[str, tuple[str, ...]] = {}
        self.read()

    @property
    def are_needed(self) -> bool:
        """Tell whether a request needs a key at all."""
        return self._path is not None

    def read(self) -> None:
        """Read the file again; keys that it lacks are no keys any more. Raises DataError, and the old ones stay."""
        if self._path is not None:
            lines = [typed(_Line, line, self._path, f"line {number}") for number, line in read_lines(self._path)]
            self._users = {each.sha256: tuple(each.users) for each in lines}

    def check(self, authorization: str | None, user: str | None) -> str:
        """Return whom a request counts for. Raises Problem where its key is not for this user; None: for none."""
        if self._path is None:
            return "loopback"
        scheme, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode()).hexdigest()
        users = self._users.get(digest) if scheme.lower() == "bearer" else None
        if users is None:
            raise _UNKNOWN
        if user is not None and not any(fnmatch.fnmatchcase(user, pattern) for pattern in users):
            raise _OTHER
        return digest


def new_key(users: list[str]) -> tuple[str, str]:
    """Return a new key, and the line of a file that lets it act for these users."""
    key = f"mb-{secrets.token_urlsafe(32)}"
    line = {"sha256": hashlib.sha256(key.encode()).hexdigest(), "users": users}
    return key, json.dumps(line)
