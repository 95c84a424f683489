"""Keeps banks on disk between the two steps of an evaluation: one model builds them, another answers from them.

DB/manifest.json        who built them out of what; another builder or dataset is refused, by who writes and who reads
DB/<dialogue id>.json   one finished bank
DB/<dialogue id>.db     the store it grew in, where a model wrote it (`membuilder.inspect` shows it)
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from membuilder.datasets.files import FILE, read_json
from membuilder.datasets.typed import typed
from membuilder.datasets.windows import sessions_of_windows
from membuilder.embedding.identity import exact_keys, other_embedder
from membuilder.errors import DataError, EvaluationError
from membuilder.evaluation.reading import Reading
from membuilder.files import path_of, write_atomic
from membuilder.schemes.load import scheme_of
from membuilder.schemes.scheme import entry_agents
from membuilder.settings import described, difference
from membuilder.types import Bank, Dialogue

MANIFEST = "manifest.json"
BUILT_FROM = ("dataset", "dataset_sha256", "sessions", "embedding_model", "embedding_precision")
"""Settings of an evaluation that every manifest holds."""
_SAME_DATA = ("dataset_sha256", "sessions")
"""Those that an evaluation which reads the banks must share; it may embed the entries with another embedder."""
_OTHER_FOLDER = "choose another --db-path"
_DAMAGED = "it is damaged; build into another --db-path, or remove it and build again"


class BankFolder:
    """Finished banks of one builder; `manifest` says which (builder, its settings, the dataset's checksum)."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any] | None = None):
        """Open a folder to write to with a manifest, and one to read without. Nothing is written yet.

        Raises EvaluationError where the folder holds other banks than these, or none to read.
        """
        self._folder, self._file = folder, folder / MANIFEST
        if not self._file.exists():
            if manifest is None:
                problem = f"no {MANIFEST}; build the banks first with --mode build --db-path {folder}"
                raise EvaluationError(f"{folder}: {problem}")
            self.manifest = dict(manifest)
        else:
            self.manifest = read_settings(self._file, _DAMAGED)
            if manifest is not None:
                refuse_others(folder, self.manifest, manifest, _OTHER_FOLDER, exact_keys(self.manifest, manifest))
        self.reading = typed(Reading, self.manifest, self._file, FILE, advice=_DAMAGED)

    def check(self, run: Mapping[str, Any], build_model: str | None) -> None:
        """Refuse banks of other data than `run` (settings of an evaluation) tells of, or of another `build_model`."""
        advice = "name the data and the model they were built with, or another --db-path"
        wanted = {key: run[key] for key in _SAME_DATA}
        if build_model is not None:
            wanted |= {"builder": "agents", "model": build_model}
        refuse_others(self._folder, self.manifest, wanted, advice, keys=wanted)

    def built_by(self, identity: Mapping[str, Any]) -> None:
        """Take down the identity of the embedder before it builds. Raises EvaluationError where another one began."""
        if not self._file.exists():
            self.manifest = {**identity, **self.manifest}
        elif problem := other_embedder(self.manifest, identity):
            raise EvaluationError(f"{self._folder} {problem}; embed with the first, or {_OTHER_FOLDER}")

    def begin(self) -> None:
        """Write down whose banks these will be, before the first of them is there."""
        if not self._file.exists():
            write_settings(self._file, self.manifest)

    def has(self, dialogue: Dialogue) -> bool:
        return self.path(dialogue).exists()

    def save(self, dialogue: Dialogue, bank: Bank) -> None:
        self.begin()
        written = msgspec.to_builtins(bank)
        if not bank.deleted:  # such a file is as it was before entries could be deleted
            del written["deleted"]
        write_atomic(self.path(dialogue), json.dumps(written) + "\n")

    def load(self, dialogue: Dialogue) -> Bank:
        """Read one bank. Raises EvaluationError where there is none, DataError where it is damaged."""
        path = self.path(dialogue)
        if not path.exists():
            problem = f"the bank of {dialogue.id!r} is not built; run --mode build to its end first"
            raise EvaluationError(f"{path}: {problem}")
        bank = typed(Bank, read_json(path, _DAMAGED), path, FILE, advice=_DAMAGED)
        self._check_provenance(bank, dialogue, path)
        return bank

    def _check_provenance(self, bank: Bank, dialogue: Dialogue, path: Path) -> None:
        turns, num_sessions = dialogue.session_of_turn(), len(sessions_of_windows(dialogue, self.reading.max_turns))
        agents = entry_agents(scheme_of(self.reading))
        for i, entry in enumerate(bank.entries):
            if entry.agent not in agents:
                problem = f"{entry.agent!r} is none of {list(agents)}; {_DAMAGED}"
                raise DataError(path, FILE, f"entries[{i}].agent", problem)
            if not 0 <= entry.session < num_sessions or not turns.keys() >= set(entry.source_turns):
                problem = f"names a session or turn that {dialogue.id!r} does not have: the bank of other data"
                raise DataError(path, FILE, f"entries[{i}].session or source_turns", problem)
        if not turns.keys() >= set(bank.core_sources):
            raise DataError(path, FILE, "core_quotes", f"name a turn that {dialogue.id!r} does not have")

    def path(self, dialogue: Dialogue, suffix: str = ".json") -> Path:
        return path_of(self._folder, dialogue.id, suffix)


def read_settings(path: Path, advice: str) -> dict[str, Any]:
    """Return the settings kept in a file of our own. Raises DataError, with `advice`, where it holds no JSON object."""
    return typed(dict[str, Any], read_json(path, advice), path, FILE, advice=advice)


def write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    write_atomic(path, json.dumps(settings, indent=2) + "\n")


def refuse_others(
    folder: Path, then: Mapping[str, Any], now: Mapping[str, Any], advice: str, keys: Iterable[str] | None = None
) -> None:
    """Raise EvaluationError, with `advice`, where what a folder holds was begun with other settings (under `keys`)."""
    if differing := difference(then, now, keys):
        raise EvaluationError(f"{folder} {described(differing)}; {advice}")
