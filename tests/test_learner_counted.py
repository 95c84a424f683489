"""What is counted of ours and of rivals is what they do, on a CPU at small sizes."""

import json
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, mm_flop

from tests.benchmarks import learner, learner_rivals
from tests.benchmarks.learner_counted import WAYS, Count, Session, flops, rows
from tests.benchmarks.learner_models import GROUP, SIZES
from tests.sequences import sequence
from trainer.batching.attention_plan import varlen_calls
from trainer.batching.packing import build_tree, pack
from trainer.model import merged_attention

RESULTS = Path(__file__).parent / "benchmarks/results/learner_counted.json"
SESSIONS = [Session(1, 20, 0, 4, 6), Session(3, 20, 7, 2, 5), Session(2, 9, 3, 3, 2)]
SMALL = Session(agents=1, shared=20, own=0, rollouts=GROUP, response=6)
AS_RUN = learner.Shape(prompt=SMALL.shared, response=SMALL.response)
NEEDS = {"trl": "trl", "trl_tree": "trl", "prefix_grouper": "prefix_grouper"}


def needs(way: str) -> None:
    if way in NEEDS:
        pytest.importorskip(NEEDS[way], reason="an optional rival (.[bench])")


def tokens_of(session: Session) -> list[tuple[list[int], list[int]]]:
    """Prompts and answers that part at once and nowhere before."""
    shared, found = list(range(100, 100 + session.shared)), []
    for agent in range(session.agents):
        own = [1000 * (agent + 1) + k for k in range(session.own)]
        for number in range(session.rollouts):
            first = 10_000 * (agent + 1) + 100 * number
            found.append((shared + own, list(range(first, first + session.response))))
    return found


