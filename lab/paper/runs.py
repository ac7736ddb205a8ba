"""The runs of the paper: which options of train.py each has, how they are run, where they are found again."""

import os
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from lab.errors import DataError, LabError, RunError
from lab.files import read_json, read_jsonl, write_folder, write_json
from lab.run.options import parse, run_name, task_names
from lab.run.rundir import acquire, check_writable, file_lock, read_run, release

ROOT = Path(__file__).parents[2]
METHODS = {  # label -> options of train.py, a colour safe for colour-blind readers, a line style for grey print
    "finetune": ("--method finetune", "#000000", ":"),
    "LAMOL": ("--kd none", "#E69F00", "-"),
    "Word-KD": ("--kd word", "#0072B2", "--"),
    "Seq-KD_soft": ("--kd seqsoft", "#CC79A7", (0, (5, 1, 1, 1, 1, 1))),
    "Seq-KD": ("--kd seq", "#009E73", "-."),
}
TEACHERS = "Single QA+LM"  # its models are the teachers
LONG = "long"  # stands for three times the epochs
NOT_LIFELONG = {  # label -> options of train.py
    "Single QA": "--method single --qa-only",
    TEACHERS: "--method single",
    "Multi same QA": "--method multitask --qa-only",
    "Multi same QA+LM": "--method multitask",
    "Multi long QA": f"--method multitask --qa-only {LONG}",
    "Multi long QA+LM": f"--method multitask {LONG}",
    "Multi long QA+LM + Seq-KD": f"--method multitask --kd seq {LONG}",
    "Multi QA": "--method multitask --qa-only",  # Tables 4 and 5 don't state the epochs
    "Multi QA+LM": "--method multitask",
}
FURTHER = {  # not in the paper; LAMOL with the loss `joint` and Word-KD with `added` are the authors'
    "Word-KD, annealed": "--kd word --temperature 4 --last-temperature 1",
    "Word-KD without replay": "--kd word --gamma 0",
    "LAMOL, added": "--kd none --replay-loss added",
    "LAMOL, alternate": "--kd none --updates alternate",
    "Word-KD, joint": "--kd word --replay-loss joint",
    "Word-KD, alternate": "--kd word --updates alternate",
    "single": "--method single",
    "multitask": "--method multitask",
}
UNKNOWN = "None"  # the hash of data that a run did not record
FIGURES = {  # figure -> its order, hardest to easiest task in 4 and 5
    "figure3": "woz,sql,cnn",
    "figure4": "e2e,rnnlg.rest,rnnlg.hotel,rnnlg.tv,rnnlg.laptop",
    "figure5": "amazon,yelp,yahoo,ag,dbpedia",
}


class RunKey(NamedTuple):
    """A run of the paper: its order, its method by the label of a table's row, its seed."""

    order: str
    label: str
    seed: int


# ---------------------------------------------------------------------- options and names


def arguments(key: RunKey, extra: list[str]) -> list[str]:
    """A run's options for train.py. extra: what the user gives to all runs; the run's own options take precedence."""
    own = (METHODS[key.label][0] if key.label in METHODS else (NOT_LIFELONG | FURTHER)[key.label]).split()
    if own[-1] == LONG:
        own[-1:] = ["--epochs", str(3 * parse(["--order", key.order, *extra]).epochs)]
    if "toy" not in key.order:  # nano's default is to score after every epoch, which is for toy tasks
        own.append("--eval-every-epoch" if is_drawn(key) else "--no-eval-every-epoch")
    return ["--order", key.order, *extra, *own, "--seed", str(key.seed)]


def is_drawn(key: RunKey) -> bool:
    """Is this run a line of Figure 3, 4 or 5? Finetuning is one of Figure 3 alone."""
    finetune = key.label == "finetune" and key.order != FIGURES["figure3"]
    return key.order in FIGURES.values() and key.label in METHODS and not finetune


def name_for(argv: list[str]) -> str:
    """The name of the directory that `train.py` makes with these options."""
    o = parse(argv)
    return run_name(o, task_names(o.order))


# ---------------------------------------------------------------------- running


def finished(run: Path) -> bool:
    return (run / "summary.json").exists()


