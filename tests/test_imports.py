"""The rules of the architecture: who may import whom, where each heavy library lives, how long a file may be."""

import ast
import json
import os
import subprocess
import sys
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("membuilder", "rollout", "reward", "trainer")
# Each package's parts from the ground up: a part imports only those before it. What is not named is a command or what a
# researcher edits first; it stands above all parts, and only the rule against circles holds it.
ORDER = {
    "membuilder": (
        "types quiet errors command files text colours progress settings value_types config plugins model_folders"
        " datasets generate llm instances embedding bank schemes building trajectories evaluation"
    ).split(),
    "trainer": (
        "configs advantages rl_config sft_config losses optim batching kernels model data distributed logs checkpoint"
        " experience memory_estimate optimizer_step"
    ).split(),
}
FILES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))

# Library -> the only file, or folder, that may import it; None: nothing may.
HOMES = {
    "vllm": "rollout/vllm_engine.py",
    "faiss": "membuilder/bank/index.py",
    "sentence_transformers": "membuilder/embedding/local.py",
    "wandb": "trainer/logs/wandb_run.py",
    "openai": "membuilder/llm/transport.py",
    "diskcache": "membuilder/llm/response_cache.py",
    "bm25s": "membuilder/bank/ranking.py",
    "psycopg": "membuilder/serving/postgres_",
    "alembic": "membuilder/serving/",
    "sqlalchemy": "membuilder/serving/postgres_tables.py",
    "triton": "trainer/kernels/",
    "fla": "trainer/kernels/fla_delta_rule.py",
    "causal_conv1d": "trainer/kernels/path_convolution.py",
    "trl": None,
    "verl": None,
    "llamafactory": None,
}
LIGHT_MODULES = ("trainer.losses", "trainer.model.shared_prefix", "trainer.batching.packing")
HEAVY_LIBRARIES = ("vllm", "deepspeed", "faiss", "wandb", "openai", "sentence_transformers")


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imported(path: Path) -> set[str]:
    """Top-level names of the packages a file imports anywhere, also inside functions and for type checking."""
    names = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: relative import"
            names.add(node.module.split(".")[0])
    return names


def importers(library: str) -> set[str]:
    return {name_of(path) for path in FILES if library in imported(path)}


def test_packages_import_only_those_before_them():
    for path in FILES:
        package = name_of(path).split("/")[0]
        later = set(PACKAGES[PACKAGES.index(package) + 1 :]) | {"tests"}
        assert not imported(path) & later, f"{name_of(path)} imports {imported(path) & later}"


def module_of(path: Path) -> str:
    return name_of(path).removesuffix(".py").replace("/", ".")


MODULES = {module_of(path): path for path in FILES}


def modules_imported(path: Path) -> set[str]:
    """Modules of ours that a file imports anywhere."""
    names = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (inside & MODULES.keys()) or {node.module}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names & MODULES.keys()


def part_of(module: str) -> str:
    """`trainer.model.head` -> `model`: the file or folder right under the package."""
    return module.split(".")[1]


@pytest.mark.parametrize("package", ORDER)
def test_parts_import_only_those_before_them(package):
    order = ORDER[package]
    for module, path in MODULES.items():
        if not module.startswith(f"{package}.") or part_of(module) not in order:
            continue
        for other in modules_imported(path):
            if other.startswith(f"{package}."):
                assert part_of(other) in order[: order.index(part_of(module)) + 1], f"{module} imports {other}"


@pytest.mark.parametrize("package", ORDER)
def test_order_names_only_what_is_there(package):
    there = {part_of(module) for module in MODULES if module.startswith(f"{package}.")}
    assert set(ORDER[package]) <= there


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Names that import each other in a circle; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_circle_between_files():
    graph = {module: modules_imported(path) - {module} for module, path in MODULES.items()}
    assert circle(graph) == []


def test_no_circle_between_folders():
    def folder(module: str) -> str:
        return ".".join(module.split(".")[:2])  # a scheme's folder counts as part of `schemes`

    graph = defaultdict(set)
    for module, path in MODULES.items():
        graph[folder(module)] |= {folder(other) for other in modules_imported(path)} - {folder(module)}
    assert circle(graph) == []


@pytest.mark.parametrize("library", HOMES)
def test_heavy_library_is_imported_only_at_home(library):
    home = HOMES[library]
    strangers = {name for name in importers(library) if home is None or not name.startswith(home)}
    assert not strangers


def test_memory_domain_needs_no_torch():
    assert not {name for name in importers("torch") if name.startswith("membuilder/")}


@pytest.fixture(scope="module")
def heavy_after_import() -> dict[str, list[str]]:
    """Module -> heavy libraries loaded once it and the modules before it in LIGHT_MODULES are imported."""
    program = f"""
import importlib, json, sys
loaded = {{}}
for module in {LIGHT_MODULES}:
    importlib.import_module(module)
    loaded[module] = [library for library in {HEAVY_LIBRARIES} if library in sys.modules]
print(json.dumps(loaded))
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_light_module_loads_no_heavy_library(module, heavy_after_import):
    assert heavy_after_import[module] == []


def test_every_folder_says_in_its_init_what_lives_there_and_nothing_else():
    folders = {path.parent for path in FILES}
    assert [name_of(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []
    for path in FILES:
        if path.name == "__init__.py":
            tree = parsed(path)
            docstring = ast.get_docstring(tree)
            assert docstring and len(docstring.splitlines()) <= 20, name_of(path)
            names = [node.targets[0].id for node in tree.body[1:] if isinstance(node, ast.Assign)]
            assert len(tree.body) == 1 + len(names), f"{name_of(path)} holds more than a docstring and names"
            assert names == (["__version__"] if name_of(path) == "membuilder/__init__.py" else []), name_of(path)


def test_no_file_is_longer_than_300_lines():
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > 300} == {}


# The step loops are read from top to bottom; everything else has a name of its own.
LOOPS = {"trainer/rl.py:train", "trainer/sft.py:train"}


def test_no_function_is_longer_than_60_lines():
    long = set()
    for path in FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 60:
                long.add(f"{name_of(path)}:{node.name}")
    assert long - LOOPS == set()


def test_no_handler_catches_everything():
    offenders = []
    for path in FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ExceptHandler):
                caught = (
                    {child.id for child in ast.walk(node.type) if isinstance(child, ast.Name)} if node.type else {""}
                )
                if caught & {"", "Exception", "BaseException"}:
                    offenders.append(f"{name_of(path)}:{node.lineno}")
    assert offenders == []
