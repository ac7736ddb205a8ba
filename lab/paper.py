"""The paper's experiments: the commands of their runs, and their tables and figures beside the published numbers.

    python -m lab.paper table3                          the runs found in runs/, beside the paper's Table 3
    python -m lab.paper table4 --print-commands         one shell command a run
    python -m lab.paper figure3 --run --model nano --limit 100       run what is missing here, one after another

table2 to table6, table8, figure3 to figure5, and `claims`: what the text says, and whether it holds in our runs.
Options of train.py may follow (--model, --limit, --epochs, --gamma, --runs-dir, ...); they are given to every run.
"""

import argparse
import csv
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from eval import DataError, final_scores, read_run
from lab import rundir
from lab.options import name_of, parse
from lab.rundir import RunError

ROOT = Path(__file__).parents[1]
PUBLISHED = json.loads((Path(__file__).parent / "paper.json").read_text(encoding="utf-8"))
METHODS = {  # label -> options of train.py; a colour that colour-blind eyes tell apart, a line that grey print does
    "finetune": ("--method finetune", "#000000", ":"),
    "LAMOL": ("--kd none", "#E69F00", "-"),
    "Word-KD": ("--kd word", "#0072B2", "--"),
    "Seq-KD_soft": ("--kd seqsoft", "#CC79A7", (0, (5, 1, 1, 1, 1, 1))),
    "Seq-KD": ("--kd seq", "#009E73", "-."),
}
SOFT, DISTILLED = ("Word-KD", "Seq-KD_soft"), ("Word-KD", "Seq-KD_soft", "Seq-KD")
LONG = "long"  # three times the epochs
NOT_LIFELONG = {
    "Single QA": "--method single --qa-only",
    "Single QA+LM": "--method single",
    "Multi same QA": "--method multitask --qa-only",
    "Multi same QA+LM": "--method multitask",
    "Multi long QA": f"--method multitask --qa-only {LONG}",
    "Multi long QA+LM": f"--method multitask {LONG}",
    "Multi long QA+LM + Seq-KD": f"--method multitask --kd seq {LONG}",
    "Multi QA": f"--method multitask --qa-only {LONG}",  # Tables 4 and 5 don't state the epochs
    "Multi QA+LM": f"--method multitask {LONG}",
}
PLAIN, MEAN, DEVIATION = "not lifelong", "lifelong, mean over orders", "lifelong, deviation over orders"
FIGURES = {"figure3": "woz,sql,cnn"}  # figure -> its order; these runs are scored after every epoch
for _figure, _table in (("figure4", "table4"), ("figure5", "table5")):
    FIGURES[_figure] = next(block for block in PUBLISHED[_table] if "," in block)  # hardest to easiest task
RIGHT_TO_LEFT = [block for block in PUBLISHED["table4"] if "," in block][1]
TABLES = tuple(name for name in PUBLISHED if name != "source")
AGREEMENT = ("table6", "table8")  # with the teacher; printed with two decimals


class RunKey(NamedTuple):
    """A run of the paper: which order, which row of a table, which seed."""

    order: str
    label: str
    seed: int


class Cell(NamedTuple):
    """One number of a table: where it stands, our values, the paper's, the runs behind ours, and how many it needs."""

    table: str
    block: str
    row: str
    column: str
    ours: list[float]
    paper: float | None
    runs: int
    wanted: int


# ---------------------------------------------------------------------- which runs


def keys_of(what: str, seeds) -> list[RunKey]:
    """The runs behind a table or figure, in the order in which they are best made: teachers first."""
    if what == "claims":
        every = [keys_of(name, seeds) for name in ("table3", "figure3", "table4", "figure4", "table6")]
        return list(dict.fromkeys(key for keys in every for key in keys))
    if what in FIGURES:
        labels = [label for label in METHODS if what == "figure3" or label != "finetune"]
        return [RunKey(FIGURES[what], label, seed) for label in labels for seed in seeds]
    if what in AGREEMENT:
        labels = ["Single QA+LM", *(label for label in METHODS if label != "finetune")]
        return [RunKey(FIGURES["figure5"], label, seed) for label in labels for seed in seeds]
    blocks = PUBLISHED[what]
    rows = [(order, label) for order in blocks if "," in order for label in blocks[order]]
    if what == "table3":
        rows = [(key.order, key.label) for key in keys_of("table2", [0])]
    if PLAIN in blocks:
        columns = FIGURES["figure3"] if what == "table3" else next(order for order in blocks if "," in order)
        singles = [(columns, label) for label in blocks[PLAIN]]
        rows = sorted(singles, key=lambda one: one[1] != "Single QA+LM") + rows  # its models are the teachers
    return [RunKey(*row, seed) for row in rows for seed in seeds]


