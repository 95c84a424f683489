"""An agent's text <-> operations: what is accepted, what is refused and why, and that reading undoes writing."""

import json
import random
import time
from datetime import datetime

import pytest

from membuilder.schemes.four_agents.operations import parse, render
from membuilder.schemes.four_agents.schemas import ResponseFormat, schema, validator
from membuilder.types import Agent, AgentUpdate, Entry, FailureKind, Operation, OperationKind
from tests.patience import LINEAR

CORE, EPISODIC, SEMANTIC, PROCEDURAL = Agent
OPERATIONS, TURNS = ResponseFormat
NOTHING = AgentUpdate(operations=())
LIKES_TEA = AgentUpdate(operations=(Operation(kind=OperationKind.ADD, text="Ann likes tea."),))
LIKES_TEA_JSON = '{"operations": [{"action": "ADD", "memory": "Ann likes tea."}]}'


def read(text: str, agent: Agent = EPISODIC, num_turns: int = 3, fmt: ResponseFormat = OPERATIONS) -> AgentUpdate:
    return parse(text, agent, num_turns, fmt)


def refusal(answer: object, agent: Agent = EPISODIC, num_turns: int = 3, fmt: ResponseFormat = OPERATIONS):
    """Kind of the failure an answer (text, or an object to be written as JSON) ends in."""
    update = read(answer if isinstance(answer, str) else json.dumps(answer), agent, num_turns, fmt)
    assert update.operations == () and update.failure is not None and update.failure.detail
    return update.failure.kind


def action(**fields: object) -> dict:
    return {"operations": [fields]}


# What may stand around the JSON


@pytest.mark.parametrize(
    "text",
    [
        LIKES_TEA_JSON,
        f"  \n{LIKES_TEA_JSON}\n\n",
        f"```json\n{LIKES_TEA_JSON}\n```",
        f"```\n{LIKES_TEA_JSON}\n```",
        f"```json \r\n{LIKES_TEA_JSON}\r\n```\n",
        f"```json\n\n{LIKES_TEA_JSON}\n\n  ```",
        f"<think>She said {{tea}}.\n\nStore it?</think>\n\n{LIKES_TEA_JSON}",
        f"<think></think>```json\n{LIKES_TEA_JSON}\n```",
        json.dumps(json.loads(LIKES_TEA_JSON), indent=4),
    ],
)
def test_think_blocks_fences_and_white_space_are_allowed(text):
    assert read(text) == LIKES_TEA


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I will add: Ann likes tea.",
        f"{LIKES_TEA_JSON} Done!",
        f"Here it is: {LIKES_TEA_JSON}",
        f"{LIKES_TEA_JSON}\n{LIKES_TEA_JSON}",
        f"```json\n{LIKES_TEA_JSON}\n```\nDone!",
        f"```python\n{LIKES_TEA_JSON}\n```",
        f"```json\n{LIKES_TEA_JSON}",
        f"```json\n{LIKES_TEA_JSON}\n```\n```json\n{LIKES_TEA_JSON}\n```",
        f"<think>never closed {LIKES_TEA_JSON}",
        f"<think>one</think><think>two</think>{LIKES_TEA_JSON}",
        f"{LIKES_TEA_JSON}<think>late</think>",
        LIKES_TEA_JSON[:-1],
        LIKES_TEA_JSON[:-1] + ",}",
        LIKES_TEA_JSON.replace('"', "'"),
        "\ufeff" + LIKES_TEA_JSON,
    ],
)
def test_anything_else_around_the_json_is_refused(text):
    assert refusal(text) is FailureKind.NOT_JSON


@pytest.mark.parametrize(
    "text",
    [
        '{"operations": [], "operations": []}',
        '{"operations": [{"action": "ADD", "memory": "a", "memory": "b"}]}',
        '{"operations": [{"action": "ADD", "action": "ADD", "memory": "a"}]}',
    ],
)
def test_duplicate_keys_are_refused(text):
    assert refusal(text) is FailureKind.NOT_JSON


# What the published format takes


