"""A memory server for tests that listens on loopback, in a thread of this process.

with listening(tmp_path) as address:
    Client(address).remember("ann", [{"role": "user", "content": "I adopted a cat called Miso."}])
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from membuilder.llm.endpoints import ModelEndpoint
from membuilder.serving.access import new_key
from tests.fakes import HashEmbedder
from tests.fault_server import Request, payload
from tests.served import RULES, served


@contextmanager
def listening(root: Path, model: ModelEndpoint = RULES, **more: object) -> Iterator[str]:
    with served(root, model, **more) as server, server.listening() as address:
        yield address


async def embedding(request: Request, writer: asyncio.StreamWriter) -> None:
    """A server that embeds, for commands: loading MiniLM would take them seconds."""
    rows = HashEmbedder().embed(request.body["input"]).tolist()
    await payload({"data": [{"index": number, "embedding": row} for number, row in enumerate(rows)]})(request, writer)


def key_for(file: Path, *users: str) -> str:
    """A key for these users, added to a file of keys."""
    key, line = new_key(list(users))
    with file.open("a") as lines:
        lines.write(f"{line}\n")
    return key
