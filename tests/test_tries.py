"""Prefix trees of any depth, and trees that are larger than a micro-batch."""

import random
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.sequences import sequence
from tests.test_packing import (
    assert_same_gradients,
    dense_rows,
    double_precision,  # noqa: F401 (a fixture, used by name)
    gradients,
    make_model,
    packed_copy,
    session_like,
    sizes_of,
    summed_gradients,
    tokens,
    weighted,
    with_ids,
)
from trainer.batching import packing
from trainer.batching.attention_plan import padded_calls, varlen_calls
from trainer.batching.micro_batches import joined, micro_batches, split
from trainer.batching.packing import Node, Share, TrainSequence, build_tree, dense_tree, pack, sequences_of
from trainer.distributed.process_group import World
from trainer.optimizer_step import make_update, packed_tokens

CPU = torch.device("cpu")


def share_all(patch: pytest.MonkeyPatch) -> None:
    """Let every token that sequences share stand once, however little that saves."""
    patch.setattr(packing, "MIN_SAVED_TOKENS", 0)
    patch.setattr(packing, "MIN_SAVED_SHARE", 0.0)


def depth(node: Node) -> int:
    return 1 + max(map(depth, node.children), default=0)


def ways(node: Node, above: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Node]]:
    """Every node with the tokens from the root to its end."""
    way = above + node.token_ids
    yield way, node
    for child in node.children:
        yield from ways(child, way)


# The tree

FEW = st.lists(st.integers(1, 3), min_size=1, max_size=7).map(tuple)
SEQUENCES = st.lists(st.builds(sequence, FEW, FEW), min_size=1, max_size=9)


def assert_holds(tree: Node, sequences: list[TrainSequence]) -> None:
    """Every sequence is in the tree once, on the way to the node that has it."""
    assert sorted(map(id, sequences_of(tree))) == sorted(map(id, sequences))
    for way, node in ways(tree):
        for each in node.sequences:
            assert way[: len(each.input_token_ids)] == each.input_token_ids


def assert_needs_its_nodes(tree: Node) -> None:
    for _, node in ways(tree):
        assert len(node.children) != 1 and (node.token_ids or node is tree)


@given(SEQUENCES)
def test_a_trie_holds_each_token_once_wherever_two_sequences_agree(sequences):
    with pytest.MonkeyPatch.context() as patch:
        share_all(patch)
        tree = build_tree(sequences)
    assert_holds(tree, sequences)
    assert_needs_its_nodes(tree)
    rows = [each.input_token_ids for each in sequences]
    assert tree.num_tokens == len({row[:length] for row in rows for length in range(1, len(row) + 1)})


@given(SEQUENCES)
def test_what_saves_too_little_is_repeated_and_nothing_is_lost(sequences):
    tree = build_tree(sequences)
    assert_holds(tree, sequences)
    assert_needs_its_nodes(tree)
    top = [tree] if tree.token_ids else tree.children
    for way, node in ways(tree):
        if node.children and node is not tree and not any(node is each for each in top):
            start = len(way) - len(node.token_ids)
            below = [each for _, inner in ways(node) for each in inner.sequences]
            shares_prompt = sum(start < len(each.prompt_token_ids) <= len(way) for each in below) > 1
            assert shares_prompt or len(node.token_ids) * (len(node.children) - 1) >= 16


@pytest.mark.parametrize("opening, num_nodes", [(16, 4), (15, 3)])
def test_an_opening_of_two_of_three_answers_is_a_node_from_sixteen_tokens(opening, num_nodes):
    answers = [(1,) * opening + (2, 0), (1,) * opening + (3, 0), (4, 0)]
    tree = build_tree([sequence((9, 9), answer) for answer in answers])
    assert len(list(ways(tree))) == num_nodes + 1 and tree.num_tokens == 2 + 3 + opening * (2 if opening < 16 else 1)


def test_branches_stand_in_the_order_in_which_sequences_come(monkeypatch):
    share_all(monkeypatch)
    rows = [(1, 2, 8, 8, 0), (1, 3, 9, 0), (1, 2, 7, 0), (1, 3, 5, 0), (1, 2, 8, 6, 0)]
    tree = build_tree([sequence(row[:1], row[1:]) for row in rows], "d/0")
    assert tree.id == "d/0" and tree.token_ids == (1,)
    first, second = tree.children
    assert (first.token_ids, second.token_ids) == ((2,), (3,))
    assert [each.token_ids for each in first.children] == [(8,), (7,)]
    assert [each.token_ids for each in first.children[0].children] == [(8,), (6,)]
    assert [each.completion_token_ids for each in sequences_of(tree)] == [
        row[1:] for row in (rows[0], rows[4], rows[2], rows[1], rows[3])
    ]
    assert pack([tree]).token_ids.tolist() == [[1, 2, 3, 8, 7, 9, 5, 8, 6]]


