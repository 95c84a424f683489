"""What a user can do wrong, through the commands: each mistake ends in a few words that name it, without a traceback.

In the table `{w}` stands for a folder with good and bad files, which `workbench` makes. Mistakes in benchmark files
stand in test_datasets_bad.py, those of servers in test_asking_commands.py, those found before any library is loaded in
test_startup.py.
"""

import gzip
import importlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from membuilder import eval as evaluation
from membuilder import inspect as inspection
from membuilder.command import clear_errors, exit_status, message_of
from membuilder.errors import ConfigError
from membuilder.trajectories.trajectory import QA_FILE
from reward.formula import load_formula
from reward.judges import load_judge
from tests.evaluating import DIALOGUE
from tests.fakes import HashEmbedder
from tests.fault_server import FaultServer, answering, raw, status
from tests.test_expert import make
from trainer import run_setup
from trainer.losses import resolve_loss

ROOT = Path(__file__).resolve().parent.parent
LINE = json.dumps(DIALOGUE) + "\n"
LONG = "n" * 300
SECRET = "sesame-4711"
EVAL = "membuilder.eval --dataset custom --output-dir {w}/new --system none --dataset-path"
GOOD = f"{EVAL} {{w}}/good.jsonl"
ASK = f"{GOOD} --provider vllm --judge-provider vllm --endpoint max_attempts=1 --model m"
BUILD = "membuilder.build --dataset-path {w}/good.jsonl --model rules --out {w}/new.db"
EXPERT = "membuilder.expert --dataset custom --dataset-path {w}/good.jsonl --expert rules --output-dir {w}/new"
PREPARE = "membuilder.prepare sft --output-file {w}/new.jsonl"
SFT = "trainer.sft data.prepared={w}/sft.jsonl out={w}/new model.dtype=float32"
QA = "membuilder.qa --provider vllm --base-url http://127.0.0.1:9/v1 --endpoint max_attempts=1 --trajectories-dir"
NO_STORE = "membuilder.inspect {w}"

