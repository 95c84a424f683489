"""One RL step on 1 to 64 GPUs, on paper: where the time goes and how busy the GPUs are. Modelled from measured kernels.

    python -m tests.benchmarks.scaling

Writes results/scaling.json and results/scaling.png. Every number that goes in stands in scaling_inputs.json with its
source. The step, on each GPU (data parallel, vLLM in the same process):

    generate  prompts are read at a share of peak FLOPs, then all running sequences advance one token at a time; a token
              costs one read of the weights and of the running sequences' keys and values
    judge     calls x seconds / calls at once, after the GPU's last completion
    wait      until the slowest GPU has its rewards: the first backward needs the number of all tokens
    update    forward and backward (recomputed once) of policy, forward of reference, at a share of peak FLOPs
    wait      until the slowest GPU is through
    reduce    ZeRO-2: gradients after every micro-batch, new weights once; and AdamW on the GPU's share
    sync      weights into vLLM, sleep and wake

Sessions are dealt to GPUs by the length of their prompts, the one thing known before. Lengths are lognormal.
"""

import argparse
import heapq
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tests.benchmarks.common import header
from tests.benchmarks.kernel_times import rates
from tests.benchmarks.scaling_plot import draw

INPUTS = Path(__file__).with_name("scaling_inputs.json")
RESULTS = Path(__file__).with_name("results")
SIZES = (1, 2, 4, 8, 16, 32, 64)
SPREADS = {"equal lengths": 0.0, "assumed": None, "long tail": 1.3}
PARTS = ("generate", "wait_rewards", "judge", "update", "wait_update", "reduce", "sync")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """scaling_inputs.json without the sources; its groups are only for the reader."""

    parameters: float
    layers: int
    attention_width: int
    kv_bytes_per_token: float
    peak_flops: float
    memory_bandwidth: float
    node_bandwidth: float
    network_bandwidth: float
    gpus_per_node: int
    train_mfu: float
    prefill_mfu: float
    decode_bandwidth: float
    hidden_communication: float
    sessions_per_node: int
    agents: int
    num_rollouts: int
    max_num_seqs: int
    max_tokens: int
    prompt_mean: float
    prompt_spread: float
    prompt_cap: int
    shared_share: float
    completion_mean: float
    completion_spread: float
    completion_cap: int
    calls_per_rollout: int
    seconds_per_call: float
    calls_at_once: int
    weights_seconds: float
    sleep_and_wake_seconds: float


def read_inputs(path: Path = INPUTS) -> Inputs:
    """Read what is given; what is null comes from measured kernels (kernel_times.py)."""
    groups = json.loads(path.read_text(encoding="utf-8"))
    given = {name: value for key, group in groups.items() if key != "_" for name, (value, _) in group.items()}
    left_open = {name for name, value in given.items() if value is None}
    return Inputs(**given | {name: rate for name, rate in rates(given).items() if name in left_open})


@dataclass(frozen=True, kw_only=True)
class Sessions:
    prompts: np.ndarray  # (S,) tokens an agent reads
    completions: np.ndarray  # (S, agents x rollouts) tokens


def sample_sessions(inputs: Inputs, count: int, seed: int) -> Sessions:
    """Lognormal lengths with the given means (before the caps), at least one token."""
    source = np.random.default_rng(seed)

    def draw_lengths(mean: float, spread: float, cap: int, shape) -> np.ndarray:
        lengths = source.lognormal(np.log(mean) - spread**2 / 2, spread, shape)
        return np.clip(np.rint(lengths), 1, cap).astype(int)

    shape = (count, inputs.agents * inputs.num_rollouts)
    return Sessions(
        prompts=draw_lengths(inputs.prompt_mean, inputs.prompt_spread, inputs.prompt_cap, count),
        completions=draw_lengths(inputs.completion_mean, inputs.completion_spread, inputs.completion_cap, shape),
    )


def deal(costs: np.ndarray, ranks: int) -> list[list[int]]:
    """Session numbers of each rank: the costliest first, each to the rank with the least so far."""
    hands: list[list[int]] = [[] for _ in range(ranks)]
    loads = [(0.0, 0, rank) for rank in range(ranks)]
    for number in sorted(range(len(costs)), key=lambda index: -costs[index]):
        load, count, rank = heapq.heappop(loads)
        hands[rank].append(number)
        heapq.heappush(loads, (load + float(costs[number]), count + 1, rank))
    return hands


def prompt_tokens(inputs: Inputs, prompts: np.ndarray) -> float:
    """Prompt tokens that run through the model: what a session's agents share counts once."""
    return float(prompts.sum()) * (inputs.shared_share + inputs.agents * (1 - inputs.shared_share))


def forward_flops(inputs: Inputs, tokens: float, context: float) -> float:
    """Two per weight, and scores and values over half of the context on average."""
    return tokens * (2 * inputs.parameters + 4 * inputs.attention_width * inputs.layers * context / 2)


def generate_seconds(inputs: Inputs, prompts: np.ndarray, completions: np.ndarray) -> float:
    """One rank's vLLM: a new sequence starts when one of the running ones ends."""
    if not len(prompts):
        return 0.0
    flops = forward_flops(inputs, prompt_tokens(inputs, prompts), float(prompts.mean()))
    prefill = flops / (inputs.peak_flops * inputs.prefill_mfu)
    lengths, contexts = completions.ravel(), np.repeat(prompts, completions.shape[1]) + completions.ravel() / 2
    slots = [0] * min(inputs.max_num_seqs, len(lengths))
    starts = np.empty(len(lengths), dtype=int)
    for index, length in enumerate(lengths):  # in token steps
        starts[index] = heapq.heappop(slots)
        heapq.heappush(slots, starts[index] + int(length))
    ends = starts + lengths
    running, read = np.zeros(ends.max() + 1), np.zeros(ends.max() + 1)
    for places, sign in ((starts, 1), (ends, -1)):
        np.add.at(running, places, sign)
        np.add.at(read, places, sign * contexts)
    running, read = running.cumsum()[:-1], read.cumsum()[:-1]  # sequences and context tokens of each token step
    moved = 2 * inputs.parameters + read * inputs.kv_bytes_per_token
    computed = 2 * inputs.parameters * running / (inputs.peak_flops * inputs.prefill_mfu)
    return prefill + float(np.maximum(moved / (inputs.memory_bandwidth * inputs.decode_bandwidth), computed).sum())


