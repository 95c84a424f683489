"""Ids of any script and length make file names: one each, short, the same every time, through every command."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from membuilder import expert, prepare, qa
from membuilder.bank.store import reading
from membuilder.build import main as build
from membuilder.building import dialogues
from membuilder.files import MAX_NAME_BYTES, file_name, path_of
from tests.evaluating import DIALOGUE, caller
from tests.fakes import HashEmbedder
from tests.fault_server import FaultServer, answering
from tests.scripted import talk
from tests.test_asking_commands import by_part
from tests.test_expert import custom, served

LONG = "\u5c0f\u660e" * 150
IDS = [
    LONG,
    "\U0001f431\u200d\U0001f464",
    "a/b",
    "../up",
    "CON",
    "Ann",
    "ann",
    "x" * 250 + "1",
    "x" * 250 + "2",
    LONG + "\u4e00",
    "usage.jsonl",
    "manifest",
    ".hidden ",
    "-rf",
]
PLAIN = ["conv-26", "gpt4_2655b836_abs", "char_003", "ann-bob", "a b", "d"]


def test_every_id_has_a_name_of_its_own_on_every_file_system():
    odd = ["", ".", "..", "con.txt", "nul", "com1", "aNN", "%2f", "%2F", "/", "\ud83d", "a\0b", "a~b", "end.", "\u00fc"]
    names = [file_name(each) for each in [*IDS, *PLAIN, *odd, "u\u0308"]]
    assert len({name.casefold() for name in names}) == len(names)
    for name in names:
        assert name.isascii() and name.isprintable() and 0 < len(name) <= MAX_NAME_BYTES
        assert not set(name) & set('/\\:*?"<>|') and name[0] not in ".-~ " and name[-1] not in ". "
        assert name.split(".")[0].casefold() not in ("con", "nul", "com1") and name not in ("usage.jsonl", "manifest")


def test_plain_ids_are_their_own_names_and_short_ones_are_escaped():
    assert [file_name(each) for each in PLAIN] == PLAIN
    assert file_name("a/b") == "a%2Fb" and file_name("\u5c0f") == "%E5%B0%8F"
    assert file_name("Ann") == "Ann~17239b6e25011033"  # of today and of ever


def test_what_earlier_versions_named_keeps_its_name(tmp_path):
    for name, before in (("Ann", "Ann.db"), ("y" * 200, f"{'y' * 200}.db")):
        assert path_of(tmp_path, name, ".db").name != before
        (tmp_path / before).touch()
        assert path_of(tmp_path, name, ".db") == tmp_path / before
    assert path_of(tmp_path, "ann", ".db") == tmp_path / "ann.db"
    (tmp_path / "manifest.json").touch()
    assert path_of(tmp_path, "manifest", ".json").name.startswith("manifest~")


@pytest.fixture
def data(tmp_path, monkeypatch) -> list[str]:
    """Flags of a file with a dialogue for each id."""
    monkeypatch.setattr(dialogues, "embedder_of", lambda options, costs: nullcontext(HashEmbedder()))
    talks = [replace(talk(["I adopted a cat called Miso.", "Nice."]), id=each) for each in IDS]
    return ["--dataset", "custom", "--dataset-path", str(custom(tmp_path / "talks.jsonl", *talks))]


def stored_ids(paths) -> list[str]:
    ids = []
    for path in paths:
        with reading(path) as store:
            ids.append(store.settings()["dialogue"])
    return sorted(ids)


def test_a_build_stores_each_dialogue_and_goes_on_where_it_was(data, tmp_path, capsys):
    flags = [*data, "--model", "rules", "--out", str(tmp_path / "memories")]
    for _ in range(2):
        assert build(flags) == 0
        assert stored_ids((tmp_path / "memories").glob("*.db")) == sorted(IDS)
    assert build([*flags, "--conv-id", LONG, "--retry-failed"]) == 0
    assert all(len(path.name) <= 120 for path in tmp_path.rglob("*"))


def test_trajectories_go_from_expert_to_questions_and_records(data, tmp_path, capsys):
    out = tmp_path / "out"
    with FaultServer(answering(served)) as server:
        flags = [*data, "--expert-model", "m", "--provider", "vllm", "--base-url", server.base_url]
        assert expert.main([*flags, "--output-dir", str(out)]) == 0
        assert expert.main([*flags, "--output-dir", str(out), "--skip-existing"]) == 0
    assert f"of which {len(IDS)} are whole" in capsys.readouterr().out
    assert stored_ids(out.rglob("memory.db")) == sorted(IDS)
    with FaultServer(answering(by_part)) as server:
        asked = ["--trajectories-dir", str(out), "--model", "w", "--qa-per-session", "1", "--max-missing", "1"]
        assert qa.main([*asked, "--provider", "vllm", "--base-url", server.base_url]) == 0
    for target, ending in (("ours", "jsonl"), ("verl", "parquet"), ("dialogues", "jsonl")):
        file = tmp_path / f"{target}.{ending}"
        assert prepare.main(["rl", "--trajectories-dir", str(out), "--output-file", str(file), "--to", target]) == 0
    lines = (tmp_path / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(line)["id"] for line in lines) == sorted(IDS)


@pytest.mark.parametrize("builder", ["rules", "agents"])
def test_an_evaluation_keeps_a_bank_for_each(tmp_path, monkeypatch, builder):
    call = caller(tmp_path, monkeypatch)
    lines = [json.dumps(DIALOGUE | {"id": each}) for each in IDS]
    Path(tmp_path / "mine.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    flags = ["--mode", "build", "--system", builder, "--db-path", str(tmp_path / "db")]
    with FaultServer(answering(served)) as server:
        assert call(server, *flags, *(["--build-model", "m"] if builder == "agents" else [])) == 0
    assert len(list((tmp_path / "db").glob("*.json"))) == len(IDS) + 1  # and the manifest
    assert call(None, "--mode", "answer", "--db-path", str(tmp_path / "db")) == 0
    answers = (tmp_path / "out" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(answers) == len(IDS) * len(DIALOGUE["questions"])
