"""Any decoder of transformers trains with its own numbers, by shared prompts or by dense copies, or is refused.

Weights are random and float64; what is compared with is transformers' own forward, head and autograd.
"""

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    Gemma4Config,
    Gemma4TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

from membuilder.errors import ConfigError, ParityError
from trainer.batching.packing import TrainSequence, build_tree, pack_on
from trainer.configs import Attention
from trainer.model import policy as policy_module
from trainer.model.dense_copies import own_logprobs
from trainer.model.make_policy import make_policy, switch_off_dropout

CPU = torch.device("cpu")
VOCABULARY = 96
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GROUPED = SIZES | {"num_key_value_heads": 2}
HEADS = GROUPED | {"head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
EYES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
EYES |= {"image_size": 28, "patch_size": 14}
BESIDE = {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8}
SHARED = {
    "llama": LlamaConfig(**GROUPED),
    "qwen2": Qwen2Config(**GROUPED),
    "qwen3": Qwen3Config(**HEADS),
    "gemma": GemmaConfig(**HEADS),
    "gpt_neox": GPTNeoXConfig(**SIZES),
    "olmo2": Olmo2Config(**GROUPED),
    "smollm3": SmolLM3Config(**GROUPED),
    "granite": GraniteConfig(**GROUPED),
    "mistral": MistralConfig(**GROUPED, sliding_window=None),
    "phi3": Phi3Config(**GROUPED),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2),
    "opt": OPTConfig(
        **{key: value for key, value in SIZES.items() if key != "intermediate_size"}, ffn_dim=64, word_embed_proj_dim=32
    ),
}
DENSE = {
    "mistral_window": (MistralConfig(**GROUPED, sliding_window=4), "sliding window"),
    "gemma3_text": (Gemma3TextConfig(**HEADS, sliding_window=4), "full attention in every layer"),
    "gemma3": (
        Gemma3Config(text_config=HEADS | {"sliding_window": 4}, vision_config=EYES, mm_tokens_per_image=4),
        "full attention in every layer",
    ),
    "gemma4": (
        Gemma4Config(text_config=Gemma4TextConfig(**HEADS, sliding_window=4, **BESIDE)),
        "full attention in every layer",
    ),
    "mixtral": (MixtralConfig(**GROUPED, num_local_experts=4, sliding_window=None), "mixture of experts"),
    "qwen3_moe": (Qwen3MoeConfig(**HEADS, **EXPERTS), "mixture of experts"),
    "deepseek_v3": (
        DeepseekV3Config(**SIZES, num_key_value_heads=4, n_routed_experts=8, n_group=2, topk_group=1),
        "mixture of experts",
    ),
    "lfm2": (Lfm2Config(**GROUPED, layer_types=["conv", "full_attention"]), "full attention in every layer"),
    "bloom": (BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4), "AttentionInterface"),
    "mamba": (MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2), "full attention in every layer"),
}
SEQUENCES = [
    TrainSequence(prompt_token_ids=(*range(10, 31), *prompt), completion_token_ids=completion)
    for completions in (((70,),), ((60, 61, 62), (80, 81)))
    for prompt in ((40, 41), (50,))
    for completion in completions
]
"""As a tree packs them: an answer of one token adds none to its prompt, and comes with it."""
NUM_TOKENS = sum(len(each.completion_token_ids) for each in SEQUENCES)


def make(config, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """A model whose weights are large enough for every part of it to matter."""
    torch.manual_seed(0)
    # experts in a loop: the grouped product that they use else has no float64
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), experts_implementation="eager").to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def weighted(logprobs: torch.Tensor) -> torch.Tensor:
    return logprobs.double() @ torch.linspace(-1, 2, NUM_TOKENS, dtype=torch.float64)


