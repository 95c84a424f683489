"""What `python -m membuilder.prepare` wrote goes into both loops as it is; other files are refused by name."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from membuilder import prepare
from membuilder.errors import ConfigError, DataError
from membuilder.schemes.four_agents.prompts import PromptConfig, render_prompt
from membuilder.schemes.four_agents.scheme import FourAgents
from membuilder.trajectories.records import RLRecord, SFTRecord, read_records
from membuilder.types import Agent
from reward.rollouts import choose_questions
from reward.score import RewardConfig
from rollout.tokens import decode_completion, encode_completion, encode_prompt
from tests import forks
from tests.forks import embedder  # noqa: F401
from tests.scripted import talk
from tests.test_expert import PROMPTS, THREE, make
from tests.test_memalpha_store import ANSWERS, TALK
from tests.test_prepare_schemes import asked_about, in_two_turns, prepared, run  # noqa: F401
from tests.test_qa_generation import Scripted, keep_all, sample, two_questions
from tests.test_turns import WITH_TOOLS
from trainer import rl, sft
from trainer.batching.packing import count_loss_tokens, sequences_of
from trainer.configs import DataConfig, OverLong, States, TinyConfig
from trainer.data.corpus import load_corpus
from trainer.data.prepared import prepared_trees, read_builds
from trainer.model.tiny_model import build_model, train_tokenizer
from trainer.rl_config import RLConfig
from trainer.sft_config import SFTConfig

TINY = TinyConfig(vocab_size=700, hidden_size=32, num_layers=2, intermediate_size=64, max_position=2048)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Two trajectories with questions, prepared for both loops."""
    root = tmp_path_factory.mktemp("prepared")
    for dialogue in (THREE, talk(["I bake rye."], ["Bread again."], name="e")):
        sample(make(root / "set" / dialogue.id, dialogue, keep_all), Scripted(two_questions))
    for stage in ("sft", "rl"):
        for ending in ("jsonl", "parquet"):
            arguments = [
                stage,
                "--trajectories-dir",
                str(root / "set"),
                "--output-file",
                str(root / f"{stage}.{ending}"),
            ]
            assert prepare.main(arguments) == 0
    return root


@pytest.fixture(scope="module")
def model(files) -> Path:
    """A tiny model of random weights."""
    tokenizer = train_tokenizer(
        [record.prompt for record in records(files)], FourAgents(PROMPTS).tiny_tokens(60), TINY.vocab_size
    )
    build_model(tokenizer, TINY, seed=1).save_pretrained(files / "model")
    tokenizer.save_pretrained(files / "model")
    return files / "model"


@pytest.fixture(scope="module")
def tokenizer(model):
    from rollout.tokens import load_tokenizer

    return load_tokenizer(str(model))


def sft_config(path: Path | str, max_length: int, over_long: OverLong = OverLong.DROP) -> SFTConfig:
    return SFTConfig(data=DataConfig(prepared=str(path)), max_length=max_length, over_long=over_long)


def records(files: Path) -> list[SFTRecord]:
    return read_records(files / "sft.jsonl", SFTRecord)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_the_pairs_of_a_session_share_a_tree(files, tokenizer, ending):
    trees, counts = prepared_trees(tokenizer, sft_config(files / f"sft.{ending}", 2000))
    assert [tree.id for tree in trees] == ["d/0", "d/1", "d/2", "e/0", "e/1"]
    assert (counts.num_whole, counts.num_dropped) == (20, 0)
    found = [sequence for tree in trees for sequence in sequences_of(tree)]
    for record, sequence in zip(records(files), found, strict=True):
        assert sequence.prompt_token_ids == tuple(encode_prompt(tokenizer, record.prompt))
        assert decode_completion(tokenizer, sequence.completion_token_ids) == record.completion
        assert sequence.completion_token_ids[-1] == tokenizer.eos_token_id
    alone = sum(len(each.prompt_token_ids) + len(each.completion_token_ids) for each in found)
    assert (
        sum(tree.num_tokens for tree in trees) < 0.92 * alone
    )  # the dialogue stands once; instructions are most of a prompt here
    assert sum(map(count_loss_tokens, trees)) == sum(
        len(encode_completion(tokenizer, record.completion)) for record in records(files)
    )


