"""Files of the user's own: what they may import, and how a fault of theirs is told."""

import inspect
import sys
from pathlib import Path

import pytest

from membuilder.command import clear_errors, message_of
from membuilder.errors import ConfigError
from membuilder.plugins import load_function
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.load import load_scheme
from membuilder.schemes.scheme import Scheme
from membuilder.types import Bank
from reward.formula import load_formula
from reward.qa import QAResult
from reward.rollouts import score_group
from reward.score import RewardConfig
from rollout.types import Group, Rollout


def written(folder: Path, **files: str) -> Path:
    """Files of a folder; in their names 0 stands for the slash."""
    for name, text in files.items():
        path = folder / f"{name.replace('0', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


IMPORTS = [
    ("import words\n", "words.ANSWER"),
    ("import words as other\n", "other.ANSWER"),
    ("from words import ANSWER\n", "ANSWER"),
    ("from words import *\n", "ANSWER"),
    ("from . import words\n", "words.ANSWER"),
    ("from .words import ANSWER\n", "ANSWER"),
    ("import parts.deep\n", "parts.deep.ANSWER"),
    ("import parts.deep as deep\n", "deep.ANSWER"),
    ("from parts import deep\n", "deep.ANSWER"),
    ("from parts.deep import ANSWER\n", "ANSWER"),
    ("from parts import ANSWER\n", "ANSWER"),
    ("", "__import__('words').ANSWER"),
]


def with_neighbours(folder: Path, answer: int) -> Path:
    """A module, which imports another as a script would, and a package of two modules."""
    return written(
        folder,
        numbers_here=f"NUMBER = {answer}\n",
        words="import numbers_here\n\nANSWER = numbers_here.NUMBER\n",
        parts0__init__="from .deep import ANSWER\n",
        parts0deep="import words\nfrom words import ANSWER\n",
    )


LATE = [(statement, value) for statement, value in IMPORTS if "*" not in statement]
"""Python allows a star at the top of a file only."""


@pytest.mark.parametrize(
    ("statement", "value", "late"), [*((*each, False) for each in IMPORTS), *((*each, True) for each in LATE)]
)
def test_a_file_imports_its_neighbours_and_leaves_no_trace(statement, value, late, tmp_path):
    path, names = list(sys.path), {name for name in sys.modules if not name.startswith("plugin ")}
    found = []
    for number, folder in enumerate((tmp_path / "one.d", tmp_path / "two")):
        with_neighbours(folder, number)
        inside = f"    {statement}" if late else ""
        (folder / "judge.py").write_text(f"{'' if late else statement}\n\ndef judge():\n{inside}    return {value}\n")
        found.append(load_function(f"{folder}/judge.py:judge"))
    assert [judge() for judge in found] == [0, 1]  # neighbours of the same name are those of each folder
    assert sys.path == path and {name for name in sys.modules if not name.startswith("plugin ")} == names
    with pytest.raises(ModuleNotFoundError):
        __import__("words")


def test_neighbours_take_nobodys_place(tmp_path):
    """Python's own modules and ours stay what they are, also for the file; an installed library only for the file."""
    written(
        tmp_path,
        json="LOADED = 1\n",
        reward="LOADED = 1\n",
        yaml="LOADED = 1\n",
        scheme="import json, yaml\nfrom reward.score import Score\n\n\ndef get():\n    return json, yaml, Score\n",
    )
    json, yaml, score = load_function(f"{tmp_path}/scheme.py:get")()
    import json as real_json

    import yaml as real_yaml

    from reward.score import Score

    assert json is real_json and score is Score
    assert yaml.LOADED == 1 and yaml is not real_yaml and not hasattr(real_yaml, "LOADED")


def test_a_file_named_like_a_library_may_use_the_library(tmp_path):
    written(tmp_path, yaml="import yaml\n\n\ndef judge():\n    return yaml.safe_load('5')\n")
    assert load_function(f"{tmp_path}/yaml.py:judge")() == 5