def test_agents_share_the_dialogue_and_rollouts_a_prompt_and_an_opening_of_few_tokens_makes_no_depth():
    """Four agents, three of which begin their instructions alike; all answers but one begin with the same token."""
    dialogue = tuple(range(100, 160))
    prompts = [(*dialogue, *(9, 9) * (agent < 3), agent, *range(200, 240)) for agent in range(4)]
    answers = [(50 if k else 51, *range(60 + k, 70 + 2 * k)) for k in range(8)]
    tree = build_tree([sequence(prompt, answer) for prompt in prompts for answer in answers])
    assert depth(tree) == 3 and tree.token_ids == dialogue
    assert [each.token_ids for each in tree.children] == [prompt[60:] for prompt in prompts]
    for agent in tree.children:
        assert [each.token_ids for each in agent.children] == [answer[:-1] for answer in answers]


def test_turns_are_one_way_and_equal_answers_one_node():
    first = sequence((1, 2, 3), (4, 5, 6))
    second = sequence((1, 2, 3, 4, 5, 6, 7, 7), (8, 9))  # (4, 5, 6) is its prompt's, (7, 7) was told
    tree = build_tree([second, first, sequence((1, 2, 3), (4, 5, 0))])
    assert tree.token_ids == (1, 2, 3, 4, 5, 6, 7, 7, 8) and tree.children == []
    batch = pack([tree])
    assert batch.predict_from.tolist() == [7, 8, 2, 3, 4, 2, 3, 4]
    assert batch.targets.tolist() == [8, 9, 4, 5, 6, 4, 5, 0]
    assert batch.sequence.tolist() == [0, 0, 1, 1, 1, 2, 2, 2]


def deep_session() -> list[TrainSequence]:
    """Instructions, two chunks, two memories each, two answers each that part late, a second turn behind each."""
    source = random.Random(5)
    group, shared = [], tokens(source, 6)
    for chunk in range(2):
        chunked = (*shared, chunk, *tokens(source, 5))
        for memory in range(2):
            prompt = (*chunked, memory, *tokens(source, 3))
            opening = tokens(source, 4)
            for answer in range(2):
                first = (*opening, answer, *tokens(source, 2))
                told = (*prompt, *first, *tokens(source, 2))
                group += [(prompt, first), (told, tokens(source, 3)), (told, tokens(source, 4))]
    (sequences,) = with_ids([group], source)
    return sequences


@pytest.mark.parametrize("plan", [padded_calls, varlen_calls])
def test_a_tree_of_depth_five_equals_the_forward_of_transformers(plan, double_precision, monkeypatch):  # noqa: F811
    share_all(monkeypatch)
    model, sequences = make_model(), deep_session()
    tree = build_tree(sequences)
    assert depth(tree) == 5
    dense = torch.cat([dense_rows(model, each, temperature=0.7) for each in sequences])
    coefficients = torch.tensor([c for each in sequences for c in each.values.advantage], dtype=torch.float64)
    expected = gradients(model, (dense * coefficients).sum())
    policy, batch = packed_copy(model), pack([tree], plan)
    output = weighted(policy, batch, temperature=0.7)
    found = output.head.logprobs[batch.values.rollout_logprobs.argsort()]
    assert (found - dense).abs().max() <= 1e-10
    assert_same_gradients(gradients(policy, output.loss), expected, relative=1e-10)


# What the trees of a micro-batch share


def test_sessions_that_begin_with_the_same_instructions_become_one_tree():
    instructions = tuple(range(1000, 1040))
    trees = [build_tree([sequence((*instructions, k, 5, 6), (7, a)) for a in range(2)]) for k in range(3)]
    (tree,) = joined(trees)
    assert tree.token_ids == instructions and [each.token_ids for each in tree.children] == [
        (k, 5, 6, 7) for k in range(3)
    ]
    assert_holds(tree, [each for tree in trees for each in sequences_of(tree)])
    twice = build_tree([sequence((*instructions, 0, 5, 6), (7, 0))])
    assert [each.num_tokens for each in joined([twice, twice])] == [44]


def test_sessions_that_share_little_stay_as_they_are():
    trees = [build_tree([sequence((1, 2, k, *range(10, 40)), (7, a)) for a in range(2)]) for k in range(2)]
    assert all(mine is whole for mine, whole in zip(joined(trees), trees, strict=True))


# Trees larger than a micro-batch


def leaves_of(tree: Node) -> list[tuple[Node, ...]]:
    return [(tree, *below) for child in tree.children for below in leaves_of(child)] or [(tree,)]


def partitions(items: list) -> Iterator[list[list]]:
    if not items:
        yield []
        return
    for others in partitions(items[1:]):
        yield [items[:1], *others]
        for index, group in enumerate(others):
            yield [*others[:index], items[:1] + group, *others[index + 1 :]]


def fewest_tokens(tree: Node, max_tokens: int) -> int:
    """Those of the best of all ways to group the leaves."""
    paths = leaves_of(tree)

    def size(group: list[int]) -> int:
        return sum(len(node.token_ids) for node in {id(node): node for k in group for node in paths[k]}.values())

    return min(
        sum(map(size, groups))
        for groups in partitions(list(range(len(paths))))
        if all(len(group) == 1 or size(group) <= max_tokens for group in groups)
    )