MISTAKES = [  # (command line, what is said of it)
    # Files
    (f"{EVAL} {{w}}/folder.jsonl", ["{w}/folder.jsonl", "Is a directory", "name a file"]),
    (f"{EVAL} {{w}}/empty.jsonl", ["{w}/empty.jsonl", "is empty"]),
    (f"{EVAL} {{w}}/binary.jsonl", ["{w}/binary.jsonl", "not UTF-8", "save it as UTF-8"]),
    (f"{EVAL} {{w}}/utf16.jsonl", ["{w}/utf16.jsonl", "not UTF-8 at byte 0 (line 1)"]),
    (f"{EVAL} {{w}}/cut.jsonl.gz", ["{w}/cut.jsonl.gz", "not a whole gzip file"]),
    (f"{EVAL} {{w}}/trailing.json", ["{w}/trailing.json", "Extra data: line 2, column", "correct it"]),
    (f"{EVAL} {{w}}/one_bad_line.jsonl", ["one_bad_line.jsonl: line 2", "column 2", "correct it"]),
    (f"{EVAL} {{w}}/nan.jsonl", ["{w}/nan.jsonl", "questions[0].answer", "got `float`"]),
    (f"{EVAL} {{w}}/deep.jsonl", ["{w}/deep.jsonl", "line 1", "recursion"]),
    (f"{EVAL} {{w}}/digits.jsonl", ["{w}/digits.jsonl", "line 1", "digits"]),
    (f"{EVAL} {{w}}/twice.jsonl", ["line 2 (d1)", "also the id of line 1", "rename"]),
    (f"{EVAL} {{w}}/year_0.jsonl", ["sessions[0].timestamp", "0000-03-15", "expected a date like"]),
    (f"{EVAL} {LONG * 15}", [f"'{LONG[:200]}...': File name too long", "name another"]),
    (f"{GOOD} --subset-file {{w}}/object.json", ["{w}/object.json", "expected a list of ids"]),
    # Folders
    (f"{GOOD} --output-dir {{w}}/good.jsonl", ["'{w}/good.jsonl': File exists", "name another"]),
    (f"{GOOD} --output-dir {{w}}/good.jsonl/x", ["'{w}/good.jsonl/x': Not a directory", "name another"]),
    (f"{GOOD} --output-dir {{w}}/{LONG}", ["File name too long", "name another"]),
    (f"{GOOD} --output-dir /proc/nowhere", ["'/proc/nowhere': No such file or directory", "name another"]),
    (f"{GOOD} --answer-cache {{w}}/good.jsonl", ["{w}/good.jsonl", "cannot be used", "name another"]),
    (f"{EXPERT} --output-dir {{w}}/good.jsonl", ["{w}/good.jsonl/custom", "cannot be written", "name a file in a"]),
    (f"{PREPARE} --input-file {{w}}/sft.jsonl --output-file {{w}}/{LONG}.jsonl", ["File name too long"]),
    (f"{PREPARE} --input-file {{w}}/sft.jsonl --output-file {{w}}/folder.jsonl", ["{w}/folder.jsonl", "directory"]),
    ("membuilder.inspect {w}/d/memory.db --html=", ["--html needs the name of a file"]),
    (f"{SFT} out={{w}}/good.jsonl model.path={{w}}/model", ["'{w}/good.jsonl': File exists", "name another"]),
    ("trainer.export {w} {w}/" + LONG, ["File name too long"]),
    # YAML
    (f"{BUILD} --config {{w}}/syntax.yaml", ["{w}/syntax.yaml", "not valid YAML: line 2, column 1"]),
    (f"{BUILD} --config {{w}}/tab.yaml", ["{w}/tab.yaml", "line 2, column 1", "\\t"]),
    (f"{BUILD} --config {{w}}/unknown.yaml", ["{w}/unknown.yaml", "'max_turn'", "Did you mean 'max_turns'?"]),
    (f"{BUILD} --config {{w}}/type.yaml", ["key 'max_turns': 'many'", "expected int"]),
    (f"{BUILD} --config {{w}}/list.yaml", ["expected 'key: value' lines, found a list"]),
    (f"{BUILD} --config {{w}}/duplicate.yaml", ["line 2, column 1: found duplicate key max_turns"]),
    (f"{BUILD} --config {{w}}/bomb.yaml", ["{w}/bomb.yaml", "YAML node expansion exceeds"]),
    (f"{BUILD} --config {{w}}/environment.yaml", ["key 'scheme'", "NOWHERE_IS_SET"]),
    (f"{BUILD} --config {{w}}/reference.yaml", ["{w}/reference.yaml", "not valid YAML", "${nope"]),
    (f"{BUILD} --config {{w}}/nested.yaml", ["{w}/nested.yaml", "recursion"]),
    (f"{BUILD} --config {{w}}/null_key.yaml", ["{w}/null_key.yaml", "NoneType"]),
    (f"{BUILD} --config {{w}}/digits.yaml", ["{w}/digits.yaml", "digits"]),
    (f"{BUILD} --config {{w}}/dotted.yaml", ["'model.name'", "under its section"]),
    (f"{BUILD} --config {{w}}/nul.yaml", ["{w}/nul.yaml: key 'embedding_cache'", "NUL character"]),
    (f"{BUILD} --config {{w}}/empty.jsonl", ["the file is empty; leave it out"]),
    # Overrides
    (f"{BUILD} max_turns", ["'max_turns' is not an override; write key=value"]),
    (f"{BUILD} parallel=", ["key 'parallel': None does not fit; expected int"]),
    (f"{BUILD} model.timeout_seconds=inf", ["key 'model.timeout_seconds': 'inf'", "it is not finite"]),
    (f"{BUILD} max_turns={'9' * 20}", ["key 'max_turns'", "64 bits"]),
    (f"{BUILD} scheme=${{", ["scheme: the value '${' is not valid YAML"]),
    (f"{SFT} seed={'9' * 20}", ["key 'seed'", "at most 4294967295"]),
    (f"{SFT} optim.lr=nan", ["key 'optim.lr': 'nan' does not fit; expected float (above 0)"]),
    # Flags
    (f"{GOOD} --top-k x", ["python -m membuilder.eval: error: argument --top-k: 'x' does not fit", "--help"]),
    (f"{GOOD} --seed -1", ["argument --seed: '-1' does not fit; expected int (at least 0, at most 4294967295)"]),
    (f"{GOOD} --system everything", ["--system: invalid choice: 'everything'", "full-context"]),
    (f"{GOOD} --price m=1", ["--price", "'m=1' is no MODEL=IN,OUT such as"]),
    (f"{GOOD} --price m=nan,1", ["--price", "'m=nan,1' is no MODEL=IN,OUT such as"]),
    (
        "membuilder.eval compare {w}/a {w}/b --seed=-1",
        ["argument --seed: '-1' does not fit; expected int (at least 0, at most 4294967295)"],
    ),
    (
        f"{QA} {{w}} --max-missing nan",
        ["argument --max-missing: 'nan' does not fit; expected float (at least 0, at most 1)"],
    ),
    (
        f"{EXPERT} --max-failed nan",
        ["argument --max-failed: 'nan' does not fit; expected float (at least 0, at most 1)"],
    ),
    (f"{BUILD} --dataset other", ["--dataset: invalid choice: 'other'", "locomo"]),
    ("membuilder.data fetch other", ["argument name: invalid choice: 'other'", "locomo"]),
    ("membuilder.__main__ remember", ["invalid choice: 'remember'", "inspect"]),
    ("trainer.plots", ["python -m trainer.plots: error", "run_dir"]),
    ("trainer.sft --nodes 2", ["python -m trainer.sft: error: unrecognized arguments: --nodes"]),
    ("trainer.quickstart rll.num_steps=1", ["'rll.num_steps=1'", "start it with sft. or rl."]),
    # Models
    (f"{SFT} model.path={{w}}/no_config", ["no model at '{w}/no_config'", "model_type", "name a whole"]),
    (f"{SFT} model.path={{w}}/no_config/README.md", ["no model at '{w}/no_config/README.md': name a whole Hugging"]),
    (f"{SFT} model.path={{w}}/strange", ["no model at '{w}/strange'", "strange", "name a whole"]),
    (f"{SFT} model.path={{w}}/wrong_type", ["no model at '{w}/wrong_type'", "hidden_size", "name a whole"]),
    (f"{SFT} model.path={{w}}/broken", ["no model at '{w}/broken'", "header", "name a whole"]),
    (f"{SFT} model.path={{w}}/bad_index", ["no model at '{w}/bad_index'", "metadata", "name a whole"]),
    (f"{SFT} model.path={{w}}/adapter", ["no model at '{w}/adapter'", "merge it into its model"]),
    (f"{SFT} model.path={{w}}/model", ["no tokenizer at '{w}/model'", "copy the model's tokenizer files"]),
    (f"{GOOD} --system rag-turn --embedding-model {{w}}/wrong_type", ["config.json", "hidden_size", "name another"]),
    (f"{GOOD} --system rag-turn --embedding-model {{w}}/broken_json", ["config.json", "not one JSON document"]),
    # Servers
    (f"{ASK} --base-url http://localhost:abc/v1", ["model 'm'", "is no address such as http", "'abc'"]),
    (f"{ASK} --base-url http://[::1/v1", ["model 'm'", "is no address such as http"]),
    (f"{ASK} --base-url http://a..b/v1", ["model 'm'", "is no address such as http"]),
    (f"{ASK} --base-url http://127.0.0.1:9/v1 --api-key {SECRET}ä", ["--api-key or VLLM_API_KEY", "copy it anew"]),
    (f"{ASK} --base-url http://127.0.0.1:9/v1 --api-key {SECRET}", ["http://127.0.0.1:9/v1/: no connection"]),
    (f"{ASK} --base-url {{html}}", ["{html}", "not declared as JSON", "root of an OpenAI-compatible API"]),
    (f"{ASK} --base-url {{missing}} --api-key {SECRET}", ["{missing}", "HTTP 404", "usually ending in /v1"]),
    # Stores
    ("membuilder.inspect {w}/text.db", ["{w}/text.db: not a SQLite file", "name the file that a build wrote"]),
    ("membuilder.inspect {w}/other.db", ["{w}/other.db: not a memory store", "name the file that a build wrote"]),
    ("membuilder.inspect {w}/newer.db", ["schema version 99", "use the version that built it"]),
    ("membuilder.inspect {w}/cut.db", ["{w}/cut.db: is damaged", "build into a new file"]),
    ("membuilder.inspect {w}/d/memory.db --session 99", ["no session 99; this store has 3"]),
    # Outputs of an evaluation
    ("membuilder.eval compare {w}/nowhere {w}/b", ["no answers.jsonl at {w}/nowhere/answers.jsonl", "FOLDER:SYSTEM"]),
    ("membuilder.eval compare {w}/ran {w}/edited", ["{w}/edited/answers.jsonl: line 1", "scores", "remove the line"]),
    ("membuilder.eval compare {w}/ran {w}/garbage", ["{w}/garbage/answers.jsonl: line 1", "remove the line"]),
    (
        f"{GOOD} --output-dir {{w}}/answers_folder",
        ["answers_folder holds answers.jsonl without run.json", "choose another"],
    ),
    (f"{GOOD} --output-dir {{w}}/ran --top-k 3", ["{w}/ran was begun with other settings: top_k=10 (now 3)"]),
    # Expert folders and their questions
    (f"{PREPARE} --trajectories-dir {{w}}/no_db", ["{w}/no_db/memory.db: no such store"]),
    (
        "membuilder.prepare rl --output-file {w}/new.jsonl --trajectories-dir {w}/bad_qa",
        ["rl_training_data.jsonl", "line 1"],
    ),
    # Prepared data
    (f"{PREPARE} --input-file {{w}}/foreign.parquet", ["{w}/foreign.parquet: line 1", "`prompt`", "no SFTRecord"]),
    (f"{PREPARE} --input-file {{w}}/text.parquet", ["{w}/text.parquet", "cannot be read as a Parquet file"]),
    (f"{PREPARE} --input-file {{w}}/folder.parquet", ["{w}/folder.parquet", "is a folder; name a Parquet file"]),
    (
        "membuilder.prepare rl --output-file {w}/new.jsonl --input-file {w}/nested.parquet",
        ["field 'questions'", "no JSON"],
    ),
    (
        "membuilder.prepare rl --output-file {w}/new.jsonl --input-file {w}/lists.parquet",
        ["field 'questions'", "no JSON"],
    ),
    # Plots
    ("trainer.plots {w}/log_of_lists", ["{w}/log_of_lists/metrics.jsonl: row 1", "Expected `object`"]),
    (
        "trainer.plots {w}/log_of_texts",
        ["{w}/log_of_texts/metrics.jsonl: row 1", "got `str`", "name the folder of a run"],
    ),
    ("trainer.plots {w}/log_of_bytes", ["{w}/log_of_bytes/metrics.jsonl: line 1"]),
    ("trainer.plots {w}/bad_summary", ["{w}/bad_summary/summary.json", "systems", "name the folder of a run"]),
]


