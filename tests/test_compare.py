"""`python -m lab.compare`: what is run, how runs are paired, what is printed. No model is trained.

python -m pytest tests/test_compare.py"""

import csv
import io
import math
import subprocess
from pathlib import Path

import pytest
from paper_runs import finish, same

from lab import compare
from lab.compare import main
from lab.errors import DataError
from lab.files import write_jsonl
from lab.paper.numbers import differences_of, paired, t_quantile
from lab.paper.runs import RunKey, name_for
from lab.run.options import parse

ORDER = "toy.woz,toy.sql"
LABELS = {("lamol", "none"): "LAMOL", ("lamol", "word"): "Word-KD", ("finetune", "none"): "finetune"}


def made(runs: Path, order: str, label: str, seed: int, last: dict, drawn=(2, 1), **facts) -> Path:
    """A finished run, with so many pseudo-samples accepted and rejected before its second task."""
    folder = finish(runs, RunKey(order, label, seed), last, **facts)
    tasks = order.split(",")
    (folder / f"1-{tasks[0]}").mkdir()
    lines = [{"rejected": ""}] * drawn[0] + [{"rejected": "no ANS"}] * drawn[1]
    write_jsonl(folder / f"2-{tasks[1]}" / "pseudo.jsonl", lines)
    return folder


@pytest.fixture
def started(monkeypatch):
    """The options of the runs that are started; none is trained. `started.bad` fail, by their --kd and seed."""

    class Started(list):
        bad = ()

    started, run = Started(), subprocess.run

    def fake(command, **how):
        if not command[1].endswith("train.py"):
            return run(command, **how)
        o = parse(command[2:])
        started.append(o)
        if (o.kd, o.seed) in started.bad:
            return subprocess.CompletedProcess(command, 1)
        score = 50.0 + o.seed + 10 * (o.kd == "word")
        made(Path(o.runs_dir), o.order, LABELS[o.method, o.kd], o.seed, same(o.order, score))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", fake)
    return started


def rows_of(capsys, runs, *argv) -> dict[tuple[str, str], dict]:
    """(side's letter, measure) -> the numbers of a line of CSV."""
    capsys.readouterr()
    assert main([*argv, "--csv", "--runs-dir", str(runs)]) == 0
    lines = csv.DictReader(io.StringIO(capsys.readouterr().out))
    return {(x.pop("side"), x.pop("measure")): {key: float(value) for key, value in x.items()} for x in lines}


# ---------------------------------------------------------------------- the statistics


def test_the_interval_is_student_s_t():
    mean, low, high = paired([1.0, 2.0, 3.0])
    assert mean == 2 and (low, high) == pytest.approx((2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)), abs=1e-4)
    tabled = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 29: 2.045, 30: 2.042, 120: 1.980}
    assert {df: round(t_quantile(df), 3) for df in tabled} == tabled


def test_one_pair_has_no_interval():
    assert paired([3.0]) == (3.0, -math.inf, math.inf)


def test_only_equal_sets_of_runs_are_paired():
    base, other = {(ORDER, 0): 1.0, (ORDER, 1): 5.0}, {(ORDER, 1): 7.0, (ORDER, 0): 2.0}
    assert differences_of(base, other) == [1.0, 2.0]
    for one, two in ((base, {(ORDER, 0): 2.0}), ({(ORDER, 1): 5.0}, other), (base, {(ORDER, 0): 1.0, (ORDER, 2): 7.0})):
        with pytest.raises(DataError, match="can't be paired"):
            differences_of(one, two)


# ---------------------------------------------------------------------- what is run and shown