def test_every_operation_of_every_agent_is_read():
    assert read('{"operation": "APPEND", "content": "Ann"}', CORE).operations == (
        Operation(kind=OperationKind.APPEND, text="Ann"),
    )
    assert read('{"operation": "APPEND", "quote": [3, 1]}', CORE).operations == (
        Operation(kind=OperationKind.APPEND, quote=(3, 1)),
    )
    assert read('{"operation": "REPLACE", "old_text": "Ann", "new_text": "Bea"}', CORE).operations == (
        Operation(kind=OperationKind.REPLACE, text="Bea", old_text="Ann"),
    )
    assert read('{"operation": "REWRITE", "content": "Bea"}', CORE).operations == (
        Operation(kind=OperationKind.REWRITE, text="Bea"),
    )
    for agent in (EPISODIC, SEMANTIC, PROCEDURAL):
        assert read(LIKES_TEA_JSON, agent) == LIKES_TEA
        assert read('{"operations": [{"action": "UPDATE", "old_memory": "e2", "quote": [2]}]}', agent).operations == (
            Operation(kind=OperationKind.UPDATE, quote=(2,), targets=("e2",)),
        )
    merge = '{"operations": [{"action": "MERGE", "old_memories": ["e2", "e1"], "new_memory": "both"}]}'
    assert read(merge).operations == (Operation(kind=OperationKind.MERGE, text="both", targets=("e2", "e1")),)


def test_operations_keep_their_order():
    answer = {"operations": [{"action": "ADD", "memory": "second"}, {"action": "ADD", "memory": "first"}]}
    assert [operation.text for operation in read(json.dumps(answer)).operations] == ["second", "first"]


@pytest.mark.parametrize("agent", [EPISODIC, SEMANTIC, PROCEDURAL])
def test_an_empty_list_is_a_valid_way_to_store_nothing(agent):
    assert read('{"operations": []}', agent) == NOTHING


def test_core_skip_is_valid():
    assert read('{"operation": "SKIP"}', CORE) == NOTHING
    assert read('{"operation": "SKIP", "reason": ""}', CORE) == NOTHING


def test_skip_is_for_core_and_semantic_only():
    assert read(json.dumps(action(action="SKIP", reason="known")), SEMANTIC) == NOTHING
    mixed = {"operations": [{"action": "SKIP"}, {"action": "ADD", "memory": "Ann likes tea."}]}
    assert read(json.dumps(mixed), SEMANTIC) == LIKES_TEA
    for agent in (EPISODIC, PROCEDURAL):
        assert refusal(action(action="SKIP"), agent) is FailureKind.SCHEMA


@pytest.mark.parametrize("agent", Agent)
def test_an_empty_object_is_no_answer_in_the_operations_format(agent):
    assert refusal("{}", agent) is FailureKind.SCHEMA


def test_merge_is_for_episodic_only():
    answer = action(action="MERGE", old_memories=["e1", "e2"], new_memory="both")
    assert read(json.dumps(answer), EPISODIC).failure is None
    for agent in (SEMANTIC, PROCEDURAL):
        assert refusal(answer, agent) is FailureKind.SCHEMA


@pytest.mark.parametrize("answer", ["null", "[]", "1", '"ADD"', "true", "NaN", '{"operation": null}'])
@pytest.mark.parametrize("agent", Agent)
@pytest.mark.parametrize("fmt", ResponseFormat)
def test_json_of_another_shape_is_refused(answer, agent, fmt):
    assert refusal(answer, agent, fmt=fmt) is FailureKind.SCHEMA


