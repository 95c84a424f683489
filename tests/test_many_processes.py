"""The real loops under real `accelerate launch`: two processes give the numbers of one, and none waits for a dead one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.test_distributed import free_port

ROOT = Path(__file__).parent.parent
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
MODES = {
    "ddp": "2 process(es) on cpu:0, DistributedDataParallel",
    "zero2": "2 process(es) on cpu, DeepSpeedEngine, ZeRO stage 2",
    "zero3": "2 process(es) on cpu, DeepSpeedEngine, ZeRO stage 3",
}


def launch_options(mode: str, folder: Path) -> list[str]:
    """The committed file for two processes on a CPU; DeepSpeed's stages in float32, because bfloat16 would hide gaps."""
    port = ["--main_process_port", str(free_port())]
    if mode == "ddp":
        return ["--config_file", "configs/accelerate/cpu2.yaml", *port]
    zero = {"stage": int(mode.removeprefix("zero")), "stage3_param_persistence_threshold": 0}
    zero["stage3_gather_16bit_weights_on_model_save"] = True
    path = folder / "deepspeed.json"
    path.write_text(json.dumps({"zero_optimization": zero, "train_micro_batch_size_per_gpu": 1}), encoding="utf-8")
    return ["--use_deepspeed", "--deepspeed_config_file", str(path), "--num_processes", "2", "--num_machines", "1",
            "--mixed_precision", "no", "--dynamo_backend", "no", *port]  # fmt: skip


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=400)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    assert "process(es)" not in run([sys.executable, "tests/both_loops.py", str(out)])
    return out


def test_the_run_learns_something(alone):
    losses = [row["sft/loss"] for row in rows(alone / "sft")]
    assert len(losses) == 80 and losses[-1] < losses[0] / 4
    learned = rows(alone / "rl")
    assert len(learned) == 10 and sum(row["grad_norm"] > 0 for row in learned) >= 8
    assert any(row["reward/mean"] > 0.1 for row in learned)


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_give_the_numbers_of_one(alone, tmp_path, mode):
    said = run([*LAUNCH, *launch_options(mode, tmp_path), "tests/both_loops.py", str(tmp_path)])
    assert said.count(MODES[mode]) == 2, said  # once for each stage, from the first process alone
    for stage, names in (
        ("sft", ("sft/loss",)),
        ("rl", ("reward/mean", "kl", "entropy", "memory_ratio", "num_tokens")),
    ):
        one, two = rows(alone / stage), rows(tmp_path / stage)
        assert len(one) == len(two)
        for expected, found in zip(one, two, strict=True):
            assert expected.keys() == found.keys()
            for name in names:
                assert (name in expected) == (name in found)
                if name in expected:
                    assert found[name] == pytest.approx(expected[name], abs=1e-5), (stage, expected["step"], name)
            assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4, abs=1e-5)
        weights, same = (load_file(out / stage / "model" / "model.safetensors") for out in (alone, tmp_path))
        assert weights.keys() == same.keys()
        for name, tensor in weights.items():
            assert (tensor - same[name]).abs().max() <= 1e-4, (stage, name)


def test_processes_resume_together(alone, tmp_path):
    """Under ZeRO-2, from the checkpoint of step 5: the rest of the run is what it was."""
    options = launch_options("zero2", tmp_path)
    arguments = ["-m", "trainer.rl", "--config", str(alone / "rl/config.yaml"), f"out={tmp_path}/rl"]
    run([*LAUNCH, *options, *arguments])
    whole = rows(tmp_path / "rl")
    for newer in (tmp_path / "rl/checkpoints").glob("step_10"):
        newer.rename(tmp_path / "set_aside")
    said = run([*LAUNCH, *options, *arguments, "resume=auto"])
    assert "resuming from" in said and "step_5" in said
    again = rows(tmp_path / "rl")
    for before, after in zip(whole, again, strict=True):
        assert {k: v for k, v in before.items() if "time/" not in k} == {
            k: v for k, v in after.items() if "time/" not in k
        }


def test_a_dead_process_stops_the_others_by_name(alone, tmp_path):
    """No launcher here: it would end the survivors itself. The survivor must find out and say who is gone."""
    port, processes = str(free_port()), []
    for rank in range(2):
        variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                     "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
        command = [sys.executable, "-m", "trainer.rl", "--config", str(alone / "rl/config.yaml"), f"out={tmp_path}/rl"]
        with open(tmp_path / f"rank{rank}.log", "w") as log:
            processes.append(
                subprocess.Popen(
                    [*command, "num_steps=10000"], stdout=log, stderr=log, env=environment() | variables, cwd=ROOT
                )
            )
    try:
        deadline = time.monotonic() + 200
        while not (tmp_path / "rl/metrics.jsonl").exists() or len(rows(tmp_path / "rl")) < 2:
            assert time.monotonic() < deadline, (tmp_path / "rank0.log").read_text()[-3000:]
            time.sleep(0.1)
        processes[1].send_signal(signal.SIGKILL)
        assert processes[0].wait(60) != 0
        said = (tmp_path / "rank0.log").read_text()
        named = f"rank 0 of 2 stops, because rank 1 is gone (process {processes[1].pid} on "
        assert named in said and "resume=auto" in said, said[-3000:]
    finally:
        for process in processes:
            process.kill()


def test_bfloat16_without_float32_weights_somewhere_is_refused(alone, tmp_path):
    command = [sys.executable, "-m", "trainer.rl", "--config", str(alone / "rl/config.yaml"), f"out={tmp_path}/rl"]
    result = subprocess.run(
        [*command, "model.dtype=bfloat16"], capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=120
    )
    assert result.returncode == 1 and "configs/accelerate/zero2.yaml" in result.stderr
    assert "Traceback" not in result.stderr


def test_every_process_samples_with_a_vllm_engine_of_its_own(alone, tmp_path):
    """Real vLLM in both processes, ZeRO-3: parity is checked on fresh weights at every step, so each sync must be whole."""
    arguments = ["-m", "trainer.rl", "--config", str(alone / "rl/config.yaml"), f"out={tmp_path}/rl", "engine=vllm"]
    options = launch_options("zero3", tmp_path)
    said = run([*LAUNCH, *options, *arguments, "num_steps=3", "parity_every=1", "eval_every=0", "save_every=100"])
    assert MODES["zero3"] in said
    assert [row["step"] for row in rows(tmp_path / "rl")] == [0, 1, 2]
    lines = (tmp_path / "rl/completions.jsonl").read_text(encoding="utf-8").splitlines()
    completions = [json.loads(line) for line in lines]
    assert {(row["step"], row["weight_version"]) for row in completions} == {(0, 0), (1, 1), (2, 2)}
