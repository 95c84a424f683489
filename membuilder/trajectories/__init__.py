"""Keeps what an expert did, and makes synthetic questions and training records of it.

`trajectory.py` reads what an expert of any scheme did, `published_layout.py` writes the files beside its store,
`questions.py` asks a model for questions about it, `records.py` holds our training files and `published_formats.py`
those of LLaMA-Factory and veRL.
"""
