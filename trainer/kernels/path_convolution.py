"""Short causal convolutions over packed prefix trees: every token sees the last tokens of its own path.

A token that stands far enough from its node's beginning finds them right before itself, so the packed row is convolved
as it is, and the first tokens of each node are then replaced. Letters: N packed tokens, C channels, F first tokens, K
width.
"""

import importlib.util

import torch

from trainer.batching.recurrence_plan import Windows


def path_convolution(convolution: torch.nn.Conv1d, inputs: torch.Tensor, windows: Windows) -> torch.Tensor:
    """Take and return (N, C); the convolution is one of each channel by itself, padded by K - 1 at both ends."""
    gathered = inputs.index_select(0, windows.inputs.flatten()).view(*windows.inputs.shape, -1)
    gathered = gathered * windows.is_real[..., None]  # (F, K, C)
    firsts = _causal(convolution, gathered.transpose(1, 2))[..., -1]
    return _causal(convolution, inputs.T[None])[0].T.index_copy(0, windows.tokens, firsts)


def _causal(convolution: torch.nn.Conv1d, inputs: torch.Tensor) -> torch.Tensor:
    """Return what the convolution makes of inputs (B, C, L), in their shape.

    The package causal-conv1d does it on CUDA where it is installed. It is written against 1.6 and has not run yet.
    """
    if inputs.is_cuda and importlib.util.find_spec("causal_conv1d"):
        from causal_conv1d import causal_conv1d_fn

        return causal_conv1d_fn(inputs, convolution.weight.squeeze(1), convolution.bias)
    return convolution(inputs)[..., : inputs.shape[-1]]
