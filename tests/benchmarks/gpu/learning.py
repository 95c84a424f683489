"""Stage 3: a pretrained model learns to remember: the quickstart's SFT and ADRPO with the transformers engine.

It goes on where an earlier call was stopped, so it may take several calls.
"""

import json
import shutil

from tests.benchmarks.gpu.identity import source_digest
from tests.benchmarks.gpu.record import Record
from trainer.logs.run_log import METRICS_FILE, read_jsonl

NO_VLLM = ["rl.engine=transformers"]
PEOPLE = ("num_train=400", "num_held_out=80", "num_steering=80")
FEW = ("num_train=4", "num_held_out=2", "num_steering=1")
FULL = [
    # as many dialogues and groups (40 x 160) as the quickstart of the tiny model
    *(f"{stage}.data.{key}" for stage in ("sft", "rl") for key in PEOPLE),
    "sft.max_steps=150", "sft.sessions_per_step=30", "sft.max_tokens=16000", "sft.save_every=50",
    "rl.num_steps=40", "rl.sessions_per_step=160", "rl.updates_per_step=8", "rl.max_tokens=16000", "rl.save_every=5",
]  # fmt: skip
TINY = [
    *(f"{stage}.data.{key}" for stage in ("sft", "rl") for key in FEW),
    "sft.max_steps=30", "sft.sessions_per_step=8", "sft.optim.lr=1e-2",  # enough to write the format now and then
    "rl.num_steps=2", "rl.sessions_per_step=6", "rl.num_rollouts=4",
]  # fmt: skip
CURVE = ("step", "grad_norm", "reward/mean", "qa/accuracy", "memory_ratio", "time/collect", "time/learn")


def run(record: Record) -> None:
    """Run the quickstart, and keep its table and its curve."""
    from trainer import quickstart, tiny

    out, model = record.work / source_digest(), "smollm2"
    if record.tiny:
        shutil.rmtree(out, ignore_errors=True)
        model = str(out / "start")
        tiny.main(["--out", model, "num_layers=1", "hidden_size=32"])
    settings = TINY if record.tiny else FULL
    quickstart.main(["--out", str(out), "--model", model, "--resume", *NO_VLLM, *settings])
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    for name, row in summary.pop("systems").items():
        record.add({"what": "system", "name": name} | row)
    for row in read_jsonl(out / "rl" / METRICS_FILE):
        record.add({"what": "step"} | {name: row[name] for name in CURVE if name in row})
    record.add({"what": "run"} | summary)
