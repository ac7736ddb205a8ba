"""The readers of all raw formats, on small files: good, malformed, cut off, packed, and meant to harm.

python -m pytest tests/test_readers.py"""

import gzip
import hashlib
import io
import os
import random
import re
import shutil
import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from raw_formats import (
    CASES,
    FORMATS,
    PACKED,
    archive_name,
    good_rows,
    load,
    mixed,
    pack,
    set_sizes,
    write_raw,
)

from lab.errors import DataError
from lab.tasks import TASKS, archives, load_task, reading
from lab.tasks.classification import CLASSES
from lab.tasks.cnn import story_parts
from lab.tasks.prepare import prepare
from lab.tasks.reading import read_task, subsample

# ---------------------------------------------------------------------- good files, loose and packed


@pytest.mark.parametrize("name, packed", CASES)
def test_every_format_is_read_whole_packed_or_not(tmp_path, capsys, name, packed):
    write_raw(tmp_path, name, good_rows(name, 20), packed=packed)
    task = load(name, tmp_path)
    assert (len(task.train), len(task.test)) == ({"rnnlg": 40, "tables": 3}.get(name, 20), 3)
    assert task.metric == TASKS[task.name].metric and "malformed" not in capsys.readouterr().out
    write_raw(tmp_path / "loose", name, good_rows(name, 20))
    assert (task.train, task.test) == (load(name, tmp_path / "loose").train, load(name, tmp_path / "loose").test)


@pytest.mark.parametrize("packed", [False, True])
def test_classes_are_named_and_a_written_line_break_is_a_blank(tmp_path, packed):
    """In these four sets `\\n` is how a line break within a text is written."""
    wanted = {
        "yelp": (rb'"5","Good.\n\nVery ""good"""', "very positive", 'Good. Very "good"'),
        "amazon": (rb'"1","Bad","So\nbad"', "very negative", "Bad So bad"),
        "dbpedia": (rb'"14","A book"," By\nme "', "WrittenWork", "A book By me"),
        "yahoo": (rb'"2","Why?","","Because\n\nof it"', "Science & Mathematics", "Why? Because of it"),
    }
    for name, (row, answer, context) in wanted.items():
        write_raw(tmp_path, name, [row], [row], packed=packed)
        e = load(name, tmp_path).test[0]
        assert (e.answer, e.context) == (answer, context)
        assert e.question == f"Is this {', '.join(CLASSES[name][:-1])} or {CLASSES[name][-1]}?"


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_number_has_its_name(tmp_path, name):
    rows = [good.replace(b'"1"', b'"%d"' % i, 1) for i, good in enumerate(good_rows(name, len(CLASSES[name])), 1)]
    write_raw(tmp_path, name, rows)
    assert [e.answer for e in load(name, tmp_path).train] == list(CLASSES[name])


@pytest.mark.parametrize("name", ["e2e", "cnn", "ag", "sql", "tables", "rnnlg", "woz", "stories"])
def test_line_ends_blank_lines_and_a_byte_order_mark_change_nothing(tmp_path, capsys, name):
    path = write_raw(tmp_path / "unix", name, good_rows(name, 9))
    other = write_raw(tmp_path / "dos", name, good_rows(name, 9))
    other.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    assert load(name, tmp_path / "unix").train == load(name, tmp_path / "dos").train
    assert "malformed" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["woz", "sql", "cnn", "e2e", "rnnlg", "ag"])
def test_a_line_separator_inside_a_text_is_no_end_of_line(tmp_path, capsys, name):
    rows = [re.sub(rb"([a-z]{2}) ", "\\1\u2028\x85 ".encode(), row) for row in good_rows(name, 9)]
    assert "\u2028".encode() in rows[0]
    write_raw(tmp_path, name, rows)
    write_raw(tmp_path / "plain", name, good_rows(name, 9))
    task, plain = load(name, tmp_path), load(name, tmp_path / "plain")
    assert len(task.train) == len(plain.train) and "malformed" not in capsys.readouterr().out
    assert [" ".join(e.answer.split()) for e in task.train] == [" ".join(e.answer.split()) for e in plain.train]


@pytest.mark.parametrize("task", ["sql", "yelp", "amazon"])
def test_nothing_of_an_archive_is_written_outside_or_at_all(tmp_path, task):
    evil = {"../../evil.csv": "x", "/evil.csv": "x", f"{tmp_path}/evil.csv": "x", "link": tmp_path / "evil.csv"}
    evil |= {"link/x.csv": "x", "a/train.csv": tmp_path / "evil.csv"}
    path = write_raw(tmp_path / "up" / "raw", task, good_rows(task, 3))
    pack(path.parent, task, evil)
    assert len(load(task, tmp_path / "up" / "raw").train) == 3
    assert not list(tmp_path.rglob("evil*")) and not Path("/evil.csv").exists()
    assert sorted(p.name for p in path.parent.iterdir()) == [archive_name(task)]


