"""The benchmark's teacher in its own words, and what is made of its answers (the whole part: test_real_model.py)."""

import asyncio
import json
import time
from collections import Counter
from dataclasses import replace
from datetime import datetime

import pytest

from membuilder.datasets.custom import parse as parse_custom
from membuilder.datasets.windows import in_windows
from membuilder.generate.dialogue import generate
from membuilder.schemes.four_agents.operations import parse
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.four_agents.schemas import ResponseFormat
from membuilder.schemes.four_agents.scheme import FourAgents
from membuilder.schemes.scheme import build
from membuilder.trajectories.records import SFTRecord, sft_records
from membuilder.trajectories.trajectory import ExpertStep, Trajectory
from membuilder.types import Agent, Bank, Entry, OperationKind, Session, Turn
from tests.benchmarks.common import train_until
from tests.benchmarks.own_words import as_asked, balanced, custom_line
from tests.benchmarks.side_by_side import INVALID, NOTHING, actions, are_said, side_by_side
from tests.benchmarks.teacher import answer, reply, third_person
from tests.fakes import HashEmbedder
from tests.fault_server import FaultServer, answering
from tests.scripted import ScriptedModel

FULL, COMPACT = FourAgents(PromptConfig()), PromptConfig(template_set="compact", entries_shown=0)
SKIP = '{"operation": "SKIP"}'
SILENT = '{"operations": []}'


@pytest.mark.parametrize(
    ("text", "noted"),
    [
        ("By the way, my nose is broken, it hurts a bit.", "Ann's nose is broken; it hurts a bit."),
        ("I'm from Oslo and I've got two cats.", "Ann is from Oslo and they have got two cats."),
        ("You know what? I sold my old van last week.", "Ann sold their old van last week."),
        ("I have to call the dentist.", "Ann has to call the dentist."),
        ("I never carry cash, I go to Dr Wexler.", "Ann never carries cash; they go to Dr Wexler."),
        ("I clean the fuse and wait ten minutes.", "Ann cleans the fuse and waits ten minutes."),
        ("I need new tyres.", "Ann needs new tyres."),
        ("I almost slipped.", "Ann almost slipped."),
        ("We danced to Neon Harbour at our wedding.", "Ann and others danced to Neon Harbour at their wedding."),
        ("My sister lives with us.", "Ann's sister lives with them."),
        ("I cannot swim!", "Ann cannot swim."),
        ("Anna told the same joke again on Monday.", "Anna told the same joke again on Monday, says Ann."),
        ("You can find my parents on Harbour Street.", "Ben can find Ann's parents on Harbour Street."),
        ("I am also, so to say, a nurse.", "Ann is also, so to say, a nurse."),
        ("You are right, I don't eat meat.", "Ben is right, Ann doesn't eat meat."),
        ("How was your week? I moved to Riga.", "Ann moved to Riga."),
        ("That is so typical. I went to Peru last May.", "Ann went to Peru last May."),
        ("Who knows?", "Who knows, says Ann."),
    ],
)  # fmt: skip
def test_a_turn_is_noted_in_the_third_person(text, noted):
    assert third_person(text, "Ann", "Ben") == noted


def session(*texts: str) -> Session:
    turns = tuple(
        Turn(id=f"D1:{n}", speaker=("Ann", "Ben")[(n - 1) % 2], role="user", text=text)
        for n, text in enumerate(texts, start=1)
    )
    return Session(id="D1", index=0, timestamp=datetime(2023, 5, 8, 13, 56), turns=turns)


def entry(agent: Agent, text: str) -> Entry:
    return Entry(id="m7", agent=agent, text=text, session=0, timestamp=datetime(2023, 1, 1), source_turns=())


def asked(agent: Agent, said: Session, *entries: Entry, core: str = "") -> dict:
    return json.loads(answer(FULL.ask(agent, said, Bank(core=core, entries=entries), {agent: entries})))


def test_each_agent_stores_its_own_kind_and_nothing_that_stands_there():
    talk = session("By the way, my spouse Ulla works as a nurse.", "I ran my first half marathon four days ago.")
    assert asked(Agent.CORE, talk) == {"operation": "APPEND", "content": "Ann's spouse Ulla works as a nurse."}
    assert asked(Agent.CORE, talk, core="Ann's spouse Ulla works as a nurse.") == {"operation": "SKIP"}
    noted = "2023-05-08: Ben ran their first half marathon four days ago."
    assert asked(Agent.EPISODIC, talk) == {"operations": [{"action": "ADD", "memory": noted}]}
    told_before = entry(Agent.EPISODIC, "2023-05-01: Ben ran their first half marathon four days ago.")
    assert asked(Agent.EPISODIC, talk, told_before) == {"operations": []}
    assert asked(Agent.SEMANTIC, talk) == {"operations": []}


