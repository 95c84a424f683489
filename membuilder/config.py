"""A dataclass tree filled from a YAML file and `key=value` overrides. Unknown keys and ill-typed values are refused.

Given `class RunConfig` with a field `optimizer: OptimizerConfig` that has a field `lr: float`:

    config = load(RunConfig, "configs/rl.yaml", ["optimizer.lr=2e-6"])
    config.optimizer.lr  # 2e-06
"""

import argparse
import ast
import inspect
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf, TupleConfig, read_write
from omegaconf.errors import OmegaConfBaseException
from rapidfuzz.fuzz import ratio

from membuilder.errors import ConfigError

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
    """An instance of `cls`: its defaults, then the YAML file, then overrides such as `optimizer.lr=1e-5`.

    Raises ConfigError, naming key and source, for anything that does not fit `cls` or its own checks.
    """
    keys = known_keys(cls)
    tree = OmegaConf.structured(cls)
    if path is not None:
        _merge(tree, cls, read(Path(path)), prefix="", source=str(path), keys=keys)
    for override in overrides:
        _merge(tree, cls, _parse_override(override), prefix="", source=COMMAND_LINE, keys=keys)
    return _build(tree, key="")


def from_mapping(cls: type[Config], given: Mapping, source: str) -> Config:
    """An instance of `cls` out of one section of a file that was `read`; `source` names it in errors."""
    tree = OmegaConf.structured(cls)
    _merge(tree, cls, given, prefix="", source=source, keys=known_keys(cls))
    return _build(tree, key="")


def dump(config: Any) -> str:
    """YAML that `load` reads back to an equal instance."""
    return OmegaConf.to_yaml(OmegaConf.create(_plain(config)))


