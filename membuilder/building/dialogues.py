"""Builds what a configuration asks for: it opens the model and the embedder, and each dialogue gets a store."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from membuilder.building.builder import Ask, Builder, ask_expert, ask_model
from membuilder.building.config import RULES, BuildConfig, Keys
from membuilder.building.stores import Job, build_stores
from membuilder.embedding.local import TextEmbedder
from membuilder.embedding.options import embedder_of
from membuilder.llm.chat_model import Role
from membuilder.llm.client import ChatClient
from membuilder.llm.costs import Costs
from membuilder.schemes.load import load_scheme
from membuilder.schemes.scheme import Scheme
from membuilder.types import Dialogue


@asynccontextmanager
async def open_roles(config: BuildConfig, scheme: Scheme, role: Role, keys: Keys, costs: Costs) -> AsyncIterator[Ask]:
    """Open who proposes the operations; a model is checked with one small call before anything else begins."""
    if config.model.name == RULES:
        yield ask_expert(scheme)
        return
    async with ChatClient(config.chat(keys), role, costs) as model:
        await model.check()
        yield ask_model(model, scheme)


async def build_all(
    config: BuildConfig,
    stores: Sequence[tuple[Path, Dialogue]],
    role: Role,
    keys: Keys,
    costs: Costs,
    on_built: Callable[[Path, TextEmbedder], object],
) -> None:
    """Build each dialogue into the store at the path beside it; `on_built` runs in a thread for each whole store."""
    scheme = load_scheme(config.scheme, config.prompts)
    async with AsyncExitStack() as stack:
        ask = await stack.enter_async_context(open_roles(config, scheme, role, keys, costs))
        embedder = stack.enter_context(embedder_of(config.embedder(keys), costs))
        builder = Builder(ask=ask, embedder=embedder, scheme=scheme)
        stack.callback(builder.close)
        jobs = [
            Job(dialogue=dialogue, path=path, settings=config.settings(dialogue, embedder.dimension))
            for path, dialogue in stores
        ]
        await build_stores(jobs, builder, config.parallel, str(role), lambda path: on_built(path, embedder))