def test_what_has_changed_updates_the_entry_that_shows_it():
    before = entry(Agent.SEMANTIC, "Ann gets around in a pickup truck.")
    other = entry(Agent.SEMANTIC, "Ben's favourite film is Silent Canyon.")
    talk = session("I replaced my old pickup truck, I get around in a hybrid now.")
    (operation,) = asked(Agent.SEMANTIC, talk, other, before)["operations"]
    assert operation["action"] == "UPDATE" and operation["old_memory"] == "e2"
    assert operation["new_memory"] == "Ann replaced their old pickup truck; they get around in a hybrid now."


def test_the_teacher_is_a_server_whose_answers_about_any_generated_talk_are_valid():
    prompts: list[tuple[Agent, int, str]] = []
    for dialogue in generate(2, 5, "train"):
        for said in dialogue.sessions:
            shown = {agent: () for agent in Agent}
            prompts += [(agent, len(said.turns), FULL.ask(agent, said, Bank(), shown)) for agent in Agent]
    texts = [answer(prompt) for _, _, prompt in prompts]
    updates = [
        parse(text, agent, number, ResponseFormat.OPERATIONS)
        for text, (agent, number, _) in zip(texts, prompts, strict=True)
    ]
    operations = [operation for update in updates for operation in update.operations]
    assert all(update.failure is None for update in updates)
    assert len(operations) > 30 and all(each.text and not each.quote for each in operations)
    assert not any(f" {word} " in f" {each.text.lower()} " for each in operations for word in ("i", "my", "our", "you"))

    from membuilder.llm.chat_model import Role
    from membuilder.llm.client import ChatClient
    from membuilder.llm.costs import Costs
    from membuilder.llm.endpoints import ModelAccess, ModelEndpoint, Provider
    from membuilder.llm.usage import Usage

    async def ask(base_url: str) -> list[str]:
        endpoint = ModelEndpoint(name="teacher", provider=Provider.VLLM, base_url=base_url)
        async with ChatClient(ModelAccess(endpoint=endpoint), Role.EXPERT, Costs(usage=Usage())) as client:
            return [await client.complete([{"role": "user", "content": text}]) for text in (prompts[1][2], "ready?")]

    with FaultServer(answering(reply)) as server:
        assert asyncio.run(ask(server.base_url)) == [texts[1], "ok"]


@pytest.fixture(scope="module")
def trajectory() -> Trajectory:
    """What the teacher makes, in this process, of one generated dialogue in whose end something has changed."""
    dialogue = in_windows(generate(1, 1, "train")[0], 3)
    end = len(dialogue.sessions)
    told = (
        "My only vehicle is a pickup truck, I bought it two years ago in Oslo.",
        "I sold my old pickup truck, I bought a hybrid in Oslo.",
    )
    later = tuple(replace(session(text), id=f"E{n}", index=end + n) for n, text in enumerate(told))
    dialogue = replace(dialogue, sessions=(*dialogue.sessions, *later))
    model = ScriptedModel(lambda _, prompt: answer(prompt))

    def propose(said, bank, shown):
        texts = {
            agent: asyncio.run(model.complete([{"content": FULL.ask(agent, said, bank, shown)}])) for agent in Agent
        }
        return {agent: FULL.parse(agent, text, said) for agent, text in texts.items()}

    from membuilder.bank.store_rows import Answer

    steps = [
        ExpertStep(step=step, answers={agent: Answer(text="", operations=step.updates[agent].operations)
                                       for agent in Agent})
        for step in build(dialogue, propose, FULL, HashEmbedder())
    ]  # fmt: skip
    return Trajectory(
        dialogue=dialogue.id,
        speakers=dialogue.speakers,
        expert="teacher",
        temperature=None,
        scheme=FULL,
        steps=tuple(steps),
    )


def test_training_asks_by_short_prompts_that_show_nothing_so_that_nothing_is_updated(trajectory):
    def updates(each: Trajectory) -> int:
        changes = [o for step in each.steps for u in step.step.updates.values() for o in u.operations]
        return sum(operation.kind is OperationKind.UPDATE for operation in changes)

    asked = as_asked(trajectory, COMPACT)
    assert updates(trajectory) > 0 and updates(asked) == 0
    records, left_out = sft_records(asked)
    assert not left_out and len(records) == 4 * len(trajectory.steps)
    scheme = FourAgents(COMPACT)
    for record in records[4 * 10 : 4 * 11]:
        said = trajectory.steps[10].step.session
        assert record.prompt == scheme.ask(
            record.agent, said, trajectory.steps[10].step.bank_before, {record.agent: ()}
        )
    texts = [step.step.result.written[agent] for step in trajectory.steps for agent in Agent]
    assert [parse(r.completion, r.agent, 3, ResponseFormat.OPERATIONS).operations for r in records] == [
        tuple(o for o in step.step.updates[agent].operations) for step in asked.steps for agent in Agent
    ]
    assert sum(map(len, texts)) == sum(len(u.operations) for s in asked.steps for u in s.step.updates.values())
    kept = replace(COMPACT, entries_shown=20)
    assert updates(as_asked(trajectory, kept)) == updates(trajectory)


def record(session: int, agent: Agent, completion: str) -> SFTRecord:
    return SFTRecord(prompt=f"{session}", completion=completion, agent=agent, dialogue="d", session=session)


