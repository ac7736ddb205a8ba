"""From the files of runs to the numbers of a table or figure.

A *result* is what one run's files say: `final`, `curves`, `hits`, `costs` read one. The other functions turn the
results behind a row, {RunKey: result}, into its numbers: a list of {column: number}, one for each value that the row is
the mean of.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from eval import final_scores
from lab.errors import DataError, RunError
from lab.files import read_jsonl
from lab.paper.runs import TEACHERS, RunKey, stages_of
from lab.run.rundir import read_run, read_scores

GROUPS = ("accuracy", "teacher right (A)", "teacher wrong (B)")  # the columns of Tables 6 and 8

# ---------------------------------------------------------------------- the result of a run


def final(run: Path) -> dict[str, float]:
    """A run's score on each task in the end, and their average. Raises DataError if it can't be read."""
    summary = read_run(run)
    try:
        last = final_scores(summary["method"], summary["order"], {int(m): row for m, row in summary["scores"].items()})
        numbers = {task: last[task] for task in summary["order"]} | {"avg": summary["average"]}
        return {name: float(x) for name, x in numbers.items()}
    except (KeyError, ValueError, TypeError) as e:
        raise DataError(f"{run / 'summary.json'}: not a run's summary ({e!r})") from None


def measures(run: Path) -> dict[str, float]:
    """A run's average and its forgetting; `single` and `multitask` have none."""
    summary = read_run(run)
    return {name: summary[name] for name in ("average", "forgetting") if summary[name] is not None}


def curves(run: Path) -> dict[str, dict[int, float]]:
    """Task -> {epochs since the start of the run: score}; 0 is before any training. Raises DataError."""
    try:
        lines = read_scores(run)
    except (OSError, RunError) as e:
        raise DataError(f"{run / 'scores.jsonl'}: can't be read ({e})") from None
    if not lines:
        raise DataError(f"{run / 'scores.jsonl'}: no scores in it")
    epochs, by_task = max(line["epoch"] for line in lines), {}
    for x in lines:
        by_task.setdefault(x["task"], {})[max(0, x["stage"] - 1) * epochs + x["epoch"]] = x["score"]
    return by_task


def hits(run: Path) -> dict[tuple, bool]:
    """(task, place, id) of each test example -> whether the answer is right, by the last model that answered it.

    Raises DataError if predictions can't be read."""
    right = {}
    for folder in stages_of(run):
        file, places = folder / "predictions.jsonl", {}
        try:
            for line in read_jsonl(file, task=str, id=str, prediction=str, answer=str):
                place = places[line["task"]] = places.get(line["task"], -1) + 1
                right[line["task"], place, line["id"]] = line["prediction"].strip() == line["answer"].strip()
        except (OSError, RunError) as e:
            raise DataError(f"{file}: can't be read ({e})") from None
    return right


def costs(run: Path) -> dict[str, float]:
    """Parameters of the last model, and seconds of a run with all of its teachers, wherever they were trained.

    Nothing for a run of an early version, which did not record them."""
    summary = read_run(run)
    names = ("wall_time_s", "teacher_time_here_s", "teacher_time_s", "parameters")
    whole, here, teachers, parameters = (summary.get(name) for name in names)
    if not all(isinstance(x, int | float) for x in (whole, here, teachers, parameters)):
        return {}
    return {"seconds": whole - here + teachers, "parameters": parameters}


# ---------------------------------------------------------------------- the numbers of a row


def each(results: dict[RunKey, dict]) -> list[dict]:
    """One value a run."""
    return list(results.values())


def mean_over_seeds(results: dict[RunKey, dict]) -> list[dict]:
    """One value an order: the mean over its seeds. Raises DataError for runs on different tasks."""
    by_order, columns = {}, {frozenset(one) for one in results.values()}
    if len(columns) > 1:
        raise DataError(f"the {next(iter(results)).label} runs of one row have scores of different tasks")
    for key, one in results.items():
        by_order.setdefault(key.order, []).append(one)
    return [{column: mean(one[column] for one in same) for column in same[0]} for same in by_order.values()]


def deviation_over_orders(results: dict[RunKey, dict]) -> list[dict]:
    """Table 3: the standard deviation over orders of the means over seeds; its Avg is the mean of the tasks'."""
    means = mean_over_seeds(results)
    if len(means) < 2:
        return []
    deviation = {task: stdev(one[task] for one in means) for task in means[0] if task != "avg"}
    return [{**deviation, "avg": mean(deviation.values())}]


def agreement(results: dict[RunKey, dict], label: str, tasks: Sequence[str]) -> list[dict]:
    """Tables 6 and 8: the accuracy on the test examples of some tasks, pooled; on those that the teacher gets right (A)
    and wrong (B), if there are any. One value a seed, with the teacher of the same seed.

    Raises DataError for runs of different test examples."""
    numbers = []
    for key, ours in results.items():
        teacher = results.get(key._replace(label=TEACHERS))
        if key.label != label or teacher is None:
            continue
        if teacher.keys() != ours.keys():
            both = f"{label} and its teacher, seed {key.seed}"
            raise DataError(f"{both}: not of the same test examples; run both anew")
        places = [place for place in ours if place[0] in tasks]
        groups = (places, [x for x in places if teacher[x]], [x for x in places if not teacher[x]])
        numbers.append({name: 100 * sum(ours[x] for x in g) / len(g) for name, g in zip(GROUPS, groups) if g})
    return numbers


def part(results: dict[RunKey, dict], name: str) -> list[dict]:
    """One value a run: a part of its result that has columns itself, or is a number alone."""
    parts = [one.get(name, {}) for one in results.values()]
    return [x if isinstance(x, dict) else {"": x} for x in parts]


# ---------------------------------------------------------------------- two methods, run by run


def differences_of(base: dict, other: dict) -> list[float]:
    """{pair: value} of two methods -> other - base for each pair, such as an order and a seed.

    Raises DataError unless both have the same pairs: what is left of them would not be a fair sample."""
    if alone := sorted(base.keys() ^ other.keys()):
        more = f" and {len(alone) - 3} more" if len(alone) > 3 else ""
        raise DataError(f"runs can't be paired: one of the two methods lacks {', '.join(map(str, alone[:3]))}{more}")
    return [other[pair] - base[pair] for pair in base]


def paired(differences: Sequence[float]) -> tuple[float, float, float]:
    """The mean difference and its 95% interval by Student's t, with n - 1 degrees of freedom: (mean, low, high).

    The pairs are taken to be independent. One pair says nothing of its error: then low and high are infinite."""
    n, middle = len(differences), mean(differences)
    half = t_quantile(n - 1) * stdev(differences) / math.sqrt(n) if n > 1 else math.inf
    return middle, middle - half, middle + half


def t_quantile(df: int) -> float:
    """The t with P(|T| < t) = 0.95 for Student's t with df >= 1 degrees of freedom, by bisection of its angle."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if t_within(angle, df) < 0.95 else (low, angle)
    return math.sqrt(df) * math.tan(low)


def t_within(angle: float, df: int) -> float:
    """P(|T| < √df · tan(angle)): the finite sums for whole df of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    odd = df % 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for k in range(1 + odd, df, 2):
        total += term
        term *= math.cos(angle) ** 2 * k / (k + 1)
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
