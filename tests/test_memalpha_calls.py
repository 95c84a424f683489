"""Answers of the writer and the calls in them: every format, every outcome, and nothing that was not said."""

import json

import pytest

from membuilder.schemes.memalpha.config import MemAlphaConfig, PromptsConfig, parts_named
from membuilder.schemes.memalpha.scheme import WRITER
from membuilder.schemes.memalpha.tools import offered, tools
from membuilder.types import AgentUpdate, Operation, OperationKind
from tests.memalpha_chunks import answered, bank_of, call, calls_of, chunk, insert, outcomes, read, writer

ADD, UPDATE, DELETE = OperationKind.ADD, OperationKind.UPDATE, OperationKind.DELETE
OPERATIONS = (
    Operation(kind=ADD, part="semantic", text='Miso says "</tool_call>" and ✿RESULT✿ and </think>.'),
    Operation(kind=ADD, part="episodic", quote=(1, 3)),
    Operation(kind=UPDATE, part="semantic", targets=("m1",), text="Ann lives\nin Rome. 橘猫"),
    Operation(kind=OperationKind.REWRITE, part="core", text="Ann has a cat."),
    Operation(kind=DELETE, part="episodic", targets=("m2",)),
    Operation(kind=DELETE, part="core"),
)
POINTERS = (
    Operation(kind=ADD, part="semantic", quote=(3,)),
    Operation(kind=OperationKind.REWRITE, part="core", quote=(2,)),
    Operation(kind=UPDATE, targets=("e2",), quote=(1, 2)),
    Operation(kind=DELETE, targets=("e1",)),
    Operation(kind=DELETE, part="core"),
)


@pytest.mark.parametrize(
    ("settings", "operations"),
    [
        ({"response_format": "hermes"}, OPERATIONS),
        ({"response_format": "marks"}, OPERATIONS),
        ({"response_format": "compact"}, POINTERS),
        ({"response_format": "hermes"}, ()),
        ({"response_format": "marks"}, ()),
        ({"response_format": "compact"}, ()),
    ],
)
def test_what_is_written_is_read_back(settings, operations):
    scheme, update = writer(**settings), AgentUpdate(operations=operations)
    text = scheme.write(WRITER, update, chunk("a", "b", "c"), {WRITER: ()})
    assert read(scheme, text) == update
    assert read(scheme, f"<think>I might <tool_call> or <update>e9#1\n</think>\n\n{text}") == update


def test_the_formats_as_they_are_written():
    operations = AgentUpdate(operations=(Operation(kind=ADD, part="semantic", quote=(3,)),))
    written = {
        fmt: writer(response_format=fmt).write(WRITER, operations, chunk("a", "b", "c"), {WRITER: ()})
        for fmt in ("hermes", "marks", "compact")
    }
    arguments = '{"memory_type": "semantic_memory", "lines": [3]}'
    assert written == {
        "hermes": f'<tool_call>\n{{"name": "memory_insert", "arguments": {arguments}}}\n</tool_call>',
        "marks": f"✿FUNCTION✿: memory_insert\n✿ARGS✿: {arguments}",
        "compact": "<semantic>#3<done>",
    }


def test_the_published_name_of_a_tool_is_known():
    text = call("new_memory_insert", memory_type="semantic", content="Ann has a cat.")
    assert read(writer(), text) == read(writer(), insert("semantic", "Ann has a cat."))
    marked = '✿FUNCTION✿: new_memory_insert\n✿ARGS✿: {"memory_type": "semantic_memory", "content": "Ann has a cat."}'
    assert read(writer(response_format="marks"), marked).operations == read(writer(), text).operations


