"""Windows, mixtures of experts and recurrences on two processes, DDP and ZeRO-2: the weights of one process."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from tests import forks, kinds_on_ranks, launchers
from tests.patience import HANGS
from tests.test_many_processes import WRAPPERS, largest_gap

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    forks.finish(kinds_on_ranks.main, (out,), out / "log")
    return out


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Callable[[str], Path]:
    """Mode -> all kinds in two processes; DeepSpeed is told to take an optimizer that it does not know."""
    plain = launchers.accelerate_file

    def with_descent(mode: str, folder: Path) -> str:
        found, deepspeed = plain(mode, folder), folder / "deepspeed.json"
        if deepspeed.exists():
            deepspeed.write_text(
                json.dumps(json.loads(deepspeed.read_text()) | {"zero_allow_untested_optimizer": True})
            )
        return found

    @cache
    def run(mode: str) -> Path:
        folder = tmp_path_factory.mktemp(mode)
        with launchers.nodes(mode, folder, "tests.kinds_on_ranks", str(folder / "run")) as started:
            for node in started:
                assert node.launcher.wait(HANGS) == 0, node.log.read_text()[-4000:]
        return folder / "run"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launchers, "accelerate_file", with_descent)
        yield run


@pytest.mark.parametrize("mode", ["ddp", "zero2"])
@pytest.mark.parametrize("kind", kinds_on_ranks.ON_RANKS)
def test_two_processes_have_the_weights_of_one(alone, together, kind, mode):
    one, two = (json.loads((out / f"{kind}.json").read_text()) for out in (alone, together(mode)))
    assert (one["ranks"], two["ranks"], two["engine"], two["stage"]) == (1, 2, *WRAPPERS[mode][1:])
    assert one["moved"] > 1e-3, "a hundred times the bound"
    assert any(two["idle"]) == ("experts" in kind), "some expert of some step got no token"
    weights, same = (torch.load(out / f"{kind}.pt", weights_only=True) for out in (alone, together(mode)))
    assert weights.keys() == same.keys() and largest_gap(weights, same) <= 1e-5
