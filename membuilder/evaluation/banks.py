"""Banks on disk between the two steps of an evaluation: built by one model, answered from by another.

DB/manifest.json        who built them out of what; another builder or dataset is refused
DB/<dialogue id>.json   one finished bank
DB/<dialogue id>.db     the store it grew in, where a model wrote it (`membuilder.inspect` shows it)
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from membuilder.errors import EvaluationError
from membuilder.types import Agent, Bank, CoreQuote, Dialogue, Entry

MANIFEST = "manifest.json"
BUILT_FROM = ("dataset", "dataset_sha256", "sessions", "embedding_model", "embedding_precision")
"""Settings of an evaluation that every manifest holds."""


class BankFolder:
    """Finished banks of one builder; `manifest` says which (builder, its settings, the dataset's checksum)."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any] | None = None):
        """With a manifest a folder to write to, created or continued; without one a folder to read."""
        self._folder, path = folder, folder / MANIFEST
        if path.exists():
            self.manifest = json.loads(path.read_text(encoding="utf-8"))
        elif manifest is None:
            raise EvaluationError(
                f"{folder}: no {MANIFEST}; build the banks first with --mode build --db-path {folder}"
            )
        else:
            folder.mkdir(parents=True, exist_ok=True)
            _write(path, json.dumps(manifest, indent=2))
            self.manifest = dict(manifest)
        if manifest is not None and self.manifest != manifest:
            keys = sorted(
                key for key in self.manifest.keys() | manifest.keys() if self.manifest.get(key) != manifest.get(key)
            )
            raise EvaluationError(f"{folder} holds banks built otherwise ({', '.join(keys)}); choose another --db-path")

    def has(self, dialogue: Dialogue) -> bool:
        return self.path(dialogue).exists()

    def save(self, dialogue: Dialogue, bank: Bank) -> None:
        _write(self.path(dialogue), json.dumps(asdict(bank), default=_plain))

    def load(self, dialogue: Dialogue) -> Bank:
        path = self.path(dialogue)
        if not path.exists():
            raise EvaluationError(
                f"{path}: the bank of {dialogue.id!r} is not built; run --mode build to its end first"
            )
        raw = json.loads(path.read_text(encoding="utf-8"))
        return Bank(
            core=raw["core"],
            core_quotes=tuple(CoreQuote(**quote) for quote in raw["core_quotes"]),
            entries=tuple(_entry(entry) for entry in raw["entries"]),
        )

    def path(self, dialogue: Dialogue, suffix: str = ".json") -> Path:
        # An id from a file of the user's own may hold anything, a path upwards too.
        safe = "".join(char if char.isalnum() or char in "-_." else "_" for char in dialogue.id).lstrip(".")
        if safe != dialogue.id:
            safe = f"{safe}-{hashlib.sha256(dialogue.id.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
        return self._folder / f"{safe[:150]}{suffix}"


def _entry(raw: dict[str, Any]) -> Entry:
    times = {"agent": Agent(raw["agent"]), "timestamp": datetime.fromisoformat(raw["timestamp"])}
    return Entry(**raw | times | {key: tuple(raw[key]) for key in ("source_turns", "supersedes")})


def _plain(value: object) -> str:
    if not isinstance(value, datetime):
        raise TypeError(f"no JSON for {type(value).__name__}")
    return value.isoformat()


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)