def files_of(w: Path) -> None:
    deep = "[" * 100_000
    texts = {
        "good.jsonl": LINE,
        "empty.jsonl": "",
        "trailing.json": f"[{LINE}] and more",
        "one_bad_line.jsonl": LINE + "{bad\n",
        "nan.jsonl": LINE.replace('"Miso"', "NaN"),
        "deep.jsonl": deep,
        "digits.jsonl": LINE.replace('"Miso"', "9" * 5000),
        "twice.jsonl": LINE * 2,
        "year_0.jsonl": LINE.replace("2024-03-15", "0000-03-15"),
        "object.json": "{}",
        "syntax.yaml": "max_turns: [1\n",
        "tab.yaml": "prompts:\n\tentries_shown: 5\n",
        "unknown.yaml": "max_turn: 1\n",
        "type.yaml": "max_turns: many\n",
        "list.yaml": "- max_turns\n",
        "duplicate.yaml": "max_turns: 4\nmax_turns: 5\n",
        "bomb.yaml": "a: &a [x]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)),
        "environment.yaml": "scheme: ${oc.env:NOWHERE_IS_SET}\n",
        "reference.yaml": "scheme: ${nope\n",
        "nested.yaml": f"scheme: {'[' * 20_000}\n",
        "null_key.yaml": "null: 1\n",
        "digits.yaml": f"max_turns: {'9' * 5000}\n",
        "dotted.yaml": "model.name: rules\n",
        "nul.yaml": 'embedding_cache: "a\\0b"\n',
        "no_config/README.md": "",
        "strange/config.json": '{"model_type": "strange"}',
        "wrong_type/config.json": '{"model_type": "qwen3", "hidden_size": "x"}',
        "broken_json/config.json": "{",
        "adapter/adapter_config.json": '{"peft_type": "LORA", "base_model_name_or_path": "/nowhere"}',
        "sft.jsonl": json.dumps({"prompt": "p", "completion": "c"}) + "\n",
        "text.db": "no SQLite\n" * 100,
        "text.parquet": "no Parquet",
        "folder.parquet/part.txt": "",
        "folder.jsonl/part.txt": "",
        "log_of_lists/metrics.jsonl": "[]\n",
        "log_of_texts/metrics.jsonl": '{"step": 0, "kl": "small"}\n',
        "bad_summary/summary.json": '{"systems": 5}',
        "answers_folder/answers.jsonl/part.txt": "",
    }
    for name, text in texts.items():
        (w / name).parent.mkdir(parents=True, exist_ok=True)
        (w / name).write_text(text)
    (w / "binary.jsonl").write_bytes(b"\x00\xff\x80")
    (w / "utf16.jsonl").write_bytes(LINE.encode("utf-16"))
    (w / "cut.jsonl.gz").write_bytes(gzip.compress(LINE.encode())[:60])
    (w / "log_of_bytes").mkdir()
    (w / "log_of_bytes/metrics.jsonl").write_bytes(b"\xff\xfe\n")
    tables = {
        "foreign": {"a": [1]},
        "nested": {"dialogue": ["a"], "session_index": [0], "questions": ["{bad"], "calls": ["[]"]},
        "lists": {"dialogue": ["a"], "session_index": [0], "questions": [[1]], "calls": [[2]]},
    }
    for name, columns in tables.items():
        pyarrow.parquet.write_table(pyarrow.table(columns), w / f"{name}.parquet")


