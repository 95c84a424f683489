"""The experience of an RL step: which sessions, their rollouts and rewards, and the batch made of them.

`collector.py` samples and scores, `session_stream.py` says which session comes next, `rollout_cache.py` keeps what was
sampled since the last checkpoint, `length_controller.py` steers memory lengths, `training_batch.py` makes sequences
with advantages, `parity.py` checks that engine and trainer agree, `evaluate.py` judges the policy on dialogues kept
apart.
"""