def arguments(key: RunKey, extra: list[str]) -> list[str]:
    """A run's options for train.py: what the user gives to all, then its own, which stand."""
    own = (METHODS[key.label][0] if key.label in METHODS else NOT_LIFELONG[key.label]).split()
    if LONG in own:
        own[-1:] = ["--epochs", str(3 * parse(["--order", key.order, *extra]).epochs)]
    if key.order in FIGURES.values() and key.label in METHODS:
        own.append("--eval-every-epoch")
    return ["--order", key.order, *extra, *own, "--seed", str(key.seed)]


def name_for(argv: list[str]) -> str:
    """The name of a run's directory."""
    o = parse(argv)
    return name_of(o, o.order.split(","))


def run_all(runs: dict[str, list[str]], runs_dir: Path, keep: Path | None = None, jobs: int = 1) -> None:
    """Run what is not finished, each run (directory name -> options of train.py) a command of its own.

    Finished is what has a summary.json in runs_dir or in `keep`, where the small files of each run are copied to.
    What was cut off starts anew. Raises RunError at the end when runs have failed; the others are whole."""
    runs_dir.mkdir(parents=True, exist_ok=True)
    failed = []

    def one(item):
        name, argv = item
        if keep and (keep / name / "summary.json").exists():
            return
        if not (runs_dir / name / "summary.json").exists():
            shutil.rmtree(runs_dir / name, ignore_errors=True)
            threads = str(max(1, (os.cpu_count() or 1) // jobs))
            environment = {"OMP_NUM_THREADS": threads} | os.environ
            with open(runs_dir / f"{name}.log", "w", encoding="utf-8") as out:
                command = [sys.executable, str(ROOT / "train.py"), *argv]
                code = subprocess.run(command, stdout=out, stderr=out, env=environment).returncode
            if code:
                failed.append(f"{name} failed with {code}; its output is in {runs_dir / name}.log")
                print(failed[-1], flush=True)
                return
        try:
            summary = rundir.read_json(runs_dir / name / "summary.json")
            said = f"{name}: {summary['average']:.1f} in {summary['wall_time_s']:.0f} s"
        except (ValueError, KeyError, TypeError) as e:
            failed.append(f"{runs_dir / name / 'summary.json'}: not a run's summary ({e!r})")
            return
        if keep:
            rundir.write_folder(keep / name, lambda folder: copy_small_files(runs_dir / name, folder))
        print(said, flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, runs.items()))
    if failed:
        raise RunError(f"{len(failed)} of {len(runs)} runs failed: {failed[0]}")


def copy_small_files(run: Path, folder: Path) -> None:
    """What a table is backed by: options, scores and summary of a run, without weights and texts."""
    folder.mkdir(parents=True)
    for file in ("config.json", "scores.jsonl", "summary.json"):
        shutil.copy(run / file, folder)


# ---------------------------------------------------------------------- from runs to numbers


def found(what, keys, folders, extra) -> dict[RunKey, Path]:
    """The directories of the runs that have finished; Tables 6 and 8 need their predictions, which are not kept."""
    places = {key: [folder / name_for(arguments(key, extra)) for folder in folders] for key in keys}
    there = {key: [path for path in paths if (path / "summary.json").exists()] for key, paths in places.items()}
    if what in AGREEMENT:
        there = {key: [path for path in paths if stages_of(path)] for key, paths in there.items()}
    return {key: paths[0] for key, paths in there.items() if paths}


def stages_of(run: Path) -> list[Path]:
    """The folders of a run's stages, in order."""
    return sorted(run.glob("[0-9]*-*"), key=lambda folder: int(folder.name.split("-")[0]))


def cells_of(what: str, runs: dict[RunKey, Path], seeds) -> list[Cell]:
    """The numbers of a table or figure, or all that `claims` needs. Raises DataError for a run that can't be read."""
    if what == "claims":
        every = [cells_of(name, runs, seeds) for name in ("table2", "table3", "table4", "table6", "figure3", "figure4")]
        wanted = len(keys_of("table2", seeds)) // len(METHODS)
        return [cell for cells in every for cell in cells] + costs(runs, wanted)
    if what in FIGURES:
        return curves(what, runs, seeds)
    cells, published = [], PUBLISHED[what]
    orders = [order for order in PUBLISHED["table2" if what == "table3" else what] if "," in order]
    answers = {key: hits(runs[key]) for key in keys_of(what, seeds) if key in runs} if what in AGREEMENT else {}
    for block, rows in published.items():
        if block == "columns":
            continue
        for row, numbers in rows.items():
            if what in AGREEMENT:
                ours = agreement(answers, block, row, seeds)
                there, wanted = len(ours), len(seeds)
            else:
                plain = FIGURES["figure3"] if what == "table3" else orders[0]
                of_row = orders if block in (MEAN, DEVIATION) else [plain if block == PLAIN else block]
                keys = [RunKey(order, row, seed) for order in of_row for seed in seeds]
                by_run = {key: scores(runs[key]) for key in keys if key in runs}
                there, wanted = len(by_run), len(keys)
                ours = over_orders(by_run, block) if block in (MEAN, DEVIATION) else list(by_run.values())
            for column, paper in zip(published["columns"], numbers):
                values = [one[column] for one in ours if column in one]
                cells.append(Cell(what, block, row, column, values, paper, there, wanted))
    return cells


def scores(path: Path) -> dict[str, float]:
    """A run's score on each task after its last stage, and their average."""
    summary = read_run(path)
    try:
        last = final_scores(summary["method"], summary["order"], {int(m): row for m, row in summary["scores"].items()})
        return {**{task: last[task] for task in summary["order"]}, "avg": summary["average"]}
    except (KeyError, ValueError) as e:
        raise DataError(f"{path / 'summary.json'}: not a run's summary ({e!r})") from None


def over_orders(by_run: dict[RunKey, dict], block: str) -> list[dict[str, float]]:
    """Table 3: a method's scores in each order of Table 2 (mean over seeds), or their standard deviation, the Avg of
    which is the mean of the tasks'."""
    by_order = {}
    for key, one in by_run.items():
        by_order.setdefault(key.order, []).append(one)
    means = [{column: mean(one[column] for one in same) for column in same[0]} for same in by_order.values()]
    if block == MEAN:
        return means
    if len(means) < 2:
        return []
    sd = {task: stdev(one[task] for one in means) for task in means[0] if task != "avg"}
    return [{**sd, "avg": mean(sd.values())}]


def agreement(answers: dict[RunKey, dict], block: str, row: str, seeds) -> list[dict[str, float]]:
    """Tables 6 and 8: accuracy on all test examples, on those that the teacher (the Single QA+LM model) gets right, and
    on the others, where there are any; pooled over the five tasks, or of one task. Raises DataError for runs of
    different test examples."""
    order, out = FIGURES["figure5"], []
    for seed in seeds:
        teacher = RunKey(order, "Single QA+LM", seed)
        student = teacher if row == "teacher" else RunKey(order, row, seed)
        right, ours = answers.get(teacher), answers.get(student)
        if right and ours:
            if right.keys() != ours.keys():
                raise DataError(
                    f"{student.label} and its teacher, seed {seed}: not of the same test examples; run both anew"
                )
            places = [place for place in ours if block in ("all", place[0])]
            groups = (places, [x for x in places if right[x]], [x for x in places if not right[x]])
            named = zip(PUBLISHED["table6"]["columns"], groups)
            out.append({name: 100 * sum(ours[x] for x in group) / len(group) for name, group in named if group})
    return out


def hits(run: Path) -> dict[tuple, bool]:
    """Which test examples the last model of each task answers right: (task, place, id) -> bool."""
    right = {}
    for folder in stages_of(run):
        try:
            places = {}
            for line in rundir.read_jsonl(folder / "predictions.jsonl"):
                place = places[line["task"]] = places.get(line["task"], -1) + 1
                same = line["prediction"].strip() == line["answer"].strip()
                right[line["task"], place, line["id"]] = same  # the last stage's stand
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise DataError(f"{folder / 'predictions.jsonl'}: can't be read ({e!r})") from None
    return right


def curves(what, runs, seeds) -> list[Cell]:
    """Figures 3 to 5: the score of each task after every epoch since the start; epoch 0 is before learning."""
    cells, order = [], FIGURES[what]
    for label in METHODS:
        points = {}
        for seed in seeds:
            if path := runs.get(RunKey(order, label, seed)):
                for task in order.split(","):
                    for epoch, score in curve(read_scores(path), task).items():
                        points.setdefault((task, epoch), []).append(score)
        cells += [
            Cell(what, task, label, epoch, ours, None, len(ours), len(seeds)) for (task, epoch), ours in points.items()
        ]
    return cells


def read_scores(run: Path) -> list[dict]:
    """The lines of a run's scores.jsonl. Raises DataError where there are none, or they can't be read."""
    path = run / "scores.jsonl"
    try:
        lines = [{key: x[key] for key in ("stage", "epoch", "task", "score")} for x in rundir.read_jsonl(path)]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DataError(f"{path}: can't be read ({e!r})") from None
    if not lines:
        raise DataError(f"{path}: no scores in it")
    return lines


def curve(lines: list[dict], task: str) -> dict[int, float]:
    """Epochs since the start of the run -> score of a task."""
    epochs = max(line["epoch"] for line in lines)
    return {max(0, x["stage"] - 1) * epochs + x["epoch"]: x["score"] for x in lines if x["task"] == task}


def costs(runs, wanted) -> list[Cell]:
    """Parameters of the final model, and seconds of a run with all of its teachers, wherever they were made; not of
    runs of earlier versions, which did not write them down."""
    cells = {}
    for key, path in runs.items():
        if key.label in METHODS and key.order in PUBLISHED["table2"]:
            s = read_run(path)
            if not {"teacher_time_s", "teacher_time_here_s", "parameters"} <= s.keys():
                continue
            seconds = s["wall_time_s"] - s["teacher_time_here_s"] + s["teacher_time_s"]
            cells.setdefault(("seconds", key.label), []).append(seconds)
            cells.setdefault(("parameters", key.label), []).append(s["parameters"])
    return [Cell("cost", kind, label, "", ours, None, len(ours), wanted) for (kind, label), ours in cells.items()]


# ---------------------------------------------------------------------- tables


def spread(values: list[float], digits: int = 1) -> str:
    """`mean ± standard deviation` (n - 1); a dash where there is nothing, or nothing to measure."""
    if not values or values[0] is None:
        return "–"
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}"


