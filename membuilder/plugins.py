"""A user's own function, named in a config as `path/to/file.py:function`.

The file may import its neighbours, the modules and packages (folders with `__init__.py`) of its folder, as a script
may: `import neighbour`, or `from . import neighbour`. They are modules of that folder alone: `sys.path` stays as it is,
nobody else's `import neighbour` finds them, and neighbours of the same name in another folder are others. A neighbour
takes the place of an installed library there, but not of Python's own modules or of ours, nor of itself.
"""

import builtins
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from membuilder.command import OUR_PACKAGES, PLUGIN
from membuilder.errors import ConfigError


def load_function(name: str, *parameters: str) -> Callable:
    """Return the function of a file, which is run anew; it will be called with as many arguments as `parameters`.

    Raises ConfigError where there is no such file or function, or where it takes other arguments. What the file itself
    raises is told by `message_of` (membuilder/command.py), as is what the function raises later.
    """
    path, _, function = name.partition(":")
    if not Path(path).is_file():
        raise ConfigError(f"'{name}': expected path/to/file.py:function, and no file is at '{path}'")
    if not function:
        raise ConfigError(f"'{name}': expected path/to/file.py:function, and no function is named")
    package = _package(Path(path).resolve().parent)
    spec = importlib.util.spec_from_file_location(f"{package}.{_module_name(Path(path).stem)}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"'{name}': '{path}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    try:
        code = spec.loader.get_code(spec.name)
    except (SyntaxError, ValueError) as error:  # ValueError: bytes that are no text
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ConfigError(f"'{name}': {path}{line}: no Python: {error.args[0]}") from error
    _see_neighbours(module, package)
    exec(code, vars(module))
    found = getattr(module, function, None)
    if not callable(found):
        raise ConfigError(f"'{name}': '{path}' defines no function '{function}'")
    check_arguments(f"'{name}': it", found, parameters)
    return found


def check_arguments(subject: str, function: Callable, parameters: Sequence[str]) -> None:
    """Raise ConfigError for a function that cannot be called with as many arguments as `parameters`."""
    try:
        inspect.signature(function).bind(*parameters)
    except TypeError as error:
        takes = inspect.signature(function)
        raise ConfigError(f"{subject} is called with ({', '.join(parameters)}), but takes {takes}") from error


def place_of(function: Callable) -> str:
    """Name a function with its file and line, as far as it has any."""
    code = getattr(function, "__code__", None)
    where = "" if code is None else f" ({code.co_filename}, line {code.co_firstlineno})"
    return f"{getattr(function, '__name__', function)}{where}"


def _module_name(text: str) -> str:
    return text.replace("%", "%25").replace(".", "%2E")  # a dot would name a module inside of another


def _package(folder: Path) -> str:
    """Return the name of the package that a folder is, made of what no `import` can write."""
    name = PLUGIN + _module_name(str(folder))
    if name not in sys.modules:
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
        if _Neighbours not in sys.meta_path:
            sys.meta_path.insert(0, _Neighbours)
    return name


def _see_neighbours(module: ModuleType, package: str) -> None:
    """Let the `import` statements of one module find the modules of a package as well."""
    own_import = partial(_import_beside, package)
    vars(module)["__builtins__"] = vars(builtins) | {"__import__": own_import}


def _import_beside(
    package: str,
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """Do what an `import` statement says, in a module that sees the modules of `package`."""
    first = name.partition(".")[0]
    itself = globals is not None and globals.get("__name__") == f"{package}.{first}"
    if level or itself or not _is_neighbour(package, first):
        return builtins.__import__(name, globals, locals, fromlist, level)
    found = builtins.__import__(f"{package}.{name}", globals, locals, fromlist)
    return found if fromlist else sys.modules[f"{package}.{first}"]


def _is_neighbour(package: str, name: str) -> bool:
    if name in OUR_PACKAGES or name in sys.stdlib_module_names:
        return False
    (folder,) = map(Path, sys.modules[package].__path__)
    return (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()


class _Neighbours:
    """Finds the modules of a folder's package, and of the packages in it."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith(PLUGIN):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _NeighbourLoader(name, spec.origin)
        return spec


class _NeighbourLoader(SourceFileLoader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        _see_neighbours(module, spec.name.partition(".")[0])
        return module
