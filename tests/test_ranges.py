"""Every number in every configuration and every flag has a range, which is checked before anything else is done."""

import argparse
import ast
import importlib
import math
import sys
from collections.abc import Iterator
from dataclasses import fields
from functools import cache, partial
from typing import Any, get_args, get_origin

import pytest
from msgspec import Meta

from membuilder import command as module
from membuilder.building.config import BuildConfig
from membuilder.config import describe, known_keys, load
from membuilder.errors import ConfigError
from membuilder.llm.endpoints import EmbeddingEndpoint
from membuilder.value_types import Section, options, ranges, type_name
from tests.test_imports import MODULES
from tests.test_imports import parsed as tree_of
from trainer.command_line import parse
from trainer.rl_config import RLConfig
from trainer.sft_config import SFTConfig
from trainer.tiny import TinyFolderConfig

ENDPOINT = ["name=m", "price.input_per_million=1"]
NEEDED = {
    RLConfig: [
        *("scheme=one/of/your/own", "dense=false", "reward.judge=llm", "reward.memalpha.validity=llm"),
        *(f"reward.{model}.{key}" for model in ("answerer", "grader", "validator") for key in ENDPOINT),
    ],
    SFTConfig: ["model.path=m", "model.lora.rank=16"],
    BuildConfig: ["out=m", "model.name=m", "model.price.input_per_million=1", "memalpha.prompts.max_tokens=1"],
    EmbeddingEndpoint: ENDPOINT,
    TinyFolderConfig: [],
}
"""Every configuration that a user writes, with the values that it cannot do without."""
OTHER_KEYS = {
    "sampling.temperature": "RLConfig refuses 0, at which a group's rollouts are the same",
    "sampling.max_tokens": "max_model_len must be larger",
    "sampling.thinking_budget": "max_model_len must be larger",
    "max_model_len": "larger than sampling.max_tokens",
    "loss.clip": "dual_clip must lie above 1 + clip",
    "loss.dual_clip": "above 1 + clip",
    "loss.sequence_mask": "a pair with 1 in between",
    "reward.memalpha.weights": "a number of each source",
    "reward.length.core_start_tokens": "below core_maximum_tokens",
    "reward.length.core_maximum_tokens": "above core_start_tokens",
    "reward.length.ratio_lowest": "the four ratios rise",
    "reward.length.ratio_lower": "the four ratios rise",
    "reward.length.ratio_upper": "the four ratios rise",
    "reward.length.ratio_highest": "the four ratios rise",
    "model.tiny.num_kv_heads": "num_heads is a multiple of it",
    "model.tiny.head_dim": "even",
    "model.tiny.num_heads": "a multiple of num_kv_heads",
}
OTHER_KEYS |= {key.removeprefix("model.tiny."): why for key, why in OTHER_KEYS.items() if key.startswith("model.tiny.")}
"""Keys of whose ends some are refused beside the defaults of other keys, and why."""
STEP = 1e-6
"""Just inside or outside the end of a range of floats."""


def numeric(hint: Any) -> bool:
    """Whether an int or float may stand anywhere in a type; of `Any` nothing is known."""
    return hint in (int, float) or any(map(numeric, get_args(hint)))


def kind_of(hint: Any) -> type:
    return int if any(int in (each, *get_args(each)) for each in options(hint)) else float


def numbers(cls: type) -> dict[str, tuple[type, Meta | None]]:
    """Each numeric key of a configuration: its type and its range."""
    keys = {name: key.hint for name, key in known_keys(cls).items() if key.section is None and numeric(key.hint)}
    return {name: (kind_of(hint), *(ranges(hint) or [None])) for name, hint in keys.items()}


def ends(kind: type, given: Meta) -> tuple[list, list]:
    """The numbers at the ends of a range, or as near as they come, and those just outside."""
    step, inside, outside = (1 if kind is int else STEP), [], []
    for bound, sign, excluded in ((given.ge, 1, 0), (given.gt, 1, 1), (given.le, -1, 0), (given.lt, -1, 1)):
        if bound is not None:
            inside.append(bound + sign * step * excluded)
            outside.append(bound + sign * step * (excluded - 1))
    if given.le is None and given.lt is None:
        inside.append(2**63 - 1 if kind is int else sys.float_info.max)
        outside.append(2**63 if kind is int else math.inf)
    return inside, [*outside, math.nan]


CASES = {
    (known_keys(cls)[name].hint, name): pytest.param(cls, name, kind, given, id=f"{cls.__name__}.{name}")
    for cls in NEEDED
    for name, (kind, given) in numbers(cls).items()
}
HELP = {cls: describe(cls) for cls in NEEDED}


