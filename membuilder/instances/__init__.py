"""Builds instances of Memalpha out of raw files: chunks to read one after another, and questions about all of them.

`sources.py` names the datasets; each kind of source has a file, `build.py` writes what they give, and `leaks.py` looks
for what training and evaluation share. `python -m membuilder.data` is the command.
"""