def said(cell: Cell) -> tuple[str, str, str]:
    """Ours (with * where runs are missing), the paper's number, and the difference."""
    digits = 2 if cell.table in AGREEMENT else 1
    mark = "*" if cell.ours and cell.runs < cell.wanted else ""
    paper = "–" if cell.paper is None else f"{cell.paper:.{digits}f}"
    difference = f"{mean(cell.ours) - cell.paper:+.{digits}f}" if cell.ours and cell.paper is not None else "–"
    return spread(cell.ours, digits) + mark, paper, difference


def blocks_of(cells: list[Cell]):
    """(block, columns, {row: [cell]}) for each block of a table."""
    for block in dict.fromkeys(cell.block for cell in cells):
        rows = {}
        for cell in cells:
            if cell.block == block:
                rows.setdefault(cell.row, []).append(cell)
        yield block, [cell.column for cell in next(iter(rows.values()))], rows


def titled(block: str, arrow: str) -> str:
    """An order with arrows between its tasks; other titles as they are."""
    return block if ", " in block else block.replace(",", f" {arrow} ")


def as_text(cells: list[Cell]) -> str:
    """Three lines a row: ours, the paper's, the difference."""
    lines = []
    for block, columns, rows in blocks_of(cells):
        width = max(14, *(len(column) + 2 for column in columns))
        lines += ["", titled(block, ">"), " " * 38 + "".join(f"{column:>{width}}" for column in columns)]
        for row, in_row in rows.items():
            for i, kind in enumerate(("ours", "paper", "difference")):
                cells_said = "".join(f"{said(cell)[i]:>{width}}" for cell in in_row)
                lines.append(f"{'' if i else row:<26}{kind:<12}{cells_said}")
    return "\n".join(lines[1:])


