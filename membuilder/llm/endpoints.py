"""Where models are served: provider, address and key, from configuration, command line and environment.

A key never enters a configuration, because configurations are saved with each run. It comes from the command line or
the environment and travels as a SecretStr, which prints as asterisks.

| for        | provider | address unless configured                       | key unless given                        |
|------------|----------|-------------------------------------------------|-----------------------------------------|
| chat       | openai   | OPENAI_BASE_URL, else the openai package's own  | OPENAI_API_KEY                          |
| chat       | vllm     | http://localhost:8000/v1                        | VLLM_API_KEY, else EMPTY                |
| embeddings | either   | OPENAI_EMBEDDINGS_BASE_URL, or as for chat     | OPENAI_EMBEDDINGS_API_KEY, or as for chat |

`As for chat` is the address and key that chat was given, where its provider is the same; else the rows above. A key
goes only where it belongs: OPENAI_API_KEY is never sent to a vllm server, nor a key given for one address to another.
An endpoint's `api_key_env` names another variable than those above.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from membuilder.errors import ConfigError
from membuilder.value_types import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Section,
)

VLLM_BASE_URL = "http://localhost:8000/v1"
NO_KEY = "EMPTY"
"""The key that a server without keys is sent, because the protocol has no way to send none."""
SETTING_HINT = "(a key of that model's --endpoint flag)"
"""Follows the name of a setting in messages, because every command that asks models has these flags."""


class Provider(StrEnum):
    OPENAI = "openai"
    VLLM = "vllm"


@dataclass(kw_only=True)
class PriceConfig(Section):
    input_per_million: NonNegativeFloat
    """US dollars per million prompt tokens."""
    output_per_million: NonNegativeFloat = 0.0
    """US dollars per million answered tokens."""


class MaxTokensField(StrEnum):
    """The name under which a request says how long the answer may be: the old one, or the one that replaced it."""

    MAX_TOKENS = "max_tokens"
    MAX_COMPLETION_TOKENS = "max_completion_tokens"


class LongTexts(StrEnum):
    """What becomes of a text that an embedding model cannot read whole."""

    REFUSE = "refuse"
    CUT = "cut"
    SPLIT = "split"


@dataclass(kw_only=True)
class ServerEndpoint(Section):
    """It describes a model's server. It holds no key, because configurations are saved with each run."""

    name: str
    """Name of the model as its server knows it."""
    provider: Provider = Provider.OPENAI
    """`vllm` also fits other self-hosted servers that speak the same protocol."""
    base_url: str | None = None
    """Address of the API, usually ending in /v1; null takes the environment's or the provider's own."""
    api_key_env: str | None = None
    """Environment variable that holds the key; null: that of the provider, such as OPENAI_API_KEY."""
    concurrency: PositiveInt = 16
    """Requests in flight at once."""
    timeout_seconds: PositiveFloat = 120.0
    """For one request from sending to the last byte; waiting for a free place does not count."""
    check_timeout_seconds: PositiveFloat = 15.0
    """For the check at the start of a run, all in all."""
    max_attempts: PositiveInt = 6
    """Tries of one call: again after 408, 409, 429, 5xx, a broken connection, a timeout or an unreadable answer."""
    max_wait_seconds: NonNegativeFloat = 30.0
    """Longest pause between two tries that the server asked no pause for."""
    retry_after_limit_seconds: NonNegativeFloat = 120.0
    """A server that asks for a longer pause (Retry-After) is not waited for."""
    extra_body: dict[str, Any] = field(default_factory=dict)
    """Sent as is, such as {chat_template_kwargs: {enable_thinking: false}} to a vLLM server of a Qwen3."""
    price: PriceConfig | None = None
    """null: that of --price, else the cost is reported as unknown."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.provider = Provider(self.provider)  # in Python it may be given as text
        if self.base_url is not None:
            _check_url(self.base_url)


@dataclass(kw_only=True)
class ModelEndpoint(ServerEndpoint):
    """It describes a model that answers messages, and its server."""

    temperature: NonNegativeFloat | None = 0.0
    """null leaves it to the server; some reasoning models refuse any value."""
    top_p: PositiveShare | None = None
    """null leaves it to the server."""
    max_tokens: PositiveInt = 4096
    """Longest answer; one that reaches it counts as failed, because its end is missing."""
    max_tokens_field: MaxTokensField | None = None
    """Name that the server knows `max_tokens` by; null: max_completion_tokens at openai, max_tokens at vllm."""
    seed: NonNegativeInt | None = None
    """Sampling seed, for servers that take one. A new seed also asks anew what the cache holds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_tokens_field is not None:
            self.max_tokens_field = MaxTokensField(self.max_tokens_field)

    @property
    def tokens_field(self) -> str:
        """The name under which `max_tokens` is sent."""
        usual = MaxTokensField.MAX_COMPLETION_TOKENS if self.provider is Provider.OPENAI else MaxTokensField.MAX_TOKENS
        return str(self.max_tokens_field or usual)


