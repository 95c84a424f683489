"""Requests to one server: time limits, retries, and what its refusals mean. The only file that imports openai.

Nothing the openai package does about retries or time limits is used: its time limit is per read, so that a server which
drips a byte now and then is never late.
"""

import asyncio
import itertools
import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from membuilder.errors import ChatError, ChatErrorKind
from membuilder.llm.chat_model import Role
from membuilder.llm.endpoints import NO_KEY, SETTING_HINT, Address, ServerEndpoint
from membuilder.llm.network import usable_network_settings
from membuilder.llm.responses import read_model_names, read_tokens
from membuilder.llm.retries import pause_seconds, retry_after
from membuilder.llm.usage import Usage
from membuilder.text import HALF_CHARACTER

if TYPE_CHECKING:
    import openai

MAX_BODY_BYTES = 256 * 2**20
"""An answer announced as longer is not read, because it would fill the memory."""
CHECK_ATTEMPTS = 2
TRANSIENT_STATUSES = frozenset({408, 409, 429})  # and every 5xx
CONTEXT_CODES = ("context_length_exceeded", "string_above_max_length")
VLLM_CONTEXT_PARAMS = ("input_tokens", "input_text")
FILTER_CODES = ("content_filter", "content_policy_violation")
REMEDIES = {
    "max_tokens": "max_tokens_field=max_completion_tokens",
    "max_completion_tokens": "max_tokens_field=max_tokens",
    "temperature": "temperature=null",
}
"""What mends a refusal of the setting that the server's own field `param` names."""

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Connection:
    """It asks one server on behalf of one role, in the event loop that first awaits it.

    Only the authorization header of a request holds the key: it is cut out of every text that a server sends.
    """

    def __init__(self, endpoint: ServerEndpoint, address: Address, role: Role, usage: Usage):
        import openai  # seconds to import, which `--help` and programs that ask no model need not wait for

        self._endpoint, self._address, self._role, self._usage = endpoint, address, role, usage
        self._free = asyncio.Semaphore(endpoint.concurrency)
        # aiohttp under httpx: at 64 requests in flight httpx's own pool takes more CPU than all the rest together
        with usable_network_settings():
            http = openai.DefaultAioHttpClient(
                timeout=None, follow_redirects=False, event_hooks={"response": [self._refuse_endless]}
            )
        key, base_url = address.api_key.get_secret_value(), address.base_url
        self._openai = openai.AsyncOpenAI(api_key=key, base_url=base_url, max_retries=0, timeout=None, http_client=http)
        self.base_url = str(self._openai.base_url)
        self._http, self._http_error = http, _transport_errors(http)
        http.headers.update(_headers(self._openai))
        self._urls: dict[str, Any] = {}

    async def close(self) -> None:
        await self._openai.close()

    async def post(self, path: str, body: Mapping[str, Any], read: Callable[[object], T], max_attempts: int) -> T:
        """Send a request, as often as the policy allows, and return its answer as `read` gives it."""
        for attempt in itertools.count(1):
            try:
                return await self._once(path, body, read)
            except ChatError as error:
                self._usage.add_failure(self._role, error.kind)
                pause = pause_seconds(error, attempt, self._endpoint)
                if pause is None or max_attempts == 1:
                    raise
                if attempt == max_attempts:
                    message = f"{error} (given up after {attempt} attempts)"
                    raise ChatError(error.kind, message, error.retry_after_seconds) from None
                _log.info("attempt %d failed (%s), next in %.1f s: %s", attempt, error.kind, pause, error)
            await asyncio.sleep(pause)

    async def checked(self, first_call: Awaitable[T]) -> T:
        """Await the first call of a run. Raises ChatError within `check_timeout_seconds`."""
        seconds = self._endpoint.check_timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                return await first_call
        except TimeoutError:
            problem = f"no answer within {seconds:g} s of starting; is the server up and idle enough? Raise"
            problem += f" check_timeout_seconds {SETTING_HINT} for a slow one."
            raise ChatError(ChatErrorKind.TIMEOUT, f"{self.base_url}: {problem}") from None

    async def model_names(self) -> list[str]:
        """Return the models the server lists, none when it has no such list."""
        try:
            return read_model_names(await self._within_time(self._openai.get("/models", cast_to=object)))
        except ChatError:  # the list only improves a message about another error
            return []

    async def _once(self, path: str, body: Mapping[str, Any], read: Callable[[object], T]) -> T:
        async with self._free:
            began = time.perf_counter()
            payload = await self._within_time(self._sent(path, body))
            seconds = time.perf_counter() - began
        failure, tokens = None, read_tokens(payload)
        try:
            result = read(payload)
        except ChatError as error:
            failure = ChatError(error.kind, f"{self.base_url}: {self._without_key(str(error))}")
        if failure is None or tokens is not None:  # a useless answer that names its tokens is paid for too
            self._usage.add_answer(self._role, seconds, tokens, self._endpoint.price, self._endpoint.name)
        if failure is not None:
            raise failure
        return result

    async def _sent(self, path: str, body: Mapping[str, Any]) -> object:
        """Post JSON and return the JSON that comes back, or its text where it is not declared as JSON.

        It goes past the openai package, whose way of building a request and a record of the answer costs more CPU than
        everything else of a call together; a judge that is asked 64 questions at once waits for it.
        """
        import openai

        if path not in self._urls:  # taking an address apart is a tenth of a call
            self._urls[path] = type(self._http.base_url)(self.base_url.rstrip("/") + path)
        content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        response = await self._http.send(self._http.build_request("POST", self._urls[path], content=content))
        if response.is_success:
            is_json = "json" in response.headers.get("content-type", "")
            return json.loads(response.content) if is_json else response.text
        try:
            said = json.loads(response.content)
        except ValueError:  # a proxy's page
            said = response.text.strip()
        message = f"Error code: {response.status_code} - {said}"
        error = said.get("error", said) if isinstance(said, dict) else said
        raise openai.APIStatusError(message, response=response, body=error)

    async def _within_time(self, request: Any) -> object:
        """Await a request of the openai package; everything that can go wrong in it becomes a ChatError."""
        import aiohttp
        import openai

        seconds, pause = self._endpoint.timeout_seconds, None
        try:
            async with asyncio.timeout(seconds):
                return await request
        except TimeoutError:
            problem = f"no whole answer within {seconds:g} s; raise timeout_seconds or lower concurrency {SETTING_HINT}"
            kind = ChatErrorKind.TIMEOUT
        except openai.APIStatusError as error:
            kind, problem = self._meaning(error)
            pause = retry_after(error.response.headers)
        except (openai.APIConnectionError, self._http_error, aiohttp.ClientError) as error:
            cause = error.__cause__ or error
            cause = self._without_key(f"{type(cause).__name__}: {cause}")
            problem = f"no connection, or it broke; is a server that speaks HTTP running at this address? ({cause})"
            kind = ChatErrorKind.UNREACHABLE
        except UnicodeEncodeError:
            kind, problem = ChatErrorKind.UNFIT_PROMPT, f"the request {HALF_CHARACTER}; repair the data it comes from"
        except (ValueError, RecursionError) as error:  # from the JSON reader
            problem = f"the answer is not JSON or was cut short ({type(error).__name__})"
            kind = ChatErrorKind.BAD_RESPONSE
        # outside the handlers: the library's error, which knows the request, is not chained to it
        raise ChatError(kind, f"{self.base_url}: {problem}", pause)

    def _meaning(self, error: "openai.APIStatusError") -> tuple[ChatErrorKind, str]:
        """Say what an HTTP status other than success means, and what to do about it."""
        status, model, target = error.status_code, self._endpoint.name, error.response.headers.get("location")
        body = error.body if isinstance(error.body, dict) else {}
        said = self._without_key(str(body.get("message") or error.message))
        if status == 402 or error.code == "insufficient_quota":  # a 429 of that code is healed by no waiting
            kind, problem = ChatErrorKind.NO_CREDIT, "the account of this API key has no credit left."
        elif status in TRANSIENT_STATUSES or status >= 500:
            kind, problem = ChatErrorKind.EXHAUSTED, f"HTTP {status}; lower concurrency {SETTING_HINT} or try later."
        elif status in (401, 403):
            problem = f"it refuses the API key (HTTP {status}); set {self._address.key_hint}."
            kind = ChatErrorKind.REFUSED_KEY
        elif status == 404 or error.code == "model_not_found":
            problem = f"it serves no model {model!r} (HTTP {status}); check the model's name, and that the base URL is"
            problem += " the root of an OpenAI-compatible API, usually ending in /v1."
            kind = ChatErrorKind.UNKNOWN_MODEL
        elif error.code in CONTEXT_CODES or error.param in VLLM_CONTEXT_PARAMS:
            kind, problem = ChatErrorKind.UNFIT_PROMPT, f"the prompt does not fit the context of {model!r}."
        elif error.code in FILTER_CODES:
            kind, problem = ChatErrorKind.DECLINED, f"a content filter refuses the prompt (HTTP {status})."
        elif 300 <= status < 400:
            problem = f"it redirects to {target} (HTTP {status}); set the base URL to the final address."
            kind = ChatErrorKind.UNREACHABLE
        else:
            kind, problem = ChatErrorKind.BAD_REQUEST, f"it refuses the request for {model!r} (HTTP {status})."
            if str(error.param) in REMEDIES:
                problem += f" Set {REMEDIES[error.param]} {SETTING_HINT}."
        return kind, f"{problem} The server said: {said}"

    def _without_key(self, text: str) -> str:
        key = self._address.api_key.get_secret_value()
        return " ".join((text if key == NO_KEY else text.replace(key, "[key]")).split())[:400]

    async def _refuse_endless(self, response: Any) -> None:
        length = response.headers.get("content-length", "0")
        if length.isdigit() and int(length) > MAX_BODY_BYTES:
            raise ChatError(ChatErrorKind.BAD_RESPONSE, f"{self.base_url} announces an answer of {length} bytes")


def _transport_errors(http: Any) -> type[Exception]:
    """Return what the HTTP package under openai raises; which package that is differs between versions of openai."""
    package = next(base.__module__ for base in type(http).__mro__ if base.__module__.startswith("httpx"))
    return sys.modules[package.partition(".")[0]].HTTPError


def _headers(client: "openai.AsyncOpenAI") -> dict[str, str]:
    """Return what openai sends with a request, key and account included, but not what it says of this machine."""
    headers = {**client.default_headers, **client.auth_headers}
    return {
        name: value
        for name, value in headers.items()
        if isinstance(value, str) and not name.casefold().startswith("x-stainless")
    }
