"""Tables in Markdown, as tools print them."""

from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table with columns of text to the left and columns of numbers to the right.

    Args:
        header (Sequence[str]): The names of the columns.
        rows (Sequence[Sequence[object]]): The cells, of which None becomes a dash.

    Returns:
        str: The lines, without a line break at the end.
    """
    cells = [['-' if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(len(name), 3, *(len(row[i]) for row in cells)) for i, name in enumerate(header)]
    # A column is of numbers if all of its cells start like one.
    right = [all(not row[i] or row[i][0] in '-+.0123456789' for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = (cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True))
        return f'| {" | ".join(padded)} |'

    rule = ['-' * (w - 1) + (':' if r else '-') for w, r in zip(widths, right, strict=True)]
    return '\n'.join([line(header), line(rule), *(line(row) for row in cells)])
