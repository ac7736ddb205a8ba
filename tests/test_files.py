"""Atomic files. python -m pytest tests/test_files.py"""

import errno
import os
import stat

import pytest

from lab.errors import DataError, LabError, ModelFileError, RunError
from lab.files import (
    acquire,
    append_jsonl,
    file_lock,
    read_json,
    read_jsonl,
    release,
    sync,
    write_folder,
    write_json,
    write_jsonl,
    write_text,
)


def of(*names):
    """A function that fills a new folder with these files; a file called `bad` makes it fail."""

    def fill(folder):
        folder.mkdir()
        for name in names:
            if name == "bad":
                raise ValueError
            (folder / name).write_text(name)

    return fill


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, step):
    write_text(tmp_path / "x", "old")
    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError):
        write_text(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "old" and names(tmp_path) == ["x"]


@pytest.mark.parametrize("fails", ["filling", "fsync", "first replace", "second replace"])
def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch, fails):
    write_folder(tmp_path / "model", of("a", "b"))
    replace, calls = os.replace, []

    def broken(*arguments):
        calls.append(arguments)
        if len(calls) == (1 if fails == "first replace" else 2):  # 2: the old folder is out of the way already
            full()
        replace(*arguments)

    with monkeypatch.context() as m:
        if fails != "filling":
            m.setattr(os, fails.split()[-1], full if fails == "fsync" else broken)
        with pytest.raises(ValueError if fails == "filling" else OSError):
            write_folder(tmp_path / "model", of("c", "bad") if fails == "filling" else of("c"))
    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["a", "b"]
    write_folder(tmp_path / "model", of("c"))
    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["c"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_only_a_file_system_that_cannot_sync_folders_is_passed_over(tmp_path, monkeypatch, code, kind):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()

    def cannot(f):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", cannot)
    if kind == "folder" and code != errno.EIO:
        sync(tmp_path / kind)
    else:
        with pytest.raises(OSError):
            sync(tmp_path / kind)


def test_a_new_file_and_its_folder_are_synced(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda f: synced.append(stat.S_ISDIR(os.fstat(f).st_mode)) or fsync(f))
    write_text(tmp_path / "x", "new")
    assert synced == [False, True]


def test_lines_come_back_whatever_separators_are_in_their_texts(tmp_path):
    rows = [{"text": "a\u2028b\x85c\nd"}, {"text": ""}]
    write_jsonl(tmp_path / "x.jsonl", rows[:1])
    append_jsonl(tmp_path / "x.jsonl", rows[1])
    assert read_jsonl(tmp_path / "x.jsonl") == rows and (tmp_path / "x.jsonl").read_bytes().count(b"\n") == 2
    write_json(tmp_path / "x.json", rows)
    assert read_json(tmp_path / "x.json", list) == rows


@pytest.mark.parametrize("text", ["{", "[1]", "", "[" * 100000, "\xe9"])
def test_a_broken_json_file_is_named(tmp_path, text):
    for name, read in (
        ("a.json", lambda path: read_json(path, dict)),
        ("a.jsonl", lambda path: read_jsonl(path, task=str)),
    ):
        (tmp_path / name).write_bytes((text or "3").encode("latin-1"))
        with pytest.raises(RunError, match=rf"{name}: cut off or not ") as e:
            read(tmp_path / name)
        assert "\n" not in str(e.value)


def test_a_pipe_in_place_of_a_json_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(RunError, match="not a regular file"):
        read_json(tmp_path / "a.json")


def test_every_error_of_the_project_is_one_kind():
    assert all(issubclass(error, LabError) for error in (DataError, ModelFileError, RunError))
    assert issubclass(LabError, ValueError)


def test_a_lock_file_may_be_deleted_while_it_is_looked_at(tmp_path, monkeypatch):
    """By whoever releases it."""
    path, lstat = tmp_path / "lock", os.lstat
    path.touch()

    def gone(name, **options):
        path.unlink(missing_ok=True)
        return lstat(name, **options)

    monkeypatch.setattr(os, "lstat", gone)
    lock = file_lock(path)
    monkeypatch.undo()
    assert acquire(lock, wait=False)
    release(lock)
    assert not path.exists()
