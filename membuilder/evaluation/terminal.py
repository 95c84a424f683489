"""Lays out columns and text within the width of a terminal."""

import unicodedata
from collections.abc import Sequence
from itertools import zip_longest

GAP = "  "
"""Between two columns."""


def columns_within(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Return the lines of a table. Columns that do not fit beside the others stand below, beside the first again."""
    widths = [_column_width(cells) for cells in zip(head, *rows, strict=True)]
    # at least half of the width is left to the other columns
    widths[0] = min(widths[0], max(1, width // 2 - len(GAP)))
    room = max(1, width - widths[0] - len(GAP))
    blocks, used = [[0]], 0
    for column in range(1, len(head)):
        widths[column] = min(widths[column], room)
        if used and used + len(GAP) + widths[column] > room:
            blocks.append([0])
            used = 0
        used += widths[column] + (len(GAP) if used else 0)
        blocks[-1].append(column)
    lines = []
    for block in blocks:
        of_block = [widths[column] for column in block]
        lines += [""] if lines else []
        lines += _row([head[column] for column in block], of_block)
        lines.append("-" * (sum(of_block) + len(GAP) * (len(block) - 1)))
        for row in rows:
            lines += _row([row[column] for column in block], of_block)
    return lines


def lines_within(text: str, width: int, indent: str = "") -> list[str]:
    """Break a text between words; what is wider than a line is broken anywhere. Further lines are indented."""
    lines, line = [], ""
    for word in text.split():
        if line.strip() and display_width(f"{line} {word}") > width:
            lines.append(line)
            line = ""
        line = f"{line} {word}" if line.strip() else (indent if lines else "") + word
        while display_width(line) > width:
            fits = next(end for end in range(len(line), 0, -1) if end == 1 or display_width(line[:end]) <= width)
            lines.append(line[:fits])
            line = line[fits:]
    return [*lines, line]


def display_width(text: str) -> int:
    """Count the columns that a text takes: a Chinese character takes two, an accent of its own none."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def _column_width(cells: Sequence[str]) -> int:
    """Return the width of the widest cell; the first one is a heading, of which a word is as much as must fit."""
    heading, *body = cells
    return max(map(display_width, [*(heading.split() or [""]), *body]))


def _row(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    wrapped = [lines_within(cell, width) for cell, width in zip(cells, widths, strict=True)]
    return [
        GAP.join(part + " " * (width - display_width(part)) for part, width in zip(parts, widths, strict=True)).rstrip()
        for parts in zip_longest(*wrapped, fillvalue="")
    ]
