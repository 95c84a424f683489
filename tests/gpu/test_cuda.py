"""What only a GPU can show: the compiled Triton kernels, flash attention over packed trees, bfloat16 through both."""

import importlib

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.kernel_twins import assert_rows_equal_their_plain_twin
from trainer.batching.loss_rows import Objective, cross_entropy
from trainer.batching.packing import TrainSequence, build_tree, pack_on
from trainer.configs import LossConfig
from trainer.kernels import plain_varlen
from trainer.losses import TokenValues, reinforce
from trainer.model.head import head_loss
from trainer.model.merged_attention import merged_attention
from trainer.model.policy import Policy

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
CUDA = torch.device("cuda")


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 2), (5, 17), (64, 4097), (32, 151_936)], ids=str)
def test_triton_rows_equal_their_plain_twin(shape, dtype, cap):
    tolerance = 1e-4 if dtype is torch.float32 else 1e-2
    assert_rows_equal_their_plain_twin(shape, dtype, CUDA, 1e-4, {"rtol": tolerance, "atol": tolerance}, cap)


def gradients(hidden, weight, targets, advantage, dtype: torch.dtype, fused: bool) -> tuple[torch.Tensor, ...]:
    own = [tensor.to(dtype).requires_grad_() for tensor in (hidden, weight)]
    if fused:
        loss = head_loss(*own, targets, 1.0, cross_entropy(advantage / len(targets))).loss
    else:
        logprobs = (own[0] @ own[1].T).float().log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
        loss = -(advantage * logprobs).mean()
    return torch.autograd.grad(loss, own)


def test_the_fused_head_in_bfloat16_is_as_exact_as_plain_bfloat16():
    torch.manual_seed(0)
    hidden = torch.randn(3000, 512, device=CUDA).bfloat16().float()
    weight = (torch.randn(32_000, 512, device=CUDA) / 512**0.5).bfloat16().float()
    targets, advantage = torch.randint(32_000, (3000,), device=CUDA), torch.randn(3000, device=CUDA)
    truth = gradients(hidden, weight, targets, advantage, torch.float32, fused=False)
    plain = gradients(hidden, weight, targets, advantage, torch.bfloat16, fused=False)
    fused = gradients(hidden, weight, targets, advantage, torch.bfloat16, fused=True)
    for exact, rounded, ours in zip(truth, plain, fused, strict=True):
        error = (ours.float() - exact).norm() / exact.norm()
        assert error <= 1.1 * (rounded.float() - exact).norm() / exact.norm()


def prefix_trees() -> list:
    torch.manual_seed(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(1000, (count,)).tolist())

    trees = []
    for length in (70, 130):
        dialogue = tokens(length)
        trees.append(
            build_tree(
                [
                    TrainSequence(prompt_token_ids=prompt, completion_token_ids=tokens(5 + 9 * k))
                    for prompt in (dialogue + tokens(11), dialogue + tokens(40))
                    for k in range(4)
                ]
            )
        )
    return trees


@pytest.mark.parametrize("window", [None, 48])
@pytest.mark.parametrize("kernels", ["flash_varlen", "flash_package", "gathered_varlen"])
def test_flash_calls_merge_to_what_plain_calls_merge_to(monkeypatch, kernels, window):
    """With a sink in each head, and where kernels can with a soft cap on scores."""
    if kernels == "flash_package":
        pytest.importorskip("flash_attn.flash_attn_interface", reason="version 2 of flash-attn is not installed")
    module = importlib.import_module(f"trainer.kernels.{kernels}")
    monkeypatch.setattr("trainer.model.merged_attention.kernels_for", lambda *_: module)
    batch = pack_on(prefix_trees(), CUDA, () if window is None else (window,))
    calls = batch.plan if window is None else batch.window_plans[window]
    softcap = None if kernels == "flash_varlen" else 2.0
    total = max(call.queries.stop for call in calls)
    torch.manual_seed(0)
    dtype = torch.float32 if kernels == "gathered_varlen" else torch.bfloat16
    query, key, value = (torch.randn(total, heads, 64, device=CUDA).to(dtype).requires_grad_() for heads in (8, 2, 2))
    seed = torch.randn(total, 8, 64, device=CUDA)
    sinks = torch.randn(8, device=CUDA).requires_grad_()
    out = merged_attention(query, key, value, calls, 0.125, softcap, sinks)
    found = torch.autograd.grad((out.float() * seed).sum(), (query, key, value, sinks))
    monkeypatch.setattr("trainer.model.merged_attention.kernels_for", lambda *_: plain_varlen)
    exact = [tensor.detach().double().requires_grad_() for tensor in (query, key, value, sinks)]
    true_out = merged_attention(*exact[:3], calls, 0.125, softcap, exact[3])
    truth = torch.autograd.grad((true_out * seed).sum(), exact)
    for mine, right in zip((out, *found), (true_out, *truth), strict=True):
        assert (mine.double() - right).norm() <= 0.01 * right.norm()


@pytest.mark.parametrize("window", [None, 48])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_packed_policy_on_the_gpu_equals_the_cpu(checkpointing, window):
    config = Qwen3Config(
        vocab_size=1000, hidden_size=256, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, tie_word_embeddings=True,
        use_sliding_window=window is not None, sliding_window=window, max_window_layers=1,
    )  # fmt: skip
    torch.manual_seed(0)
    state = Qwen3ForCausalLM(config).state_dict()
    results = []
    for device, dtype in ((torch.device("cpu"), torch.float32), (CUDA, torch.bfloat16)):
        model = Qwen3ForCausalLM(config)
        model.load_state_dict(state)
        model.to(device)
        for parameter in model.parameters():  # not its buffers: real runs keep the angles of positions in float32
            parameter.data = parameter.data.to(dtype)
        policy = Policy(model).train()
        if checkpointing:
            policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        batch = pack_on(prefix_trees(), device, policy.windows)
        scale = torch.full(batch.targets.shape, 1 / len(batch.targets), device=device)
        output = policy(batch, 1.0, cross_entropy(scale))
        output.loss.backward()
        flat = torch.cat([parameter.grad.flatten().float().cpu() for parameter in policy.parameters()])
        results.append((output.head.logprobs.float().cpu(), flat))
    (cpu_logprobs, cpu_gradient), (gpu_logprobs, gpu_gradient) = results
    assert (cpu_logprobs - gpu_logprobs).abs().mean() < 0.02
    assert (cpu_gradient - gpu_gradient).norm() < 0.03 * cpu_gradient.norm()


def test_a_step_makes_the_host_wait_for_nothing():
    hidden = torch.randn(2000, 64, device=CUDA).bfloat16().requires_grad_()
    weight = torch.randn(5000, 64, device=CUDA).bfloat16().requires_grad_()
    targets, sequence = torch.randint(5000, (2000,), device=CUDA), torch.arange(2000, device=CUDA) // 100
    ones = torch.ones(2000, device=CUDA)
    values = TokenValues(advantage=ones, weight=ones, truncated=0 * ones, rollout_logprobs=-ones)
    config, scale = LossConfig(kl_coef=0), ones / 2000
    objective = Objective(
        loss=reinforce, config=config, scale=scale, values=values, ref_logprobs=None, sequence=sequence
    )
    head_loss(hidden, weight, targets, 1.0, objective).loss.backward()  # compiles the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        head_loss(hidden, weight, targets, 1.0, objective).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
