"""Every setting that a message names can be set in every command that can print the message."""

import ast
import re
from dataclasses import fields

import pytest

from membuilder import build, eval, expert, qa
from membuilder.llm.endpoints import ModelEndpoint
from tests.test_imports import MODULES, modules_imported

COMMANDS = {"membuilder.build": build, "membuilder.eval": eval, "membuilder.expert": expert, "membuilder.qa": qa}
NEVER_PRINTED = {
    "membuilder.qa": {"--embedding-api-key"},  # it embeds nothing
    "membuilder.eval": {"--metric"},  # a flag of `membuilder.eval compare`, which has its own help
}
SERVER_MESSAGES = [f"membuilder.llm.{name}" for name in ("connection", "responses")]


def closure(command: str) -> set[str]:
    """The modules of ours that a command may load."""
    found, todo = set(), [command]
    while todo:
        module = todo.pop()
        if module not in found:
            found.add(module)
            todo += modules_imported(MODULES[module])
    return found


def message_texts(module: str) -> list[str]:
    """The string literals of a module that are neither docstrings nor definitions of flags, also the literal parts of
    f-strings.
    """
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            bare |= set(map(id, node.args))  # where a flag is defined
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare
    ]


def flags_named(module: str) -> set[str]:
    return {flag for text in message_texts(module) for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text)}


def flags_of(command: str, capsys) -> set[str]:
    with pytest.raises(SystemExit):
        COMMANDS[command].main(["--help"])
    return set(re.findall(r"--[a-z][a-z-]*[a-z]", capsys.readouterr().out))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_that_a_message_names_is_one_of_the_command(command, capsys):
    known, unknown = flags_of(command, capsys) | NEVER_PRINTED.get(command, set()), {}
    # where flags are defined they are no messages; that a command has them is what this test is about
    for module in sorted(closure(command) - (COMMANDS.keys() - {command}) - {"membuilder.llm.flags"}):
        if flags_named(module) - known:
            unknown[module] = sorted(flags_named(module) - known)
    assert unknown == {}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_sets_any_key_of_its_endpoints(command, capsys):
    known = flags_of(command, capsys)
    prefixes = [flag.removesuffix("provider") for flag in known if flag.endswith("provider")]
    assert "--" in prefixes
    for prefix in prefixes:
        assert {f"{prefix}{end}" for end in ("base-url", "api-key", "endpoint")} <= known


@pytest.mark.parametrize("module", SERVER_MESSAGES)
def test_keys_that_messages_of_a_server_name_are_those_of_an_endpoint(module):
    advice = [text for text in message_texts(module) if re.search(r"\b([Rr]aise|lower) \w", text)]
    named = {word for text in advice for word in re.findall(r"(?:[Rr]aise|lower) (\w+)", text)}
    assert named <= {field.name for field in fields(ModelEndpoint)}
    assert named