def run_all(
    runs: dict[str, list[str]], runs_dir: Path, keep: Path | None = None, jobs: int = 1, root: Path = ROOT
) -> None:
    """Run what has not finished, `jobs` at once, each in a process of its own, and copy its small files into `keep`.

    runs: directory name -> options of train.py. A run has finished if its summary is in runs_dir or in `keep`. One that
    was cut off is resumed. root: the checkout whose train.py runs. A failed run does not stop the others; RunError at
    the end says how many have failed."""
    check_writable("--runs-dir", str(runs_dir))
    failed = []

    def one(name: str) -> None:
        run = runs_dir / name
        if keep and finished(keep / name):
            return
        try:
            if not finished(run):
                start(run, runs[name], max(1, (os.cpu_count() or 1) // jobs), root)
            summary = read_run(run)
            print(f"{name}: {summary['average']:.1f} in {summary['wall_time_s']:.0f} s", flush=True)
            if keep:
                write_folder(keep / name, lambda folder: copy_small_files(run, folder))
        except LabError as e:
            failed.append(str(e))
        except (OSError, KeyError, TypeError) as e:
            failed.append(f"{run}: not the files of a finished run ({type(e).__name__}: {e})")
        else:
            return
        print(failed[-1], flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, runs))
    if failed:
        raise RunError(f"{len(failed)} of {len(runs)} runs failed: {failed[0]}")


def start(run: Path, argv: list[str], threads: int, root: Path = ROOT) -> None:
    """Run a checkout's train.py until it ends, with its output in a file beside the directory.

    Raises RunError if it fails, or if another process is making this run."""
    if run.is_dir():
        lock = file_lock(run / "lock")
        if not acquire(lock, wait=False):
            raise RunError(f"{run}: another process is making this run")
        release(lock)
        argv = [*argv, "--resume"]
    log = f"its output is in {run}.log"
    print(f"{run.name}: {'is resumed' if run.is_dir() else 'starts'}; {log}", flush=True)
    environment = {"OMP_NUM_THREADS": str(threads)} | os.environ
    with open(f"{run}.log", "w", encoding="utf-8") as out:
        command = [sys.executable, str(root / "train.py"), *argv]
        code = subprocess.run(command, stdout=out, stderr=out, env=environment).returncode
    if code:
        raise RunError(f"{run.name} failed with {code}; {log}")


def copy_small_files(run: Path, folder: Path) -> None:
    """What stands behind a table: options (without this machine's paths), scores, summary, counts of what was replayed.
    No weights and texts."""
    folder.mkdir(parents=True)
    for file in ("scores.jsonl", "summary.json"):
        shutil.copy(run / file, folder)
    config = read_json(run / "config.json", dict)
    paths = ("data_dir", "cache_dir", "runs_dir", "teachers")
    write_json(folder / "config.json", {key: value for key, value in config.items() if key not in paths})
    write_json(folder / "replayed.json", replayed(run))


# ---------------------------------------------------------------------- collecting


def found(keys, folders: list[Path], extra: list[str], predictions=False) -> dict[RunKey, Path]:
    """The directories of the runs that have finished, each in the first of the folders that has it.

    predictions: only runs that still have theirs, which --keep does not copy."""
    there = {}
    for key in keys:
        name = name_for(arguments(key, extra))
        paths = [folder / name for folder in folders if finished(folder / name)]
        if predictions:
            paths = [path for path in paths if stages_of(path)]
        if paths:
            there[key] = paths[0]
    return there


def stages_of(run: Path) -> list[Path]:
    """The folders of a run's stages, in order."""
    folders = [folder for folder in run.glob("*-*") if folder.name.split("-")[0].isdecimal()]
    return sorted(folders, key=lambda folder: int(folder.name.split("-")[0]))


def replayed(run: Path) -> dict[str, Counter]:
    """The folder of each stage after the first -> its samples for replay, generated or real: how many are "accepted",
    and how many are rejected, by reason.

    Nothing for a copy that lacks the counts. Raises RunError for a file that can't be read."""
    if (run / "replayed.json").exists():
        kept = read_json(run / "replayed.json", dict)
        if not all(isinstance(counts, dict) for counts in kept.values()):
            raise RunError(f"{run / 'replayed.json'}: has no counts by reason; copy the run again")
        return {stage: Counter(counts) for stage, counts in kept.items()}
    counts = {}
    for folder in stages_of(run)[1:]:
        file = folder / "pseudo.jsonl"
        lines = read_jsonl(file, rejected=str) if file.exists() else []
        counts[folder.name] = Counter(line["rejected"] or "accepted" for line in lines)
    return counts


def check_same_data(runs: dict[RunKey, Path]) -> list[Path]:
    """Raises DataError unless a task has the same data in all runs, by the hashes in their config.json.

    Returns the runs, of an early version, that have recorded no hashes. They can't be compared with each other, and
    must not be mixed with others."""
    by_data, unrecorded = {}, []  # by_data: task -> {hash: its runs}
    for key, run in runs.items():
        path = run / "config.json"
        data = read_json(path, dict).get("data") if path.exists() else None
        if not isinstance(data, dict):
            data = {}
            unrecorded.append(run)
        for task in key.order.split(","):
            by_data.setdefault(task, {}).setdefault(str(data.get(task)), []).append(run)
    for task, groups in by_data.items():
        if len(groups) > 1:
            few, *_, many = sorted(groups.values(), key=len)
            which = f"task {task} has other data in {names_of(few)} than in {names_of(many)}"
            if UNKNOWN in groups:
                few, many = groups.pop(UNKNOWN), next(iter(groups.values()))
                which = f"task {task} has data in {names_of(many)}, but {names_of(few)} did not record which"
            raise DataError(f"{which}; one table can't show both: delete the outdated runs and make them anew")
    return unrecorded


def names_of(runs: list[Path]) -> str:
    """At most three of them by name."""
    more = f" and {len(runs) - 3} more" if len(runs) > 3 else ""
    return ", ".join(map(str, runs[:3])) + more
