"""What an expert did, and what training makes of it: expert folders, synthetic questions, training records.

`trajectory.py` reads and writes expert folders, `questions.py` asks a model for questions about them, `records.py`
holds our training files and `published_formats.py` those of LLaMA-Factory and veRL.
"""