def test_two_files_of_a_folder_share_their_neighbour(tmp_path):
    written(
        tmp_path,
        shared="class Kept: ...\n",
        scheme="from shared import Kept\n\n\ndef kind():\n    return Kept\n",
        reward="from shared import Kept\n\n\ndef kind():\n    return Kept\n",
    )
    assert load_function(f"{tmp_path}/scheme.py:kind")() is load_function(f"{tmp_path}/reward.py:kind")()


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"judge": "import words\n", "words": "\n1 / 0\n"}, "words.py, line 2, in <module>: ZeroDivisionError"),
        ({"judge": "import words\n", "words": "import absent_here\n"}, "words.py, line 1, in <module>: ModuleNotFound"),
        ({"judge": "\nfrom words import two\n", "words": ""}, "judge.py, line 2, in <module>: ImportError: cannot"),
        ({"judge": "import words\n", "words": "def broken(:\n"}, "judge.py, line 1, in <module>: SyntaxError"),
        ({"judge": "\nfrom .absent import x\n"}, "judge.py, line 2, in <module>: ModuleNotFoundError"),
        ({"judge": "def judge():\n    import absent_here\n"}, "judge.py, line 2, in judge: ModuleNotFoundError"),
        (
            {
                "judge": "import words\n\n\ndef judge():\n    words.f()\n",
                "words": "def f():\n    raise KeyError('x')\n",
            },
            "words.py, line 2, in f: KeyError: 'x'",
        ),
    ],
)
def test_a_fault_in_a_neighbour_is_told_by_its_line(files, says, tmp_path):
    written(tmp_path, **files)
    with pytest.raises(SystemExit) as ended, clear_errors("trainer.rl"):
        load_function(f"{tmp_path}/judge.py:judge")()
    assert f"trainer.rl: {tmp_path}/" in str(ended.value) and says in str(ended.value)
    assert len(str(ended.value).splitlines()) == 1


def test_a_formula_that_returns_no_score_is_told_by_its_line(tmp_path):
    written(tmp_path, reward="\n\ndef score(outputs, qa, config):\n    return 0.5\n")
    rollout = Rollout(samples={}, bank=Bank())
    group = Group(id="g", dialogue_id="d", session=None, rollouts=(rollout,))
    with pytest.raises(ConfigError, match=r"score \(.*reward.py, line 3\) returns 0.5; expected reward.score.Score"):
        answers = [QAResult(retrievals=(), verdicts=())]
        score_group(group, answers, {}, len, load_formula(str(tmp_path)), RewardConfig())


# Schemes

METHODS = {
    name: list(inspect.signature(member).parameters)[1:]
    for name, member in vars(Scheme).items()
    if inspect.isfunction(member) and not name.startswith("_")
}
MEMBERS = {"name": "'mine'", "roles": "('keeper',)", "expert": "None"}
MEMBERS |= {name: f"lambda self, {', '.join(parameters)}: None" for name, parameters in METHODS.items()}


def scheme_of(folder: Path, members: dict[str, str]) -> Scheme:
    lines = [f"    {name} = {value}" for name, value in members.items()]
    written(folder, scheme="\n".join(["class Mine:", *lines, "", "def make_scheme(prompts):", "    return Mine()", ""]))
    return load_scheme(str(folder), PromptConfig())


@pytest.mark.parametrize("member", MEMBERS)
def test_a_scheme_without_one_of_its_members_is_refused_by_name(member, tmp_path):
    assert scheme_of(tmp_path, MEMBERS).roles == ("keeper",)
    with pytest.raises(ConfigError, match=rf"scheme '{tmp_path}': what make_scheme returns has no {member}$"):
        scheme_of(tmp_path, {name: value for name, value in MEMBERS.items() if name != member})
    if member in METHODS:
        takes = rf"scheme '{tmp_path}': {member} is called with \({', '.join(METHODS[member])}\), but takes \(\)"
        with pytest.raises(ConfigError, match=takes):
            scheme_of(tmp_path, MEMBERS | {member: "lambda self: None"})


def test_what_a_method_raises_is_told_by_its_line(tmp_path):
    scheme = scheme_of(tmp_path, MEMBERS | {"find": "lambda self, bank, questions, embedder, k: questions[k]"})
    with pytest.raises(IndexError) as caught:
        scheme.find(None, [], None, 3)
    assert f"{tmp_path}/scheme.py, line" in message_of(caught.value) and "IndexError" in message_of(caught.value)