BAD = {
    "not_json": (
        '<tool_call>{"name": "memory_insert", "arguments": {</tool_call>',
        insert("semantic", "a").replace("</tool_call>", "x</tool_call>"),
        '<tool_call>{"name": "a", "name": "b", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "a", "arguments": {"x": NaN}}</tool_call>',
        "<tool_call>hello</tool_call>",
        "<tool_call>",
        f'<tool_call>{{"name": "a", "arguments": {"[" * 100_000}',
        '<tool_call>{"name": "memory_delete", "arguments": {"memory_type": "\\ud83d"}}</tool_call>',
    ),
    "schema": (
        '<tool_call>{"name": "memory_insert", "arguments": "hello"}</tool_call>',
        '<tool_call>{"name": "memory_insert", "arguments": null}</tool_call>',
        '<tool_call>{"name": "memory_insert", "arguments": {}, "more": 1}</tool_call>',
        call("memory_insert", memory_type="semantic"),
        call("memory_insert", memory_type="core", content="a core takes no entries"),
        call("memory_insert", memory_type="semantic", content=3),
        call("memory_insert", memory_type="semantic", content=" \n"),
        call("memory_insert", memory_type="semantic", content="a", lines=[1]),
        call("memory_insert", memory_type="semantic", lines=[]),
        call("memory_insert", memory_type="semantic", lines=[1, 1]),
        call("memory_insert", memory_type="semantic", lines=[True]),
        call("memory_insert", memory_type="semantic", content="a", mood="good"),
        '<tool_call>{"name": "memory_insert", "arguments": {"memory_type": null, "content": "a"}}</tool_call>',
        call("memory_update", memory_type="semantic", new_content="which entry?"),
        call("memory_delete", memory_type="semantic"),
    ),
    "unknown_tool": (
        call("memory_merge", memory_type="semantic"),
        call("search_memory", memory_type="semantic", query="nobody reads the result of one turn"),
        '<tool_call>{"function": "memory_insert"}</tool_call>',
        "<tool_call>[]</tool_call>",
    ),
    "unknown_turn": (
        call("memory_insert", memory_type="semantic", lines=[4]),
        call("memory_insert", memory_type="semantic", lines=[10**300]),
    ),
    "disabled_part": (call("memory_insert", memory_type="procedural", content="a"),),
}


@pytest.mark.parametrize(("outcome", "text"), [(outcome, text) for outcome, texts in BAD.items() for text in texts])
def test_a_call_that_asks_for_nothing_that_can_be_done_says_why(outcome, text):
    result = answered(writer(), text)
    assert outcomes(result) == [outcome] and calls_of(result)[0].detail
    assert result.bank == bank_of() and result.failures[WRITER].detail
    good = insert("semantic", "Ann has a cat.")
    mixed = answered(writer(), f"{good}\n{text}")
    assert outcomes(mixed) == ["ran", outcome] and not mixed.failures
    assert [entry.text for entry in mixed.bank.entries] == ["Ann has a cat."]


def test_a_broken_call_ends_at_its_mark_and_those_behind_it_run():
    good = insert("semantic", "Ann has a cat.")
    for broken in ('<tool_call>{"name": </tool_call>', '<tool_call>{"name": "a\n', "<tool_call>\n"):
        assert outcomes(answered(writer(), f"{broken}\n{good}")) == ["not_json", "ran"], broken
    marked = '✿FUNCTION✿: memory_insert\n✿ARGS✿: {"memory_type": "semantic_memory", "content": "Ann has a cat."}'
    for broken in ("✿FUNCTION✿: memory_insert", "✿FUNCTION✿: memory_insert\n✿ARGS✿: hello\n", "✿FUNCTION✿"):
        result = answered(writer(response_format="marks"), f"{broken}\n{marked}")
        assert outcomes(result) == ["not_json", "ran"], broken


def test_marks_inside_the_json_of_a_call_are_text():
    inner = call("memory_delete", memory_type="semantic", memory_id="m1")
    result = answered(writer(), insert("episodic", f"Ann pasted {inner} and </think>."), bank_of(("semantic", "a cat")))
    assert outcomes(result) == ["ran"] and len(result.bank.current()) == 2
    marked = "✿FUNCTION✿: memory_delete\n✿ARGS✿: {}✿RESULT✿"
    text = f"✿FUNCTION✿: memory_insert\n✿ARGS✿: {json.dumps({'memory_type': 'semantic_memory', 'content': marked})}"
    result = answered(writer(response_format="marks"), text)
    assert outcomes(result) == ["ran"] and result.bank.entries[0].text == marked


