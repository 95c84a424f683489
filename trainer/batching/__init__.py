"""Sequences that share prompts become prefix trees, packed rows of tokens, and the rows that carry loss.

`packing.py` is the only place that shifts tokens to their targets, `micro_batches.py` says what runs together. Nothing
here knows a model.
"""
