"""The offline expert: each agent's share, updates and merges, limits, and its worth on real dialogue."""

import json
import os
import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from membuilder.schemes.four_agents.apply import apply_session
from membuilder.schemes.four_agents.rules import propose
from membuilder.types import Agent, AgentUpdate, Bank, Entry, Operation, OperationKind, Session, Turn

DATA = Path(os.environ.get("MEMBUILDER_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
NOTHING_SHOWN = {agent: () for agent in Agent}


def session(*said: tuple[str, str], caption: str | None = None) -> Session:
    """Turns D3:1, D3:2, ... from (speaker, text); the caption belongs to the last of them."""
    turns = [Turn(id=f"D3:{n}", speaker=who, role="user", text=text) for n, (who, text) in enumerate(said, start=1)]
    turns[-1] = replace(turns[-1], caption=caption)
    return Session(id="D3", index=2, timestamp=datetime(2024, 2, 10, 9, 30), turns=tuple(turns))


def ann(*texts: str) -> Session:
    return session(*[("Ann", text) for text in texts])


def entry(entry_id: str, text: str, agent: Agent = Agent.EPISODIC) -> Entry:
    return Entry(id=entry_id, agent=agent, text=text, session=0, timestamp=datetime(2024, 1, 2), source_turns=("D1:1",))


def proposed(dialogue_session: Session, bank: Bank | None = None, **shown: tuple[Entry, ...]) -> dict:
    """Agent -> operations, of the agents that do anything."""
    entries = NOTHING_SHOWN | {Agent(name): found for name, found in shown.items()}
    updates = propose(dialogue_session, bank or Bank(), entries)
    assert list(updates) == list(Agent)
    assert all(update.failure is None for update in updates.values())
    return {agent: update.operations for agent, update in updates.items() if update.operations}


def add(*numbers: int) -> tuple[Operation, ...]:
    return tuple(Operation(kind=OperationKind.ADD, quote=(number,)) for number in numbers)


def append(*numbers: int) -> tuple[Operation, ...]:
    return tuple(Operation(kind=OperationKind.APPEND, quote=(number,)) for number in numbers)


@pytest.mark.parametrize(
    ("text", "agent"),
    [
        ("My name is Ann and I'm a nurse from Leeds.", Agent.CORE),
        ("My sister Vesna teaches Latin in Oslo.", Agent.CORE),
        ("We have two dogs, and I'm allergic to walnuts.", Agent.CORE),
        ("I grew up in Tartu, next to the harbour.", Agent.CORE),
        ("First soak the beans overnight, then simmer them for two hours.", Agent.PROCEDURAL),
        ("Every morning I row on the river and then stretch with my coach.", Agent.PROCEDURAL),
        ("The trick is cold butter: knead it quickly and chill the dough.", Agent.PROCEDURAL),
        ("Last Friday I visited the Prado with two colleagues.", Agent.EPISODIC),
        ("My sister Vesna and I went sailing near Split last June.", Agent.EPISODIC),
        ("I started yesterday and now I'm a teacher in Bonn.", Agent.EPISODIC),
        ("First I packed the tent, then we hiked to the Triglav hut.", Agent.EPISODIC),
        ("I'm hosting a chess evening on Saturday at the library.", Agent.EPISODIC),
        ("I love Georgian wine, above all Saperavi from Kakheti.", Agent.SEMANTIC),
        ("My bicycle is a green Bianchi with a leather saddle.", Agent.SEMANTIC),
    ],
)
def test_each_agent_gets_its_kind_of_turn(text, agent):
    assert proposed(ann(text)) == {agent: append(1) if agent is Agent.CORE else add(1)}


def test_a_long_turn_is_no_core_fact():
    padding = " while in Gothenburg and Malmö and the Kalmar plant it is so and so" * 3
    assert proposed(ann("I work as a welder for Scania.")) == {Agent.CORE: append(1)}
    assert proposed(ann(f"I work as a welder for Scania{padding}.")) == {Agent.SEMANTIC: add(1)}  # 49 words


def test_small_talk_is_not_stored():
    chat = session(
        ("Ann", "Hi Bob! How are you doing?"),
        ("Bob", "Hey Ann, great, thanks! And you?"),
        ("Ann", "Good, good. Thanks for asking!"),
        ("Bob", "Wow, that's awesome! You should be so proud."),
        ("Ann", "Thank you, your support means a lot to me."),
        ("Bob", "What did you do next?"),
        ("Ann", "Haha, let's talk soon. Bye!"),
    )
    assert proposed(chat) == {}


def test_an_empty_session_is_not_stored():
    assert proposed(Session(id="D1", index=0, timestamp=datetime(2024, 1, 1), turns=())) == {}


def test_a_mixed_session_goes_to_all_agents_and_no_turn_to_two():
    talk = session(
        ("Ann", "Hey Bob, how was your week?"),
        ("Bob", "Last Tuesday I finished the Bergen marathon."),
        ("Ann", "Wow, congrats!"),
        ("Bob", "I work as a welder for Scania."),
        ("Ann", "I prefer swimming, and my favourite pool is the old Hallenbad."),
        ("Bob", "First warm up, then swim ten lengths, and finally stretch."),
    )
    assert proposed(talk) == {
        Agent.CORE: append(4),
        Agent.EPISODIC: add(2),
        Agent.SEMANTIC: add(5),
        Agent.PROCEDURAL: add(6),
    }


def test_what_was_already_said_in_the_session_counts_less():
    text = "The canoe needs varnish, rope, paddles, cushions, straps, anchors and a whistle plus a Garmin."
    assert proposed(ann(text)) == {Agent.SEMANTIC: add(1)}
    assert proposed(ann(text, text)) == {Agent.SEMANTIC: add(1)}


DENTIST = entry("m7", "[2024-01-02] Ann: I have a dentist appointment with Dr Okafor on Tuesday.")
POSTPONED = "The dentist appointment is postponed to Friday."


def test_a_change_updates_the_shown_entry_it_is_about():
    concert = entry("m8", "[2024-01-02] Ann: I have tickets for the opera.")
    update = Operation(kind=OperationKind.UPDATE, quote=(1,), targets=("m7",))
    assert proposed(ann(POSTPONED), episodic=(concert, DENTIST)) == {Agent.EPISODIC: (update,)}


def test_a_change_goes_to_the_agent_that_holds_the_entry():
    diet = entry("m3", "Ann eats fish tacos for lunch.", Agent.SEMANTIC)
    update = Operation(kind=OperationKind.UPDATE, quote=(1,), targets=("m3",))
    assert proposed(ann("I no longer eat fish tacos."), semantic=(diet,)) == {Agent.SEMANTIC: (update,)}


def test_the_speakers_name_does_not_count_as_subject():
    diet = entry("m3", "Ann eats fish tacos, rice.", Agent.SEMANTIC)  # 2 of 4 words in common; of 5 would be too few
    update = Operation(kind=OperationKind.UPDATE, quote=(1,), targets=("m3",))
    turn = ann("I no longer cook or order fish tacos for parties.")
    assert proposed(turn, semantic=(diet,)) == {Agent.SEMANTIC: (update,)}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("The dentist appointment is at nine on Friday.", DENTIST),  # nothing changes
        ("The picnic is postponed to Friday.", DENTIST),  # something else changes
        (POSTPONED, replace(DENTIST, text=DENTIST.text.replace("Ann", "Bob"))),  # somebody else's
        (POSTPONED, replace(DENTIST, text="[2024-01-02] Bob: Ann, I have a dentist appointment.")),  # told to her
        ("The dentist is postponed.", DENTIST),  # one common word is too few
        ("Exams are postponed from Friday to Sunday.", replace(DENTIST, text="Ann sings on Friday and Sunday.")),
    ],
)
def test_no_update_without_a_change_of_the_same_speakers_subject(text, shown):
    operations = proposed(ann(text), episodic=(shown,))
    assert all(operation.targets == () for chosen in operations.values() for operation in chosen)


