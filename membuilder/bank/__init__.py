"""Memory entries kept and found: the FAISS index, retrieval, the store on disk, the page that shows a store.

`retrieve.py` is what training and evaluation ask. `store.py` keeps every answer of a build in SQLite, so that a killed
build goes on where it stopped. `index.py` is the only file that imports faiss.
"""
