"""The paper's experiments: their commands, and their tables and figures beside the published numbers.

    python -m lab.paper table3                          the runs found in runs/, beside the paper's Table 3
    python -m lab.paper table4 --print-commands         one shell command a run
    python -m lab.paper figure3 --run --model nano --limit 100       run what is missing here, one after another

table2 to table6, table8, figure3 to figure5, and `claims`: what the text says, and whether it holds in our runs.
Options of train.py may follow (--model, --limit, --epochs, --gamma, --runs-dir, ...); they are given to every run.
"""

import argparse
import csv
import io
import shlex
import signal
import sys
from contextlib import redirect_stdout
from pathlib import Path
from statistics import mean, stdev

from eval import DataError, final_scores, read_run
from lab import rundir
from lab.claims import claims_table
from lab.experiments import (
    AGREEMENT,
    DEVIATION,
    FIGURES,
    MEAN,
    METHODS,
    PLAIN,
    PUBLISHED,
    Cell,
    RunKey,
    arguments,
    keys_of,
    name_for,
    run_all,
)
from lab.options import parse
from lab.rundir import RunError

TABLES = tuple(name for name in PUBLISHED if name != "source")


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
        numbers = {task: last[task] for task in summary["order"]} | {"avg": summary["average"]}
        return {name: float(x) for name, x in numbers.items()}
    except (KeyError, ValueError, TypeError) as e:
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
    try:
        lines = rundir.read_scores(run)
    except (OSError, RunError) as e:
        raise DataError(f"{run / 'scores.jsonl'}: can't be read ({e})") from None
    if not lines:
        raise DataError(f"{run / 'scores.jsonl'}: no scores in it")
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
            summary = read_run(path)
            names = ("wall_time_s", "teacher_time_here_s", "teacher_time_s", "parameters")
            in_all, here, teachers, parameters = numbers = [summary.get(name) for name in names]
            if not all(isinstance(n, int | float) for n in numbers):
                continue
            cells.setdefault(("seconds", key.label), []).append(in_all - here + teachers)
            cells.setdefault(("parameters", key.label), []).append(parameters)
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


# ---------------------------------------------------------------------- figures


def draw_task(ax, task: str, order: list[str], epochs: int, found: dict[str, list[list[dict]]]) -> None:
    """A panel of Figures 3 to 5: a task's score over the epochs of all stages, a line a method (mean over seeds, band:
    one standard deviation), stages marked. found: label -> the lines of scores.jsonl of each of its runs."""
    for label, (_, color, style) in METHODS.items():
        if many := [points for lines in found.get(label, []) if (points := curve(lines, task))]:
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
    fig.savefig(path, dpi=110, format="png")
    plt.close(fig)


# ---------------------------------------------------------------------- the command line

OWN = (
    "--order",
    "--method",
    "--kd",
    "--qa-only",
    "--no-qa-only",
    "--seed",
    "--continue",
    "--resume",
)  # what an experiment sets itself


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
    do.add_argument(
        "--print-commands",
        action="store_true",
        help="print a shell command a run, which finishes it wherever it stands; do nothing",
    )
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
        print("\n".join(shlex.join(["python", "train.py", *argv, "--resume"]) for argv in commands.values()))
        return 0
    runs_dir = Path(parse(arguments(keys[0], extra)).runs_dir).expanduser()
    keep = Path(o.keep).expanduser() if o.keep else None
    if keep and o.run and o.what in AGREEMENT:
        parser.error(f"--keep: {o.what} needs predictions, which are not kept")
    if keep and keep.resolve() == runs_dir.resolve():
        parser.error(f"--keep {o.keep}: runs are made there; another folder is expected")
    failed = None
    try:
        if o.run:
            with redirect_stdout(sys.stderr):
                try:
                    run_all(commands, runs_dir, keep)
                except RunError as e:
                    failed = e  # said below the table of what is there
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
        if failed:
            raise failed
        return 0
    except (DataError, RunError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: runs that have finished are kept; the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader such as `head` may have enough
    sys.exit(main())
