"""SFT and then RL, the real entry points, small; tests/test_many_processes.py starts this in one process or several.

    accelerate launch --config_file configs/accelerate/cpu2.yaml tests/both_loops.py OUT

Sessions are few and of different lengths, so that processes get unlike shares and some micro-batches nothing of their own.
"""

import sys

from accelerate.state import AcceleratorState, GradientState
from torch import distributed

from trainer import rl, sft

SMALL = ["data.num_train=12", "data.num_held_out=2", "data.num_steering=1", "max_tokens=250"]
TINY = ["vocab_size=600", "hidden_size=32", "num_layers=2", "intermediate_size=64"]


def main(out: str) -> None:
    sft.main(
        ["--config", "configs/quickstart_sft.yaml", *SMALL, *(f"model.tiny.{size}" for size in TINY), "data.num_extra=0",
         "max_steps=80", "sessions_per_step=7", "validation_share=0.02", f"out={out}/sft"]
    )  # fmt: skip
    AcceleratorState._reset_state(True)  # the next run makes its own, as a new process would
    GradientState._reset_state()
    rl.main(
        ["--config", "configs/quickstart_rl.yaml", *SMALL, "engine=transformers", f"model.path={out}/sft/model",
         "num_steps=10", "sessions_per_step=5", "num_rollouts=3", "updates_per_step=2", "parity_every=5",
         "eval_every=10", "save_every=5", f"out={out}/rl"]
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1])
    if distributed.is_initialized():
        distributed.barrier()  # a rank that leaves first would abort the other
        distributed.destroy_process_group()
