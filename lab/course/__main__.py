"""The assignment: the project with ten functions left to write, and their grading.

    python -m lab.course start DIR      write the student's folder, with ASSIGNMENT.md in it
    python -m lab.course grade DIR      grade it: points, and for each law that is broken the smallest input

Both run in the complete project, without a network.
"""

import argparse
import sys
from pathlib import Path

from lab.course.exercises import EXERCISES
from lab.course.grade import grade
from lab.course.start import start
from lab.errors import replace_unprintable, typed_path


def main(argv=None) -> int:
    """The command line. Returns the exit code: 0 whatever the points are, 1 if a folder can't be written."""
    replace_unprintable()
    parser = argparse.ArgumentParser("python -m lab.course", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f"error: {message} (--help lists the options)\n")  # one line
    parser.add_argument("what", choices=("start", "grade"))
    parser.add_argument("dir", metavar="DIR", help="the student's folder: a new one, or one to grade")
    o = parser.parse_args(argv)
    try:
        folder = Path(typed_path("DIR", o.dir)).resolve()
    except ValueError as e:
        parser.error(str(e))
    try:
        if o.what == "start":
            if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
                parser.error(f"{folder} is there already and not an empty folder; name a new one")
            start(folder)
            print(f"{folder}: {len(EXERCISES)} functions to write, see ASSIGNMENT.md there")
        else:
            if not any((folder / exercise.file).exists() for exercise in EXERCISES):
                parser.error(f"{folder} has none of the files to grade; name a folder that `start` has written")
            grade(folder)
        return 0
    except OSError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
