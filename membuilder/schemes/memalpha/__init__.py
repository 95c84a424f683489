"""Mem-alpha's way of writing memory: one writer reads a chunk and calls tools that change the parts of a memory.

`scheme.py` is this folder behind the seam. A text becomes calls (`calls.py`), a call changes a bank (`changes.py`).
"""
