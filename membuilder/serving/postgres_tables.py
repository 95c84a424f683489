"""Connections to a database of PostgreSQL, and its tables: made and migrated at the start of every server."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from pgvector.psycopg import register_vector
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.string import StrDumperUnknown, TextLoader
from sqlalchemy import NullPool, create_engine
from sqlalchemy.exc import DBAPIError

from membuilder.errors import ConfigError, StoreError
from membuilder.text import in_short

SCHEMA = "membuilder"
"""Of all tables, so that they disturb no others in their database."""
_MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATING = int.from_bytes(b"mbmigrat")
"""Number of the advisory lock that a server holds while it changes tables."""
_CONNECTION = {
    "autocommit": True,
    "application_name": "membuilder",
    "client_encoding": "utf8",
    "connect_timeout": 5,
    "tcp_user_timeout": 10_000,  # ms: a database whose machine is gone is away, and not slow
}
_SETTINGS = (
    "SET synchronous_commit = on",  # whatever the database's default: what is acknowledged is on its disk
    # the locks of a server whose machine is gone are free after a minute
    "SET tcp_keepalives_idle = 30",
    "SET tcp_keepalives_interval = 10",
    "SET tcp_keepalives_count = 3",
    "SET lock_timeout = '20s'",
)


def parameters_of(url: str) -> dict[str, Any]:
    """Return what psycopg connects with. Raises ConfigError, which does not repeat the password."""
    try:
        return _CONNECTION | conninfo_to_dict(url)
    except psycopg.Error:
        example = "postgresql://USER@HOST:5432/DATABASE"
        raise ConfigError(f"--store: no address of a PostgreSQL database; it looks like {example}") from None


def name_of(parameters: dict[str, Any]) -> str:
    """Name a database in messages, without its user and password."""
    port = f":{parameters['port']}" if "port" in parameters else ""
    return f"postgresql://{parameters.get('host', '')}{port}/{parameters.get('dbname', '')}"


@contextmanager
def typed(name: str) -> Iterator[None]:
    """Raise PostgreSQL's errors as StoreError. What it says of single rows is left out."""
    try:
        yield
    except psycopg.Error as error:
        code = f" ({error.sqlstate})" if error.sqlstate else ""
        raise StoreError(name, f"{error.diag.message_primary or in_short(error)}{code}") from error


def configure(connection: psycopg.Connection) -> None:
    """Let a new connection read and write as this program expects."""
    for setting in _SETTINGS:
        connection.execute(setting)
    register_vector(connection)
    connection.adapters.register_dumper(str, _Dumper)
    connection.adapters.register_loader("text", _Loader)


def migrate(parameters: dict[str, Any]) -> None:
    """Make the tables, or bring them up to date. Raises StoreError."""
    name = name_of(parameters)
    with typed(name), psycopg.connect(**parameters) as connection:
        # servers that start at once take turns
        connection.execute("SELECT pg_advisory_lock(%s)", [_MIGRATING])
        _begin(connection, name)
        in_transactions = parameters | {"autocommit": False}
        engine = create_engine(
            "postgresql+psycopg://", poolclass=NullPool, creator=lambda: psycopg.connect(**in_transactions)
        )
        config = Config(attributes={})
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        try:
            with engine.connect() as config.attributes["connection"]:
                command.upgrade(config, "head")
        except DBAPIError as error:
            raise (error.orig or error) from error
        except CommandError as error:
            problem = f"its tables are of a later version ({in_short(error)}); start the version that made them"
            raise StoreError(name, problem) from error


def _begin(connection: psycopg.Connection, name: str) -> None:
    encoding = connection.execute("SHOW server_encoding").fetchone()[0]
    if encoding != "UTF8":
        raise StoreError(
            name, f"its encoding is {encoding}, and memories need UTF8: CREATE DATABASE ... ENCODING 'UTF8'"
        )
    if connection.execute("SELECT to_regnamespace(%s) IS NULL", [SCHEMA]).fetchone()[0]:
        connection.execute(f"CREATE SCHEMA {SCHEMA}")
    if connection.execute("SELECT to_regtype('vector') IS NULL").fetchone()[0]:
        try:
            connection.execute("CREATE EXTENSION vector")
        except psycopg.Error as error:
            problem = f"it lacks pgvector ({in_short(error)}); let its administrator run CREATE EXTENSION vector"
            raise StoreError(name, problem) from error


class _Dumper(StrDumperUnknown):
    """It writes a NUL, which texts of PostgreSQL cannot hold, as two other characters."""

    def dump(self, obj: str) -> bytes:
        return super().dump(obj.replace("\x1a", "\x1a1").replace("\0", "\x1a0"))


class _Loader(TextLoader):
    """It reads what `_Dumper` wrote."""

    def load(self, data: bytes) -> str:
        text = super().load(data)
        return text.replace("\x1a0", "\0").replace("\x1a1", "\x1a") if "\x1a" in text else text