def test_a_pair_that_names_no_session_stands_alone_and_long_ones_are_counted(files, tokenizer, tmp_path):
    lines = [{"prompt": "say a", "completion": "{}"}, {"prompt": "say b " * 500, "completion": "{}"}]
    (tmp_path / "sft.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    trees, counts = prepared_trees(tokenizer, sft_config(tmp_path / "sft.jsonl", 400))
    assert len(trees) == 1 and (counts.num_whole, counts.num_dropped) == (1, 1)
    with pytest.raises(ConfigError, match="over_long=drop or over_long=error"):
        prepared_trees(tokenizer, sft_config(tmp_path / "sft.jsonl", 400, OverLong.CUT))


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_sessions_come_with_memory_questions_and_the_experts_lengths(files, ending):
    builds = read_builds(DataConfig(prepared=str(files / f"rl.{ending}")), FourAgents(PROMPTS))
    written = read_records(files / "rl.jsonl", RLRecord)
    assert [(build.dialogue.id, len(build.steps)) for build in builds] == [("d", 3), ("e", 2)]
    steps = [step for build in builds for step in build.steps]
    asked = [questions for build in builds for questions in build.asked()]
    lengths = [tokens for build in builds for tokens in build.tokens_written(lambda texts: sum(map(len, texts)))]
    for record, step, questions, tokens in zip(written, steps, asked, lengths, strict=True):
        assert (step.session, step.bank_before, questions) == (record.session, record.bank_before, record.questions)
        for call in record.calls:
            assert tokens[call.agent] == sum(map(len, call.written))
            shown = step.shown[call.agent]
            # under the expert's own settings the loop asks what the expert was asked
            assert render_prompt(Agent(call.agent), step.session, step.bank_before, shown, PROMPTS) == call.prompt
    assert any(tokens[Agent.EPISODIC] for tokens in lengths)
    # the second session's questions, though those of several sessions name turns of the first
    drawn = choose_questions(builds[0].asked(), 1, RewardConfig(num_questions=100), seed="s")
    assert {question.text for question in drawn} == {question.text for question in written[1].questions}


@pytest.mark.slow
def test_both_loops_train_on_them(files, model, tmp_path):
    common = ["model.dtype=float32", "max_tokens=4000"]
    forks.finish(
        sft.main,
        ([*common, f"model.path={model}", f"data.prepared={files}/sft.jsonl", "max_steps=3", "sessions_per_step=2",
          "optim.lr=1e-2", "max_length=2048", f"out={tmp_path}/sft"],),
        tmp_path / "sft.log",
    )  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "sft/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and rows[-1]["sft/loss"] < rows[0]["sft/loss"]
    forks.finish(
        rl.main,
        ([*common, f"model.path={tmp_path}/sft/model", f"data.prepared={files}/rl.parquet",
          "engine=transformers", "num_steps=2", "sessions_per_step=2", "num_rollouts=2", "sampling.max_tokens=8",
          "sampling.top_p=1", "max_model_len=2048", f"out={tmp_path}/rl"],),
        tmp_path / "rl.log",
    )  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "rl/completions.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows} == {0, 1} and {row["session"].split("/")[0] for row in rows} <= {"d", "e"}


@pytest.mark.parametrize(
    ("other", "read", "message"),
    [
        ("rl.jsonl", "sft", "line 1.*is no SFTRecord.*membuilder.prepare sft"),
        ("sft.jsonl", "rl", "line 1.*is no RLRecord.*membuilder.prepare rl"),
        ("nowhere.jsonl", "rl", "no such file"),
        ("empty.jsonl", "rl", "there is none; make some"),
    ],
)
def test_other_files_are_refused_by_name(files, tokenizer, other, read, message):
    (files / "empty.jsonl").write_text("")
    path = str(files / other)
    with pytest.raises(DataError, match=f"{other}.*{message}"):
        if read == "rl":
            read_builds(DataConfig(prepared=path), FourAgents(PROMPTS))
        else:
            prepared_trees(tokenizer, sft_config(path, 2000))


def test_a_file_of_prompts_alone_or_of_other_operations_is_refused(files, tmp_path):
    lines = [json.loads(line) for line in (files / "rl.jsonl").read_text().splitlines()]
    (tmp_path / "prompts.jsonl").write_text(json.dumps(lines[0] | {"session": None, "bank_before": None}) + "\n")
    with pytest.raises(DataError, match="dialogue 'd', session 0.*prompts alone"):
        read_builds(DataConfig(prepared=str(tmp_path / "prompts.jsonl")), FourAgents(PROMPTS))
    with pytest.raises(DataError, match="dialogue 'd', session 0.*core_limit_chars=3"):
        read_builds(DataConfig(prepared=str(files / "rl.jsonl")), FourAgents(PromptConfig(core_limit_chars=3)))


def test_sessions_start_from_the_experts_memory_where_there_is_no_other():
    assert RLConfig(data=DataConfig(prepared="rl.jsonl")).states is States.EXPERT
    assert RLConfig().states is States.POLICY and RLConfig(states=States.EXPERT).states is States.EXPERT


def test_prompts_that_the_expert_was_not_asked_are_told(files, caplog):
    read_builds(DataConfig(prepared=str(files / "rl.jsonl")), FourAgents(PROMPTS))
    assert caplog.text == ""
    other = "full" if PROMPTS.template_set == "compact" else "compact"
    read_builds(DataConfig(prepared=str(files / "rl.jsonl")), FourAgents(replace(PROMPTS, template_set=other)))
    assert "rl.jsonl: 20 of 20 prompts are not those that the expert was asked" in caplog.text


def test_settings_that_need_whole_dialogues_are_refused(files):
    data = DataConfig(prepared=str(files / "rl.jsonl"))
    for changes in ({"states": States.POLICY}, {"dense": False}, {"states": States.EXPERT, "dense": False}):
        with pytest.raises(ValueError, match="leave states and dense out"):
            RLConfig(data=data, **changes)
    with pytest.raises(ConfigError, match="data.prepared holds no dialogues"):
        load_corpus(data)
    with pytest.raises(ValueError, match="not both"):
        DataConfig(path="a", prepared="b")
    with pytest.raises(SystemExit, match="model.path: name the folder.*python -m trainer.tiny --out DIR"):
        sft.main([f"data.prepared={files}/sft.jsonl"])


@pytest.fixture
def writer(tmp_path) -> Path:
    """A tiny model of random weights, whose chat template writes tools as Qwen3's does."""
    sizes = TinyConfig(vocab_size=700, hidden_size=32, num_layers=2, intermediate_size=64, max_position=8192)
    tokenizer = train_tokenizer([*ANSWERS, *(line for lines in TALK for line in lines)], [], sizes.vocab_size)
    tokenizer.chat_template = WITH_TOOLS
    build_model(tokenizer, sizes, seed=1).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow
def test_an_expert_of_another_scheme_is_imitated_and_rl_goes_on_from_its_memories(run, writer, tmp_path):  # noqa: F811
    folder = run("--scheme", "memalpha", "memalpha.max_turns=3", answer=in_two_turns)
    asked_about(folder, Scripted(two_questions))
    files = {stage: prepared(stage, folder) for stage in ("sft", "rl")}
    common = ["scheme=memalpha", "memalpha.max_turns=3", "model.dtype=float32", "max_tokens=9000", "save_every=1"]
    of_sft = [*common, f"model.path={writer}", f"data.prepared={files['sft']}", "sessions_per_step=1", "optim.lr=1e-2",
              "max_length=8192", f"out={tmp_path}/sft"]  # fmt: skip
    for steps in ("max_steps=2", "max_steps=4"):
        forks.finish(sft.main, ([*of_sft, steps, "resume=auto"],), tmp_path / "sft.log")
    rows = [json.loads(line) for line in (tmp_path / "sft/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3] and rows[-1]["sft/loss"] < rows[0]["sft/loss"]
    of_rl = [*common, f"model.path={tmp_path}/sft/model", f"data.prepared={files['rl']}", "engine=transformers",
             "sessions_per_step=2", "num_rollouts=2", "sampling.max_tokens=8", "sampling.top_p=1",
             "max_model_len=8192", "reward.judge=offline", "max_idle_steps=0", f"out={tmp_path}/rl"]  # fmt: skip
    forks.finish(rl.main, ([*of_rl, "num_steps=2"],), tmp_path / "rl.log")
    rows = [json.loads(line) for line in (tmp_path / "rl/completions.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows} == {0, 1} and {row["session"].split("/")[0] for row in rows} == {"talk"}
