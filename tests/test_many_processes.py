"""The real loops under real `accelerate launch`: two processes give the numbers of one, and none waits for a dead one.

DDP runs under the committed file for two processes on a CPU. ZeRO-2 runs on two "nodes": a launcher for each, on a host
of its own name and loopback address (where this user may make one; tests/launchers.py). All are started by
launch/multinode.sh.
"""

import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import both_loops, distributed_policy, forks
from tests.forks import embedder  # noqa: F401
from tests.launchers import ADDRESSES, NODES, await_steps, launched, namespaces, nodes, process_of_rank, rows
from trainer import rl
from trainer.export import export
from trainer.memory_estimate.estimate import state_parts
from trainer.memory_estimate.options import Launch

pytestmark = pytest.mark.slow
WRAPPERS = {
    "ddp": ("cpu:0", "DistributedDataParallel", None),
    "zero2": ("cpu", "DeepSpeedEngine", 2),
    "zero3": ("cpu", "DeepSpeedEngine", 3),
}
MODES = {
    mode: f"2 process(es) on {device}, {engine}" + ("" if stage is None else f", ZeRO stage {stage}")
    for mode, (device, engine, stage) in WRAPPERS.items()
}
# what else runs in those processes
MORE = {"ddp": ["schemes"], "zero2": ["schemes", "resume", "sizes", "nan"], "zero3": ["schemes", "vllm", "nan"]}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """All of it in one process."""
    out = tmp_path_factory.mktemp("alone")
    forks.finish(both_loops.learn_the_format, (out / "policy",), out / "policy.log")
    for scheme in both_loops.SCHEMES:
        (out / scheme).mkdir()
        forks.finish(both_loops.learn_with, (scheme, out / scheme), out / f"{scheme}.log")
    forks.finish(both_loops.main, (out / "run", out / "policy/model", "schemes"), out / "run.log")
    assert "process(es)" not in (out / "run.log").read_text()
    return out


def test_the_runs_learn_something(alone):
    losses = [row["sft/loss"] for row in rows(alone / "policy")]
    assert len(losses) == 80 and losses[-1] < losses[0] / 4
    losses = [row["sft/loss"] for row in rows(alone / "run/sft")]
    assert len(losses) == 10 and losses[-1] < losses[0] - 0.5
    learned = rows(alone / "run/rl")
    assert len(learned) == 10 and sum(row["grad_norm"] > 0 for row in learned) >= 8
    assert any(row["reward/mean"] > 0.1 for row in learned)


@pytest.fixture(scope="module")
def together(alone, tmp_path_factory) -> Callable[[str], Path]:
    """Mode -> all of it in two processes, run once, with the Triton kernels of the head interpreted."""

    @cache
    def run(mode: str) -> Path:
        folder = tmp_path_factory.mktemp(mode)
        said = launched(mode, folder, str(folder / "run"), str(alone / "policy/model"), *MORE[mode])
        runs = 2 + len(both_loops.SCHEMES) + (mode != "ddp")
        # once for each run, from a node's first process alone
        assert said.count(MODES[mode]) == runs * NODES[mode], said
        return folder / "run"

    return run


@pytest.mark.parametrize("mode", WRAPPERS)
@pytest.mark.parametrize("scheme", both_loops.SCHEMES)
def test_two_processes_give_the_numbers_of_one_with_other_schemes(alone, together, mode, scheme):
    """Episodes and several turns: each process samples its share, and both learn from all."""
    one, two = rows(alone / "run" / scheme), rows(together(mode) / scheme)
    assert len(one) == len(two) == 5 and any(row["grad_norm"] > 0 for row in one)
    for expected, found in zip(one, two, strict=True):
        assert expected.keys() == found.keys()
        for name in ("loss", "reward/mean", "kl", "entropy", "num_tokens", "qa/accuracy"):
            assert (name in expected) == (name in found)
            if name in expected:
                assert found[name] == pytest.approx(expected[name], abs=1e-5), (expected["step"], name)
    weights, same = (load_file(out / scheme / "model/model.safetensors") for out in (alone / "run", together(mode)))
    assert largest_gap(weights, same) <= 3e-5


