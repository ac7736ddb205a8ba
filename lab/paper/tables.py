"""Cells as a table: text, Markdown or CSV."""

import csv
import io
from statistics import mean, stdev

from lab.paper.experiments import AGREEMENT, Cell


def spread(values: list[float], digits: int = 1) -> str:
    """`mean ± standard deviation` (n - 1) of several values, one value alone, a dash for none."""
    if not values:
        return "–"
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}"


def shown(cell: Cell) -> tuple[str, str, str]:
    """Ours (with * if runs are missing), the paper's number, and the difference."""
    digits = 2 if cell.table in AGREEMENT else 1
    mark = "*" if cell.ours and cell.runs < cell.wanted else ""
    paper = "–" if cell.paper is None else f"{cell.paper:.{digits}f}"
    difference = f"{mean(cell.ours) - cell.paper:+.{digits}f}" if cell.ours and cell.paper is not None else "–"
    return spread(cell.ours, digits) + mark, paper, difference


def blocks_of(cells: list[Cell]):
    """Yield (block, columns, {row: its cells}) for each block of a table."""
    for block in dict.fromkeys(cell.block for cell in cells):
        rows = {}
        for cell in cells:
            if cell.block == block:
                rows.setdefault(cell.row, []).append(cell)
        yield block, [cell.column for cell in next(iter(rows.values()))], rows


def titled(block: str, arrow: str) -> str:
    """An order with arrows between its tasks; other titles unchanged."""
    return block if ", " in block else block.replace(",", f" {arrow} ")


def as_text(cells: list[Cell]) -> str:
    """Three lines a row: ours, the paper's, the difference."""
    lines = []
    for block, columns, rows in blocks_of(cells):
        width = max(14, *(len(column) + 2 for column in columns))
        lines += ["", titled(block, ">"), " " * 38 + "".join(f"{column:>{width}}" for column in columns)]
        for row, in_row in rows.items():
            for i, kind in enumerate(("ours", "paper", "difference")):
                numbers = "".join(f"{shown(cell)[i]:>{width}}" for cell in in_row)
                lines.append(f"{'' if i else row:<26}{kind:<12}{numbers}")
    return "\n".join(lines[1:])


def as_markdown(cells: list[Cell]) -> str:
    """A line a row, each cell `ours / paper / difference`."""
    lines = []
    for block, columns, rows in blocks_of(cells):
        lines += ["", f"| {titled(block, '→')} | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
        lines += [f"| {row} | {' | '.join(' / '.join(shown(cell)) for cell in rows[row])} |" for row in rows]
    return "\n".join(lines[1:])


def as_csv(cells: list[Cell]) -> str:
    """A line a number."""
    head = ("table", "block", "row", "column", "ours", "deviation", "runs", "runs_wanted", "paper", "difference")
    lines = [head]
    for c in cells:
        ours = mean(c.ours) if c.ours else None
        deviation = stdev(c.ours) if len(c.ours) > 1 else None
        difference = ours - c.paper if c.ours and c.paper is not None else None
        ours, deviation, difference = (None if x is None else round(x, 4) for x in (ours, deviation, difference))
        lines.append([*c[:4], ours, deviation, c.runs, c.wanted, c.paper, difference])
    return csv_of(lines)


def csv_of(lines) -> str:
    """Rows as CSV."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue().rstrip("\n")


def markdown_of(rows) -> str:
    """Rows as a Markdown table; the first one is its head."""
    head, *rest = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rest))
