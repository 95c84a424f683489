"""Any decoder of transformers trains with its own numbers, by shared prompts or by dense copies, or is refused.

Weights are random and float64; what is compared with is transformers' own forward, head and autograd.
"""

import copy
import re

import pytest
import torch
from transformers import (
    BloomConfig,
    CodeGenConfig,
    Cohere2Config,
    CohereConfig,
    DeepseekV3Config,
    FalconH1Config,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    Gemma4Config,
    Gemma4TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    HyperCLOVAXConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MiniCPM3Config,
    MistralConfig,
    MixtralConfig,
    MptConfig,
    NanoChatConfig,
    Olmo2Config,
    Olmo3Config,
    OlmoHybridConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
    SmolLM3Config,
)

from membuilder.errors import ConfigError, ParityError
from tests.kinds import make
from trainer.batching.packing import TrainSequence, build_tree, pack_on
from trainer.configs import Attention
from trainer.model import policy as policy_module
from trainer.model.dense_copies import own_logprobs
from trainer.model.lora import base_weights
from trainer.model.make_policy import make_policy, switch_off_dropout

CPU = torch.device("cpu")
VOCABULARY = 96
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GROUPED = SIZES | {"num_key_value_heads": 2}
HEADS = GROUPED | {"head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
DELTA |= {"layer_types": ["linear_attention", "full_attention"]}
WINDOW = {"sliding_window": 4}
EYES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
EYES |= {"image_size": 28, "patch_size": 14}
STATES = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 16}
BESIDE = {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8}
SHARED = {
    "llama": LlamaConfig(**GROUPED),
    "qwen2": Qwen2Config(**GROUPED),
    "qwen3": Qwen3Config(**HEADS),
    "gemma": GemmaConfig(**HEADS),
    "phi": PhiConfig(**GROUPED),
    "cohere": CohereConfig(**GROUPED),
    "gpt_neox": GPTNeoXConfig(**SIZES),
    "olmo2": Olmo2Config(**GROUPED),
    "smollm3": SmolLM3Config(**GROUPED),
    "granite": GraniteConfig(**GROUPED, logits_scaling=8.0),
    "hyperclovax": HyperCLOVAXConfig(**GROUPED, logits_scaling=0.5),
    "nanochat": NanoChatConfig(**GROUPED, final_logit_softcapping=3.0),
    "mistral": MistralConfig(**GROUPED, sliding_window=None),
    "phi3": Phi3Config(**GROUPED),
    "lfm2": Lfm2Config(**GROUPED, layer_types=["conv", "full_attention"]),
    "qwen3_next": Qwen3NextConfig(**HEADS, **DELTA, **EXPERTS, shared_expert_intermediate_size=8),
    "qwen3_5": Qwen3_5TextConfig(**HEADS, **DELTA),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2),
    "opt": OPTConfig(
        **{key: value for key, value in SIZES.items() if key != "intermediate_size"}, ffn_dim=64, word_embed_proj_dim=32
    ),
    "mistral_window": MistralConfig(**GROUPED, **WINDOW),
    "olmo3": Olmo3Config(**GROUPED, **WINDOW),
    "cohere2": Cohere2Config(**GROUPED, **WINDOW),
    "gemma2": Gemma2Config(**HEADS, **WINDOW, final_logit_softcapping=3.0, attn_logit_softcapping=2.0),
    "gemma3_text": Gemma3TextConfig(**HEADS, **WINDOW, final_logit_softcapping=3.0),
    "gemma3": Gemma3Config(text_config=HEADS | WINDOW, vision_config=EYES, mm_tokens_per_image=4),
    "gemma4": Gemma4Config(text_config=Gemma4TextConfig(**HEADS, **WINDOW, **BESIDE)),
    "gpt_oss": GptOssConfig(**HEADS, **WINDOW, num_local_experts=4, num_experts_per_tok=2),
    "mixtral": MixtralConfig(**GROUPED, num_local_experts=4, sliding_window=None),
    "qwen3_moe": Qwen3MoeConfig(**HEADS, **EXPERTS),
    "deepseek_v3": DeepseekV3Config(**SIZES, num_key_value_heads=4, n_routed_experts=8, n_group=2, topk_group=1),
}
SOMETIMES = "full or sliding attention in every layer"
DENSE = {
    "gptj": (
        GPTJConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, bos_token_id=1, eos_token_id=2),
        "AttentionInterface",
    ),
    "codegen": (
        CodeGenConfig(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, bos_token_id=1, eos_token_id=2
        ),
        "AttentionInterface",
    ),
    "falcon_h1": (FalconH1Config(**GROUPED, **STATES, lm_head_multiplier=0.5), SOMETIMES),
    "recurrent_gemma": (
        RecurrentGemmaConfig(**SIZES, num_key_value_heads=1, logits_soft_cap=3.0),
        SOMETIMES,
    ),
    "qwen2_moe_window": (  # its window is in a mask alone
        Qwen2MoeConfig(
            **GROUPED, **EXPERTS, **WINDOW, shared_expert_intermediate_size=8, use_sliding_window=True,
            max_window_layers=1,
        ),
        "layer 0 has a sliding window of 4 by its config and tells its attention None",
    ),
    "olmo_hybrid": (OlmoHybridConfig(**GROUPED, **DELTA), "a recurrence among .*; OlmoHybridForCausalLM has"),
    "bloom": (BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4), "AttentionInterface"),
    "mamba": (MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2), SOMETIMES),
}  # fmt: skip
SEQUENCES = [
    TrainSequence(prompt_token_ids=(*range(10, 31), *prompt), completion_token_ids=completion)
    for completions in (((70,),), ((60, 61, 62), (80, 81)))
    for prompt in ((40, 41), (50,))
    for completion in completions
]
"""As a tree packs them: an answer of one token adds none to its prompt, and comes with it."""
NUM_TOKENS = sum(len(each.completion_token_ids) for each in SEQUENCES)


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
    batch = pack_on([build_tree(SEQUENCES)], CPU, policy.windows)
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
    assert not policy.shares_prompts and re.search(reason, caplog.text) and "every sequence is run whole" in caplog.text
    assert_own_numbers(model, policy, expected)


