"""Published splits in training: SFT on `sft`, RL on `rl`, and nothing of `test` unless it is allowed by name."""

import hashlib
import json
import logging
import os
import re
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from huggingface_hub import ModelCard

from membuilder import prepare
from membuilder.command import ArgumentParser
from membuilder.config import dump, load
from membuilder.datasets.selection import add_data_flags, load_selected
from membuilder.datasets.splits import PUBLISHED, Split, of_the_test_split, split_ids
from membuilder.errors import ConfigError
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.four_agents.scheme import FourAgents
from membuilder.schemes.load import MAX_TURNS
from membuilder.trajectories.records import ExpertCall, RLRecord, SFTRecord, write_records
from membuilder.types import Agent, Bank, Session
from tests.fakes import HashEmbedder
from tests.test_expert import THREE, make
from trainer.checkpoint.model_card import TEST_IDS_TAG, model_card
from trainer.checkpoint.run_settings import resolved
from trainer.configs import DataConfig
from trainer.data.corpus import load_corpus
from trainer.data.prepared import prepared_trees, read_builds
from trainer.model.tiny_model import train_tokenizer
from trainer.quickstart import CONFIGS, load_configs
from trainer.rl_config import RLConfig
from trainer.run_setup import rl_builds
from trainer.sft_config import SFTConfig

