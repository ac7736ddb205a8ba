"""Prepared files: what they are made of, their keys, and the command that makes them.

python -m pytest tests/test_prepare.py"""

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from raw_formats import FORMATS, good_rows, interchange, load, set_sizes, write_raw

from data import Example
from lab.errors import DataError
from lab.tasks import TASKS
from lab.tasks import prepare as prepare_file
from lab.tasks.__main__ import main
from lab.tasks.fetch import SOURCES, sha256
from lab.tasks.prepare import prepare
from lab.tasks.reading import SPLITS, read_rows

ROOT = Path(__file__).parents[1]

# ---------------------------------------------------------------------- which files are taken


@pytest.mark.parametrize("name", ["cnn", "e2e", "yelp", "ag"])
def test_interchange_files_go_before_raw_ones_as_they_are(tmp_path, monkeypatch, name):
    set_sizes(monkeypatch, FORMATS[name].task, 1, 1)
    path = write_raw(tmp_path, name, good_rows(name, 3))
    interchange(path.parent)
    task = load(name, tmp_path)
    assert task.train == task.test == [Example(" a  b ", "q", "", "7", {"x": 1})] * 3  # not subsampled either


def test_interchange_files_of_wikisql_count_where_no_tables_are(tmp_path):
    meta = {"sql": {"sel": 0, "agg": 0, "conds": []}, "header": ["A"]}
    write_raw(tmp_path, "sql", good_rows("sql", 4))
    assert len(load("sql", tmp_path).train) == 4
    interchange(tmp_path / "own" / "wikisql", [{"context": "c", "question": "q", "answer": "a", "meta": meta}])
    assert load("sql", tmp_path / "own").test == [Example("c", "q", "a", "1", meta)]


@pytest.mark.parametrize(
    "folder, there, missing",
    [
        ("cnn_dailymail", "train.jsonl", "test.jsonl"),
        ("cnn_dailymail", "test.csv", "train.csv"),
        ("yelp", "train.csv", "test.csv"),
        ("wikisql", "train.tables.jsonl", "train.jsonl"),
        ("wikisql", "test.jsonl", "train.jsonl"),
    ],
)
def test_half_a_data_set_is_an_error_and_not_a_download(tmp_path, folder, there, missing):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / there).write_text("{}")
    task = next(task for task, (place, _) in SOURCES.items() if place == folder)
    with pytest.raises(DataError, match=f"{missing} is missing, but .*{there} is there"):
        prepare(task, tmp_path, tmp_path / "cache")


# ---------------------------------------------------------------------- prepared files and their keys


def test_prepared_files_are_keyed_by_their_raw_files(tmp_path):
    write_raw(tmp_path, "woz", good_rows("woz", 2))
    one = prepare("woz", tmp_path, tmp_path / "cache")
    stamp = (one / "train.jsonl").stat().st_mtime_ns
    (tmp_path / "woz/woz_train_en.json").touch()
    assert prepare("woz", tmp_path, tmp_path / "cache") == one and (one / "train.jsonl").stat().st_mtime_ns == stamp
    write_raw(tmp_path, "woz", [FORMATS["woz"].good % 7])
    other = prepare("woz", tmp_path, tmp_path / "cache")
    assert other != one and read_rows(other / "train.jsonl")[0]["context"] == "hi 7"
    write_raw(tmp_path, "woz", good_rows("woz", 2))
    assert prepare("woz", tmp_path, tmp_path / "cache") == one
    assert sorted(p.name for p in (tmp_path / "cache" / "data").iterdir()) == sorted([one.name, other.name])


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_prepared_files_are_there_whole_or_not_at_all(tmp_path, monkeypatch, step):
    def full(*_):
        raise OSError(28, "No space left on device")

    write_raw(tmp_path, "woz", good_rows("woz", 2))
    with monkeypatch.context() as m:
        m.setattr(os, step, full)
        with pytest.raises(DataError, match=r"--cache-dir .*cache: can't be written to \(No space left on device\)"):
            prepare("woz", tmp_path, tmp_path / "cache")
    assert not list((tmp_path / "cache" / "data").iterdir())
    assert prepare("woz", tmp_path, tmp_path / "cache").is_dir()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_cache_on_a_file_system_without_locks_is_one_line(tmp_path, monkeypatch, capsys, number):
    def no_locks(*_):
        raise OSError(number, "not here")

    write_raw(tmp_path, "woz", good_rows("woz", 2))
    monkeypatch.setattr("fcntl.flock", no_locks)
    assert main(["woz", "--data-dir", str(tmp_path), "--cache-dir", str(tmp_path / "cache")]) == 1
    said = capsys.readouterr().err
    assert f"--cache-dir {tmp_path / 'cache'}: can't be written to (" in said and said.count("\n") == 1
    assert "this file system has no locks (not here); use a folder on another one" in said