@pytest.mark.parametrize("name", ["qwen2_moe_window", "olmo_hybrid"])
def test_who_insists_on_shared_prompts_is_told_why_not(name):
    config, reason = DENSE[name]
    with pytest.raises(ConfigError, match=f"model.attention=shared: .*{reason}.*; set model.attention=auto or dense"):
        make_policy(make(config), Attention.SHARED, CPU)


def test_a_loss_that_balances_experts_is_refused_because_it_is_never_added():
    with pytest.raises(ConfigError, match="output_router_logits=true .* never added here: set it to false"):
        make_policy(make(MixtralConfig(**GROUPED, num_local_experts=4, output_router_logits=True)), Attention.AUTO, CPU)


def test_random_sequences_outgrow_windows(monkeypatch):
    """A window that ours would get wrong is found at the start."""
    monkeypatch.setattr("trainer.batching.attention_plan.longest_path", lambda levels: 0)  # as if none were outgrown
    with pytest.raises(ConfigError, match="other log-probs than the model's own forward"):
        make_policy(make(MistralConfig(**GROUPED, sliding_window=40)), Attention.SHARED, CPU)


@pytest.mark.parametrize("attention", [Attention.SHARED, Attention.DENSE])
def test_padding_beyond_a_window_is_no_nan(attention):
    """Eager attention, whose padded tokens would see nothing in their window."""
    model = make(SHARED["gemma2"])
    sequences = [TrainSequence(prompt_token_ids=(5,) * length, completion_token_ids=(6, 7)) for length in (2, 30)]
    assert own_logprobs(model, sequences).isfinite().all()
    policy = make_policy(model, attention, CPU)
    assert policy.eval()(pack_on([build_tree(sequences)], CPU, policy.windows)).logprobs.isfinite().all()


@pytest.mark.parametrize(
    "config", [SHARED["qwen3"], MiniCPM3Config(**SIZES, dim_model_base=8)], ids=lambda config: config.model_type
)
def test_dense_copies_on_request(config):
    model = make(config)
    expected = own(model)
    policy = make_policy(model, Attention.DENSE, CPU)
    assert not policy.shares_prompts
    assert_own_numbers(model, policy, expected)


def test_the_engine_is_sent_the_bias_of_a_head():
    """By the names that the model itself has, as a checkpoint and an export are."""
    model = make(SHARED["phi"])
    expected = {name: each.clone() for name, each in model.state_dict().items()}
    sent = base_weights(make_policy(model, Attention.AUTO, CPU).model)
    assert "lm_head.bias" in sent and sent.keys() == expected.keys()
    assert all(torch.equal(each, expected[name]) for name, each in sent.items())


@pytest.mark.parametrize("value", [0.0, "inv_sqrt_d_model"])
def test_a_scale_that_is_no_number_is_refused(value):
    config = MptConfig(vocab_size=VOCABULARY, d_model=32, n_heads=4, n_layers=1, logit_scale=value)
    with pytest.raises(ConfigError, match=f"logit_scale={value!r}: only numbers other than 0"):
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
