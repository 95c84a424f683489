"""SFT and RL, the real entry points, small; tests/test_many_processes.py starts this in one process or several.

    accelerate launch --config_file configs/accelerate/cpu2.yaml tests/both_loops.py OUT POLICY \
        [schemes] [resume] [sizes] [nan] [vllm]

Sessions are few and of different lengths, so that processes get unlike shares and some micro-batches nothing of their
own. RL starts from POLICY, a model that already answers in the format. The words after it name what to run besides.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState
from torch import distributed

from tests import distributed_policy, scheme_runs
from tests.scheme_runs import commands
from trainer import rl, sft

SMALL = ["data.num_train=12", "data.num_held_out=1", "data.num_steering=1", "max_tokens=250"]
TINY = ["vocab_size=600", "hidden_size=32", "num_layers=2", "intermediate_size=64"]
SFT = ["--config", "configs/quickstart_sft.yaml", *SMALL, *(f"model.tiny.{size}" for size in TINY), "data.num_extra=0",
       "sessions_per_step=7", "validation_share=0.02"]  # fmt: skip
RL = ["--config", "configs/quickstart_rl.yaml", *SMALL, "engine=transformers", "num_steps=10", "sessions_per_step=3",
      "num_rollouts=6", "updates_per_step=2", "parity_every=5", "eval_every=10", "save_every=5"]  # fmt: skip
SCHEMES = scheme_runs.SCHEMES[1:]


def as_new() -> None:
    """The next run makes states of its own, as a new process would."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def main(out: Path, policy: Path, *more: str) -> None:
    out.mkdir(exist_ok=True)
    sft.main([*SFT, "max_steps=10", f"out={out}/sft"])
    as_new()
    rl.main([*RL, f"model.path={policy}", f"out={out}/rl"])
    if "schemes" in more:
        for scheme in SCHEMES:
            as_new()
            folder = policy.parent.parent / scheme
            rl.main([*commands(scheme, folder)[1], f"model.path={folder}/policy/model", f"out={out}/{scheme}"])
    if "resume" in more:
        as_new()
        resume(out, policy)
    for name, loss in distributed_policy.LOSSES.items():
        as_new()
        seen, weights = distributed_policy.train(loss)
        if distributed_policy.is_first():
            (out / f"head_{name}.json").write_text(json.dumps(seen), encoding="utf-8")
            torch.save(weights, out / f"head_{name}.pt")
    if "sizes" in more:
        for stage in (2, 3):
            sizes = distributed_policy.kept_bytes(stage)
            (out / f"sizes_{stage}_{distributed.get_rank()}.json").write_text(json.dumps(sizes), encoding="utf-8")

    if "nan" in more:
        as_new()
        seen, weights = distributed_policy.skip_one([0, 1, 2], poisoned=1)
        as_new()
        expected = distributed_policy.skip_one([0, 2], poisoned=None)[1]
        seen["as_without_it"] = all(torch.equal(weights[name], expected[name]) for name in expected)
        (out / f"nan_{distributed.get_rank()}.json").write_text(json.dumps(seen), encoding="utf-8")

    if "vllm" in more:
        as_new()
        rl.main([*RL, f"model.path={policy}", f"out={out}/vllm", "engine=vllm", "num_steps=3", "parity_every=1",
                 "eval_every=0", "save_every=100"])  # fmt: skip


def resume(out: Path, policy: Path) -> None:
    """The last five steps of RL again, from the checkpoint of step 5."""
    if distributed_policy.is_first():
        shutil.copytree(out / "rl", out / "again")
        shutil.rmtree(out / "again/checkpoints/step_10")
    distributed.barrier()
    rl.main([*RL, f"model.path={policy}", f"out={out}/again", "resume=auto"])


def learn_the_format(out: Path) -> None:
    """SFT long enough for RL to have something to reward."""
    sft.main([*SFT, "max_steps=80", f"out={out}"])


def learn_with(scheme: str, folder: Path) -> None:
    """The same with another scheme."""
    sft.main([*commands(scheme, folder)[0], f"out={folder}/policy"])


if __name__ == "__main__":
    folders = map(Path, sys.argv[1:3])
    main(*folders, *sys.argv[3:])
    if distributed.is_initialized():
        distributed.barrier()  # a rank that leaves first would abort the other
        distributed.destroy_process_group()
