"""The command line of the two trainers. It imports no PyTorch, so that a mistake is answered at once."""

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from membuilder.command import clear_errors
from membuilder.config import parse_args
from membuilder.errors import ConfigError
from membuilder.quiet import LOG_FILE, quiet_libraries
from reward.llm_judge import check_keys
from trainer.configs import TrainConfig
from trainer.memory_estimate.options import add_dry_run, launch_of
from trainer.rl_config import RLConfig

Config = TypeVar("Config", bound=TrainConfig)
GOES_ON = "The same command with {} goes on from the last checkpoint, where there is one."
WANDB_MODES = ("online", "offline", "shared", "disabled", "dryrun", "run")


def parse(cls: type[Config], argv: Sequence[str] | None, program: str) -> Config:
    """Return the configuration of a command line. With --dry-run the report is printed and the program ends."""
    config, given = parse_args(cls, argv, cls.__doc__, add_dry_run, f"python -m {program}")
    with clear_errors(program):
        if not given.dry_run:
            check_paths(config)
            check_wandb(config)
            if isinstance(config, RLConfig):
                check_keys(config.reward)
            quiet_libraries(Path(config.out) / LOG_FILE, at_once=False)  # before they are loaded
            sys.excepthook = partial(_one_line_of_ctrl_c, program, sys.excepthook)  # while they are loaded
            return config
        launch = launch_of(given)
        from trainer.memory_estimate.dry_run import report

        text, fits = report(config, launch)
        print(text)
    raise SystemExit(0 if fits else 1)


def _one_line_of_ctrl_c(
    program: str, otherwise: Callable[..., None], kind: type[BaseException], error: BaseException, trace: object
) -> None:
    """Tell of Ctrl-C outside of `main`, where nothing has begun, without a traceback. Python ends as it always does."""
    if issubclass(kind, KeyboardInterrupt):
        print(f"{program}: stopped.", file=sys.stderr)
    else:
        otherwise(kind, error, trace)


def check_wandb(config: TrainConfig) -> None:
    """Raise ConfigError for a WANDB_MODE that Weights & Biases would refuse once everything is loaded."""
    mode = os.environ.get("WANDB_MODE")
    if config.wandb_project is not None and mode is not None and mode not in WANDB_MODES:
        raise ConfigError(f"WANDB_MODE={mode!r} is none of {', '.join(WANDB_MODES)}; correct it or unset it")


def check_paths(config: TrainConfig) -> None:
    """Raise ConfigError for a file or folder that the configuration names and that is not on this machine."""
    named = [(key, getattr(config.data, key)) for key in ("path", "prepared", "eval_path")]
    for key, path in (*named, *(("eval_files", path) for path in config.data.eval_files)):
        if path is not None and not Path(path).exists():
            raise ConfigError(f"data.{key}: no file is at '{path}'")
    model = config.model.path
    # a hub name has one slash at most and does not start like a path; whether the hub has it is seen when it is loaded
    is_path = model is not None and (model.startswith(("/", ".", "~")) or model.count("/") > 1)
    if is_path and not Path(model).exists():
        raise ConfigError(f"model.path: no model at '{model}': name a Hugging Face folder or model, or a GGUF file")
