"""Figures 3 to 5: the learning curves of an experiment."""

from pathlib import Path
from statistics import mean, stdev

from lab.paper.comparisons import Judged
from lab.paper.experiments import Cell
from lab.paper.runs import FIGURES, METHODS


def new_figure(**keywords):
    """An empty figure, for files only: without pyplot no display is looked for."""
    from matplotlib.figure import Figure  # here, since it takes a second

    return Figure(layout="constrained", **keywords)


def save(fig, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=110, format="png")


def draw_task(ax, task: str, n_tasks: int, epochs: int, curves: dict[str, dict[int, list[float]]]) -> None:
    """One panel: the score of a task over the epochs of all stages, a line a method, with a band of one standard
    deviation over seeds. Dashed lines part the stages.

    curves: label -> {epochs since the start: the score of each seed}. epochs: of one stage."""
    for label, (_, color, style) in METHODS.items():
        if points := sorted(curves.get(label, {}).items()):
            x, middle = [epoch for epoch, _ in points], [mean(scores) for _, scores in points]
            sd = [stdev(scores) if len(scores) > 1 else 0.0 for _, scores in points]
            low, high = zip(*((m - d, m + d) for m, d in zip(middle, sd)))
            ax.plot(x, middle, color=color, linestyle=style, label=label, linewidth=1.6)
            ax.fill_between(x, low, high, color=color, alpha=0.12, lw=0)
    for stage in range(n_tasks):
        ax.axvline(stage * epochs, color="0.5", linestyle="--", linewidth=0.8)
    ax.set(xlim=(0, epochs * n_tasks), ylabel=f"{task}, %")
    ax.grid(alpha=0.25)


def draw(figure: str, cells: list[Cell], path: Path) -> None:
    """A figure of the paper from its cells: a panel a task."""
    order = FIGURES[figure].split(",")
    curves = {task: {} for task in order}
    for cell in cells:
        curves[cell.block].setdefault(cell.row, {})[cell.column] = cell.ours
    epochs = max([len(order), *(cell.column for cell in cells)]) // len(order)
    fig = new_figure(figsize=(8, 1 + 1.9 * len(order)))
    axes = fig.subplots(len(order), 1, sharex=True)
    for task, ax in zip(order, axes):
        draw_task(ax, task, len(order), epochs, curves[task])
        top = max([1, *(max(cell.ours) for cell in cells if cell.block == task)])
        ax.set_ylim(-0.03 * top, 1.12 * top)
    for stage, task in enumerate(order):
        place = (stage + 0.5) / len(order)
        axes[0].text(place, 1.03, f"learns {task}", transform=axes[0].transAxes, ha="center", fontsize=9)
    axes[-1].set_xlabel("epochs")
    handles = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels())}
    fig.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(METHODS), frameon=False)
    save(fig, path)


def draw_forest(judged: list[Judged], path: Path) -> None:
    """A forest plot: a line a comparison, with its mean difference and its 95% interval, the claims one after another.

    A comparison of a single pair has no interval, and none at all is left out."""
    judged = [j for j in judged if j.pairs]
    fig = new_figure(figsize=(9, 1.2 + 0.34 * (len(judged) + len({j.comparison.claim for j in judged}))))
    ax, y, places, claim = fig.subplots(), 0, {}, None
    for j in judged:
        if j.comparison.claim != claim:
            claim = j.comparison.claim
            ax.text(0.01, y, claim, transform=ax.get_yaxis_transform(), va="center", fontsize=9, fontweight="bold")
            y += 1
        color = {"held": "#009E73", "not held": "#D55E00"}.get(j.outcome, "0.35")
        if j.pairs > 1:
            ax.plot([j.low, j.high], [y, y], color=color, linewidth=1.8)
        ax.plot(j.mean, y, "o", color=color)
        ax.text(0.99, y, f"{j.outcome}, {j.pairs} pairs", transform=ax.get_yaxis_transform(), va="center", ha="right")
        places[y] = str(j.comparison)
        y += 1
    ax.axvline(0, color="0.5", linestyle="--", linewidth=0.8)
    ax.set_yticks(list(places), places.values())
    ax.set(ylim=(y, -1), xlabel="difference in points: mean and 95% interval")
    ax.grid(axis="x", alpha=0.25)
    save(fig, path)
