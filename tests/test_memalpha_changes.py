"""Calls applied to a bank, against a small model of the memory that is written by hand."""

import json
import random
import re
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import pytest

from membuilder.bank.okapi import find_parts
from membuilder.bank.ranking import SearchMethod
from membuilder.bank.retrieve import related, retrieve
from membuilder.schemes.memalpha.scheme import WRITER
from membuilder.schemes.scheme import CallOutcome
from membuilder.types import Bank, CoreQuote
from tests.fakes import HashEmbedder
from tests.memalpha_chunks import LINES, answered, bank_of, call, calls_of, chunk, insert, outcomes, words, writer

CAT = ("semantic", "Ann has a cat.")


def texts(bank: Bank) -> dict[str, str]:
    return {entry.id: entry.text for entry in bank.current()}


def test_an_entry_of_its_own_words_and_one_of_lines():
    result = answered(writer(), insert(*CAT) + call("memory_insert", memory_type="episodic", lines=[1, 3]))
    own, quoted = result.bank.entries
    assert (own.id, own.agent, own.text, own.source_turns) == ("m1", "semantic", "Ann has a cat.", ())
    assert quoted.text == "[2024-01-01] Ann: Ann adopted a cat.\n[2024-01-01] Ann: Ann moved to Rome."
    assert (quoted.id, quoted.agent, quoted.source_turns, quoted.session) == ("m2", "episodic", ("C1:1", "C1:3"), 0)
    assert result.written == {WRITER: ("Ann has a cat.", quoted.text)}
    assert [(each.name, each.text, each.entry) for each in calls_of(result)] == [
        ("memory_insert", "Ann has a cat.", "m1"),
        ("memory_insert", quoted.text, "m2"),
    ]
    assert calls_of(result)[1].arguments == {"memory_type": "episodic_memory", "lines": [1, 3]}


def test_what_is_replaced_leaves_the_memory_and_stays_as_history():
    text = call("memory_update", memory_type="semantic", memory_id="m1", new_content="Ann has two cats.")
    result = answered(writer(), text, bank_of(CAT))
    assert texts(result.bank) == {"m2": "Ann has two cats."}
    assert [entry.id for entry in result.bank.entries] == ["m1", "m2"]
    assert result.bank.entries[1].supersedes == ("m1",) and result.bank.deleted == ("m1",)
    assert result.bank.memory_text() == ["Ann has two cats."]


def test_an_old_id_names_the_newest_version_until_the_answer_ends():
    first = call("memory_update", memory_type="semantic", memory_id="m1", new_content="Ann has two cats.")
    second = call("memory_update", memory_type="semantic", memory_id="[m1]", new_content="Ann has three cats.")
    gone = call("memory_delete", memory_type="semantic", memory_id="m1")
    result = answered(writer(), f"{first}{second}{gone}{gone}", bank_of(CAT))
    assert outcomes(result) == ["ran", "ran", "ran", "unknown_id"] and texts(result.bank) == {}
    assert result.bank.deleted == ("m1", "m2", "m3")
    after = answered(writer(), first, answered(writer(), first, bank_of(CAT)).bank)
    assert outcomes(after) == ["unknown_id"] and "no longer" in calls_of(after)[0].detail


def test_deleting_and_updating_an_unknown_id_fails():
    bank = bank_of(CAT, ("episodic", "2024-01-01: Ann ran."))
    for target in ("m3", "m", "1", "e1", "M1", "", "m1 "):
        text = call("memory_delete", memory_type="semantic", memory_id=target)
        expected = ["ran"] if target == "m1 " else ["unknown_id"]
        assert outcomes(answered(writer(), text, bank)) == expected, target
    other_part = call("memory_update", memory_type="semantic", memory_id="m2", new_content="a")
    result = answered(writer(), other_part, bank)
    assert outcomes(result) == ["unknown_id"] and "episodic" in calls_of(result)[0].detail and result.bank == bank


def test_an_entry_may_be_named_by_its_whole_text_and_two_that_say_the_same_are_ambiguous():
    bank = bank_of(
        CAT, ("semantic", "Ann  has\na dog."), ("semantic", "Ann has a dog."), ("episodic", "Ann has a cat.")
    )
    named = call("memory_delete", memory_type="semantic", memory_id="Ann has a cat.")
    assert list(texts(answered(writer(), named, bank).bank)) == ["m2", "m3", "m4"]
    dog = call("memory_delete", memory_type="semantic", memory_id="Ann has a dog.")
    assert outcomes(answered(writer(), dog, bank)) == ["ambiguous_id"]
    part = call("memory_delete", memory_type="semantic", memory_id="Ann has")
    assert outcomes(answered(writer(), part, bank)) == ["unknown_id"]


