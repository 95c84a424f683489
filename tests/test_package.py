"""What a wheel carries: setuptools' own list of it, against the files of the source tree."""

import runpy
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def packed(monkeypatch) -> set[str]:
    """Every file that setuptools copies into a wheel, as its path from the root."""
    given = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    command = setuptools.Distribution(given | {"script_name": "setup.py"}).get_command_obj("build_py")
    command.ensure_finalized()
    data = [Path(source, name) for _, source, _, names in command.data_files for name in names]
    modules = [Path(file) for _, _, file in command.find_all_modules()]
    return {path.as_posix() for path in (*data, *modules)}


def test_a_wheel_holds_every_template_and_every_module(packed):
    folders = [*(ROOT / "membuilder").glob("**/templates"), ROOT / "membuilder/generate/data"]
    wanted = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    for package in ("membuilder", "rollout", "reward", "trainer"):
        wanted += (ROOT / package).rglob("*.py")
    assert len(wanted) > 100
    assert {path.relative_to(ROOT).as_posix() for path in wanted} - packed == set()
