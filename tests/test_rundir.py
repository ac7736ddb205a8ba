"""A run's directory: opened once, locked, read. python -m pytest tests/test_rundir.py"""

import errno
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import filelock
import pytest
from whole_runs import directory, elsewhere, error, run

from lab.errors import DataError, RunError
from lab.files import write_jsonl, write_text
from lab.run.rundir import file_lock, one_at_a_time, open_run, read_run, read_scores, release

HOLD = """
import sys
sys.path.insert(0, sys.argv[1])
from lab.run.rundir import open_run
held = open_run(sys.argv[2], sys.argv[3])
print("held", flush=True)
sys.stdin.read()
"""


def test_a_used_or_unwritable_directory_is_refused(tmp_path):
    path, lock = open_run(tmp_path, "a")
    release(lock)
    again, lock = open_run(tmp_path, "a")  # empty: not used
    with pytest.raises(RunError, match="another process is making this run"):
        open_run(tmp_path, "a", resume=True)
    release(lock)
    write_text(path / "config.json", "{}")
    with pytest.raises(RunError, match="is used already"):
        open_run(tmp_path, "a")
    assert again == path and {p.name for p in path.iterdir()} == {"config.json"}
    _, lock = open_run(tmp_path, "a", resume=True)
    release(lock)
    with pytest.raises(RunError, match="--runs-dir"):
        open_run(path / "config.json", "b")


def test_a_link_in_a_runs_directory_is_refused(tmp_path):
    path, lock = open_run(tmp_path, "a")
    release(lock)
    (path / "1-woz").symlink_to(tmp_path)
    with pytest.raises(RunError, match="1-woz is a link or a device"):
        open_run(tmp_path, "a", resume=True)
    assert not (path / "lock").exists()


def test_two_processes_do_not_share_a_run_and_a_dead_one_does_not_block_it(lab, capsys):
    arguments = elsewhere(lab, "shared", "--kd", "none", "--epochs", "1")
    folder = directory(arguments)
    command = [sys.executable, "-c", HOLD, str(Path(__file__).parents[1]), str(folder.parent), folder.name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        for more in ([], ["--resume"]):
            assert "another process is making this run" in error(capsys, [*arguments, *more])
        process.kill()
    run(arguments, "--resume")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_one_line(lab, capsys, monkeypatch, number):
    def no_locks(*_):
        raise OSError(number, "not here")

    monkeypatch.setattr("fcntl.flock", no_locks)
    said = error(capsys, [*lab, "--kd", "none"])
    assert "this file system has no locks (not here); use a folder on another one" in said
    assert not list(Path(lab[5]).rglob("config.json"))


def test_who_needs_what_another_one_makes_waits_and_finds_it(tmp_path, capsys):
    order, entered, done = [], threading.Event(), threading.Event()
    path = tmp_path / "teachers" / "a"

    def first():
        with one_at_a_time(path) as waited:
            order.append(("first", path.exists(), waited < 1e3))
            entered.set()
            done.wait()
            path.mkdir()

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait()
    other = threading.Thread(target=lambda: second(order, path))
    other.start()
    while "waiting  for" not in capsys.readouterr().out:
        time.sleep(0.01)
    assert len(order) == 1
    done.set()
    thread.join()
    other.join()
    assert order[0][:2] == ("first", False) and order[1][:2] == ("second", True) and order[1][2] > 0
    assert [p.name for p in path.parent.iterdir()] == ["a"]


def second(order, path):
    with one_at_a_time(path) as waited:
        order.append(("second", path.exists(), waited))


def test_whoever_fails_to_make_it_leaves_no_lock_and_no_half_of_it(tmp_path):
    half = tmp_path / ".a.new.123"
    half.mkdir()
    with pytest.raises(OSError, match="full"), one_at_a_time(tmp_path / "a"):
        assert not half.exists()  # what an earlier kill left
        raise OSError("disk full")
    assert not list(tmp_path.iterdir())


def test_a_lock_is_a_regular_file(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="a link or a device, not a file to lock"):
        file_lock(tmp_path / "lock")
    assert isinstance(file_lock(tmp_path / "other"), filelock.FileLock)


def test_scores_must_be_scores(tmp_path):
    line = {"stage": 1, "epoch": 1, "task": "woz", "score": 5.0}
    write_jsonl(tmp_path / "scores.jsonl", [line])
    assert read_scores(tmp_path) == [line]
    for wrong in ({"score": 1e308}, {"epoch": 2**63}, {"stage": -1}, {"score": float("nan")}, {"task": None}):
        write_jsonl(tmp_path / "scores.jsonl", [line | wrong])
        with pytest.raises(RunError, match=r"scores\.jsonl"):
            read_scores(tmp_path)


def test_a_summary_is_read_and_anything_else_is_refused_by_name(lab, tmp_path):
    folder = run(lab, "--kd", "none", "--epochs", "1")
    summary = read_run(folder)
    assert summary == read_run(str(folder)) and summary["order"] == ["colors", "sizes"]
    with pytest.raises(DataError, match="is no run directory, or its run has not finished"):
        read_run(tmp_path)
    for wrong in ("{", "[]", "[" * 100_000, json.dumps(summary | {"average": "x"}), json.dumps({"order": 3})):
        (tmp_path / "summary.json").write_text(wrong)
        with pytest.raises(DataError, match="not a run's summary"):
            read_run(tmp_path)
