"""Compare sets of options of train.py, run by run, over several seeds and orders.

    python -m lab.compare "--kd none" "--kd word" --seeds 0,1,2
    python -m lab.compare "--kd word" "--at ewc --method finetune" --seeds 0,1,2 --order toy.woz,toy.sql --jobs 2

Before --seeds stand two or more sides, each a quoted string of options; the first is the baseline. After it stand the
options of all runs; --order may be repeated. Finished runs are found, runs that were cut off go on, the rest starts. A
pair is one seed and order. Printed are the averages of each pair, the mean difference to the baseline with its 95%
interval by Student's t over the pairs, also for each task and for forgetting, and what was replayed.

--at REV: the side runs the code of a commit, a branch or a tag, in a temporary git worktree. Its runs are in
<runs-dir>/<commit>/, because a run's name does not know the code. It shares the others' teachers only if no file that
could change one differs from the working tree: any but documents, tests, lamol.py and what training does not import.
"""

import argparse
import io
import json
import math
import shlex
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from statistics import mean
from typing import NamedTuple, NoReturn

from lab.errors import DataError, Parser, RunError, command
from lab.paper.numbers import differences_of, final, measures, paired
from lab.paper.runs import ROOT, RunKey, check_same_data, finished, name_for, replayed, run_all
from lab.paper.tables import csv_of
from lab.run.options import Options, parse, task_names
from lab.run.parser import build_parser
from lab.run.setup import git, is_checkout

OWN = ("--seed", "--resume", "--no-resume", "--continue")  # options that the comparison sets itself
SHARED = ("--order", "--runs-dir", "--teachers")  # and those that all sides share
# Files that change no teacher.
NO_TEACHER = ("*.md", "tests", "lamol.py", "lab/compare.py", "lab/paper", "lab/check", "lab/show", "lab/results")
# Prints the names of runs by the code of another checkout, which may know other options.
NAMES = """import json, sys
sys.path[0] = sys.argv[1]
from lab.paper.runs import name_for
print(json.dumps([name_for(argv) for argv in json.load(sys.stdin)]))"""


class Side(NamedTuple):
    """A set of options, for the train.py in `root`. runs: (order, seed) -> the run's directory, all of its options."""

    text: str
    root: Path
    runs: dict[tuple[str, int], tuple[Path, list[str]]]

    def finished(self) -> dict[tuple[str, int], Path]:
        return {pair: run for pair, (run, _) in self.runs.items() if finished(run)}


# ---------------------------------------------------------------------- the command line


def usage(message: str) -> NoReturn:
    """Exit with 2 and one line."""
    print(f"error: {message.strip()}", file=sys.stderr)
    sys.exit(2)


def seeds(text: str) -> list[int]:
    return list(dict.fromkeys(map(int, text.split(","))))


def parse_arguments(argv: list[str]):
    """The sides as typed; the comparison's own options, with `orders` {tasks: --order} and the folders `runs_dir` and
    `teachers`; the options of all runs. Exits with 2 and one line for bad usage."""
    parser = Parser(
        usage='python -m lab.compare "SIDE" "SIDE" ... --seeds 0,1,2 [options of all runs]',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=seeds, required=True, help="comma-separated; each side has a run for each")
    parser.add_argument("--order", action="append", help="tasks, as of train.py; may be repeated")
    parser.add_argument("--jobs", type=int, default=1, help="how many runs are made at once (default %(default)s)")
    parser.add_argument("--csv", action="store_true", help="print means and differences as CSV")
    at = next((i for i, word in enumerate(argv) if word.split("=")[0] == "--seeds"), 0)
    o, shared = parser.parse_known_args(argv[at:])
    if at < 2:
        parser.error("before --seeds two sides are expected, each the options of train.py in quotes")
    if o.jobs < 1:
        parser.error(f"--jobs {o.jobs}: must be a number of at least 1")
    if own := next((word for word in shared if word.split("=")[0] in OWN), None):
        parser.error(f"{own}: a comparison sets it itself")
    given = build_parser(Options).parse_args(shared)  # what is wrong here is no side's fault
    folders = parse(["--runs-dir", given.runs_dir, *(["--teachers", given.teachers] if given.teachers else [])])
    o.runs_dir, o.teachers = Path(folders.runs_dir).expanduser(), folders.teachers
    try:
        orders = dict.fromkeys(o.order or [Options.order])
        o.orders = {",".join(task_names(order)): order for order in orders}
        if len(o.orders) < len(orders):
            raise ValueError("--order: the tasks of two orders have the same names")
    except ValueError as e:
        parser.error(str(e))
    return [side.strip() for side in argv[:at]], o, shared