@pytest.mark.parametrize("session", SESSIONS, ids=["group", "agents", "short"])
def test_ours_are_the_tokens_pairs_and_calls_of_the_plan(session):
    packed = pack([build_tree([sequence(*each) for each in tokens_of(session)])], varlen_calls)
    pairs = key_rows = 0
    for call in packed.plan:
        assert isinstance(call.keys, slice), "keys are read where they stand"
        key_rows += call.keys.stop - call.keys.start
        lengths = zip(call.query_bounds.diff().tolist(), call.key_bounds.diff().tolist(), strict=True)
        pairs += sum(q * (q + 1) // 2 if call.causal else q * k for q, k in lengths)
    found = WAYS["shared"](session)
    assert (found.tokens, found.pairs) == (packed.token_ids.numel(), pairs)
    assert (found.attention_calls, found.key_gradients) == (len(packed.plan), key_rows)
    assert found.head_rows == len(packed.targets) and found.copied_keys == 0


def test_ours_reads_keys_in_the_storage_that_the_projection_wrote(monkeypatch):
    read = []
    original = merged_attention._read

    def spied(tensor, where):
        found = original(tensor, where)
        read.append(found.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr())
        return found

    monkeypatch.setattr(merged_attention, "_read", spied)
    learner.step(*learner.IMPLEMENTATIONS["shared"](AS_RUN))
    assert read and all(read)


@pytest.mark.parametrize("session", SESSIONS, ids=["group", "agents", "short"])
def test_trls_are_those_that_its_packing_returns(session):
    needs("trl")
    from trl.experimental.async_grpo.packing import TreeRow

    row = TreeRow()
    for prompt, response in tokens_of(session):
        ids, mask = torch.tensor(prompt + response), torch.tensor([0] * len(prompt) + [1] * len(response))
        sample = {"input_ids": ids, "completion_mask": mask, "old_log_probs": torch.zeros(len(ids))}
        row.add(sample | {"advantage": 1.0, "group_id": 0})
    packed, found = row.pack(), WAYS["trl_tree"](session)
    queries, keys = (packed[f"tree_cu_seqlens_{each}"].diff() for each in "qk")
    assert found.copied_keys == len(packed["tree_kv_index"]) and found.tokens == len(packed["input_ids"])
    assert found.pairs == (queries * (keys - queries) + queries * (queries + 1) // 2).sum()
    assert found.head_rows == (packed["shift_labels"] != -100).sum()


@pytest.mark.parametrize("way", ["trl_tree", "prefix_grouper"])
def test_rivals_hand_their_kernels_copies_of_as_many_keys_as_counted(way, monkeypatch):
    needs(way)
    kernel, taken = {"trl_tree": ("varlen_attention", 0), "prefix_grouper": ("_causal", 2)}[way]
    original, seen = getattr(learner_rivals, kernel), []

    def spied(query, key, *rest):
        seen.append(key.shape[0] * (key.shape[2] if taken else 1))
        return original(query, key, *rest)

    def named(query, key, *rest, **options):
        seen.append(key.shape[0])
        return original(query, key, *rest, **options)

    monkeypatch.setattr(learner_rivals, kernel, spied if taken else named)
    model, forward = learner.IMPLEMENTATIONS[way](AS_RUN)
    seen.clear()
    forward()
    layers, found = len(model.model.layers), WAYS[way](SMALL)
    assert len(seen) == layers * found.attention_calls and sum(seen) == layers * found.kept_keys


def test_prefix_groupers_copies_are_the_tensors_that_it_makes(monkeypatch):
    """The keys taken apart, the repeated prefix, and both joined: counted at the functions that make them."""
    needs("prefix_grouper")
    import prefix_grouper

    made = defaultdict(int)
    ungroup, repeat = prefix_grouper.PrefixGrouper.ungroup, torch.Tensor.repeat_interleave

    def taken_apart(self, q, k, v):
        found = ungroup(self, q, k, v)
        made["apart"] += sum(found[place].shape[0] * found[place].shape[2] for place in (1, 4))
        return found

    def repeated(self, *args, **options):
        found = repeat(self, *args, **options)
        if self.ndim == 4 and self.shape[-1] == SIZES["small"]["head_dim"]:
            made["repeated"] += found.shape[0] * found.shape[2]
        return found

    model, forward = learner.IMPLEMENTATIONS["prefix_grouper"](AS_RUN)
    monkeypatch.setattr(prefix_grouper.PrefixGrouper, "ungroup", taken_apart)
    monkeypatch.setattr(torch.Tensor, "repeat_interleave", repeated)
    forward()
    layers, found = len(model.model.layers), WAYS["prefix_grouper"](SMALL)
    joined = found.kept_keys - SMALL.prompt
    assert made["repeated"] == 2 * layers * SMALL.answers * SMALL.prompt  # of keys and of values
    assert found.copied_keys == made["apart"] / layers + made["repeated"] / layers / 2 + joined


def as_on_a_cpu(way: str, found: Count) -> int:
    """TRL scores every position where it has no Triton; its dense copies all but the last of each."""
    positions = {"trl_tree": found.tokens, "trl": found.tokens - SMALL.answers}
    return positions.get(way, found.head_rows)


@pytest.mark.parametrize("way", ["shared", "dense", "trl_tree", "trl", "prefix_grouper"])
def test_flops_of_layers_and_head_are_those_that_run(way):
    needs(way)
    model, forward = learner.IMPLEMENTATIONS[way](AS_RUN)
    in_place = {torch.ops.aten.addmm_: lambda _, left, right, **rest: mm_flop(left, right)}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        learner.step(model, forward)
    ran = counter.get_flop_counts()["Global"]
    products = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
    found = WAYS[way](SMALL)
    counted = flops(found, SIZES["small"])
    head = counted["head"] * as_on_a_cpu(way, found) // found.head_rows
    assert sum(ran.get(each, 0) for each in products) == counted["linear"] + head


NAMES = {
    "shared": "ours",
    "trl_tree": "TRL's AsyncGRPO",
    "prefix_grouper": "PrefixGrouper",
    "trl": "TRL's GRPO, dense copies",
    "verl": "verl, dense copies",
}


def test_the_page_shows_what_is_counted():
    page = (RESULTS.parents[3] / "docs/performance.md").read_text(encoding="utf-8")
    calls = {row["impl"]: [] for row in rows()}
    for row in rows():
        calls[row["impl"]].append(row["attention_calls"])
        if row["impl"] in NAMES:
            sizes = f"{row['tokens']:,} | {row['kept_keys']:,} | {row['kept_keys_and_values_mb'] / 1e3:.1f}"
            told = f"| {NAMES[row['impl']]} | {sizes} | {row['head_tflop']:.0f} | {row['tflop']:,.0f} |"
            assert told in page
    assert calls["shared"] == [3, 6] and "| 3 at depth two, 6 at three | **1** | 2 |" in page
    assert calls["trl_tree"] == [1, 1] and calls["prefix_grouper"] == [2, 2]


def test_the_page_shows_how_many_operations_dense_copies_have():
    page = (RESULTS.parents[3] / "docs/performance.md").read_text(encoding="utf-8")
    shape = learner.Shape(2048, 128)
    dense, ours = (learner.flops_of(name, shape) for name in ("dense", "shared"))
    assert f"at width {SIZES[shape.sizes]['hidden_size']} they have {dense / ours:.1f} times the operations" in page


def test_the_result_file_is_what_is_counted():
    assert json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] == list(rows())
