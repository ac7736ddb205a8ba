"""A run's directory: opened, locked, read.

runs/woz+sql+cnn-lamol-word-g0.2-s0/
    config.json                 every option as it was resolved, data, weights, versions, device
    log.jsonl                   a line each `log_every` updates: losses, gradient norm, rate, tokens/s
    scores.jsonl                a line for each stage, epoch and task
    <m>-<task>/pseudo.jsonl     the pseudo-samples, accepted or not; distil.jsonl: the teacher's answers
    <m>-<task>/predictions.jsonl
    model/                      the last student, in the Hugging Face layout
    summary.json, curves.png    when it has finished
    checkpoint/, lock           until then
"""

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from eval import table
from lab import files
from lab.errors import DataError, RunError
from lab.files import acquire, file_lock, read_json, read_jsonl, release
from lab.run.ranks import is_main_process

# ---------------------------------------------------------------------- one process at a time


@contextmanager
def one_at_a_time(path: Path):
    """Whoever makes `path`, which several runs may need, does so alone. Others wait here, then look for it again.

    Yields the seconds of waiting. Of several processes of one run, the main one alone takes the lock."""
    if not is_main_process():
        yield 0.0
        return
    if path.is_symlink():
        raise RunError(f"{path} is a link; remove it")
    with files.one_at_a_time(path) as waited:
        for p in path.parent.glob(f".{path.name}.*.*"):  # what a kill left half-written
            shutil.rmtree(p, ignore_errors=True)
        yield waited


# ---------------------------------------------------------------------- a directory to write to


def check_writable(option: str, folder: str) -> None:
    """Raises RunError, which names the option, if a folder can't be made and written to."""
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as e:
        raise RunError(f"{option} {folder}: can't be written to ({e.strerror})") from None


def open_run(runs_dir: str, name: str, resume: bool = False) -> tuple[Path, FileLock | None]:
    """The directory of a run, made if it is missing, and its lock, which the main process has.

    Raises RunError if another process has the lock, if the directory is in use without `resume`, or not writable."""
    path = Path(runs_dir).expanduser() / name
    if not is_main_process():
        return path, None
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = file_lock(path / "lock")
        if not acquire(lock, wait=False):
            raise RunError(f"{path}: another process is making this run")
        try:
            check_contents(path, resume)
        except RunError:
            release(lock)
            raise
    except OSError as e:
        raise RunError(f"--runs-dir {runs_dir}: can't write {path} ({e.strerror})") from None
    return path, lock


def check_contents(path: Path, resume: bool) -> None:
    """Delete half-written files. Raises RunError if a directory is in use without `resume`, or has a link in it."""
    used = [p for p in path.rglob("*") if p != path / "lock"]
    if used and not resume:
        raise RunError(f"{path} is used already: --resume goes on with it; or delete it, or choose another --seed")
    for p in used:  # through a link, files elsewhere would be written
        if p.is_symlink() or not (p.is_file() or p.is_dir()):
            raise RunError(f"{p} is a link or a device; a run's directory must have none; remove it")
    for p in path.glob("**/.*"):  # what a kill left half-written
        shutil.rmtree(p) if p.is_dir() else p.unlink()


# ---------------------------------------------------------------------- what a run has written


def read_scores(run: Path) -> list[dict]:
    """The lines of a run's scores.jsonl. Raises RunError if they can't be read."""
    rows = read_jsonl(run / "scores.jsonl", stage=int, epoch=int, task=str, score=int | float)
    for row in rows:
        if not (0 <= row["stage"] < 10**6 and 0 <= row["epoch"] < 10**6 and 0 <= row["score"] < 100.5):
            raise RunError(f"{run / 'scores.jsonl'}: no line of scores: {str(row)[:200]}")
    return rows


def read_run(folder: str | Path) -> dict:
    """A run's directory -> its summary. Raises DataError if it is none, or has not finished."""
    path = Path(folder) / "summary.json"
    if not path.is_file():
        raise DataError(f"{path}: not there; {str(folder)!r} is no run directory, or its run has not finished")
    try:
        summary = read_json(path, dict)
        table(summary)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise DataError(f"{path}: not a run's summary ({type(e).__name__}: {e})") from None
    return summary
