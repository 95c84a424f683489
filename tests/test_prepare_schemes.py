"""Experts of other schemes than the four agents become training data: memalpha's writer, and a scheme in a folder."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from membuilder import expert, prepare, qa
from membuilder.bank.store import reading
from membuilder.building import dialogues
from membuilder.errors import ConfigError
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.load import load_scheme
from membuilder.schemes.memalpha import scheme
from membuilder.schemes.memalpha.config import MemAlphaConfig
from membuilder.schemes.scheme import CallOutcome, Prompt, Scheme, messages_of
from membuilder.trajectories.records import RLRecord, SFTRecord, read_records
from membuilder.trajectories.trajectory import read_trajectory
from membuilder.types import AgentUpdate, Operation, OperationKind
from rollout.tokens import encode_completion, encode_prompt
from tests import keeper
from tests.fakes import HashEmbedder
from tests.fault_server import FaultServer, Request, answering
from tests.forks import embedder  # noqa: F401
from tests.memalpha_chunks import call, insert
from tests.test_chat_template import tokenizer_with
from tests.test_memalpha_store import ANSWERS, TALK, reply, talk_file
from tests.test_qa_generation import Scripted, two_questions
from tests.test_turns import WITH_TOOLS
from trainer.batching.packing import build_tree, count_loss_tokens, sequences_of
from trainer.configs import DataConfig
from trainer.data.prepared import prepared_trees, read_builds
from trainer.data.sft_examples import examples
from trainer.model.tiny_model import train_tokenizer
from trainer.sft_config import SFTConfig

FOUND = call("search_memory", memory_type="semantic", query="cat") + insert("semantic", "Ann has a cat, Miso.")
MOVED = call("memory_update", memory_type="core", new_content="Ann moved.") + call(
    "memory_delete", memory_type="semantic", memory_id="m7"
)


def in_two_turns(request: Request) -> str:
    """The first session is answered in two turns and an end, the second in one and an end, the third by an end."""
    messages = request.body["messages"]
    if messages[0]["role"] == "user":
        return "yes"  # the check, and questions
    if messages[-1]["role"] == "tool":
        is_first = TALK[0][0] in messages[1]["content"] and len([m for m in messages if m["role"] == "assistant"]) == 1
        return MOVED if is_first else "Done"
    asked = messages[1]["content"]
    return FOUND if TALK[0][0] in asked else insert("episodic", "Ann moved to Rome.") if TALK[1][1] in asked else "Done"


Run = Callable[..., Path]


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    """An expert's samples about three chunks: a model behind a server that answers so, or rules."""
    monkeypatch.setattr(dialogues, "embedder_of", lambda options, costs: nullcontext(HashEmbedder()))
    monkeypatch.setenv("MEMBUILDER_CACHE", str(tmp_path / "cache"))

    def run(*flags: str, answer: Callable[[Request], str] | None = None, code: int = 0) -> Path:
        base = ["--dataset", "custom", "--dataset-path", str(talk_file(tmp_path / "talk.jsonl"))]
        base += ["--output-dir", str(tmp_path / "out")]
        if answer is None:
            assert expert.main([*base, "--expert", "rules", *flags]) == code
        else:
            with FaultServer(answering(answer)) as server:
                model = ["--expert-model", "m-1", "--provider", "vllm", "--base-url", server.base_url]
                assert expert.main([*base, *model, *flags]) == code
        return tmp_path / "out/custom"

    return run


def prepared(stage: str, folder: Path, *flags: str, ending: str = "jsonl") -> Path:
    path = folder / f"{stage}.{ending}"
    assert prepare.main([stage, "--trajectories-dir", str(folder), "--output-file", str(path), *flags]) == 0
    return path


def asked_about(folder: Path, model: Scripted) -> None:
    """Questions for every sample, written and checked by a scripted model behind a server."""
    ready = '{"ready": true}'

    def said(request: Request) -> str:
        messages = request.body["messages"]
        return ready if messages[0]["content"].startswith("Answer with this JSON") else model.reply(messages)

    with FaultServer(answering(said)) as server:
        flags = ["--provider", "vllm", "--base-url", server.base_url, "--model", "w", "--qa-per-session", "2"]
        assert qa.main(["--trajectories-dir", str(folder), "--max-missing", "1", *flags]) == 0


def memalpha(**settings) -> Scheme:
    return load_scheme("memalpha", PromptConfig(), MemAlphaConfig(**settings))


def names(completion: str) -> list[str]:
    return [line.split('"')[3] for line in completion.splitlines() if line.startswith("{")]


