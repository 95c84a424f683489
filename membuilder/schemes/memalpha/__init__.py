"""Mem-alpha's scheme: one writer reads a chunk and calls tools that change the parts of a memory.

config.py              its settings, the section `memalpha` of every configuration
prompts.py, view.py    what the writer reads: templates/, and which entries are shown
tools.py               what it may call; a call to an operation and back
calls.py, compact.py   an answer to its calls and back, in every format
changes.py             calls applied one by one: bank in, bank and outcomes out
expert.py              the offline expert, without a model
scheme.py              all of it behind the seam
"""
