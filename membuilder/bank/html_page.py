"""A memory as one HTML page that needs nothing beside itself: search, filter by agent, timeline.

What dialogues and models wrote is never markup. It stands in the page as JSON without `<`, its own script shows it as
plain text, and a content security policy lets nothing but that one script run and nothing be fetched.
"""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from membuilder.bank.store_rows import StoredSession
from membuilder.types import Bank

_TEMPLATES = Path(__file__).parent / "templates"
TIME_FORM = "%Y-%m-%d %H:%M"


def render_page(settings: Mapping[str, Any], sessions: Sequence[StoredSession], bank: Bank) -> str:
    """The whole page as text."""
    style, script = _template("inspect.css"), _template("inspect.js")
    return Template(_template("inspect.html")).substitute(
        title=html.escape(f"Memory of {settings['dialogue']}"),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        data=_as_json(_content(settings, sessions, bank)),
    )


def _content(settings: Mapping[str, Any], sessions: Sequence[StoredSession], bank: Bank) -> dict[str, Any]:
    return {
        "dialogue": settings["dialogue"],
        "speakers": settings["speakers"],
        "model": settings["model"],
        "core": bank.core,
        "sessions": [_session(each) for each in sessions],
        "entries": [
            {
                "id": entry.id,
                "agent": str(entry.agent),
                "text": entry.text,
                "session": entry.session,
                "sources": entry.source_turns,
                "supersedes": entry.supersedes,
            }
            for entry in bank.entries
        ],
    }


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
                "agent": str(agent),
                "text": answer.text,
                "seconds": answer.seconds,
                "failure": answer.failure and {"kind": answer.failure.kind, "detail": answer.failure.detail},
            }
            for agent, answer in stored.answers.items()
        ],
    }


def _as_json(content: Any) -> str:
    """JSON that cannot end the script element it stands in, nor open a comment there."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _template(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
