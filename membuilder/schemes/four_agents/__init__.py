"""MemBuilder's scheme: four agents (core, episodic, semantic, procedural) read a session and answer with operations.

prompts.py, templates/    what an agent is shown and asked
schemas.py, operations.py what it may answer; text to operations and back
apply.py                  operations applied: bank in, bank out, nothing half done
session.py                session by session through a dialogue
rules.py, cues.py         the offline expert, without a model
"""
