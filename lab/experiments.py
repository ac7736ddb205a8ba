"""The runs behind each table and figure of the paper: which orders, methods and options, and how they are run.

python -m lab.paper table4 --print-commands     one shell command a run
"""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

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
PLAIN, MEAN, DEVIATION = "not lifelong", "lifelong, mean over orders", "lifelong, standard deviation over orders"
FIGURES = {"figure3": "woz,sql,cnn"}  # figure -> its order; these runs are scored after every epoch
for _figure, _table in (("figure4", "table4"), ("figure5", "table5")):
    FIGURES[_figure] = next(block for block in PUBLISHED[_table] if "," in block)  # hardest to easiest task
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
    What was cut off goes on, unless a process is still at it. Raises RunError at the end when runs have failed; the
    others are whole."""
    runs_dir.mkdir(parents=True, exist_ok=True)
    failed = []

    def one(item):
        """One run, unless it is finished or another process is at it; what went wrong goes to `failed`."""
        name, argv = item
        if keep and (keep / name / "summary.json").exists():
            return
        if not (runs_dir / name / "summary.json").exists():
            if (runs_dir / name).is_dir():
                try:
                    held = rundir.lock(runs_dir / name)
                except RunError as e:
                    failed.append(str(e))
                    return
                held.close()
                argv = [*argv, "--resume"]
            how = "goes on where it was cut off" if (runs_dir / name).is_dir() else "starts"
            print(f"{name}: {how}; its output is in {runs_dir / name}.log", flush=True)
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
            if keep:
                rundir.write_folder(keep / name, lambda folder: copy_small_files(runs_dir / name, folder))
        except (ValueError, KeyError, TypeError) as e:
            failed.append(f"{runs_dir / name / 'summary.json'}: not a whole run ({e!r})")
            return
        print(said, flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, runs.items()))
    if failed:
        raise RunError(f"{len(failed)} of {len(runs)} runs failed: {failed[0]}")


def copy_small_files(run: Path, folder: Path) -> None:
    """What a table is backed by: options (but for this machine's paths), scores and summary, no weights and texts."""
    folder.mkdir(parents=True)
    for file in ("scores.jsonl", "summary.json"):
        shutil.copy(run / file, folder)
    config = rundir.read_json(run / "config.json")
    paths = ("data_dir", "cache_dir", "runs_dir", "teachers")
    rundir.write_json(folder / "config.json", {key: value for key, value in config.items() if key not in paths})
