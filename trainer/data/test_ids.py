"""What may be trained on: nothing of a published test split, and nothing that the run itself evaluates on."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from membuilder.datasets.splits import Split, of_the_test_split
from membuilder.errors import ConfigError
from membuilder.text import first_of
from membuilder.types import Dialogue
from trainer.configs import DataConfig

_log = logging.getLogger(__name__)


def refuse_test_ids(names: Iterable[str], config: DataConfig, source: str) -> None:
    """Raise ConfigError where dialogues to train on are of LongMemEval's published test split; log it if allowed."""
    found = of_the_test_split(names)
    if not found:
        return
    problem = (
        f"{source}: {len(found)} dialogues to train on are of LongMemEval's published test split ({first_of(found)}), "
        "which `membuilder.eval --split test` scores"
    )
    if not config.allow_test_ids:
        remedy = "data.split=sft for SFT and data.split=rl for RL"
        if config.split is not Split.TEST:
            remedy += ", which leave them out"
        raise ConfigError(
            f"{problem}: set {remedy}, or train on them with data.allow_test_ids=true, which config and model card tell"
        )
    _log.warning("%s; data.allow_test_ids allows it, and the model card says so", problem)


def refuse_trained_on(names: Iterable[str], held_out: Sequence[Dialogue], config: DataConfig) -> None:
    """Raise ConfigError where the held-out side has dialogues that are trained on.

    Ids of Memalpha's files are positions, which its train and test files have in common: not these but what stands
    there tells the same instance (trainer/data/leak_check.py).
    """
    if config.eval_path is not None and Path(config.eval_path).suffix == ".parquet":
        return
    trained = set(names)
    if found := [dialogue.id for dialogue in held_out if dialogue.id in trained]:
        raise ConfigError(
            f"data.eval_path={config.eval_path}: {len(found)} of its {len(held_out)} dialogues are trained on too "
            f"({first_of(found)}): leave them out of that file"
        )
