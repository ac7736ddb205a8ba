"""What stands behind each table and figure: its rows, the runs behind each row, and how they become its numbers.

Which runs a table needs (`keys_of`) and which numbers it shows (`cells_of`) both follow from the rows.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from lab.files import read_json
from lab.paper import numbers
from lab.paper.runs import FIGURES, FURTHER, METHODS, NOT_LIFELONG, TEACHERS, RunKey

PUBLISHED = read_json(Path(__file__).parent / "published.json")
PLAIN, MEAN, DEVIATION = "not lifelong", "lifelong, mean over orders", "lifelong, standard deviation over orders"
AGREEMENT = ("table6", "table8")  # with the teacher; from predictions; printed with two decimals
TABLES = tuple(name for name in PUBLISHED if name != "source")
TOY_ORDERS = ("toy.woz,toy.sql,toy.cnn", "toy.cnn,toy.woz,toy.sql")
WORDINGS = "toy.e2e,toy.cnn"  # the first task has several right wordings for a meaning
PARTS = {
    "claims": ("table2", "table3", "figure3", "table4", "figure4", "table6", "cost"),
    "comparisons": ("table4", "beside"),  # see comparisons.py
}


class Row(NamedTuple):
    """A row of a table, or a line of a figure.

    runs: (order, label) of the runs behind it, each once a seed. numbers: a function of their results, see numbers.py.
    paper: {column: published number}; if it is empty, the columns are those of our numbers. seeds: its own, if any."""

    block: str
    label: str
    runs: list[tuple[str, str]]
    numbers: Callable[[dict], list[dict]]
    paper: dict[str, float]
    seeds: Iterable[int] = ()

    def keys(self, seeds) -> list[RunKey]:
        return [RunKey(order, label, seed) for order, label in self.runs for seed in self.seeds or seeds]


class Experiment(NamedTuple):
    """A table, a figure, or a part of the claims. result: reads what its numbers are made of from a run's directory."""

    rows: list[Row]
    result: Callable[[Path], dict]


class Cell(NamedTuple):
    """One number of a table: where it stands, our values, the paper's, the runs behind ours, and how many it needs."""

    table: str
    block: str
    row: str
    column: str | int
    ours: list[float]
    paper: float | None
    runs: int
    wanted: int


# ---------------------------------------------------------------------- the rows of each table and figure


def orders_of(table: str) -> list[str]:
    return [block for block in PUBLISHED[table] if "," in block]


def published(table: str, block: str) -> dict[str, dict[str, float]]:
    """Label -> {column: number} of a block."""
    return {label: dict(zip(PUBLISHED[table]["columns"], row)) for label, row in PUBLISHED[table][block].items()}


def by_order(table: str) -> list[Row]:
    """A block an order, a run a row."""
    return [
        Row(order, label, [(order, label)], numbers.each, paper)
        for order in orders_of(table)
        for label, paper in published(table, order).items()
    ]


def not_in_the_paper(table: str, labels: Iterable[str]) -> list[Row]:
    """Further rows of a table's orders."""
    return [Row(order, label, [(order, label)], numbers.each, {}) for order in orders_of(table) for label in labels]


def not_lifelong(table: str, order: str) -> list[Row]:
    rows = published(table, PLAIN).items()
    return [Row(PLAIN, label, [(order, label)], numbers.each, paper) for label, paper in rows]


def over_orders(block: str, how: Callable) -> list[Row]:
    """A block of Table 3, whose rows have a run for each order of Table 2."""
    rows = published("table3", block).items()
    return [Row(block, label, [(o, label) for o in orders_of("table2")], how, paper) for label, paper in rows]


def agreement(table: str, tasks_of: dict[str, list[str]]) -> list[Row]:
    """Tables 6 and 8: a block for some tasks, a row a method, which needs the teachers, too."""
    order, rows = FIGURES["figure5"], []
    for block, tasks in tasks_of.items():
        for label, paper in published(table, block).items():
            student = TEACHERS if label == "teacher" else label
            how = partial(numbers.agreement, label=student, tasks=tasks)
            rows.append(Row(block, label, list(dict.fromkeys([(order, TEACHERS), (order, student)])), how, paper))
    return rows


