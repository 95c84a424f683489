"""JSON over HTTP to one server, as cheap as it can be. The only file that imports openai.

Of the openai package it takes what a user of it expects: the address, the key, and the account that the environment
names. The requests go past it, because it spends several times the CPU of aiohttp on each, and a judge that is asked 64
questions at once waits for that. Behind a proxy they go through the HTTP client that openai brings, which knows all
kinds of proxies. Nothing is tried again here and nothing is ever late: both is up to the caller.
"""

import asyncio
import json
import os
import sys
import urllib.request
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from membuilder.llm.network import usable_network_settings

if TYPE_CHECKING:
    import aiohttp
    import openai

MAX_BODY_BYTES = 256 * 2**20
"""An answer announced as longer is not read, because it would fill the memory."""

CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
OF_THE_TRANSPORT = ("accept-encoding", "connection")
"""Headers that each transport sets by what it can do."""


class EndlessAnswer(Exception):
    """A server announced more than anybody can read."""


class Refused(Exception):
    """A server answered with another status than success; `said` is what it says of it."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        text = body.decode("utf-8", "replace").strip()
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):  # a proxy's page
            found = text
        about = found.get("error", found) if isinstance(found, dict) else found
        about = about if isinstance(about, dict) else {}
        self.status, self.headers = status, headers
        self.code, self.param = about.get("code"), about.get("param")
        self.said = str(about.get("message") or f"Error code: {status} - {text}")
        super().__init__(self.said)


class Http:
    """It sends requests in the event loop that first awaits one, with the key in their headers and nowhere else."""

    def __init__(self, base_url: str | None, api_key: SecretStr) -> None:
        import aiohttp
        import openai  # seconds to import, which `--help` and programs that ask no model need not wait for

        self._package = _package_of(openai.DefaultAioHttpClient)
        with usable_network_settings():
            self._tls = _tls(self._package, *map(os.environ.get, CERTIFICATES))
            # aiohttp under httpx: at 64 requests in flight httpx's own pool takes more CPU than all the rest together
            self._proxied = openai.DefaultAioHttpClient(
                timeout=None,
                verify=self._tls,
                follow_redirects=False,
                event_hooks={"response": [_look_at]},
            )
        client = openai.AsyncOpenAI(
            api_key=api_key.get_secret_value(), base_url=base_url, max_retries=0, http_client=self._proxied
        )
        self.base_url = str(client.base_url)
        self._root = self.base_url.rstrip("/")
        self._proxied.headers.update(_headers(client))
        self._has_proxy = _has_proxy(self._root)
        self._session: aiohttp.ClientSession | None = None
        self._pool: _Pool | None = None
        self.errors = (self._package.HTTPError, aiohttp.ClientError)
        """What is raised where no whole answer comes."""

    async def close(self) -> None:
        await self._proxied.aclose()
        if self._session is not None and self._pool is not None:
            await self._session.close()
            await self._pool.leave()

    async def send(self, path: str, body: Mapping[str, Any] | None = None) -> object:
        """Post JSON, or get without it; return the JSON that comes back, or its text where it is not declared as JSON.

        Raises Refused, EndlessAnswer, one of `errors`, and ValueError for what is not JSON.
        """
        method, content = ("GET", None) if body is None else ("POST", _encoded(body))
        send = self._send_proxied if self._has_proxy else self._send_directly
        status, headers, raw = await send(method, f"{self._root}{path}", content)
        if not 200 <= status < 300:
            raise Refused(status, headers, raw)
        if "json" in headers.get("content-type", ""):
            return json.loads(raw)
        return raw.decode("utf-8", "replace")

    async def _send_directly(
        self, method: str, url: str, content: bytes | None
    ) -> tuple[int, Mapping[str, str], bytes]:
        if self._session is None:
            self._session = self._new_session()
        request = self._session.request(method, url, data=content, ssl=self._tls, allow_redirects=False)
        async with request as response:
            _refuse_endless(response.headers)
            return response.status, response.headers, await response.read()

    async def _send_proxied(self, method: str, url: str, content: bytes | None) -> tuple[int, Mapping[str, str], bytes]:
        response = await self._proxied.send(self._proxied.build_request(method, url, content=content))
        return response.status_code, response.headers, response.content

    def _new_session(self) -> "aiohttp.ClientSession":
        import aiohttp

        self._pool = _Pool.join()
        return aiohttp.ClientSession(
            connector=self._pool.connector,
            connector_owner=False,
            headers={name: value for name, value in self._proxied.headers.items() if name not in OF_THE_TRANSPORT},
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
        )


class _Pool:
    """Connections of one event loop, for all who ask there: an answerer and its judge are often one server.

    To open one costs more than to send a request on one that is open.
    """

    _of_loops: "dict[asyncio.AbstractEventLoop, _Pool]" = {}

    def __init__(self) -> None:
        import aiohttp

        self.connector, self._users = aiohttp.TCPConnector(limit=0), 0

    @classmethod
    def join(cls) -> "_Pool":
        """Return the pool of the running loop; who joins must leave."""
        loop = asyncio.get_running_loop()
        if loop not in cls._of_loops:
            cls._of_loops[loop] = cls()
        cls._of_loops[loop]._users += 1
        return cls._of_loops[loop]

    async def leave(self) -> None:
        """Close the connections where nobody is left."""
        self._users -= 1
        if not self._users:
            del self._of_loops[asyncio.get_running_loop()]
            await self.connector.close()


def _encoded(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def _has_proxy(url: str) -> bool:
    """Tell whether the environment names a proxy for an address."""
    proxies, parts = urllib.request.getproxies(), urlsplit(url)
    named = parts.scheme in proxies or "all" in proxies
    return named and not urllib.request.proxy_bypass(parts.netloc)


async def _look_at(response: Any) -> None:
    _refuse_endless(response.headers)


def _refuse_endless(headers: Mapping[str, str]) -> None:
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length) > MAX_BODY_BYTES:
        raise EndlessAnswer(f"it announces an answer of {length} bytes")


def _package_of(client: type) -> Any:
    """Return the HTTP package under a client of openai; which one that is differs between versions of openai."""
    module = next(base.__module__ for base in client.__mro__ if base.__module__.startswith("httpx"))
    return sys.modules[module.partition(".")[0]]


@lru_cache
def _tls(package: Any, *_files: str | None) -> Any:
    """Return the certificates that are trusted, read once: that takes as long as fifty requests, in every step."""
    return package.create_ssl_context()


def _headers(client: "openai.AsyncOpenAI") -> dict[str, str]:
    """Return what openai sends with a request, key and account included, but not what it says of this machine."""
    headers = {**client.default_headers, **client.auth_headers}
    return {
        name: value
        for name, value in headers.items()
        if isinstance(value, str) and not name.casefold().startswith("x-stainless")
    }