def judge_seconds(inputs: Inputs, sessions: int) -> float:
    return sessions * inputs.num_rollouts * inputs.calls_per_rollout * inputs.seconds_per_call / inputs.calls_at_once


def packed_tokens(inputs: Inputs, prompts: np.ndarray, completions: np.ndarray) -> float:
    return prompt_tokens(inputs, prompts) + float(completions.sum())


def update_seconds(inputs: Inputs, prompts: np.ndarray, completions: np.ndarray) -> float:
    """Policy: forward, recomputed forward and a backward of twice that; reference: one forward."""
    if not len(prompts):
        return 0.0
    forward = forward_flops(inputs, packed_tokens(inputs, prompts, completions), float(prompts.mean()))
    return (1 + 1 + 2 + 1) * forward / (inputs.peak_flops * inputs.train_mfu)


def reduce_seconds(inputs: Inputs, ranks: int, micro_batches: int) -> float:
    """Ring collectives of bfloat16 gradients and weights; AdamW reads and writes 28 bytes a weight of its share."""
    bandwidth = inputs.node_bandwidth if ranks <= inputs.gpus_per_node else inputs.network_bandwidth
    once = 2 * inputs.parameters * (ranks - 1) / ranks / bandwidth
    gradients = micro_batches * once * (1 - inputs.hidden_communication)
    return gradients + once + 28 * inputs.parameters / ranks / inputs.memory_bandwidth


def simulate(inputs: Inputs, ranks: int, sessions: Sessions) -> dict[str, np.ndarray]:
    """Seconds of each part on each rank: part -> (R,). On every rank they sum to the step."""
    hands = deal(sessions.prompts, ranks)
    mine = [(sessions.prompts[hand], sessions.completions[hand]) for hand in hands]
    generate = np.array([generate_seconds(inputs, *each) for each in mine])
    judge = np.array([judge_seconds(inputs, len(hand)) for hand in hands])
    update = np.array([update_seconds(inputs, *each) for each in mine])
    # every rank makes as many micro-steps as the one with the most
    micro_batches = max(-(-packed_tokens(inputs, *each) // inputs.max_tokens) for each in mine)
    collected = generate + judge
    return {
        "generate": generate,
        "wait_rewards": collected.max() - collected,
        "judge": judge,
        "update": update,
        "wait_update": update.max() - update,
        "reduce": np.full(ranks, reduce_seconds(inputs, ranks, int(micro_batches))),
        "sync": np.full(ranks, inputs.weights_seconds + inputs.sleep_and_wake_seconds),
    }


def summary(inputs: Inputs, ranks: int, seeds: int) -> dict:
    """Means over seeds: seconds of the parts of an average GPU, the step, sessions per hour and utilisation."""
    nodes = -(-ranks // inputs.gpus_per_node)
    count = inputs.sessions_per_node * nodes
    runs = [simulate(inputs, ranks, sample_sessions(inputs, count, seed)) for seed in range(seeds)]
    parts = {name: float(np.mean([run[name].mean() for run in runs])) for name in PARTS}
    step = sum(parts.values())
    return {
        "gpus": ranks,
        "sessions": count,
        "step_seconds": round(step, 2),
        "sessions_per_hour": round(3600 * count / step, 1),
        "utilisation": round((parts["generate"] + parts["update"]) / step, 4),
        "seconds": {name: round(value, 3) for name, value in parts.items()},
    }


def table(rows: list[dict]) -> str:
    lines = ["GPUs  sessions  step s  sessions/h  busy  " + "  ".join(f"{name:>12}" for name in PARTS)]
    for row in rows:
        shares = (f"{row['seconds'][name] / row['step_seconds']:12.1%}" for name in PARTS)
        lines.append(
            f"{row['gpus']:4}  {row['sessions']:8}  {row['step_seconds']:6.1f}  {row['sessions_per_hour']:10.0f}  "
            f"{row['utilisation']:4.0%}  " + "  ".join(shares)
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="One RL step on 1 to 64 GPUs, on paper.")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for scaling.json and scaling.png")
    given = parser.parse_args()
    inputs, scenarios = read_inputs(), {}
    for name, spread in SPREADS.items():
        varied = inputs if spread is None else replace(inputs, completion_spread=spread)
        varied = replace(varied, prompt_spread=0.0) if spread == 0 else varied
        scenarios[name] = [summary(varied, ranks, given.seeds) for ranks in SIZES]
        print(f"\n{name} (sigma of the completions {varied.completion_spread:g})\n{table(scenarios[name])}")
    given.out.mkdir(parents=True, exist_ok=True)
    what = (
        "A model of one RL step from measured kernels (kernel_times_h100.json), not a measurement: "
        "python -m tests.benchmarks.scaling; inputs in scaling_inputs.json."
    )
    record = {"what": what} | header() | {"seeds": given.seeds, "scenarios": scenarios}
    (given.out / "scaling.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    draw(scenarios, given.out / "scaling.png")


if __name__ == "__main__":
    main()