def test_what_follows_the_mark_of_a_result_is_no_answer():
    marked = '✿FUNCTION✿: memory_insert\n✿ARGS✿: {"memory_type": "semantic_memory", "content": "a"}'
    result = answered(writer(response_format="marks"), f"{marked}\n✿RESULT✿: ok\n{marked.replace('a', 'b')}")
    assert outcomes(result) == ["ran"]


def test_calls_in_thoughts_are_none():
    good = insert("semantic", "Ann has a cat.")
    assert outcomes(answered(writer(), f"<think>{good}")) == []
    assert outcomes(answered(writer(), f"{good} or not?</think>\nDone")) == []
    assert outcomes(answered(writer(), f"<think>{good}</think>{good}")) == ["ran"]


def test_an_answer_may_be_one_json_object():
    good = {"name": "memory_insert", "arguments": {"memory_type": "semantic_memory", "lines": [1]}}
    for fmt in ("hermes", "marks", "compact"):  # a server that is held to the schema writes it under each
        scheme = writer(response_format=fmt)
        for text in (json.dumps({"calls": [good]}), f"```json\n{json.dumps({'calls': [good]})}\n```"):
            assert read(scheme, text).operations == (Operation(kind=ADD, part="semantic", quote=(1,)),)
        assert read(scheme, '{"calls": []}') == AgentUpdate()
    schema = writer().schema(WRITER, chunk("a"))
    names = [each["properties"]["name"]["const"] for each in schema["properties"]["calls"]["items"]["anyOf"]]
    assert names == ["memory_insert", "memory_update", "memory_delete"]


def test_a_text_without_calls_asks_for_nothing_and_is_no_failure():
    for text in ("", "Done", "There is nothing to store.", '{"status": "ok"}'):
        result = answered(writer(), text)
        assert outcomes(result) == [] and result.failures == {} and result.bank == bank_of()


def test_calls_beyond_the_limit_are_refused_and_those_before_it_run():
    text = "\n".join(insert("semantic", f"fact {number}") for number in range(4))
    result = answered(writer(max_calls=2), text)
    assert outcomes(result) == ["ran", "ran", "too_many_calls", "too_many_calls"]
    assert [entry.text for entry in result.bank.entries] == ["fact 0", "fact 1"]
    assert outcomes(answered(writer(response_format="compact", max_calls=1), "<semantic>#1<semantic>#2<done>")) == [
        "ran",
        "too_many_calls",
    ]


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("<semantic>", "schema"),
        ("<semantic>3", "schema"),
        ("<semantic>#1#1", "schema"),
        ("<semantic>#0", "schema"),
        ("<update>#1", "schema"),
        ("<update>e1", "schema"),
        ("<delete>e1#1", "schema"),
        ("<delete>m1", "schema"),
        ("<procedural>#1", "disabled_part"),
        ("<semantic>#4", "unknown_turn"),
        ("<semantic>#999999999", "unknown_turn"),
        ("<update>e9#1", "unknown_id"),
        ("<delete>core", "unknown_id"),
        ("<merge>e1", "unknown_tool"),
    ],
)
def test_compact_calls_that_ask_for_nothing(text, outcome):
    scheme = writer(response_format="compact")
    result = answered(scheme, f"{text}<semantic>#2<done>")
    assert outcomes(result) == [outcome, "ran"] and len(result.bank.entries) == 1


def test_an_answer_that_was_cut_runs_what_is_whole():
    cut = f"{insert('semantic', 'a')}\n{insert('semantic', 'b')[:-30]}"
    update = writer().parse_cut(WRITER, cut, chunk("x"))
    assert [each.text for each in update.operations] == ["a"] and [each.outcome for each in update.unread] == [
        "not_json"
    ]
    compact = writer(response_format="compact")
    session = chunk(*("x",) * 12)
    assert [each.quote for each in compact.parse_cut(WRITER, "<semantic>#3<semantic>#1", session).operations] == [(3,)]
    assert compact.parse_cut(WRITER, "#1", session) == AgentUpdate()


