"""Every schema that is sent, compiled by the real xgrammar (vLLM's default): what it lets a model write."""

import json
import random
from collections.abc import Iterator

import pytest
from jsonschema import Draft202012Validator

from membuilder.llm.answer_and_judge import VERDICT_SCHEMA
from membuilder.llm.chat_model import response_format, sendable
from membuilder.llm.client import CHECK_SCHEMA
from membuilder.schemes.four_agents.schemas import ResponseFormat, schema, validator
from membuilder.trajectories.questions import SCHEMA as QUESTIONS_SCHEMA
from membuilder.types import Agent

xgrammar = pytest.importorskip("xgrammar", reason="vLLM is not installed (launch/setup.sh)")

NUM_TURNS = 12
AGENTS = [(agent, form) for agent in Agent for form in ResponseFormat]
SCHEMAS = {f"{agent}-{form}": schema(agent, form, NUM_TURNS) for agent, form in AGENTS} | {
    "verdict": VERDICT_SCHEMA,
    "questions": QUESTIONS_SCHEMA,
    "check": CHECK_SCHEMA,
}
TEXTS = [
    "Ann: I adopted a cat called Miso.", "x", "a \"quoted\" word and a \\ backslash", "line one\nline two\ttabbed",
    "猫を飼い始めました", "أعيش في أوسلو", "🐈‍⬛ and é", "{\"operations\": []}", "</think> [1]", "long " * 2000,
]  # fmt: skip


@pytest.fixture(scope="module")
def compiler() -> xgrammar.GrammarCompiler:
    """Over bytes, so that any text can be spelt."""
    vocabulary = [bytes([byte]) for byte in range(256)] + [b"</s>"]
    return xgrammar.GrammarCompiler(
        xgrammar.TokenizerInfo(vocabulary, stop_token_ids=[256], vocab_type=xgrammar.VocabType.RAW)
    )


def lets_write(grammar: xgrammar.CompiledGrammar, text: str) -> bool:
    matcher = xgrammar.GrammarMatcher(grammar, terminate_without_stop_token=True)
    return matcher.accept_string(text) and matcher.is_terminated()


def grammar_of(compiler: xgrammar.GrammarCompiler, wanted: dict) -> xgrammar.CompiledGrammar:
    sent = response_format(wanted)["json_schema"]["schema"]
    return compiler.compile_json_schema(json.dumps(sent))


def answers(wanted: dict, source: random.Random) -> Iterator:
    """Values that fit a schema, its branches drawn evenly."""
    while True:
        value = drawn(wanted, source)
        if Draft202012Validator(wanted).is_valid(value):
            yield value


def drawn(wanted: dict, source: random.Random):
    if "oneOf" in wanted or "anyOf" in wanted:
        return drawn(source.choice(wanted.get("oneOf") or wanted["anyOf"]), source)
    if "const" in wanted or "enum" in wanted:
        return wanted.get("const") or source.choice(wanted["enum"])
    if "pattern" in wanted and wanted["pattern"].startswith("^"):
        return source.choice(["add", "e1", "e12", "e3+e4", "e1+e2+e13"])
    match wanted["type"]:
        case "string":
            return source.choice(TEXTS)
        case "integer":
            return source.randint(1, 60)
        case "boolean":
            return source.random() < 0.5
        case "array":
            return [drawn(wanted["items"], source) for _ in range(source.randint(0, 4))]
        case "object":
            optional = [name for name in wanted["properties"] if name not in wanted["required"]]
            left_out = set(source.sample(optional, source.randint(0, len(optional))))
            return {name: drawn(part, source) for name, part in wanted["properties"].items() if name not in left_out}


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_fits_a_schema_can_be_written_under_it(compiler, name):
    grammar, source = grammar_of(compiler, SCHEMAS[name]), random.Random(name)
    values = answers(SCHEMAS[name], source)
    seen = set()
    for number in range(200):
        value = next(values)
        form = {"indent": 2} if number % 2 else {}
        text = json.dumps(value, ensure_ascii=number % 3 == 0, **form)
        assert lets_write(grammar, text), text[:300]
        seen |= {word for word in ("APPEND", "REPLACE", "REWRITE", "SKIP", "ADD", "UPDATE", "MERGE") if word in text}
    actions = {word for word in json.dumps(SCHEMAS[name]).split('"') if word.isupper() and word.isalpha()}
    assert seen >= actions


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_breaks_its_shape_cannot(compiler, name):
    grammar, source = grammar_of(compiler, SCHEMAS[name]), random.Random(name)
    values, refused = answers(SCHEMAS[name], source), 0
    checker = Draft202012Validator(SCHEMAS[name])
    while refused < 50:
        broken = damaged(next(values), source)
        if not checker.is_valid(broken):
            assert not lets_write(grammar, json.dumps(broken)), json.dumps(broken)[:300]
            refused += 1