def random_tree(source: random.Random, levels: int) -> Node:
    children = [random_tree(source, levels - 1) for _ in range(source.choice((0, 2, 2, 3)))] if levels else []
    sequences = [sequence((1,), (2,)) for _ in range(source.choice((0, 1, 2)) if children else 1)]
    return Node(token_ids=(1,) * source.randint(1, 20), children=children, sequences=sequences)


def small_trees(count: int) -> Iterator[tuple[Node, int]]:
    """Random trees of three to seven leaves, and a budget that is too small for each."""
    source = random.Random(2)
    while count:
        tree = random_tree(source, 3)
        if 3 <= len(leaves_of(tree)) <= 7:
            count -= 1
            yield tree, source.randint(tree.num_tokens // 4, tree.num_tokens - 1)


def test_a_split_repeats_at_most_a_tenth_more_than_the_best():
    for tree, max_tokens in small_trees(60):
        parts = split(tree, max_tokens)
        assert len(parts) > 1
        repeated = sum(part.num_tokens for part in parts) - tree.num_tokens
        assert repeated <= 1.1 * (fewest_tokens(tree, max_tokens) - tree.num_tokens)
        for part in parts:
            assert part.num_tokens <= max_tokens or not part.children
        found = [id(each) for part in parts for each in sequences_of(part)]
        assert sorted(found) == sorted(id(each) for each in sequences_of(tree))


def test_a_cut_repeats_the_prompt_above_it_and_keeps_who_belongs_together():
    """Two agents of two answers: 10 | 5 | 4 4 and 10 | 6 | 3 3; whole 35 tokens."""
    prompts = [(*range(10), *(20 + agent,) * (5 + agent)) for agent in range(2)]
    tree = build_tree([sequence(prompts[a], (30 + k,) * (5 - a)) for a in range(2) for k in range(2)], "d/3")
    assert tree.num_tokens == 35 and split(tree, 35) == [tree]
    first, second = split(tree, 34)
    assert [part.num_tokens for part in (first, second)] == [23, 22] and first.id == second.id == "d/3"
    assert first.token_ids == prompts[0] and [each.token_ids for each in second.children] == [(30,) * 3, (31,) * 3]
    assert sizes_of(micro_batches([tree], 22)) == [[22], [19], [19]]
    alone = sizes_of(micro_batches([tree], 3))
    assert alone == [[19], [19], [19], [19]]  # a sequence is never cut


def session_trees() -> list[Node]:
    source = random.Random(7)
    groups = with_ids([session_like(source, 4, 4) for _ in range(3)], source)
    return [*map(build_tree, groups), build_tree(deep_session())]


def test_a_split_leaves_the_gradient_as_it_is(double_precision):  # noqa: F811
    policy, trees = packed_copy(make_model()), session_trees()
    whole = summed_gradients(policy, [trees])
    largest = max(tree.num_tokens for tree in trees)
    for budget in (largest, largest // 2, largest // 4, 1):
        batches = micro_batches(trees, budget)
        assert budget == 1 or all(sum(node.num_tokens for node in nodes) <= budget for nodes in batches)
        assert_same_gradients(summed_gradients(policy, batches), whole, relative=1e-10)
        assert_same_gradients(summed_gradients(policy, map(joined, batches)), whole, relative=1e-10)


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_an_update_counts_each_sequence_once_and_what_it_repeats(num_processes):
    trees = session_trees()
    share, budget = Share.of(trees), max(tree.num_tokens for tree in trees) // 2
    updates = [make_update(share, budget, World(rank=rank, size=num_processes), CPU) for rank in range(num_processes)]
    real = [packed for update in updates for packed in update.batches[: update.num_real]]
    assert sum(len(packed.sequences) for packed in real) == share.num_sequences
    assert sum(len(packed.targets) for packed in real) == share.num_tokens
    assert max(packed.token_ids.numel() for packed in real) <= budget
    for update in updates:
        assert (update.num_tokens, update.num_sequences) == (share.num_tokens, share.num_sequences)
        assert update.num_packed_tokens == sum(packed.token_ids.numel() for packed in real)
        assert 0 < update.num_repeated_tokens == updates[0].num_repeated_tokens
    whole = make_update(share, 10_000, World(), CPU)
    assert packed_tokens([whole, whole]) == {
        "num_packed_tokens": 2 * sum(tree.num_tokens for tree in joined(trees)),
        "num_repeated_tokens": 0,
    }


def test_sequences_that_share_nothing_are_neither_split_nor_joined():
    sequences = [each for tree in session_trees() for each in sequences_of(tree)]
    update = make_update(Share.of([build_tree(sequences)]), 1, World(), CPU, shares_prompts=False)
    assert len(update.batches) == len(sequences) and update.num_repeated_tokens == 0
    assert update.num_packed_tokens == sum(len(each.input_token_ids) for each in sequences)
    assert [batch.token_ids.tolist()[0] for batch in update.batches] == [
        list(dense_tree(packed.sequences[0]).token_ids) for packed in update.batches
    ]
