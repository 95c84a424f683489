"""Everything that asks a model behind an OpenAI-compatible endpoint, and the flags that name such a model.

`transport.py` is the only file that imports openai. What a server refuses is told apart from what a model answers
badly: start at `endpoints.py` (what a model is), `flags.py` and `client.py`.
"""
