"""Runs that would train on what they are evaluated on: refused with counts by name, or allowed and told."""

import json
import logging

import pytest
from huggingface_hub import ModelCard

from membuilder.config import dump
from membuilder.datasets.memalpha import COLUMNS, samples_of
from membuilder.datasets.parquet import write_rows
from membuilder.datasets.splits import Split, split_ids
from membuilder.errors import ConfigError, DataError, LeakError
from membuilder.instances.build import build
from membuilder.instances.merge import merge
from membuilder.instances.plan import Plan
from membuilder.trajectories.records import SFTRecord, write_records
from tests import raw_data
from tests.test_memalpha_build import SFT_IDS, TEST_IDS
from tests.test_splits import TOKENIZER, record
from trainer.checkpoint.model_card import LEAKS_TAG, TEST_IDS_TAG, model_card
from trainer.checkpoint.run_settings import check_settings, resolved
from trainer.command_line import check_paths
from trainer.configs import DataConfig
from trainer.data.corpus import load_corpus
from trainer.data.prepared import prepared_trees
from trainer.sft_config import SFTConfig

MILL = "The old mill on the river grinds wheat for nine villages in every dry summer."
ANOTHER = "Every spring the town of Oz sends four boats down the canal to buy salt and rope."


def instances(path, *made: tuple[str, str], source: str = "squad") -> str:
    """A Memalpha file: each instance has a text of one line and a question."""
    rows = [
        {
            "instance_id": number,
            "prompt": "",
            "chunks": json.dumps([text]),
            "questions_and_answers": json.dumps([{"question": question, "answer": "wheat"}]),
            "data_source": source,
            "metadata": "{}",
            "num_chunks": 1,
            "num_questions": 1,
        }
        for number, (text, question) in enumerate(made)
    ]
    write_rows(path, rows, COLUMNS)
    return str(path)


@pytest.fixture
def train(tmp_path) -> str:
    made = (MILL, "What does the mill grind?"), (ANOTHER, "What do the boats buy?")
    return instances(
        tmp_path / "train.parquet", *made, (f"Sentence: {ANOTHER[:20]}\nLabel: 3", "Who sings in the choir?")
    )


def test_a_run_on_what_evaluation_files_hold_is_refused_with_counts_by_name(train, tmp_path, caplog):
    clean = instances(tmp_path / "clean.parquet", ("Nothing at all is shared by this line with the other one.", "Why?"))
    near = instances(tmp_path / "near.parquet", (MILL.replace("summer", "winter"), "what does the mill GRIND"))
    labels = instances(tmp_path / "labels.parquet", (f"Sentence: {ANOTHER[:20]}\nLabel: 4", "Is this another one?"))
    for data in (
        {"eval_path": near},
        {"eval_files": [clean, near, labels]},
        {"eval_path": clean, "eval_files": [near]},
    ):
        with pytest.raises(LeakError) as caught:
            load_corpus(DataConfig(path=train, **{"eval_path": clean} | data))
        said, key = str(caught.value), "data.eval_path" if data.get("eval_path") == near else "data.eval_files"
        assert said.startswith(f"data.path={train} shares 1 questions, 1 contexts with {near} ({key}), such as")
        assert ("1 examples with " + labels in said) == (labels in data.get("eval_files", ()))
        assert "clean.parquet" not in said and "data.allow_leaks=true" in said
        with caplog.at_level(logging.WARNING):
            load_corpus(DataConfig(path=train, allow_leaks=True, **{"eval_path": clean} | data))
        assert f"with {near}" in caplog.text and "data.allow_leaks allows it" in caplog.text
        caplog.clear()
    assert len(load_corpus(DataConfig(path=train, eval_path=clean)).train) == 3


def test_instances_that_are_held_out_at_random_may_share_nothing_with_the_others(tmp_path, caplog):
    """A split by instance: the same text, or the same question about another one, is on both sides."""
    lines = (MILL, ANOTHER, "Nothing at all is shared by this line with any of the other lines, which differ.")
    same = (MILL, "What does the mill grind?"), (ANOTHER, "What do the boats buy?"), (MILL, "Who owns it now?")
    path = instances(tmp_path / "a.parquet", *same * 2)
    with pytest.raises(LeakError) as caught:
        load_corpus(DataConfig(path=path, held_out=0.5))
    said = str(caught.value)
    assert said.startswith(f"data.path={path} shares ") and "data.allow_leaks=true" in said
    assert "contexts with those held out at random (data.eval_path names others), such as" in said
    with caplog.at_level(logging.WARNING):
        allowed = DataConfig(path=path, held_out=0.5, allow_leaks=True)
        assert len(load_corpus(allowed).held_out) == 3
    assert "data.allow_leaks allows it" in caplog.text and "allow_leaks: true" in dump(SFTConfig(data=allowed))
    apart = [(line, f"What is told of number {number} here?") for number, line in enumerate(lines)]
    clean = instances(tmp_path / "b.parquet", *apart)
    assert len(load_corpus(DataConfig(path=clean, held_out=0.4)).held_out) == 1


def test_label_examples_that_another_instance_asks_about_are_seen_in_a_random_draw(tmp_path):
    shown = (f"Sentence: please turn the {color} lights on\nLabel: 3" for color in ("red", "blue", "pink", "grey"))
    asked = (f"Sentence: please turn the {color} lights on\nWhich?" for color in ("blue", "pink", "grey", "red"))
    path = instances(tmp_path / "a.parquet", *zip(shown, asked, strict=True), source="icl_nlu")
    with pytest.raises(LeakError, match=r"shares \d questions, \d examples with those held out at random"):
        load_corpus(DataConfig(path=path, held_out=0.5))


