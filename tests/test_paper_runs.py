"""`python -m lab.paper ... --run`: what is run, resumed, left alone, copied. One test runs real commands.

python -m pytest tests/test_paper_runs.py"""

import csv
import functools
import io
import json
import shutil
from pathlib import Path

import pytest
from paper_runs import at, finish, rows_of, same

from lab.paper import numbers, runs
from lab.paper.__main__ import LAPTOP, main
from lab.paper.comparisons import COMPARISONS
from lab.paper.experiments import EXPERIMENTS, PLAIN, TOY_ORDERS, Experiment, Row, keys_of
from lab.paper.runs import FURTHER, METHODS, RunKey, arguments, name_for
from lab.run.options import parse
from lab.run.rundir import acquire, file_lock, release


def names_of(what) -> list[str]:
    return [name_for(arguments(key, [])) for key in keys_of(what, [0])]


@functools.cache
def key_by_name() -> dict:
    return {name_for(arguments(key, [])): key for what in ("table2", "table4", "toy") for key in keys_of(what, [0])}


@pytest.fixture
def commands(monkeypatch):
    """The directories that commands were given for, without running them; those in `commands.bad` fail."""

    class Given(list):
        bad = ()

    given = Given()

    def run(command, stdout, stderr, env):
        assert Path(command[1]) == runs.ROOT / "train.py" and int(env["OMP_NUM_THREADS"]) >= 1
        o = parse(command[2:])
        name = name_for(command[2:])
        given.append(name)
        assert o.resume == (Path(o.runs_dir) / name).exists()
        stdout.write("what it printed\n")
        if name in given.bad:
            (Path(o.runs_dir) / name).mkdir(exist_ok=True)
            return type("Failed", (), {"returncode": 1})
        finish(Path(o.runs_dir), key_by_name()[name], same(o.order, 40.0 + o.seed))
        return type("Finished", (), {"returncode": 0})

    monkeypatch.setattr(runs.subprocess, "run", run)
    return given


def test_what_is_finished_is_skipped_and_what_was_cut_off_is_resumed(commands, tmp_path, capsys):
    names, key = names_of("table4"), keys_of("table4", [0])[2]
    finish(tmp_path, key, same(key.order, 77.0))
    (tmp_path / names[4]).mkdir()
    (tmp_path / names[4] / "scores.jsonl").write_text("half a li")
    rows = rows_of(
        capsys, "table4", "--model", "gpt2", "--run", "--runs-dir", tmp_path
    )  # standard output is the table alone
    assert commands == [name for name in names if name != names[2]]
    assert sorted(float(x["ours"]) for x in rows) == [40.0] * 66 + [77.0] * 6
    assert (tmp_path / f"{names[0]}.log").read_text() == "what it printed\n"
    commands.clear()
    assert rows_of(capsys, "table4", "--model", "gpt2", "--run", "--runs-dir", tmp_path) == rows and commands == []
    assert main(["figure4", "--model", "gpt2", "--run", "--runs-dir", str(tmp_path)]) == 0 and commands == []
    assert (tmp_path / "figure4.png").exists()


def test_after_a_failed_run_the_others_go_on_and_it_is_named_with_its_log(commands, tmp_path, capsys):
    names, keep = names_of("figure4"), tmp_path / "kept"
    commands.bad = [names[1]]
    options = [
        "figure4",
        "--model",
        "gpt2",
        "--run",
        "--jobs",
        "2",
        "--runs-dir",
        str(tmp_path / "runs"),
        "--keep",
        str(keep),
    ]
    assert main(options) == 1
    printed = capsys.readouterr()
    assert sorted(commands) == sorted(names) and printed.out.endswith("figure4.png\n")  # of those that are there
    last = printed.err.splitlines()[-1]
    assert last.startswith("error: 1 of 4 runs failed: ") and names[1] in last
    assert str(tmp_path / "runs" / f"{names[1]}.log") in last
    assert sorted(p.name for p in keep.iterdir()) == sorted(set(names) - {names[1]})
    commands.clear()
    commands.bad = []
    assert main(options) == 0 and commands == [names[1]]  # only what failed


def test_a_run_that_another_process_is_making_is_left_alone(commands, tmp_path, capsys):
    name = names_of("figure4")[0]
    (tmp_path / name).mkdir()
    (tmp_path / name / "log.jsonl").write_text("{}")
    lock = file_lock(tmp_path / name / "lock")
    assert acquire(lock, wait=False)
    assert main(["figure4", "--model", "gpt2", "--run", "--runs-dir", str(tmp_path)]) == 1
    assert name not in commands and (tmp_path / name / "log.jsonl").exists()
    assert "another process is making this run" in capsys.readouterr().err.splitlines()[-1]
    release(lock)
    assert main(["figure4", "--model", "gpt2", "--run", "--runs-dir", str(tmp_path)]) == 0 and commands[-1] == name
    assert not (tmp_path / name / "lock").exists()


def test_copied_runs_count_as_finished_and_hold_the_four_small_files(commands, tmp_path, capsys):
    made, keep = tmp_path / "runs", tmp_path / "results"
    options = ["figure3", "--run", "--runs-dir", str(made), "--keep", str(keep)]
    assert main(options) == 0 and len(commands) == 5
    assert sorted(p.name for p in keep.iterdir()) == sorted(commands)
    assert not [p for p in keep.rglob("*") if p.is_file() and str(tmp_path) in p.read_text()]  # no paths of a machine
    for run in keep.iterdir():
        assert sorted(p.name for p in run.iterdir()) == ["config.json", "replayed.json", "scores.jsonl", "summary.json"]
    shutil.rmtree(keep / commands[2])  # whole, but not copied: it is copied now, and not run again
    count = len(commands)
    assert main(options) == 0 and len(commands) == count and (keep / commands[2] / "config.json").exists()
    shutil.rmtree(made)
    assert main(options) == 0 and len(commands) == count
    capsys.readouterr()
    assert main(["table2", "--csv", "--runs-dir", str(made), "--keep", str(keep)]) == 0
    printed = capsys.readouterr()
    assert "5 of 30 runs found" in printed.err and printed.out.count(",40.0,") == 5 * 4


