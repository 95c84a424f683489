"""Whatever a model or a chunk says: nothing raises, and nothing changes but what was named."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("hypothesis", reason="needs hypothesis: pip install -e .[test]")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from membuilder.bank.store import reading, writing
from membuilder.bank.store_rows import storable
from membuilder.schemes.memalpha.config import PromptsConfig
from membuilder.schemes.memalpha.prompts import disarmed
from membuilder.schemes.memalpha.scheme import WRITER
from membuilder.schemes.memalpha.tools import OTHER_NAMES, tools
from membuilder.schemes.scheme import CallOutcome, text_of
from membuilder.types import Bank, Session
from tests.fakes import HashEmbedder
from tests.memalpha_chunks import answered, bank_of, call, calls_of, chunk, words, writer

BANK = bank_of(("semantic", "Ann has a cat."), ("episodic", "Ann ran."), ("semantic", "a dog"), core="Ann.")
FORMATS = ("hermes", "marks", "compact")
SCHEMES = {fmt: writer(response_format=fmt, core_limit_tokens=6) for fmt in FORMATS}
PIECES = st.sampled_from(
    [
        *("<tool_call>", "</tool_call>", "<think>", "</think>", "<tool_response>", "✿FUNCTION✿: memory_delete\n"),
        *("✿ARGS✿: ", "✿RESULT✿", "<update>", "<delete>", "<semantic>", "<done>", "e1", "#1", "#2", "<|im_end|>"),
        *('{"name": "memory_delete", "arguments": ', '{"memory_type": "semantic_memory", "memory_id": "m1"}', "}}"),
        *('{"memory_type": "core_memory", "new_content": "x"}', "\ud83d", "\0", "\n", '"', "\\", "[" * 40),
    ]
)
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=12)), max_size=8).map("".join)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(["m1", "m9"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)
PARTS = st.sampled_from(["core", "semantic", "episodic", "procedural", "other"])
TEXT = st.one_of(st.text(max_size=10), st.sampled_from(["Ann has a cat.", "Ann.", "1 2 3 4 5 6 7"]))
NAMES = st.sampled_from(["memory_insert", "new_memory_insert", "memory_update", "memory_delete", "search_memory", ""])
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "memory_type": st.one_of(PARTS.map("{}_memory".format), JSON),
        "content": st.one_of(TEXT, JSON),
        "new_content": st.one_of(TEXT, JSON),
        "lines": st.one_of(st.lists(st.integers(-1, 4), max_size=3), JSON),
        "memory_id": st.one_of(st.sampled_from(["m1", "m2", "[m3]", "m4", "a dog"]), JSON),
        "more": JSON,
    },
)
CALLS = st.lists(st.tuples(NAMES, ARGUMENTS), max_size=4).map(lambda drawn: written(drawn))
quick = settings(max_examples=150, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


def written(drawn: list[tuple[str, Any]]) -> str:
    said = [json.dumps({"name": name, "arguments": arguments}) for name, arguments in drawn]
    return "\n".join(f"<tool_call>\n{each}\n</tool_call>" for each in said)


def check(result, changed_by: set[str]) -> None:
    """What holds of every answer: old entries stand as they were, and only those named left the memory."""
    bank, calls = result.bank, calls_of(result)
    assert bank.entries[: len(BANK.entries)] == BANK.entries
    assert len({entry.id for entry in bank.entries}) == len(bank.entries)
    assert set(bank.deleted) <= {entry.id for entry in bank.entries} and len(set(bank.deleted)) == len(bank.deleted)
    assert set(bank.deleted) & {"m1", "m2", "m3"} <= changed_by
    assert {entry.agent for entry in bank.entries} <= {"semantic", "episodic"}
    assert words([bank.core]) <= 6
    assert all(call.outcome in CallOutcome and (call.detail or call.outcome == "ran") for call in calls)
    ran = [call for call in calls if call.outcome is CallOutcome.RAN]
    assert result.written[WRITER] == tuple(call.text for call in ran if call.text is not None)
    if not ran:
        assert bank == BANK
    storable(repr(calls)).encode()


def named_by(text: str) -> set[str]:
    """The entries that a text can have named at all: by id, label or text."""
    by = {"m1": ("m1", "e1", "Ann has a cat."), "m2": ("m2", "e2", "Ann ran."), "m3": ("m3", "e3", "a dog")}
    return {entry for entry, names in by.items() if any(name in text for name in names)}


@quick
@given(TEXTS, st.sampled_from(FORMATS))
def test_no_text_of_a_model_raises_or_changes_what_it_does_not_name(text, fmt):
    scheme = SCHEMES[fmt]
    check(answered(scheme, text, BANK, shown=BANK.entries), named_by(text))
    scheme.parse_cut(WRITER, text, chunk("a", "b"))


@quick
@given(st.lists(st.tuples(NAMES, st.one_of(ARGUMENTS, JSON)), max_size=4))
def test_calls_that_run_fit_the_schema_and_change_only_what_they_name(drawn: list[tuple[str, Any]]):
    scheme = SCHEMES["hermes"]
    result = answered(scheme, written(drawn), BANK)
    assert len(calls_of(result)) == len(drawn)
    schemas = {each["function"]["name"]: each["function"]["parameters"] for each in tools(scheme.config)}
    named: set[str] = set()
    for (name, arguments), call_ in zip(drawn, calls_of(result), strict=True):
        if call_.outcome is CallOutcome.RAN:
            Draft202012Validator(schemas[OTHER_NAMES.get(name, name)]).validate(arguments)
            named |= named_by(str(arguments.get("memory_id")))
    check(result, named)


@quick
@given(st.lists(TEXTS, max_size=4), st.sampled_from(FORMATS), st.sampled_from(["recent", "related", "both"]))
def test_no_text_of_a_chunk_raises_or_passes_for_a_call(lines, fmt, view):
    lines = [line.encode("utf-8", "replace").decode() for line in lines]  # a build refuses half characters
    scheme = writer(PromptsConfig(template_set="full"), response_format=fmt, view=view)
    session = chunk(*lines)
    stored = bank_of(*(("semantic", line) for line in lines if line.strip()))
    shown = scheme.show(session, stored, HashEmbedder(64))
    prompt = text_of(scheme.ask(WRITER, session, stored, shown))
    read_aloud = "\n".join(map(disarmed, lines))
    assert all(line in prompt for line in (" ".join(disarmed(each).split()) for each in lines))
    copied = answered(scheme, read_aloud, BANK, session, BANK.entries)
    assert copied.bank == BANK and CallOutcome.RAN not in [each.outcome for each in calls_of(copied)]
    updates = scheme.expert(session, stored, shown)
    text = scheme.write(WRITER, updates[WRITER], session, shown)
    assert scheme.parse(WRITER, text, session).unread == ()
    scheme.apply(session, stored, updates, shown)


@quick
@given(TEXTS)
def test_a_text_of_the_models_own_comes_back_from_its_call(text):
    text = text.encode("utf-8", "replace").decode()
    result = answered(writer(), call("memory_insert", memory_type="semantic", content=text))
    assert [entry.text for entry in result.bank.entries] == ([text] if text.strip() else [])


def fresh(fmt: str):
    return writer(response_format=fmt, core_limit_tokens=6)


@settings(quick, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(["ann", "bob"]), TEXTS | CALLS), max_size=6), st.sampled_from(FORMATS))
def test_no_answer_about_one_user_changes_the_bank_of_another(drawn: list[tuple[str, str]], fmt: str):
    """Both have entries of the same ids and of the same texts; one scheme serves them in turn, each from a store."""
    begun = {"ann": BANK, "bob": bank_of(("episodic", "Bob ran."), ("semantic", "a dog"), ("semantic", "x"), core="B")}
    scheme = fresh(fmt)
    with tempfile.TemporaryDirectory() as folder:
        stores = {user: Path(folder) / f"{user}.db" for user in begun}
        for user, bank in begun.items():
            stored(stores[user], chunk("a", "b"), Bank(), bank)
        for number, (user, text) in enumerate(drawn, start=1):
            (other,) = stores.keys() - {user}
            content = stores[other].read_bytes()
            with reading(stores[user]) as store:
                bank = store.bank()
            result = answered(scheme, text, bank, chunk("a", "b", number=number), bank.current())
            stored(stores[user], chunk("a", "b", number=number), bank, result.bank)
            assert stores[other].read_bytes() == content
        for user, bank in begun.items():
            for number, (name, text) in enumerate(drawn, start=1):
                if name == user:
                    bank = answered(fresh(fmt), text, bank, chunk("a", "b", number=number), bank.current()).bank
            with reading(stores[user]) as store:
                assert store.bank() == bank


def stored(path: Path, session: Session, before: Bank, after: Bank) -> None:
    with writing(path, {"dimension": 2}) as store:
        new = len(after.entries) - len(before.entries)
        store.append(session, {}, after, np.zeros((new, 2), dtype=np.float32))
