"""What a run writes down: metrics, completions, Weights & Biases, and where its code and data came from.

`run_log.py` is the only file that imports wandb.
"""