def stores_of(w: Path) -> None:
    make(w / "d")
    for name in ("no_db", "bad_qa"):
        shutil.copytree(w / "d", w / name)
    (w / "no_db/memory.db").unlink()
    (w / "bad_qa" / QA_FILE).write_text('{"conversation_id": 5}\n')
    whole = sqlite3.connect(w / "d/memory.db")
    whole.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    whole.close()
    (w / "cut.db").write_bytes((w / "d/memory.db").read_bytes()[:6000])
    shutil.copy(w / "d/memory.db", w / "newer.db")
    for name, statement in (("newer", "PRAGMA user_version = 99"), ("other", "CREATE TABLE notes (text)")):
        connection = sqlite3.connect(w / f"{name}.db")
        connection.execute(statement)
        connection.commit()
        connection.close()


def models_of(w: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from trainer.model.tiny_model import train_tokenizer

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8, "vocab_size": 50}
    Qwen3ForCausalLM(Qwen3Config(**sizes, num_attention_heads=2, num_key_value_heads=1)).save_pretrained(w / "model")
    for name in ("broken", "bad_index"):
        shutil.copytree(w / "model", w / name)
        train_tokenizer(["a cat"], [], 300).save_pretrained(w / name)  # it is looked at before the weights are
    weights = w / "broken/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (w / "bad_index/model.safetensors").rename(w / "bad_index/part.safetensors")
    (w / "bad_index/model.safetensors.index.json").write_text('{"weight_map": {"a": "part.safetensors"}}')


