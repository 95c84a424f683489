"""The policy: a transformers model whose head never holds whole logits and whose shared prompts run once.

`policy.py` loads and calls it, `head.py` makes log-probs and the loss, `shared_prefix.py` and `merged_attention.py` are
its attention, `tiny_model.py` makes a model small enough for a laptop.
"""