def test_an_exact_duplicate_is_refused_by_insert_and_update():
    """The published update never looked for duplicates."""
    bank = bank_of(CAT, ("semantic", "Ann has a dog."))
    twice = answered(writer(), insert(*CAT) + insert("episodic", CAT[1]), bank)
    assert outcomes(twice) == ["duplicate", "ran"] and twice.failures == {}
    for new in ("Ann has a cat.", "Ann has a dog."):
        text = call("memory_update", memory_type="semantic", memory_id="m2", new_content=new)
        assert outcomes(answered(writer(), text, bank)) == ["duplicate"]
    core = call("memory_update", memory_type="core", new_content="Ann.")
    assert outcomes(answered(writer(), core + core)) == ["ran", "duplicate"]
    again = call("memory_delete", memory_type="semantic", memory_id="m1") + insert(*CAT)
    assert outcomes(answered(writer(), again, bank)) == ["ran", "ran"]
    line = call("memory_insert", memory_type="semantic", lines=[1])
    assert outcomes(answered(writer(), line + line)) == ["ran", "duplicate"]


def test_only_a_duplicate_is_no_failure_of_the_answer():
    assert answered(writer(), insert(*CAT), bank_of(CAT)).failures == {}
    failure = answered(writer(), call("memory_delete", memory_type="semantic", memory_id="m7")).failures[WRITER]
    assert failure.kind == "unknown_target"


def test_a_core_over_the_limit_is_refused_with_its_length():
    text = call("memory_update", memory_type="core", new_content="one two three four five six")
    result = answered(writer(core_limit_tokens=5), text, bank_of(core="old"))
    assert outcomes(result) == ["core_limit"] and result.bank.core == "old"
    assert calls_of(result)[0].detail == "the core would have 6 tokens; it may have 5"
    assert answered(writer(core_limit_tokens=6), text).bank.core == "one two three four five six"


def test_the_published_cut_drops_words_from_the_end():
    text = call("memory_update", memory_type="core", new_content="one\ntwo  three four five six")
    scheme = writer(core_limit_tokens=5, core_over_limit="cut")
    result = answered(scheme, text)
    assert outcomes(result) == ["ran"] and result.bank.core == "one two three four [cut]"
    assert outcomes(answered(scheme, text, result.bank)) == ["duplicate"]
    # a tokenizer in which the note is longer than the limit
    costly = replace(scheme, count_tokens=lambda texts: 6 * words(texts))
    assert outcomes(answered(costly, text)) == ["core_limit"]


def test_the_core_is_replaced_as_a_whole_and_knows_what_it_quotes():
    lines = answered(writer(), call("memory_update", memory_type="core", lines=[1, 2]), bank_of(core="old"))
    assert lines.bank.core == "[2024-01-01] Ann: Ann adopted a cat.\n[2024-01-01] Ann: The cat is called Miso."
    assert lines.bank.core_sources == ("C1:1", "C1:2")
    kept = call("memory_update", memory_type="core", new_content="Ann: Ann adopted a cat. It is called Miso.")
    bank = answered(writer(), kept, lines.bank).bank
    assert bank.core_quotes == (CoreQuote(turn_id="C1:1", text="Ann: Ann adopted a cat."),)
    empty = answered(writer(), call("memory_delete", memory_type="core"), bank)
    assert (empty.bank.core, empty.bank.core_sources, empty.bank.entries) == ("", (), ())
    assert outcomes(answered(writer(), call("memory_delete", memory_type="core"), empty.bank)) == ["unknown_id"]


def test_ids_never_collide():
    """The published ids were four characters drawn without a look at those in use."""
    bank = bank_of(CAT)
    odd = replace(bank, entries=(replace(bank.entries[0], id="m2"), replace(bank.entries[0], id="m4", text="b")))
    text = "".join(insert("semantic", f"fact {number}") for number in range(4))
    ids = [entry.id for entry in answered(writer(), text, odd).bank.entries]
    assert ids == ["m2", "m4", "m3", "m5", "m6", "m7"]
    many = answered(writer(max_calls=1000), "".join(insert("semantic", f"fact {n}") for n in range(1000))).bank
    assert len({entry.id for entry in many.entries}) == 1000


def test_what_was_deleted_is_never_found():
    bank = bank_of(CAT, ("semantic", "Ann has a dog."), ("episodic", "Ann saw a cat."))
    gone = call("memory_delete", memory_type="semantic", memory_id="m1")
    gone += call("memory_update", memory_type="episodic", memory_id="m3", new_content="Ann saw a lynx.")
    bank, embedder, scheme = answered(writer(), gone, bank).bank, HashEmbedder(), writer()
    found = [
        *scheme.find(bank, ["Who has a cat?"], embedder, 10),
        *retrieve(bank, ["Who has a cat?"], embedder, 10),
        *find_parts(bank, ["Who has a cat?"], 10, SearchMethod.DENSE, None, words, embedder),
    ]
    assert [sorted(entry.id for entry in each.entries) for each in found] == [["m2", "m4"]] * 3
    assert [entry.id for entry in related(bank, chunk("a cat"), "semantic", embedder)] == ["m2"]
    assert bank.memory_text() == ["Ann has a dog.", "Ann saw a lynx."]