def test_generated_dialogues_are_checked_too(tmp_path):
    dialogue = load_corpus(DataConfig(num_train=1, num_held_out=1)).train[0]
    question = dialogue.questions[0].text
    path = instances(tmp_path / "a.parquet", ("What else?", question))
    with pytest.raises(
        LeakError, match=r"the generated corpus shares 1 questions with .*a.parquet \(data.eval_files\)"
    ):
        load_corpus(DataConfig(num_train=1, num_held_out=1, eval_files=[path]))


def test_prepared_prompts_are_checked_once_for_all_roles(tmp_path):
    records = [
        SFTRecord(prompt=f"Read this.\n3. Ann: {text}", completion="{}", dialogue=f"d{i}", session=0)
        for i, text in enumerate((MILL, ANOTHER))
        for _ in range(4)
    ]
    write_records(tmp_path / "sft.jsonl", records, SFTRecord)
    path = instances(tmp_path / "a.parquet", (MILL, "Why?"))
    data = {"prepared": str(tmp_path / "sft.jsonl"), "eval_files": [path]}
    with pytest.raises(LeakError, match=r"data.prepared=.*sft.jsonl shares 1 contexts with .*a.parquet"):
        prepared_trees(TOKENIZER, SFTConfig(data=DataConfig(**data), max_length=500))
    allowed = SFTConfig(data=DataConfig(**data, allow_leaks=True), max_length=500)
    assert len(prepared_trees(TOKENIZER, allowed)[0]) == 2


def test_allowing_leaks_is_told_by_config_and_card_and_changes_no_run_that_goes_on(tmp_path):
    config = SFTConfig(data=DataConfig(path="a", eval_files=["b"], allow_leaks=True))
    assert "allow_leaks: true" in dump(config)
    (tmp_path / "sft").mkdir()
    card = model_card(resolved(config), tmp_path, 1)
    assert LEAKS_TAG in ModelCard(card).data.tags and "Trained with `data.allow_leaks`" in card
    assert TEST_IDS_TAG not in card
    (tmp_path / "sft/README.md").write_text(card)
    after = SFTConfig(data=DataConfig(path="a"))
    assert LEAKS_TAG not in model_card(resolved(after), tmp_path, 1)
    after.model.path = str(tmp_path / "sft")
    assert LEAKS_TAG in ModelCard(model_card(resolved(after), tmp_path, 1)).data.tags
    after.model.path = None
    assert check_settings(tmp_path, resolved(config), resolved(after)) == []


def test_options_without_effect_and_files_that_are_not_there_are_refused():
    for data in ({"path": "a"}, {"path": "a.parquet", "split": Split.RL}, {"prepared": "a.parquet"}):
        with pytest.raises(ValueError, match="allow_leaks .* name them in data.eval_files"):
            DataConfig(**data, allow_leaks=True)
    with pytest.raises(ConfigError, match="data.eval_files: no file is at 'nowhere.parquet'"):
        check_paths(SFTConfig(data=DataConfig(eval_files=["nowhere.parquet"])))


@pytest.mark.parametrize("published", [False, True])
def test_test_ids_are_seen_after_a_build_has_renamed_their_samples(tmp_path, published):
    raw_data.longmemeval(tmp_path / "raw", [*SFT_IDS[:5], *TEST_IDS[:5]])
    plan = {"dataset": "longmemeval", "source": tmp_path / "raw", "test_share": 0, "published": published}
    build(Plan(out=tmp_path / "out", allow_leak=True, **plan))
    merge(["longmemeval"], tmp_path / "out", None, 1)
    for path in (tmp_path / "out/longmemeval/train.parquet", tmp_path / "out/train.parquet"):
        told = samples_of(path)
        tested = {each for samples in told.values() for each in samples if each in TEST_IDS}
        assert tested and tested <= set(TEST_IDS[:5])
        data = {"path": str(path), "eval_path": str(tmp_path / "other.json")}
        (tmp_path / "other.json").write_text(json.dumps([record(split_ids(Split.TEST, tmp_path)[9])]))
        with pytest.raises(
            ConfigError, match=f"{len(tested)} dialogues to train on are of LongMemEval's published test"
        ):
            load_corpus(DataConfig(**data))
        assert load_corpus(DataConfig(**data, allow_test_ids=True)).train
    build(Plan(out=tmp_path / "clean", **plan))
    data["path"] = str(tmp_path / "clean/longmemeval/train.parquet")
    assert load_corpus(DataConfig(**data)).train


def test_positions_in_two_files_are_no_names_but_what_stands_there_is_known(train, tmp_path):
    """The published train and test files both begin with instance 0 of each source."""
    other = instances(tmp_path / "test.parquet", ("A line that tells of nothing the other file tells of.", "Is it so?"))
    corpus = load_corpus(DataConfig(path=train, eval_path=other))
    assert [each.id for each in corpus.held_out] == ["squad-0"] == [corpus.train[0].id]
    with pytest.raises(LeakError, match="shares 3 questions, 2 contexts, 1 examples with"):
        load_corpus(DataConfig(path=train, eval_path=train))


def test_an_evaluation_file_without_instances_is_told(train, tmp_path):
    path = instances(tmp_path / "empty.parquet")
    with pytest.raises(DataError, match="empty.parquet: whole file: field 'rows': has none"):
        load_corpus(DataConfig(path=train, held_out=0.4, eval_files=[path]))