def state_rows(n, answers):
    """n rows of WOZ in the interchange format; answers: some other ones, by row."""
    rows = [{"context": "c", "question": "q", "answer": "a: b;", "meta": {"turn": f"en_0_{i}"}} for i in range(n)]
    return [row | {"answer": answers.get(i, row["answer"])} for i, row in enumerate(rows)]


@pytest.mark.parametrize("answer", ["leave at: 10:15;", "area: north", "area: north, area: south;", "not mentioned"])
def test_answers_that_the_metric_can_not_read_are_refused_of_a_registered_task_too(tmp_path, capsys, answer):
    """In the test split each of them, in the training split more than 1% of them."""
    folder = tmp_path / "woz"
    interchange(folder, state_rows(200, {}))
    good = (folder / "test.jsonl").read_text()
    for split, n_bad, refused in (("test", 1, True), ("train", 2, False), ("train", 3, True)):
        interchange(folder, state_rows(200, dict.fromkeys(range(n_bad), answer)))
        (folder / ("train.jsonl" if split == "test" else "test.jsonl")).write_text(good)
        says = f"{folder}, {split} example 1: joint_goal_em can't read the answer {answer!r}: "
        if refused:
            with pytest.raises(DataError) as e:
                prepare("woz", tmp_path, tmp_path / "cache")
            assert str(e.value).startswith(says) and not (tmp_path / "cache").exists()
        else:
            prepare("woz", tmp_path, tmp_path / "cache")
            said = capsys.readouterr().out
            assert f"note     {says}" in said and "; 2 of 200 training answers can't be read, so what they" in said
            (tmp_path / "cache").rename(tmp_path / "other")