def test_the_writer_may_search_where_it_reads_what_was_found():
    scheme = writer(max_turns=3)
    asked = call("search_memory", memory_type="semantic", query="which cat", search_method="bm25")
    result = answered(scheme, asked + insert("episodic", "2024-01-01: Ann ran."), bank_of(CAT, ("semantic", "a dog")))
    assert outcomes(result) == ["ran", "ran"] and result.written[WRITER] == ("2024-01-01: Ann ran.",)
    told = [(each["role"], json.loads(each["content"])) for each in result.more[WRITER]]
    found = [{"memory_id": "m1", "content": "Ann has a cat."}]
    assert told == [
        ("tool", {"status": "ok", "search_method": "bm25", "results": found}),
        ("tool", {"status": "ok", "memory_id": "m3"}),
    ]
    assert answered(scheme, "Done").more == {} and answered(writer(), insert(*CAT)).more == {}
    refused = answered(scheme, call("memory_delete", memory_type="semantic", memory_id="m9")).more[WRITER]
    assert json.loads(refused[0]["content"])["status"] == "unknown_id"


def test_labels_of_the_compact_form_count_what_is_shown():
    bank = bank_of(CAT, ("episodic", "Ann ran."))
    scheme = writer(response_format="compact")
    result = answered(scheme, "<update>e1#2<delete>e2<done>", bank, shown=tuple(reversed(bank.entries)))
    assert [(entry.id, entry.agent, entry.supersedes) for entry in result.bank.current()] == [
        ("m3", "episodic", ("m2",))
    ]
    assert outcomes(answered(scheme, "<delete>e2<done>", bank, shown=bank.entries[:1])) == ["unknown_id"]
    # an id that is not shown as such names nothing, and a label names nothing where ids are shown
    labelled = call("memory_delete", memory_type="semantic", memory_id="e1")
    assert outcomes(answered(writer(), labelled, bank, shown=bank.entries)) == ["unknown_id"]


MAX_CALLS, CORE_WORDS = 6, 7


class Drawn(NamedTuple):
    """A call of one of the tools."""

    tool: str
    part: str
    text: str | None
    """What it stores, or searches for."""
    lines: tuple[int, ...] | None
    target: str | None


class Model:
    """The memory of the scheme by hand: a core, and entries as {id: text} in each part."""

    def __init__(self, may_search: bool) -> None:
        self.core, self.parts, self.number, self.newer = "", {"semantic": {}, "episodic": {}}, 0, {}
        self.may_search, self.found = may_search, []

    def answer(self, calls: list[Drawn], quotes: tuple[str, ...]) -> list[str]:
        """The outcome of each call about a chunk whose lines are quoted so."""
        self.newer, self.found = {}, []  # an old id is only good within its answer
        return [self.call(*each, quotes) if i < MAX_CALLS else "too_many_calls" for i, each in enumerate(calls)]

    def call(self, tool, part, text, lines, target, quotes) -> str:
        if tool == "search" and not self.may_search:
            return "unknown_tool"
        if part == "procedural" or (part == "core" and tool in ("insert", "search")):
            return "disabled_part" if part == "procedural" else "schema"
        if tool == "search":
            return self.search(part, text)
        if tool != "delete":
            if (text is None) == (lines is None) or text == "" or lines in ((), (2, 2)):
                return "schema"
            if part != "core" and tool == "update" and target is None:
                return "schema"
            if lines and max(lines) > len(quotes):
                return "unknown_turn"
            text = text or "\n".join(quotes[line - 1] for line in lines)
        if part == "core":
            return self.rewrite(text if tool == "update" else None)
        if tool == "insert":
            return self.store(part, text)
        if target is None:
            return "schema"
        entry = self.meant(part, target)
        if not entry.startswith("m"):
            return entry
        if tool == "delete":
            del self.parts[part][entry]
            return "ran"
        return self.store(part, text, entry)

    def search(self, part: str, query: str | None) -> str:
        if not query:
            return "schema"
        asked = set(re.findall(r"\w+", query.lower()))
        found = {name for name, text in self.parts[part].items() if asked & set(re.findall(r"\w+", text.lower()))}
        self.found.append(found)
        return "ran"

    def rewrite(self, text: str | None) -> str:
        if text is None:
            self.core, before = "", self.core
            return "ran" if before else "unknown_id"
        if len(text.split()) > CORE_WORDS:
            return "core_limit"
        self.core, before = text, self.core
        return "ran" if before != text else "duplicate"

    def meant(self, part: str, target: str) -> str:
        """The id of the entry that is named by its id or its whole text, or what is wrong with it."""
        while target in self.newer:
            target = self.newer[target]
        if re.fullmatch(r"m\d+", target) and int(target[1:]) <= self.number:
            return target if target in self.parts[part] else "unknown_id"
        same = [name for name, text in self.parts[part].items() if text.split() == target.split()]
        return same[0] if len(same) == 1 else "ambiguous_id" if same else "unknown_id"

    def store(self, part: str, text: str, replaced: str | None = None) -> str:
        if text in self.parts[part].values():
            return "duplicate"
        self.number += 1
        if replaced is not None:
            del self.parts[part][replaced]
            self.newer[replaced] = f"m{self.number}"
        self.parts[part][f"m{self.number}"] = text
        return "ran"