def damaged(value, source: random.Random):
    """The same with one thing wrong: a key too many or of another name, another action, a number for a text."""
    places = [(holder, key) for holder, key in parts(value) if isinstance(holder, dict)]
    if not places:
        return {"unknown": 1}
    holder, key = source.choice(places)
    match source.randrange(4):
        case 0:
            holder["unknown"] = "x"
        case 1:
            holder[f"{key}s"] = holder.pop(key)
        case 2:
            holder[key] = 7
        case 3:
            holder[key] = {"text": holder[key]}
    return value


def parts(value) -> Iterator[tuple]:
    """Every place of a JSON value: what holds it, and its key or number there."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield value, key
        yield from parts(part)


@pytest.mark.parametrize(
    ("agent", "answer"),
    [
        (Agent.EPISODIC, {"operations": [{"action": "ADD", "memory": "   "}]}),
        (Agent.EPISODIC, {"operations": [{"action": "ADD", "memory": ""}]}),
        (Agent.EPISODIC, {"operations": [{"action": "ADD", "quote": [0]}]}),
        (Agent.EPISODIC, {"operations": [{"action": "MERGE", "old_memories": ["e1", "e1"], "new_memory": "a"}]}),
        (Agent.CORE, {"operation": "APPEND", "content": "\n"}),
    ],
)
def test_what_no_grammar_refuses_alike_is_checked_here(compiler, agent, answer):
    whole = validator(agent, ResponseFormat.OPERATIONS, NUM_TURNS)
    assert lets_write(grammar_of(compiler, schema(agent, ResponseFormat.OPERATIONS, NUM_TURNS)), json.dumps(answer))
    assert not whole.is_valid(answer)


def test_only_what_all_servers_read_alike_is_sent():
    """Keywords that xgrammar, outlines or OpenAI refuse or read in a way of their own, at any depth."""
    wanted = {
        "type": "object",
        "properties": {
            "pattern": {"type": "string", "pattern": r"\S", "minLength": 1},
            "oneOf": {"oneOf": [{"const": "a"}, {"type": "integer", "minimum": 3}]},
            "label": {"type": "string", "pattern": "^e[0-9]+$"},
            "ahead": {"type": "string", "pattern": "^(?!e)a$"},
            "list": {
                "type": "array",
                "items": {"type": "string", "format": "date"},
                "minItems": 1,
                "uniqueItems": True,
            },
        },
        "required": ["pattern"],
        "additionalProperties": False,
        "not": {"required": ["oneOf"]},
    }
    assert sendable(wanted) == {
        "type": "object",
        "properties": {
            "pattern": {"type": "string"},
            "oneOf": {"anyOf": [{"enum": ["a"]}, {"type": "integer"}]},
            "label": {"type": "string", "pattern": "^e[0-9]+$"},
            "ahead": {"type": "string"},
            "list": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        },
        "required": ["pattern"],
        "additionalProperties": False,
    }
