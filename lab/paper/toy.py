"""The comparison of all methods on toy tasks, with the nano model: its table and its figure.

    python -m lab.paper toy                                            the table of the recorded runs
    python -m lab.paper toy --run --jobs 2 --out comparison.png        first run what is missing (hours), then draw, too

The recorded runs are in lab/results/nano.
"""

from pathlib import Path
from statistics import mean, stdev

from lab.paper import numbers
from lab.paper.experiments import TOY_ORDERS, Cell
from lab.paper.figures import draw_task, new_figure, save
from lab.paper.runs import FURTHER, METHODS, RunKey
from lab.paper.tables import spread


def toy_table(cells: list[Cell]) -> str:
    """A line a method: its seeds, then for each order the average after the last stage and the forgetting."""
    values = {cell[1:4]: cell.ours for cell in cells}
    lines = [
        "| method | seeds | woz, sql, cnn: average | forgetting | cnn, woz, sql: average | forgetting |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for label in (*METHODS, *FURTHER):
        places = [(order, label, column) for order in TOY_ORDERS for column in ("average", "forgetting")]
        shown = [spread(values.get(place, [])) for place in places]
        lines.append(f"| {label} | {len(values.get(places[0], []))} | {' | '.join(shown)} |")
    return "\n".join(lines)


def draw_toy(cells: list[Cell], runs: dict[RunKey, Path], path: Path) -> None:
    """Figure 3 of the paper for both orders, a panel a task; below, the averages after the last stage as bars."""
    fig = new_figure(figsize=(11, 11))
    grid = fig.add_gridspec(4, 2, height_ratios=(1, 1, 1, 1.5))
    results = {key: numbers.curves(run) for key, run in runs.items() if key.label in METHODS}
    epochs = max([3, *(epoch for one in results.values() for curve in one.values() for epoch in curve)]) // 3
    for column, order in enumerate(TOY_ORDERS):
        for row, task in enumerate(TOY_ORDERS[0].split(",")):
            ax = fig.add_subplot(grid[row, column])
            draw_task(ax, task, 3, epochs, curves_of(task, order, results))
            ax.set_ylim(-3, 103)
            if row == 0:
                for stage, learned in enumerate(order.split(",")):
                    ax.text((stage + 0.5) * epochs, 106, f"learns {learned}", ha="center", fontsize=9)
            if row == 2:
                ax.set_xlabel("epochs")
            if (row, column) == (0, 0):
                fig.legend(loc="outside upper center", ncols=len(METHODS), frameon=False)
    draw_bars(fig.add_subplot(grid[3, :]), cells)
    save(fig, path)


def curves_of(task: str, order: str, results: dict) -> dict[str, dict[int, list[float]]]:
    """Label -> {epoch: the score of each seed} of a task in one of the orders."""
    curves = {}
    for key, result in results.items():
        if key.order == order:
            for epoch, score in result.get(task, {}).items():
                curves.setdefault(key.label, {}).setdefault(epoch, []).append(score)
    return curves


def draw_bars(ax, cells: list[Cell]) -> None:
    """The averages after the last stage: a bar for each method and order."""
    averages = [cell for cell in cells if cell.column == "average"]
    orders = {cell.row: {c.block for c in averages if c.row == cell.row} & set(TOY_ORDERS) for cell in averages}
    labels = [label for label in (*METHODS, *FURTHER) if orders.get(label)]
    for column, hatch in enumerate(("", "//")):
        cells_here = [cell for cell in averages if cell.block == TOY_ORDERS[column]]
        cells_here.sort(key=lambda cell: labels.index(cell.row))
        aside = {label: (0.4 * column - 0.2) * (len(orders[label]) - 1) for label in labels}  # one bar, or two
        bars = ax.bar(
            [labels.index(cell.row) + aside[cell.row] for cell in cells_here],
            [mean(cell.ours) for cell in cells_here],
            yerr=[stdev(cell.ours) if len(cell.ours) > 1 else 0 for cell in cells_here],
            width=0.38,
            color=[METHODS[cell.row][1] if cell.row in METHODS else "0.6" for cell in cells_here],
            edgecolor="white",
            hatch=hatch,
            capsize=3,
        )
        ax.bar_label(bars, fmt="%.0f", padding=2, fontsize=8)
    ax.set_xticks(range(len(labels)), labels, rotation=25, ha="right")
    ax.set(ylim=(0, 112), ylabel="average after the last stage, %")
    ax.set_title("plain: order woz, sql, cnn; hatched: cnn, woz, sql; whiskers: one standard deviation", fontsize=9)