def test_runs_are_paired_by_seed_and_order_and_found_ones_are_not_run_again(started, tmp_path, capsys):
    other = "toy.sql,toy.woz"
    made(tmp_path, ORDER, "LAMOL", 0, {"toy.woz": 10.0, "toy.sql": 90.0})
    made(tmp_path, ORDER, "Word-KD", 0, {"toy.woz": 40.0, "toy.sql": 80.0})
    made(tmp_path, other, "LAMOL", 0, {"toy.woz": 30.0, "toy.sql": 70.0})
    argv = ["--kd none", "--kd word", "--seeds", "0,1", "--order", ORDER, "--order", other]
    rows = rows_of(capsys, tmp_path, *argv)
    assert [(o.order, o.kd, o.seed) for o in started] == [
        (ORDER, "none", 1),
        (other, "none", 1),
        (ORDER, "word", 1),
        (other, "word", 0),
        (other, "word", 1),
    ]
    differences = [10.0, 10.0, 10.0, 10.0]  # of the averages: 60 - 50, 61 - 51, 60 - 50, 61 - 51
    assert rows["B", "average"]["difference"] == sum(differences) / 4 and rows["B", "average"]["pairs"] == 4
    mean, low, high = paired([30.0, 10.0, 30.0, 10.0])  # toy.woz: 40 - 10, 61 - 51, 60 - 30, 61 - 51
    woz = rows["B", "toy.woz"]
    assert (woz["difference"], woz["low"], woz["high"]) == (mean, pytest.approx(low), pytest.approx(high))
    assert (woz["mean_of_A"], woz["mean"]) == (35.5, 55.5)
    assert {measure for _, measure in rows} == {"average", "toy.woz", "toy.sql", "forgetting"}
    started.clear()
    assert rows_of(capsys, tmp_path, *argv) == rows and started == []


def test_options_after_the_seeds_reach_every_run_and_a_side_s_own_go_before_them(started, tmp_path, capsys):
    sides = ["--kd none", "--kd=word", "--kd word --gamma 0.3"]
    shared = ["--gamma", "0.1", "--order", ORDER, "--runs-dir", str(tmp_path)]
    assert main([*sides, "--seeds=4,2", *shared]) == 1  # the made-up runs have the default γ's names
    assert [(o.kd, o.gamma, o.seed, o.order) for o in started] == [
        (kd, gamma, seed, ORDER) for kd, gamma in (("none", 0.1), ("word", 0.1), ("word", 0.3)) for seed in (4, 2)
    ]