# What a sample is


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_sample_is_the_chat_prompt_and_the_calls_that_ran(run, ending, capsys):
    folder = run("--scheme", "memalpha", answer=reply)
    path = prepared("sft", folder, ending=ending)
    assert "3 records; left out: none" in capsys.readouterr().out
    first, second, third = read_records(path, SFTRecord)
    assert [(each.agent, each.dialogue, each.session, each.prompt) for each in (first, second, third)] == [
        ("writer", "talk", number, "") for number in range(3)
    ]
    assert isinstance(first.asked, Prompt) and [m["role"] for m in messages_of(first.asked)] == ["system", "user"]
    assert first.asked.tools[0]["function"]["name"] == "memory_insert"
    assert TALK[1][1] in messages_of(second.asked)[1]["content"] and "[m1] Ann has a cat" in str(second.asked)
    assert first.completion == "\n".join(f"<tool_call>{each}" for each in ANSWERS[0].split("<tool_call>")[1:])
    # of the second answer a delete names nothing and a call is no JSON; of the third an insert is there already
    assert names(second.completion) == ["memory_update", "memory_delete"] and "m9" not in second.completion
    assert names(third.completion) == ["memory_delete", "memory_insert"] and third.completion.count("Miso") == 0
    writer = memalpha()
    with reading(folder / "talk/memory.db") as store:
        steps = [each.step for each in read_trajectory(store).steps]
        assert steps[-1].result.bank == store.bank() and store.bank().deleted
    for record, step in zip((first, second, third), steps, strict=True):
        update = writer.parse("writer", record.completion, step.session)
        result = writer.apply(step.session, step.bank_before, {"writer": update}, step.shown)
        assert result.bank == step.result.bank
        assert all(each.outcome is CallOutcome.RAN for each in result.calls["writer"])


def test_answers_none_of_whose_calls_could_be_used_are_left_out_and_counted(run, capsys):
    def broken(request: Request) -> str:
        return "<tool_call>{broken</tool_call>" if TALK[1][0] in str(request.body["messages"]) else reply(request)

    folder = run("--scheme", "memalpha", "--max-failed", "1", answer=broken)
    records = read_records(prepared("sft", folder), SFTRecord)
    assert [record.session for record in records] == [0, 2]
    assert "2 records; left out: 1 not_json" in capsys.readouterr().out


def test_several_turns_are_one_sample_whose_loss_is_on_the_models_own_tokens(run):
    folder = run("--scheme", "memalpha", "memalpha.max_turns=3", answer=in_two_turns)
    first, second, third = read_records(prepared("sft", folder), SFTRecord)
    assert names(first.completion) == ["search_memory", "memory_insert"]
    # m7 is no entry: that call is no part of the sample, nor is what the model was told of it
    assert [names(each.completion) for each in first.later] == [["memory_update"], []]
    assert [each.completion for each in second.later] == ["Done"] and (third.completion, third.later) == ("Done", ())
    told, after = (each.told for each in first.later)
    assert [each["role"] for each in told] == ["tool", "tool"] and json.loads(told[1]["content"])["memory_id"] == "m1"
    assert [json.loads(each["content"]) for each in after] == [{"status": "ok"}]

    tokenizer = tokenizer_with(WITH_TOOLS)
    sequences = examples(tokenizer, encode_prompt(tokenizer, first.asked), first.completion, first.later, ())
    assert list(sequences[0].prompt_token_ids) == encode_prompt(tokenizer, first.asked)
    said = [first.completion, *(each.completion for each in first.later)]
    for text, sequence in zip(said, sequences, strict=True):
        assert list(sequence.completion_token_ids) == encode_completion(tokenizer, text)
    for before, after in zip(sequences, sequences[1:], strict=False):
        so_far = before.prompt_token_ids + before.completion_token_ids
        assert after.prompt_token_ids[: len(so_far)] == so_far
        between = tokenizer.decode(after.prompt_token_ids[len(so_far) :])
        assert "<tool_response>" in between and between.endswith("<|im_start|>assistant\n")
    tree = build_tree(sequences)
    assert count_loss_tokens(tree) == sum(len(encode_completion(tokenizer, text)) for text in said)
    assert tree.num_tokens == len(sequences[-1].input_token_ids)  # all turns stand in one row


def test_what_the_offline_expert_wrote_is_prepared_in_the_format_asked_for(run):
    settings = {"response_format": "compact", "max_calls": 2}
    flags = [f"memalpha.{key}={value}" for key, value in settings.items()]
    folder = run("--scheme", "memalpha", *flags, "memalpha.prompts.template_set=compact")
    records = read_records(prepared("sft", folder), SFTRecord)
    assert len(records) == 3 and all(record.completion.endswith("<done>") for record in records)
    assert "#" in records[0].completion and all(record.prompt and record.chat is None for record in records)


def test_a_call_of_the_offline_expert_that_did_not_run_is_no_part_of_a_sample(run, monkeypatch):
    twice = (Operation(kind=OperationKind.ADD, part="semantic", text="Ann has a cat."),) * 2
    monkeypatch.setattr(scheme, "propose", lambda *_: AgentUpdate(operations=twice))
    records = read_records(prepared("sft", run("--scheme", "memalpha")), SFTRecord)
    assert [names(record.completion) for record in records] == [["memory_insert"], [], []]


