"""Calls a memory server from Python.

    client = Client("http://127.0.0.1:8800", key="mb-...")
    client.remember("ann", [{"role": "user", "content": "I adopted a cat called Miso."}], wait=True)
    client.search("ann", "Which pets does Ann have?")["found"][0]["entry"]["text"]

Replies are those of the API (/openapi.json). `MemoryService` has the same calls for the server's own process.
"""

import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import httpx

from membuilder.errors import ConfigError, MemBuilderError

_PAUSE_SECONDS = 0.2


class ClientError(MemBuilderError):
    """The server refused a request, or none answered."""

    def __init__(self, status: int | None, kind: str, detail: str):
        self.status, self.kind, self.detail = status, kind, detail
        super().__init__(f"{detail} ({kind})")


class NotFound(ClientError):
    """There is no such user, session, job or entry."""


class NotAllowed(ClientError):
    """The key is missing, unknown, or not for this user."""


class Conflict(ClientError):
    """It does not fit what is there already."""


class TryLater(ClientError):
    """The server is busy, ending or away, or a model or a database that it needs is."""


_ERRORS = {
    HTTPStatus.NOT_FOUND: NotFound,
    HTTPStatus.UNAUTHORIZED: NotAllowed,
    HTTPStatus.FORBIDDEN: NotAllowed,
    HTTPStatus.CONFLICT: Conflict,
    HTTPStatus.TOO_MANY_REQUESTS: TryLater,
    HTTPStatus.SERVICE_UNAVAILABLE: TryLater,
}


class Client:
    """Every call raises ClientError. `timeout` is in seconds, of each step of one request."""

    def __init__(self, url: str = "http://127.0.0.1:8800", key: str | None = None, timeout: float = 300):
        if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
            raise ConfigError("the key holds blanks or characters that no key has")
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def remember(
        self,
        user: str,
        messages: Sequence[Mapping[str, str]],
        session_id: str | None = None,
        timestamp: str | None = None,
        wait: bool = False,
    ) -> dict:
        """Store a conversation and return its job; `wait`: only when it was read, or could not be for now."""
        body = {"messages": list(messages), "session_id": session_id, "timestamp": timestamp}
        return self._call("POST", user, "sessions", params={"wait": wait}, json=body)

    def job(self, user: str, job_id: str) -> dict:
        """Return what became of a session."""
        return self._call("GET", user, "jobs", job_id)

    def wait(self, user: str, job_id: str, seconds: float = 300) -> dict:
        """Return a job when it is done or has failed. Raises TimeoutError after so many seconds."""
        until = time.monotonic() + seconds
        while (job := self.job(user, job_id))["state"] == "queued":
            if time.monotonic() > until:
                raise TimeoutError(
                    f"the session still waits after {seconds:g} s: {job['detail'] or 'others come first'}"
                )
            time.sleep(_PAUSE_SECONDS)
        return job

    def search(self, user: str, query: str, k: int = 10, **options: Any) -> dict:
        """Find the k entries that fit a text best; options: `method`, `current_only`."""
        return self._call("GET", user, "search", params={"query": query, "k": k} | options)

    def answer(self, user: str, question: str, k: int = 10) -> dict:
        """Let the server's answering model answer from what is found."""
        return self._call("POST", user, "answer", json={"question": question, "k": k})

    def memory(self, user: str) -> dict:
        """Return the whole memory."""
        return self._call("GET", user, "memory")

    def entry(self, user: str, entry_id: str) -> dict:
        """Return an entry with its history and the turns it quotes."""
        return self._call("GET", user, "entries", entry_id)

    def correct(self, user: str, entry_id: str, text: str) -> None:
        """Let an entry say something else from now on."""
        self._call("PATCH", user, "entries", entry_id, json={"text": text})

    def forget_entry(self, user: str, entry_id: str, with_turns: bool = False) -> None:
        """Erase an entry; with its turns also what it quotes and all that came of that."""
        self._call("DELETE", user, "entries", entry_id, params={"with_turns": with_turns})

    def forget_session(self, user: str, session_id: str) -> None:
        """Erase a session and all that came of it."""
        self._call("DELETE", user, "sessions", session_id)

    def forget_user(self, user: str) -> None:
        """Erase all that is there of a user."""
        self._call("DELETE", user)

    def export(self, user: str) -> bytes:
        """Return the whole memory as JSON Lines."""
        return self._sent("GET", user, "export").content

    def import_memory(self, user: str, exported: bytes) -> None:
        """Begin a user's memory with an exported one."""
        self._call("POST", user, "import", content=exported)

    def _call(self, method: str, *path: str, **request: Any) -> Any:
        response = self._sent(method, *path, **request)
        return response.json() if response.content else None

    def _sent(self, method: str, *path: str, **request: Any) -> httpx.Response:
        if bad := [part for part in path if part in ("", ".", "..")]:  # an address would lose it: and be another one
            raise ClientError(None, "no-name", f"{bad[0]!r} names nothing")
        url = "/".join(["/v1/users", *(quote(part, safe="") for part in path)])
        try:
            response = self._http.request(method, url, **request)
        except httpx.HTTPError as error:
            raise TryLater(None, "no-reply", f"No reply from the server: {type(error).__name__}") from error
        if response.is_success:
            return response
        kind, detail = _told(response)
        raise _ERRORS.get(response.status_code, ClientError)(response.status_code, kind, detail)


def _told(response: httpx.Response) -> tuple[str, str]:
    """Return the kind and detail of a problem; what stands before the server may reply in its own way."""
    if response.headers.get("content-type") == "application/problem+json":
        problem = response.json()
        return problem["type"].rpartition(":")[2], problem["detail"]
    return "no-problem", f"HTTP {response.status_code} {response.reason_phrase}"
