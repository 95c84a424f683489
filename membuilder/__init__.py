"""The memory domain, without torch: dialogues, memory banks, the schemes that write them, and how they are judged.

The commands lie right here (`build`, `edit`, `inspect`, `eval`, `expert`, `qa`, `prepare`, `data`); each parses its
arguments and calls into the folders. `memory.py` is for programs: add, search, answer. Folders, from the ground up;
each imports only those before it:

datasets, generate    real files; our own dialogues
llm, embedding        any chat endpoint; texts to vectors
bank                  memory entries kept in a store and found again
schemes               how a model writes memory: prompts, answer formats, what an answer changes
building              whole dialogues into banks, by rules or by a model
trajectories          what an expert did, as training data
evaluation            the same questions to every system

Start at `types.py`, then `schemes/scheme.py`.
"""

__version__ = "0.1.0"
