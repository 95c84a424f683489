"""Kernels in pairs: a plain PyTorch twin and a fast one with the same signature, held to each other by tests.

`plain_*` runs anywhere, `triton_*` and `flash_*` on CUDA. This is the only place that imports triton.
"""
