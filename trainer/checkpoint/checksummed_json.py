"""JSON files that carry a checksum of themselves and come back typed: damage is found, never read as data."""

from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from membuilder.errors import CheckpointError

Content = TypeVar("Content")

FORMAT = 1
"""Raise it when an older file can no longer be read."""
_PLACE = b"null"
"""Stands for the content, which is the last field."""


class Envelope(msgspec.Struct, kw_only=True):
    format: int
    label: str
    """What the file is; a reader that expects another refuses it."""
    sha256: str
    """Of label and content."""
    content: msgspec.Raw


def encode(value: Any, kind: Any, name: str) -> bytes:
    """JSON that reads back as an equal value of type `kind`.

    Raises CheckpointError, naming `name`, for what JSON would change: nan, infinities, values of another type.
    """
    try:
        data = msgspec.json.encode(value)
        same = msgspec.json.decode(data, type=kind) == value
    except (msgspec.MsgspecError, TypeError, UnicodeEncodeError) as error:
        raise CheckpointError(f"{name} cannot be kept exactly: {error} (nan and infinities read as `null`)") from error
    if not same:
        raise CheckpointError(f"{name} cannot be kept exactly: a value is not finite or not of its declared type")
    return data


def seal(label: str, *content: bytes) -> list[bytes]:
    """Return the parts of a file around content that is JSON already, and may be many parts too: none is copied."""
    envelope = Envelope(format=FORMAT, label=label, sha256=_digest(label, *content), content=msgspec.Raw(_PLACE))
    before, behind = msgspec.json.encode(envelope).rsplit(_PLACE, 1)
    return [before, *content, behind]


def unseal(path: Path, label: str, kind: type[Content], remedy: str) -> Content:
    """Return a sealed file's content; CheckpointError, naming file and remedy, when it is not what was written."""
    try:
        envelope = msgspec.json.decode(path.read_bytes(), type=Envelope)
        if envelope.format != FORMAT:
            raise CheckpointError(f"'{path}' has format {envelope.format}, this version reads {FORMAT}; {remedy}")
        if envelope.label != label:
            raise CheckpointError(f"'{path}' holds '{envelope.label}' where '{label}' belongs; {remedy}")
        if envelope.sha256 != _digest(label, bytes(envelope.content)):
            raise CheckpointError(f"'{path}' is damaged: its checksum does not match; {remedy}")
        return msgspec.json.decode(envelope.content, type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CheckpointError(f"'{path}' is missing or damaged: {error}; {remedy}") from error


def _digest(label: str, *content: bytes) -> str:
    digest = sha256(label.encode() + b"\n")
    for part in content:  # not joined: together they may be hundreds of megabytes
        digest.update(part)
    return digest.hexdigest()