def prepare(text: str, o, shared: list[str], stack: ExitStack) -> Side:
    """A side's code and runs. Exits with 2 and one line that names the side if its options are wrong."""
    parser = Parser(add_help=False)
    parser.error = lambda message: usage(f"side '{text}': {message}")
    parser.add_argument("--at")
    try:
        side, words = parser.parse_known_args(shlex.split(text))
    except ValueError as e:
        parser.error(str(e))
    if {"-h", "--help"} & set(words):
        parser.error("python train.py --help lists the options of a side")
    if own := next((word for word in words if word.split("=")[0] in OWN + SHARED), None):
        parser.error(f"{own} is the same for all sides (--seeds, and the options after it)")
    root, runs_dir, folders, shown = ROOT, o.runs_dir, [], text
    if side.at is not None:
        commit = commit_of(side.at, parser.error)
        root, runs_dir = stack.enter_context(worktree(commit, o.runs_dir)), o.runs_dir / commit
        teachers = o.teachers if same_teachers(commit) else str(runs_dir / "teachers")
        folders, shown = ["--runs-dir", str(runs_dir), "--teachers", teachers], f"{text} ({commit})"
    pairs = {(tasks, seed): order for tasks, order in o.orders.items() for seed in o.seeds}
    argvs = [["--order", order, *shared, *words, "--seed", str(seed), *folders] for (_, seed), order in pairs.items()]
    names = names_by(root, argvs, parser.error)
    return Side(shown, root, {pair: (runs_dir / name, argv) for pair, name, argv in zip(pairs, names, argvs)})


def names_by(root: Path, argvs: list[list[str]], error) -> list[str]:
    """The names that a checkout gives to runs."""
    if root != ROOT:
        command = [sys.executable, "-c", NAMES, str(root)]
        done = subprocess.run(command, input=json.dumps(argvs), capture_output=True, text=True)
        if done.returncode:
            error((done.stderr.splitlines() or ["its code fails"])[-1].removeprefix("error: "))
        return json.loads(done.stdout)
    try:
        with redirect_stderr(io.StringIO()) as said:
            return [name_for(argv) for argv in argvs]
    except SystemExit:
        error(said.getvalue().removeprefix("error: "))


# ---------------------------------------------------------------------- the code of another commit


