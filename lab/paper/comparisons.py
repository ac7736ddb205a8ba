"""What is compared in our own runs, and by which rule. The lists were written before the runs were made.

    python -m lab.paper comparisons      Table 4 on the model nano
    python -m lab.paper toy              below its table: the comparisons on toy tasks

Each line is a difference of two methods, pair by pair: the same seed and order, so also the same data and first
weights. Its mean is judged by its 95% interval by Student's t over the pairs: a claim is held if the whole interval is
above 0, not held if it is below 0, and else undecided. A claim with several lines is held if all of them are. No
correction is made for how many lines there are: with twenty, one is expected to be wrong by chance.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from lab.paper import numbers
from lab.paper.experiments import TOY_ORDERS, WORDINGS, orders_of
from lab.paper.runs import RunKey, replayed

HARDEST_FIRST, EASIEST_FIRST = orders_of("table4")
DISTILLED = ("Word-KD", "Seq-KD_soft", "Seq-KD")

# ---------------------------------------------------------------------- what is measured of a method
# Each gives {pair: value} of the runs of one label; a pair is an order and a seed, or a seed alone.


def average(runs: dict[RunKey, Path], label: str) -> dict:
    """The average score after the last task."""
    return {(key.order, key.seed): numbers.final(run)["avg"] for key, run in runs.items() if key.label == label}


def easiest_first(runs: dict[RunKey, Path], label: str) -> dict:
    """The average score after the last task in the right-to-left order, or of a method that learns all at once."""
    of_seed = {key.seed: run for key, run in runs.items() if key.label == label and key.order == EASIEST_FIRST}
    of_seed = of_seed or {key.seed: run for key, run in runs.items() if key.label == label}
    return {seed: numbers.final(run)["avg"] for seed, run in of_seed.items()}


def toy_average(runs: dict[RunKey, Path], label: str) -> dict:
    """The average score after the last task, of the two orders of toy tasks."""
    return {pair: x for pair, x in average(runs, label).items() if pair[0] in TOY_ORDERS}


def steadiness(runs: dict[RunKey, Path], label: str) -> dict:
    """Minus the standard deviation over both orders, mean over the tasks, as in Table 3."""
    by_seed = {}
    for key, run in runs.items():
        if key.label == label:
            by_seed.setdefault(key.seed, []).append(numbers.final(run))
    tasks = EASIEST_FIRST.split(",")
    return {
        seed: -mean(stdev(one[task] for one in both) for task in tasks)
        for seed, both in by_seed.items()
        if len(both) == 2
    }


def in_order(order: str) -> Callable:
    """The average score after the last task, of one order alone."""
    return lambda runs, label: {pair: x for pair, x in average(runs, label).items() if pair[0] == order}


def in_stage(order: str, stage: int, task: str, epochs: Callable) -> Callable:
    """The mean score of a task over some epochs of a stage: epochs(n) are those of its n, counted from 1. Stage and
    task are counted from 1, too."""

    def measure(runs, label):
        values = {}
        for key, run in runs.items():
            if (key.label, key.order) == (label, order):
                curve = numbers.curves(run)[task]
                n = max(curve) // len(order.split(","))
                values[key.seed] = mean(curve[(stage - 1) * n + epoch] for epoch in epochs(n))
        return values

    return measure


def rise(runs: dict[RunKey, Path], label: str) -> dict:
    """Forward transfer: what rnnlg.hotel gains while rnnlg.rest, the task before it, is learned (Figure 4c)."""
    before, after = (in_stage(HARDEST_FIRST, m, "rnnlg.hotel", lambda n: [n])(runs, label) for m in (1, 2))
    return {seed: after[seed] - before[seed] for seed in after}


def first_epochs(n: int) -> range:
    return range(1, min(n, 3) + 1)


# ---------------------------------------------------------------------- what is compared


class Comparison(NamedTuple):
    """One line: is `measure` of `other` above that of `base`? Without a base: is it above 0?"""

    claim: str
    other: str
    base: str
    measure: Callable[[dict, str], dict]

    def __str__(self):
        return f"{self.other} - {self.base}" if self.base else self.other


def lines(claim: str, others, bases, measure: Callable) -> list[Comparison]:
    return [Comparison(claim, other, base, measure) for other in others for base in bases if other != base]


COMPARISONS = {
    "table4": [
        *lines("L2KD passes LAMOL (Section 4.2: by nearly 2 points)", DISTILLED, ["LAMOL"], average),
        *lines("Seq-KD is the best at the end (Section 4.2)", ["Seq-KD"], DISTILLED, average),
        *lines("rnnlg.hotel rises before its first example (Section 4.2)", ("LAMOL", *DISTILLED), [""], rise),
        *lines("it rises most with Seq-KD (Section 4.2)", ["Seq-KD"], ("LAMOL", *DISTILLED), rise),
        *lines(
            "easiest first, lifelong learning passes multitask (Section 4.2)",
            ("LAMOL", *DISTILLED),
            ("Multi QA", "Multi QA+LM"),
            easiest_first,
        ),
        *lines("L2KD depends less on the order (Section 4.1)", DISTILLED, ["LAMOL"], steadiness),
        *lines(
            "soft targets are faster in the first three epochs (Section 4.1)",
            ("Word-KD", "Seq-KD_soft"),
            ("LAMOL", "Seq-KD"),
            in_stage(HARDEST_FIRST, 1, "e2e", first_epochs),
        ),
        *lines("replay keeps what finetuning forgets (LAMOL)", ["LAMOL"], ["finetune"], average),
        *lines("ours: Word-KD passes LAMOL, both with `joint`", ["Word-KD, joint"], ["LAMOL"], average),
        *lines("ours: Word-KD passes LAMOL, both with `added`", ["Word-KD"], ["LAMOL, added"], average),
        *lines("ours: an annealed temperature helps", ["Word-KD, annealed"], ("Word-KD", "LAMOL"), average),
    ],
    "toy": [
        *[
            comparison._replace(claim=f"L2KD passes LAMOL, {order}")
            for order in TOY_ORDERS
            for comparison in lines("", DISTILLED, ["LAMOL"], in_order(order))
        ],
        *lines("Word-KD passes LAMOL, both with `joint`", ["Word-KD, joint"], ["LAMOL"], in_order(TOY_ORDERS[0])),
        *lines("Word-KD passes LAMOL, both with `added`", ["Word-KD"], ["LAMOL, added"], in_order(TOY_ORDERS[0])),
        *lines("an annealed temperature helps", ["Word-KD, annealed"], ("Word-KD", "LAMOL"), toy_average),
        *lines(
            "of several wordings, soft targets teach more in the first three epochs",
            ("Word-KD", "Seq-KD_soft"),
            ["LAMOL"],
            in_stage(WORDINGS, 1, "toy.e2e", first_epochs),
        ),
        *lines(
            "of several wordings, the teacher's one is easier to learn",
            ("Seq-KD", "Seq-KD_soft"),
            ["LAMOL"],
            in_stage(WORDINGS, 1, "toy.e2e", lambda n: [n]),
        ),
        *lines("with several wordings, L2KD passes LAMOL", DISTILLED, ["LAMOL"], in_order(WORDINGS)),
    ],
}


# ---------------------------------------------------------------------- how it is judged


class Judged(NamedTuple):
    """A comparison's mean difference, its 95% interval and the number of pairs, 0 if there are none yet."""

    comparison: Comparison
    mean: float
    low: float
    high: float
    pairs: int

    @property
    def outcome(self) -> str:
        if not self.pairs:
            return "–"
        return "held" if self.low > 0 else "not held" if self.high < 0 else "undecided"