def curves(figure: str, labels: Iterable[str]) -> Experiment:
    """A figure: a block a task, a line a method, whose columns are the epochs."""
    order = FIGURES[figure]
    rows = [
        Row(task, label, [(order, label)], partial(numbers.part, name=task), {})
        for label in labels
        for task in order.split(",")
    ]
    return Experiment(rows, numbers.curves)


def cost(what: str) -> list[Row]:
    """Seconds or parameters of a method in all orders of Table 2."""
    how = partial(numbers.part, name=what)
    return [Row(what, label, [(order, label) for order in orders_of("table2")], how, {}) for label in METHODS]


def toy() -> list[Row]:
    """The comparison on toy tasks: six methods in both orders, five of them in WORDINGS, the rest in the first one."""
    often = [(order, label, range(5)) for order in TOY_ORDERS for label in (*METHODS, "Word-KD, annealed")]
    often += [(WORDINGS, label, range(5)) for label in METHODS]
    further = [(TOY_ORDERS[0], label, range(3)) for label in FURTHER if label != "Word-KD, annealed"]
    return [Row(order, label, [(order, label)], numbers.each, {}, seeds) for order, label, seeds in often + further]


BESIDE = ("finetune", "LAMOL, added", "Word-KD, joint", "Word-KD, annealed")
LIFELONG = [label for label in METHODS if label != "finetune"]
EXPERIMENTS = {
    "table2": Experiment(by_order("table2"), numbers.final),
    "table3": Experiment(
        not_lifelong("table3", FIGURES["figure3"])
        + over_orders(MEAN, numbers.mean_over_seeds)
        + over_orders(DEVIATION, numbers.deviation_over_orders),
        numbers.final,
    ),
    "table4": Experiment(not_lifelong("table4", FIGURES["figure4"]) + by_order("table4"), numbers.final),
    "beside": Experiment(not_in_the_paper("table4", BESIDE), numbers.final),
    "table5": Experiment(not_lifelong("table5", FIGURES["figure5"]) + by_order("table5"), numbers.final),
    "table6": Experiment(agreement("table6", {"all": FIGURES["figure5"].split(",")}), numbers.hits),
    "table8": Experiment(agreement("table8", {t: [t] for t in FIGURES["figure5"].split(",")}), numbers.hits),
    "figure3": curves("figure3", METHODS),
    "figure4": curves("figure4", LIFELONG),
    "figure5": curves("figure5", LIFELONG),
    "cost": Experiment(cost("seconds") + cost("parameters"), numbers.costs),
    "toy": Experiment(toy(), numbers.measures),
}


# ---------------------------------------------------------------------- its runs and its numbers


def keys_of(what: str, seeds) -> list[RunKey]:
    """The runs behind a table, a figure or the claims, in the order in which they are best made: the teachers first,
    then the other rows that are not lifelong, then one order after another, and at last what is not in the paper."""
    rows = [row for name in PARTS.get(what, (what,)) for row in EXPERIMENTS[name].rows]
    keys = list(dict.fromkeys(key for row in rows for key in row.keys(seeds)))
    orders = list(dict.fromkeys(key.order for key in keys))

    def place(key):
        lifelong = key.label not in NOT_LIFELONG
        return key.label != TEACHERS, lifelong, key.label in FURTHER, orders.index(key.order) if lifelong else 0

    return sorted(keys, key=place)


def cells_of(what: str, runs: dict[RunKey, Path], seeds) -> list[Cell]:
    """The numbers of a table, a figure or the claims. Raises DataError for a run that can't be read."""
    cells = []
    for name in PARTS.get(what, (what,)):
        rows, result = EXPERIMENTS[name]
        results = {key: result(runs[key]) for key in keys_of(name, seeds) if key in runs}
        for row in rows:
            keys = row.keys(seeds)
            there = {key: results[key] for key in keys if results.get(key)}
            ours = row.numbers(there)
            for column in row.paper or dict.fromkeys(column for one in ours for column in one):
                values = [one[column] for one in ours if column in one]
                place = (name, row.block, row.label, column)
                cells.append(Cell(*place, values, row.paper.get(column), len(there), len(keys)))
    return cells
