"""Training data: what is in a record and what is not, every shape read back to the same records, the published
examples.
"""

import json
import os
import random
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from membuilder import prepare
from membuilder.bank.store import reading
from membuilder.datasets.load import load
from membuilder.datasets.parquet import read_table, write_table
from membuilder.errors import DataError
from membuilder.schemes.four_agents.operations import parse
from membuilder.schemes.four_agents.schemas import ResponseFormat
from membuilder.trajectories.published_formats import (
    _GROUPED,
    read_llama_factory,
    read_verl,
    write_llama_factory,
    write_verl,
)
from membuilder.trajectories.records import (
    RLRecord,
    SFTRecord,
    read_question_lines,
    read_records,
    rl_records,
    sft_records,
    write_records,
)
from membuilder.trajectories.trajectory import QA_FILE, Trajectory, read_trajectory
from membuilder.types import Agent
from tests.scripted import store_first_turn, talk
from tests.test_expert import THREE, make
from tests.test_qa_generation import Scripted, keep_all, sample, two_questions

DATA = Path(os.environ.get("MEMBUILDER_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
EXAMPLES = DATA / "membuilder"
needs_examples = pytest.mark.skipif(
    not EXAMPLES.is_dir(), reason=f"no published examples at {EXAMPLES}; set MEMBUILDER_DATA"
)
CORE, EPISODIC, SEMANTIC, PROCEDURAL = Agent
NOTHING = '{"operations": []}'
SKIP = {CORE: '{"operation": "SKIP"}', EPISODIC: NOTHING, PROCEDURAL: NOTHING}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two trajectories with questions."""
    root = tmp_path_factory.mktemp("trajectories")
    for dialogue in (THREE, talk(["I bake rye."], ["Bread again."], name="e")):
        sample(make(root / "set" / dialogue.id, dialogue, keep_all), Scripted(two_questions))
    return root


def trajectory(folder: Path) -> Trajectory:
    with reading(folder / "memory.db") as store:
        return read_trajectory(store)


@pytest.fixture(scope="module")
def sft(folder) -> list[SFTRecord]:
    return sft_records(trajectory(folder / "set" / "d"))[0]


@pytest.fixture(scope="module")
def rl(folder) -> list[RLRecord]:
    found = []
    for name in "de":
        each = trajectory(folder / "set" / name)
        found += rl_records(each, read_question_lines(folder / "set" / name / QA_FILE, each), f"set/{name}")[0]
    return found


# What is a record


def test_a_core_target_holds_only_what_is_appended(sft):
    core = [record for record in sft if record.agent is CORE]
    assert [record.completion for record in core] == [
        f'{{"operation": "APPEND", "content": "{count} turns"}}' for count in (2, 1, 3)
    ]
    assert "2 turns\n1 turns" in core[2].prompt


def test_an_entry_target_holds_the_operations_and_each_text_once(sft):
    second = next(record for record in sft if record.agent is EPISODIC and record.session == 1)
    assert second.completion == '{"operations": [{"action": "ADD", "quote": [1]}]}'
    assert "memories_added" not in "".join(record.completion for record in sft)
    assert [(record.dialogue, record.session, record.agent) for record in sft] == [
        ("d", n, a) for n in range(3) for a in Agent
    ]


@pytest.mark.parametrize(
    "answer, reason",
    [
        ("Let me think.", "not_json"),
        ('{"operations": "ADD"}', "schema"),
        ('{"operations": null}', "schema"),
        ('{"operations": [{"action": "ADD", "memory": " "}]}', "schema"),
        ('{"operations": [{"action": "ADD", "quote": [9]}]}', "unknown_turn"),
        ('{"operations": [{"action": "UPDATE", "old_memory": "e7", "new_memory": "x"}]}', "unknown_target"),
    ],
)
def test_operations_that_did_not_parse_or_apply_are_no_training_data(tmp_path, answer, reason):
    def script(agent: Agent, prompt: str) -> str:
        return answer if agent is SEMANTIC else store_first_turn(agent, prompt)

    broken = trajectory(make(tmp_path / "d", talk(["I adopted a cat."]), script))
    records, left_out = sft_records(broken)
    assert [record.agent for record in records] == [CORE, EPISODIC, PROCEDURAL]
    assert left_out == {reason: 1}


def test_quotes_can_be_written_out_for_programs_that_do_not_know_them(folder):
    record = sft_records(trajectory(folder / "set" / "d"), write_out=True)[0][5]
    memory = "[2023-05-15] Ann: The cat is called Miso."
    assert json.loads(record.completion) == {"operations": [{"action": "ADD", "memory": memory}]}


def test_an_rl_record_is_the_session_the_memory_before_it_and_the_questions_after(rl):
    record = rl[1]
    assert (record.dialogue, record.session_index, record.state_before) == ("d", 1, "set/d/states/state_1")
    assert record.session == THREE.sessions[1]
    assert [entry.text for entry in record.bank_before.entries] == ["[2023-05-08] Ann: I adopted a cat."]
    assert record.bank_before.core == "2 turns" and len(record.questions) == 2
    assert record.questions[0].asked_at == datetime(2023, 5, 15, 13, 56)
    assert [(q.category, q.evidence) for q in record.questions] == [
        ("single-session", ("D2:1",)),
        ("multi-session", ("D2:1", "D1:1")),
    ]
    core, episodic, *_ = record.calls
    assert core.completion == '{"operation": "APPEND", "content": "1 turns"}' and core.written == ("1 turns",)
    assert episodic.written == ("[2023-05-15] Ann: The cat is called Miso.",) and episodic.shown == ("m1",)


def test_a_session_without_questions_is_left_out_and_counted(folder):
    built = trajectory(folder / "set" / "d")
    lines = read_question_lines(folder / "set" / "d" / QA_FILE, built)
    lines[1] = replace(lines[1], questions=())
    records, left_out = rl_records(built, lines, "d")
    assert [record.session_index for record in records] == [0, 2] and left_out == {"no_questions": 1}


def test_dialogues_for_our_rl_loop_hold_the_questions_that_name_their_turns(folder, tmp_path, capsys):
    path = tmp_path / "dialogues.jsonl"
    assert run("rl", "--trajectories-dir", folder, "--output-file", path, "--to", "dialogues") == 0
    assert "2 records; left out: none" in capsys.readouterr().out
    first, second = load(path)
    assert (first.sessions, first.speakers, second.id) == (THREE.sessions, ("Ann", "Ben"), "e")
    assert [[q.text[-2:] for q in asked] for asked in first.questions_by_session()] == [["0?", "1?"]] * 3


def test_a_question_whose_turns_are_not_known_is_left_out_of_dialogues(tmp_path, capsys):
    def write_text(agent: Agent, prompt: str) -> str:
        memory = f"Ann did something, told on day {len(prompt)}."
        return json.dumps({"operations": [{"action": "ADD", "memory": memory}]}) if agent is SEMANTIC else SKIP[agent]

    folder = make(tmp_path / "t" / "d", THREE, write_text)
    assert sample(folder, Scripted(two_questions))["kept"]["multi_session"] == 2
    assert run("rl", "--trajectories-dir", folder, "--output-file", tmp_path / "d.jsonl", "--to", "dialogues") == 0
    assert "1 records; left out: 2 question_without_turns" in capsys.readouterr().out
    assert [len(asked) for asked in load(tmp_path / "d.jsonl")[0].questions_by_session()] == [2, 1, 1]


# Every shape gives back the same records


@pytest.mark.parametrize("name", ["r.jsonl", "r.parquet"])
def test_our_files_give_back_the_same_records(tmp_path, sft, rl, name):
    for records, kind in ((sft, SFTRecord), (rl, RLRecord)):
        write_records(tmp_path / name, records, kind)
        assert read_records(tmp_path / name, kind) == records
        assert len(records) >= 5


def test_llama_factory_gives_back_the_same_records(tmp_path, sft):
    write_llama_factory(tmp_path / "sft.json", sft)
    assert read_llama_factory(tmp_path / "sft.json") == (sft, {})


def test_without_its_sources_file_a_record_has_no_origin_but_its_text(tmp_path, sft):
    write_llama_factory(tmp_path / "sft.json", sft)
    (tmp_path / "sft.sources.jsonl").unlink()
    records, _ = read_llama_factory(tmp_path / "sft.json")
    assert [(each.prompt, each.completion) for each in records] == [(each.prompt, each.completion) for each in sft]
    assert {(each.dialogue, each.session) for each in records} == {(None, None)}
    assert [each.agent for each in records[:4]] == [CORE, None, None, None]  # a core answer shows itself


def test_a_sources_file_of_other_records_is_refused(tmp_path, sft):
    write_llama_factory(tmp_path / "sft.json", sft)
    rows = json.loads((tmp_path / "sft.json").read_text())
    (tmp_path / "sft.json").write_text(json.dumps(rows[::-1]))
    with pytest.raises(DataError, match="export them anew"):
        read_llama_factory(tmp_path / "sft.json")


@pytest.mark.parametrize("flat", [False, True])
def test_verl_gives_back_the_same_records_whatever_the_order_of_its_rows(tmp_path, rl, flat):
    path = tmp_path / "rl.parquet"
    write_verl(path, rl, flat)
    assert read_verl(path) == (rl, {})
    table = pq.read_table(path)
    order = random.Random(3).sample(range(table.num_rows), table.num_rows)
    pq.write_table(table.take(order), path)
    assert read_verl(path) == (rl, {})


def test_a_verl_row_has_the_fields_of_the_published_program(tmp_path, rl):
    write_verl(tmp_path / "rl.parquet", rl)
    rows = read_table(tmp_path / "rl.parquet")
    assert len(rows) == 4 * len(rl)
    second = rows[5]
    assert second["meta"] == {
        "conversation_id": "d", "session_index": 1, "agent_type": "episodic", "agent_index": 1,
        "session_group_id": "d_session-1", "call_id": "d_session-1_episodic", "is_grouped_training": True,
    }  # fmt: skip
    model = second["reward_model"]
    assert json.loads(model["ground_truth"])["core"] == '{"operation": "APPEND", "content": "1 turns"}'
    assert model["expert_output"] == '{"operations": [{"action": "ADD", "quote": [1]}]}'
    assert len(model["qa_questions"]) == 2 and model["state_before_path"] == "set/d/states/state_1"
    assert second["prompt"] == [{"content": rl[1].calls[1].prompt, "role": "user"}]


# What other programs wrote


def foreign(tmp_path: Path, output: str) -> tuple[list[SFTRecord], dict]:
    (tmp_path / "sft.json").write_text(json.dumps([{"instruction": "p", "input": "", "output": output}]))
    records, left_out = read_llama_factory(tmp_path / "sft.json")
    return records, dict(left_out)


def test_the_second_copy_of_every_text_goes(tmp_path):
    action = {"action": "ADD", "memory": "Ann runs."}
    output = json.dumps({"operations": [action], "memories_added": ["[EPISODIC] Ann runs."]})
    (record,), left_out = foreign(tmp_path, f"```json\n{output}\n```")
    assert json.loads(record.completion) == {"operations": [action]} and not left_out


@pytest.mark.parametrize(
    "output, reason",
    [
        ("I would store that.", "not_json"),
        ('{"operation": null}', "schema"),
        ('{"operation": "REPLACE", "content": "the whole core, as the published converter writes it"}', "schema"),
        ('{"operations": "ADD"}', "schema"),
        ('{"operations": [], "memories_added": ["[SEMANTIC] nothing parsed"]}', "memories_without_operations"),
        ('{"operations": [], "more": 1}', "schema"),
        ("[1, 2]", "schema"),
        ("[" * 100_000, "not_json"),
    ],
)
def test_foreign_answers_that_are_no_operations_are_left_out_and_counted(tmp_path, output, reason):
    assert foreign(tmp_path, output) == ([], {reason: 1})


@pytest.mark.parametrize("output", ['{"#2":"add","#13":"e1"}', "{}", '{"operation": "SKIP"}', '{"operations": []}'])
def test_answers_in_either_format_are_taken_word_for_word(tmp_path, output):
    (record,), _ = foreign(tmp_path, f"```json\n{output}\n```")
    assert record.completion == output


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        '[{"instruction": "p", "output": "{}"}]',
        '[{"instruction": 1, "input": "", "output": ""}]',
        '[{"instruction": "p", "input": "x", "output": "{}"}]',
    ],
)
def test_another_shape_is_an_error(tmp_path, content):
    (tmp_path / "sft.json").write_text(content)
    with pytest.raises(DataError):
        read_llama_factory(tmp_path / "sft.json")


def test_rows_of_the_published_program_become_records_with_what_they_tell(tmp_path, rl):
    path = tmp_path / "rl.parquet"
    write_verl(path, rl)
    columns = {name: column for name, column in _GROUPED.items() if name != "extra_info"}
    rows = [{name: row[name] for name in columns} for row in read_table(path)]
    write_table(path, rows[::-1], columns)
    records, left_out = read_verl(path)
    assert not left_out
    assert [(each.dialogue, each.session_index) for each in records] == [
        ("d", 0),
        ("d", 1),
        ("d", 2),
        ("e", 0),
        ("e", 1),
    ]
    assert [each.agent for each in records[1].calls] == list(Agent)
    assert [each.completion for each in records[1].calls] == [each.completion for each in rl[1].calls]
    assert [q.text for q in records[1].questions] == [q.text for q in rl[1].questions]
    assert records[1].session is None and records[1].bank_before is None
    write_table(path, [*rows, rows[0]], columns)
    with pytest.raises(DataError, match="two rows"):
        read_verl(path)


def test_rows_for_verl_are_told_apart_by_their_index(tmp_path, rl):
    write_verl(tmp_path / "rl.parquet", rl)
    indices = [row["extra_info"]["index"] for row in read_table(tmp_path / "rl.parquet")]
    assert indices == list(range(4 * len(rl)))


def test_a_foreign_answer_that_is_no_operations_is_no_training_data(tmp_path, rl):
    path = tmp_path / "rl.parquet"
    write_verl(path, rl[:2])
    columns = {name: column for name, column in _GROUPED.items() if name != "extra_info"}
    rows = [{name: row[name] for name in columns} for row in read_table(path)]
    outputs = ["I would store that.", '{"operations": "ADD"}', '```json\n{"operations": []}\n```', None]
    for row, output in zip(rows, outputs, strict=False):
        row["reward_model"]["expert_output"] = output
    write_table(path, rows, columns)
    records, left_out = read_verl(path)
    assert left_out == {"not_json": 1, "schema": 1}
    assert [call.completion for call in records[0].calls] == [None, None, '{"operations": []}', None]
    assert all(call.prompt for call in records[0].calls)
    assert [call.completion for call in records[1].calls] == [call.completion for call in rl[1].calls]
    flags = ["--input-file", str(path), "--from", "verl", "--output-file", str(tmp_path / "rl.jsonl")]
    assert prepare.main(["rl", *flags]) == 0


@pytest.mark.parametrize(
    "change", [{"agent_type": "tool"}, {"reward_model": '{"agent_type": "core"}'}, {"questions": [{"question": "Q?"}]}]
)
def test_rows_of_another_shape_are_an_error(tmp_path, change):
    path, meta = tmp_path / "rl.parquet", {"conversation_id": "d", "session_index": 0}
    row = {
        "prompt": [{"content": "p", "role": "user"}],
        "meta": meta | {"agent_type": change.get("agent_type", "core")},
    }
    model = change.get("reward_model", {"expert_output": "{}", "qa_questions": change.get("questions", [])})
    shape = str if isinstance(model, str) else {"expert_output": str, "qa_questions": [{"question": str}]}
    meta_shape = {"conversation_id": str, "session_index": int, "agent_type": str}
    columns = {"prompt": [{"content": str, "role": str}], "meta": meta_shape, "reward_model": shape}
    write_table(path, [row | {"reward_model": model}], columns)
    with pytest.raises(DataError, match="another shape"):
        read_verl(path)


@needs_examples
def test_the_published_sft_example_is_read_and_has_the_shape_we_write(tmp_path, sft):
    records, left_out = read_llama_factory(EXAMPLES / "sft_example.json")
    assert len(records) == 4 and not left_out
    for record, agent in zip(records, Agent, strict=True):
        assert parse(record.completion, agent, 1, ResponseFormat.OPERATIONS).failure is None
    write_llama_factory(tmp_path / "sft.json", sft)
    theirs, ours = (json.loads(path.read_text()) for path in (EXAMPLES / "sft_example.json", tmp_path / "sft.json"))
    shape = {(name, type(value)) for row in theirs for name, value in row.items()}
    assert {(name, type(value)) for row in ours for name, value in row.items()} == shape
    assert all(row["output"].startswith("```json\n") and row["output"].endswith("\n```") for row in [*theirs, *ours])
    assert [list(row) for row in ours[:1]] == [list(row) for row in theirs[:1]]


@needs_examples
def test_the_published_verl_example_is_read_and_has_the_schema_we_write(tmp_path, rl):
    example = EXAMPLES / "verl_training_example.parquet"
    records, left_out = read_verl(example)
    assert not left_out
    assert [(each.dialogue, each.session_index, len(each.calls)) for each in records] == [
        ("example_001", 0, 1), ("example_001", 1, 1),
    ]  # fmt: skip
    assert records[0].calls[0].agent is None and records[0].calls[0].prompt.startswith("You are the Core")
    write_verl(tmp_path / "flat.parquet", rl, flat=True)
    assert pq.read_schema(tmp_path / "flat.parquet").remove_metadata() == pq.read_schema(example).remove_metadata()


@needs_examples
def test_a_line_of_questions_has_the_fields_of_the_published_example(folder):
    theirs = json.loads((EXAMPLES / "rl_training_example.jsonl").read_text().splitlines()[0])
    ours = json.loads((folder / "set" / "d" / "rl_training_data.jsonl").read_text().splitlines()[0])
    assert theirs.keys() <= ours.keys()
    for name in ("session", "state_before", "expert_actions"):
        assert ours[name].keys() == theirs[name].keys()
    assert ours["session"]["messages"][0].keys() == theirs["session"]["messages"][0].keys()
    assert theirs["questions"][0].keys() <= ours["questions"][0].keys()
    assert (
        {question["type"] for question in theirs["questions"]} == {"single-session"} == {ours["questions"][0]["type"]}
    )


# The command


def run(*flags: str | Path) -> int:
    return prepare.main([str(flag) for flag in flags])


def test_the_command_goes_through_every_shape_and_back(folder, tmp_path, capsys):
    def path(name: str) -> Path:
        return tmp_path / name

    assert run("sft", "--trajectory-dir", folder, "--output-file", path("sft.jsonl")) == 0
    assert "20 records; left out: none" in capsys.readouterr().out
    to = ["sft", "--input-file", path("sft.jsonl"), "--output-file", path("memory_building_sft.json")]
    assert run(*to, "--to", "llama-factory") == 0
    assert '"memory_building_sft": {"file_name": "memory_building_sft.json"}' in capsys.readouterr().out
    back = ["--input-file", path("memory_building_sft.json"), "--from", "llama-factory"]
    assert run("sft", *back, "--output-file", path("sft2.jsonl")) == 0
    assert path("sft2.jsonl").read_text() == path("sft.jsonl").read_text()

    assert run("rl", "--trajectories-dir", folder, "--output-file", path("rl.jsonl")) == 0
    for shape in ("verl", "verl-flat"):
        to = ["--input-file", path("rl.jsonl"), "--output-file", path("v.parquet"), "--to", shape]
        assert run("rl", *to) == 0
        back = ["--input-file", path("v.parquet"), "--from", shape, "--output-file", path("back.jsonl")]
        assert run("rl", *back) == 0
        assert path("back.jsonl").read_text() == path("rl.jsonl").read_text()


def test_one_long_prompt_is_left_out_and_ends_nothing(folder, tmp_path, capsys):
    lengths = sorted(record.estimated_tokens for record in sft_records(trajectory(folder / "set" / "d"))[0])
    flags = ["sft", "--trajectories-dir", folder / "set" / "d", "--output-file", tmp_path / "sft.jsonl", "--max-length"]
    assert run(*flags, lengths[-2]) == 0
    assert "11 records; left out: 1 longer_than_max_length" in capsys.readouterr().out
    assert run(*flags, 1) == 2
    assert "nothing is left to train on; left out: {'longer_than_max_length': 12}" in capsys.readouterr().err


def test_the_order_of_folders_on_disk_does_not_matter(tmp_path):
    outputs = []
    for order in ("abc", "cba"):
        for name in order:
            dialogue = talk([f"I am {name}."], name=name)
            sample(make(tmp_path / order / name, dialogue, keep_all), Scripted(two_questions))
        for stage in ("sft", "rl"):
            run(stage, "--trajectories-dir", tmp_path / order, "--output-file", tmp_path / order / f"{stage}.jsonl")
        outputs.append([(tmp_path / order / f"{stage}.jsonl").read_bytes() for stage in ("sft", "rl")])
    assert outputs[0] == outputs[1]


def drop_questions(folder: Path) -> None:
    (folder / "rl_training_data.jsonl").unlink()


def cut_questions(folder: Path) -> None:
    path = folder / "rl_training_data.jsonl"
    path.write_text(path.read_text()[:-40])


def drop_a_line(folder: Path) -> None:
    path = folder / "rl_training_data.jsonl"
    path.write_text("\n".join(path.read_text().split("\n")[1:]))


@pytest.mark.parametrize(
    "damage, said",
    [(drop_questions, "has no questions"), (cut_questions, "line 3"), (drop_a_line, "run membuilder.qa again")],
)
def test_missing_or_cut_questions_are_an_error_and_write_nothing(tmp_path, capsys, damage: Callable, said: str):
    folder = make(tmp_path / "t" / "d", THREE, keep_all)
    sample(folder, Scripted(two_questions))
    damage(folder)
    assert run("rl", "--trajectories-dir", tmp_path / "t", "--output-file", tmp_path / "rl.jsonl") == 2
    assert said in capsys.readouterr().err and not (tmp_path / "rl.jsonl").exists()


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_a_trajectory_of_a_scheme_that_is_not_there_is_refused_by_name_with_what_to_do(tmp_path, capsys, stage):
    folder = make(tmp_path / "t" / "d", THREE, keep_all)
    sample(folder, Scripted(two_questions))
    with sqlite3.connect(folder / "memory.db") as store:
        store.execute("UPDATE setting SET value = ? WHERE name = 'scheme'", ('"toy"',))
    assert run(stage, "--trajectories-dir", tmp_path / "t", "--output-file", tmp_path / "x.jsonl") == 2
    said = capsys.readouterr().err
    assert f"{folder / 'memory.db'}: the scheme that built it cannot be had: scheme: 'toy' is none of" in said
    assert "run the command where membuilder.expert ran, with that scheme's folder there" in said
    assert not (tmp_path / "x.jsonl").exists()


def test_a_file_of_another_kind_is_named(tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text('{"prompt": "p"}\n')
    (tmp_path / "x.parquet").write_text("no table")
    for name, said in (("x.jsonl", "line 1"), ("x.parquet", "Parquet")):
        assert run("sft", "--input-file", tmp_path / name, "--output-file", tmp_path / "y.jsonl") == 2
        assert said in capsys.readouterr().err
    assert run("sft", "--input-file", tmp_path / "x.jsonl", "--output-file", tmp_path / "y.csv") == 2
    assert "ends in .jsonl or .parquet" in capsys.readouterr().err
