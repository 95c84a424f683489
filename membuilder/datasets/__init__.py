"""Reads public benchmarks and your own files as dialogues; each format has a file, and `load.py` tells them apart.

To support another format, add a file with a `parse` function and name it in `load.py`. Only `sources.py` holds
addresses and checksums. Every fault of a data file is a DataError that names path, record and field.
"""
