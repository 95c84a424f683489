"""Experts that an engine chose are the ones that are trained, by routers' own weights; where they differ is counted."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import linear
from transformers import DeepseekV3Config, JambaConfig, Lfm2MoeConfig, Qwen3_5MoeTextConfig, Qwen3MoeConfig

from membuilder.errors import ConfigError
from rollout.routed_experts import RoutedExperts, RouterReplay, routers
from tests.kinds import make
from tests.test_architectures import DELTA, EXPERTS, GROUPED, HEADS, SEQUENCES, SHARED, SIZES
from trainer.batching.micro_batches import split
from trainer.batching.packing import TrainSequence, build_tree, dense_tree, pack_on
from trainer.configs import Attention
from trainer.model.make_policy import make_policy
from trainer.model.policy import Policy
from trainer.model.router_replay import (
    COMPARED,
    MISMATCH,
    MISMATCHED,
    contexts_of_checkpoint,
    take_mismatch,
    use_router_replay,
)

CPU = torch.device("cpu")
MIXTURES = {
    "qwen3_moe": SHARED["qwen3_moe"],
    "qwen3_moe_normalised": Qwen3MoeConfig(**HEADS, **EXPERTS, norm_topk_prob=True),
    "mixtral": SHARED["mixtral"],
    "gpt_oss": SHARED["gpt_oss"],
    "qwen3_next": SHARED["qwen3_next"],
    "qwen3_5_moe": Qwen3_5MoeTextConfig(**HEADS, **DELTA, **EXPERTS, shared_expert_intermediate_size=8),
    "deepseek_v3": DeepseekV3Config(
        **SIZES, num_key_value_heads=4, n_routed_experts=8, num_experts_per_tok=2, n_group=2, topk_group=1,
        first_k_dense_replace=1, moe_intermediate_size=8,
    ),
    "lfm2_moe": Lfm2MoeConfig(
        **GROUPED, layer_types=["conv", "full_attention"], num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=8, num_dense_layers=1,
    ),
}  # fmt: skip


def mixture(name: str, dtype: torch.dtype = torch.float64):
    return make(MIXTURES[name], dtype)


def record(rows) -> RoutedExperts:
    return RoutedExperts.of(np.array(rows))


def drawn_sequences(model, prompts_told: bool = True) -> list[TrainSequence]:
    """SEQUENCES with random experts: one draw for each prefix, so that tokens that are shared have the same ones."""
    found = routers(model).values()
    layers, (num_experts, top_k) = len(found), next((each.num_experts, each.top_k) for each in found)

    def of(prefix: tuple[int, ...]) -> list[list[int]]:
        draw = random.Random(repr(prefix))
        return [draw.sample(range(num_experts), top_k) for _ in range(layers)]

    sequences = []
    for each in SEQUENCES:
        ids, start = each.input_token_ids, len(each.prompt_token_ids)
        rows = np.array([of(ids[: place + 1]) for place in range(len(ids))])
        parts = (rows[: start - 4], rows[start - 4 :]) if prompts_told else (rows[start - 1 :],)
        sequences.append(replace(each, routed_experts=tuple(map(RoutedExperts.of, parts))))
    return sequences


def weights_of(router, logits: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """What each family makes of its logits, written out once more for experts that are given."""
    kind = type(router).__name__
    if "GptOss" in kind:
        return logits.gather(-1, chosen).softmax(-1)
    if "Deepseek" in kind or "Lfm2" in kind:
        weights = logits.sigmoid().gather(-1, chosen)
        weights = weights / (weights.sum(-1, keepdim=True) + (1e-20 if "Deepseek" in kind else 1e-6))
        return weights * router.routed_scaling_factor
    weights = logits.softmax(-1).gather(-1, chosen)
    return weights / weights.sum(-1, keepdim=True) if getattr(router, "norm_topk_prob", True) else weights


def forced_numbers(model, sequences) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probs and gradients of the untouched model, each sequence alone; its routers' forwards are replaced."""
    told: list[np.ndarray] = []

    def forward(router, layer, own):
        def forced(hidden, *others):
            hidden = hidden.reshape(-1, router.hidden_dim)
            _, _, indices = own(hidden, *others)
            chosen = indices.clone()
            known = told[0][:, layer] >= 0  # of the last inputs; the last token's logits are not used
            chosen[: len(known)][known] = torch.tensor(told[0][:, layer][known])
            logits = linear(hidden, router.weight, getattr(router, "bias", None))
            return logits, weights_of(router, logits, chosen), chosen

        return forced

    for layer, router in enumerate(routers(model).values()):
        router.forward = forward(router, layer, router.forward)
    logprobs = []
    for each in sequences:
        rows = np.concatenate([part.array() for part in each.routed_experts]).astype(np.int64)
        missing = len(each.input_token_ids) - len(rows)
        told[:] = [np.concatenate([np.full((missing, *rows.shape[1:]), -1), rows])]
        ids = torch.tensor([[*each.prompt_token_ids, *each.completion_token_ids]])
        start = len(each.prompt_token_ids)
        logits = model(input_ids=ids, use_cache=False).logits[0, start - 1 : -1].double()
        logprobs.append(logits.log_softmax(-1).gather(-1, ids[0, start:, None]).squeeze(-1))
    found = torch.cat(logprobs)
    (found @ torch.linspace(-1, 2, len(found), dtype=torch.float64)).backward()
    for router in routers(model).values():
        del router.forward
    return found.detach(), gradients(model)


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def run(policy: Policy, trees, sequences) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, float]]:
    """Log-probs in the order of `sequences`, gradients and counts; every tree is a micro-batch."""
    places, start = {}, 0
    for number, each in enumerate(sequences):
        places[number] = range(start, start := start + len(each.completion_token_ids))
    slopes, logprobs = torch.linspace(-1, 2, start, dtype=torch.float64), torch.zeros(start, dtype=torch.float64)
    policy.zero_grad()
    counts = {MISMATCHED: 0.0, COMPARED: 0.0}
    for tree in trees:
        batch = pack_on([tree], CPU, policy.windows)
        mine = [
            place for each in batch.sequences for place in places[next(n for n, s in enumerate(sequences) if s is each)]
        ]

        def loss(found, entropy, rows, mine=mine):
            return found * slopes[mine][rows], {}

        output = policy.train()(batch, 1.0, loss)
        output.loss.backward()
        logprobs[mine] = output.head.logprobs.detach().double()
        for name in set(counts) & set(output.metrics):
            counts[name] += float(output.metrics[name])
    return logprobs, gradients(policy.model), counts


