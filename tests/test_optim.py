import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

from trainer.configs import OptimConfig
from trainer.optim import learning_rate, make_optimizer, set_learning_rate


def tiny_model(tied: bool) -> Qwen3ForCausalLM:
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8)
    return Qwen3ForCausalLM(
        Qwen3Config(vocab_size=16, num_key_value_heads=2, attention_bias=True, tie_word_embeddings=tied, **sizes)
    )


def names_in(model: torch.nn.Module, group: dict) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)] for parameter in group["params"]}


@pytest.mark.parametrize("tied", [True, False])
def test_only_matrices_are_decayed(tied):
    model = tiny_model(tied)
    decayed, plain = make_optimizer(model, OptimConfig(weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    matrices = {f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkvo"}
    matrices |= {f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
    assert names_in(model, decayed) == matrices | (set() if tied else {"lm_head.weight"})
    kinds = {"embed_tokens.weight", "bias", "norm.weight", "layernorm.weight"}
    assert all(any(name.endswith(kind) for kind in kinds) for name in names_in(model, plain))


def test_embeddings_are_known_by_what_they_are_not_by_their_names():
    sizes = dict(n_embd=8, n_layer=1, n_head=1, vocab_size=16, bos_token_id=None, eos_token_id=None)
    model = GPT2LMHeadModel(GPT2Config(**sizes))
    _, plain = make_optimizer(model, OptimConfig(weight_decay=0.1)).param_groups
    assert {"transformer.wte.weight", "transformer.wpe.weight"} <= names_in(model, plain)


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_is_trained_once(tied):
    model = tiny_model(tied)
    trained = [p for group in make_optimizer(model, OptimConfig()).param_groups for p in group["params"]]
    assert sorted(map(id, trained)) == sorted(map(id, model.parameters()))


def test_settings_reach_adamw():
    optimizer = make_optimizer(tiny_model(True), OptimConfig(lr=3e-4, beta1=0.8, beta2=0.9))
    assert type(optimizer) is torch.optim.AdamW
    assert {(group["lr"], group["betas"]) for group in optimizer.param_groups} == {(3e-4, (0.8, 0.9))}


def test_first_step_moves_by_the_rate_and_decays_matrices_alone():
    model = tiny_model(True)
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
        parameter.grad = torch.full_like(parameter, 2.0)
    make_optimizer(model, OptimConfig(lr=0.01, weight_decay=0.5)).step()
    matrix, norm = model.model.layers[0].mlp.up_proj.weight, model.model.norm.weight
    torch.testing.assert_close(matrix, torch.full_like(matrix, 0.985))  # 1 - 0.01 x 0.5 - 0.01
    torch.testing.assert_close(norm, torch.full_like(norm, 0.99))


@pytest.mark.parametrize(
    "step, rate",
    [
        (0, 2.5),  # 10 warm-up steps of 4: a quarter each
        (1, 5.0),
        (3, 10.0),
        (4, 10.0),  # cosine from 10 to 1 over the other 16 steps
        (8, 8.681981),  # 1 + 9 (1 + cos 45) / 2
        (12, 5.5),
        (16, 2.318019),
        (20, 1.0),
    ],
)
def test_warm_up_then_cosine(step, rate):
    config = OptimConfig(lr=10, warmup_ratio=0.2, min_lr_ratio=0.1)
    assert learning_rate(step, 20, config) == pytest.approx(rate)


def test_schedule_without_warm_up():
    config = OptimConfig(lr=1, warmup_ratio=0, min_lr_ratio=0)
    assert [learning_rate(step, 2, config) for step in range(3)] == pytest.approx([1, 0.5, 0])


def test_warm_up_is_rounded_up_to_whole_steps():
    config = OptimConfig(lr=1, warmup_ratio=0.05)
    assert [learning_rate(step, 30, config) for step in range(3)] == pytest.approx([0.5, 1, 1])  # 1.5 -> 2 steps


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 100])
def test_rate_is_positive_and_at_most_the_peak(num_steps):
    config = OptimConfig(lr=2.0)
    rates = [learning_rate(step, num_steps, config) for step in range(num_steps)]
    assert 0 < min(rates) and max(rates) == 2.0
    assert rates[rates.index(2.0) :] == sorted(rates[rates.index(2.0) :], reverse=True)


def test_set_learning_rate_reaches_every_group():
    optimizer = make_optimizer(tiny_model(True), OptimConfig(lr=1.0))
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
