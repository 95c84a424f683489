"""Run logs: what is on disk after each call, after a kill, and after a resume."""

import json
import math

import pytest

from membuilder.errors import DataError
from trainer.logs.provenance import PACKAGES, provenance
from trainer.logs.run_log import RunLog, read_jsonl
from trainer.plots import plot_run, read_series


def make_log(tmp_path, **kwargs) -> RunLog:
    return RunLog(tmp_path, wandb_project=None, config={}, run_name="test", **kwargs)


def test_each_call_is_on_disk_at_once(tmp_path):
    log = make_log(tmp_path)
    log.log({"reward/mean": 0.5, "kl": 0}, step=1)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "reward/mean": 0.5, "kl": 0.0}\n'
    log.log_completions([{"step": 1, "agent": "core", "completion": "{}", "reward": {"qa": 1.0}}])
    assert read_jsonl(tmp_path / "completions.jsonl") == [
        {"step": 1, "agent": "core", "completion": "{}", "reward": {"qa": 1.0}}
    ]
    log.close()


def test_nonfinite_values_are_null_and_named(tmp_path):
    log = make_log(tmp_path)
    log.log({"kl": math.nan, "lr": 1e-6, "grad_norm": math.inf}, step=3)
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line == {"step": 3, "kl": None, "lr": 1e-6, "grad_norm": None, "nonfinite": ["kl", "grad_norm"]}
    log.close()


def test_nonfinite_completion_row_is_refused(tmp_path):
    log = make_log(tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.log_completions([{"step": 1, "advantage": math.nan}])
    log.close()


def test_resume_drops_later_and_half_written_lines_then_appends(tmp_path):
    log = make_log(tmp_path)
    for step in (1, 2, 3):
        log.log({"kl": step}, step)
        log.log_completions([{"step": step}])
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "k')

    log = make_log(tmp_path)
    log.drop_from(3)
    log.log({"kl": 30}, 3)
    log.close()
    assert [(line["step"], line["kl"]) for line in read_jsonl(tmp_path / "metrics.jsonl")] == [(1, 1), (2, 2), (3, 30)]
    assert [line["step"] for line in read_jsonl(tmp_path / "completions.jsonl")] == [1, 2]


def test_a_run_resumed_at_a_step_has_the_files_of_one_that_was_never_killed(tmp_path):
    """As after checkpoint 3 and a kill in step 5: steps 0 to 2 are kept byte for byte."""
    values = [0.1 + 0.2, -0.0, 1e-300, math.nan, 5.0, 1 / 3]

    def steps(log: RunLog, numbers: range) -> None:
        for step in numbers:
            log.log({"loss": values[step]}, step)
            log.log_completions([{"step": step, "text": "\u2028 é 猫\n", "reward": None}] * 2)

    whole, killed = make_log(tmp_path / "whole"), make_log(tmp_path / "killed")
    steps(whole, range(6))
    steps(killed, range(5))
    killed.close()
    resumed = make_log(tmp_path / "killed")
    resumed.drop_from(3)
    assert [row["step"] for row in read_jsonl(tmp_path / "killed" / "completions.jsonl")] == [0, 0, 1, 1, 2, 2]
    steps(resumed, range(3, 6))
    for log in (whole, resumed):
        log.close()
    for name in ("metrics.jsonl", "completions.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == [
        "completions.jsonl",
        "metrics.jsonl",
        "skipped.jsonl",
    ]


def test_a_damaged_log_is_not_cut(tmp_path):
    log = make_log(tmp_path)
    log.log({"kl": 1.0}, 1)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\noops\n{"step": 2}\n')
    with pytest.raises(DataError, match="metrics.jsonl: line 2"):
        log.drop_from(1)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\noops\n{"step": 2}\n'


def test_broken_line_in_the_middle_is_an_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\noops\n{"step": 2}\n')
    with pytest.raises(DataError, match="metrics.jsonl: line 2"):
        read_jsonl(tmp_path / "metrics.jsonl")


def test_disabled_log_writes_nothing(tmp_path):
    log = RunLog(tmp_path / "run", wandb_project="p", config={}, run_name="test", enabled=False)
    log.log({"kl": 1.0}, 1)
    log.log_completions([{"step": 1}])
    log.drop_from(0)
    log.close()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_wandb_without_a_key_runs_offline_says_so_and_keeps_its_id(tmp_path, monkeypatch, capsys):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr("trainer.logs.wandb_run.MAX_TABLE_ROWS", 1)
    ids = []
    # a run; the same from its checkpoint; the same killed before it had one; another run in its place
    for step, (checkpoint, anew) in enumerate([(False, True), (True, False), (False, False), (False, True)]):
        log = RunLog(tmp_path, wandb_project="membuilder-test", config={"seed": 1}, run_name="r")
        ids.append(log.start_wandb(ids[-1] if checkpoint else None, anew))
        log.log({"kl": math.nan}, step)
        log.log_completions([{"step": step, "completion": "a", "reward": {"qa": 1.0}}, {"step": step}])
        log.close()
    assert ids[0] is not None and ids[:3] == [ids[0]] * 3 and ids[3] not in (None, ids[0])
    assert (tmp_path / "wandb_run_id.txt").read_text() == f"{ids[3]}\n"
    assert capsys.readouterr().out.count("logged offline") == 4
    tables = list(tmp_path.glob("wandb/offline-run-*/files/media/table/completions*.json"))
    assert {len(json.loads(table.read_text())["data"]) for table in tables} == {1}
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert b"membuilder-test" in stored and b"sk-1" not in stored


def test_figures_leave_out_what_was_not_logged(tmp_path):
    log = make_log(tmp_path)
    log.log({"kl": math.nan, "sft/loss": 2.0, "sft/val_loss": 2.5}, 1)
    log.log({"sft/loss": 1.5}, 2)
    log.close()
    assert read_series(tmp_path / "metrics.jsonl") == {"sft/loss": ([1, 2], [2.0, 1.5]), "sft/val_loss": ([1], [2.5])}
    (tmp_path / "sub").mkdir()
    log = make_log(tmp_path / "sub")
    log.log({"prompt_too_long/keeper": 0.0, "reward/keeper": 0.5, "format/core": 1.0}, 1)
    log.close()
    assert [path.name for path in plot_run(tmp_path / "sub")] == ["reward.png"]  # the roles are those of the run
    (tmp_path / "summary.json").write_text('{"systems": {"sft": {"accuracy": 0.5}, "rl": {"accuracy": null}}}')
    assert [path.name for path in plot_run(tmp_path)] == ["sft.png", "accuracy.png"]


def test_provenance_is_json_and_marks_missing_packages(monkeypatch):
    monkeypatch.setitem(PACKAGES, "vllm", ("no-such-distribution",))
    record = json.loads(json.dumps(provenance()))
    assert record["packages"]["vllm"] is None
    assert record["packages"]["torch"].startswith("2.")
    assert record["hardware"]["cores"] >= 1