def close(found, expected) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-6)
    largest = max(float(each.abs().max()) for each in expected[1].values())
    for name, gradient in expected[1].items():
        torch.testing.assert_close(
            found[1][name], gradient, rtol=1e-6, atol=1e-6 * largest, msg=lambda m, n=name: f"{n}: {m}"
        )


def replaying_policy(model, attention: Attention = Attention.AUTO) -> Policy:
    policy = make_policy(model, attention, CPU)
    use_router_replay(policy, RouterReplay.ALWAYS)
    return policy


@pytest.mark.parametrize("prompts_told", [True, False])
@pytest.mark.parametrize("name", MIXTURES)
def test_trees_and_copies_have_the_numbers_of_a_model_whose_routers_are_forced(name, prompts_told):
    model = mixture(name)
    sequences = drawn_sequences(model, prompts_told)
    expected = forced_numbers(model, sequences)
    names = [key for key, each in model.named_parameters() if any(each is r.weight for r in routers(model).values())]
    assert names and all(expected[1][key].abs().max() > 0 for key in names)
    model.zero_grad()
    policy = replaying_policy(model)
    assert policy.shares_prompts
    tree = build_tree(sequences)
    close(run(policy, [tree], sequences), expected)
    if prompts_told:  # each part knows the prompt
        parts = split(tree, tree.num_tokens - 1)
        assert len(parts) > 1
        close(run(policy, parts, sequences), expected)
    checkpointed(policy)
    close(run(policy, [tree], sequences), expected)
    dense = replaying_policy(mixture(name), Attention.DENSE)
    close(run(dense, map(dense_tree, sequences), sequences), expected)
    policy.replays_experts = False
    assert (run(policy, [tree], sequences)[0] - expected[0]).abs().max() > 0.01  # it matters


def checkpointed(policy: Policy) -> None:
    policy.model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": contexts_of_checkpoint})


def with_own_choices(policy: Policy) -> list[TrainSequence]:
    """SEQUENCES with what the policy's own routers choose in the tree of all."""
    chosen: list[torch.Tensor] = []
    hooks = [r.register_forward_hook(lambda _, __, out: chosen.append(out[2])) for r in routers(policy.model).values()]
    with torch.no_grad():
        batch = pack_on([build_tree(SEQUENCES)], CPU, policy.windows)
        policy.eval()(batch, 1.0)
    for hook in hooks:
        hook.remove()
    rows = torch.stack(chosen, dim=1).numpy()
    probe = [replace(each, routed_experts=()) for each in SEQUENCES]
    places: dict[int, list[int]] = {}
    walk = [(build_tree(probe), [])]
    start = 0
    while walk:  # depth by depth, as packing lays them out
        below = []
        for node, above in walk:
            path = [*above, *range(start, start + len(node.token_ids))]
            start += len(node.token_ids)
            for each in node.sequences:
                places[id(each)] = path[: len(each.input_token_ids)]
            below += [(child, path) for child in node.children]
        walk = below
    return [
        replace(own, routed_experts=(RoutedExperts.of(rows[places[id(each)]]),))
        for own, each in zip(SEQUENCES, probe, strict=True)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MIXTURES)
