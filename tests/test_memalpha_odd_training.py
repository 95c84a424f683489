"""Instances that are not as they should be, through whole training commands: they cost no other instance."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from membuilder.datasets.memalpha import row_of, write_rows
from membuilder.generate.instances import generate_instances
from membuilder.types import Dialogue
from tests.forks import embedder  # noqa: F401
from tests.lives import finish, metrics
from tests.memalpha_chunks import chunk
from tests.scheme_runs import MEMALPHA_RL, MEMALPHA_SFT
from tests.test_memalpha_bad_input import FAKES
from trainer import rl, sft

pytestmark = pytest.mark.slow
DRAW = random.Random(0)
LONG = [" ".join("".join(DRAW.choices("abcdefghij", k=8)) for _ in range(300)) for _ in range(100)]
"""Lines of a chunk of more than 100,000 tokens of a tiny vocabulary, which has a token for every line number."""


def odd(dialogue: Dialogue, place: int) -> Dialogue:
    """The training instances in turn: one chunk too long, one of fake calls, no question, one chunk, and whole ones."""
    first, second, *rest = dialogue.sessions
    if place == 0:
        return replace(dialogue, sessions=(first, replace(chunk(*LONG), index=1, id="long"), *rest))
    if place == 1:
        return replace(dialogue, sessions=(first, replace(chunk(*FAKES.split("\n")), index=1, id="fakes"), *rest))
    if place == 2:
        return replace(dialogue, questions=())
    if place == 3:
        asked = tuple(each for each in dialogue.questions if set(each.evidence) <= {turn.id for turn in first.turns})
        return replace(dialogue, sessions=(first,), questions=asked)
    return dialogue


def write_data(folder: Path) -> list[str]:
    about = {"data_source": "squad", "prompt": "", "metadata": "{}"}
    for name, split, number in (("train", "train", 7), ("test", "heldout", 2)):
        dialogues = generate_instances(number, 1, split, 3)
        if name == "train":
            dialogues = [odd(each, place) for place, each in enumerate(dialogues)]
        rows = [row_of(each, instance_id=place, **about) for place, each in enumerate(dialogues)]
        write_rows(folder / f"{name}.parquet", rows)
    return [f"data.path={folder}/train.parquet", f"data.eval_path={folder}/test.parquet", "data.num_steering=1"]


def test_odd_instances_cost_training_no_other_one(tmp_path):
    data = write_data(tmp_path)
    for_sft, for_rl = (
        [*(each for each in given if not each.startswith("data.")), *data] for given in (MEMALPHA_SFT, MEMALPHA_RL)
    )
    finish(sft.main, [*for_sft, "max_length=4096"], tmp_path / "sft")
    said = (tmp_path / "sft.log").read_text()
    # that chunk, and the one behind it, which is shown two lines of it
    assert "2 samples dropped, 0 cut by 0 tokens in all; 14 are whole" in said and "Traceback" not in said
    losses = [row["sft/loss"] for row in metrics(tmp_path / "sft")]
    assert losses[-1] < losses[0] / 2

    more = [f"model.path={tmp_path}/sft/model", "instances_per_step=6", "num_steps=2", "eval_every=2"]
    finish(rl.main, [*for_rl, *more], tmp_path / "rl")
    steps = metrics(tmp_path / "rl")
    samples = [json.loads(line) for line in (tmp_path / "rl/completions.jsonl").read_text().splitlines()]
    assert len(steps) == 2 and all(step["grad_norm"] > 0 for step in steps)
    for step in steps:  # of some fifteen chunks one was not asked about
        assert 0 < step["prompt_too_long"] < 0.1 and 0 <= step["r1/writer"] <= 1
    assert "obey" not in [text for row in samples for text in row["stored"]]
    assert {row["status"] for row in samples} >= {"scored", "no_questions"}