TOKENIZER = train_tokenizer(["say"], [], 300)
DATA = Path(os.environ.get("MEMBUILDER_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def ids(split: str, number: int) -> list[str]:
    return split_ids(split, Path("nowhere/file.json"))[:number]


def record(name: str) -> dict:
    """A question of LongMemEval's shape with a published id, and a made-up history."""
    return {
        "question_id": name,
        "question_type": "single-session-user",
        "question": "What did I plant?",
        "answer": f"tree {name}",
        "question_date": "2023/05/06 (Sat) 09:30",
        "haystack_dates": ["2023/05/04 (Thu) 09:30"],
        "haystack_session_ids": ["a"],
        "haystack_sessions": [[{"role": "user", "content": f"I planted tree {name}.", "has_answer": True}]],
    }


@pytest.fixture
def published(tmp_path) -> str:
    """A file of five questions for SFT, four for RL and six of the test."""
    path = tmp_path / "longmemeval.json"
    names = [*ids("sft", 5), *ids("test", 6), *ids("rl", 4)]
    path.write_text(json.dumps([record(name) for name in names]), encoding="utf-8")
    return str(path)


def names(dialogues) -> list[str]:
    return [dialogue.id for dialogue in dialogues]


def test_the_ids_are_those_that_were_published():
    content = PUBLISHED.read_bytes()
    assert hashlib.sha256(content).hexdigest() == "e9b777da5185ead332ef5e2ac0681c39678bb4891436ab9db0d62526e17e67c7"
    assert [len(ids(split, 1000)) for split in Split] == [50, 50, 400]
    assert len({each for split in Split for each in ids(split, 1000)}) == 500


def test_sft_and_rl_train_on_their_own_dialogues_and_on_none_of_the_test(published):
    sides = {split: load_corpus(DataConfig(path=published, split=split)) for split in (Split.SFT, Split.RL)}
    assert names(sides[Split.SFT].train) == ids("sft", 5) and names(sides[Split.RL].train) == ids("rl", 4)
    assert all(not corpus.held_out for corpus in sides.values())
    steered = load_corpus(DataConfig(path=published, split=Split.SFT, num_steering=2))
    assert (names(steered.train), names(steered.steering)) == (ids("sft", 3), ids("sft", 5)[3:])


def test_published_configs_train_on_the_published_splits():
    for path in CONFIGS.glob("[sr]*_qwen3_4b*.yaml"):  # the instances of memalpha have no published split
        stage = path.name.split("_")[0]
        assert load(SFTConfig if stage == "sft" else RLConfig, path).data.split == stage


@pytest.mark.parametrize(("kind", "stage"), [(SFTConfig, "sft"), (RLConfig, "rl")])
def test_published_configs_take_a_prepared_file_by_the_keys_that_the_refusal_names(kind, stage):
    path, given = CONFIGS / f"{stage}_qwen3_4b.yaml", ["data.prepared=mine.jsonl"]
    with pytest.raises(ConfigError) as caught:
        load(kind, path, given)
    named = re.findall(r"data\.\w+=null", str(caught.value))
    config = load(kind, path, [*given, *named])
    assert named == ["data.path=null", "data.split=null"] and config.data == DataConfig(
        prepared="mine.jsonl", max_turns=MAX_TURNS
    )


@pytest.mark.parametrize(
    "data", [{}, {"split": Split.TEST}, {"eval_path": "other"}], ids=["drawn at random", "split=test", "whole file"]
)
def test_a_run_on_test_ids_is_refused_by_name_unless_allowed(published, tmp_path, caplog, data):
    if "eval_path" in data:
        (tmp_path / "other.json").write_text(json.dumps([record(ids("test", 7)[6])]))
        data = {"eval_path": str(tmp_path / "other.json")}
    with pytest.raises(ConfigError) as caught:
        load_corpus(DataConfig(path=published, **data))
    said = str(caught.value)
    assert (
        said.startswith(f"data.path={published}: ") and "dialogues to train on are of LongMemEval's published" in said
    )
    assert "data.split=sft for SFT and data.split=rl for RL" in said and "data.allow_test_ids=true" in said
    assert len(of_the_test_split(said.replace("(", " ").replace(",", " ").split())) == 3, "some are named"
    with caplog.at_level(logging.WARNING):
        corpus = load_corpus(DataConfig(path=published, allow_test_ids=True, **data))
    found = of_the_test_split(names(corpus.train))
    assert f"{len(found)} dialogues to train on" in said and f"{len(found)} dialogues to train on" in caplog.text


def test_data_without_published_ids_is_split_as_before(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps([record(f"own {number}") for number in range(6)]))
    corpus = load_corpus(DataConfig(path=str(path), held_out=0.5))
    assert len(corpus.train) == len(corpus.held_out) == 3
    with pytest.raises(ConfigError, match="data.split=sft: none of its 50 ids is in the dataset, which has .'own 0'"):
        load_corpus(DataConfig(path=str(path), split=Split.SFT))


def test_dialogues_to_evaluate_on_are_not_trained_on(published, tmp_path):
    other = tmp_path / "eval.json"
    other.write_text(json.dumps([record(name) for name in ids("test", 3)]))
    corpus = load_corpus(DataConfig(path=published, split=Split.RL, eval_path=str(other)))
    assert (names(corpus.train), names(corpus.held_out)) == (ids("rl", 4), ids("test", 3))
    with pytest.raises(ConfigError, match=f"data.eval_path={published}: 4 of its 15 dialogues are trained on too"):
        load_corpus(DataConfig(path=published, split=Split.RL, eval_path=published))


@pytest.mark.parametrize("data", [{"path": "a.json", "split": Split.RL}, {"prepared": "a.jsonl"}])
def test_evaluations_without_dialogues_are_refused_at_the_start(data):
    with pytest.raises(ValueError, match="eval_every=5.*data.eval_path, or set eval_every=0"):
        RLConfig(data=DataConfig(**data), eval_every=5)
    assert RLConfig(data=DataConfig(**data, eval_path="b.json"), eval_every=5).data.holds_out
    assert RLConfig(data=DataConfig(), eval_every=5).data.holds_out


def test_settings_about_ids_are_refused_for_generated_dialogues():
    for data in ({"split": Split.SFT}, {"allow_test_ids": True}):
        with pytest.raises(ValueError, match="generated dialogues have none"):
            DataConfig(**data)


def sft_file(path: Path, *dialogues: str | None) -> SFTConfig:
    records = [
        SFTRecord(prompt=f"say {name}", completion="{}", dialogue=name, session=number)
        for name in dialogues
        for number in range(2)
    ]
    write_records(path, records, SFTRecord)
    return SFTConfig(data=DataConfig(prepared=str(path)), max_length=100)


def test_a_prepared_file_is_held_to_the_same_rule(tmp_path, caplog):
    (train,), (test, *_) = ids("sft", 1), ids("test", 2)
    config = sft_file(tmp_path / "sft.jsonl", train, test, None)
    with pytest.raises(ConfigError, match=rf"sft.jsonl: 1 dialogues to train on are .*\({test}\).*data.split=sft"):
        prepared_trees(TOKENIZER, config)
    assert "2 of 6 records name no dialogue" in caplog.text
    config.data.split = Split.SFT
    trees, _ = prepared_trees(TOKENIZER, config)
    assert [tree.id for tree in trees] == [f"{train}/0", f"{train}/1"]
    config.data.split = Split.RL
    with pytest.raises(ConfigError, match="data.split=rl: none of its 50 ids is in .*data.split=null takes all"):
        prepared_trees(TOKENIZER, config)
    config.data.split, config.data.allow_test_ids = None, True
    assert len(prepared_trees(TOKENIZER, config)[0]) == 6


def test_a_file_prepared_from_trajectories_on_test_ids_says_so_and_is_refused(tmp_path, capsys):
    (test,) = ids("test", 1)
    make(tmp_path / "set" / test, replace(THREE, id=test))
    path = tmp_path / "sft.jsonl"
    assert prepare.main(["sft", "--trajectories-dir", str(tmp_path / "set"), "--output-file", str(path)]) == 0
    assert f"1 dialogues are of LongMemEval's published test split, such as {test}" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=rf"1 dialogues to train on are .*\({test}\)"):
        prepared_trees(TOKENIZER, SFTConfig(data=DataConfig(prepared=str(path))))


def test_sessions_of_a_prepared_file_are_held_to_the_same_rule(tmp_path):
    session = msgspec.convert({"id": "S1", "index": 0, "timestamp": "2024-01-01T00:00:00", "turns": []}, type=Session)
    calls = tuple(ExpertCall(prompt="p", agent=agent) for agent in Agent)
    (train,), (test,) = ids("rl", 1), ids("test", 1)
    records = [
        RLRecord(dialogue=name, session_index=0, questions=(), calls=calls, session=session, bank_before=Bank())
        for name in (train, test)
    ]
    write_records(tmp_path / "rl.jsonl", records, RLRecord)
    scheme, path = FourAgents(PromptConfig()), str(tmp_path / "rl.jsonl")
    with pytest.raises(ConfigError, match=rf"rl.jsonl: 1 dialogues to train on are .*\({test}\)"):
        read_builds(DataConfig(prepared=path), scheme)
    assert [build.dialogue.id for build in read_builds(DataConfig(prepared=path, split=Split.RL), scheme)] == [train]
    config = RLConfig(data=DataConfig(prepared=path, split=Split.RL, eval_path=str(tmp_path / "eval.json")))
    (tmp_path / "eval.json").write_text(json.dumps([record(train)]))
    with pytest.raises(ConfigError, match="data.eval_path=.*: 1 of its 1 dialogues are trained on too"):
        rl_builds(config, HashEmbedder())


def test_a_model_that_may_know_the_test_split_says_so_and_so_do_those_trained_from_it(tmp_path):
    def card(stage: str, **data) -> str:
        base = tmp_path / "sft" if stage == "rl" else None
        config = SFTConfig(data=DataConfig(path="longmemeval.json", **data))
        config.model.path = None if base is None else str(base)
        (tmp_path / stage).mkdir(exist_ok=True)
        (tmp_path / stage / "README.md").write_text(model_card(resolved(config), tmp_path, 1))
        return (tmp_path / stage / "README.md").read_text()

    assert TEST_IDS_TAG not in card("sft") and "data.allow_test_ids" not in card("rl")
    for text in (card("sft", allow_test_ids=True), card("rl")):
        assert TEST_IDS_TAG in ModelCard(text).data.tags and "Trained with `data.allow_test_ids`" in text
    assert "allow_test_ids: true" in dump(SFTConfig(data=DataConfig(path="a", allow_test_ids=True)))


def test_an_evaluation_takes_the_published_ids_where_no_file_of_splits_lies_beside(published):
    parser = ArgumentParser()
    add_data_flags(parser)
    given = parser.parse_args(["--dataset", "longmemeval", "--dataset-path", published, "--split", "test"])
    assert names(load_selected(given, (), "--conv-id")[0]) == ids("test", 6)


def test_the_quickstart_needs_dialogues_to_evaluate_on(published):
    with pytest.raises(ConfigError, match="--eval-data"):
        load_configs("out", 1, ["sft.data.split=sft"], published)
    sft, rl = load_configs("out", 1, ["sft.data.split=sft"], published, "other.json")
    assert sft.data.split is Split.SFT and sft.data.eval_path == rl.data.eval_path == "other.json"


@pytest.mark.parametrize("name", ["longmemeval_oracle", "longmemeval_s"])
@pytest.mark.slow
def test_real_files_train_on_their_split_and_are_refused_without(name):
    path = DATA / "longmemeval" / f"{name}-dev.json.gz"
    if not path.exists():
        pytest.skip(f"benchmark file {path} is absent; point MEMBUILDER_DATA at the data folder")
    for split in (Split.SFT, Split.RL):
        trained = names(load_corpus(DataConfig(path=str(path), split=split)).train)
        assert trained and set(trained) <= set(ids(split, 50))
    with pytest.raises(ConfigError, match="published test split"):
        load_corpus(DataConfig(path=str(path)))