def test_without_shown_entries_a_bare_change_is_too_little_to_store():
    assert proposed(ann(POSTPONED)) == {Agent.EPISODIC: add(1)}
    assert proposed(ann("The dentist is postponed.")) == {}


def test_an_entry_is_updated_once():
    again = "Now the dentist appointment is cancelled."
    operations = proposed(ann(POSTPONED, again), episodic=(DENTIST,))
    assert [operation.targets for operation in operations[Agent.EPISODIC]] == [("m7",)]
    outdated = Bank(entries=(DENTIST, replace(DENTIST, id="m8", supersedes=("m7",))))
    operations = proposed(ann(POSTPONED), outdated, episodic=(DENTIST,))
    assert operations == {Agent.EPISODIC: add(1)}


CARVING = entry("m1", "[2024-01-02] Ann: I started carving an oak chess set for my uncle.")
SANDING = entry("m2", "[2024-01-09] Ann: I sanded the oak chess set and carved the bishops.")
DONE = "Yesterday I finally finished the oak chess set, carving the queen last."


def test_a_continued_event_merges_the_two_entries_on_it():
    other = entry("m5", "[2024-01-09] Ann: I visited the oak woods of Sussex.")
    merge = Operation(kind=OperationKind.MERGE, quote=(1,), targets=("m1", "m2"))
    assert proposed(ann(DONE), episodic=(other, CARVING, SANDING)) == {Agent.EPISODIC: (merge,)}


