"""How a model writes memory. `scheme.py` is the seam; a folder beside it is one scheme.

Rollouts, rewards, training, building and evaluation see a scheme only through the seam. `four_agents` is MemBuilder's.
"""