def test_each_agent_is_shown_storing_in_at_least_half_of_its_answers():
    adds = '{"operations": [{"action": "ADD", "memory": "Ann has a cat."}]}'
    records = []
    for number in range(400):
        told = {Agent.EPISODIC: adds, Agent.SEMANTIC: adds if number % 4 == 0 else SILENT} if number % 2 == 0 else {}
        for agent in Agent:
            records.append(record(number, agent, told.get(agent, SKIP if agent is Agent.CORE else SILENT)))
    kept = balanced(records, 1)
    assert kept == balanced(records, 1) != balanced(records, 2) and kept == [each for each in records if each in kept]
    assert [each for each in records if each.completion == adds] == [each for each in kept if each.completion == adds]
    counts = Counter((each.agent, each.completion == adds) for each in kept)
    assert counts == {(Agent.EPISODIC, True): 200, (Agent.EPISODIC, False): 200,
                      (Agent.SEMANTIC, True): 100, (Agent.SEMANTIC, False): 100}  # fmt: skip
    assert {each.session % 2 for each in kept if each.agent is Agent.SEMANTIC and each.completion != adds} == {0, 1}
    assert balanced(records[:1], 1) == []


def test_answers_are_counted_and_laid_beside_the_teachers(trajectory):
    names = [f"{trajectory.dialogue}/{number}" for number in range(len(trajectory.steps))]
    silent = {agent.value: SKIP if agent is Agent.CORE else SILENT for agent in Agent}
    answered = dict.fromkeys(names, silent)
    same = {
        name: {agent.value: trajectory.target(number, agent)[0] for agent in Agent} for number, name in enumerate(names)
    }
    by_teacher = side_by_side(same, [trajectory], 1)
    assert by_teacher["operations"]["model"] == by_teacher["operations"]["teacher"]
    assert by_teacher["same_as_teacher"] == 1 and set(by_teacher["windows_stored_by"]) == {"both", "nobody"}
    assert len(by_teacher["samples"]) == min(20, by_teacher["windows_stored_by"]["both"])
    assert 0.9 < by_teacher["words_found_in_window"] <= 1

    told = next(n for n, step in enumerate(trajectory.steps) if any(step.step.result.written.values()))
    invented = '{"operations": [{"action": "ADD", "memory": "Zebras swim."}]}'
    answered[names[told]] = silent | {"episodic": invented, "core": "no"}
    found = side_by_side(answered, [trajectory], 1)
    assert found["operations"]["model"]["episodic ADD"] == found["operations"]["model"][f"core {INVALID}"] == 1
    assert found["operations"]["model"][f"semantic {NOTHING}"] == len(names)
    assert found["same_as_teacher"] == found["words_found_in_window"] == 0
    assert found["windows_stored_by"]["both"] == 1 and found["windows_stored_by"].get("model alone") is None
    (sample,) = [each for each in found["samples"] if each["window"] == names[told]]
    assert sample["model"] == {"episodic": "Zebras swim."} and sample["teacher"]
    assert sample["said"][0] == f"{trajectory.steps[told].step.session.timestamp:%Y-%m-%d}"


def test_an_action_is_named_and_a_made_up_word_is_seen():
    assert actions("core", '{"operation": "APPEND", "content": "x"}') == ["APPEND"]
    assert actions("episodic", '{"operations": [{"action": "UPDATE", "old_memory": "e1", "new_memory": "x"}]}') == [
        "UPDATE"
    ]
    assert actions("semantic", SILENT) == [NOTHING] and actions("semantic", "I think") == [INVALID]
    assert are_said("Ann lost a purple umbrella.", ["Ann: I lost my umbrella."]) == [True, True, False, True]


def test_the_expert_reads_the_dialogues_as_they_were_generated():
    dialogue = generate(1, 1, "heldout")[0]
    (read,) = parse_custom([(1, json.loads(json.dumps(custom_line(dialogue))))], "file")
    assert replace(dialogue, questions=()) == read


def test_a_training_is_ended_with_the_steps_it_has_made(tmp_path):
    """It stops as an interrupted training does, and is run again for as many steps as its checkpoints hold."""
    (tmp_path / "checkpoints/step_20").mkdir(parents=True)
    (tmp_path / "checkpoints/step_3").mkdir()
    program = tmp_path / "program.py"
    program.write_text(
        "import pathlib, signal, sys, time\n"
        f"log = pathlib.Path({str(tmp_path / 'log')!r})\n"
        "log.write_text(log.read_text() + ' '.join(sys.argv[1:]) + ';' if log.exists() else ';')\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "time.sleep(0 if len(sys.argv) > 1 else 60)\n"
    )
    import sys

    train_until([sys.executable, str(program)], time.monotonic() + 3, tmp_path, "max_steps")
    assert (tmp_path / "log").read_text() == ";max_steps=20;"
    with pytest.raises(SystemExit, match="failed"):
        train_until([sys.executable, "-c", "raise SystemExit(3)"], float("inf"), tmp_path, "max_steps")