@pytest.mark.parametrize(
    "answer",
    [
        {"operations": None},
        {"operations": "ADD"},
        {"operations": {}},
        {"operations": ["ADD"]},
        {"operations": [None]},
        {"operations": [[]]},
        {"operations": [{}]},
        {"operations": [], "note": "nothing new"},
        {"operation": "SKIP"},
        action(action="ADD"),
        action(action=None, memory="x"),
        action(action="add", memory="x"),
        action(action="DELETE", memory="x"),
        action(action="APPEND", content="x"),
        action(action="ADD", memory=""),
        action(action="ADD", memory=" \n\t"),
        action(action="ADD", memory=None),
        action(action="ADD", memory=5),
        action(action="ADD", memory=["x"]),
        action(action="ADD", memory="x", importance=3),
        action(action="ADD", new_memory="x"),
        action(action="ADD", memory="x", old_memory="e1"),
        action(action="UPDATE", new_memory="x"),
        action(action="UPDATE", old_memory="", new_memory="x"),
        action(action="UPDATE", old_memory="e1", new_memory=" "),
        action(action="UPDATE", old_memory=1, new_memory="x"),
        action(action="UPDATE", old_memory=["e1"], new_memory="x"),
        action(action="MERGE", old_memories="e1", new_memory="x"),
        action(action="MERGE", old_memories=[], new_memory="x"),
        action(action="MERGE", old_memories=["e1"], new_memory="x"),
        action(action="MERGE", old_memories=["e1", "e1"], new_memory="x"),
    ],
)
def test_entry_answers_that_break_the_schema(answer):
    assert refusal(answer) is FailureKind.SCHEMA


@pytest.mark.parametrize(
    "answer",
    [
        {"operation": None},
        {"operation": "ADD", "memory": "x"},
        {"operation": "append", "content": "x"},
        {"operation": "APPEND"},
        {"operation": "APPEND", "content": ""},
        {"operation": "APPEND", "content": None},
        {"operation": "APPEND", "content": "x", "new_core_memory": "x"},
        {"operation": "REPLACE", "content": "the whole core"},
        {"operation": "REPLACE", "old_text": "x"},
        {"operation": "REPLACE", "old_text": "", "new_text": "x"},
        {"operation": "REPLACE", "old_text": "x", "new_text": ""},
        {"operation": "REPLACE", "old_text": "x", "quote": [1]},
        {"operation": "REWRITE", "quote": [1]},
        {"operation": "REWRITE", "content": "\n"},
        {"operation": "SKIP", "content": "x"},
        {"operation": "SKIP", "reason": None},
        {"operations": []},
        [{"operation": "SKIP"}],
    ],
)
def test_core_answers_that_break_the_schema(answer):
    assert refusal(answer, CORE) is FailureKind.SCHEMA


@pytest.mark.parametrize(
    "quote", [[], [0], [-1], [1, 1], [1, 1.0], [1.5], ["1"], [None], [True], "1", 1, {"1": 2}, [[1]], None]
)
def test_quotes_that_break_the_schema(quote):
    assert refusal({"operation": "APPEND", "quote": quote}, CORE) is FailureKind.SCHEMA
    assert refusal(action(action="ADD", quote=quote)) is FailureKind.SCHEMA


def test_a_quote_and_a_text_together_are_refused():
    assert refusal({"operation": "APPEND", "content": "x", "quote": [1]}, CORE) is FailureKind.SCHEMA
    assert refusal(action(action="ADD", memory="x", quote=[1])) is FailureKind.SCHEMA
    assert refusal(action(action="UPDATE", old_memory="e1", new_memory="x", quote=[1])) is FailureKind.SCHEMA
    assert refusal(action(action="MERGE", old_memories=["e1", "e2"], new_memory="x", quote=[1])) is FailureKind.SCHEMA


def test_quotes_reach_to_the_last_turn_and_not_beyond():
    assert read(json.dumps(action(action="ADD", quote=[3])), num_turns=3).operations[0].quote == (3,)
    assert refusal(action(action="ADD", quote=[1, 4]), num_turns=3) is FailureKind.UNKNOWN_TURN
    assert refusal({"operation": "APPEND", "quote": [4]}, CORE, num_turns=3) is FailureKind.UNKNOWN_TURN


def test_a_whole_number_written_as_a_float_is_that_turn():
    (operation,) = read('{"operations": [{"action": "ADD", "quote": [2.0]}]}').operations
    assert operation.quote == (2,) and type(operation.quote[0]) is int


def test_one_bad_operation_refuses_the_whole_answer():
    answer = {"operations": [{"action": "ADD", "memory": "good"}, {"action": "ADD", "memory": ""}]}
    assert refusal(answer) is FailureKind.SCHEMA


# Turn by turn


