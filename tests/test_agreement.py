"""Tables 6 and 8: a student's answers on what its teacher gets right and wrong.

python -m pytest tests/test_agreement.py"""

import pytest
from paper_runs import CLASSES, answer, at, fails, finish, rows_of, same

from lab.files import write_jsonl
from lab.paper.__main__ import main
from lab.paper.experiments import PUBLISHED
from lab.paper.numbers import GROUPS, hits
from lab.paper.runs import RunKey, arguments, copy_small_files, name_for

HALF = {task: [True, False] for task in CLASSES.split(",")}


@pytest.fixture
def pair(tmp_path):
    """pair(teacher, student) -> a runs directory of the Single QA+LM and the LAMOL run; task -> right or not."""

    def make(teacher, student, seed=0):
        for label, right in (("Single QA+LM", teacher), ("LAMOL", student)):
            folder = finish(tmp_path, RunKey(CLASSES, label, seed), same(CLASSES, 50.0))
            for m, task in enumerate(CLASSES.split(","), 1):
                answer(folder, m, {task: right.get(task, [True])} if label != "LAMOL" else right if m == 5 else {})
        return tmp_path

    return make


def test_groups_are_pooled_over_examples_not_averaged_over_tasks(pair, capsys):
    teacher = HALF | {"amazon": [True] * 8 + [False] * 4, "ag": [True] * 4}
    student = HALF | {"amazon": [True] * 4 + [False] * 7 + [True], "ag": [True] * 3 + [False]}
    runs = pair(teacher, student)
    rows = rows_of(capsys, "table6", "--runs-dir", runs, missing=True)
    assert list(GROUPS) == PUBLISHED["table6"]["columns"] == PUBLISHED["table8"]["columns"]
    assert [float(at(rows, "teacher", c)["ours"]) for c in GROUPS] == pytest.approx([100 * 15 / 22, 100, 0], abs=1e-3)
    pooled = [100 * 11 / 22, 100 * 10 / 15, 100 * 1 / 7]
    assert [float(at(rows, "LAMOL", c)["ours"]) for c in GROUPS] == pytest.approx(pooled, abs=1e-3)
    rows = rows_of(capsys, "table8", "--runs-dir", runs, missing=True)
    for block, wanted in (("amazon", [100 * 5 / 12, 50, 25]), ("yelp", [50, 100, 0])):
        assert [float(at(rows, "LAMOL", c, block)["ours"]) for c in GROUPS] == pytest.approx(wanted, abs=1e-3)
    assert at(rows, "LAMOL", GROUPS[1], "ag")["ours"] == "75.0"
    assert at(rows, "LAMOL", GROUPS[2], "ag")["ours"] == ""  # the teacher is always right: (B) has no examples


def test_an_answer_is_right_in_its_own_case_alone(tmp_path):
    lines = [
        {"task": "ag", "id": str(i), "prediction": text, "answer": "World"} for i, text in enumerate(("World", "world"))
    ]
    write_jsonl(tmp_path / "1-ag" / "predictions.jsonl", lines)
    assert list(hits(tmp_path).values()) == [True, False]


def test_agreement_of_several_seeds_is_with_the_teacher_of_the_same_seed(pair, capsys):
    turned = {task: [False, True] for task in HALF}
    pair(HALF, HALF, 0)
    runs = pair(turned, turned, 1)
    rows = rows_of(capsys, "table6", "--seeds", "0,1", "--runs-dir", runs, missing=True)
    assert [at(rows, "LAMOL", c)["ours"] for c in GROUPS] == ["50.0", "100.0", "0.0"]
    assert [at(rows, row, "accuracy")["runs"] for row in ("teacher", "LAMOL", "Word-KD")] == ["2", "4", "2"]
    assert at(rows, "Word-KD", "accuracy")["ours"] == ""


def test_predictions_that_are_missing_broken_or_of_other_examples_are_named(pair, capsys):
    runs = pair(HALF, HALF)
    folder = runs / name_for(arguments(RunKey(CLASSES, "LAMOL", 0), []))
    file = folder / "5-dbpedia" / "predictions.jsonl"
    whole = file.read_text()
    for broken in ("{", "[]\n", '{"task": "ag", "id": "x", "prediction": 3, "answer": ""}\n', None):
        file.unlink() if broken is None else file.write_text(broken)
        assert str(file) in fails(capsys, "table6", "--runs-dir", runs)
    for other in (whole.replace("ag-1", "ag-7"), "\n".join(whole.splitlines()[1:]), whole + whole.splitlines()[-1]):
        file.write_text(other)
        for what in ("table6", "table8"):
            assert "LAMOL and its teacher, seed 0: not of the same" in fails(capsys, what, "--runs-dir", runs)


def test_copies_of_the_small_files_have_no_agreement(pair, tmp_path, capsys):
    runs, kept = pair(HALF, HALF), tmp_path / "kept"
    for run in [path for path in runs.iterdir() if path.is_dir()]:
        copy_small_files(run, kept / run.name)
    elsewhere = ["--runs-dir", str(tmp_path / "other"), "--keep", str(kept)]
    assert main(["table6", *elsewhere]) == 0
    printed = capsys.readouterr()
    assert "0 of 5 runs found" in printed.err and "100.00  " not in printed.out.split("paper")[0]
    assert main(["table5", *elsewhere]) == 0 and "2 of 12 runs found" in capsys.readouterr().err
    assert main(["claims", *elsewhere]) == 0
    assert main(["table6", "--runs-dir", str(kept), "--keep", str(runs)]) == 0  # the whole run is taken
    assert "2 of 5 runs found" in capsys.readouterr().err
