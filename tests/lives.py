"""Runs of the real loops that are killed, at a moment of one's choice; test_resume.py and its neighbours go on from
them.
"""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from tests import forks
from tests.forks import FORK, nothing
from tests.patience import HANGS


def start(main: Callable, arguments: list[str], out: Path, before: Callable[[], None] = nothing, context=FORK):
    return forks.start(main, ([*arguments, f"out={out}"],), f"{out}.log", before, context)


def finish(main: Callable, arguments: list[str], out: Path, before: Callable[[], None] = nothing, context=FORK) -> None:
    forks.finish(main, ([*arguments, f"out={out}"],), f"{out}.log", before, context)


def killed(
    main: Callable, arguments: list[str], out: Path, death: Callable[[], None], name: str = "", context=FORK
) -> None:
    process = start(main, arguments, out, death, context)
    process.join(HANGS)
    assert process.exitcode == -signal.SIGKILL, name or Path(f"{out}.log").read_text()[-6000:]


def refused(main: Callable, arguments: list[str], out: Path, before: Callable[[], None] = nothing) -> str:
    """What a run says that ends at once."""
    process = start(main, arguments, out, before)
    process.join(60)
    said = Path(f"{out}.log").read_text().replace("\n", " ")
    assert process.exitcode == 1 and "Traceback" not in said, said[-3000:]
    return said


def metrics(out: Path) -> list[dict]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def same_run(one: Path, other: Path) -> None:
    """Bit for bit: every metric of every step, and the weights."""
    assert metrics(one) == metrics(other)
    left, right = (load_file(out / "model" / "model.safetensors") for out in (one, other))
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def checkpoint_names(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_at(owner: object, name: str, call: int, half: bool = False) -> Callable[[], None]:
    """Makes the process kill itself at the n-th call of a function; `half`: after the function has done its work."""

    def arm() -> None:
        original, calls = getattr(owner, name), iter(range(1, 1000))

        def fatal(*args, **kwargs):
            if next(calls) == call:
                if half:
                    original(*args, **kwargs)
                die()
            return original(*args, **kwargs)

        setattr(owner, name, fatal)

    return arm


def dies_between_items(owner: object, name: str, call: int, item: int) -> Callable[[], None]:
    """The same for a generator, when the n-th call is asked for this item of it."""

    def arm() -> None:
        original, calls = getattr(owner, name), iter(range(1, 1000))

        def fatal(*args, **kwargs):
            number = next(calls)
            for position, value in enumerate(original(*args, **kwargs)):
                if (number, position) == (call, item):
                    die()
                yield value

        setattr(owner, name, fatal)

    return arm


def not_finite_at(*updates: int) -> Callable[[], None]:
    """The gradient of these updates is nan."""

    def arm() -> None:
        original, calls = Accelerator.clip_grad_norm_, iter(range(1000))

        def broken(self, parameters, *args):
            parameters = list(parameters)
            if next(calls) in updates:
                parameters[0].grad.fill_(float("nan"))
            return original(self, parameters, *args)

        Accelerator.clip_grad_norm_ = broken

    return arm