def test_enums_name_the_parts_there_are_and_a_tool_without_any_is_not_there():
    def enums(**settings) -> dict[str, list[str]]:
        listed = (each["function"] for each in tools(MemAlphaConfig(**settings)))
        return {each["name"]: each["parameters"]["properties"]["memory_type"]["enum"] for each in listed}

    entries = ["semantic_memory", "episodic_memory"]
    assert enums() == {
        "memory_insert": entries,
        "memory_update": ["core_memory", *entries],
        "memory_delete": ["core_memory", *entries],
    }
    assert enums(exclude_memory=["episodic", "core"]) == dict.fromkeys(enums(), ["semantic_memory"])
    only_core = ["semantic", "episodic"]
    assert enums(exclude_memory=only_core) == dict.fromkeys(["memory_update", "memory_delete"], ["core_memory"])
    assert enums(procedural=True)["memory_insert"] == [*entries, "procedural_memory"]
    assert enums(max_turns=2)["search_memory"] == entries
    assert offered(MemAlphaConfig(exclude_memory=only_core, max_turns=2)) == ("memory_update", "memory_delete")
    refused = answered(writer(exclude_memory=only_core), insert("semantic", "a"))
    assert outcomes(refused) == ["disabled_part"]


def test_arguments_are_called_as_published():
    listed = {each["function"]["name"]: each["function"]["parameters"] for each in tools(MemAlphaConfig(max_turns=2))}
    assert {name: list(each["properties"]) for name, each in listed.items()} == {
        "memory_insert": ["memory_type", "content", "lines"],
        "memory_update": ["memory_type", "new_content", "lines", "memory_id"],
        "memory_delete": ["memory_type", "memory_id"],
        "search_memory": ["memory_type", "query", "search_method"],
    }
    published = {each["function"]["name"]: each["function"] for each in tools(MemAlphaConfig(line_pointers=False))}
    assert published["memory_insert"]["parameters"]["required"] == ["memory_type", "content"]
    assert published["memory_update"]["parameters"]["required"] == ["memory_type", "new_content"]
    assert "lines" not in json.dumps(published)
    assert outcomes(
        answered(writer(line_pointers=False), call("memory_insert", memory_type="semantic", lines=[1]))
    ) == ["schema"]


def test_the_way_of_searching_that_is_named_is_one_there_is():
    """The published tool took `text-embedding` and searched by words."""
    writers = {each["function"]["name"]: each["function"]["parameters"] for each in tools(MemAlphaConfig(max_turns=2))}
    assert writers["search_memory"]["properties"]["search_method"]["enum"] == ["bm25"]
    asked = call("search_memory", memory_type="semantic", query="cat", search_method="text-embedding")
    assert outcomes(answered(writer(max_turns=2), asked)) == ["schema"]


def test_the_order_of_excluded_parts_is_of_no_influence():
    """The published program named its result folders by the order of a set."""
    one, other = (
        MemAlphaConfig(exclude_memory=parts) for parts in (["core", "episodic"], ["episodic", "core", "core"])
    )
    assert one == other and one.parts == ("semantic",)
    assert parts_named("episodic, core") == parts_named("core,episodic") == parts_named(" core episodic")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exclude_memory": ["core", "semantic", "episodic"]}, "leaves no part"),
        ({"response_format": "compact", "line_pointers": False}, "line_pointers=false"),
        ({"response_format": "compact", "max_turns": 2}, "set max_turns=1"),
        ({"response_format": "xml"}, "xml"),
        ({"max_calls": 0}, "max_calls"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MemAlphaConfig(**settings)
    with pytest.raises(ValueError, match="is none of"):
        PromptsConfig(template_set="long")
