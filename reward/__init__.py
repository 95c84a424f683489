"""Rewards, computed in the training process: format gate, dense question answering, length penalty, attribution.

`score.py` puts a reward together from its parts, `judges.py` decides whether a question is answered, `rollouts.py`
scores groups. A reward that could not be computed is missing: it is never 0 and never replaced.
"""
