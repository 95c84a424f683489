"""What a dry run is told on the command line besides the configuration."""

import argparse
from dataclasses import dataclass, fields

from membuilder.errors import ConfigError
from membuilder.value_types import NonNegativeInt, PositiveFloat, PositiveInt, Section, flag_type


@dataclass(frozen=True, kw_only=True)
class Launch(Section):
    """What stands in the accelerate and DeepSpeed files of a run, and how long the samples of its data are."""

    num_processes: PositiveInt = 1
    gpu_memory_gib: PositiveFloat = 80.0
    zero_stage: NonNegativeInt = 0
    """0 is a run without DeepSpeed (DDP, or one plain process)."""
    offload_optimizer: bool = False
    """Master weights and moments in host memory (configs/accelerate/zero2_offload.yaml)."""
    prompt_tokens: PositiveInt | None = None
    """Mean of your data; without it the report says only what the caps allow."""
    completion_tokens: PositiveInt | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.offload_optimizer and not self.zero_stage:
            raise ConfigError("--offload needs ZeRO: give --zero")
        if (self.prompt_tokens is None) != (self.completion_tokens is None):
            raise ConfigError("--prompt-tokens and --completion-tokens go together")


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Give the command `--dry-run` and the options that only a dry run reads."""
    add = parser.add_argument_group("dry run").add_argument
    what = "print memory per GPU and tokens per step, start nothing; exit status 1 if it does not fit"
    add("--dry-run", action="store_true", help=what)
    add("--num-processes", type=flag_type(PositiveInt), default=1, metavar="N", help="GPUs over all nodes")
    add("--gpu-memory-gib", type=flag_type(PositiveFloat), default=80.0, metavar="GIB", help="memory of one GPU")
    add("--zero", dest="zero_stage", type=int, default=0, choices=(0, 1, 2, 3), help="ZeRO stage; 0: no DeepSpeed")
    add("--offload", dest="offload_optimizer", action="store_true", help="optimizer in host memory")
    add("--prompt-tokens", type=flag_type(PositiveInt), metavar="N", help="mean prompt of your data")
    add("--completion-tokens", type=flag_type(PositiveInt), metavar="N", help="mean completion of your data")


def launch_of(given: argparse.Namespace) -> Launch:
    """Return the options of `add_dry_run` as they were given."""
    return Launch(**{field.name: getattr(given, field.name) for field in fields(Launch)})
