"""Keeps what an expert did, and makes synthetic questions and training records of it.

`trajectory.py` reads and writes expert folders, `questions.py` asks a model for questions about them, `records.py`
holds our training files and `published_formats.py` those of LLaMA-Factory and veRL.
"""
