"""What a build is asked for, and what its store records of that."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec

from membuilder.bank.index import IndexConfig
from membuilder.building.read_answer import OnBadOperation
from membuilder.datasets.selection import DATA_FOLDER
from membuilder.embedding.options import EmbedderOptions, options_of
from membuilder.llm.endpoints import ModelAccess, ModelEndpoint, with_template_kwargs
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.load import FOUR_AGENTS, MEMALPHA, templates_of, turns_at_once
from membuilder.schemes.memalpha.config import MemAlphaConfig
from membuilder.types import Dialogue
from membuilder.value_types import PositiveInt, Section, Share

RULES = "rules"
STORE_SUFFIX = ".db"
EMBEDDING_KEYS = tuple(f"embedding_{name}" for name in ("model", "provider", "base_url", "endpoint", "cache"))
"""Keys of a build that are flags of the same name in every command."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Keys:
    """It holds the keys of a command, which a configuration must never hold."""

    chat: str | None = field(default=None, repr=False)
    embedding: str | None = field(default=None, repr=False)


@dataclass(kw_only=True)
class BuildConfig(Section):
    out: str
    """A store (NAME.db) for one dialogue, or a folder for a store of each."""
    model: ModelEndpoint
    """Who writes the memories; the name `rules` is the offline expert, which needs no server."""
    dataset: str = "locomo"
    """Its name; where `data` is given it may be any dataset's, which is told by the file."""
    data: str | None = None
    """Its raw file (LoCoMo, LongMemEval, custom .jsonl, gz or not) or folder (PerLTQA); null: where `membuilder.data
    fetch` put it.
    """
    data_dir: str = DATA_FOLDER
    """Folder of `membuilder.data fetch`."""
    conv_id: str | None = None
    """Id of the one dialogue to build; null: every dialogue of the file."""
    sessions: PositiveInt | None = None
    """First sessions of each dialogue only; null: all. A later run with more goes on from there."""
    max_turns: PositiveInt | None = None
    """Turns read at once: a longer session becomes several of the same date; null: 60, and under `scheme: memalpha` all
    of a chunk.
    """
    parallel: PositiveInt = 4
    """Dialogues built at once."""
    max_failed: Share = 0.01
    """Share of the answers that may have failed; above it the command ends with exit status 1."""
    on_bad_operation: OnBadOperation = OnBadOperation.APPLY
    """Of an answer some of whose operations cannot be applied: `apply` the others; `retry` asks once more first; `drop`
    lets it fail as a whole. A build may go on with another value: every stored answer tells what was dropped of it.
    """
    embedding_model: str | None = None
    """sentence-transformers folder or model, null: the MiniLM that comes with this program; its name on a server that
    embeds.
    """
    embedding_provider: str | None = None
    """`openai` or `vllm`: a server embeds; null: a local model does."""
    embedding_base_url: str | None = None
    """Address of that server; null: OPENAI_EMBEDDINGS_BASE_URL, else as for chat."""
    embedding_endpoint: list[str] = field(default_factory=list)
    """Other settings of that server, each KEY=VALUE with a key of --embedding-endpoint, such as batch_size=32."""
    embedding_cache: str | None = None
    """Folder of a local model's vectors; null: in MEMBUILDER_CACHE."""
    scheme: str = FOUR_AGENTS
    """How the model writes memory: `four_agents`, `memalpha`, or a folder with a scheme of your own."""
    prompts: PromptConfig = field(default_factory=PromptConfig)
    memalpha: MemAlphaConfig | None = None
    """Settings of `scheme: memalpha`; null: its defaults."""
    index: IndexConfig = field(default_factory=IndexConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.name == RULES and self.prompts.chat_template_kwargs:
            raise ValueError("prompts.chat_template_kwargs are options of a model's chat template, and rules have none")
        self.max_turns = turns_at_once(self.scheme, self.max_turns)
        self.on_bad_operation = OnBadOperation(self.on_bad_operation)  # a text where a program gives it

    def settings(self, dialogue: Dialogue, embedder: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that a store records and that a build which goes on must share.

        `embedder` holds those of its embedder (`membuilder.embedding.identity`).
        """
        return {
            "dialogue": dialogue.id,
            "speakers": list(dialogue.speakers),
            "model": self.model.name,
            "temperature": self.model.temperature,
            "max_tokens": self.model.max_tokens,
            "extra_body": self.model.extra_body,
            "max_turns": self.max_turns,
            "scheme": self.scheme,
            "prompts": asdict(self.prompts),
            **({MEMALPHA: msgspec.to_builtins(self.memalpha or MemAlphaConfig())} if self.scheme == MEMALPHA else {}),
            "templates_sha256": templates_of(self),
            **embedder,
        }

    def chat(self, keys: Keys) -> ModelAccess:
        access = ModelAccess(endpoint=self.model, api_key=keys.chat)
        return with_template_kwargs(access, self.prompts.chat_template_kwargs)

    def embedder(self, keys: Keys) -> EmbedderOptions:
        return options_of(self, self.chat(keys), keys.embedding)