def test_a_finished_run_with_a_broken_file_is_named(commands, tmp_path, capsys):
    key = keys_of("figure3", [0])[0]
    folder = finish(tmp_path, key, same(key.order, 1.0))
    for broken in ("{", "{}", "[]"):
        (folder / "summary.json").write_text(broken)
        assert main(["figure3", "--run", "--runs-dir", str(tmp_path)]) == 1
        assert str(folder / "summary.json") in capsys.readouterr().err.splitlines()[-1]
    key = keys_of("table4", [0])[3]
    folder = finish(tmp_path, key, same(key.order, 1.0))
    (folder / "scores.jsonl").unlink()
    assert (
        main(["table4", "--model", "gpt2", "--run", "--runs-dir", str(tmp_path), "--keep", str(tmp_path / "kept")]) == 1
    )
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: 1 of 12 runs failed: ") and "scores.jsonl" in last


def test_an_interruption_ends_with_130(monkeypatch, tmp_path, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs.subprocess, "run", interrupt)
    assert main(["figure3", "--run", "--runs-dir", str(tmp_path)]) == 130
    assert "the same command goes on" in capsys.readouterr().err


# ---------------------------------------------------------------------- the toy comparison


def test_the_toy_comparison_runs_what_its_results_lack_and_prints_a_line_a_method(commands, tmp_path, capsys):
    keep, everything = tmp_path / "results", names_of("toy")
    finish(keep, RunKey(TOY_ORDERS[0], "multitask", 1), same(TOY_ORDERS[0], 99.0))
    (tmp_path / "runs" / everything[3]).mkdir(parents=True)
    options = ["toy", "--run", "--runs-dir", str(tmp_path / "runs"), "--keep", str(keep), "--jobs", "2"]
    assert main(options) == 0
    assert len(commands) == len(everything) - 1 and {*commands} < {*everything} and everything[3] in commands
    lines = capsys.readouterr().out.splitlines()
    labels = [line.split(" | ")[0][2:] for line in lines[2 : lines.index("")]]
    assert labels == [*METHODS, *FURTHER]
    assert sum(line.endswith(" | undecided |") for line in lines) == len(COMPARISONS["toy"])  # all scores are alike
    assert "| Word-KD | 5 | 42.0 ± 1.6 | -41.0 ± 1.6 | 42.0 ± 1.6 | -41.0 ± 1.6 |" in lines
    assert "| single | 3 | 41.0 ± 1.0 | – | – | – |" in lines
    commands.clear()
    assert main(options) == 0 and commands == []


def test_recorded_runs_are_found_under_their_names_and_had_the_same_data(tmp_path, capsys):
    for what, folder, extra in (("toy", "nano", []), ("comparisons", "table4", LAPTOP)):
        names = {name_for(arguments(key, extra)) for key in keys_of(what, [0, 1, 2])}
        recorded = {path.parent.name for path in (runs.ROOT / "lab" / "results" / folder).glob("*/summary.json")}
        assert recorded <= names, recorded - names
        assert main([what, "--runs-dir", str(tmp_path)]) == 0
        assert f"{len(recorded)} of {len(names)} runs found" in capsys.readouterr().err or recorded == names
    assert main(["toy", "--runs-dir", str(tmp_path), "--keep", str(tmp_path)[:-1]]) == 0
    assert "| LAMOL | 0 | – | – | – | – |" in capsys.readouterr().out


# ---------------------------------------------------------------------- real runs


@pytest.mark.slow
def test_an_experiment_runs_and_prints_its_table(monkeypatch, tmp_path, capsys):
    """The real commands, on an experiment of two toy tasks. The student's teachers are the single-task models."""
    order, paper = "toy.woz,toy.sql", {"toy.woz": 70.0, "toy.sql": 60.0, "avg": 65.0}
    row = functools.partial(Row, numbers=numbers.each, paper=paper)
    rows = [row(PLAIN, "Single QA+LM", [(order, "Single QA+LM")]), row(order, "Word-KD", [(order, "Word-KD")])]
    monkeypatch.setitem(EXPERIMENTS, "table3", Experiment(rows, numbers.final))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # tiny models: more threads only wait for each other
    options = ["table3", "--csv", "--limit", "4", "--epochs", "1", "--runs-dir", str(tmp_path), "--device", "cpu"]
    assert main([*options, "--run"]) == 0
    printed = capsys.readouterr()
    lines = list(csv.DictReader(io.StringIO(printed.out)))
    names = [f"toy.woz+toy.sql-{method}-g0.2-s0-epochs=1-limit=4" for method in ("single-none", "lamol-word")]
    done = [line.split(": ")[0] for line in printed.err.splitlines() if " in " in line and " s" in line[-2:]]
    assert done == names
    assert (tmp_path / f"{names[1]}.log").read_text().count("found in") == 2
    summary = json.loads((tmp_path / names[1] / "summary.json").read_text())
    for task in order.split(","):
        assert float(at(lines, "Word-KD", task)["ours"]) == pytest.approx(summary["scores"]["2"][task], abs=1e-3)
    assert float(at(lines, "Word-KD", "avg")["difference"]) == pytest.approx(summary["average"] - 65, abs=1e-3)
    assert [x["runs"] for x in lines] == ["1"] * 6