def test_cnn_is_streamed_from_its_story_archives(tmp_path):
    write_raw(tmp_path, "stories", [b"http://a/1", b"http://a/2"], [b"http://b/3"])
    task = load_task("cnn", tmp_path, tmp_path / "cache")
    assert [(e.id, e.answer) for e in task.train] == [
        (hashlib.sha1(f"http://a/{i}".encode()).hexdigest(), f"Rain {i} . It was wet .") for i in (1, 2)
    ]
    assert task.test[0].context == "(CNN) -- It rained . A lot."


def test_stories_without_an_article_are_replaced_by_others(tmp_path, monkeypatch):
    """Table 1's size is reached although some stories of the public release have no article."""
    set_sizes(monkeypatch, "cnn", 200, 3)
    good, missing = good_rows("stories", 202), [b"http://a/no article", b"http://a/no highlight"]
    write_raw(tmp_path, "stories", [*good[:101], *missing, *good[101:]])
    assert len(load("stories", tmp_path).train) == 200


def test_a_story_without_highlights_has_an_empty_summary():
    assert story_parts("Only text") == {"context": "Only text .", "question": "What is the summary?", "answer": ""}


# ---------------------------------------------------------------------- malformed rows


MALFORMED = [(name, packed, i) for name, packed in CASES for i in range(len(FORMATS[name].bad))]


@pytest.mark.parametrize("name, packed, i", MALFORMED)
def test_up_to_one_percent_of_malformed_rows_is_left_out_and_counted(tmp_path, capsys, name, packed, i):
    rows, lines = mixed(name, FORMATS[name].bad[i : i + 1], 4)
    path = write_raw(tmp_path, name, rows, packed=packed)
    task = load(name, tmp_path)
    said = [line for line in capsys.readouterr().out.splitlines() if "malformed" in line]
    assert len(said) == 1 and "4 of 400 rows malformed: line " in said[0] and said[0].endswith(", ...; left out")
    assert [int(line) for line in re.findall(r"line (\d+) \(\w+: ", said[0])] == lines[:3]
    assert path.name in said[0] and (not packed or archive_name(FORMATS[name].task) in said[0])
    assert len(task.train) == {"rnnlg": 792, "tables": 3}.get(name, 396) and len(task.test) == 3


@pytest.mark.parametrize("name, packed", CASES)
def test_more_than_one_percent_of_malformed_rows_is_an_error_that_shows_them(tmp_path, capsys, name, packed):
    rows, lines = mixed(name, FORMATS[name].bad, 5)
    path = write_raw(tmp_path, name, rows, packed=packed)
    with pytest.raises(DataError, match=r"5 of 400 rows malformed: .*, \.\.\.; more than 1%") as e:
        load(name, tmp_path)
    assert [int(line) for line in re.findall(r"line (\d+) \(\w+: ", str(e.value))] == lines[:3]
    assert path.name in str(e.value) and "\n" not in str(e.value) and "malformed" not in capsys.readouterr().out
    assert not list((tmp_path / "cache").rglob("*.jsonl"))


def test_malformed_rows_of_a_test_file_count_too_and_are_no_references(tmp_path, capsys):
    rows, lines = [b'name[A],"One %d"' % i for i in range(200)], [42, 142]
    for line in lines:
        rows[line - 2] = b"name[A],caf\xe9"
    write_raw(tmp_path, "e2e", good_rows("e2e", 2), rows)
    task = load_task("e2e", tmp_path, tmp_path / "cache", multi_reference=True)
    said = capsys.readouterr().out
    assert "testset_w_refs.csv: 2 of 200 rows malformed: line 42 (" in said and "), line 142 (" in said
    wanted = [f"One {i}" for i in range(200) if i + 2 not in lines]
    assert [e.meta["references"] for e in task.test] == [wanted]


