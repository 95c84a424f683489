"""What training and evaluation share: found whatever it is called, refused by default, written into every row."""

import gzip
import json
import re
from dataclasses import replace

import pytest

from membuilder import data as command
from membuilder.datasets import memalpha
from membuilder.datasets.memalpha import read_rows
from membuilder.errors import LeakError
from membuilder.instances.build import build
from membuilder.instances.frame import READING
from membuilder.instances.leaks import compared, shared
from membuilder.instances.plan import SIDES, Plan
from tests import raw_data
from tests.test_memalpha_data import row, written

LONG = "the old mill on the river grinds wheat for nine villages in every dry summer"
HEAD = "[Dialogue between User and Assistant on 2024-01-01 00:00]\n<User>Some facts that I tell you now:\n"


def dialogues(tmp_path, chunks: list[str], questions: list[str], name: str = "squad") -> list:
    asked = [{"question": question, "answer": "a"} for question in questions]
    given = {"chunks": chunks, "questions_and_answers": asked, "num_chunks": len(chunks), "num_questions": len(asked)}
    path = written(tmp_path, row(data_source=name, metadata="{}", **given))
    return memalpha.load(path)


def found(checked: list, other: list) -> dict[str, tuple[int, int]]:
    result = shared(compared(checked), compared(other))
    return {each.kind: (each.exact, each.near) for each in result}


def test_lines_are_found_word_for_word_and_nearly_and_whatever_they_are_there(tmp_path):
    train = dialogues(tmp_path, [f"{HEAD}{LONG}\nSentence: Play some jazz!\nLabel: 3"], ["Who owns the mill?"])
    near = LONG.replace("summer", "winter")  # of its eight runs one is another
    test = dialogues(tmp_path, [f"{HEAD}<User>{near}.\nSentence: who owns the mill"], ["Sentence: play some jazz"])
    assert found(test, train) == {"question": (1, 0), "context": (0, 1), "example": (1, 0)}
    far = " ".join(LONG.split()[:9] + ["and nothing of what came before it is said again here at all"])
    assert found(dialogues(tmp_path, [far], []), train)["context"] == (0, 0)


def test_what_frames_a_chunk_and_what_says_nothing_is_no_leak(tmp_path):
    ask = "Which number is the label of this sentence? Say it."
    chunks = [f"{HEAD}A text about {name} that tells of nothing else.\n<Assistant>Noted." for name in "abcde"]
    one = dialogues(tmp_path, chunks, [f"Sentence: one text {n}\n{ask}" for n in range(5)])
    other = dialogues(
        tmp_path, [c.replace("else", "more") for c in chunks], [f"Sentence: another text {n}\n{ask}" for n in range(5)]
    )
    assert found(one, other) == {"question": (0, 0), "context": (0, 0), "example": (0, 0)}
    framed = dialogues(tmp_path, [f"<User>{opener}\nYes." for opener in READING], [])
    assert found(framed, framed)["context"] == (0, 0)
    summary = dialogues(tmp_path, ["a"], ["Summarise what was read from 2024-01-01 to 2024-01-09."], "booksum")
    assert found(summary, summary)["question"] == (0, 0)


def test_what_is_said_in_any_talk_is_no_leak(tmp_path):
    said = "Sounds cool! I'll definitely check it out. Thanks for the recommendation!"
    one, other = (dialogues(tmp_path, [f"<User>{each}\n{said}"], []) for each in ("Bye.", "Well."))
    assert found(one, other)["context"] == (0, 0)
    assert len(LONG.split()) == 15
    assert found(dialogues(tmp_path, [LONG], []), dialogues(tmp_path, [f"{said}\n{LONG}"], []))["context"] == (1, 0)


def bare(line) -> list[str]:
    """The sentences that a row shows or asks about."""
    return re.findall(r"Sentence: (.*?)\\n", line.chunks + line.questions_and_answers)


