"""Turns whole dialogues into memory banks: by rules, by any model, or by the baselines of evaluation.

`builder.py` runs one dialogue session by session into a durable store; `dialogues.py` runs many of them side by side;
`retry.py` and `rebuild.py` read some sessions of a store again.
"""
