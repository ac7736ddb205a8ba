"""The paper's experiments: their commands, and their tables and figures beside the published numbers.

    python -m lab.paper table3                          the runs found in runs/, beside the paper's Table 3
    python -m lab.paper table4 --print-commands         one shell command a run
    python -m lab.paper figure3 --run --model nano --limit 100       first run here what is missing
    python -m lab.paper table4                          on the model nano: its runs are recorded in lab/results/table4
    python -m lab.paper comparisons                     what these runs say, line by line with its interval
    python -m lab.paper toy                             the comparison of all methods on toy tasks
    python -m lab.paper.cost                            what the experiments should cost on a GPU

table2 to table6, table8, figure3 to figure5, toy, comparisons, and `claims`: what the text claims, and whether it
holds in our runs. table4, figure4 and comparisons are of nano with 3,000 training examples a task, unless --model is
given.
Options of train.py may follow (--model, --limit, --epochs, --gamma, --runs-dir, ...); they are given to every run.
"""

import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path

from lab.errors import LabError, Parser, RunError, command, expand_paths
from lab.paper.claims import claims_table
from lab.paper.comparisons import accepted, as_rows, judge
from lab.paper.experiments import AGREEMENT, TABLES, Cell, cells_of, keys_of
from lab.paper.figures import draw, draw_forest
from lab.paper.runs import FIGURES, ROOT, RunKey, arguments, check_same_data, found, name_for, run_all
from lab.paper.tables import as_csv, as_markdown, as_text, csv_of, markdown_of
from lab.paper.toy import draw_toy, toy_table
from lab.run.options import parse

LAPTOP = ["--model", "nano", "--train-examples", "3000"]  # Table 4 is within reach of a tiny model
RECORDED = {"toy": "nano", "table4": "table4", "figure4": "table4", "comparisons": "table4"}  # where in lab/results
# Options of train.py that an experiment sets itself.
OWN = ("--order", "--method", "--kd", "--qa-only", "--no-qa-only", "--seed", "--continue", "--resume")

# ---------------------------------------------------------------------- the command line


def build_parser() -> Parser:
    parser = Parser(description=__doc__.split("\n")[0], epilog="Other options are train.py's, for every run.")
    parser.add_argument("what", choices=(*TABLES, *FIGURES, "claims", "comparisons", "toy"))
    do, style = parser.add_mutually_exclusive_group(), parser.add_mutually_exclusive_group()
    how = "print a shell command a run, which starts or resumes it; do nothing else"
    do.add_argument("--print-commands", action="store_true", help=how)
    do.add_argument("--run", action="store_true", help="first run here what has not finished")
    style.add_argument("--markdown", action="store_const", const="markdown", dest="style", help="a Markdown table")
    style.add_argument("--csv", action="store_const", const="csv", dest="style", help="a line a number")
    parser.add_argument("--seeds", help="comma-separated; each run once a seed (default 0; toy has its own)")
    parser.add_argument("--jobs", type=int, default=1, help="how many runs --run makes at once (default %(default)s)")
    copied = "folder for copies of the runs' small files, without predictions; runs there count as finished"
    parser.add_argument("--keep", help=f"{copied} (default: none; of toy and of Table 4 with nano in lab/results)")
    drawn = "default <runs-dir>/<figure>.png; toy and comparisons are drawn only with it"
    parser.add_argument("--out", help=f"file of the figure ({drawn})")
    return parser


def parse_arguments(argv):
    """The options, with `seeds`, `runs_dir`, `folders` and `keep` as values, and those of train.py for every run.

    Exits with 2 and one line for bad usage."""
    parser = build_parser()
    o, extra = parser.parse_known_args(argv)
    expand_paths(o, parser, "keep", "out")
    if o.what == "toy":
        if o.seeds:
            parser.error("--seeds: toy has its own, five or three a method")
        extra = ["--runs-dir", "runs/nano", *extra]
    recorded = RECORDED.get(o.what)
    if recorded == "table4":
        on_laptop = [*LAPTOP, *extra]
        if parse(arguments(keys_of("table4", [0])[0], on_laptop)).model == "nano":
            extra, o.seeds = on_laptop, o.seeds or "0,1,2"
        else:
            recorded = None  # another --model is given
    if recorded:
        o.keep = o.keep or str(ROOT / "lab" / "results" / recorded)
    try:
        o.seeds = list(dict.fromkeys(int(seed) for seed in (o.seeds or "0").split(",")))
    except ValueError:
        parser.error(f"--seeds {o.seeds}: numbers with commas between them are expected")
    if own := next((word for word in extra if word.split("=")[0] in OWN), None):
        parser.error(f"{own}: an experiment sets it itself (--seeds for several seeds)")
    if o.jobs < 1:
        parser.error(f"--jobs {o.jobs}: must be a number of at least 1")
    if o.out and (o.what not in (*FIGURES, "toy", "comparisons") or o.style):
        parser.error("--out: only for a drawn figure")
    if o.style == "markdown" and o.what in FIGURES:
        parser.error(f"--markdown: {o.what} is no table; --csv prints its numbers")
    if o.keep and o.run and o.what in AGREEMENT:
        parser.error(f"--keep: {o.what} needs predictions, which are not copied")
    o.runs_dir = Path(parse(arguments(keys_of(o.what, o.seeds)[0], extra)).runs_dir).expanduser()
    o.keep = Path(o.keep).expanduser() if o.keep else None
    if o.keep and o.keep.resolve() == o.runs_dir.resolve():
        parser.error(f"--keep {o.keep}: runs are made there; another folder is expected")
    o.folders = [o.runs_dir, *([o.keep] if o.keep else [])]
    return o, extra


