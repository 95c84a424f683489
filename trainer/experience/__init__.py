"""The experience of an RL step: which sessions, their rollouts and rewards, and the batch made of them."""