def test_turn_decisions_become_quotes():
    text = '{"#2": "add", "#3": "e2", "#4": "e1+e12"}'
    assert parse(text, EPISODIC, 4, TURNS).operations == (
        Operation(kind=OperationKind.ADD, quote=(2,)),
        Operation(kind=OperationKind.UPDATE, quote=(3,), targets=("e2",)),
        Operation(kind=OperationKind.MERGE, quote=(4,), targets=("e1", "e12")),
    )


def test_turn_decisions_of_core_append():
    assert parse('{"#1": "add"}', CORE, 2, TURNS).operations == (Operation(kind=OperationKind.APPEND, quote=(1,)),)


@pytest.mark.parametrize("agent", Agent)
def test_an_empty_object_is_valid(agent):
    assert parse("{}", agent, 2, TURNS) == NOTHING


@pytest.mark.parametrize(
    "answer",
    [
        {"#3": "add"},
        {"#1": "add", "#2": "add", "#3": "add"},
        {"#0": "add", "#1": "add"},
        {"#1": "add", "#02": "add"},
        {"1": "add", "2": "add"},
        {"#1": "skip"},
        {"#1": "add", "reason": "small talk"},
    ],
)
def test_turns_in_excess_and_odd_keys_are_refused(answer):
    assert refusal(answer, num_turns=2, fmt=TURNS) is FailureKind.SCHEMA


@pytest.mark.parametrize(
    "decision",
    ["", "Add", "add ", "add\n", "skip\n", "e1\n", "e", "e-1", "e1+", "e1 + e2", "e1,e2", "e\u0663", None, 1, True, []],
)
@pytest.mark.parametrize("agent", Agent)
def test_unknown_decisions_are_refused(agent, decision):
    assert refusal({"#1": "add", "#2": decision}, agent, 2, TURNS) is FailureKind.SCHEMA


def test_who_may_update_and_merge_by_turn():
    for agent, decision, allowed in [
        (CORE, "e1", False),
        (CORE, "e1+e2", False),
        (EPISODIC, "e1+e2+e3", True),
        (SEMANTIC, "e1", True),
        (SEMANTIC, "e1+e2", False),
        (PROCEDURAL, "e1", True),
        (PROCEDURAL, "e1+e2", False),
    ]:
        update = parse(json.dumps({"#1": decision}), agent, 1, TURNS)
        assert (update.failure is None) is allowed, (agent, decision)


def test_the_formats_do_not_mix():
    assert refusal('{"operations": []}', fmt=TURNS) is FailureKind.SCHEMA
    assert refusal('{"#1": "add", "#2": "add"}', fmt=OPERATIONS) is FailureKind.SCHEMA


@pytest.mark.parametrize("agent", Agent)
@pytest.mark.parametrize("fmt", ResponseFormat)
def test_schemas_are_json_schemas(agent, fmt):
    validator(agent, fmt, 2).check_schema(schema(agent, fmt, 2))


# Hostile text never raises


NESTED = {
    "lists": lambda depth: "[" * depth + "]" * depth,
    "objects": lambda depth: '{"operations":' * depth + "1" + "}" * depth,
    "operations": lambda depth: '{"operations":' + "[" * depth + "]" * depth + "}",
    "memory": lambda depth: '{"operations":[{"action":"ADD","memory":' + "[" * depth + "]" * depth + "}]}",
    "two equal quotes": lambda depth: (
        '{"operations":[{"action":"ADD","quote":[' + ",".join(["[" * depth + "]" * depth] * 2) + "]}]}"
    ),
}


@pytest.mark.parametrize("nested", NESTED.values(), ids=NESTED.keys())
def test_deep_nesting_is_refused_at_every_depth(nested):
    # from shallow over what the JSON reader takes and the validator does not, to what neither takes
    depths = [*range(2, 850, 40), *range(850, 1000, 2), 100_000]
    kinds = {refusal(nested(depth)) for depth in depths}
    assert kinds == {FailureKind.SCHEMA, FailureKind.NOT_JSON}


