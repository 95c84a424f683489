"""A memory server: users, sessions that are stored before they are acknowledged and read in the background, searches.

`service.py` is what a server does, in process; `rest.py` and `mcp_tools.py` offer it to others. A vault (`vault.py`)
keeps the memories: files of SQLite, or tables of PostgreSQL.
"""
