"""Dialogues of our own: people, facts that change, plans, small talk, and questions with their evidence.

`generate` in `dialogue.py` is the way in, and `generate_instances` in `instances.py` for the scheme memalpha. All texts
stand in `data/`, which `library.py` reads and checks; the rest of the files decide who says what, and when. The two
splits share texts and no person or name. The same seed gives the same dialogues on every machine; tests hold their
hashes, so a changed data file changes those.

To add a topic, copy a table of a file in `data/topics/`, give it another name, and write your own texts.
"""