@pytest.fixture(scope="module")
def workbench(tmp_path_factory) -> Path:
    w = tmp_path_factory.mktemp("w")
    files_of(w)
    stores_of(w)
    models_of(w)
    assert evaluation.main(f"{GOOD} --output-dir {{w}}/ran".format(w=w).split()[1:]) == 0
    answers = (w / "ran/answers.jsonl").read_text()
    for name, text in (("edited", answers.replace('"recall@10"', '"recal@10"')), ("garbage", f"{{\n{answers}")):
        (w / name).mkdir()
        (w / name / "answers.jsonl").write_text(text)
    return w


@pytest.fixture(scope="module")
def servers():
    with FaultServer(raw(b"<html>hi</html>", content_type="text/html")) as html, FaultServer(status(404)) as missing:
        yield {"html": html.base_url, "missing": missing.base_url}


@pytest.fixture(autouse=True)
def plain_surroundings(tmp_path, monkeypatch):
    for variable in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "VLLM_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("MEMBUILDER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(run_setup, "Embedder", lambda model: HashEmbedder())


def end_of(command: str, capsys) -> tuple[int, str]:
    """Exit status of a command line in this process, and what it said but for progress. An exception is a traceback."""
    module, *arguments = command.split(" ")
    capsys.readouterr()
    try:
        code = importlib.import_module(module).main(arguments)
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr().err
    if isinstance(code, str):  # as Python ends a program
        code, said = 1, f"{said}{code}\n"
    return code, "\n".join(line for line in said.splitlines() if "%|" not in line and line.strip())