def drawn(rng: random.Random) -> Drawn:
    tool = rng.choices(["insert", "update", "delete", "search"], [6, 3, 3, 1])[0]
    part = rng.choices(["semantic", "episodic", "core", "procedural"], [8, 6, 3, 1])[0]
    alike = ["c d", "c  d", "c\nd"]
    text = rng.choice([None, "", "a", "b", *alike * 2, "m7", "Ann has a cat.", "1 2 3 4 5 6 7 8"])
    lines = rng.choices([None, (), (1,), (2, 3), (3, 2), (2, 2), (4,)], [16, 1, 2, 2, 1, 1, 1])[0]
    if lines and rng.random() < 0.8:
        text = None
    target = rng.choice([None, *(f"m{number}" for number in range(1, 9)), "[m2]", "a", *alike, "c d"])
    return Drawn(tool, part, text, lines, target)


def said(tool: str, part: str, text: str | None, lines: tuple[int, ...] | None, target: str | None) -> str:
    given = {
        "insert": {"content": text, "lines": lines},
        "update": {"new_content": text, "lines": lines, "memory_id": target},
        "delete": {"memory_id": target},
        "search": {"query": text},
    }[tool]
    name = "search_memory" if tool == "search" else f"memory_{tool}"
    return call(name, memory_type=part, **{key: value for key, value in given.items() if value is not None})


def compare(seed: int) -> Counter[str]:
    """Tell how often each outcome came."""
    rng, bank, told = random.Random(seed), Bank(), Counter()
    max_turns = rng.choice([1, 3])
    model = Model(may_search=max_turns > 1)
    scheme = writer(core_limit_tokens=CORE_WORDS, max_calls=MAX_CALLS, max_turns=max_turns)
    for number in range(rng.randint(1, 3)):
        calls = [drawn(rng) for _ in range(rng.randint(0, MAX_CALLS + 1))]
        expected = model.answer(
            [each._replace(target=each.target and each.target.strip("[]")) for each in calls],
            tuple(f"[2024-01-0{number + 1}] Ann: {line}" for line in LINES),
        )
        answer = "\n".join(said(*each) for each in calls)
        before, result = bank, answered(scheme, answer, bank, chunk(*LINES, number=number))
        bank = result.bank
        assert outcomes(result) == expected, (seed, answer)
        assert bank.core == model.core and bank.entries[: len(before.entries)] == before.entries, seed
        current = {part: {each.id: each.text for each in bank.current() if each.agent == part} for part in model.parts}
        assert current == model.parts, (seed, answer)
        assert set(bank.deleted) == {entry.id for entry in bank.entries} - {entry.id for entry in bank.current()}
        assert sorted(bank.memory_text()) == sorted([*filter(None, [bank.core]), *texts(bank).values()])
        results = [json.loads(each["content"]) for each in result.more.get(WRITER, ())]
        found = [{each["memory_id"] for each in reply["results"]} for reply in results if "results" in reply]
        assert found == model.found, (seed, answer)
        told.update(expected)
    return told


def test_random_calls_give_the_memory_of_the_model():
    told = sum((compare(seed) for seed in range(800)), Counter())
    assert set(told) == {str(outcome) for outcome in CallOutcome} - {"not_json"} and min(told.values()) > 5, told


@pytest.mark.slow
def test_20000_random_sequences_of_calls_give_the_memory_of_the_model():
    for seed in range(20_000):
        compare(seed)


def test_a_memory_of_50000_entries_takes_calls_in_good_time():
    bank = bank_of(*(("semantic", f"fact {number}") for number in range(50_000)))
    answer = "".join(call("memory_delete", memory_type="semantic", memory_id=f"m{n}") for n in range(1, 65))
    result = answered(writer(), answer, bank)
    assert outcomes(result) == ["ran"] * 64 and len(result.bank.current()) == 49_936