def test_parts_are_excluded_by_the_flag_that_other_commands_have(run, capsys):
    folder = run("--scheme", "memalpha", "--exclude-memory", "episodic,core")
    with reading(folder / "talk/memory.db") as store:
        assert store.settings()["memalpha"]["exclude_memory"] == ["core", "episodic"]
        assert store.agents() == {"semantic"}
    prompt = str(read_records(prepared("sft", folder), SFTRecord)[0].asked)
    assert "semantic_memory" in prompt and "core_memory" not in prompt and "episodic" not in prompt
    run("--exclude-memory", "core", code=2)
    assert "memalpha.exclude_memory without effect under scheme=four_agents" in capsys.readouterr().err


def test_whole_samples_of_every_scheme_are_skipped_and_cut_ones_are_not(run, capsys):
    folder = run("--scheme", "memalpha")
    capsys.readouterr()
    run("--scheme", "memalpha", "--skip-existing")
    assert "1 dialogues, of which 1 are whole and skipped" in capsys.readouterr().out
    (folder / "talk/metadata.json").unlink()
    run("--scheme", "memalpha", "--skip-existing")
    assert "of which 0 are whole" in capsys.readouterr().out and (folder / "talk/metadata.json").is_file()


def test_published_shapes_refuse_another_scheme_by_its_role(run, capsys):
    folder = run("--scheme", "memalpha")
    for flags, said in (
        (("--output-file", str(folder / "x.json"), "--to", "llama-factory"), "role 'writer' is none of the four"),
        (("--output-file", str(folder / "x.jsonl"), "--write-out"), "--write-out is about quotes of four_agents"),
    ):
        assert prepare.main(["sft", "--trajectories-dir", str(folder), *flags]) == 2
        assert said in capsys.readouterr().err and not list(folder.glob("x.*"))


# RL, and a scheme in a folder


def test_rl_starts_from_the_experts_memory_with_questions_that_a_model_wrote(run):
    folder = run("--scheme", "memalpha", "memalpha.max_turns=3", answer=in_two_turns)
    asked_about(folder, Scripted(two_questions))
    (line, *_) = [json.loads(text) for text in (folder / "talk/rl_training_data.jsonl").read_text().splitlines()]
    assert line["state_after"] == {"core_memory": "Ann moved.", "semantic": ["Ann has a cat, Miso."], "episodic": []}
    assert [names(text) for text in line["expert_actions"]["writer"]][1:] == [["memory_update"], []]
    path = prepared("rl", folder)
    written = read_records(path, RLRecord)
    (build,) = read_builds(DataConfig(prepared=str(path)), memalpha(max_turns=3))
    with reading(folder / "talk/memory.db") as store:
        steps = [each.step for each in read_trajectory(store).steps]
    assert [step.bank_before for step in build.steps] == [step.bank_before for step in steps[: len(build.steps)]]
    assert [step.result.bank for step in build.steps] == [step.result.bank for step in steps[: len(build.steps)]]
    assert [record.calls[0].written for record in written][0] == ("Ann has a cat, Miso.", "Ann moved.")
    assert all(record.state_before is None for record in written)
    dialogue = json.loads(prepared("rl", folder, "--to", "dialogues").read_text().splitlines()[0])
    assert len(dialogue["sessions"]) == 3 and dialogue["questions"]


def toy(request: Request) -> str:
    """The toy scheme's model keeps the first line, then the last."""
    messages = request.body["messages"]
    if "keep:" not in messages[-1]["content"]:
        return '{"ready": true}'
    return "#1" if messages[-1]["role"] == "user" else "#2"


def test_a_scheme_in_a_folder_is_prepared_as_the_built_in_ones_are(run, tmp_path):
    name = str(keeper.write(tmp_path / "clerk", keeper.SEVERAL_TURNS))
    folder = run("--scheme", name, answer=toy)
    records = read_records(prepared("sft", folder), SFTRecord)
    assert [record.agent for record in records] == ["keeper"] * 3
    assert all((record.completion, record.later[0].completion) == ("#1", "#2") for record in records)
    assert records[0].later[0].told == ({"role": "tool", "content": "ran\nkeep:"},)
    tokenizer = train_tokenizer([str(record.asked) for record in records], ["#1", "#2"], 400)
    given = dict(data=DataConfig(prepared=str(folder / "sft.jsonl")), max_length=2000)
    trees, _ = prepared_trees(tokenizer, SFTConfig(scheme=name, **given))
    assert [len(sequences_of(tree)) for tree in trees] == [2, 2, 2]
    with pytest.raises(ConfigError, match=r"holds answers of role 'keeper', which scheme=four_agents has not"):
        prepared_trees(tokenizer, SFTConfig(**given))
    asked_about(folder, Scripted(two_questions))
    path = prepared("rl", folder)
    (build,) = read_builds(DataConfig(prepared=str(path)), load_scheme(name, PromptConfig()))
    assert [len(step.result.bank.entries) for step in build.steps] == [2, 4, 6]
