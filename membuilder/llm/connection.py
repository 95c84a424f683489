"""Requests to one server: time limits, retries, and what its refusals mean."""

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from membuilder.errors import ChatError, ChatErrorKind
from membuilder.llm.chat_model import Role
from membuilder.llm.endpoints import NO_KEY, SETTING_HINT, Address, ServerEndpoint
from membuilder.llm.responses import read_model_names, read_tokens
from membuilder.llm.retries import pause_seconds, retry_after
from membuilder.llm.transport import EndlessAnswer, Http, Refused
from membuilder.llm.usage import Usage
from membuilder.text import HALF_CHARACTER

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
        self._endpoint, self._address, self._role, self._usage = endpoint, address, role, usage
        self._free = asyncio.Semaphore(endpoint.concurrency)
        self._http = Http(address.base_url, address.api_key)
        self.base_url = self._http.base_url

    async def close(self) -> None:
        await self._http.close()

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
            return read_model_names(await self._within_time(self._http.send("/models")))
        except ChatError:  # the list only improves a message about another error
            return []

    async def _once(self, path: str, body: Mapping[str, Any], read: Callable[[object], T]) -> T:
        async with self._free:
            began = time.perf_counter()
            payload = await self._within_time(self._http.send(path, body))
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

    async def _within_time(self, request: Any) -> object:
        """Await a request; everything that can go wrong in it becomes a ChatError."""
        seconds, pause = self._endpoint.timeout_seconds, None
        try:
            async with asyncio.timeout(seconds):
                return await request
        except TimeoutError:
            problem = f"no whole answer within {seconds:g} s; raise timeout_seconds or lower concurrency {SETTING_HINT}"
            kind = ChatErrorKind.TIMEOUT
        except Refused as error:
            kind, problem = self._meaning(error)
            pause = retry_after(error.headers)
        except EndlessAnswer as error:
            kind, problem = ChatErrorKind.BAD_RESPONSE, str(error)
        except self._http.errors as error:
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

    def _meaning(self, error: Refused) -> tuple[ChatErrorKind, str]:
        """Say what an HTTP status other than success means, and what to do about it."""
        status, model, target = error.status, self._endpoint.name, error.headers.get("location")
        said = self._without_key(error.said)
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
