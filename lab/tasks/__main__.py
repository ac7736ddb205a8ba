"""Prepare the data of some tasks, or of all thirteen.

`train.py` does it by itself; this command does it ahead of time.

    python -m lab.tasks woz e2e ag --data-dir ~/raw     download what is missing there, and prepare these tasks
    python -m lab.tasks --from-lamol DIR                take the authors' own processed files
"""

import sys

from lab.errors import LabError, Parser, command, expand_paths
from lab.tasks.prepare import prepare
from lab.tasks.registry import is_toy
from lab.tasks.squad import from_lamol
from lab.tasks.table import TASKS


@command(": the next try goes on from there")
def main(argv=None) -> int:
    """The command line. Returns the exit code."""
    known = [task for task in TASKS if not is_toy(task)]
    parser = Parser("python -m lab.tasks", description=__doc__.split("\n")[0])
    parser.add_argument("tasks", nargs="*", metavar="task", help=f"default: all, {', '.join(known)}")
    parser.add_argument("--from-lamol", metavar="DIR", help="take the authors' processed files in DIR instead")
    parser.add_argument(
        "--data-dir", help="where raw files are, or are downloaded to; default ~/.cache/l2kd/raw, or lamol for theirs"
    )
    parser.add_argument("--cache-dir", default="~/.cache/l2kd", help="prepared JSONL goes there (default %(default)s)")
    o = parser.parse_args(argv)
    expand_paths(o, parser, "from_lamol", "data_dir", "cache_dir")
    if unknown := [task for task in o.tasks if task not in known]:
        parser.error(f"unknown task {unknown[0]!r}: known are {', '.join(known)}")
    if o.from_lamol is not None and o.tasks:
        parser.error("--from-lamol takes all tasks that its folder holds: name none")
    data_dir = o.data_dir or ("~/.cache/l2kd/raw" if o.from_lamol is None else "~/.cache/l2kd/lamol")
    if o.from_lamol is not None:
        found = from_lamol(o.from_lamol, data_dir)
        print(f"to use them: --data-dir {data_dir}, for {', '.join(found)}")
        return 0
    failed = 0
    for task in o.tasks or known:
        try:
            print(task, prepare(task, data_dir, o.cache_dir))
        except LabError as e:  # go on: the data of the other tasks may be there
            print(f"error: {e}", file=sys.stderr)
            failed += 1
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
