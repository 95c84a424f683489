"""Checks a model folder as a whole: its weights, tokenizer, chat template and end tokens. Nothing is started.

    python -m trainer.check_model runs/rl/model

launch/serve.sh runs it before vLLM starts; trainer.sft, trainer.rl and both engines check the same.
"""

from collections.abc import Sequence
from pathlib import Path

from membuilder.command import ArgumentParser, clear_errors
from membuilder.errors import ConfigError
from membuilder.quiet import quiet_libraries


def check(folder: Path) -> str:
    """Return the tokens that end an answer of the model in `folder`. Raises ConfigError for whatever is wrong with it.

    A server reads end tokens from the folder alone, so all of them must stand where it looks.
    """
    if not folder.is_dir():
        raise ConfigError(f"no model at '{folder}': name a Hugging Face folder")
    from rollout.policy_folder import load_policy  # after the arguments were read: PyTorch takes seconds to load

    policy = load_policy(folder, weights=False)
    names = policy.tokenizer.convert_ids_to_tokens(policy.stop_ids)
    if policy.unserved_stop_ids:
        missing = policy.tokenizer.convert_ids_to_tokens(policy.unserved_stop_ids)
        raise ConfigError(
            f"a server of '{folder}' would not stop at {', '.join(missing)}, which its chat template or config.json "
            f'ends answers with: write "eos_token_id": {list(policy.stop_ids)} into its generation_config.json'
        )
    return ", ".join(names)


@clear_errors("trainer.check_model")
def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m trainer.check_model", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a model folder, such as OUT/model of a run")
    given = parser.parse_args(argv)
    quiet_libraries(None, at_once=False)
    print(f"'{given.folder}' is whole; its answers end with {check(given.folder)}")


if __name__ == "__main__":
    main()
