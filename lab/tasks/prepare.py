"""Raw files -> `<cache-dir>/data/<task>-<key>/{train,test}.jsonl`, in the project's parts: context, question, answer.

The key is a hash of the raw files and of the version of our rules: a changed file is never mistaken for the old one.
Raw files are taken from `<data-dir>/<task's folder>/` unchanged, or downloaded into it. If `train.jsonl` and
`test.jsonl` in the interchange format (the one that is written here) are in that folder, they go before raw files and
are not subsampled.
"""

import hashlib
from pathlib import Path

from lab.errors import DataError, RunError
from lab.files import one_at_a_time, write_folder
from lab.tasks.ceiling import check_answers
from lab.tasks.fetch import SOURCES, local_files, sha256
from lab.tasks.reading import SPLITS, read_task, write_rows
from lab.tasks.table import TASKS

RULES = "2"  # part of every key: change it when the output of a reader changes


def prepare(task: str, data_dir: str | Path, cache_dir: str | Path) -> Path:
    """The folder with the task's `train.jsonl` and `test.jsonl`, made from the raw files unless it is there already.

    If the raw files hold more examples than Table 1 of the paper counts, that many are drawn with a fixed seed. Raises
    DataError."""
    data_dir, cache_dir = Path(data_dir).expanduser(), Path(cache_dir).expanduser()
    raw = data_dir / SOURCES[task][0]
    files, read = reader_of(task, raw)
    digests = {path: sha256(path) for path in files}
    print_own_files(task, raw, digests)
    key = hashlib.sha256("\n".join([RULES, *(f"{path.name} {digests[path]}" for path in files)]).encode())
    folder = cache_dir / "data" / f"{task}-{key.hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    rows = read(dict(zip(SPLITS, TASKS[task].sizes)))
    if empty := next((split for split in SPLITS if not rows.get(split)), None):
        raise DataError(f"{task}: no {empty} example in {', '.join(map(str, files))}")
    check_answers(TASKS[task].metric, rows, lambda split, i: f"{raw}, {split} example {rows[split][i]['id']}")

    def fill(temporary: Path) -> None:
        temporary.mkdir()
        for split in SPLITS:
            write_rows(temporary / f"{split}.jsonl", rows[split])

    try:
        with one_at_a_time(folder):
            if not folder.is_dir():  # another process may have made it meanwhile
                write_folder(folder, fill)
    except (OSError, RunError) as e:
        raise DataError(f"--cache-dir {cache_dir}: can't be written to ({getattr(e, 'strerror', e)})") from None
    print(f"{task}: {sizes_text(task, rows)}")
    return folder


def reader_of(task: str, raw: Path):
    """The task's files in a folder, and the function that reads them: interchange files, else the raw ones.

    WikiSQL's raw files have the same names, but tables beside them."""
    own = [] if list(raw.glob("*.tables.jsonl")) else local_files(raw, [f"{split}.jsonl" for split in SPLITS])
    if own:
        return own, lambda sizes: read_task(raw, TASKS[task].metric)
    return TASKS[task].reader(task, raw)


def print_own_files(task: str, raw: Path, digests: dict[Path, str]) -> None:
    """Name the files that are not the public ones, by their checksums."""
    known = {Path(url).name: digest for url, digest in SOURCES[task][1].items()}
    own = [path.name for path, digest in digests.items() if known.get(path.name) not in (digest, path.stat().st_size)]
    if own:
        which = "files" if own[1:] else "file"
        print(f"{task}: {', '.join(own)} in {raw}: used as found, not the known public {which}")


def sizes_text(task: str, rows: dict[str, list]) -> str:
    """The sizes of both splits beside those of Table 1."""
    ours, wanted = [len(rows[split]) for split in SPLITS], TASKS[task].sizes
    fewer = any(n < most for n, most in zip(ours, wanted))
    note = " (fewer: all that the files hold)" if fewer else ""
    return "{} / {} examples; Table 1: {} / {}{}".format(*ours, *wanted, note)
