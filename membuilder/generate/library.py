"""All texts of the generator, read from the TOML files of a folder and checked before the first dialogue is made."""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from membuilder.datasets.files import FILE
from membuilder.datasets.typed import typed
from membuilder.errors import DataError
from membuilder.generate.checks import (
    check_chatter,
    check_domain,
    check_instances,
    check_pools,
    check_topic,
    told_slots,
)
from membuilder.generate.topics import Chatter, Domain, InstanceTexts, Texts, Topic, Values

TEXT_FOLDER = Path(__file__).parent / "data"
TOPIC_FILES = {
    "changes": ("changes_home", "changes_leisure", "changes_body"),
    "procedures": ("procedures",),
    "dated": ("events", "plans"),
    "plain": ("lasting", "belongings", "family"),
}

Record = TypeVar("Record")


@dataclass(frozen=True, kw_only=True, slots=True)
class Library:
    changes: tuple[Topic, ...]
    """Facts that a later session changes."""
    procedures: tuple[Topic, ...]
    dated: tuple[Topic, ...]
    """Events and plans, always told with their time."""
    plain: tuple[Topic, ...]
    """Facts told once that last."""
    domains: dict[str, Domain]
    chatter: Chatter
    values: Values

    @property
    def topics(self) -> tuple[Topic, ...]:
        return self.changes + self.procedures + self.dated + self.plain


@cache
def load_library(folder: Path = TEXT_FOLDER) -> Library:
    """Read the texts of a folder, once in a process. A fault raises DataError, which names file, table and field."""
    values_path, chatter_path, replies_path = (folder / f"{name}.toml" for name in ("values", "chatter", "replies"))
    values = _with_pools(Values, values_path, "names", "common")
    chatter = _with_pools(Chatter, chatter_path, "slots")
    check_chatter(chatter, chatter_path)
    domains = {name: typed(Domain, table, replies_path, name) for name, table in _read(replies_path).items()}
    for name, domain in domains.items():
        check_domain(domain, chatter, replies_path, name)
    slots = told_slots(values)
    _refuse_other_files(folder / "topics")
    groups: dict[str, tuple[Topic, ...]] = {}
    for group, names in TOPIC_FILES.items():
        paths = [folder / "topics" / f"{name}.toml" for name in names]
        groups[group] = tuple(topic for path in paths for topic in _topics(path, domains, slots))
    library = Library(**groups, domains=domains, chatter=chatter, values=values)
    check_pools(library.topics, values, values_path)
    return library


@cache
def load_instance_texts(folder: Path = TEXT_FOLDER) -> tuple[InstanceTexts, Values]:
    """Read the texts of generated instances, and the values that fill them. A fault raises DataError."""
    values = _with_pools(Values, folder / "values.toml", "names", "common")
    path = folder / "instances.toml"
    texts = typed(InstanceTexts, _read(path), path, FILE)
    check_instances(texts, values, path)
    return texts, values


def _with_pools(kind: type[Record], path: Path, *sections: str) -> Record:
    """Read the record of a whole file; its pools are checked one by one, so that a fault is named with its pool."""
    tables = _read(path)
    for section in sections:
        pools = tables.get(section)
        for name, values in pools.items() if isinstance(pools, dict) else ():
            typed(Texts, values, path, f"{section}.{name}")
    return typed(kind, tables, path, FILE)


def _topics(path: Path, domains: dict[str, Domain], slots: set[str]) -> list[Topic]:
    topics = []
    for name, table in _read(path).items():
        where = f"topic {name}"
        topic = typed(Topic, {"subject": name} | table if isinstance(table, dict) else table, path, where)
        check_topic(topic, domains, slots, path, where)
        topics.append(topic)
    return topics


def _refuse_other_files(folder: Path) -> None:
    """A file that nobody reads is refused: its topics would be missed in silence."""
    known = [name for names in TOPIC_FILES.values() for name in names]
    for path in sorted(folder.glob("*.toml")):
        if path.stem not in known:
            raise DataError(path, FILE, "name", f"is not read; put its topics into one of {known}")


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(path, FILE, "path", f"cannot be read: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or not TOML; the message says where
        raise DataError(path, FILE, "syntax", f"is no TOML: {error}") from error
