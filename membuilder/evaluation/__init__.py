"""The same questions, retrieval and scorers for every system that builds memory, with intervals and paired tests.

`run.py` is the order of things; `systems.py` what can be compared; `metrics.py` what is measured.
"""
