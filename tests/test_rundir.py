"""Names, atomic files. python -m pytest tests/test_rundir.py"""

import os

import pytest

from lab.rundir import RunError, lock, open_run, read_json, read_jsonl, run_name, write_folder, write_jsonl, write_text

OPTIONS = {"method": "lamol", "kd": "word", "gamma": 0.2, "seed": 0, "epochs": 9, "model": "gpt2", "lr": 6.25e-5}
DEFAULTS = {"epochs": 9, "model": "gpt2", "lr": 6.25e-5}


def test_a_run_is_named_by_what_changes_its_result():
    assert run_name(["woz", "sql"], OPTIONS, DEFAULTS) == "woz+sql-lamol-word-g0.2-s0"
    changed = OPTIONS | {"epochs": 3, "model": "some/folder/my model", "gamma": 0.0, "lr": 1e-3, "log_every": 7}
    assert run_name(["woz"], changed, DEFAULTS) == "woz-lamol-word-g0-s0-epochs=3-model=my_model-lr=0.001"


def test_a_used_or_unwritable_directory_is_refused(tmp_path):
    path, held = open_run(tmp_path, "a")
    held.close()
    again, held = open_run(tmp_path, "a")  # empty: not used
    with pytest.raises(RunError, match="another process"):
        open_run(tmp_path, "a", resume=True)
    held.close()
    write_text(path / "config.json", "{}")
    with pytest.raises(RunError, match="is used already"):
        open_run(tmp_path, "a")
    assert again == path and {p.name for p in path.iterdir()} == {"config.json"}
    assert open_run(tmp_path, "a", resume=True)[0] == path
    with pytest.raises(RunError, match="--runs-dir"):
        open_run(path / "config.json", "b")


def test_a_link_in_a_runs_directory_is_refused(tmp_path):
    path, held = open_run(tmp_path, "a")
    held.close()
    (path / "1-woz").symlink_to(tmp_path)
    with pytest.raises(RunError, match="1-woz is a link or a device"):
        open_run(tmp_path, "a", resume=True)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, step):
    write_text(tmp_path / "x", "old")

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError):
        write_text(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_folder_whose_last_step_fails_is_as_before(tmp_path, monkeypatch, step):
    def fill(text):
        return lambda folder: (folder.mkdir(), (folder / "a").write_text(text))

    write_folder(tmp_path / "model", fill("old"))
    replace, calls = os.replace, []

    def broken(*arguments):
        calls.append(arguments)
        if step == "fsync" or len(calls) == 2:  # the old folder is out of the way, the new one can't take its place
            raise OSError("disk full")
        replace(*arguments)

    monkeypatch.setattr(os, step, broken)
    with pytest.raises(OSError):
        write_folder(tmp_path / "model", fill("new"))
    assert (tmp_path / "model" / "a").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_lines_come_back_whatever_separators_are_in_their_texts(tmp_path):
    rows = [{"text": "a\u2028b\x85c\nd"}, {"text": ""}]
    write_jsonl(tmp_path / "x.jsonl", rows)
    assert read_jsonl(tmp_path / "x.jsonl") == rows


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    def fill(files):
        def write(folder):
            folder.mkdir()
            for name in files:
                if name == "bad":
                    raise ValueError
                (folder / name).write_text(name)

        return write

    write_folder(tmp_path / "model", fill(["a", "b"]))
    with pytest.raises(ValueError):
        write_folder(tmp_path / "model", fill(["c", "bad"]))
    assert {p.name for p in (tmp_path / "model").iterdir()} == {"a", "b"}
    write_folder(tmp_path / "model", fill(["c"]))
    assert {p.name for p in (tmp_path / "model").iterdir()} == {"c"} and len(list(tmp_path.iterdir())) == 1


def test_a_run_directory_is_of_one_process_at_a_time(tmp_path):
    held = lock(tmp_path)
    with pytest.raises(RunError, match="another process is making this run"):
        lock(tmp_path)
    held.close()
    lock(tmp_path).close()


def test_a_broken_json_file_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"config\.json: cut off or not JSON"):
        read_json(tmp_path / "config.json")