@pytest.mark.parametrize(
    "text",
    [
        "I photographed a queen while carving.",  # shares words with the turn, but other ones than the first entry
        "I packed the oak chess board, jumpers, boots, maps, tea, soap, rope and matches.",  # 2 of 8 words in common
    ],
)
def test_entries_on_two_events_are_not_merged(text):
    shown = (CARVING, replace(SANDING, text=f"[2024-01-09] Ann: {text}"))
    assert proposed(ann(DONE), episodic=shown) == {Agent.EPISODIC: add(1)}


def test_one_entry_on_an_event_or_no_word_of_continuation_is_no_merge():
    assert proposed(ann(DONE), episodic=(CARVING,)) == {Agent.EPISODIC: add(1)}
    shown = (CARVING, SANDING)
    assert proposed(ann("Yesterday I painted the oak chess set, the queen last."), episodic=shown) == {
        Agent.EPISODIC: add(1)
    }


JOB = "I work as a welder for Scania."  # stored as "[2024-02-10] Ann: I work as a welder for Scania.", 48 characters


def test_core_takes_a_turn_up_to_the_limit_and_then_it_is_semantic():
    full, too_full = Bank(core="x" * (4999 - 48)), Bank(core="x" * (5000 - 48))
    assert proposed(ann(JOB), full) == {Agent.CORE: append(1)}
    assert proposed(ann(JOB), too_full) == {Agent.SEMANTIC: add(1)}
    applied = apply_session(full, ann(JOB), propose(ann(JOB), full, NOTHING_SHOWN), NOTHING_SHOWN)
    assert (applied.failures, len(applied.bank.core)) == ({}, 5000)


def test_core_counts_what_the_same_session_appended():
    almost_full = Bank(core="x" * 4930)  # 48 or 58 more fit, both do not
    operations = proposed(ann(JOB, "I grew up in Tartu, next to the harbour."), almost_full)
    assert operations == {Agent.CORE: append(1), Agent.SEMANTIC: add(2)}


def test_the_same_input_gives_the_same_operations():
    talk, shown = ann(DONE, POSTPONED, JOB), NOTHING_SHOWN | {Agent.EPISODIC: (CARVING, SANDING, DENTIST)}
    first = propose(talk, Bank(), shown)
    assert first == propose(talk, Bank(), shown)
    assert first[Agent.PROCEDURAL] == AgentUpdate()


def locomo_conversations(*names: str) -> list[tuple[list[Session], set[str]]]:
    """Per conversation its sessions and the turns that questions of category 1 to 4 cite."""
    path = DATA / "locomo" / "locomo10-dev.json"
    if not path.exists():
        pytest.skip(f"benchmark file {path} is absent; point MEMBUILDER_DATA at the data folder")
    found = []
    for record in json.loads(path.read_text(encoding="utf-8")):
        if record["sample_id"] not in names:
            continue
        talk = record["conversation"]
        numbers = sorted(int(key[8:]) for key in talk if re.fullmatch(r"session_\d+", key))
        sessions = [
            Session(
                id=f"D{number}",
                index=index,
                timestamp=datetime(2023, 1, 1),
                turns=tuple(
                    Turn(
                        id=turn["dia_id"],
                        speaker=turn["speaker"],
                        role="user",
                        text=turn["text"],
                        caption=turn.get("blip_caption"),
                    )
                    for turn in talk[f"session_{number}"]
                ),
            )
            for index, number in enumerate(numbers)
        ]
        cited = {turn_id for asked in record["qa"] if asked["category"] < 5 for turn_id in asked["evidence"]}
        found.append((sessions, cited & {turn.id for one in sessions for turn in one.turns}))
    return found


@pytest.mark.parametrize(
    "names",
    [("conv-26", "conv-30", "conv-41", "conv-42"), ("conv-43", "conv-44", "conv-47")],
    ids=["tuned on", "unseen"],
)
def test_real_dialogue_keeps_a_quarter_of_turns_and_most_evidence(names):
    num_turns = num_kept = num_evidence = num_evidence_kept = 0
    for sessions, evidence in locomo_conversations(*names):
        kept = []
        for one in sessions:
            for operations in proposed(one).values():
                kept += [one.turns[number - 1].id for operation in operations for number in operation.quote]
        assert len(kept) == len(set(kept))
        num_turns += sum(len(one.turns) for one in sessions)
        num_kept += len(kept)
        num_evidence += len(evidence)
        num_evidence_kept += len(evidence & set(kept))
    assert 0.22 < num_kept / num_turns < 0.32
    assert 0.60 < num_evidence_kept / num_evidence < 0.80
