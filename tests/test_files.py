"""A file is whole or as it was; tests/test_snapshots.py fills a real disk."""

import subprocess
import sys

import pytest

from membuilder.errors import WriteError
from membuilder.files import write_atomic


def test_a_writer_killed_before_the_rename_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_atomic(path, "old")
    program = "import os, pathlib, sys\nfrom membuilder.files import atomic\n"
    program += "with atomic(pathlib.Path(sys.argv[1])) as partial:\n    partial.write_text('half')\n"
    program += "    os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == -9
    assert path.read_text() == "old"
    write_atomic(path, b"new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_no_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=r"could not write '.*file/a' \([\d,]+ bytes free on its disk\)"):
        write_atomic(tmp_path / "file" / "a", "")
