"""The assignment: what a student gets, what a mistake costs, and that nothing stops the grader.

python -m pytest tests/test_course.py
"""

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from solutions import RIGHT, WRONG

from lab.course import grade as grading
from lab.course import start as starting
from lab.course.__main__ import main
from lab.course.exercises import EXERCISES, ROOT, lines_of, table
from lab.course.grade import NOT_WRITTEN, report, try_exercise

NAMED = {exercise.name: exercise for exercise in EXERCISES}
NLL, WORD_KD = NAMED["kd.nll"], NAMED["kd.word_kd"]
BODY_OF_NLL = 'return F.cross_entropy(logits, targets, reduction="none")'


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A student's folder."""
    folder = tmp_path_factory.mktemp("course") / "student"
    assert main(["start", str(folder)]) == 0
    return folder


def edited(folder: Path, exercise, old: str, new: str) -> Path:
    """A folder with the reference's file of an exercise, but for one edit."""
    source = (ROOT / exercise.file).read_text(encoding="utf-8")
    assert source.count(old) == 1
    (folder / exercise.file).write_text(source.replace(old, new), encoding="utf-8")
    return folder


def broken(exercise, folder: Path) -> list[str]:
    """The laws that a folder's function breaks, by name."""
    return [law.name for law, reason in zip(exercise.laws, try_exercise(exercise, folder)) if reason]


# ---------------------------------------------------------------------- points


@pytest.mark.parametrize("exercise", EXERCISES, ids=NAMED)
def test_the_reference_has_all_points_and_a_stub_none(exercise, started):
    assert try_exercise(exercise, ROOT) == [""] * len(exercise.laws)
    assert try_exercise(exercise, started) == [NOT_WRITTEN] * len(exercise.laws)


@pytest.mark.parametrize(
    ("name", "old", "new", "laws"), [(name, *case) for name, cases in WRONG.items() for case in cases]
)
def test_a_mistake_breaks_its_law_and_no_other(name, old, new, laws, tmp_path):
    assert sorted(broken(NAMED[name], edited(tmp_path, NAMED[name], old, new))) == sorted(laws.split())


def test_every_law_catches_a_mistake():
    caught = {(name, law) for name, cases in WRONG.items() for *_, laws in cases for law in laws.split()}
    assert caught == {(exercise.name, law.name) for exercise in EXERCISES for law in exercise.laws}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_function_in_other_words_has_all_points(name, tmp_path):
    """Its imports and helper functions come with it, wherever they stand in the file."""
    (tmp_path / NAMED[name].file).write_text(RIGHT[name], encoding="utf-8")
    assert not [reason for reason in try_exercise(NAMED[name], tmp_path) if reason]


def test_a_function_is_graded_with_the_references_functions_around_it(tmp_path):
    """A file in which all other functions are wrong."""
    (tmp_path / "lamol.py").write_text("math = 1 / 0\nimport nowhere\n" + RIGHT["lamol.top_k_filter"])
    assert broken(NAMED["lamol.top_k_filter"], tmp_path) == []
    assert len(broken(NAMED["lamol.why_rejected"], tmp_path)) == len(NAMED["lamol.why_rejected"].laws)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("data.encode_parts", "import data\ndef encode_parts(*x, **y): return data.encode_parts(*x, **y)"),
        ("kd.word_kd", "def word_kd(*x): return terms.__globals__['word_kd'](*x)"),
        ("lamol.why_rejected", "def why_rejected(*x): return 'no ANS' if parse_pseudo(*x) is None else ''"),
        ("train.lifelong", "def lifelong(*x): return METHODS['lamol'](*x)"),
    ],
)
def test_the_references_own_function_can_not_be_called(name, source, tmp_path):
    (tmp_path / NAMED[name].file).write_text(source, encoding="utf-8")
    reasons = try_exercise(NAMED[name], tmp_path)
    assert all(reasons) and "RecursionError" in reasons[0]


def test_a_byte_order_mark_and_imports_in_blocks_are_taken_and_a_star_is_named(tmp_path):
    source = "try:\n    import math as m\nexcept ImportError:\n    m = None\n"
    source += "def pseudo_per_task(n, gamma, previous):\n    return m.ceil(n * gamma) // previous if previous else 0\n"
    (tmp_path / "lamol.py").write_text(source, encoding="utf-8-sig")
    assert broken(NAMED["lamol.pseudo_per_task"], tmp_path) == []
    (tmp_path / "lamol.py").write_text("from math import *\n" + RIGHT["lamol.pseudo_per_task"])
    assert "import *: name what is imported" in try_exercise(NAMED["lamol.pseudo_per_task"], tmp_path)[0]