@pytest.mark.parametrize(("command", "says"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_is_told_in_a_few_words(command, says, workbench, servers, capsys):
    places = {"{w}": str(workbench)} | {f"{{{name}}}": url for name, url in servers.items()}

    def placed(text: str) -> str:
        for name, place in places.items():
            text = text.replace(name, place)
        return text

    code, said = end_of(placed(command), capsys)
    assert code in (1, 2), said
    assert [each for each in map(placed, says) if each not in said] == [], said
    assert "Traceback" not in said and SECRET not in said
    assert len(said.splitlines()) <= 3 and len(said) < 1200, said


def test_the_table_is_long_enough():
    assert len(MISTAKES) >= 60
    assert len({command.split()[0] for command, _ in MISTAKES}) >= 11


def test_a_wrong_setting_is_not_said_to_go_on(workbench, capsys):
    assert "goes on" not in end_of(f"{BUILD} max_turns=0".format(w=workbench), capsys)[1]
    unreachable = f"{BUILD} --model m --provider vllm --base-url http://127.0.0.1:9/v1 --endpoint max_attempts=1"
    assert "the same command goes on" in end_of(unreachable.format(w=workbench), capsys)[1]


# What questions left


def sample(workbench: Path, folder: Path, name: str, text: str) -> str:
    shutil.copytree(workbench / "d", folder / "d")
    (folder / "d" / name).write_text(text)
    return f"membuilder.qa --provider vllm --model m --trajectories-dir {folder}"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("qa_report.json", "{bad", "JSON"),
        ("qa_report.json", "{}", "asked_for"),
        (f"{QA_FILE}.unfinished", "", "is empty"),
        (f"{QA_FILE}.unfinished", "[]\n", "line 1"),
    ],
)
def test_edited_questions_are_to_be_moved_away(name, text, says, workbench, tmp_path, capsys):
    command = sample(workbench, tmp_path, name, text)
    if name == "qa_report.json":
        (tmp_path / "d" / QA_FILE).write_text("")
    with FaultServer(answering(lambda request: '{"ready": true}')) as server:
        code, said = end_of(f"{command} --base-url {server.base_url}", capsys)
    assert code == 2 and name in said and says in said and "move the file away" in said, said


