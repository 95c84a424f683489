"""A memory as one HTML page that needs nothing beside itself: search, filter by agent, timeline.

What dialogues and models wrote is never markup. It stands in the page as JSON without `<`, its own script shows it as
plain text, and a content security policy lets nothing but that one script run and nothing be fetched. The page of a
running server may ask that server, and nothing else.
"""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import msgspec

from membuilder.bank.store_rows import StoredSession
from membuilder.colours import colours_of
from membuilder.types import Bank

_TEMPLATES = Path(__file__).parent / "templates"
TIME_FORM = "%Y-%m-%d %H:%M"


def role_colours(sessions: Sequence[StoredSession], bank: Bank) -> dict[str, str]:
    """Role -> its colour, for every role that answered or wrote an entry."""
    answered = [role for stored in sessions for role in stored.answers]
    return colours_of(dict.fromkeys([*answered, *(entry.agent for entry in bank.entries)]))


def parts_of(sessions: Sequence[StoredSession], bank: Bank) -> list[str]:
    """Return whom entries may be of: the roles, or, where one of them names parts, the parts that have entries."""
    roles = {role for stored in sessions for role in stored.answers}
    writers = {str(entry.agent) for entry in bank.entries}
    known = role_colours(sessions, bank)
    return [name for name in known if name != "core" and (name in writers or writers <= roles)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Live:
    """The server that a page may ask."""

    address: str
    """Path of the user's memory there."""
    answers: bool
    """Whether a model answers questions."""


def render_page(
    settings: Mapping[str, Any], sessions: Sequence[StoredSession], bank: Bank, live: Live | None = None
) -> str:
    """Return the whole page as text."""
    style, script = _template("inspect.css"), _template("inspect.js")
    script = script if live is None else _template("live.js") + script
    content = {name: settings[name] for name in ("dialogue", "speakers", "model")}
    content |= {"core": bank.core, "entries": bank.entries, "colours": role_colours(sessions, bank)}
    content |= {"parts": parts_of(sessions, bank)}
    content |= {"deleted": bank.deleted} if bank.deleted else {}
    content |= {"api": live.address, "answers": live.answers} if live is not None else {}
    return Template(_template("inspect.html")).substitute(
        title=html.escape(f"Memory of {settings['dialogue']}"),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        connect="" if live is None else "; connect-src 'self'",
        data=_as_json(content | {"sessions": [_session(each) for each in sessions]}),
    )


def _session(stored: StoredSession) -> dict[str, Any]:
    session = stored.session
    return {
        "number": session.index,
        "id": session.id,
        "time": f"{session.timestamp:{TIME_FORM}}",
        "core": stored.core,
        "turns": [{"id": turn.id, "speaker": turn.speaker, "text": turn.content} for turn in session.turns],
        "answers": [
            {
                "agent": role,
                "text": answer.text,
                "seconds": answer.seconds,
                "failure": answer.failure,
                "dropped": answer.dropped,
            }
            for role, answer in stored.answers.items()
        ],
    }


def _as_json(content: Any) -> str:
    """JSON that cannot end the script element it stands in, nor open a comment there."""
    text = json.dumps(msgspec.to_builtins(content), ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _template(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