@pytest.mark.parametrize(
    "name, cut",
    [
        ("woz", b""), ("woz", b" \n"), ("woz", b"["), ("woz", b'{"a": 1}'), ("woz", b"[]"), ("woz", b"[" * 100000),
        ("woz", b"[\n" + FORMATS["woz"].good), ("woz", b"[\n" + FORMATS["woz"].good[:-5]),
        ("woz", b"[\n" + FORMATS["woz"].good + b"] [\n"), ("woz", b"\xff\xfe[]"), ("woz", b"<html>not found</html>"),
        ("rnnlg", b""), ("rnnlg", b"# (c)\n"), ("rnnlg", b'# (c)\n[\n["x()", "y", "z"],\n["x()", "y'),
        ("sql", b""), ("sql", b"\n \n"), ("sql", b"<html>not found</html>"), ("tables", b""),
        ("cnn", b""), ("cnn", b"id,article,highlights\n"), ("cnn", b'id,article,highlights\n1,x,"y .\nz'),
        ("cnn", b'id,article,highlights\n1,x,"y"\n2,x,"y\n'), ("cnn", b"id,article\n1,x\n"), ("cnn", b'"id'),
        ("cnn", b'"id"x,article,highlights\n1,x,y\n'),
        ("stories", b""), ("e2e", b""), ("e2e", b'mr,ref\n"a","b"\n"a","b'), ("e2e", b"a,b\nx,y\n"),
        ("ag", b""), ("ag", b'"1","x","y"\n"1","x","y\n'), ("yahoo", b""), ("yahoo", b'"1","x","y","'),
    ],
)  # fmt: skip
def test_a_file_that_is_empty_or_cut_off_is_named(tmp_path, name, cut):
    path = write_raw(tmp_path, name, good_rows(name, 3))
    path.write_bytes(cut)
    with pytest.raises(DataError, match=re.escape(str(path))) as e:
        load(name, tmp_path)
    assert "\n" not in str(e.value) and not list((tmp_path / "cache").rglob("*.jsonl"))


@pytest.mark.parametrize(
    "name, content, line",
    [
        ("e2e", b'mr,ref\na,b\nc,"d\ne', 3),  # a record is named by the line that it begins in
        ("e2e", b'mr,ref\na,"b\nc"\nd,"e', 4),
        ("rnnlg", b'# (c)\n[\n["x()",\n"y", "z"],\n["x()", "y', 5),
        ("woz", b"[\n" + FORMATS["woz"].good + b",\n{", 5),
    ],
)
def test_where_quotes_or_a_list_are_not_closed_the_line_is_named(tmp_path, name, content, line):
    path = write_raw(tmp_path, name, good_rows(name, 3))
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}, line {line}: .*cut off"):
        load(name, tmp_path)