# A user's own functions

PLUGINS = [
    ("def judge(question, bank, retrieval) return\n", ["line 1", "no Python", "expected ':'"]),
    ("\0", ["no Python", "null bytes"]),
    ("def judged(question, bank, retrieval): ...\n", ["defines no function 'judge'"]),
    ("def judge(question): ...\n", ["it is called with (question, bank, retrieval), but takes (question)"]),
    ("judge = 5\n", ["defines no function 'judge'"]),
    ("import nowhere_installed\n", ["judge.py, line 1, in <module>: ModuleNotFoundError", "correct your function"]),
    ("\nlimit = 1 / 0\n", ["judge.py, line 2, in <module>: ZeroDivisionError", "correct your function"]),
]


@pytest.mark.parametrize(("text", "says"), PLUGINS)
def test_a_function_of_the_users_own_is_told_by_its_line(text, says, tmp_path, capsys):
    path = tmp_path / "judge.py"
    path.write_text(text)
    assert exit_status("trainer.rl", lambda: load_judge(f"{path}:judge")) == 2
    said = capsys.readouterr().err
    assert said.startswith("trainer.rl: ") and str(path) in said
    assert [each for each in says if each not in said] == [] and len(said.splitlines()) == 1, said


def test_what_the_users_function_raises_later_is_told_by_its_line(tmp_path):
    path = tmp_path / "judge.py"
    path.write_text("import json\n\n\ndef judge(question, bank, retrieval):\n    return json.loads(question)\n")
    with pytest.raises(SystemExit, match="line 5, in judge: JSONDecodeError: Expecting value.*correct your function"):
        with clear_errors("trainer.rl"):
            load_judge(f"{path}:judge")("", None, None)
    # a fault of ours that the user's function met is ours
    path.write_text("from membuilder.plugins import load_function\n\n\ndef judge(*_):\n    load_function(5)\n")
    with pytest.raises(AttributeError), clear_errors("trainer.rl"):
        load_judge(f"{path}:judge")("", None, None)


def test_a_formula_or_loss_with_another_signature_is_refused(tmp_path):
    (tmp_path / "reward.py").write_text("def score(outputs): ...\n")
    with pytest.raises(ConfigError, match=r"called with \(outputs, qa, config\), but takes \(outputs\)"):
        load_formula(str(tmp_path))
    with pytest.raises(ConfigError, match=r"called with \(inputs, config\), but takes \(outputs\)"):
        resolve_loss(f"{tmp_path}/reward.py:score")


# Whose fault it is


@pytest.mark.parametrize("fault", [KeyError("name"), TypeError("no"), AssertionError("ours"), OSError("no file named")])
def test_a_fault_of_ours_keeps_its_traceback(fault):
    def run() -> int:
        raise fault

    with pytest.raises(type(fault)):
        exit_status("membuilder.build", run)
    with pytest.raises(type(fault)), clear_errors("trainer.sft"):
        run()


def test_a_full_disk_is_told_without_a_file_name():
    with pytest.raises(OSError) as caught, open("/dev/full", "w") as full:
        full.write("text")
    assert message_of(caught.value) == "No space left on device; make room and run the command again"
    assert message_of(None) is None


# Stops


def stopped() -> int:
    raise KeyboardInterrupt