def largest_gap(weights: dict[str, torch.Tensor], same: dict[str, torch.Tensor]) -> float:
    return max(float((tensor - same[name]).abs().max()) for name, tensor in weights.items())


@pytest.mark.parametrize("mode", WRAPPERS)
def test_two_processes_give_the_numbers_of_one(alone, together, mode):
    run = together(mode)
    for stage, names in (
        ("sft", ("sft/loss",)),
        ("rl", ("loss", "reward/mean", "kl", "entropy", "memory_ratio", "num_tokens")),
    ):
        one, two = rows(alone / "run" / stage), rows(run / stage)
        assert len(one) == len(two) == 10
        for expected, found in zip(one, two, strict=True):
            assert expected.keys() == found.keys()
            for name in names:
                assert (name in expected) == (name in found)
                if name in expected:
                    assert found[name] == pytest.approx(expected[name], abs=1e-5), (stage, expected["step"], name)
            assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4, abs=1e-5)
        weights, same = (load_file(out / stage / "model" / "model.safetensors") for out in (alone / "run", run))
        assert weights.keys() == same.keys()
        # AdamW makes a step of whole size out of a gradient near zero: gaps of rounding grow in the weights first
        assert largest_gap(weights, same) <= 3e-5, stage


@pytest.mark.parametrize("mode", WRAPPERS)
@pytest.mark.parametrize("loss", distributed_policy.LOSSES)
def test_the_fused_head_on_two_processes_gives_the_numbers_of_the_plain_one_on_one(alone, together, mode, loss):
    one, two = (json.loads((out / f"head_{loss}.json").read_text()) for out in (alone / "run", together(mode)))
    _, engine, stage = WRAPPERS[mode]
    assert (one["ranks"], one["kernels"]) == (1, "trainer.kernels.plain_rows")
    assert (two["ranks"], two["engine"], two["stage"]) == (2, engine, stage)
    assert two["kernels"] == "trainer.kernels.triton_rows"
    assert len(two["losses"]) == 10 and two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert abs(one["losses"][-1] - one["losses"][0]) > 0.01
    weights, same = (torch.load(out / f"head_{loss}.pt", weights_only=True) for out in (alone / "run", together(mode)))
    assert weights.keys() == same.keys() and "lm_head.weight" in weights
    assert largest_gap(weights, same) <= 1e-5


@pytest.mark.parametrize("mode", WRAPPERS)
def test_a_checkpoint_of_two_processes_is_exported_whole(together, mode, tmp_path):
    run = together(mode) / "rl"
    export(run / "checkpoints/step_10", tmp_path / "exported")
    expected, found = (load_file(folder / "model.safetensors") for folder in (run / "model", tmp_path / "exported"))
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("mode", ["zero2", "zero3"])
def test_deepspeed_leaves_out_an_update_that_is_not_finite(together, mode):
    """Its step runs inside `backward`: one rank's nan must reach neither weights nor moments; the norm must tell."""
    for rank in range(2):
        seen = json.loads((together(mode) / f"nan_{rank}.json").read_text())
        assert (seen["engine"], seen["stage"]) == ("DeepSpeedEngine", int(mode[-1]))
        assert seen["left_out"] == [False, True, False]
        # of the three updates the second; what follows is the step of a run that never met it
        assert seen["moved"] == [True, False, True] and seen["as_without_it"]


def test_processes_resume_together(together):
    """From the checkpoint of step 5, under ZeRO-2 on two nodes: the rest of the run is what it was."""
    run = together("zero2")
    said = "".join(log.read_text() for log in run.parent.glob("node*.log"))
    assert "resuming from" in said and "step_5" in said
    whole, again = rows(run / "rl"), rows(run / "again")
    assert len(again) == 10
    for before, after in zip(whole, again, strict=True):
        assert {k: v for k, v in before.items() if "time/" not in k} == {
            k: v for k, v in after.items() if "time/" not in k
        }