@pytest.mark.parametrize("name", [*PACKED[:5], "stories"])
def test_an_archive_that_is_cut_off_or_none_is_named_and_so_is_one_with_a_broken_file(tmp_path, name):
    path = write_raw(tmp_path, name, good_rows(name, 300), packed=name in PACKED)
    path = path.parent / ("cnn_stories.tgz" if name == "stories" else archive_name(FORMATS[name].task))
    whole = path.read_bytes()
    for raw in (whole[: len(whole) // 2], whole[: -len(whole) // 4], b"", b"<html>not found</html>"):
        path.write_bytes(raw)
        with pytest.raises(DataError, match=re.escape(str(path))) as e:
            load(name, tmp_path)
        assert "fetch it again" in str(e.value)
    for content in (b'"1","', b""):
        if name in PACKED:
            path.unlink()
            write_raw(tmp_path, name, good_rows(name, 3)).write_bytes(content)
            pack(path.parent, FORMATS[name].task)
            with pytest.raises(DataError, match=re.escape(str(path))):
                load(name, tmp_path)


def broken(raw, r):
    """A file with some bytes changed, cut out or put in."""
    raw = bytearray(raw)
    for _ in range(r.choice([1, 3, 20])):
        i, kind = r.randrange(len(raw) + 1), r.randrange(3)
        raw[i : i + (0, 1, r.randrange(200))[kind]] = r.choice(
            [b"", b'"', b"\n", b"\xff", b"]", b"null", b"\\ud800", b"9" * 5000]
        )
    return bytes(raw)


@pytest.mark.parametrize("name, packed", CASES)
def test_no_bytes_make_anything_but_rows_or_a_data_error(tmp_path, name, packed):
    path = write_raw(tmp_path, name, good_rows(name, 30), packed=packed)
    path = path.parent / archive_name(FORMATS[name].task) if packed else path
    raw, r = path.read_bytes(), random.Random(0)
    for i in range(15):
        path.write_bytes(broken(raw, r))
        try:
            load_task(FORMATS[name].task, tmp_path, tmp_path / f"cache {i}")
        except DataError as e:
            assert "\n" not in str(e)


# ---------------------------------------------------------------------- sizes


@pytest.mark.parametrize("name, packed", CASES)
def test_more_rows_than_table_1_counts_are_subsampled_in_their_old_order(tmp_path, monkeypatch, capsys, name, packed):
    rows = good_rows("sql" if name == "tables" else name, 40)
    path = write_raw(tmp_path, name, good_rows(name, 40) if name == "tables" else rows)
    if name == "tables":
        path.with_name("train.jsonl").write_bytes(b"\n".join(rows))
    if packed:
        pack(path.parent, FORMATS[name].task)
    task, whole = FORMATS[name].task, load(name, tmp_path)
    set_sizes(monkeypatch, task, 5, 9)
    capsys.readouterr()
    some = load_task(task, tmp_path, tmp_path / "other cache")
    again = load_task(task, tmp_path, tmp_path / "third cache")
    assert some.train == again.train == [e for e in whole.train if e in some.train] and len(some.train) == 5
    assert some.train != whole.train[:5] and some.test == whole.test
    if name != "stories":  # of which a few more are drawn, before they are read
        assert some.train == subsample(whole.train, 5)
    assert f"{task}: 5 / 3 examples; Table 1: 5 / 9 (fewer: all that the files hold)\n" in capsys.readouterr().out


def test_a_subsample_is_fixed_sorted_and_of_the_asked_size():
    rows = list(range(100))
    assert subsample(rows, 100) == rows == subsample(rows, 1000)
    some = subsample(rows, 10)
    assert len(some) == 10 and some == sorted(set(some)) == subsample(iter(rows), 10)
    counts = Counter(row for seed in range(500) for row in subsample(rows, 10, seed))
    assert set(counts) == set(rows) and max(counts.values()) < 90  # 50 each, on average


# ---------------------------------------------------------------------- long reads


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    "name, packed", [("ag", False), ("yelp", True), ("amazon", False), ("sql", True), ("cnn", False)]
)
def test_a_long_read_shows_on_a_terminal_how_far_it_is_and_in_a_log_nothing(tmp_path, monkeypatch, name, packed):
    path = write_raw(tmp_path, name, good_rows(name, 300), packed=packed)
    file = path.with_name(archive_name(FORMATS[name].task)) if packed else path
    for where, soon, shown in ((Terminal(), 0, True), (Terminal(), 9, False), (io.StringIO(), 0, False)):
        monkeypatch.setattr(reading, "SOON", soon)
        monkeypatch.setattr("sys.stderr", where)
        load(name, tmp_path)
        shutil.rmtree(tmp_path / "cache")
        assert where.getvalue().count(f"reading {file.name}:") >= 1 if shown else not where.getvalue()


@pytest.mark.parametrize("name, packed", [("ag", False), ("yelp", True), ("sql", True)])
def test_all_bytes_of_a_long_read_are_counted(tmp_path, monkeypatch, name, packed):
    path, counted = write_raw(tmp_path, name, good_rows(name, 300), packed=packed), {}

    def update(bar, n):
        counted[bar.desc] = counted.get(bar.desc, 0) + n

    monkeypatch.setattr(reading, "SOON", 0)
    monkeypatch.setattr(reading.tqdm, "update", update)
    monkeypatch.setattr("sys.stderr", Terminal())
    load(name, tmp_path)
    file = path.with_name(archive_name(FORMATS[name].task)) if packed else path
    assert counted[f"reading {file.name}"] == file.stat().st_size


# ---------------------------------------------------------------------- archives and files that mean harm


def bomb(path, header_type, size, fill=b"\0"):
    """A .tgz of a few kilobytes whose first member claims, and has, `size` bytes."""
    info = tarfile.TarInfo("dbpedia_csv/train.csv")
    info.type, info.size = header_type, size
    with gzip.open(path, "wb", compresslevel=1) as f:
        f.write(info.tobuf())
        for _ in range(size // 2**20):
            f.write(fill * 2**20)


@pytest.mark.parametrize(
    "kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE], ids=["pax", "long", "file"]
)
def test_a_small_archive_that_unpacks_to_far_more_is_refused_in_little_memory(tmp_path, monkeypatch, kind):
    (tmp_path / "dbpedia").mkdir()
    bomb(tmp_path / "dbpedia" / "dbpedia_csv.tgz", kind, 2**28)
    if kind == tarfile.REGTYPE:  # of the others the header alone says too much
        monkeypatch.setattr(archives, "MAX_ARCHIVE", 2**25)
    tracemalloc.start()
    with pytest.raises(DataError, match="not a whole archive"):
        prepare("dbpedia", tmp_path, tmp_path / "cache")
    assert tracemalloc.get_traced_memory()[1] < 2**27
    tracemalloc.stop()


def test_a_member_that_is_too_large_for_memory_is_refused(tmp_path, monkeypatch):
    (tmp_path / "wikisql").mkdir()
    with tarfile.open(tmp_path / "wikisql" / "data.tar.bz2", "w:bz2") as tar:
        info = tarfile.TarInfo("data/train.jsonl")
        info.size = 2**20
        tar.addfile(info, io.BytesIO(b" " * 2**20))
    monkeypatch.setattr(archives, "MAX_MEMBER", 2**19)
    with pytest.raises(DataError, match=r"train\.jsonl has 1048576 bytes"):
        prepare("sql", tmp_path, tmp_path / "cache")


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    for name in ("train.jsonl", "test.jsonl"):
        os.mkfifo(own / name)
    with pytest.raises(DataError, match="not a regular file"):
        read_task(own, "em")