# ---------------------------------------------------------------------- what is printed


def report(what: str, cells: list[Cell], runs: dict[RunKey, Path], style: str) -> str:
    """A table, the claims, or the comparisons, as text, Markdown or CSV."""
    if what == "toy" and style != "csv":
        return "\n\n".join([toy_table(cells), *map(markdown_of, (as_rows(judge("toy", runs)), accepted(runs)))])
    if what not in ("claims", "comparisons"):
        return {"text": as_text, "markdown": as_markdown, "csv": as_csv}[style](cells)
    if what == "comparisons":
        rows = as_rows(judge("table4", runs))
    else:
        rows = [("claim", "paper", "ours", "holds in ours"), *claims_table(cells)]
    if style == "csv":
        return csv_of(rows)
    if style == "markdown":
        return "\n\n".join(map(markdown_of, (rows, accepted(runs)) if what == "comparisons" else (rows,)))
    if what == "comparisons":
        lines = ["{:<64}{:<32}{:>7}{:>18}{:>7}  {}".format(*row) for row in rows]
        return "\n".join([*lines, "", *("{:<64}{:<32}{}".format(*row) for row in accepted(runs))])
    return "\n\n".join("{}\n    paper  {}\n    ours   {}\n    holds  {}".format(*row) for row in rows[1:])


def show(o, runs: dict[RunKey, Path]) -> None:
    """Print the table, or draw the figure and print its path."""
    cells = cells_of(o.what, runs, o.seeds)
    if o.what not in FIGURES or o.style == "csv":
        print(report(o.what, cells, runs, o.style or "text"))
    if not runs or o.style == "csv":
        return
    if o.what in FIGURES:
        path = Path(o.out or o.runs_dir / f"{o.what}.png")
        if drawn(path, lambda: draw(o.what, cells, path)):
            print(path)
    elif o.out and o.what == "comparisons":
        drawn(Path(o.out), lambda: draw_forest(judge("table4", runs), Path(o.out)))
    elif o.out:
        drawn(Path(o.out), lambda: draw_toy(cells, runs, Path(o.out)))


def drawn(path: Path, how) -> bool:
    """Draw a figure. One that fails is a warning: the runs are there. Raises OSError if it can't be written."""
    try:
        how()
        return True
    except (LabError, OSError):
        raise
    except Exception as e:
        hint = "--csv prints the numbers"
        print(f"WARNING: {path} can't be drawn ({type(e).__name__}: {e}); {hint}", file=sys.stderr)
        return False


def collect(o, extra) -> dict[RunKey, Path]:
    """The runs that have finished. Raises DataError if their data differ."""
    runs = found(keys_of(o.what, o.seeds), o.folders, extra, predictions=o.what in AGREEMENT)
    if unrecorded := check_same_data(runs):
        print(f"note: {len(unrecorded)} of {len(runs)} runs did not record their data", file=sys.stderr)
    return runs


@command(": finished runs stay; the same command goes on")
def main(argv=None) -> None:
    """The command line. Its exit code is 1 for runs that failed or can't be shown, 2 for bad usage."""
    o, extra = parse_arguments(argv)
    keys = keys_of(o.what, o.seeds)
    commands = {name_for(argv): argv for argv in (arguments(key, extra) for key in keys)}
    if o.print_commands:
        print("\n".join(shlex.join(["python", "train.py", *argv, "--resume"]) for argv in commands.values()))
        return
    failed = None
    if o.run:
        check_same_data(found(keys, o.folders, extra))  # before hours of work
        with redirect_stdout(sys.stderr):
            try:
                run_all(commands, o.runs_dir, o.keep, o.jobs)
            except RunError as e:
                failed = e  # reported below the table
    runs = collect(o, extra)
    show(o, runs)
    if len(runs) < len(keys):
        hint = "(*: some are missing); --print-commands shows them all"
        print(f"{len(runs)} of {len(keys)} runs found in {' and '.join(map(str, o.folders))} {hint}", file=sys.stderr)
    if failed:
        raise failed


if __name__ == "__main__":
    sys.exit(main())
