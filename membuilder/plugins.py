"""A user's own function, named in a config as `path/to/file.py:function`."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from membuilder.errors import ConfigError


def load_function(name: str) -> Callable:
    """Return the function of a file, which is run anew. Raises ConfigError where there is no such file or function."""
    path, _, function = name.partition(":")
    if not Path(path).is_file() or not function:
        raise ConfigError(f"'{name}': expected path/to/file.py:function, and no file is at '{path}'")
    # a name of its own, so that a file called reward.py does not take the place of the package
    spec = importlib.util.spec_from_file_location(f"plugin {Path(path).resolve()}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"'{name}': '{path}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    if not callable(getattr(module, function, None)):
        raise ConfigError(f"'{name}': '{path}' defines no function '{function}'")
    return getattr(module, function)