def test_two_processes_that_prepare_a_task_at_once_write_it_once(tmp_path, monkeypatch):
    """Both have read the raw files before either writes: whoever comes second finds the folder and leaves it."""
    write_raw(tmp_path, "woz", good_rows("woz", 2))
    files, read = TASKS["woz"].reader("woz", tmp_path / "woz")
    both_have_read, written, write_folder = threading.Barrier(2), [], prepare_file.write_folder

    def read_together(sizes):
        rows = read(sizes)
        both_have_read.wait(10)
        return rows

    def write_slowly(folder, fill):
        written.append(folder)
        time.sleep(0.1)
        write_folder(folder, fill)

    monkeypatch.setitem(TASKS, "woz", TASKS["woz"]._replace(reader=lambda task, folder: (files, read_together)))
    monkeypatch.setattr(prepare_file, "write_folder", write_slowly)
    threads = [threading.Thread(target=prepare, args=("woz", tmp_path, tmp_path / "cache")) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(written) == 1 and list((tmp_path / "cache/data").iterdir()) == written


def test_the_rules_are_a_part_of_the_key(tmp_path, monkeypatch):
    write_raw(tmp_path, "woz", good_rows("woz", 2))
    one = prepare("woz", tmp_path, tmp_path / "cache")
    monkeypatch.setattr(prepare_file, "RULES", "another")
    assert prepare("woz", tmp_path, tmp_path / "cache") != one


def test_a_file_of_the_users_own_is_said_to_be_one_and_a_known_file_is_not(tmp_path, monkeypatch, capsys):
    path = write_raw(tmp_path, "woz", good_rows("woz", 2))
    known = {url: sha256(path.with_name(Path(url).name)) for url in SOURCES["woz"][1]}
    monkeypatch.setitem(SOURCES, "woz", ("woz", known))
    for row, own in ((0, []), (1, ["woz_train_en.json"])):
        if own:
            write_raw(tmp_path, "woz", [FORMATS["woz"].good % row])
        prepare("woz", tmp_path, tmp_path / "cache")
        said = [line for line in capsys.readouterr().out.splitlines() if "known" in line]
        assert said == [f"woz: {o} in {path.parent}: used as found, not the known public file" for o in own]
    interchange(path.parent, [{"context": "c", "question": "q", "answer": "a: b;", "meta": {"turn": "en_0_0"}}])
    prepare("woz", tmp_path, tmp_path / "cache")
    assert f"woz: train.jsonl, test.jsonl in {path.parent}: used as found" in capsys.readouterr().out


# ---------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["nonsense"], "unknown task 'nonsense': known are woz, sql, cnn, e2e,"),
        (["toy.woz"], "unknown task 'toy.woz'"),
        (["woz", "--no-such-option"], "--no-such-option"),
        (["--data-dir"], "--data-dir"),
        (["woz", "--from-lamol", "x"], "--from-lamol takes all tasks that its folder holds: name none"),
    ],
)
def test_bad_usage_is_one_line_and_2(capsys, arguments, says):
    with pytest.raises(SystemExit) as e:
        main(arguments)
    printed = capsys.readouterr()
    assert e.value.code == 2 and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert says in printed.err and not printed.out


def test_the_command_runs_as_the_readme_says():
    done = subprocess.run([sys.executable, "-m", "lab.tasks", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr and "usage: python -m lab.tasks" in done.stdout
    assert "default: all, woz, sql, cnn, e2e, rnnlg.rest," in " ".join(done.stdout.split())


@pytest.mark.parametrize("option", ["--data-dir", "--cache-dir"])
def test_a_place_that_can_not_be_written_to_is_one_line(tmp_path, capsys, monkeypatch, option):
    urls = {f"http://127.0.0.1:9/woz_{split}_en.json": "0" * 64 for split in SPLITS}
    monkeypatch.setitem(SOURCES, "woz", ("woz", urls))
    write_raw(tmp_path, "woz", good_rows("woz", 2))
    (tmp_path / "file").write_text("no folder")
    places = {"--data-dir": tmp_path, "--cache-dir": tmp_path / "cache"} | {option: tmp_path / "file" / "below"}
    assert main(["woz", *(str(word) for pair in places.items() for word in pair)]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1 and str(tmp_path / "file") in printed


def test_named_tasks_are_prepared_and_their_folders_printed(tmp_path, capsys):
    for name in ("woz", "yelp", "rnnlg"):
        write_raw(tmp_path, name, good_rows(name, 2))
    assert main(["woz", "yelp", "--data-dir", str(tmp_path), "--cache-dir", str(tmp_path / "cache")]) == 0
    said = capsys.readouterr().out.splitlines()
    folders = sorted((tmp_path / "cache" / "data").iterdir())
    assert len(folders) == 2 and all(f"{folder.name.split('-')[0]} {folder}" in said for folder in folders)
    assert all(len(read_rows(folder / f"{split}.jsonl")) > 1 for folder in folders for split in SPLITS)


def test_a_task_that_fails_does_not_keep_the_others_from_being_prepared(tmp_path, capsys):
    write_raw(tmp_path, "woz", good_rows("woz", 2))
    (tmp_path / "cnn_dailymail").mkdir()
    (tmp_path / "cnn_dailymail" / "train.csv").write_text("id")
    assert main(["cnn", "woz", "--data-dir", str(tmp_path), "--cache-dir", str(tmp_path / "cache")]) == 1
    said = capsys.readouterr()
    assert (
        said.err.startswith("error: ")
        and "test.csv is missing" in said.err
        and "examples; Table 1: 2536 / 1646" in said.out
    )