def test_training_on_the_questions_of_an_evaluation_file_is_refused_and_counted(tmp_path, capsys):
    """As the reference does with its labels: other examples, but the benchmark's own questions."""
    raw_data.banking77(tmp_path / "raw")
    plan = {"dataset": "banking77", "source": tmp_path / "raw", "chunk_tokens": 150, "test_share": 0}
    build(Plan(out=tmp_path / "benchmark", seed=1, **plan))
    benchmark = tmp_path / "benchmark/banking77/train.parquet"
    (tmp_path / "raw").rename(tmp_path / "before")
    asked = [each["question"] for line in read_rows(benchmark) for each in json.loads(line.questions_and_answers)]
    rows = ["text,category"]
    rows += [f"another thing {label} says {i},{label}" for i in range(40) for label in raw_data.LABELS]
    rows += [f"{text.splitlines()[0].removeprefix('Sentence: ')},{text.split()[1]}" for text in asked[:30]]
    raw_data.written(tmp_path / "raw/train.csv", "\n".join(rows))
    with pytest.raises(LeakError, match=r"shares \d+ questions.* with .*train.parquet, such as '.* please number"):
        build(Plan(out=tmp_path / "out", evaluation=(benchmark,), **plan))
    assert not list((tmp_path / "out/banking77").iterdir())
    flags = ["--dataset", "banking77", "--source", str(tmp_path / "raw"), "--chunk-tokens", "150", "--split", "0"]
    flags += ["--out", str(tmp_path / "out"), "--evaluation", str(benchmark)]
    assert command.main(["build-memalpha", *flags]) == 2
    assert "--allow-leak" in capsys.readouterr().err
    assert command.main(["build-memalpha", *flags, "--allow-leak"]) == 0
    trained = {text for line in read_rows(tmp_path / "out/banking77/train.parquet") for text in bare(line)}
    count = len(trained & {text for line in read_rows(benchmark) for text in bare(line)})
    assert count > 5 and f"training shares with banking77/train.parquet: {count} questions" in capsys.readouterr().out
    for line in read_rows(tmp_path / "out/banking77/train.parquet"):
        assert json.loads(line.metadata) == {"sub_source": "banking77", "leaks": ["banking77/train.parquet"]}


def test_a_question_of_the_test_side_that_training_has_too_is_left_out_and_counted(tmp_path):
    raw_data.squad(tmp_path / "raw")
    plan = Plan(dataset="squad", source=tmp_path / "raw", out=tmp_path / "out", test_share=0.4, chunk_tokens=300)
    build(plan)
    towns = [re.search(r"Boats of (\w+)", str(memalpha.load(plan.folder / f"{side}.parquet")))[1] for side in SIDES]
    raw = tmp_path / "raw/train-v1.1.json.gz"
    text = gzip.decompress(raw.read_bytes()).decode()
    for town in towns:
        text = text.replace(f"Boats of {town}?", "Whose boats are these?")
    raw.write_bytes(gzip.compress(text.encode()))
    report = build(replace(plan, out=tmp_path / "more"))
    assert report["test"]["dropped"]["also_in_train"] == 1 and report["leaks"] == {}
    sides = ["Whose boats" in str(memalpha.load(tmp_path / f"more/squad/{side}.parquet")) for side in SIDES]
    assert sides == [True, False]


def merged(tmp_path, *flags: str) -> int:
    return command.main(["build-memalpha", "--merge", *flags, "--out", str(tmp_path / "out")])


def metadata(path) -> list[dict]:
    return [json.loads(json.loads(line.metadata)["metadata"]) for line in read_rows(path)]


