"""LoRA by the real entry points, SFT and RL, in one process or several; tests/test_lora_runs.py starts it.

    accelerate launch --config_file configs/accelerate/cpu2.yaml tests/lora_runs.py OUT BASE [bfloat16]

RL starts from the merged model of the SFT run. Both go on from their first checkpoint once more, in OUT/again_*.
"""

import shutil
import sys
from pathlib import Path

from torch import distributed

from tests.both_loops import RL, SMALL, as_new
from tests.distributed_policy import is_first
from trainer import rl, sft

LORA = ["model.lora.rank=4", "model.lora.alpha=8", "save_at_end=true"]
SFT = ["--config", "configs/quickstart_sft.yaml", *SMALL, "data.num_extra=0", "sessions_per_step=7", "max_length=4096",
       "validation_share=0.02", "max_steps=20", "save_every=10", "optim.lr=2e-2", *LORA]  # fmt: skip
RUNS = {
    "sft": (sft.main, SFT, 10),
    "rl": (rl.main, [*RL, "num_steps=6", "save_every=3", "eval_every=6", "parity_every=1", *LORA], 3),
}
"""Name -> main, arguments and the step of the first of two checkpoints."""


ROUNDED = ["model.dtype=bfloat16", "shared_bound=0.05"]
BFLOAT16 = {"sft": ROUNDED, "rl": [*ROUNDED, "parity_bound=0.05"]}


def main(out: Path, base: Path, dtype: str = "float32") -> None:
    out.mkdir(exist_ok=True)
    for name, (run, arguments, first) in RUNS.items():
        arguments = [*arguments, f"model.path={base}", *(BFLOAT16[name] if dtype == "bfloat16" else [])]
        as_new()
        run([*arguments, f"out={out}/{name}"])
        if is_first():
            shutil.copytree(out / name, out / f"again_{name}")
            shutil.rmtree(out / f"again_{name}/checkpoints/step_{2 * first}")
        if distributed.is_initialized():
            distributed.barrier()
        as_new()
        run([*arguments, f"out={out}/again_{name}", "resume=auto"])
        base = out / name / "model"


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]), *sys.argv[3:])
    if distributed.is_initialized():
        distributed.barrier()  # a rank that leaves first would abort the other
        distributed.destroy_process_group()
