"""A dataclass tree filled from a YAML file and `key=value` overrides. Unknown keys and ill-typed values are refused.

Given `class RunConfig` with a field `optimizer: OptimizerConfig` that has a field `lr: float`:

    config = load(RunConfig, "configs/rl.yaml", ["optimizer.lr=2e-6"])
    config.optimizer.lr  # 2e-06
"""

import argparse
import ast
import inspect
import textwrap
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rapidfuzz.fuzz import ratio

from membuilder.command import ArgumentParser
from membuilder.errors import ConfigError
from membuilder.text import in_short
from membuilder.value_types import never_fits, options, type_name

Config = TypeVar("Config")

COMMAND_LINE = "command line"


@dataclass(frozen=True, kw_only=True)
class Key:
    """What one full dotted key of a configuration holds."""

    hint: Any
    section: type | None
    """The dataclass of a section; None for a plain value."""
    text: str
    """The line written under the field."""


def load(cls: type[Config], path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Make an instance of `cls`: its defaults, then the YAML file, then overrides such as `optimizer.lr=1e-5`.

    Raises ConfigError, naming key and source, for anything that does not fit `cls` or its own checks.
    """
    from_file = [] if path is None else [(read(Path(path)), str(path))]
    return from_mappings(cls, *from_file, *((_parse_override(override), COMMAND_LINE) for override in overrides))


def from_mappings(cls: type[Config], *layers: tuple[Mapping, str]) -> Config:
    """Make an instance of `cls` out of what was `read` and where, which errors name; the later ones win."""
    tree, keys = _defaults(cls), known_keys(cls)
    for given, source in layers:
        _merge(tree, cls, given, prefix="", source=source, keys=keys)
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(tree), resolve=True)
    except OmegaConfBaseException as error:  # a reference to another key, such as ${seed}, leads nowhere
        raise ConfigError(f"key '{error.full_key}': {in_short(error)}") from error
    return _build(cls, resolved, prefix="")


def dump(config: Any) -> str:
    """Return YAML that `load` reads back to an equal instance."""
    return OmegaConf.to_yaml(OmegaConf.create(msgspec.to_builtins(config, enc_hook=str)))


def parse_args(
    cls: type[Config],
    argv: Sequence[str] | None,
    description: str,
    add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    program: str | None = None,
) -> tuple[Config, argparse.Namespace]:
    """Read the configuration named on a command line, `--config FILE key=value ...`, and what else was given.

    `add_options` declares further options of the command. A bad configuration ends the program.
    """
    parser = ArgumentParser(
        prog=program,
        description=description,
        epilog=describe(cls),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file; keys it leaves out keep their defaults")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="set one key, after the file was read")
    add_options(parser)
    arguments = parser.parse_intermixed_args(argv)
    try:
        return load(cls, arguments.config, arguments.overrides), arguments
    except ConfigError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def describe(cls: type) -> str:
    """Describe every key by its type, default and meaning, one block each: the body of `--help`."""
    tree = _defaults(cls)
    lines = ["keys:"]
    for name, key in known_keys(cls).items():
        if key.section is None:
            lines.append(f"  {name}: {type_name(key.hint)} = {_default_text(tree, name)}")
            lines += textwrap.wrap(key.text, 110, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def known_keys(cls: type, prefix: str = "") -> dict[str, Key]:
    """Map each full dotted key to what it holds, in the order the dataclasses declare them."""
    hints, texts = typing.get_type_hints(cls, include_extras=True), _field_texts(cls)
    keys = {}
    for field in fields(cls):
        hint = hints[field.name]
        section = _section(hint)
        name = prefix + field.name
        keys[name] = Key(hint=hint, section=section, text=texts.get(field.name, ""))
        if section is not None:
            keys |= known_keys(section, f"{name}.")
    return keys


def _section(hint: Any) -> type | None:
    return next((option for option in options(hint) if is_dataclass(option)), None)


@cache
def _field_texts(cls: type) -> dict[str, str]:
    """Map each field to the string literal written under it, which Python itself does not keep."""
    texts = {}
    for base in reversed([base for base in cls.__mro__ if is_dataclass(base)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for statement, below in zip(body, body[1:], strict=False):
            match statement, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[name] = inspect.cleandoc(text)
    return texts


def read(path: Path) -> dict:
    """Return what a YAML file holds, unchecked. Raises ConfigError."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        if content is None:
            raise ConfigError(f"{path}: the file is empty; leave it out to run on the defaults")
        if not isinstance(content, dict):
            raise ConfigError(f"{path}: expected 'key: value' lines, found a {type(content).__name__}")
        # OmegaConf's reader, unlike PyYAML's, takes 1e-6 for a number and refuses a key given twice.
        return OmegaConf.to_container(OmegaConf.load(path))
    except _NO_YAML as error:
        raise ConfigError(f"{path}: not valid YAML: {_in_short(error)}") from error


# also what the readers raise for numbers of thousands of digits, bytes that are no UTF-8, and deep nesting
_NO_YAML = (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError)


def _in_short(error: Exception) -> str:
    """Say on one line what is wrong with a piece of YAML, and where."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem:.200}"
    return in_short(error)


def _parse_override(override: str) -> dict:
    key, equals, text = override.partition("=")
    if not equals or not key or key.startswith(("-", "+")):
        raise ConfigError(f"{COMMAND_LINE}: '{override}' is not an override; write key=value, such as seed=1")
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([override]))
    except _NO_YAML as error:
        problem = f"the value '{text}' is not valid YAML: {_in_short(error)}"
        raise ConfigError(f"{COMMAND_LINE}: {key}: {problem}") from error


def _merge(tree: dict, cls: type, given: Mapping, *, prefix: str, source: str, keys: Mapping[str, Key]) -> None:
    """Writes `given` into `tree`, a section of dataclass `cls` whose full key is `prefix`."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for name, value in given.items():
        full = f"{prefix}{name}"
        if name not in hints:
            if full in keys:
                raise ConfigError(f"{source}: key '{full}': in a file, write it under its section, without the dot")
            raise ConfigError(f"{source}: unknown key '{full}'. Did you mean '{nearest(full, keys)}'?")
        section = keys[full].section
        if section is not None and isinstance(value, Mapping):
            if not isinstance(tree.get(name), dict):
                tree[name] = _defaults(section)
            _merge(tree[name], section, value, prefix=f"{full}.", source=source, keys=keys)
            continue
        if not (isinstance(value, str) and "${" in value):  # a reference is checked once every source was read
            expected = "a section of keys" if section else type_name(hints[name])
            _converted(value, hints[name], f"{source}: key '{full}': {value!r} does not fit; expected {expected}")
        merges = isinstance(value, dict) and isinstance(tree.get(name), dict)
        tree[name] = tree[name] | value if merges else value


def _converted(value: Any, hint: Any, refusal: str) -> Any:
    kinds = set(options(hint)) - {type(None)}
    if kinds == {str} and isinstance(value, int | float):
        return str(value)  # YAML reads a name such as 2026 as a number
    try:
        # Texts may be read as numbers, but no number as true or false.
        found = msgspec.convert(value, hint, strict=kinds == {bool}, dec_hook=lambda kind, text: kind(text))
    except msgspec.ValidationError as error:
        raise ConfigError(f"{refusal}: {error}") from error
    if (problem := never_fits(found)) is not None:
        raise ConfigError(f"{refusal}: {problem}")
    return found


def _build(cls: type[Config], tree: Mapping, *, prefix: str) -> Config:
    """Make the dataclass of a section whose full key is `prefix`, innermost first: every `__post_init__` runs."""
    hints, values = typing.get_type_hints(cls, include_extras=True), {}
    for field in fields(cls):
        full, hint = prefix + field.name, hints[field.name]
        if field.name not in tree:
            raise ConfigError(f"key '{full}' has no value: set it in the file, or as {full}=... on the command line")
        value, section = tree[field.name], _section(hint)
        if section is not None and isinstance(value, dict):
            values[field.name] = _build(section, value, prefix=f"{full}.")
        else:
            values[field.name] = _converted(value, hint, f"key '{full}': {value!r} does not fit")
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"section '{prefix[:-1]}': {error}" if prefix else f"configuration: {error}") from error


def nearest(wrong: str, keys: Iterable[str]) -> str:
    """Find the key most like a wrong one; its last word counts once more, for keys given without their section."""
    return max(keys, key=lambda key: ratio(wrong, key) + ratio(wrong.split(".")[-1], key.split(".")[-1]))


def _defaults(cls: type) -> dict[str, Any]:
    """Return plain containers with the default of every key that has one."""
    values = {field.name: field.default for field in fields(cls) if field.default is not MISSING}
    made = {field.name: field.default_factory() for field in fields(cls) if field.default_factory is not MISSING}
    return msgspec.to_builtins(values | made, enc_hook=str)


def _default_text(tree: Mapping[str, Any], key: str) -> str:
    *sections, name = key.split(".")
    for part in sections:
        tree = (tree or {}).get(part)
    return "unset" if tree is None else str(tree.get(name, "(required)"))
