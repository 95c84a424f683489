"""Texts to vectors, by a local sentence-transformers model or by an endpoint, with a cache on disk.

`local.py` is the only file that imports sentence_transformers; `options.py` decides which embedder a command uses.
"""