def own(model: PreTrainedModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probs and gradients by transformers alone, each sequence by itself."""
    found = []
    for each in SEQUENCES:
        ids = torch.tensor([[*each.prompt_token_ids, *each.completion_token_ids]])
        start = len(each.prompt_token_ids)
        logits = model(input_ids=ids, use_cache=False).logits[0, start - 1 : -1].double()
        found.append(logits.log_softmax(-1).gather(-1, ids[0, start:, None]).squeeze(-1))
    logprobs = torch.cat(found)
    weighted(logprobs).backward()
    return logprobs.detach(), {
        name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None
    }


def ours(policy) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    def loss(logprobs, entropy, rows):
        return logprobs * torch.linspace(-1, 2, NUM_TOKENS, dtype=torch.float64)[rows], {}

    policy.zero_grad()
    batch = pack_on([build_tree(SEQUENCES)], CPU)
    assert [id(each) for each in batch.sequences] == [id(each) for each in SEQUENCES]
    output = policy.train()(batch, 1.0, loss)
    output.loss.backward()
    gradients = {name: each.grad for name, each in policy.model.named_parameters() if each.grad is not None}
    return output.head.logprobs.detach(), gradients


def assert_own_numbers(model: PreTrainedModel, policy, expected) -> None:
    logprobs, gradients = ours(policy)
    torch.testing.assert_close(logprobs.double(), expected[0], rtol=1e-6, atol=1e-6)
    largest = max(float(each.abs().max()) for each in expected[1].values())
    for name, gradient in expected[1].items():
        torch.testing.assert_close(
            gradients[name], gradient, rtol=1e-6, atol=1e-6 * largest, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("name", SHARED)
def test_shared_prompts_have_the_models_own_log_probs_and_gradients(name):
    model = make(SHARED[name])
    switch_off_dropout(model)
    expected = own(model)
    policy = make_policy(model, Attention.AUTO, CPU)
    assert policy.shares_prompts
    assert_own_numbers(model, policy, expected)


@pytest.mark.parametrize("name", DENSE)
def test_dense_copies_have_them_where_sharing_is_not_proved(name, caplog):
    config, reason = DENSE[name]
    model = make(config)
    expected = own(model)
    policy = make_policy(model, Attention.AUTO, CPU)
    assert not policy.shares_prompts and reason in caplog.text and "every sequence is run whole" in caplog.text
    assert_own_numbers(model, policy, expected)


@pytest.mark.parametrize("name", ["mistral_window", "mixtral"])
def test_who_insists_on_shared_prompts_is_told_why_not(name):
    config, reason = DENSE[name]
    with pytest.raises(ConfigError, match=f"model.attention=shared: .*{reason}.*; set model.attention=auto or dense"):
        make_policy(make(config), Attention.SHARED, CPU)


def test_dense_copies_on_request():
    model = make(SHARED["qwen3"])
    expected = own(model)
    policy = make_policy(model, Attention.DENSE, CPU)
    assert not policy.shares_prompts
    assert_own_numbers(model, policy, expected)


@pytest.mark.parametrize(
    "config, reason",
    [
        (PhiConfig(**GROUPED), "bias"),
        (CohereConfig(**GROUPED), "logit_scale"),
        (Gemma2Config(**HEADS), "final_logit_softcapping"),
        (GraniteConfig(**GROUPED, logits_scaling=8.0), "logits_scaling"),
    ],
    ids=lambda value: getattr(value, "model_type", value),
)
def test_heads_that_ours_does_not_know_are_refused(config, reason):
    with pytest.raises(ConfigError, match=reason):
        make_policy(make(config), Attention.AUTO, CPU)


def test_what_is_not_known_by_name_is_found_by_its_numbers(monkeypatch, caplog):
    """An attention that shared prompts do not give falls back, and a head that is more than its weight is refused."""
    model = make(SHARED["llama"])
    for layer in model.model.layers:
        layer.self_attn.scaling *= 2  # as if only transformers' own attention read it
    unscaled = policy_module.use_shared_prefix

    def forgetful(model: PreTrainedModel) -> None:
        unscaled(model)
        for layer in model.model.layers:
            layer.self_attn.scaling /= 2

    monkeypatch.setattr(policy_module, "use_shared_prefix", forgetful)
    with pytest.raises(ConfigError, match="other log-probs than the model's own forward, by .* nats"):
        make_policy(model, Attention.SHARED, CPU)
    model = make(SHARED["llama"])
    model.register_forward_hook(lambda module, args, output: output | {"logits": 2 * output.logits})
    with pytest.raises(ParityError, match="check own_forward: LlamaForCausalLM gives other log-probs than softmax"):
        make_policy(model, Attention.AUTO, CPU)


def test_dropout_is_switched_off_by_name(caplog):
    config = copy.deepcopy(SHARED["opt"])
    config.dropout = config.attention_dropout = 0.3
    model = make(config)
    expected = own(model)
    policy = make_policy(model, Attention.AUTO, CPU)
    assert "dropout is off: " in caplog.text and "dropout=0.3" in caplog.text and "attention_dropout=0.3" in caplog.text
    assert_own_numbers(model, policy, expected)  # in training mode
    assert policy.model.config.dropout == 0 and switch_off_dropout(policy.model) == []


def test_padding_has_no_influence():
    model = make(SHARED["qwen3"])
    together = own_logprobs(model, SEQUENCES)
    alone = torch.cat([own_logprobs(model, [each]) for each in SEQUENCES])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)
