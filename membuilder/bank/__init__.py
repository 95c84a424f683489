"""Memory entries kept and found: the FAISS index, retrieval, the store on disk, the page that shows a store.

`retrieve.py` is what training and evaluation ask. `store.py` keeps every answer of a build in SQLite, so that a killed
build goes on where it stopped. `forget.py` finds what goes when something is deleted, `erase.py` erases it from the
disk, `json_lines.py` exports and imports. `index.py` is the only file that imports faiss.
"""