def test_another_number_of_processes_is_refused(alone, together, tmp_path):
    shutil.copytree(together("ddp") / "rl", tmp_path / "rl")
    arguments = [*both_loops.RL, f"model.path={alone}/policy/model", f"out={tmp_path}/rl", "resume=auto"]
    process = forks.start(rl.main, (arguments,), tmp_path / "log")
    process.join(60)
    assert process.exitcode == 1 and "processes=2 (now 1)" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_keeps_what_the_dry_run_counts(together, stage):
    """Byte for byte, with the committed DeepSpeed files."""
    for rank in range(2):
        seen = json.loads((together("zero2") / f"sizes_{stage}_{rank}.json").read_text())
        expected = {part.name: part for part in state_parts(
            seen["parameters"], torch.bfloat16, Launch(num_processes=2, zero_stage=stage)
        )}  # fmt: skip
        assert (seen["engine"], seen["stage"], seen["clipping"], seen["moved"]) == ("DeepSpeedEngine", stage, 0.0, True)
        assert seen["bytes"] == {
            "master": expected["float32 master weights"].update,
            "gradients": expected["gradients"].update,
            "moments": expected["AdamW moments"].update,
        }


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_on_one_node_is_named_on_the_other(alone, tmp_path, victim):
    """Two launchers, ZeRO-2; node 0 holds the store through which the processes found each other."""
    run = [*both_loops.RL, f"model.path={alone}/policy/model", f"out={tmp_path}/rl", "num_steps=10000"]
    with nodes("zero2", tmp_path, "trainer.rl", *run) as started:
        await_steps(tmp_path / "rl", lambda: all(n.launcher.poll() is None for n in started), started[0].log)
        if namespaces() is not None:
            for number, node in enumerate(started):
                connections = process_of_rank(node, number).net_connections("tcp4")
                assert ADDRESSES[number] in {connection.laddr.ip for connection in connections}
        process_of_rank(started[victim], victim).kill()
        survivor = started[1 - victim]
        assert survivor.launcher.wait(60) != 0 and started[victim].launcher.wait(60) != 0
        said = survivor.log.read_text()
        assert f"rank {1 - victim} of 2 stops, because rank {victim} is gone" in said, said[-3000:]
        assert "resume=auto" in said


def test_a_dead_process_stops_the_others_by_name(alone, tmp_path):
    """No launcher here: it would end the survivors itself. The survivor must find out and say who is gone."""
    port = forks.free_port()
    arguments = [*both_loops.RL, f"model.path={alone}/policy/model", f"out={tmp_path}/rl", "num_steps=10000"]
    processes = [
        forks.start(rl.main, (arguments,), tmp_path / f"{rank}.log", lambda rank=rank: forks.as_rank(rank, 2, port))
        for rank in range(2)
    ]
    try:
        await_steps(tmp_path / "rl", processes[0].is_alive, tmp_path / "0.log")
        os.kill(processes[1].pid, signal.SIGKILL)
        processes[1].join()  # not a zombie
        processes[0].join(60)
        said = (tmp_path / "0.log").read_text()
        assert processes[0].exitcode == 1 and "resume=auto" in said
        assert f"rank 0 of 2 stops, because rank 1 is gone (process {processes[1].pid} on " in said, said[-3000:]
    finally:
        for process in processes:
            process.kill()


def test_bfloat16_without_float32_weights_somewhere_is_refused(alone, tmp_path):
    arguments = [*both_loops.RL, f"model.path={alone}/policy/model", f"out={tmp_path}/rl", "model.dtype=bfloat16"]
    process = forks.start(rl.main, (arguments,), tmp_path / "log")
    process.join(60)
    said = (tmp_path / "log").read_text()
    assert process.exitcode == 1 and "configs/accelerate/zero2.yaml" in said and "Traceback" not in said


def test_every_process_samples_with_a_vllm_engine_of_its_own(together):
    """Real vLLM in both processes, ZeRO-3: parity is checked on fresh weights at every step, so each sync must be
    whole.
    """
    out = together("zero3") / "vllm"
    assert [row["step"] for row in rows(out)] == [0, 1, 2]
    lines = (out / "completions.jsonl").read_text(encoding="utf-8").splitlines()
    completions = [json.loads(line) for line in lines]
    assert {(row["step"], row["weight_version"]) for row in completions} == {(0, 0), (1, 1), (2, 2)}
