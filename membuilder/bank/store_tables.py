"""The tables of a store and what is done to them; records <-> rows are in `store_rows.py`.

A store in which nothing was ever deleted has no table `deleted`: it is, byte for byte, one of version 2. The first
deletion makes it one of version 3, which earlier programs refuse, because to them the entry would still be there.
"""

import json
import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any

from membuilder.bank.store_rows import Row

SCHEMA_VERSION, WITH_DELETED = 2, 3
APPLICATION_ID = 0x4D424C44  # "MBLD"

_TABLES = (
    "CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",
    """CREATE TABLE session (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, timestamp TEXT NOT NULL,
        core TEXT NOT NULL, core_quotes TEXT NOT NULL) STRICT""",
    """CREATE TABLE turn (id TEXT PRIMARY KEY, session INTEGER NOT NULL REFERENCES session, number INTEGER NOT NULL,
        speaker TEXT NOT NULL, role TEXT NOT NULL, text TEXT NOT NULL, caption TEXT,
        UNIQUE (session, number)) STRICT""",
    """CREATE TABLE answer (session INTEGER NOT NULL REFERENCES session,
        agent TEXT NOT NULL, shown TEXT NOT NULL, text TEXT,
        operations TEXT NOT NULL, failure_kind TEXT, failure_detail TEXT, seconds REAL NOT NULL,
        asked_at TEXT, PRIMARY KEY (session, agent)) STRICT""",
    """CREATE TABLE entry (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
        agent TEXT NOT NULL, session INTEGER NOT NULL REFERENCES session, text TEXT NOT NULL,
        source_turns TEXT NOT NULL, supersedes TEXT NOT NULL) STRICT""",
    # Apart from the entries, which are then read without their vectors.
    "CREATE TABLE embedding (entry INTEGER PRIMARY KEY REFERENCES entry, vector BLOB NOT NULL) STRICT",
)
_DELETED = """CREATE TABLE deleted (entry TEXT PRIMARY KEY REFERENCES entry (id),
    session INTEGER NOT NULL REFERENCES session) STRICT"""

_HELD = ("session", "turn", "answer", "entry", "embedding")
"""The tables beside the settings, each behind those that it refers to."""


def begin(connection: sqlite3.Connection, settings: Mapping[str, Any]) -> None:
    """Make the tables of an empty file; another stays as it is."""
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        return
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        for table in _TABLES:
            connection.execute(table)
        connection.executemany("INSERT INTO setting VALUES (?, ?)", setting_rows(settings))
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def setting_rows(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, json.dumps(value, sort_keys=True)) for name, value in settings.items()]


def insert(connection: sqlite3.Connection, tables: Mapping[str, Iterable[Row]]) -> None:
    """Insert rows; the table `deleted` is made for its first."""
    for table, rows in tables.items():
        for row in rows:
            if table == "deleted" and not has_deleted(connection):
                connection.execute(_DELETED)
                connection.execute(f"PRAGMA user_version = {WITH_DELETED}")
            connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)


def has_deleted(connection: sqlite3.Connection, schema: str = "main") -> bool:
    """Return whether anything was ever deleted in a store."""
    (number,) = connection.execute(f"SELECT count(*) FROM {schema}.sqlite_master WHERE name = 'deleted'").fetchone()
    return number > 0


def clear(connection: sqlite3.Connection, names: tuple[str, ...] = ()) -> None:
    """Delete all that a store holds, and of the tables named beside that."""
    for table in (*names, *(("deleted",) if has_deleted(connection) else ()), *reversed(_HELD)):
        connection.execute(f"DELETE FROM main.{table}")


def copy(connection: sqlite3.Connection, schema: str) -> None:
    """Insert all that another attached store holds beside its settings."""
    for table in _HELD:
        connection.execute(f"INSERT INTO main.{table} SELECT * FROM {schema}.{table} ORDER BY rowid")
    if has_deleted(connection, schema):
        rows = connection.execute(f"SELECT entry, session FROM {schema}.deleted ORDER BY rowid").fetchall()
        insert(connection, {"deleted": rows})
