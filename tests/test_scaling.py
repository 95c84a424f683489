"""The simulation of an RL step: it adds up, one GPU is worked by hand, and it moves the way it must."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest

from tests.benchmarks import kernel_times
from tests.benchmarks.moved_bytes import moved_bytes
from tests.benchmarks.scaling import (
    INPUTS,
    Inputs,
    Sessions,
    deal,
    generate_seconds,
    read_inputs,
    reduce_seconds,
    sample_sessions,
    simulate,
    summary,
)

# Round numbers: 5 weights, no attention cost, nothing cached, everything at full speed.
SMALL = Inputs(
    parameters=5, layers=1, attention_width=0, kv_bytes_per_token=0, peak_flops=100, memory_bandwidth=10,
    node_bandwidth=10, network_bandwidth=1, gpus_per_node=2, train_mfu=1, prefill_mfu=1, decode_bandwidth=1,
    hidden_communication=0, sessions_per_node=2, agents=1, num_rollouts=2, max_num_seqs=100, max_tokens=1000,
    prompt_mean=10, prompt_spread=0, prompt_cap=100, shared_share=1, completion_mean=20, completion_spread=0,
    completion_cap=100, calls_per_rollout=3, seconds_per_call=0.5, calls_at_once=1, weights_seconds=1,
    sleep_and_wake_seconds=2,
)  # fmt: skip


def sessions_of(*lengths: list[int], prompt: int = 10) -> Sessions:
    return Sessions(prompts=np.full(len(lengths), prompt), completions=np.array(lengths))


def test_one_gpu_equals_the_hand_computation():
    parts = simulate(SMALL, 1, sample_sessions(SMALL, 2, seed=0))
    assert {name: values.tolist() for name, values in parts.items()} == {
        # 2 prompts of 10 tokens at 2 x 5 FLOPs: 200 / 100; then 20 token steps, each a read of 10 bytes: 1 s
        "generate": [pytest.approx(2 + 20)],
        "judge": [pytest.approx(2 * 2 * 3 * 0.5)],
        "wait_rewards": [0],
        # 20 prompt and 80 completion tokens at 10 FLOPs, five forwards' worth
        "update": [pytest.approx(5 * 100 * 10 / 100)],
        "wait_update": [0],
        # alone there is nothing to send; AdamW moves 28 bytes a weight
        "reduce": [pytest.approx(28 * 5 / 10)],
        "sync": [3],
    }


def test_token_steps_end_with_the_longest_and_wait_for_free_slots():
    mixed = sessions_of([5, 20])
    assert generate_seconds(SMALL, mixed.prompts, mixed.completions) == pytest.approx(1 + 20)
    one_slot = replace(SMALL, max_num_seqs=1)
    assert generate_seconds(one_slot, mixed.prompts, mixed.completions) == pytest.approx(1 + 5 + 20)


def test_keys_and_values_are_read_for_running_sequences_only():
    # contexts are prompt + half the completion: 10 + 2 and 10 + 4 tokens of 5 bytes
    cached, mixed = replace(SMALL, kv_bytes_per_token=5), sessions_of([4, 8])
    both, alone = (10 + 5 * (12 + 14)) / 10, (10 + 5 * 14) / 10
    assert generate_seconds(cached, mixed.prompts, mixed.completions) == pytest.approx(1 + 4 * both + 4 * alone)


def test_many_sequences_are_bound_by_arithmetic():
    crowd = sessions_of([3] * 50)  # 50 sequences x 10 FLOPs / 100: 5 s a token, more than the 1 s of the read
    assert generate_seconds(SMALL, crowd.prompts, crowd.completions) == pytest.approx(1 + 3 * 5)


def test_reduction_counts_every_micro_batch_and_slows_down_between_nodes():
    # 10 bytes, half of them sent by each of two: 0.5 s; three micro-batches, the weights; AdamW on half of the weights
    assert reduce_seconds(SMALL, 2, 3) == pytest.approx(4 * 0.5 + 28 * 5 / 2 / 10)
    assert reduce_seconds(SMALL, 4, 1) == pytest.approx(2 * 7.5 + 28 * 5 / 4 / 10)


@pytest.mark.parametrize("ranks", [1, 3, 8, 40])
def test_parts_sum_to_the_same_step_on_every_gpu(ranks):
    """Also where GPUs get no session at all."""
    inputs = read_inputs()
    parts = simulate(inputs, ranks, sample_sessions(inputs, 32, seed=1))
    totals = sum(parts.values())
    assert totals == pytest.approx(np.full(ranks, totals[0]))
    assert all((values >= 0).all() for values in parts.values())


def test_every_session_is_dealt_once_and_loads_are_even():
    hands = deal(np.array([7, 1, 5, 3, 4, 4]), 2)
    assert sorted(number for hand in hands for number in hand) == [0, 1, 2, 3, 4, 5]
    assert sorted(map(sorted, hands)) == [[0, 1, 5], [2, 3, 4]]  # 7 + 4 + 1 and 5 + 4 + 3


def test_more_gpus_shorten_the_same_work_and_never_beat_the_share():
    inputs = read_inputs()
    sessions = sample_sessions(inputs, 64, seed=2)
    steps = [sum(simulate(inputs, ranks, sessions).values())[0] for ranks in (1, 2, 4, 8)]
    assert steps == sorted(steps, reverse=True)
    assert all(steps[0] / step <= ranks for ranks, step in zip((1, 2, 4, 8), steps, strict=True))


def test_longer_completions_take_longer():
    inputs = read_inputs()
    short, long = (summary(replace(inputs, completion_mean=mean), 8, seeds=2) for mean in (300, 1200))
    assert long["seconds"]["generate"] > short["seconds"]["generate"]
    assert long["seconds"]["update"] > short["seconds"]["update"]


def test_variance_makes_gpus_wait():
    inputs = replace(read_inputs(), prompt_spread=0.0)
    even, assumed, wild = (
        summary(replace(inputs, completion_spread=spread), 16, seeds=4) for spread in (0.0, 0.5, 1.0)
    )
    assert even["seconds"]["wait_rewards"] == even["seconds"]["wait_update"] == 0
    assert 0 < assumed["seconds"]["wait_rewards"] < wild["seconds"]["wait_rewards"]
    assert even["utilisation"] > wild["utilisation"]


def test_every_input_says_where_it_comes_from():
    groups = {name: group for name, group in json.loads(INPUTS.read_text(encoding="utf-8")).items() if name != "_"}
    sources = {name: source for group in groups.values() for name, (_, source) in group.items()}
    assert set(sources) == {field.name for field in fields(Inputs)}
    assert all(sources.values())


def test_products_are_those_that_were_measured_and_between_them_in_proportion():
    kernels, table = kernel_times.read_kernels(), json.loads(kernel_times.TABLE.read_text(encoding="utf-8"))
    for m, microseconds in table["microseconds"]["linear"]["4096 x 2560"]:
        assert kernels.product(m, 4096, 2560) == pytest.approx(microseconds / 1e6)
    # no product of 9,728 outputs was measured: 95% of one of 10,240
    assert kernels.product(8192, 9728, 2560) == pytest.approx(0.95 * kernels.product(8192, 10240, 2560))
    assert kernels.product(65536, 4096, 2560) == pytest.approx(2 * kernels.product(32768, 4096, 2560))
    alone = dict(map(tuple, table["microseconds"]["prefill"]))[4096]
    assert kernels.attention(4096, context=4096) == pytest.approx(36 * alone / 1e6)


def test_rates_come_from_kernels_and_slower_kernels_make_them_lower():
    given, kernels = vars(read_inputs()), kernel_times.read_kernels()

    def slower(points):
        return points[0], 2 * points[1]

    half = replace(
        kernels,
        linear={shape: slower(points) for shape, points in kernels.linear.items()},
        prefill=slower(kernels.prefill),
        decode={count: slower(points) for count, points in kernels.decode.items()},
        collective={name: slower(points) for name, points in kernels.collective.items()},
    )
    found, halved = kernel_times.rates(given), kernel_times.rates(given, half)
    assert all(given[name] == rate for name, rate in found.items()) and len(found) == 4
    for name in ("decode_bandwidth", "node_bandwidth"):
        assert halved[name] == pytest.approx(found[name] / 2)
    for name in ("train_mfu", "prefill_mfu"):  # what other operators move stays as it is
        assert found[name] / 2 < halved[name] < found[name] < 0.8
    # 512 MiB in 1.4 ms, of which each of eight GPUs has one eighth already
    assert found["node_bandwidth"] == pytest.approx(2**29 * 7 / 8 / 1.4e-3, rel=0.01)


def test_what_other_operators_move_is_what_transformers_runs():
    counted = dict(zip(("forward", "backward"), moved_bytes(), strict=True))
    assert kernel_times.MOVED == {name: pytest.approx(number, rel=0.05) for name, number in counted.items()}


def test_the_measured_table_names_its_source_and_licence():
    table = json.loads(kernel_times.TABLE.read_text(encoding="utf-8"))
    assert "aisimulate" in table["source"] and "Apache-2.0" in table["source"] and "NVIDIA" in table["source"]
    assert table["device"] == "NVIDIA H100 80GB HBM3" and set(table["tables"]) == set(table["microseconds"])


def test_the_page_says_what_a_step_costs():
    page = (INPUTS.parents[2] / "docs/training.md").read_text(encoding="utf-8")
    scenarios = json.loads((INPUTS.parent / "results/scaling.json").read_text(encoding="utf-8"))["scenarios"]
    seconds = {row["gpus"]: row["step_seconds"] for row in scenarios["assumed"]}
    few, many = (f"{seconds[gpus]:.0f} s on {gpus}" for gpus in (8, 32))
    few_hours, many_hours = (f"({gpus * seconds[gpus] / 3600:.2f} GPU hours)" for gpus in (8, 32))
    assert f"{few} H100 {few_hours}, {many} with four times the sessions {many_hours}." in page
    found = vars(read_inputs())
    for name, said in (
        ("train_mfu", "of the peak in training"),
        ("prefill_mfu", "while vLLM reads"),
        ("decode_bandwidth", "of the bandwidth while it writes"),
    ):
        assert f"{found[name]:.0%} {said}" in page


def test_a_longer_step_is_reported_with_its_parts():
    row = summary(SMALL, 1, seeds=1)
    assert (row["gpus"], row["sessions"], row["step_seconds"]) == (1, 2, 22 + 6 + 50 + 14 + 3)
    assert row["sessions_per_hour"] == pytest.approx(3600 * 2 / 95, abs=0.05)
    assert row["utilisation"] == pytest.approx(72 / 95, abs=1e-4)