def test_huge_numbers_are_refused():
    quote = '{"operations": [{"action": "ADD", "quote": [%s]}]}'
    assert refusal(quote % ("9" * 4000)) is FailureKind.UNKNOWN_TURN
    assert refusal(quote % ("9" * 100_000)) is FailureKind.NOT_JSON  # beyond Python's limit of digits
    assert refusal(quote % "1e300") is FailureKind.UNKNOWN_TURN
    for number in ("1e400", "Infinity", "-Infinity", "NaN", "1e-5"):
        assert refusal(quote % number) is FailureKind.SCHEMA
    assert refusal({"#1": "e" + "9" * 5000}, CORE, 1, TURNS) is FailureKind.SCHEMA


def test_unicode_text_stays_as_it_is():
    text = "Zoë 🐈 خديجة \u202e 東京\u0000 e\u0301"
    for ensure_ascii in (True, False):
        answer = json.dumps(action(action="ADD", memory=text), ensure_ascii=ensure_ascii)
        assert read(answer).operations[0].text == text


def test_half_a_character_is_refused():
    assert refusal('{"operations": [{"action": "ADD", "memory": "cat \\ud83d"}]}') is FailureKind.NOT_JSON
    assert refusal('{"operation": "REWRITE", "content": "\udc08"}', CORE) is FailureKind.NOT_JSON
    assert read('{"operation": "REWRITE", "content": "\\ud83d\\udc08"}', CORE).operations[0].text == "🐈"


@pytest.mark.parametrize(
    "text",
    [
        "```json\n" + "\n" * 20_000 + "x",
        "```json\n" + " \n" * 20_000 + "x",
        "```" + " " * 20_000 + "x",
        "<think>" * 5_000,
    ],
)
def test_reading_takes_linear_time(text):
    began = time.process_time()
    assert refusal(text) is FailureKind.NOT_JSON
    assert time.process_time() - began < LINEAR


def test_random_damage_never_raises():
    rng = random.Random(0)
    pieces = [*'{}[]":,\\#+ \n0', "1", "e1", "null", "ADD", "quote", "```", "<think>", "\ud800", "é", "\x00"]
    for _ in range(2000):
        text = list(rng.choice([LIKES_TEA_JSON, '{"#1": "add", "#3": "e1"}', '{"operation": "SKIP"}']))
        for _ in range(rng.randint(1, 3)):
            text[rng.randrange(len(text))] = rng.choice(pieces)
        update = read("".join(text), rng.choice(list(Agent)), fmt=rng.choice(list(ResponseFormat)))
        assert isinstance(update, AgentUpdate)
        assert update.failure is None or update.operations == ()


# Writing, and reading back


NUM_TURNS, NUM_SHOWN = 9, 5
SHOWN = tuple(
    Entry(
        id=f"m{number + 20}",
        agent=EPISODIC,
        text=f"entry {number}",
        session=0,
        timestamp=datetime(2023, 5, 8),
        source_turns=(),
    )
    for number in range(1, NUM_SHOWN + 1)
)


def random_text(rng: random.Random) -> str:
    return "".join(rng.choice('aZ09 "\\\n{}é🐈`<>') for _ in range(rng.randint(0, 30))) + "x"


def random_source(rng: random.Random) -> dict:
    if rng.random() < 0.5:
        return {"text": random_text(rng)}
    return {"quote": tuple(rng.sample(range(1, NUM_TURNS + 1), rng.randint(1, 3)))}


def random_labels(rng: random.Random, count: int) -> tuple[str, ...]:
    return tuple(f"e{number}" for number in rng.sample(range(1, NUM_SHOWN + 1), count))


def random_core_update(rng: random.Random) -> AgentUpdate:
    kind = rng.choice([None, OperationKind.APPEND, OperationKind.REPLACE, OperationKind.REWRITE])
    if kind is None:
        return NOTHING
    if kind is OperationKind.APPEND:
        return AgentUpdate(operations=(Operation(kind=kind, **random_source(rng)),))
    old_text = random_text(rng) if kind is OperationKind.REPLACE else None
    return AgentUpdate(operations=(Operation(kind=kind, text=random_text(rng), old_text=old_text),))


def random_entry_operation(agent: Agent, rng: random.Random, source: dict) -> Operation:
    num_targets = rng.randint(0, 3 if agent is EPISODIC else 1)
    kind = (OperationKind.ADD, OperationKind.UPDATE, OperationKind.MERGE, OperationKind.MERGE)[num_targets]
    return Operation(kind=kind, targets=random_labels(rng, num_targets), **source)


