"""What a command may print: progress bars, and lines of the shapes that its test names."""

import re

PROGRESS = r"[\w' ,-]+: +\d+%\|[^|]*\| \d+/\d+ \[[^\]]*\]"


def strange_lines(printed: str, *shapes: str) -> list[str]:
    """Lines that are neither empty nor of a known shape. A bar that redraws itself is a line for each state."""
    known = re.compile("|".join(f"(?:{shape})" for shape in (PROGRESS, *shapes)))
    lines = [line.strip() for line in re.split(r"[\r\n]|\x1b\[A", printed)]  # the last moves a bar up a line
    return [line for line in lines if line and not known.fullmatch(line)]