def test_merging_training_with_the_benchmark_that_is_made_of_the_same_questions_is_refused(tmp_path, capsys):
    """As the published training set does: the questions of icl_nlu are texts of NLU."""
    raw_data.nlu(tmp_path / "nlu")
    raw_data.squad(tmp_path / "squad")
    plan = {"out": tmp_path / "out", "chunk_tokens": 150}
    for name in ("nlu", "squad"):
        build(Plan(dataset=name, source=tmp_path / name, test_share=0, **plan))
    texts = [text for line in read_rows(tmp_path / "out/nlu/train.parquet") for text in bare(line)]
    raw_data.memoryagentbench(tmp_path / "bench", asked=(texts[0], texts[-1]))
    build(Plan(dataset="test_time_learning", source=tmp_path / "bench", **plan))
    files = [tmp_path / f"out/{side}.parquet" for side in SIDES]
    assert merged(tmp_path, "squad", "nlu", "test_time_learning") == 2
    said = capsys.readouterr().err
    counts = re.search(
        r"training: nlu shares 2 questions, (\d+) examples with \S*out/test_time_learning/test.parquet", said
    )
    assert counts and int(counts[1]) >= 8 and "squad shares" not in said and "--allow-leak" in said
    assert not any(path.exists() for path in files)
    assert merged(tmp_path, "squad", "nlu", "test_time_learning", "--allow-leak") == 0
    said = capsys.readouterr().out
    assert "training on nlu shares with test_time_learning/test.parquet: 2 questions, 0 contexts" in said
    stamps = [[told.get("leaks") for told in metadata(path)] for path in files]
    assert stamps[0] == [["test_time_learning/test.parquet"]] * len(stamps[0]) and len(stamps[0]) > 1
    assert stamps[1] == [None]
    assert merged(tmp_path, "squad", "test_time_learning") == 0  # without NLU nothing is shared
    assert [told.get("leaks") for told in metadata(files[0])] == [None] * len(metadata(files[0]))


def test_merged_training_is_compared_with_documents_of_a_benchmark_and_with_evaluation_files(tmp_path, capsys):
    """ruler_qa1 is made of SQuAD."""
    raw_data.squad(tmp_path / "squad")
    build(Plan(dataset="squad", source=tmp_path / "squad", out=tmp_path / "out", chunk_tokens=300, test_share=0))
    asked = ("Who is mayor of Town3x1?", "Who wrote this book about Oz?")
    raw_data.memoryagentbench(tmp_path / "bench", f"{LONG}. {raw_data.paragraph(3, 1)['context']} {LONG}.", asked)
    build(Plan(dataset="accurate_retrieval", source=tmp_path / "bench", out=tmp_path / "out", chunk_tokens=200))
    assert merged(tmp_path, "squad", "accurate_retrieval") == 2
    assert re.search(r"squad shares 1 questions.* with \S*accurate_retrieval/test.parquet", capsys.readouterr().err)
    evaluation = str(tmp_path / "out/accurate_retrieval/test.parquet")
    assert merged(tmp_path, "squad", "--evaluation", evaluation) == 2
    assert f"squad shares 1 questions with {evaluation}" in capsys.readouterr().err
    assert merged(tmp_path, "squad", "--evaluation", evaluation, "--allow-leak") == 0
    told = metadata(tmp_path / "out/train.parquet")
    assert {tuple(each["leaks"]) for each in told} == {("accurate_retrieval/test.parquet",)}


def test_what_the_sides_of_one_dataset_share_was_told_when_it_was_built_and_is_merged(tmp_path):
    raw_data.roles(tmp_path / "raw")
    raw = tmp_path / "raw/abstracts.jsonl"
    twice = re.sub(r"We did (\d+) trials", lambda found: f"We did {int(found[1]) // 2} trials", raw.read_text())
    raw.write_text(twice)
    plan = Plan(dataset="csabstruct", source=tmp_path / "raw", out=tmp_path / "out", chunk_tokens=250, test_share=0.3)
    assert build(plan)["leaks"]["test"]["example"] >= 1
    assert merged(tmp_path, "csabstruct") == 0


def test_the_command_counts_in_both_directions(tmp_path, capsys):
    raw_data.squad(tmp_path / "raw", articles=8)
    build(Plan(dataset="squad", source=tmp_path / "raw", out=tmp_path / "out", test_share=0))
    path = str(tmp_path / "out/squad/train.parquet")
    assert command.main(["leaks", path, path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7 and lines[1].split()[:5] == ["train.parquet", "question", "100", "100", "0"]
    assert command.main(["leaks", path, str(tmp_path / "nowhere.parquet")]) == 2
