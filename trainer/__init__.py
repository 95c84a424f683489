"""SFT and RL, written by hand. Open `rl.py`, `sft.py`, `losses.py`, `advantages.py` first: they are made to be edited.

configs         sections of both loops' configurations; rl_config and sft_config hold the rest
batching        sequences that share prompts -> packed rows, and who attends to whom
kernels, model  plain and fast twins; the policy, its head, attention over shared prompts
data            dialogues and prepared files as training examples
experience      rollouts of a step: collected, scored, cached, checked, turned into a batch
checkpoint      saved states that are whole or not there
distributed     the processes of a run, and who died
logs            metrics, Weights & Biases, where a run came from
memory_estimate would it fit, and what to change
"""
