"""A student's folder -> points. Each exercise is tried in a process of its own, and alone.

Of the student's file only the function itself is taken, with the new functions, constants and imports that it uses. All
around it is this project's. So one wrong function fails no other, and no file of the folder is imported.

A process that hangs, dies or takes too much memory has no points for the laws that are left. The other exercises have.
"""

import ast
import gc
import os
import resource
import secrets
import select
import signal
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import torch

import data
import eval
import kd
import lamol
import train
from lab.course.exercises import EXERCISES, Exercise
from lab.course.law import Broken, describe

REFERENCE = {f"{module.__name__}.py": module for module in (data, kd, lamol, eval, train)}
SECONDS = 10  # for all laws of one exercise; the reference takes less than one
MEMORY = 2 * 2**30  # bytes, besides those that the grader has
ANSWER = 2**20  # bytes that a process may answer
NOT_WRITTEN, NOT_TRIED = "not written yet", "not tried"


def grade(folder: Path) -> None:
    """Grade a folder and print the report, an exercise at a time."""
    torch.set_num_threads(1)  # more threads would not survive a fork
    points = 0
    for exercise in EXERCISES:
        reasons = try_exercise(exercise, folder)
        points += points_of(exercise, reasons)
        print(report(exercise, reasons), flush=True)
    print(f"\n{points} of {sum(exercise.points for exercise in EXERCISES)} points: {folder}")


def points_of(exercise: Exercise, reasons: list[str]) -> int:
    return sum(law.points for law, reason in zip(exercise.laws, reasons) if not reason)


def report(exercise: Exercise, reasons: list[str]) -> str:
    """The points of an exercise, and each law that is broken with its reason; one that all laws share only once."""
    lines = [f"{exercise.name:<24}{points_of(exercise, reasons):>3} of {exercise.points:>2}   {exercise.subject}"]
    if len(set(reasons)) == 1:
        return "\n".join([*lines, *(f"    {reason}" for reason in set(reasons) if reason)])
    for law, reason in zip(exercise.laws, reasons):
        if reason and reason != NOT_TRIED:
            words = f"  - {law.words} ({law.points} point{'s' * (law.points > 1)})"
            lines += [textwrap.fill(words, 110, subsequent_indent="    "), *(f"      {x}" for x in reason.split("\t"))]
    if NOT_TRIED in reasons:
        lines.append(f"      laws after that which were not tried: {reasons.count(NOT_TRIED)}")
    return "\n".join(lines)


# ---------------------------------------------------------------------- one exercise, in a process of its own


def try_exercise(exercise: Exercise, folder: Path) -> list[str]:
    """For each law of an exercise the reason why it gives no points, "" where it holds."""
    receive, send = os.pipe()
    secret = secrets.token_hex()  # what is printed into the pipe by accident has none
    if not (child := os.fork()):
        os.close(receive)
        in_the_child(exercise, folder, send, secret)
    os.close(send)
    try:
        answer, ended = read_until(receive, time.monotonic() + SECONDS)
    finally:
        os.close(receive)
        for kill in (os.killpg, os.kill):  # the child's own children, too
            with suppress(ProcessLookupError, PermissionError):
                kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    words = [line.split(" ", 2) for line in answer.decode(errors="replace").split("\n")]
    found = {int(number): reason for said, number, reason in (w for w in words if len(w) == 3) if said == secret}
    reasons = [found.get(i, NOT_TRIED) for i in range(len(exercise.laws))]
    if NOT_TRIED in reasons:
        how = f"it was ended by {signal.Signals(-status).name}" if status < 0 else f"it ended with exit code {status}"
        how = f"{how} before the law was tried" if ended else f"no answer after {SECONDS} seconds"
        reasons[reasons.index(NOT_TRIED)] = how
    return reasons


def read_until(fd: int, deadline: float) -> tuple[bytes, bool]:
    """What is written into a pipe until then, and whether its writer has closed it."""
    found = b""
    while len(found) < ANSWER and select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
        if not (part := os.read(fd, 65536)):
            return found, True
        found += part
    return found, False


def in_the_child(exercise: Exercise, folder: Path, send: int, secret: str) -> None:
    """Try the laws one after another, and write a line for each: the secret, its number, the reason. Never returns."""
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for old, new in ((null, 0), (null, 1), (null, 2), (send, 3)):
            os.dup2(old, new)
        os.closerange(4, 4096)  # all that the grader has open
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
        limit_memory()
        function = broken = None
        try:
            function = own_function(exercise, folder)
        except BaseException as e:
            broken = describe(e)
        for i, law in enumerate(exercise.laws):
            os.write(3, f"{secret} {i} {broken or reason_of(law, function)}\n".encode(errors="replace"))
    finally:
        os._exit(0)


def reason_of(law, function) -> str:
    """Why a law gives no points, "" where it holds."""
    try:
        law.check(function)
        return ""
    except Broken as e:
        return str(e)
    except BaseException as e:  # sys.exit, too
        return NOT_WRITTEN if str(e).startswith("exercise ") else describe(e)


def limit_memory() -> None:
    """Let this process have no more than MEMORY besides what it has. Linux says how much that is."""
    with suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


# ---------------------------------------------------------------------- the student's function, in the reference


def own_function(exercise: Exercise, folder: Path):
    """The student's function, with the names of the reference's file around it. Raises whatever its lines raise."""
    if not (folder / exercise.file).is_file():
        raise LookupError(f"{exercise.file} is missing")
    tree = ast.parse((folder / exercise.file).read_text(encoding="utf-8-sig"), exercise.file)
    reference = getattr(REFERENCE[exercise.file], exercise.function)
    names = dict(vars(REFERENCE[exercise.file]))
    del names[exercise.function]
    own = [node for node in tree.body if binds(node) - names.keys()]
    wanted, used = {exercise.function}, []
    while found := [node for node in own if node not in used and binds(node) & wanted]:
        used += found
        wanted |= {part.id for node in found for part in ast.walk(node) if isinstance(part, ast.Name)}
    body = [node for node in own if node in used]  # in their order
    exec(compile(ast.Module(body, []), exercise.file, "exec"), names)
    if exercise.function not in names:
        raise LookupError(f"{exercise.file} has no function {exercise.function}")
    for place in gc.get_referrers(reference):  # what calls the reference's function now calls this one, not the answer
        if isinstance(place, dict):
            place |= {name: names[exercise.function] for name, value in place.items() if value is reference}
    return names[exercise.function]


def binds(node: ast.stmt) -> set[str]:
    """The names that a statement at the top of a file defines. Raises ImportError for `import *`."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = {alias.asname or alias.name.split(".")[0] for alias in node.names}
        if "*" in names:
            raise ImportError("import *: name what is imported")
        return names
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
    if isinstance(node, ast.If | ast.Try | ast.With | ast.ExceptHandler):
        return set().union(*(binds(part) for part in ast.iter_child_nodes(node)))
    return set()
