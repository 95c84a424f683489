"""From a configuration to stores: who is asked, who embeds, and every dialogue into a store of its own."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from membuilder.building.builder import Ask, Builder, ask_expert, ask_model
from membuilder.building.config import RULES, BuildConfig, Keys, ModelConfig
from membuilder.building.stores import Job, build_stores
from membuilder.embedding.local import TextEmbedder
from membuilder.embedding.options import embedder_of
from membuilder.errors import ConfigError
from membuilder.llm.chat_model import Role
from membuilder.llm.cost_flags import Account
from membuilder.llm.endpoints import ChatConfig, EndpointConfig, Provider
from membuilder.schemes.load import load_scheme
from membuilder.schemes.scheme import Scheme
from membuilder.types import Dialogue

if TYPE_CHECKING:
    from membuilder.llm.client import ChatClient


def make_chat_model(config: ModelConfig, role: Role, api_key: str | None, account: Account) -> "ChatClient":
    """The client that asks the model. Raises ConfigError for a provider that is none and a key that is missing."""
    from membuilder.llm.client import ChatClient  # seconds to import, which `rules` need not wait for

    try:
        endpoint = EndpointConfig(
            provider=Provider(config.provider),
            base_url=config.base_url,
            concurrency=config.concurrency,
            timeout_seconds=config.timeout_seconds,
        )
        chat = ChatConfig(
            model=config.name,
            endpoint=endpoint,
            temperature=config.temperature,
            max_tokens=config.max_tokens,
            extra_body=config.extra_body,
            price=account.prices.get(config.name),
        )
    except ValueError as error:
        raise ConfigError(f"section 'model': {error}") from error
    return ChatClient(chat, role, account.usage, api_key=api_key, cache=account.answers)


@asynccontextmanager
async def open_roles(
    config: BuildConfig, scheme: Scheme, role: Role, keys: Keys, account: Account
) -> AsyncIterator[Ask]:
    """Who proposes the operations; a model is checked with one small call before anything else begins."""
    if config.model.name == RULES:
        yield ask_expert(scheme)
        return
    async with make_chat_model(config.model, role, keys.chat, account) as model:
        await model.check()
        yield ask_model(model, scheme)


async def build_all(
    config: BuildConfig,
    stores: Sequence[tuple[Path, Dialogue]],
    role: Role,
    keys: Keys,
    account: Account,
    on_built: Callable[[Path, TextEmbedder], object],
) -> None:
    """Each dialogue into the store at the path beside it. The first error stops all, what is stored stays; `on_built` runs in a
    thread for each store that is whole."""
    scheme = load_scheme(config.scheme, config.prompts)
    async with AsyncExitStack() as stack:
        ask = await stack.enter_async_context(open_roles(config, scheme, role, keys, account))
        embedder = stack.enter_context(embedder_of(config.embedder(keys), account))
        builder = Builder(ask=ask, embedder=embedder, scheme=scheme)
        stack.callback(builder.close)
        jobs = [
            Job(dialogue=dialogue, path=path, settings=config.settings(dialogue, embedder.dimension))
            for path, dialogue in stores
        ]
        await build_stores(jobs, builder, config.parallel, str(role), lambda path: on_built(path, embedder))
