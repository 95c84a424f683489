"""Stage 2: learning from a group, shared prompts against dense copies and against TRL."""

import torch

from tests.benchmarks import learner
from tests.benchmarks.gpu.record import Record

TINY_SHAPES = [learner.Shape(12, 5)]
LARGEST_GAP = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Relative gap of gradients that rounding explains; another loss is far above."""


def run(record: Record) -> None:
    """Measure every implementation at every shape; a rival that cannot run here is a row that says so."""
    for shape in TINY_SHAPES if record.tiny else learner.GPU_SHAPES:
        for row, found in learner.rows_of(shape):
            name = row["impl"]
            record.add(row)
            if found is None:
                record.skip(f"{name} at {shape.prompt} + {shape.response}", row["note"])
            elif (gap := row.get("gradient_gap", 0.0)) > LARGEST_GAP[shape.dtype]:
                record.fail(name, f"its gradient is {gap:.2g} from that of dense copies")
