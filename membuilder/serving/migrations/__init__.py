"""Alembic's folder: how the tables of a database came to be what they are now. Every server applies it at its start."""
