"""The benchmarks compare like with like: every implementation they time computes the same loss and gradient."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.benchmarks import episodes, head, leaks, learner, other_loaders, sft
from tests.benchmarks.common import peak_mb
from tests.benchmarks.made_up_step import made_up_step
from tests.sequences import sequence
from trainer.batching.packing import build_tree

HEAD = head.Shape(rows=1024, hidden=16, vocab=97, dtype=torch.float32)
LEARNERS = [learner.Shape(prompt=12, response=5), learner.Shape(prompt=12, response=5, own=3)]


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


@pytest.mark.parametrize("shape", LEARNERS, ids=["one_prompt", "own_memories"])
@pytest.mark.parametrize("name", ["shared", *learner.RIVALS])
def test_learners_have_the_gradient_of_dense_copies(name, shape):
    if name in learner.RIVALS:
        package = name if name == "prefix_grouper" else "trl"
        pytest.importorskip(package, reason="an optional rival (.[bench])")
    found = {}
    for implementation in ("dense", name):
        model, forward = learner.IMPLEMENTATIONS[implementation](shape)
        learner.step(model, forward)
        found[implementation] = learner.loss_of(forward()).item(), learner.gradient(model)
    assert found[name][0] == pytest.approx(found["dense"][0], abs=1e-5)
    assert (found[name][1] - found["dense"][1]).norm() < 1e-5 * found["dense"][1].norm()


@pytest.mark.parametrize("name", ["shared", "own"])
def test_learners_of_a_hybrid_have_the_gradient_of_dense_copies(name):
    test_learners_have_the_gradient_of_dense_copies(name, replace(LEARNERS[1], sizes="hybrid"))


def test_learners_with_a_window_have_the_gradient_of_the_models_own_attention():
    shape = learner.Shape(prompt=12, response=5, window=4)
    own, shared = (learner.find(name, shape).gradient for name in learner.compared(shape))
    assert (shared - own).norm() < 1e-5 * own.norm()
    unlimited = learner.find("own", learner.Shape(prompt=12, response=5)).gradient
    assert (unlimited - own).norm() > 0.01 * own.norm()


def test_the_learners_of_memalpha_share_what_stands_before_the_memories():
    tokens = {}
    for order, shape in learner.ORDERS.items():
        prompts, responses, _ = learner.tokens_of(shape)
        assert {len(prompt) for prompt in prompts} == {900 + 1100 + 700} and {len(each) for each in responses} == {500}
        tree = build_tree([sequence(*each) for each in zip(prompts, responses, strict=True)])
        tokens[order] = tree.num_tokens
    own = 700 + 500 - 1  # the last token of an answer is a target only
    assert tokens == {"chunk_first": 2000 + 8 * own, "published": 900 + 8 * (1100 + own)}


@pytest.mark.slow
def test_an_engine_gets_the_very_prompts_of_the_episodes_again(monkeypatch):
    for name, smaller in (("NUM_INSTANCES", 2), ("NUM_CHUNKS", 2), ("LINES_FROM", 1)):
        monkeypatch.setattr(episodes, name, smaller)
    found = []
    monkeypatch.setattr(episodes.SpeaksInCalls, "replay", lambda self: found.append(self.asked.copy()))
    row = episodes.measure_sampling("transformers", num_rollouts=2, max_tokens=3, repeats=1)
    first, again = found  # of the warm-up, and of the round that counts
    assert first == again and sum(len(prompts) * n for prompts, n, *_ in first) == row["prompts"] == 8
    assert row["mean_sampled_tokens"] <= 3 and row["mean_entries_at_the_end"] > episodes.CALLS_PER_ANSWER


def test_a_made_up_step_has_the_lengths_of_the_published_run():
    groups = made_up_step(episodes.instances(1))
    assert 10 <= len(groups) <= 20 and {len(group.rollouts) for group in groups} == {8}
    samples = [rollout.samples["writer"] for group in groups for rollout in group.rollouts]
    assert {len(sample.prompt_token_ids) for sample in samples} == {3000}
    assert {len(sample.completion.token_ids) for sample in samples} == {500}
    assert [len(group.rollouts[0].bank.entries) for group in groups] == [8 * k for k in range(1, len(groups) + 1)]


def test_the_bare_sft_command_writes_beside_the_other_results():
    given = sft.options([])
    assert given.out == sft.Path(sft.__file__).parent / f"results/sft_{sft.device().type}.json"
    assert given.out.parent.is_dir() and given.impl == list(sft.IMPLEMENTATIONS)


def _allocate():
    return lambda: torch.ones(25_000_000).sum()


@pytest.mark.slow
def test_peak_memory_sees_what_a_run_allocates():
    assert 95 < peak_mb(_allocate) < 130  # 25 million float32


@pytest.mark.slow
def test_the_leak_comparison_is_measured_as_a_process_of_its_own():
    row = leaks.measure(0.3, repeats=1)
    assert row["runs"] == 1 and row["seconds"] > 0 and row["processor_seconds"] > 0 and 30 < row["peak_mb"] < 500


def test_other_loaders_read_our_files_as_they_are():
    """What the last run of the script found; a loader that misses or changes one record makes it fail."""
    found = json.loads((Path(other_loaders.HERE) / "results/other_loaders.json").read_text(encoding="utf-8"))
    for name in ("llama_factory", "verl", "verl_flat"):
        assert found[name]["records"] == 20 and other_loaders.is_equal(found[name]), name
        assert not other_loaders.is_equal(found[name] | {"examples": 19})
    assert found["verl"]["indices"] == 20 and not other_loaders.is_equal(found["verl"] | {"equal_prompts": 19})