def as_markdown(cells: list[Cell]) -> str:
    """A line a row, each cell `ours / paper / difference`."""
    lines = []
    for block, columns, rows in blocks_of(cells):
        lines += ["", f"| {titled(block, '→')} | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
        lines += [f"| {row} | {' | '.join(' / '.join(said(cell)) for cell in rows[row])} |" for row in rows]
    return "\n".join(lines[1:])


def as_csv(cells: list[Cell]) -> str:
    """A line a number."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["table", "block", "row", "column", "ours", "deviation", "runs", "runs_wanted", "paper", "difference"]
    )
    for c in cells:
        ours = mean(c.ours) if c.ours else None
        sd = stdev(c.ours) if len(c.ours) > 1 else None
        difference = ours - c.paper if c.ours and c.paper is not None else None
        numbers = [None if x is None else round(x, 4) for x in (ours, sd)]
        last = [c.paper, None if difference is None else round(difference, 4)]
        writer.writerow([*c[:4], *numbers, c.runs, c.wanted, *last])
    return out.getvalue().rstrip("\n")


# ---------------------------------------------------------------------- what the text claims


def improves_the_average(n):
    values = [n("table3", MEAN, label, "avg") for label in ("LAMOL", *DISTILLED)]
    return "LAMOL {:.1f}; {:.1f}, {:.1f}, {:.1f}".format(*values), min(values[1:]) > values[0]


def lowers_the_deviation(n):
    values = [n("table3", DEVIATION, label, "avg") for label in ("LAMOL", *DISTILLED)]
    return "LAMOL {:.1f}; {:.1f}, {:.1f}, {:.1f}".format(*values), max(values[1:]) < values[0]


def who_helps_where(n):
    def best(order, task):
        return max(DISTILLED, key=lambda label: n("table2", order, label, task))

    orders = [order for order in PUBLISHED["table2"] if "," in order]
    hard = sum(best(order, "cnn") == "Seq-KD" for order in orders)
    soft = sum(best(order, task) in SOFT for order in orders for task in ("woz", "sql"))
    return f"cnn {hard} of 6 orders; woz and sql {soft} of 12", hard > 3 and soft > 6


def soft_targets_are_faster(n):
    order = FIGURES["figure3"].split(",")
    epochs = n.epochs("figure3") // len(order)

    def early(labels):
        points = [(m, e) for m in (0, 1) for e in (1, 2, 3) if e <= epochs]
        return mean(n("figure3", order[m], label, m * epochs + e) for m, e in points for label in labels)

    soft, hard = early(SOFT), early(("Seq-KD", "LAMOL"))
    return f"{soft:.1f} against {hard:.1f}, first 3 epochs of woz and sql", soft > hard


def transfers_forward(n):
    epochs = n.epochs("figure4") // 5
    rise = {label: n("figure4", "rnnlg.hotel", label, 2 * epochs) - n("figure4", "rnnlg.hotel", label, epochs)
            for label in ("LAMOL", *DISTILLED)}  # fmt: skip
    shown = ", ".join(f"{label} {value:+.1f}" for label, value in rise.items())
    return shown, min(rise.values()) > 0 and max(rise, key=rise.get) == "Seq-KD"


def easiest_first_passes_multitask(n):
    multi = max(n("table4", PLAIN, label, "avg") for label in ("Multi QA", "Multi QA+LM"))
    ours = [n("table4", RIGHT_TO_LEFT, label, "avg") for label in ("LAMOL", *DISTILLED)]
    return "multitask {:.1f}; {:.1f}, {:.1f}, {:.1f}, {:.1f}".format(multi, *ours), min(ours) > multi


def gains_where_the_teacher_is_right(n):
    _, right, wrong = PUBLISHED["table6"]["columns"]
    gains = [
        [n("table6", "all", label, g) - n("table6", "all", "LAMOL", g) for g in (right, wrong)] for label in DISTILLED
    ]
    shown = ", ".join("(A) {:+.2f} (B) {:+.2f}".format(*gain) for gain in gains)
    return shown, all(a > 0 and a > b for a, b in gains)


def costs_little(n):
    ratios = [n("cost", "seconds", label, "") / n("cost", "seconds", "LAMOL", "") for label in DISTILLED]
    size = {n("cost", "parameters", label, "") for label in ("LAMOL", *DISTILLED)}
    shown = "{:.1f}, {:.1f}, {:.1f} times LAMOL's, teachers included; ".format(*ratios)
    return shown + f"{'the same' if len(size) == 1 else 'another'} model size", len(size) == 1 and max(ratios) <= 2


CLAIMS = {  # numbers of methods are in the order Word-KD, Seq-KD_soft, Seq-KD
    "L2KD improves LAMOL's average over six orders": improves_the_average,
    "KD lowers the mean deviation over orders": lowers_the_deviation,
    "Seq-KD is the best KD on cnn, a soft target on woz and sql, in most orders": who_helps_where,
    "soft targets raise scores faster in the first epochs of a stage than hard ones": soft_targets_are_faster,
    "rnnlg.hotel rises before its data is seen, most with Seq-KD": transfers_forward,
    "easiest-to-hardest, lifelong learning passes the multitask rows of Table 4": easiest_first_passes_multitask,
    "KD's gain in classification comes from where the teacher is right (A) more than from where it is wrong (B)": (
        gains_where_the_teacher_is_right
    ),
    "little extra time (our bound: twice), no extra memory in the final model": costs_little,
}


class Numbers:
    """n(table, block, row, column) -> a number, ours or the paper's. Raises LookupError for one that is not there.

    n.mark: * once a number was asked for that lacks some of its runs."""

    def __init__(self, cells: list[Cell], ours: bool):
        values = {cell[:4]: (mean(cell.ours) if cell.ours else None) if ours else cell.paper for cell in cells}
        self.values = {place: value for place, value in values.items() if value is not None}
        self.partial = {cell[:4] for cell in cells if ours and cell.runs < cell.wanted}
        self.mark = ""

    def __call__(self, *place):
        if place in self.partial:
            self.mark = "*"
        return self.values[place]

    def epochs(self, figure):
        return max((place[3] for place in self.values if place[0] == figure), default=0)


def claims_table(cells: list[Cell]) -> list[tuple[str, str, str, str]]:
    """(claim, the paper's numbers, ours, whether it holds in ours); a dash where numbers are missing, * where runs."""
    rows = []
    for claim, judge in CLAIMS.items():
        shown = []
        for ours in (False, True):
            n = Numbers(cells, ours)
            try:
                numbers, holds = judge(n)
                shown.append((numbers + n.mark, "yes" if holds else "no"))
            except (LookupError, ValueError):  # mean of nothing: a figure without runs
                shown.append(("–", "–"))
        (paper, _), (own, holds) = shown
        rows.append((claim, paper, own, holds))
    return rows


# ---------------------------------------------------------------------- figures


def draw_task(ax, task: str, order: list[str], epochs: int, found: dict[str, list[list[dict]]]) -> None:
    """A panel of Figures 3 to 5: a task's score over the epochs of all stages, a line a method (mean over seeds, band:
    one standard deviation), stages marked. found: label -> the lines of scores.jsonl of each of its runs."""
    for label, (_, color, style) in METHODS.items():
        if many := [curve(lines, task) for lines in found.get(label, [])]:
            x, y = list(many[0]), list(zip(*(c.values() for c in many)))
            middle, sd = [mean(v) for v in y], [stdev(v) if len(v) > 1 else 0.0 for v in y]
            ax.plot(x, middle, color=color, linestyle=style, label=label, linewidth=1.6)
            ax.fill_between(x, *zip(*((m - d, m + d) for m, d in zip(middle, sd))), color=color, alpha=0.12, lw=0)
    for stage in range(len(order)):
        ax.axvline(stage * epochs, color="0.5", linestyle="--", linewidth=0.8)
    ax.set(xlim=(0, epochs * len(order)), ylabel=f"{task}, %")
    ax.grid(alpha=0.25)


def draw(what: str, runs: dict[RunKey, Path], path: Path) -> None:
    """The learning curves of an experiment, a panel a task as in the paper."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    order, found = FIGURES[what].split(","), {}
    for key, run in runs.items():
        found.setdefault(key.label, []).append(read_scores(run))
    epochs = max(line["epoch"] for lines in found.values() for line in lines[0])
    fig, axes = plt.subplots(len(order), 1, figsize=(8, 1 + 1.9 * len(order)), sharex=True, layout="constrained")
    for task, ax in zip(order, axes):
        draw_task(ax, task, order, epochs, found)
        top = max(
            (score for lines in found.values() for one in lines for score in curve(one, task).values()), default=0
        )
        ax.set_ylim(-0.03 * max(1, top), 1.12 * max(1, top))
    for stage, task in enumerate(order):
        place = (stage + 0.5) / len(order)
        axes[0].text(place, 1.03, f"learns {task}", transform=axes[0].transAxes, ha="center", fontsize=9)
    axes[-1].set_xlabel("epochs")
    handles = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels())}
    fig.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(METHODS), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=110)
    plt.close(fig)


# ---------------------------------------------------------------------- the command line

OWN = ("--order", "--method", "--kd", "--qa-only", "--no-qa-only", "--seed")  # what an experiment sets itself


def report(what: str, cells: list[Cell], style: str) -> str:
    """A table, or the claims, as text, markdown or CSV."""
    if what != "claims":
        return {"text": as_text, "markdown": as_markdown, "csv": as_csv}[style](cells)
    rows = [("claim", "paper", "ours", "holds in ours"), *claims_table(cells)]
    if style == "csv":
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(rows)
        return out.getvalue().rstrip("\n")
    if style == "markdown":
        return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * 4, *rows[1:]))
    return "\n\n".join("{}\n    paper  {}\n    ours   {}\n    holds  {}".format(*row) for row in rows[1:])


def main(argv=None) -> int:
    """The command line. Returns the exit code: 1 for runs that failed or can't be read, 2 for bad usage."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], allow_abbrev=False, epilog="Other options are train.py's, for every run."
    )
    parser.error = lambda message: parser.exit(2, f"error: {message} (--help lists the options)\n")  # one line
    parser.add_argument("what", choices=(*TABLES, *FIGURES, "claims"))
    do, style = parser.add_mutually_exclusive_group(), parser.add_mutually_exclusive_group()
    do.add_argument("--print-commands", action="store_true", help="print one shell command a run, and do nothing")
    do.add_argument("--run", action="store_true", help="first run here what has not finished, one after another")
    style.add_argument("--markdown", action="store_const", const="markdown", dest="style", help="a Markdown table")
    style.add_argument("--csv", action="store_const", const="csv", dest="style", help="a line a number")
    parser.add_argument("--seeds", default="0", help="comma-separated; each run once a seed (default %(default)s)")
    parser.add_argument(
        "--keep", help="copy runs' small files (no predictions) there; runs kept there count as finished"
    )
    parser.add_argument("--out", help="where a figure goes; default: <runs-dir>/<figure>.png")
    o, extra = parser.parse_known_args(argv)
    try:
        seeds = list(dict.fromkeys(int(seed) for seed in o.seeds.split(",")))
    except ValueError:
        parser.error(f"--seeds {o.seeds}: numbers with commas between them are expected")
    if own := next((word for word in extra if word.split("=")[0] in OWN), None):
        parser.error(f"{own}: an experiment sets it itself (--seeds for several seeds)")
    if o.out and (o.what not in FIGURES or o.style):
        parser.error("--out: only for a drawn figure")
    if o.style == "markdown" and o.what in FIGURES:
        parser.error(f"--markdown: {o.what} is no table; --csv prints its numbers")
    keys = keys_of(o.what, seeds)
    commands = {name_for(argv): argv for argv in (arguments(key, extra) for key in keys)}
    if o.print_commands:
        print("\n".join(shlex.join(["python", "train.py", *argv]) for argv in commands.values()))
        return 0
    runs_dir = Path(parse(arguments(keys[0], extra)).runs_dir).expanduser()
    keep = Path(o.keep).expanduser() if o.keep else None
    if keep and keep.resolve() == runs_dir.resolve():
        parser.error(f"--keep {o.keep}: runs are made there; another folder is expected")
    try:
        if o.run:
            with redirect_stdout(sys.stderr):
                run_all(commands, runs_dir, keep)
        runs = found(o.what, keys, [runs_dir, *([keep] if keep else [])], extra)
        cells = cells_of(o.what, runs, seeds)
        if o.what not in FIGURES or o.style == "csv":
            print(report(o.what, cells, o.style or "text"))
        elif runs:
            path = Path(o.out or runs_dir / f"{o.what}.png").expanduser()
            draw(o.what, runs, path)
            print(path)
        if len(runs) < len(keys):
            hint = f"{len(runs)} of {len(keys)} runs found in {runs_dir} (*: some are missing)"
            hint += "; --print-commands shows them all"
            print(hint, file=sys.stderr)
        return 0
    except (DataError, RunError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: runs that have finished are kept; the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
