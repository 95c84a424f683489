"""Makes a tiny model folder, with which every command can be tried on a laptop CPU: nothing is downloaded.

    python -m trainer.tiny --out tiny
    python -m trainer.tiny --out tiny --seed 2 num_layers=2 hidden_size=64

It is a Qwen3 with random weights, a tokenizer trained on generated dialogues, and a chat template. trainer.sft,
trainer.rl and launch/serve.sh take it as they take any Hugging Face folder. It knows nothing yet: train it with SFT
before RL (configs/tiny_sft.yaml, configs/tiny_rl.yaml).
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from membuilder.command import ArgumentParser, clear_errors
from membuilder.config import describe, load
from membuilder.errors import ConfigError
from membuilder.generate.dialogue import generate
from membuilder.quiet import hide_loading_bars, quiet_libraries
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.four_agents.scheme import FourAgents
from membuilder.schemes.load import MAX_TURNS
from membuilder.schemes.scheme import text_of
from membuilder.types import Bank
from membuilder.value_types import PositiveInt, Seed, flag_type
from trainer.configs import TinyConfig

NUM_DIALOGUES = 40
"""Generated dialogues that the tokenizer is trained on."""


@dataclass(kw_only=True)
class TinyFolderConfig(TinyConfig):
    """The sizes of a tiny model in a folder."""

    max_position: PositiveInt = 32768
    """Longest prompt plus answer in tokens: what the configs of the 4B model read fits in. It costs no weights."""


def make(folder: Path, config: TinyConfig, seed: int) -> int:
    """Write the model folder, whole or not at all, and return its number of weights. ConfigError if it is not empty."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"'{folder}' is there and not empty: name another --out, or remove it first: rm -r {folder}")
    # here, because neither --help nor a folder that is refused waits for PyTorch
    from trainer.checkpoint.files import files_of, model_folder, write_all
    from trainer.model.tiny_model import build_model, train_tokenizer

    hide_loading_bars()
    added = FourAgents(PromptConfig()).tiny_tokens(MAX_TURNS)
    tokenizer = train_tokenizer(_texts(seed), added, config.vocab_size)
    model = build_model(tokenizer, config, seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with model_folder(folder) as partial:
        model.save_pretrained(partial)
        write_all(partial, files_of(tokenizer))
    return model.num_parameters()


def _texts(seed: int) -> list[str]:
    """Return prompts about generated dialogues, of every set of templates."""
    schemes = [FourAgents(PromptConfig(template_set=name)) for name in ("compact", "full")]
    sessions = [session for dialogue in generate(NUM_DIALOGUES, seed, "train") for session in dialogue.sessions]
    return [
        text_of(scheme.ask(role, session, Bank(), dict.fromkeys(scheme.roles, ())))
        for scheme in schemes
        for session in sessions
        for role in scheme.roles
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(
        prog="python -m trainer.tiny",
        description=__doc__,
        epilog=describe(TinyFolderConfig),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write, which must be new or empty")
    parser.add_argument(
        "--seed", type=flag_type(Seed), default=1, help="of the random weights and the dialogues (default: 1)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="set one size")
    given = parser.parse_intermixed_args(argv)
    folder = given.out.absolute()  # "." has no name
    quiet_libraries(folder.parent / f"{folder.name}.log", at_once=False)
    with clear_errors("trainer.tiny"):
        num_weights = make(folder, load(TinyFolderConfig, None, given.overrides), given.seed)
        print(f"wrote {given.out}: {num_weights / 1e6:.1f} million weights; train it: model.path={given.out}")


if __name__ == "__main__":
    main()