@pytest.mark.parametrize("agent", Agent)
def test_reading_undoes_writing_operations(agent):
    rng = random.Random(f"operations-{agent}")
    for _ in range(200):
        if agent is CORE:
            update = random_core_update(rng)
        else:
            count = rng.randint(0, 4)
            update = AgentUpdate(
                operations=tuple(random_entry_operation(agent, rng, random_source(rng)) for _ in range(count))
            )
        text = render(update, agent, NUM_TURNS, SHOWN, OPERATIONS)
        assert parse(text, agent, NUM_TURNS, OPERATIONS) == update


@pytest.mark.parametrize("agent", Agent)
def test_reading_undoes_writing_turns(agent):
    rng = random.Random(f"turns-{agent}")
    for _ in range(200):
        numbers = sorted(rng.sample(range(1, NUM_TURNS + 1), rng.randint(0, NUM_TURNS)))
        if agent is CORE:
            operations = [Operation(kind=OperationKind.APPEND, quote=(number,)) for number in numbers]
        else:
            operations = [random_entry_operation(agent, rng, {"quote": (number,)}) for number in numbers]
        update = AgentUpdate(operations=tuple(operations))
        text = render(update, agent, NUM_TURNS, SHOWN, TURNS)
        assert parse(text, agent, NUM_TURNS, TURNS) == update


def test_written_answers_name_shown_entries_by_label():
    update = AgentUpdate(operations=(Operation(kind=OperationKind.UPDATE, quote=(1,), targets=("m22",)),))
    answer = '{"operations": [{"action": "UPDATE", "old_memory": "e2", "quote": [1]}]}'
    assert render(update, SEMANTIC, 2, SHOWN, OPERATIONS) == answer
    assert render(update, SEMANTIC, 2, SHOWN, TURNS) == '{"#1":"e2"}'


def test_a_core_answer_holds_the_operation_not_the_core_after_it():
    append = AgentUpdate(operations=(Operation(kind=OperationKind.APPEND, text="Ann has a cat."),))
    assert render(append, CORE, 1, (), OPERATIONS) == '{"operation": "APPEND", "content": "Ann has a cat."}'
    replace = AgentUpdate(operations=(Operation(kind=OperationKind.REPLACE, text="two cats", old_text="a cat"),))
    assert render(replace, CORE, 1, (), OPERATIONS) == (
        '{"operation": "REPLACE", "old_text": "a cat", "new_text": "two cats"}'
    )


def test_several_core_quotes_are_written_as_one_append():
    quotes = tuple(Operation(kind=OperationKind.APPEND, quote=(number,)) for number in (3, 1))
    text = render(AgentUpdate(operations=quotes), CORE, 3, (), OPERATIONS)
    assert text == '{"operation": "APPEND", "quote": [3, 1]}'


def test_an_entry_answer_holds_each_text_once_and_nothing_else():
    assert render(LIKES_TEA, EPISODIC, 1, (), OPERATIONS) == LIKES_TEA_JSON


@pytest.mark.parametrize(
    "agent, operations, fmt",
    [
        (EPISODIC, [Operation(kind=OperationKind.ADD, text="written")], TURNS),
        (EPISODIC, [Operation(kind=OperationKind.ADD, quote=(1, 2))], TURNS),
        (EPISODIC, [Operation(kind=OperationKind.ADD, quote=(4,))], TURNS),
        (EPISODIC, [Operation(kind=OperationKind.ADD, quote=(1,))] * 2, TURNS),
        (
            CORE,
            [Operation(kind=OperationKind.APPEND, text="a"), Operation(kind=OperationKind.APPEND, text="b")],
            OPERATIONS,
        ),
        (CORE, [Operation(kind=OperationKind.REWRITE, quote=(1,))], OPERATIONS),
        (CORE, [Operation(kind=OperationKind.REPLACE, old_text="a", quote=(1,))], OPERATIONS),
    ],
)
def test_what_a_format_cannot_say_is_not_written(agent, operations, fmt):
    with pytest.raises(ValueError):
        render(AgentUpdate(operations=tuple(operations)), agent, 3, (), fmt)
