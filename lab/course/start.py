"""The student's folder: the project without the lines that the exercises ask for, and without what quotes them."""

import ast
import re
import shutil
import subprocess
from pathlib import Path

from lab.course.exercises import EXERCISES, ROOT, lines_of, table
from lab.files import write_folder

SIX = ("model.py", "data.py", "kd.py", "lamol.py", "eval.py", "train.py")
TAKEN = (*SIX, "lab", "README.md", "LICENSE", "requirements.txt", "pyproject.toml", ".gitignore")
# the laws, patches and the benchmark of a plain version quote what is asked for; tests and records hold its numbers
LEFT_OUT = ("lab/course", "lab/hacks", "lab/HACKS.md", "lab/check", "lab/results", "lab/docs/COURSE.md")
EMPTIED = ("lab/show/kd.py", "show_cross_entropy")  # a page that writes the KL out

ASSIGNMENT = """# The assignment

Ten functions that carry the paper are yours to write: {points} points. `grep -n "exercise " *.py` finds them. The
docstring of each says what goes in and comes out (shapes, units); the formulas stand there, in README.md and in the
paper. Of README.md's two commands the one that runs is for you, once the functions are written; the tests are not here.

{table}

Read each file from its beginning: the functions around a gap show how it is used. You may import what you like (but no
`import *`), and add functions of your own to the same file. They are graded with the function that uses them. Whatever
was there before counts as it was, even if you have changed it. A file that does not parse has no points.

`python -m lab.course grade THIS_FOLDER`, run in the complete project, prints your points, and for each law that is
broken the law and the smallest input that breaks it. What you print is not shown there. Each function is graded alone:
it does not matter which of the others are written. When all are, `python train.py` runs.

Left out of this folder are the tests, lab/hacks, lab/check and recorded results, so some links lead nowhere.
"""


def start(folder: Path) -> None:
    """Write the student's folder. Raises OSError."""
    paths = project_files()  # before there is a folder, which may lie within the project

    def fill(temporary: Path) -> None:
        for path in paths:
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, temporary / path)
        for number, exercise in enumerate(EXERCISES, 1):
            cut_out(temporary / exercise.file, number, exercise)
        empty(temporary / EMPTIED[0], EMPTIED[1])
        points = sum(exercise.points for exercise in EXERCISES)
        text = ASSIGNMENT.format(points=points, table=table())
        (temporary / "ASSIGNMENT.md").write_text(text, encoding="utf-8")

    write_folder(folder, fill)


def project_files() -> list[Path]:
    """What is copied, relative to the project: of a git checkout its tracked files, else all but hidden and compiled
    ones."""
    names = []
    if (ROOT / ".git").exists() and shutil.which("git"):
        found = subprocess.run(["git", "ls-files", "-z", "--", *TAKEN], cwd=ROOT, capture_output=True, text=True)
        names = [name for name in found.stdout.split("\0") if name]
    if not names:
        lab = [path.relative_to(ROOT) for path in (ROOT / "lab").rglob("*")]
        names = [*TAKEN, *(str(path) for path in lab if not any(p[0] == "." or p == "__pycache__" for p in path.parts))]
    return [Path(name) for name in names if not name.startswith(LEFT_OUT) and (ROOT / name).is_file()]


def cut_out(path: Path, number: int, exercise) -> None:
    """Put a line that raises, and the exercise's note, in place of the lines that the student writes."""
    source = path.read_text(encoding="utf-8")
    first, last = lines_of(source, exercise)
    lines = source.splitlines()
    indent = re.match(" *", lines[last - 1])[0] if exercise.last else "    "
    stub = f'{indent}raise NotImplementedError("exercise {number}: {exercise.name}")  # write this'
    lines[first - 1 : last] = [stub, *exercise.note.splitlines()[1:]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def empty(path: Path, function: str) -> None:
    """Leave of a function its docstring."""
    lines = path.read_text(encoding="utf-8").splitlines()
    (node,) = (node for node in ast.parse("\n".join(lines)).body if getattr(node, "name", "") == function)
    del lines[node.body[0].end_lineno : node.end_lineno]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