def test_a_hint_names_the_law_and_the_smallest_input_that_breaks_it(tmp_path):
    folder = edited(tmp_path, NLL, "return F.cross_entropy", "return 2 * F.cross_entropy")
    assert report(NLL, try_exercise(NLL, folder)).splitlines() == [
        "kd.nll                    3 of  6   hard targets",
        "  - The loss of a token is -log P(label), with the natural logarithm (nats). (3 points)",
        "      logits=[[0.0, 0.0]], targets=[0]",
        "      expected [0.6931], got [1.386]",
    ]
    edited(folder, NLL, BODY_OF_NLL, "return 1 / 0")
    assert "ZeroDivisionError: division by zero (kd.py, line 30)" in report(NLL, try_exercise(NLL, folder))


# ---------------------------------------------------------------------- what does not stop the grader

HOSTILE = {
    "import sys; sys.exit(0)": "SystemExit: 0",
    "import os; os._exit(0)": "ended with exit code 0",
    "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)": "ended by SIGSEGV",
    "return nll(logits, targets)": "RecursionError",
    "return bytearray(3 * 2**30)": "MemoryError",
    "raise KeyboardInterrupt": "KeyboardInterrupt",
    "print(input())": "EOFError",
    "import os; os.closerange(3, 256)": "before the law was tried",
    "import time; time.sleep(1000)": "no answer after 2 seconds",
    "import os, time; os.fork() or time.sleep(1000)": "got [None]",
    "while True: pass": "no answer after 2 seconds",
}


@pytest.mark.parametrize("body", HOSTILE)
def test_what_a_function_does_ends_with_its_exercise(body, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(grading, "SECONDS", 2)
    folder, began = edited(tmp_path, NLL, BODY_OF_NLL, body), time.monotonic()
    reasons = try_exercise(NLL, folder)
    assert all(reasons) and HOSTILE[body] in reasons[0]
    assert broken(WORD_KD, folder) == [] and time.monotonic() - began < 30
    assert capfd.readouterr() == ("", "")


def test_what_a_function_prints_and_changes_counts_for_nothing(tmp_path, capfd):
    """Not even what it writes into the grader's own pipe, in the form of an answer."""
    change = "import os, builtins, torch; print('100 of 100'); builtins.len = torch.cat = None"
    write = "for fd in range(3, 64):\n        try: os.write(fd, b'x 0 \\n\\xff 1 \\n')\n        except OSError: pass"
    folder = edited(tmp_path, NLL, BODY_OF_NLL, f"{change}\n    {write}\n    return logits")
    assert len(broken(NLL, folder)) == len(NLL.laws) and broken(WORD_KD, folder) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (b"def nll(logits, targets):\n  return (", "SyntaxError: '(' was never closed (kd.py, line 2)"),
        (b"\xff\xfe", "UnicodeDecodeError"),
        (b"\0", "null bytes"),
        (b"x = " + b"(" * 10**5, "SyntaxError"),
        (b"# nothing", "LookupError: kd.py has no function nll"),
        (b"nll = 3", "TypeError: 'int' object is not callable"),
        (None, "kd.py is missing"),
    ],
)
def test_one_line_says_what_is_wrong_with_a_file(source, said, tmp_path):
    if source is not None:
        (tmp_path / "kd.py").write_bytes(source)
    lines = report(NLL, try_exercise(NLL, tmp_path)).splitlines()
    assert lines[0].startswith("kd.nll                    0 of  6") and said in lines[-1]
    assert all(line.isprintable() for line in lines)


# ---------------------------------------------------------------------- the student's folder


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_nothing_in_the_folder_gives_an_answer_away(started):
    texts = {name: (started / name).read_text(errors="replace") for name in files(started)}
    for exercise in EXERCISES:
        source = (ROOT / exercise.file).read_text(encoding="utf-8")
        first, last = lines_of(source, exercise)
        for line in source.splitlines()[first - 1 : last]:
            if len(line.strip()) > 25:
                assert not [name for name, text in texts.items() if line.strip() in text], line
    for name in texts:
        assert not name.startswith(("tests", ".git/", "lab/course", "lab/hacks", "lab/check")), name
    assert {name for name, text in texts.items() if "log_softmax(" in text} == {"lab/fast/decode.py"}  # beam search
    assert not [name for name, text in texts.items() if "kl_div(" in text or "F.cross_entropy(" in text]


