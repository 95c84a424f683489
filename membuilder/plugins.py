"""A user's own function, named in a config as `path/to/file.py:function`."""

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

from membuilder.errors import PLUGIN, ConfigError


def load_function(name: str, *parameters: str) -> Callable:
    """Return the function of a file, which is run anew; it will be called with as many arguments as `parameters`.

    Raises ConfigError where there is no such file or function, or where it takes other arguments. What the file itself
    raises is told by `message_of` (membuilder/errors.py), as is what the function raises later.
    """
    path, _, function = name.partition(":")
    if not Path(path).is_file():
        raise ConfigError(f"'{name}': expected path/to/file.py:function, and no file is at '{path}'")
    if not function:
        raise ConfigError(f"'{name}': expected path/to/file.py:function, and no function is named")
    # a name of its own, so that a file called reward.py does not take the place of the package
    spec = importlib.util.spec_from_file_location(f"{PLUGIN}{Path(path).resolve()}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"'{name}': '{path}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    try:
        code = spec.loader.get_code(spec.name)
    except (SyntaxError, ValueError) as error:  # ValueError: bytes that are no text
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ConfigError(f"'{name}': {path}{line}: no Python: {error.args[0]}") from error
    exec(code, vars(module))
    found = getattr(module, function, None)
    if not callable(found):
        raise ConfigError(f"'{name}': '{path}' defines no function '{function}'")
    try:
        inspect.signature(found).bind(*parameters)
    except TypeError as error:
        takes = inspect.signature(found)
        raise ConfigError(f"'{name}': it is called with ({', '.join(parameters)}), but takes {takes}") from error
    return found
