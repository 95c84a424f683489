"""The console scripts `membuilder-sft` and `membuilder-rl`, the same as `python -m trainer.sft` and `trainer.rl`."""

from membuilder.errors import clear_errors


def sft() -> None:
    from trainer.sft import main

    with clear_errors("membuilder-sft"):
        main()


def rl() -> None:
    from trainer.rl import main

    with clear_errors("membuilder-rl"):
        main()
