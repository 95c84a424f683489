"""Weights & Biases through its own library, against servers on loopback: what it may do to a run."""

import os
import time
from pathlib import Path

import psutil
import pytest

from membuilder.errors import ConfigError
from tests import found_processes
from tests.forks import free_port
from tests.patience import LINEAR, SOON
from tests.wandb_server import WandbServer
from trainer.logs.run_log import RunLog, read_jsonl

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """Nothing of this machine's own W&B, short times, and W&B's process ended after the test."""
    import wandb

    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr("trainer.logs.wandb_run.START_SECONDS", 4.0)
    monkeypatch.setattr("trainer.logs.wandb_run.FINISH_SECONDS", 5.0)
    yield monkeypatch
    wandb.teardown()


def at(environment, url: str) -> None:
    environment.setenv("WANDB_BASE_URL", url)
    environment.setenv("WANDB_API_KEY", KEY)


def begun(folder: Path, run_id: str | None = None) -> RunLog:
    log = RunLog(folder, wandb_project="p", config={"seed": 1}, run_name="ours")
    assert log.start_wandb(run_id, anew=run_id is None)
    return log


def written(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def offline_run(folder: Path) -> bytes:
    """What W&B keeps of the one run that is offline in a folder."""
    import wandb

    wandb.teardown()  # writes what is still in memory
    (stored,) = folder.glob("wandb/offline-run-*/*.wandb")
    return stored.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("does", ["closed", 500, "hang"])
def test_a_server_that_does_not_answer_at_the_start_leaves_the_run_offline(does, environment, tmp_path, capfd):
    with WandbServer(does) as server:
        at(environment, f"http://127.0.0.1:{free_port()}" if does == "closed" else server.url)
        began = time.monotonic()
        log = begun(tmp_path, "kept1234")
        assert time.monotonic() - began < LINEAR
        log.log({"kl": 1.0}, 1)
        log.close()
    (folder,) = tmp_path.glob("wandb/offline-run-*-kept1234")
    said = "".join(capfd.readouterr())
    assert "Weights & Biases: not reached (" in said and f"upload it later with: wandb sync {folder}\n" in said
    assert (tmp_path / "wandb_run_id.txt").read_text() == "kept1234\n"
    stored = written(tmp_path)
    assert b"kl" in written(folder) and KEY.encode() not in stored and KEY not in said


@pytest.mark.slow
@pytest.mark.parametrize("does", ["closed", 500, "hang"])
def test_a_server_that_goes_in_the_middle_stops_nothing(does, environment, tmp_path, capfd):
    with WandbServer() as server:
        at(environment, server.url)
        log = begun(tmp_path)
        log.log({"kl": 1.0}, 0)
        assert any("graphql" in path for path, _ in server.requests)
        server.does = 500 if does == "closed" else does
        if does == "closed":
            server.close()
        began = time.monotonic()
        for step in range(1, 20):
            log.log({"kl": float(step)}, step)
            log.log_completions([{"step": step, "completion": "a"}])
        assert time.monotonic() - began < SOON
        log.close()
        assert time.monotonic() - began < LINEAR
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == list(range(20))
    (folder,) = tmp_path.glob("wandb/run-*")
    said = "".join(capfd.readouterr())
    assert "it did not take everything in time" in said
    assert f"wandb sync {folder}\n" in said, repr(said[:600])
    assert KEY.encode() not in written(tmp_path) and KEY not in said


@pytest.mark.slow
def test_the_end_of_wandbs_own_process_stops_nothing(environment, tmp_path, capfd):
    environment.setenv("WANDB_MODE", "offline")
    log = begun(tmp_path)
    before = psutil.Process().children(recursive=True)
    of_wandb = found_processes.that(lambda each: each.name() == "wandb-core", before)
    assert of_wandb
    found_processes.kill(of_wandb)
    psutil.wait_procs(before, timeout=2)
    for step in range(5):
        log.log({"kl": 1.0}, step)
        time.sleep(0.2)
    log.close()
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 5
    assert capfd.readouterr().out.count("Weights & Biases: its process is gone (") == 1
    begun(tmp_path / "next").close()  # the quickstart's second stage
    assert b"ours" in offline_run(tmp_path / "next")


@pytest.mark.slow
def test_wandbs_variables_hold(environment, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    log = begun(tmp_path / "plain")
    log.close()
    assert b"ours" in offline_run(tmp_path / "plain")
    given = {"NAME": "name-of-mine", "RUN_GROUP": "group-of-mine", "TAGS": "tag-of-mine", "NOTES": "notes-of-mine"}
    given |= {"DIR": str(elsewhere), "MODE": "dryrun"}
    for name, value in given.items():
        environment.setenv(f"WANDB_{name}", value)
    log = begun(tmp_path / "run")
    log.close()
    assert not (tmp_path / "run" / "wandb").exists()
    stored = offline_run(elsewhere)
    assert [what for what in ("name", "group", "tag", "notes") if f"{what}-of-mine".encode() not in stored] == []
    assert b"ours" not in stored


@pytest.mark.parametrize(
    ("name", "value"), [("WANDB_DISABLED", "true"), ("WANDB_DISABLED", "1"), ("WANDB_MODE", "disabled")]
)
def test_switched_off_is_off_and_keeps_the_runs_id(name, value, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv(name, value)
    log = RunLog(tmp_path, wandb_project="p", config={}, run_name="ours")
    assert log.start_wandb("kept1234", anew=False) == "kept1234"
    log.log({"kl": 1.0}, 0)
    log.close()
    assert not (tmp_path / "wandb").exists() and "switches it off" in capsys.readouterr().out


@pytest.mark.slow
def test_a_key_that_is_refused_ends_the_run_in_one_line(environment, tmp_path):
    environment.setenv("WANDB_API_KEY", "short")
    with pytest.raises(ConfigError, match="Weights & Biases: .*; correct it, or set WANDB_MODE=offline"):
        begun(tmp_path)