@dataclass(kw_only=True)
class EmbeddingEndpoint(ServerEndpoint):
    """It describes a model that turns texts into vectors, and its server."""

    batch_size: PositiveInt = 64
    """Texts in one request. A batch that the server refuses is halved until it takes it."""
    max_text_chars: PositiveInt | None = None
    """Longest text that is sent, in characters; null: the server alone decides. It counts tokens, which cannot be
    counted here.
    """
    long_texts: LongTexts = LongTexts.REFUSE
    """What becomes of a text above `max_text_chars`, or one that the server refuses alone: `refuse` ends the command,
    `cut` embeds its beginning, `split` embeds its pieces and takes the mean of their unit vectors, weighted by their
    characters, at unit length. What the server refuses is halved until it takes it.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.long_texts = LongTexts(self.long_texts)  # in Python it may be given as text


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelAccess:
    """It joins an endpoint and the key for it that was given on a command line."""

    endpoint: ModelEndpoint
    api_key: str | None = field(default=None, repr=False)
    """The key; None: it comes from the environment."""
    key_flag: str | None = "--api-key"
    """The flag that sets it, for messages; None: only the environment does."""


def with_template_kwargs(access: ModelAccess, kwargs: Mapping[str, Any]) -> ModelAccess:
    """Return the access whose requests tell the server's chat template `kwargs` too, as vLLM and SGLang take them."""
    if not kwargs:
        return access
    given = access.endpoint.extra_body.get("chat_template_kwargs", {})
    if not isinstance(given, Mapping):
        raise ConfigError(f"extra_body.chat_template_kwargs must map names to values, not {given!r}")
    if differing := sorted(name for name in kwargs if name in given and given[name] != kwargs[name]):
        raise ConfigError(f"prompts.chat_template_kwargs and extra_body.chat_template_kwargs differ in {differing}")
    body = access.endpoint.extra_body | {"chat_template_kwargs": {**kwargs, **given}}
    return replace(access, endpoint=replace(access.endpoint, extra_body=body))


@dataclass(frozen=True, kw_only=True)
class Address:
    base_url: str | None
    """The address of the API; None: the openai package's own."""
    api_key: SecretStr
    key_hint: str
    """Where the user sets the key."""


def chat_address(access: ModelAccess, environ: Mapping[str, str] = os.environ) -> Address:
    """Find where to chat and with which key. Raises ConfigError where a key is needed and there is none."""
    variable = _key_variable(access.endpoint)
    hint = variable if access.key_flag is None else f"{access.key_flag} or {variable}"
    return _address(access.endpoint, access.api_key, environ, hint)


def embeddings_address(
    endpoint: EmbeddingEndpoint,
    api_key: str | None,
    environ: Mapping[str, str] = os.environ,
    chat: ModelAccess | None = None,
) -> Address:
    """Find where to embed and with which key: as for chat where no address is given and the provider is the same."""
    variable = endpoint.api_key_env or "OPENAI_EMBEDDINGS_API_KEY"
    key, hint = api_key or environ.get(variable), f"--embedding-api-key or {variable}"
    base_url = endpoint.base_url or _url_from(environ, "OPENAI_EMBEDDINGS_BASE_URL")
    if base_url is not None:
        return Address(base_url=base_url, api_key=SecretStr(key or NO_KEY), key_hint=hint)
    if chat is None or chat.endpoint.provider != endpoint.provider:
        return _address(endpoint, key, environ, hint)
    key_env = endpoint.api_key_env or chat.endpoint.api_key_env
    endpoint = replace(endpoint, base_url=chat.endpoint.base_url, api_key_env=key_env)
    return _address(endpoint, key or chat.api_key, environ, f"{hint}, or the key for chat")


def _key_variable(endpoint: ServerEndpoint) -> str:
    return endpoint.api_key_env or ("VLLM_API_KEY" if endpoint.provider is Provider.VLLM else "OPENAI_API_KEY")


def _address(endpoint: ServerEndpoint, api_key: str | None, environ: Mapping[str, str], hint: str) -> Address:
    key = api_key or environ.get(_key_variable(endpoint))
    if key and not (key.isascii() and key.isprintable()):
        raise ConfigError(f"the key in {hint} holds a line break or another character that no key has; copy it anew")
    if endpoint.provider is Provider.VLLM:
        return Address(base_url=endpoint.base_url or VLLM_BASE_URL, api_key=SecretStr(key or NO_KEY), key_hint=hint)
    if not key:
        raise ConfigError(f"provider openai needs a key: set {hint}; a server of your own is provider vllm")
    base_url = endpoint.base_url or _url_from(environ, "OPENAI_BASE_URL")
    return Address(base_url=base_url, api_key=SecretStr(key), key_hint=hint)


def _url_from(environ: Mapping[str, str], variable: str) -> str | None:
    url = environ.get(variable) or None
    if url is not None:
        try:
            _check_url(url)
        except ValueError as error:
            raise ConfigError(f"{variable}: {error}") from None
    return url


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        parts.port, (parts.hostname or "").encode("idna")  # raise ValueError where they are none
    except ValueError as error:
        raise ValueError(f"base_url is no address such as {VLLM_BASE_URL}: {error}") from None  # it may hold a key
    if parts.username is not None or parts.password is not None:
        # the message must not show what may be a key
        raise ValueError("base_url must not hold a user or password; give the key by --api-key or the environment")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or " " in url:
        raise ValueError(f"base_url {url!r} is not an address such as {VLLM_BASE_URL}")
