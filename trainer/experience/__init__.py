"""What an RL step learns from: the choice of sessions, their rollouts and rewards, and the batch made of them."""