def test_with_one_pair_there_is_no_interval_and_that_is_said(started, tmp_path, capsys):
    assert main(["--kd none", "--kd word", "--seeds", "3", "--order", ORDER, "--runs-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("none of one pair") == 4 and "inf" not in printed
    assert f"{ORDER}, seed 3  53.0  63.0  +10.0" in printed


def test_after_a_failed_run_the_others_are_shown_but_no_difference_of_unequal_sets(started, tmp_path, capsys):
    started.bad = [("word", 1)]
    for seed in (0, 1):
        made(tmp_path, ORDER, "finetune", seed, same(ORDER, 1.0 + seed))
    argv = ["--kd none", "--kd word", "--method finetune", "--seeds", "0,1", "--order", ORDER]
    assert main([*argv, "--runs-dir", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert ["50.0", "60.0", "+10.0", "1.0", "-49.0"] in [line.split()[-5:] for line in out.splitlines()]
    assert ["51.0", "–", "–", "2.0", "-49.0"] in [line.split()[-5:] for line in out.splitlines()]
    means = [line.split()[1:3] for line in out.splitlines() if line.startswith("mean")]
    assert means == [["A", "C"]] and "no mean difference of B and A" in err
    last = err.splitlines()[-1]
    assert last.startswith("error: 1 of 6 runs failed") and ".log" in last
    started.clear()
    started.bad = []
    assert main([*argv, "--runs-dir", str(tmp_path)]) == 0 and [(o.kd, o.seed) for o in started] == [("word", 1)]
    assert capsys.readouterr().out.count("95% interval") == 2


def test_a_side_without_any_finished_run_has_no_difference(started, tmp_path, capsys):
    started.bad = [("word", 0)]
    assert main(["--kd none", "--kd word", "--seeds", "0", "--order", ORDER, "--runs-dir", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert "no mean difference of B and A" in printed.err and "95% interval" not in printed.out


def test_a_run_that_replayed_nothing_is_flagged(tmp_path, capsys):
    three = "toy.woz,toy.sql,toy.cnn"
    for seed, drawn in enumerate([(2, 1), (0, 3), (0, 0)]):
        made(tmp_path, three, "LAMOL", seed, same(three, 1.0), drawn)
        folder = made(tmp_path, three, "Word-KD", seed, same(three, 1.0))
        write_jsonl(folder / "3-toy.cnn" / "pseudo.jsonl", [{"rejected": "" if seed else "no ANS"}] * 4)
        finish(tmp_path, RunKey(three, "finetune", seed), same(three, 1.0))  # its stages' folders are gone
    argv = ["--kd none", "--kd word", "--method finetune", "--seeds", "0,1,2"]
    assert main([*argv, "--runs-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split("\n\n")[-1].splitlines() == [
        "replay of A: 2 of 6 samples accepted (4 no ANS)",
        f"    NOTHING WAS REPLAYED, no sample was accepted: {three}, seed 1",
        f"    NOTHING WAS REPLAYED, no sample was drawn: {three}, seed 2",
        "replay of B: 14 of 21 samples accepted (7 no ANS)",
        f"    nothing was replayed in 3-toy.cnn: {three}, seed 0",
        "replay of C: 0 of 0 samples accepted",
        "    what was replayed is unknown, the folders of the stages are gone: every run",
    ]


def test_runs_of_other_data_are_not_compared(started, tmp_path, capsys):
    made(tmp_path, ORDER, "LAMOL", 0, same(ORDER, 1.0))
    made(tmp_path, ORDER, "Word-KD", 0, same(ORDER, 1.0), data="1")
    assert main(["--kd none", "--kd word", "--seeds", "0,1", "--order", ORDER, "--runs-dir", str(tmp_path)]) == 1
    assert "error: task toy.woz has other data" in capsys.readouterr().err and started == []


def test_an_interruption_ends_with_130_and_the_finished_runs_stay(started, monkeypatch, tmp_path, capsys):
    fake = subprocess.run

    def interrupted(command, **how):
        if started:
            raise KeyboardInterrupt
        return fake(command, **how)

    monkeypatch.setattr(subprocess, "run", interrupted)
    argv = ["--kd none", "--kd word", "--seeds", "0,1", "--order", ORDER, "--runs-dir", str(tmp_path)]
    assert main(argv) == 130 and "the same command goes on" in capsys.readouterr().err
    monkeypatch.setattr(subprocess, "run", fake)
    assert main(argv) == 0 and len(started) == 4  # one before, three after


# ---------------------------------------------------------------------- the code of another commit

TRAIN = """import json, shutil, sys
from pathlib import Path
from lab.paper.runs import name_for
from lab.where import TEMPLATE
runs_dir = [value for name, value in zip(sys.argv, sys.argv[1:]) if name == "--runs-dir"][-1]
folder = Path(runs_dir) / name_for(sys.argv[1:])
shutil.copytree(TEMPLATE, folder)
(folder / "argv.json").write_text(json.dumps(sys.argv[1:]))
"""
RUNS = """import sys
def name_for(argv):
    if "--strength" not in argv:
        sys.exit("error: --strength is missing")
    return "theirs-" + argv[argv.index("--strength") + 1]
"""


def git(*arguments) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A small repository in place of the project. Its train.py makes runs that have finished, with other names."""
    template = made(tmp_path / "template", ORDER, "Word-KD", 0, {"toy.woz": 7.0, "toy.sql": 9.0})
    root = tmp_path / "project"
    texts = {"train.py": TRAIN, "lab/paper/runs.py": RUNS, "lab/where.py": f"TEMPLATE = {str(template)!r}\n"}
    for name, text in (texts | {"kd.py": "", "lamol.py": "", "README.md": ""}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(compare, "ROOT", root)
    monkeypatch.chdir(root)
    git("init", "-b", "main")
    git("add", ".")
    git("commit", "-m", "one")
    git("branch", "theirs")
    return root


AT = ["--kd none", "--at theirs --strength 3", "--seeds", "0", "--order", ORDER]


def test_a_side_at_a_revision_runs_its_code_in_a_worktree_that_is_removed(repository, tmp_path, capsys):
    commit, runs = git("rev-parse", "theirs")[:12], tmp_path / "runs"
    (repository / "lab" / "where.py").write_text("TEMPLATE = '/nowhere'\n")  # edits that are not committed
    (repository / "lab" / "paper" / "runs.py").write_text(RUNS.replace("theirs", "ours"))
    made(runs, ORDER, "LAMOL", 0, same(ORDER, 5.0))
    assert main([*AT, "--runs-dir", str(runs)]) == 0
    printed = capsys.readouterr()
    assert f"B: --at theirs --strength 3 ({commit})" in printed.out and "5.0  8.0   +3.0" in printed.out
    assert (runs / commit / "theirs-3" / "summary.json").exists()
    assert sorted(p.name for p in runs.iterdir()) == sorted([commit, name_for(["--order", ORDER, "--kd", "none"])])
    assert git("worktree", "list").count("\n") == 1
    (runs / commit / "theirs-3" / "argv.json").unlink()
    assert main([*AT, "--runs-dir", str(runs)]) == 0 and not (runs / commit / "theirs-3" / "argv.json").exists()
    git("commit", "-am", "two")
    git("branch", "-f", "theirs")  # the branch has moved: its runs are other ones
    assert main([*AT, "--runs-dir", str(runs)]) == 1 and "ours-3 failed" in capsys.readouterr().err
    assert git("worktree", "list").count("\n") == 1 and not list(runs.glob(".*"))


@pytest.mark.parametrize("edited, are_shared", [("lamol.py", True), ("README.md", True), ("kd.py", False)])
@pytest.mark.parametrize("given", [[], ["--teachers", "elsewhere"]])
def test_teachers_are_shared_unless_a_file_differs_that_may_change_one(edited, are_shared, given, repository, tmp_path):
    (repository / edited).write_text("an edit\n")
    made(tmp_path / "runs", ORDER, "LAMOL", 0, same(ORDER, 5.0))
    assert main([*AT, "--runs-dir", str(tmp_path / "runs"), *given]) == 0
    (run,) = (tmp_path / "runs").glob("*/theirs-3")
    teachers = (given or ["", str(tmp_path / "runs" / "teachers")])[1] if are_shared else str(run.parent / "teachers")
    assert f'"--teachers", "{teachers}"' in (run / "argv.json").read_text().split('"--runs-dir"')[-1]


# ---------------------------------------------------------------------- bad usage


@pytest.mark.parametrize(
    "argv, named",
    [
        (["--kd none", "--kd word"], "--seeds"),
        (["--kd none", "--seeds", "0"], "two sides"),
        (["--seeds", "0", "--kd none", "--kd word"], "two sides"),
        (["--kd none", "--kd wrod", "--seeds", "0"], "side '--kd wrod': argument --kd: invalid choice"),
        (["--kd none", "--kd word --nonsense 3", "--seeds", "0"], "side '--kd word --nonsense 3': unrec"),
        (["--kd none", "--method finetune --kd word", "--seeds", "0"], "side '--method finetune --kd word': --kd word"),
        (["--kd none", "--kd 'word", "--seeds", "0"], "side '--kd 'word': No closing quotation"),
        (["--kd none", "--seed 3", "--seeds", "0"], "side '--seed 3': --seed"),
        (["--kd none", "--order=woz", "--seeds", "0"], "side '--order=woz': --order=woz"),
        (["--kd none", "--at", "--seeds", "0"], "side '--at': argument --at: expected one argument"),
        (["--kd none", "--kd word", "--seeds", "0,"], "--seeds"),
        (["--kd none", "--kd word", "--seeds", "0", "--resume"], "--resume"),
        (["--kd none", "--kd word", "--seeds", "0", "--jobs", "0"], "--jobs 0"),
        (["--kd none", "--kd word", "--seeds", "0", "--nonsense", "3"], "error: unrecognized arguments: --nonsense 3"),
        (["--kd none", "--kd word", "--seeds", "0", "--order", "toy.wox"], "error: "),
        (["--kd word", "--kd none", "", "--seeds", "0"], "sides '--kd word' and '' are the same runs"),
        (["--kd none", "--kd none --temperature 3", "--seeds", "0"], "are the same runs"),  # it has no effect
    ],
)
def test_bad_usage_is_one_line(argv, named, tmp_path, capsys):
    assert error(capsys, *argv, "--runs-dir", str(tmp_path / "runs")).count(named) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "side, named",
    [
        ("--at nowhere", "side '--at nowhere': --at nowhere: git knows no such"),
        ("--at theirs", "side '--at theirs': --strength is missing"),
    ],
)
def test_a_side_that_its_revision_does_not_know_is_one_line(side, named, repository, tmp_path, capsys):
    assert named in error(capsys, "--kd none", side, "--seeds", "0", "--runs-dir", str(tmp_path / "runs"))
    assert git("worktree", "list").count("\n") == 1


def test_at_outside_of_a_git_checkout_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    assert "side '--at main': --at needs git" in error(capsys, "--kd none", "--at main", "--seeds", "0")


def error(capsys, *argv) -> str:
    """The one line of a command that is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        main(list(argv))
    printed = capsys.readouterr()
    assert e.value.code == 2 and printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith("error: ")
    return printed.err
