"""Dialogues of our own: people, facts that change, plans, small talk, and questions with their evidence.

`generate` in `dialogue.py` is the way in. The two splits share templates and no person or name. The same seed gives the
same dialogues on every machine; tests hold their hashes.
"""
