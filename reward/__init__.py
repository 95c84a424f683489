"""Rewards, computed in the training process: format gate, dense question answering, length penalty, attribution.

`score.py` puts a reward together from its parts, `judges.py` and `llm_judge.py` decide whether a question is answered,
`asking.py` puts questions to banks while others are still sampled, `rollouts.py` scores groups. A reward that could not
be computed is missing: it is never 0 and never replaced.
"""
