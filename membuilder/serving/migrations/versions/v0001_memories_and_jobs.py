"""Memories and jobs.

Every table lies in sixteen parts, by the first hexadecimal digit of the memory's key: to erase something from the disk,
one part of each table is written anew (VACUUM FULL), and not what all users have. There are no foreign keys: one writer
at a time writes a memory, whole sessions in one transaction each.
"""

from alembic import op

revision = "0001"
down_revision = None

DIGITS = "0123456789abcdef"
COLUMNS = {
    "memory": """ "user" text NOT NULL, settings text NOT NULL, changed bigint NOT NULL, PRIMARY KEY (memory)""",
    "session": """number integer NOT NULL, id text NOT NULL, timestamp text NOT NULL, core text NOT NULL,
        core_quotes text NOT NULL, PRIMARY KEY (memory, number), UNIQUE (memory, id)""",
    "turn": """id text NOT NULL, session integer NOT NULL, number integer NOT NULL, speaker text NOT NULL,
        role text NOT NULL, text text NOT NULL, caption text, PRIMARY KEY (memory, session, number),
        UNIQUE (memory, id)""",
    "answer": """session integer NOT NULL, agent text NOT NULL, shown text NOT NULL, text text,
        operations text NOT NULL, failure_kind text, failure_detail text, seconds double precision NOT NULL,
        asked_at text, place bigint NOT NULL DEFAULT nextval('membuilder.place'),
        PRIMARY KEY (memory, session, agent)""",
    "entry": """number integer NOT NULL, id text NOT NULL, agent text NOT NULL, session integer NOT NULL,
        text text NOT NULL, source_turns text NOT NULL, supersedes text NOT NULL, PRIMARY KEY (memory, number),
        UNIQUE (memory, id)""",
    "embedding": "entry integer NOT NULL, vector vector NOT NULL, PRIMARY KEY (memory, entry)",
    "deleted": """entry text NOT NULL, session integer NOT NULL,
        place bigint NOT NULL DEFAULT nextval('membuilder.place'), PRIMARY KEY (memory, entry)""",
    "job": """number bigint NOT NULL DEFAULT nextval('membuilder.place'), id text NOT NULL, "user" text NOT NULL,
        session_id text NOT NULL, digest text NOT NULL, session text, state text NOT NULL, detail text NOT NULL,
        attempts integer NOT NULL, received_at text NOT NULL, PRIMARY KEY (memory, id), UNIQUE (memory, session_id)""",
}
WITH_WORDS = {
    "memory": ("user", "settings"),
    "session": ("id", "timestamp", "core", "core_quotes"),
    "turn": ("id", "speaker", "role", "text", "caption"),
    "answer": ("agent", "shown", "text", "operations", "failure_detail"),
    "entry": ("id", "agent", "text", "source_turns", "supersedes"),
    "embedding": ("vector",),
    "deleted": ("entry",),
    "job": ("id", "user", "session_id", "digest", "session", "detail"),
}


def upgrade() -> None:
    op.execute("CREATE SEQUENCE membuilder.change")  # numbers the changes of all memories
    op.execute("CREATE SEQUENCE membuilder.place")  # orders rows that have no number of their own
    for table, columns in COLUMNS.items():
        op.execute(f"CREATE TABLE membuilder.{table} (memory uuid NOT NULL, {columns}) PARTITION BY RANGE (memory)")
        for column in WITH_WORDS[table]:
            # else samples of what users said stand in the planner's statistics, where no erasure reaches them
            op.execute(f'ALTER TABLE membuilder.{table} ALTER COLUMN "{column}" SET STATISTICS 0')
        for number, digit in enumerate(DIGITS):
            last = "MAXVALUE" if number == len(DIGITS) - 1 else f"'{_first(DIGITS[number + 1])}'"
            bounds = f"FROM ('{_first(digit)}') TO ({last})"
            op.execute(f"CREATE TABLE membuilder.{table}_{digit} PARTITION OF membuilder.{table} FOR VALUES {bounds}")
    op.execute("CREATE INDEX waiting ON membuilder.job (memory, number) WHERE state = 'queued'")


def _first(digit: str) -> str:
    """Return the first key that begins with a digit."""
    return f"{digit}0000000-0000-0000-0000-000000000000"
