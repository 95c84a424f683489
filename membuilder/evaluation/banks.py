"""Keeps banks on disk between the two steps of an evaluation: one model builds them, another answers from them.

DB/manifest.json        who built them out of what; another builder or dataset is refused, by who writes and who reads
DB/<dialogue id>.json   one finished bank
DB/<dialogue id>.db     the store it grew in, where a model wrote it (`membuilder.inspect` shows it)
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from membuilder.datasets.files import FILE, read_json
from membuilder.datasets.typed import typed
from membuilder.datasets.windows import sessions_of_windows
from membuilder.errors import DataError, EvaluationError
from membuilder.files import write_atomic
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.load import FOUR_AGENTS, load_scheme
from membuilder.settings import described, difference
from membuilder.types import Bank, Dialogue

MANIFEST = "manifest.json"
BUILT_FROM = ("dataset", "dataset_sha256", "sessions", "embedding_model", "embedding_precision")
"""Settings of an evaluation that every manifest holds."""
_SAME_DATA = ("dataset_sha256", "sessions")
"""Those that an evaluation which reads the banks must share; it may embed the entries with another embedder."""
_DAMAGED = "it is damaged; build into another --db-path, or remove it and build again"


class _Prompts(msgspec.Struct):
    include_superseded: bool


class BankFolder:
    """Finished banks of one builder; `manifest` says which (builder, its settings, the dataset's checksum)."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any] | None = None):
        """Open a folder to write to with a manifest, and one to read without. Nothing is written yet.

        Raises EvaluationError where the folder holds other banks than these, or none to read.
        """
        self._folder, path = folder, folder / MANIFEST
        if not path.exists():
            if manifest is None:
                problem = f"no {MANIFEST}; build the banks first with --mode build --db-path {folder}"
                raise EvaluationError(f"{folder}: {problem}")
            self.manifest = dict(manifest)
            return
        self.manifest = read_object(path, _DAMAGED)
        if manifest is not None:
            self._refuse_others(manifest, self.manifest.keys() | manifest.keys(), "choose another --db-path")

    def check(self, run: Mapping[str, Any], build_model: str | None) -> None:
        """Refuse banks of other data than `run` (settings of an evaluation) tells of, or of another `build_model`."""
        advice = "name the data and the model they were built with, or another --db-path"
        wanted = {key: run[key] for key in _SAME_DATA}
        if build_model is not None:
            wanted |= {"builder": "agents", "model": build_model}
        self._refuse_others(wanted, wanted.keys(), advice)

    def begin(self) -> None:
        """Write down whose banks these will be, before the first of them is there."""
        path = self._folder / MANIFEST
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps(self.manifest, indent=2) + "\n")

    def _refuse_others(self, wanted: Mapping[str, Any], keys: Iterable[str], advice: str) -> None:
        if differing := difference(self.manifest, wanted, keys):
            raise EvaluationError(f"{self._folder} {described(differing)}; {advice}")

    def has(self, dialogue: Dialogue) -> bool:
        return self.path(dialogue).exists()

    def save(self, dialogue: Dialogue, bank: Bank) -> None:
        self.begin()
        write_atomic(self.path(dialogue), json.dumps(msgspec.to_builtins(bank)) + "\n")

    def load(self, dialogue: Dialogue) -> Bank:
        """Read one bank. Raises EvaluationError where there is none, DataError where it is damaged."""
        path = self.path(dialogue)
        if not path.exists():
            problem = f"the bank of {dialogue.id!r} is not built; run --mode build to its end first"
            raise EvaluationError(f"{path}: {problem}")
        bank = typed(Bank, read_json(path, _DAMAGED), path, FILE, advice=_DAMAGED)
        self._check_provenance(bank, dialogue, path)
        return bank

    @property
    def max_turns(self) -> int | None:
        """Turns the builder read at once; None: whole sessions."""
        if "max_turns" not in self.manifest:
            return None
        return typed(int, self.manifest["max_turns"], self._folder, MANIFEST, "max_turns")

    @property
    def include_superseded(self) -> bool:
        """Whether questions find entries that later ones replace, as the builder's prompts say; if none, they do."""
        prompts = self.manifest.get("prompts", {"include_superseded": True})
        return typed(_Prompts, prompts, self._folder, MANIFEST, "prompts").include_superseded

    def _check_provenance(self, bank: Bank, dialogue: Dialogue, path: Path) -> None:
        turns, num_sessions = dialogue.session_of_turn(), len(sessions_of_windows(dialogue, self.max_turns))
        roles = load_scheme(self.manifest.get("scheme", FOUR_AGENTS), PromptConfig()).roles
        for i, entry in enumerate(bank.entries):
            if entry.agent not in roles:
                problem = f"{entry.agent!r} is none of {list(roles)}; {_DAMAGED}"
                raise DataError(path, FILE, f"entries[{i}].agent", problem)
            if not 0 <= entry.session < num_sessions or not turns.keys() >= set(entry.source_turns):
                problem = f"names a session or turn that {dialogue.id!r} does not have: the bank of other data"
                raise DataError(path, FILE, f"entries[{i}].session or source_turns", problem)
        if not turns.keys() >= set(bank.core_sources):
            raise DataError(path, FILE, "core_quotes", f"name a turn that {dialogue.id!r} does not have")

    def path(self, dialogue: Dialogue, suffix: str = ".json") -> Path:
        # An id from a file of the user's own may hold anything, a path upwards too.
        safe = "".join(char if char.isalnum() or char in "-_." else "_" for char in dialogue.id).lstrip(".")
        if safe != dialogue.id or f"{safe}{suffix}" == MANIFEST:
            safe = f"{safe}-{hashlib.sha256(dialogue.id.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
        return self._folder / f"{safe[:150]}{suffix}"


def read_object(path: Path, advice: str) -> dict[str, Any]:
    """A file of our own that holds one JSON object. Raises DataError, with `advice`, where it does not."""
    raw = read_json(path, advice)
    if not isinstance(raw, dict):
        raise DataError(path, FILE, "top level", f"expected an object, found {type(raw).__name__}; {advice}")
    return raw
