"""What everything that asks a language model needs of it."""

from collections.abc import Mapping, Sequence
from typing import Protocol

Message = dict[str, str]  # {"role": "system"|"user"|"assistant", "content": text}


class ChatModel(Protocol):
    """Raises `membuilder.errors.ChatError`; its `fatal` tells a run that must stop from one call that failed."""

    async def complete(self, messages: Sequence[Message], *, schema: Mapping | None = None) -> str: ...