@pytest.mark.parametrize(("cls", "name", "kind", "given"), CASES.values())
def test_every_number_of_a_configuration_has_a_range_that_is_checked(cls, name, kind, given):
    assert given is not None, f"{name}: write its range in its type (membuilder/value_types.py)"
    key = known_keys(cls)[name]
    assert f"  {name}: {type_name(key.hint)} = " in HELP[cls]  # what --help says
    inside, outside = ends(kind, given)

    def loaded(value: float) -> Any:
        kinds = {get_origin(option) for option in options(key.hint)}
        written = f"[{value}]" if list in kinds else f"{{squad: {value}}}" if dict in kinds else value
        return load(cls, None, [*NEEDED[cls], f"{name}={written}"])

    for value in outside:
        with pytest.raises(ConfigError, match=rf"command line: key '{name}': .* does not fit; expected .*") as caught:
            loaded(value)
        assert type_name(key.hint) in str(caught.value)
    for value in inside if name not in OTHER_KEYS else []:
        found = loaded(value)
        for part in name.split("."):
            found = getattr(found, part)
        assert found == value


def test_the_exceptions_are_refused_for_another_reason_than_their_range():
    assert set(OTHER_KEYS) <= numbers(RLConfig).keys() | numbers(TinyFolderConfig).keys()
    with pytest.raises(ConfigError, match=r"configuration: sampling.temperature=0.*expected float \(above 0\)"):
        load(RLConfig, None, ["sampling.temperature=0"])
    with pytest.raises(ConfigError, match="section 'model.tiny': num_heads=4 must be a multiple of num_kv_heads=3"):
        load(SFTConfig, None, ["model.tiny.num_kv_heads=3"])


@cache
def sections() -> dict[type, dict[str, Any]]:
    """Each dataclass of keys -> its values as a configuration makes them."""
    found: dict[type, dict[str, Any]] = {}

    def visit(section: Any) -> None:
        values = {field.name: getattr(section, field.name) for field in fields(section)}
        found.setdefault(type(section), values)
        for value in values.values():
            if isinstance(value, Section):
                visit(value)

    for cls, needed in NEEDED.items():
        visit(load(cls, None, needed))
    return found


@pytest.mark.parametrize("section", sections(), ids=lambda each: each.__name__)
def test_a_section_made_in_python_is_checked_too(section):
    values = sections()[section]
    assert section(**values)
    for name, (kind, given) in numbers(section).items():
        if "." in name:
            continue
        for value in ends(kind, given)[1]:
            value = [value] if "list" in str(known_keys(section)[name].hint) else value
            with pytest.raises(ValueError, match=rf"^{name}=.* does not fit; expected "):
                section(**values | {name: value})


def test_no_configuration_is_left_out():
    """Dataclasses of ours that are named as sections are, and not reached from a configuration above."""
    named = {
        node.name
        for path in MODULES.values()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ClassDef) and node.name.endswith(("Config", "Endpoint"))
    }
    assert named == {each.__name__ for each in sections()} | {"ServerEndpoint", "TrainConfig"}  # bases


# Flags


class Seen(Exception):
    """Holds the parser of a command."""


COMMANDS = [
    name
    for name, path in MODULES.items()
    if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8") and name != "membuilder.__main__"
]
ARGUMENTS = {"membuilder.eval": [[], ["compare"]]}
LIGHT = {"trainer.rl": partial(parse, RLConfig, program=""), "trainer.sft": partial(parse, SFTConfig, program="")}
"""The flags of commands whose module loads PyTorch."""


def flags(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from flags(each)
        else:
            yield action


@pytest.mark.parametrize("command", COMMANDS)
def test_every_number_of_a_flag_has_a_range(command, monkeypatch):
    def show(parser, *_):
        raise Seen(parser)

    monkeypatch.setattr(module.ArgumentParser, "parse_known_args", show)
    for argv in ARGUMENTS.get(command, [[]]):
        with pytest.raises(Seen) as seen:
            (LIGHT.get(command) or importlib.import_module(command).main)(argv)
        for flag in flags(seen.value.args[0]):
            assert flag.type not in (int, float) or flag.choices, f"{flag.option_strings}: flag_type(...) is its type"
            if flag.type is not None and flag.type.__qualname__.startswith("flag_type"):
                for text in ("-1", "nan", "inf", "x"):
                    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' does not fit; expected "):
                        flag.type(text)


def test_a_flag_out_of_range_ends_a_command_by_its_name(capsys):
    from trainer.quickstart import main

    for flag, value in (("--steps-rl", "-1"), ("--seed", "-1")):
        with pytest.raises(SystemExit, match="2"):
            main([flag, value])
        assert f"argument {flag}: '{value}' does not fit; expected int (at least" in capsys.readouterr().err
