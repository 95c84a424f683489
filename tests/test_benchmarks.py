"""The benchmarks compare like with like: every implementation they time computes the same loss and gradient."""

import json
from pathlib import Path

import pytest
import torch

from tests.benchmarks import head, learner, other_loaders, sft
from tests.benchmarks.common import peak_mb

HEAD = head.Shape(rows=1024, hidden=16, vocab=97, dtype=torch.float32)
LEARNER = learner.Shape(prompt=12, response=5)


@pytest.mark.parametrize("name", ["fused", "plain", "liger"])
def test_heads_have_the_same_gradient(name):
    if name == "liger":
        pytest.importorskip("liger_kernel", reason="an optional rival (.[bench])")
    assert head.gap(head.step(head.HEADS[name], head.make(HEAD)), head.truth(HEAD)) < 1e-5


@pytest.mark.slow
def test_the_head_needs_room_for_one_chunk_however_many_rows():
    """Beyond the gradients that come out. The plain head needs 4 MB for every 1,024 rows and each of its two copies."""
    shapes = [head.Shape(rows=rows, hidden=256, vocab=1024, dtype=torch.float32) for rows in (1024, 16384)]
    few, many = (head.memory("fused", shape)["extra_mb"] for shape in shapes)
    assert many - few < 3
    assert head.memory("plain", shapes[1])["extra_mb"] > many + 60


@pytest.mark.parametrize("name", ["shared", *learner.RIVALS])
def test_learners_have_the_gradient_of_dense_copies(name):
    if name in learner.RIVALS:
        pytest.importorskip("trl", reason="an optional rival (.[bench])")
    found = {}
    for implementation in ("dense", name):
        model, forward = learner.IMPLEMENTATIONS[implementation](LEARNER)
        learner.step(model, forward)
        found[implementation] = learner.loss_of(forward()).item(), learner.gradient(model)
    assert found[name][0] == pytest.approx(found["dense"][0], abs=1e-5)
    assert (found[name][1] - found["dense"][1]).norm() < 1e-5 * found["dense"][1].norm()


def test_the_bare_sft_command_writes_beside_the_other_results():
    given = sft.options([])
    assert given.out == sft.Path(sft.__file__).parent / f"results/sft_{sft.device().type}.json"
    assert given.out.parent.is_dir() and given.impl == list(sft.IMPLEMENTATIONS)


def _allocate():
    return lambda: torch.ones(25_000_000).sum()


@pytest.mark.slow
def test_peak_memory_sees_what_a_run_allocates():
    assert 95 < peak_mb(_allocate) < 130  # 25 million float32


def test_other_loaders_read_our_files_as_they_are():
    """What the last run of the script found; a loader that misses or changes one record makes it fail."""
    found = json.loads((Path(other_loaders.HERE) / "results/other_loaders.json").read_text(encoding="utf-8"))
    for name in ("llama_factory", "verl", "verl_flat"):
        assert found[name]["records"] == 20 and other_loaders.is_equal(found[name]), name
        assert not other_loaders.is_equal(found[name] | {"examples": 19})
    assert found["verl"]["indices"] == 20 and not other_loaders.is_equal(found["verl"] | {"equal_prompts": 19})