def test_a_models_own_choices_change_no_bit(name, dtype):
    policy = replaying_policy(mixture(name, dtype))
    sequences = with_own_choices(policy)
    # in another order too: sums over a token's experts must not round otherwise
    turned = [replace(s, routed_experts=(record(s.routed_experts[0].array()[:, :, ::-1]),)) for s in sequences]
    for checkpointing in (False, True):
        if checkpointing:
            checkpointed(policy)
        plain = run(policy, [build_tree(SEQUENCES)], SEQUENCES)
        assert plain[2] == {MISMATCHED: 0, COMPARED: 0}
        for told in (sequences, turned):
            found = run(policy, [build_tree(told)], told)
            assert torch.equal(found[0], plain[0]) and found[2][MISMATCHED] == 0 < found[2][COMPARED]
            assert all(torch.equal(found[1][key], gradient) for key, gradient in plain[1].items())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_mismatch_is_the_share_of_pairs_with_other_experts(checkpointing):
    """Two layers; in the last one other experts at two places of the prompt that all share, and one of an answer."""
    policy = replaying_policy(mixture("qwen3_moe", torch.float32))
    if checkpointing:
        checkpointed(policy)
    sequences = []
    for number, each in enumerate(with_own_choices(policy)):
        rows = each.routed_experts[0].array().copy()
        for place in (3, 7, *([len(each.prompt_token_ids)] if number == 2 else [])):
            first, second = rows[place, 1]
            rows[place, 1] = first, next(e for e in range(4) if e not in (first, second))
        sequences.append(replace(each, routed_experts=(record(rows),)))
    tree = build_tree(sequences)
    assert len(sequences[2].completion_token_ids) > 1
    counts = run(policy, [tree], sequences)[2]
    assert counts == {MISMATCHED: 3, COMPARED: 2 * tree.num_tokens}
    assert take_mismatch(counts | {"loss": 1.0}) == {"loss": 1.0, MISMATCH: 3 / (2 * tree.num_tokens)}


def test_what_is_not_reported_is_missing_not_zero():
    policy = replaying_policy(mixture("qwen3_moe", torch.float32))
    assert take_mismatch(run(policy, [build_tree(SEQUENCES)], SEQUENCES)[2]) == {}


def test_of_several_that_tell_of_a_token_the_first_is_taken():
    one, other = (
        TrainSequence(prompt_token_ids=(5, 6), completion_token_ids=(last, 9), routed_experts=(record(rows),))
        for last, rows in ((7, [[[0, 1]], [[0, 2]], [[0, 3]]]), (8, [[[1, 2]], [[1, 3]], [[2, 3]]]))
    )
    batch = pack_on([build_tree([one, other])], CPU)
    assert batch.token_ids.tolist() == [[5, 6, 7, 8]]
    assert batch.experts.tolist() == [[[0, 1]], [[0, 2]], [[0, 3]], [[2, 3]]]
    with pytest.raises(ValueError, match="a sequence of 3 inputs carries the experts of 4"):
        pack_on([build_tree([replace(one, routed_experts=(record([[[0, 1]]] * 4),))])], CPU)


def test_what_is_not_proved_is_refused_by_name(caplog):
    jamba = Policy(
        make(
            JambaConfig(
                **GROUPED, num_experts=4, attn_layer_period=1, attn_layer_offset=0, expert_layer_period=1,
                expert_layer_offset=0, use_mamba_kernels=False,
            )
        ),
        shares_prompts=False,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="router_replay=always: .* of JambaForCausalLM .*; set router_replay=auto"):
        use_router_replay(jamba, RouterReplay.ALWAYS)
    use_router_replay(jamba, RouterReplay.AUTO)
    assert not jamba.replays_experts and "JambaForCausalLM" in caplog.text
    caplog.clear()
    dense = Policy(make(SHARED["qwen3"]))
    with pytest.raises(ConfigError, match="router_replay=always: Qwen3ForCausalLM mixes no experts"):
        use_router_replay(dense, RouterReplay.ALWAYS)
    use_router_replay(dense, RouterReplay.AUTO)
    assert not dense.replays_experts and not caplog.text
    unwanted = Policy(mixture("mixtral"))
    use_router_replay(unwanted, RouterReplay.NEVER)
    assert not unwanted.replays_experts


def test_a_router_that_chooses_otherwise_is_found(monkeypatch):
    def by_sorting(router, hidden):
        logits = linear(hidden, router.weight)
        weights, experts = logits.softmax(-1).sort(-1, descending=True)
        return logits, weights[:, :2], experts[:, :2]

    policy = Policy(mixture("mixtral"))
    found = list(routers(policy.model).values())
    monkeypatch.setattr(type(found[0]), "forward", by_sorting)
    with pytest.raises(ConfigError, match="the routers of MixtralForCausalLM choose by other means than topk"):
        use_router_replay(policy, RouterReplay.ALWAYS)
    assert not policy.replays_experts and not any(router._forward_hooks for router in found)


def test_records_of_more_than_256_experts_take_two_bytes():
    rows = np.array([[[3, 299]], [[255, 0]], [[1, 2]]])
    kept = RoutedExperts.of(rows)
    assert kept.itemsize == 2 and kept.num_tokens == 3 and np.array_equal(kept.array(), rows)
    assert np.array_equal(kept.first(1).array(), rows[:1]) and np.array_equal(kept.last(2).array(), rows[1:])
    assert kept.last(0).num_tokens == 0 and RoutedExperts.of(rows[1:]).itemsize == 1