def test_ctrl_c_is_130_in_every_command(capsys):
    assert exit_status("membuilder.eval", stopped, "What is answered stays.") == 130
    assert capsys.readouterr().err == "membuilder.eval: stopped. What is answered stays.\n"
    with pytest.raises(SystemExit) as ended, clear_errors("trainer.sft"):
        stopped()
    assert ended.value.code == 130 and capsys.readouterr().err == "trainer.sft: stopped.\n"


@pytest.mark.parametrize(("module", "inner"), [("eval", "_evaluate"), ("prepare", "_write"), ("data", "_fetch")])
def test_each_command_ends_so(module, inner, monkeypatch, capsys):
    command = importlib.import_module(f"membuilder.{module}")
    monkeypatch.setattr(command, inner, lambda *_: stopped())
    arguments = {"eval": [], "prepare": ["sft", "--input-file", "x.jsonl", "--output-file", "y.jsonl"]}
    assert command.main(arguments.get(module, ["fetch", "locomo"])) == 130
    assert capsys.readouterr().err.startswith(f"membuilder.{module}: stopped.")


def test_inspect_ends_so(monkeypatch, capsys):
    monkeypatch.setattr(inspection, "read_contents", lambda store: stopped())
    with pytest.raises(SystemExit) as ended:
        inspection.main(["x.db"])
    assert ended.value.code == 130 and capsys.readouterr().err == "membuilder.inspect: stopped.\n"


def started(*arguments: str, **how) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True, **how)


def test_ctrl_c_to_a_real_process(tmp_path):
    script = """
import signal, sys, time
from membuilder import prepare
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
prepare._write = lambda given: (print("on", flush=True), time.sleep(60))
sys.exit(prepare.main(["sft", "--input-file", "x.jsonl", "--output-file", "y.jsonl"]))
"""
    process = started("-c", script, stdout=subprocess.PIPE)
    assert process.stdout.readline() == "on\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130 and process.stderr.read() == "membuilder.prepare: stopped.\n"
    process.stdout.close()
    process.stderr.close()


def test_a_reader_that_left_is_no_error(tmp_path):
    read, write = os.pipe()
    script = """
import sys
from membuilder.command import exit_status
sys.exit(exit_status("x", lambda: print("a" * 100_000) or 0))
"""
    process = started("-c", script, stdout=write)
    os.close(read)
    os.close(write)
    assert process.wait(20) == 141 and process.stderr.read() == ""
    process.stderr.close()


# Surroundings


def test_a_cache_that_cannot_be_written_is_named(workbench, capsys, monkeypatch):
    monkeypatch.setenv("MEMBUILDER_CACHE", f"{workbench}/good.jsonl")
    code, said = end_of(f"{GOOD} --system rag-turn".format(w=workbench), capsys)
    assert code == 2 and f"{workbench}/good.jsonl/embeddings cannot be used; delete it or name another" in said


@pytest.mark.parametrize(
    ("variable", "value"),
    [("HTTPS_PROXY", "nonsense://x"), ("ALL_PROXY", "socks9://127.0.0.1:9"), ("SSL_CERT_FILE", "/nowhere.pem")],
)
def test_a_connection_that_cannot_be_set_up_names_the_variables(
    variable, value, workbench, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("NO_PROXY", "")
    chat = f"--model m --provider vllm --base-url https://localhost:9/v1 --out {tmp_path}/d.db"
    for command in (
        f"membuilder.data fetch locomo --data-dir {tmp_path}",
        f"membuilder.build --dataset-path {{w}}/good.jsonl {chat}",
    ):
        code, said = end_of(command.format(w=workbench), capsys)
        assert code == 2 and variable in said and "cannot be used" in said and "correct it or unset it" in said, said


def test_a_mode_that_wandb_does_not_know_is_told_before_anything_is_loaded(workbench, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    code, said = end_of(f"{SFT} model.path=m wandb_project=p".format(w=workbench), capsys)
    assert code == 1 and "WANDB_MODE='nonsense' is none of online, offline" in said and "unset it" in said
