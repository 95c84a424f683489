"""Public benchmarks and your own files as dialogues: one file per format, `load.py` tells them apart.

To support another format, add a file with a `load_...` function and name it in `load.py`. `sources.py` is the only place
with addresses and checksums. Every fault of a file is a DataError that names path, record and field.
"""
