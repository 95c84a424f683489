"""How long tests wait.

Machines differ by a factor of five and share their cores: a clock may tell never from late, and nothing else.
"""

HANGS = 1200
"""Seconds after which a run, a server or a command counts as hanging."""

SOON = 25
"""Seconds within which anything ends that waits for nothing: what it must not wait for takes at least 60."""

LINEAR = 200
"""Seconds enough for work that takes one where it is linear, and hours where it is not."""