def commit_of(revision: str, error) -> str:
    """The first 12 digits of a commit's hash."""
    if not is_checkout(ROOT):
        error(f"--at needs git, and {ROOT} must be a git checkout")
    found = git(ROOT, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if found.returncode:
        error(f"--at {revision}: git knows no such commit, branch or tag")
    return found.stdout[:12]


@contextmanager
def worktree(commit: str, runs_dir: Path):
    """A temporary checkout of a commit. Raises RunError if git can't make it."""
    runs_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{commit}.", dir=runs_dir.resolve()) as folder:
        try:
            done = git(ROOT, "worktree", "add", "--detach", folder, commit)
            if done.returncode:
                raise RunError(f"{folder}: no git worktree can be made ({done.stderr.strip().splitlines()[-1]})")
            yield Path(folder)
        finally:
            git(ROOT, "worktree", "remove", "--force", folder)


def same_teachers(commit: str) -> bool:
    """Do the working tree, with its edits, and a commit train the same teachers? In doubt not."""
    return git(ROOT, "diff", "--quiet", commit, "--", ".", *(f":!{path}" for path in NO_TEACHER)).returncode == 0


# ---------------------------------------------------------------------- running and comparing


def run_missing(sides: list[Side], jobs: int) -> list[RunError]:
    """Run what has not finished. Returns the errors of runs that failed."""
    by_root, failed = {}, []
    for side in sides:
        by_root.setdefault(side.root, {}).update(side.runs.values())
    for root, runs in by_root.items():
        try:
            with redirect_stdout(sys.stderr):
                run_all({run.name: argv for run, argv in runs.items()}, next(iter(runs)).parent, None, jobs, root)
        except RunError as e:
            failed.append(e)
    return failed


def check_data(sides: list[Side]) -> None:
    """Raises DataError unless a task has the same data in all runs that have finished."""
    check_same_data({RunKey(o, side.text, seed): run for side in sides for (o, seed), run in side.finished().items()})


def result(run: Path) -> dict[str, float]:
    """A run's average, its score on each task in the end, and its forgetting."""
    scores = final(run)
    return {"average": scores.pop("avg"), **scores, **measures(run)}


def compare(base: dict, other: dict) -> list[tuple]:
    """{pair: result} of two sides -> for each measure that both have: its name, both means, the mean difference and its
    95% interval, the number of pairs. Raises DataError if a pair lacks one of its runs."""
    rows = []
    for measure in dict.fromkeys(name for side in (base, other) for one in side.values() for name in one):
        values = [{pair: one[measure] for pair, one in side.items() if measure in one} for side in (base, other)]
        if measure == "average" or all(values):  # some methods have no forgetting
            differences = differences_of(*values)
            rows.append((measure, *(mean(x.values()) for x in values), *paired(differences), len(differences)))
    return rows


# ---------------------------------------------------------------------- what is printed


def show(sides: list[Side], as_csv: bool) -> None:
    """Print the average of each run, the paired differences to the first side, and what was replayed."""
    results = [{pair: result(run) for pair, run in side.finished().items()} for side in sides]
    letters, compared = [chr(ord("A") + i) for i in range(len(sides))], {}
    for letter, other in zip(letters[1:], results[1:]):
        try:
            compared[letter] = compare(results[0], other)
        except DataError as e:
            print(f"no mean difference of {letter} and A is shown: {e}", file=sys.stderr)
    legend = [f"{letter}: {side.text}" for letter, side in zip(letters, sides)]
    replay = [line for letter, side in zip(letters, sides) for line in replay_lines(letter, side.finished())]
    if as_csv:
        head = ("side", "measure", "mean_of_A", "mean", "difference", "low", "high", "pairs")
        print(csv_of([head, *((letter, *row) for letter, rows in compared.items() for row in rows)]))
        print("\n".join([*legend, *replay]), file=sys.stderr)
        return
    tables = [runs_table(letters, results, sides[0].runs), *(differences_table(*item) for item in compared.items())]
    print("\n\n".join("\n".join(lines) for lines in (legend, *map(aligned, tables), replay)))


def runs_table(letters: list[str], results: list[dict], pairs) -> list[tuple]:
    """A line a pair: the average of each side and its difference to the first."""
    rows = [("average", "A", *(head for x in letters[1:] for head in (x, f"{x} - A")))]
    for pair in pairs:
        base, *others = (side[pair]["average"] if pair in side else math.nan for side in results)
        shown = [f"{base:.1f}", *(text for x in others for text in (f"{x:.1f}", f"{x - base:+.1f}"))]
        rows.append((name_of(*pair), *(text.replace("+nan", "–").replace("nan", "–") for text in shown)))
    return rows


def name_of(order: str, seed: int) -> str:
    return f"{order}, seed {seed}"


def differences_table(letter: str, compared: list[tuple]) -> list[tuple]:
    """A line a measure: both means, the mean difference, and its interval by Student's t."""
    rows = [("mean", "A", letter, f"{letter} - A", "95% interval", "pairs")]
    for measure, a, b, difference, low, high, n in compared:
        interval = f"{low:+.1f} to {high:+.1f}" if n > 1 else "none of one pair"
        rows.append((measure, f"{a:.1f}", f"{b:.1f}", f"{difference:+.1f}", interval, str(n)))
    return rows


def aligned(rows: list[tuple]) -> list[str]:
    """Rows of texts with columns of one width, the first one to the left."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(f"{x:{'>' if i else '<'}{w}}" for i, (x, w) in enumerate(zip(row, widths))) for row in rows]


def replay_lines(letter: str, runs: dict[tuple[str, int], Path]) -> list[str]:
    """How much the runs of a side have replayed, why the rest was rejected, and which runs have replayed nothing."""
    total, wrong = Counter(), {}
    for pair, run in runs.items():
        stages = replayed(run)
        counts = sum(stages.values(), Counter())
        total += counts
        what = ", ".join(f"nothing was replayed in {name}" for name, n in stages.items() if not n["accepted"])
        if not counts["accepted"]:
            what = f"NOTHING WAS REPLAYED, no sample was {'accepted' if counts else 'drawn'}"
        if not stages:
            what = "what was replayed is unknown, the folders of the stages are gone"
        wrong.setdefault(what, []).append(name_of(*pair))
    wrong.pop("", None)
    where = (f"    {what}: {'every run' if len(w) == len(runs) else '; '.join(w)}" for what, w in wrong.items())
    reasons = ", ".join(f"{n} {reason}" for reason, n in total.most_common() if reason != "accepted")
    accepted = f"{total['accepted']} of {total.total()} samples accepted"
    return [f"replay of {letter}: {accepted}{f' ({reasons})' if reasons else ''}", *where]


@command(": finished runs stay; the same command goes on")
def main(argv=None) -> int:
    """The command line. Returns the exit code: 1 for runs that failed or can't be compared, 2 for bad usage."""
    texts, o, shared = parse_arguments(sys.argv[1:] if argv is None else argv)
    with ExitStack() as stack:
        sides, first = [prepare(text, o, shared, stack) for text in texts], {}
        for side in sides:
            if (same := first.setdefault(next(iter(side.runs.values()))[0], side)) is not side:
                usage(f"sides '{same.text}' and '{side.text}' are the same runs; their options must differ")
        check_data(sides)  # before hours of work
        failed = run_missing(sides, o.jobs)
    check_data(sides)
    show(sides, o.csv)
    for e in failed:
        print(f"error: {e}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader such as `head` may stop early
    sys.exit(main())