def parse_args(
    cls: type[Config],
    argv: Sequence[str] | None,
    description: str,
    add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> tuple[Config, argparse.Namespace]:
    """The configuration named on a command line, `--config FILE key=value ...`, and what else was given.

    `add_options` declares further options of the command. A bad configuration ends the program.
    """
    parser = argparse.ArgumentParser(
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
    """Every key with its type, default and meaning, one block each: the body of `--help`."""
    tree = OmegaConf.structured(cls)
    lines = ["keys:"]
    for name, key in known_keys(cls).items():
        if key.section is None:
            lines.append(f"  {name}: {type_name(key.hint)} = {_default_text(tree, name)}")
            lines += textwrap.wrap(key.text, 110, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def known_keys(cls: type, prefix: str = "") -> dict[str, Key]:
    """Full dotted key -> what it holds, in the order the dataclasses declare them."""
    hints, texts = typing.get_type_hints(cls), _field_texts(cls)
    keys = {}
    for field in fields(cls):
        hint = hints[field.name]
        section = _section(hint)
        name = prefix + field.name
        keys[name] = Key(hint=hint, section=section, text=texts.get(field.name, ""))
        if section is not None:
            keys |= known_keys(section, f"{name}.")
    return keys


def type_name(hint: Any) -> str:
    """A type as a user would write it: `int | None`, `one of core, episodic`."""
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "one of " + ", ".join(str(member.value) for member in hint)
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if len(_options(hint)) > 1:
        return " | ".join("None" if option is type(None) else type_name(option) for option in _options(hint))
    if typing.get_origin(hint) is not None:
        inner = ", ".join("..." if part is ... else type_name(part) for part in typing.get_args(hint))
        return f"{typing.get_origin(hint).__name__}[{inner}]"
    return getattr(hint, "__name__", str(hint))


def _options(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _section(hint: Any) -> type | None:
    return next((option for option in _options(hint) if is_dataclass(option)), None)


def _item_section(hint: Any) -> type | None:
    """The dataclass of a list's items, if they are sections themselves."""
    items = typing.get_args(hint) if typing.get_origin(hint) in (list, tuple) else ()
    return _section(items[0]) if items else None


def _field_texts(cls: type) -> dict[str, str]:
    """Field name -> the string literal written under it, which Python itself does not keep."""
    texts = {}
    for base in reversed([base for base in cls.__mro__ if is_dataclass(base)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for statement, below in zip(body, body[1:], strict=False):
            match statement, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[name] = inspect.cleandoc(text)
    return texts


def read(path: Path) -> dict:
    """What a YAML file holds, unchecked. Raises ConfigError."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if content is None:
            raise ConfigError(f"{path}: the file is empty; leave it out to run on the defaults")
        if not isinstance(content, dict):
            raise ConfigError(f"{path}: expected 'key: value' lines, found a {type(content).__name__}")
        # OmegaConf's reader, unlike PyYAML's, takes 1e-6 for a number and refuses a key given twice.
        return OmegaConf.to_container(OmegaConf.load(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error


def _parse_override(override: str) -> dict:
    key, equals, text = override.partition("=")
    if not equals or not key or key.startswith(("-", "+")):
        raise ConfigError(f"{COMMAND_LINE}: '{override}' is not an override; write key=value, such as seed=1")
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([override]))
    except yaml.YAMLError as error:
        raise ConfigError(f"{COMMAND_LINE}: {key}: the value '{text}' is not valid YAML: {error}") from error


def _merge(node: DictConfig, cls: type, given: Mapping, *, prefix: str, source: str, keys: Mapping[str, Key]) -> None:
    """Writes `given` into `node`, a section of dataclass `cls` whose full key is `prefix`."""
    hints = typing.get_type_hints(cls)
    for name, value in given.items():
        full = f"{prefix}{name}"
        if full not in keys:
            raise ConfigError(f"{source}: unknown key '{full}'. Did you mean '{nearest(full, keys)}'?")
        section, item_section = keys[full].section, _item_section(hints[name])
        if section is not None and isinstance(value, Mapping):
            if OmegaConf.is_missing(node, name) or node[name] is None:
                _assign(node, name, OmegaConf.structured(section), full, hints[name], source)
            _merge(node[name], section, value, prefix=f"{full}.", source=source, keys=keys)
        elif item_section is not None and isinstance(value, list):
            items = [
                _new_item(item_section, item, prefix=f"{full}[{i}].", source=source) for i, item in enumerate(value)
            ]
            _assign(node, name, items, full, hints[name], source)
        else:
            _assign(node, name, value, full, hints[name], source)


def _new_item(cls: type, given: Any, *, prefix: str, source: str) -> Any:
    if not isinstance(given, Mapping):
        return given
    node = OmegaConf.structured(cls)
    _merge(node, cls, given, prefix=prefix, source=source, keys=known_keys(cls, prefix))
    return node


def _assign(node: DictConfig, name: str, value: Any, full: str, hint: Any, source: str) -> None:
    expected = "a section of keys" if _section(hint) else type_name(hint)
    refusal = f"{source}: key '{full}': {value!r} does not fit; expected {expected}"
    if _confuses_bool(value, hint):
        raise ConfigError(refusal)
    try:
        # A frozen dataclass comes as a read-only section; it is frozen again once built.
        with read_write(node):
            OmegaConf.update(node, name, value, merge=type(value) is dict)
    except OmegaConfBaseException as error:
        # OmegaConf's first line says what is wrong; the rest names its internals.
        raise ConfigError(f"{refusal}: {str(error).splitlines()[0]}") from error


def _confuses_bool(value: Any, hint: Any) -> bool:
    """OmegaConf turns 3 into True and true into 1; both are slips."""
    options = set(_options(hint)) - {type(None)}
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return (options == {bool} and is_number) or (isinstance(value, bool) and options <= {int, float})


def _build(node: Any, key: str) -> Any:
    """Plain containers and real dataclass instances, innermost first, so that every `__post_init__` runs."""
    if isinstance(node, ListConfig | TupleConfig):
        items = [_build(node[i], f"{key}[{i}]") for i in range(len(node))]
        return tuple(items) if isinstance(node, TupleConfig) else items
    if not isinstance(node, DictConfig):
        return node
    values = {}
    for name in node:
        full = f"{key}.{name}" if key else str(name)
        if OmegaConf.is_missing(node, name):
            raise ConfigError(f"key '{full}' has no value: set it in the file, or as {full}=... on the command line")
        try:
            value = node[name]
        except OmegaConfBaseException as error:
            raise ConfigError(f"key '{full}': {str(error).splitlines()[0]}") from error
        values[name] = _build(value, full)
    cls = OmegaConf.get_type(node)
    if not is_dataclass(cls):
        return values
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"section '{key}': {error}" if key else f"configuration: {error}") from error


def nearest(wrong: str, keys: Iterable[str]) -> str:
    """The full key most like a wrong one; the last word counts once more, for keys given without their section."""
    return max(keys, key=lambda key: ratio(wrong, key) + ratio(wrong.split(".")[-1], key.split(".")[-1]))


def _default_text(tree: DictConfig, key: str) -> str:
    parent, _, name = key.rpartition(".")
    section = tree
    for part in filter(None, parent.split(".")):
        section = None if section is None or OmegaConf.is_missing(section, part) else section[part]
    if section is None:
        return "unset"
    if OmegaConf.is_missing(section, name):
        return "(required)"
    return str(_plain(_build(section[name], key)))


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {_plain(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value
