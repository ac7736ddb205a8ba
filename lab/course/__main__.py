"""The assignment: the project with ten functions left to write, and their grading.

    python -m lab.course start DIR      write the student's folder, with ASSIGNMENT.md in it
    python -m lab.course grade DIR      grade it: points, and for each law that is broken the smallest input

Both run in the complete project, without a network.
"""

import sys
from pathlib import Path

from lab.course.exercises import EXERCISES
from lab.course.grade import grade
from lab.course.start import start
from lab.errors import Parser, command, typed_path


@command()
def main(argv=None) -> None:
    """The command line. Its exit code is 0 whatever the points are, and 1 if a folder can't be written."""
    parser = Parser("python -m lab.course", description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("start", "grade"))
    parser.add_argument("dir", metavar="DIR", help="the student's folder: a new one, or one to grade")
    o = parser.parse_args(argv)
    try:
        folder = Path(typed_path("DIR", o.dir)).resolve()
    except ValueError as e:
        parser.error(str(e))
    if o.what == "start":
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            parser.error(f"{folder} is there already and not an empty folder; name a new one")
        start(folder)
        print(f"{folder}: {len(EXERCISES)} functions to write, see ASSIGNMENT.md there")
    else:
        if not any((folder / exercise.file).exists() for exercise in EXERCISES):
            parser.error(f"{folder} has none of the files to grade; name a folder that `start` has written")
        grade(folder)


if __name__ == "__main__":
    sys.exit(main())
