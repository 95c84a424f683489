"""The GPU check in stages (docs/performance.md).

`__main__.py` runs the stages, each as a process of its own (`stage.py`) that writes one JSON file (`record.py`).
`carry.py` takes packages and weights to a machine without a network.
"""