def test_the_docstrings_and_the_functions_around_stay(started):
    for exercise in EXERCISES:
        ours, theirs = ((folder / exercise.file).read_text(encoding="utf-8") for folder in (ROOT, started))
        assert theirs.count('"""') == ours.count('"""') and theirs.count("\ndef ") == ours.count("\ndef ")
    shuffled = 'if updates == "shuffled":\n        order = torch.randperm'
    assert shuffled in (started / "data.py").read_text(encoding="utf-8")
    assert table() in (started / "ASSIGNMENT.md").read_text(encoding="utf-8")


def test_tracked_files_are_copied_or_without_git_all_that_belong_to_the_project(started, tmp_path, monkeypatch):
    project = tmp_path / "project"
    for name in starting.project_files():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    subprocess.run(["git", "add", "."], cwd=project, check=True)
    monkeypatch.setattr(starting, "ROOT", project)
    for name in ("lab/notes.py", "runs/log.jsonl", ".venv/lib/x.py", "solution/kd.py", "lab/__pycache__/x.pyc"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("mine")
    assert main(["start", str(tmp_path / "tracked")]) == 0
    shutil.rmtree(project / ".git")
    (project / "lab" / "notes.py").unlink()
    assert main(["start", str(tmp_path / "all")]) == 0
    assert files(tmp_path / "tracked") == files(tmp_path / "all") == files(started)


def test_a_folder_that_is_not_empty_stays_as_it_is(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kd.py").write_text("mine")
    for path in (tmp_path / "mine", tmp_path / "mine" / "kd.py"):
        with pytest.raises(SystemExit) as e:
            main(["start", str(path)])
        printed = capsys.readouterr().err
        assert e.value.code == 2 and printed.startswith("error: ") and printed.count("\n") == 1
    assert files(tmp_path / "mine") == {"kd.py"} and (tmp_path / "mine" / "kd.py").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert main(["start", str(tmp_path / "empty")]) == 0 and "kd.py" in files(tmp_path / "empty")


@pytest.mark.parametrize("argv", [[], ["grade"], ["mark", "x"], ["grade", "/nowhere"], ["start", "~no-such-user/x"]])
def test_bad_usage_is_one_line_and_exit_code_2(argv, capsys):
    with pytest.raises(SystemExit) as e:
        main(argv)
    printed = capsys.readouterr().err
    assert e.value.code == 2 and printed.startswith("error: ") and printed.count("\n") == 1


# ---------------------------------------------------------------------- a whole assignment


def test_a_student_solves_two_functions_and_breaks_one(started, tmp_path, capsys):
    folder = shutil.copytree(started, tmp_path / "student")
    (folder / "kd.py").write_text(RIGHT["kd.nll"] + RIGHT["kd.word_kd"].replace("t * t", "t").replace("(t)", "t"))
    (folder / "lamol.py").write_text(RIGHT["lamol.why_rejected"])
    (folder / "lab" / "course").mkdir()
    (folder / "lab" / "course" / "law.py").write_text("raise SystemExit")  # laws of his own have no effect
    (folder / "torch.py").write_text("raise SystemExit")
    assert main(["grade", str(folder)]) == 0
    printed = capsys.readouterr().out
    points = NLL.points + NAMED["lamol.why_rejected"].points + WORD_KD.points - 2
    assert printed.splitlines()[-1] == f"{points} of 100 points: {folder}"
    assert "expected a factor of 4.0, got 2.0" in printed and printed.count("\n  - ") == 1


def test_the_lecturers_page_has_the_table_a_hint_and_laws_that_there_are(tmp_path):
    page = (ROOT / "lab" / "docs" / "COURSE.md").read_text(encoding="utf-8")
    assert table() in page and sum(exercise.points for exercise in EXERCISES) == 100
    folder = edited(tmp_path, WORD_KD, "return temperature**2 *", "return temperature *")
    assert report(WORD_KD, try_exercise(WORD_KD, folder)) in page
    mistakes = page.split("## What students usually get wrong")[1]
    laws = {law.name for exercise in EXERCISES for law in exercise.laws}
    named = re.findall(r"`(\w+_\w+_\w+|\w+_squared)`", mistakes)
    assert len(named) >= 15 and set(named) <= laws
