"""What a wheel carries, by setuptools' own list: the files of the source tree, the version, the console scripts."""

import importlib
import pkgutil
import re
import runpy
from pathlib import Path

import pytest
import setuptools

import membuilder
from membuilder import __main__ as console
from membuilder.datasets.splits import PUBLISHED
from membuilder.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("membuilder", "rollout", "reward", "trainer")


@pytest.fixture
def given(monkeypatch) -> dict:
    """What setup.py tells setuptools."""
    given = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    return given


@pytest.fixture
def packed(given) -> set[str]:
    """Every file that setuptools copies into a wheel, as its path from the root."""
    command = setuptools.Distribution(given | {"script_name": "setup.py"}).get_command_obj("build_py")
    command.ensure_finalized()
    data = [Path(source, name) for _, source, _, names in command.data_files for name in names]
    modules = [Path(file) for _, _, file in command.find_all_modules()]
    return {path.as_posix() for path in (*data, *modules)}


def test_a_wheel_holds_every_template_and_every_module_and_says_that_it_is_typed(packed):
    folders = [*(ROOT / "membuilder").glob("**/templates"), ROOT / "membuilder/generate/data"]
    wanted = [path for folder in folders for path in folder.rglob("*") if path.is_file()] + [PUBLISHED]
    for package in PACKAGES:
        wanted += [*(ROOT / package).rglob("*.py"), ROOT / package / "py.typed"]
    assert len(wanted) > 100
    assert {path.relative_to(ROOT).as_posix() for path in wanted} - packed == set()


def test_the_version_has_one_source(given):
    assert given["version"] == membuilder.__version__ and re.fullmatch(r"\d+\.\d+\.\d+", given["version"])


def test_every_console_script_calls_a_function_that_exists(given):
    scripts = [line.split(" = ") for line in given["entry_points"]["console_scripts"]]
    assert [name for name, _ in scripts] == ["membuilder", "membuilder-sft", "membuilder-rl"]
    for _, target in scripts:
        assert callable(pkgutil.resolve_name(target))


def test_the_console_lists_every_command_and_passes_its_words_on(capsys):
    commands = {path.stem for path in (ROOT / "membuilder").glob("*.py") if "\ndef main(" in path.read_text("utf-8")}
    assert set(console.COMMANDS) == commands - {"__main__"}
    with pytest.raises(SystemExit, match="0"):
        console.main(["--help"])
    listed = capsys.readouterr().out
    assert all(f"{name} " in listed and text in " ".join(listed.split()) for name, text in console.COMMANDS.items())
    with pytest.raises(SystemExit, match="membuilder.inspect: /nowhere.db: no such store"):
        console.main(["inspect", "/nowhere.db"])
    assert console.main(["prepare", "rl", "--trajectories-dir", "/nowhere", "--output-file", "rl.jsonl"]) == 2
    assert "membuilder.prepare: /nowhere" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        console.main(["data", "--help"])
    assert "usage: python -m membuilder.data" in capsys.readouterr().out


@pytest.mark.parametrize("loop", ["sft", "rl"])
def test_a_loops_script_ends_with_our_message_alone(loop, tmp_path, monkeypatch):
    module = importlib.import_module(f"trainer.{loop}")
    with pytest.raises(SystemExit, match=f"^trainer.{loop}: data.path: no file is at 'nowhere.json'$"):
        module.main(["data.path=nowhere.json"])

    def refuse(config) -> None:
        raise ConfigError("model.path: name it")

    monkeypatch.setattr(module, f"setup_{loop}", refuse)
    with pytest.raises(SystemExit, match=f"^trainer.{loop}: model.path: name it$"):
        module.main([f"out={tmp_path}"])