def judge(what: str, runs: dict[RunKey, Path]) -> list[Judged]:
    """Each comparison by the pairs whose two runs have finished. Raises DataError for a run that can't be read."""
    judged = []
    for comparison in COMPARISONS[what]:
        other = comparison.measure(runs, comparison.other)
        base = comparison.measure(runs, comparison.base) if comparison.base else dict.fromkeys(other, 0.0)
        differences = [other[pair] - base[pair] for pair in other if pair in base]
        judged.append(
            Judged(comparison, *(numbers.paired(differences) if differences else (0, 0, 0)), len(differences))
        )
    return judged


def as_rows(judged: list[Judged]) -> list[tuple]:
    """(claim, comparison, mean difference, 95% interval, pairs, outcome), for a table."""
    rows = [("claim", "difference", "mean", "95% interval", "pairs", "outcome")]
    for j in judged:
        interval = f"{j.low:+.1f} to {j.high:+.1f}" if j.pairs > 1 else "–"
        rows.append((j.comparison.claim, str(j.comparison), f"{j.mean:+.1f}" if j.pairs else "–", interval))
        rows[-1] += (str(j.pairs), j.outcome)
    return rows


def accepted(runs: dict[RunKey, Path]) -> list[tuple]:
    """(order, method, accepted and drawn pseudo-samples of all seeds), for a table: of what an explanation is made."""
    counts = {}
    for key, run in runs.items():
        counts.setdefault((key.order, key.label), Counter()).update(sum(replayed(run).values(), Counter()))
    rows = [(*place, f"{n['accepted']} of {n.total()}") for place, n in counts.items() if n.total()]
    return [("order", "method", "pseudo-samples accepted"), *rows]
