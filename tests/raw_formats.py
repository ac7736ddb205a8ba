"""Small files in each raw format, good and malformed, for the tests of the readers."""

import hashlib
import io
import json
import random
import tarfile
from pathlib import Path
from typing import NamedTuple

from lab.tasks import TASKS, load_task
from lab.tasks.classification import CLASSES
from lab.tasks.fetch import SOURCES
from lab.tasks.reading import SPLITS


class Raw(NamedTuple):
    """A raw format: the file of its training rows, a good row, malformed ones, and what stands around rows."""

    task: str
    path: str
    good: bytes  # with a number in it
    bad: tuple
    head: bytes = b""
    between: bytes = b"\n"


def classes(task, folder, columns):
    """A classification set: the class, then columns - 1 texts."""
    text = b',"a text"' * (columns - 2)
    bad = [
        b'"0","x"' + text, b'"%d","x"' % (len(CLASSES[task]) + 1) + text, b'"x","x"' + text, b'"","x"' + text,
        b'"1"' + text, b'"1","x","y"' + text, b'"1"' + b',"  "' * (columns - 1), b'"1","x"y' + text,
        b'"1","caf\xe9"' + text, b'"1"; "x"' + text,
    ]  # fmt: skip
    return Raw(task, f"{folder}/train.csv", b'"1","Title %d"' + text, tuple(bad))


WOZ_TURN = b'{"system_acts": [%s], "transcript": %s, "belief_state": [%s]}'
SQL = b'{"table_id": "t-1", "question": %s, "sql": {"sel": %s, "conds": [%s], "agg": %s}}'
FORMATS = {
    "woz": Raw(
        "woz",
        "woz/woz_train_en.json",
        b'{"dialogue": [\n' + WOZ_TURN % (b"", b'"hi %d"', b"") + b"\n]}",
        (
            b"7", b"{}", b'{"dialogue": 3}', b'{"dialogue": ["x"]}', b'{"dialogue": [{"transcript": "hi"}]}',
            *(b'{"dialogue": [' + WOZ_TURN % parts + b"]}" for parts in (
                (b"", b'" "', b""), (b"", b"null", b""), (b"3", b'"hi"', b""), (b"", b'"hi"', b"3"),
                (b"", b'"caf\xe9"', b""), (b"", rb'"\ud800"', b""),
                (b"", b'"hi"', b'{"act": "inform", "slots": [["food"]]}'),
                (b"", b'"hi"', b'{"act": "inform", "slots": [["food", null]]}'),
                (b"", b'"hi"', b'{"act": "request", "slots": [["slot", null]]}'),
            )),
        ),
        b"[\n",
        b",\n",
    ),
    "sql": Raw(
        "sql",
        "wikisql/train.jsonl",
        SQL % (b'"Who is %d?"', b"0", b"[1, 0, 7]", b"0"),
        (
            b"[1]", b"{}", b'{"table_id": "t-1", "que', b'{"table_id": "t-1", "question": "x", "sql": "x"}',
            (SQL % (b'"x"', b"0", b"", b"0")).replace(b"t-1", b"t-2"),
            (SQL % (b'"x"', b"0", b"", b"0")).replace(b'"t-1"', b"[1]"),
            *(SQL % parts for parts in (
                (b'"x"', b"2", b"", b"0"), (b'"x"', b"-1", b"", b"0"), (b'"x"', b"true", b"", b"0"),
                (b'"x"', b"null", b"", b"0"), (b'"x"', b"0", b"", b"6"), (b'"x"', b"0", b"[1, 4, 7]", b"0"),
                (b'"x"', b"0", b"[1, 0]", b"0"), (b'"x"', b"0", b"[2, 0, 7]", b"0"), (b'"x"', b"0", b"3", b"0"),
                (b"null", b"0", b"", b"0"), (b'"caf\xe9"', b"0", b"", b"0"), (b'"x"', b"0", b'[1, 0, "\xe9"]', b"0"),
            )),
        ),
    ),
    "tables": Raw(
        "sql",
        "wikisql/train.tables.jsonl",
        b'{"id": "t-1", "header": ["Player", "No."], "rows": [[%d]]}',
        (
            b"3", b"{}", b'{"id": "t-2"}', b'{"id": "t-2", "header": ["Pl', b'{"id": "t-2", "header": 3}',
            b'{"id": "t-2", "header": "Player"}', b'{"id": ["t-2"], "header": ["Player"]}',
            b'{"id": "t-2", "header": [["Player"]]}', b'{"id": "t-2", "header": ["Caf\xe9"]}',
        ),
    ),
    "cnn": Raw(
        "cnn",
        "cnn_dailymail/train.csv",
        b'a%d,"It ""rained"", a lot","Rain .\nIt was wet ."',
        (b"1,x", b"1,x,y,z", b"1,,y", b'1,x," "', b'1,"x"y,z', b"1,caf\xe9,y", b"1,x,\xe9", b"caf\xe9,x,y"),
        b"id,article,highlights\n",
    ),
    "stories": Raw(
        "cnn",
        "cnn_dailymail/all_train.txt",
        b"http://a/%d",
        (b"http://a/missing", b"http://a/no article", b"http://a/no highlight", b"http://a/latin", b"http://a/\xe9"),
    ),
    "e2e": Raw(
        "e2e",
        "e2e/trainset.csv",
        b'"name[A %d], food[Thai]","A is Thai, and ""cheap""."',
        (b"name[A]", b"a,b,c", b",b", b'name[A]," "', b'"a"b,c', b"caf\xe9,b", b"a,\xe9"),
        b"mr,ref\n",
    ),
    "rnnlg": Raw(
        "rnnlg.rest",
        "rnnlg/restaurant/train.json",
        b'[\n"inform(name=a%d)",\n"a is nice", "a it is"\n]',
        (
            b"7", b"null", b'"abc"', b'{"a": 1, "b": 2, "c": 3}', b"[]", b'["x()", "y"]', b'["x()", "y", "z", "w"]',
            b'["x()", null, "z"]', b'["x()", "y", 3]', b'[3, "y", "z"]', b'["", "y", "z"]', b'["x()", "", "z"]',
            b'["x()", "y", " "]', b'["x()", "y", "\xe9"]', b'["\xe9()", "y", "z"]',
        ),
        b"# (c)\n#####\n[\n",
        b",\n",
    ),
    "ag": classes("ag", "ag_news", 3),
    "yelp": classes("yelp", "yelp", 2),
    "amazon": classes("amazon", "amazon", 3),
    "dbpedia": classes("dbpedia", "dbpedia", 3),
    "yahoo": classes("yahoo", "yahoo", 4),
}  # fmt: skip
PACKED = ("yelp", "amazon", "dbpedia", "yahoo", "sql", "tables")  # formats that are published as one archive
CASES = [(name, False) for name in FORMATS] + [(name, True) for name in PACKED]
STORY = "(CNN) -- It rained\n\nA lot.\n\n@highlight\n\nRain {}\n\n@highlight\n\nIt was wet .\n"


def good_rows(name, n):
    return [FORMATS[name].good % i for i in range(n)]


def write_raw(folder, name, train, test=None, packed=False):
    """A data directory with the rows of one format, and whatever else its reader wants. Returns the training file."""
    raw = FORMATS[name]
    foot = b"\n]\n" if raw.head.endswith(b"[\n") else b"\n"
    path = folder / raw.path
    path.parent.mkdir(parents=True, exist_ok=True)
    if raw.task == "sql":
        for split in SPLITS:
            (path.parent / f"{split}.jsonl").write_bytes(b"\n".join(good_rows("sql", 3)))
            (path.parent / f"{split}.tables.jsonl").write_bytes(b"\n".join(good_rows("tables", 1)))
    for split, rows in (("train", train), ("test", test or good_rows(name, 3))):
        renamed = "testset_w_refs.csv" if name == "e2e" and split == "test" else path.name.replace("train", split)
        (path.parent / renamed).write_bytes(raw.head + raw.between.join(rows) + foot)
        if name == "stories":
            write_stories(path.parent, split, rows)
    if packed:
        pack(path.parent, raw.task)
    return path


def tar(path, members, mode="w:gz"):
    """An archive of texts or bytes; a Path as its content makes a symbolic link to it."""
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, Path):
                info.type, info.linkname, content = tarfile.SYMTYPE, str(content), b""
            content = content.encode() if isinstance(content, str) else content
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def archive_name(task):
    return Path(next(iter(SOURCES[task][1]))).name


def pack(folder, task, extra=None):
    """Loose files -> the archive that they are published in, below a folder of its name."""
    name, files = archive_name(task), sorted(folder.glob("*.*l" if task == "sql" else "*.csv"))
    top = "data" if task == "sql" else name.removesuffix(".tgz")
    members = (extra or {}) | {f"{top}/{path.name}": path.read_bytes() for path in files}
    tar(folder / name, members, "w:bz2" if task == "sql" else "w:gz")
    for path in files:
        path.unlink()


def write_stories(folder, split, urls):
    """Stories of a list of addresses, in one of the two archives."""
    texts = {b"http://a/no article": STORY[STORY.index("@") :], b"http://a/no highlight": "Rain"}
    texts[b"http://a/latin"] = b"Caf\xe9\n\n@highlight\n\nx\n"
    names = {url: hashlib.sha1(url).hexdigest() for url in urls if url != b"http://a/missing"}
    stories = {f"stories/{name}.story": texts.get(url, STORY.format(chr(url[-1]))) for url, name in names.items()}
    paper = {"train": "cnn", "test": "dailymail"}[split]
    tar(folder / f"{paper}_stories.tgz", stories | {"x.story": "x"})


def first_lines(raw, rows):
    """The line that each row begins in."""
    text, lines = raw.head, []
    for row in rows:
        lines.append(text.count(b"\n") + 1)
        text += row + raw.between
    return lines


def mixed(name, bad, n_bad, n=400):
    """n rows with malformed ones among them, and the lines of those."""
    rows, places = good_rows(name, n), random.Random(len(bad)).sample(range(n), n_bad)
    for i, place in enumerate(sorted(places)):
        rows[place] = bad[i % len(bad)]
    lines = first_lines(FORMATS[name], rows)
    return rows, [lines[place] for place in sorted(places)]


def load(name, folder):
    return load_task(FORMATS[name].task, folder, folder / "cache")


def interchange(folder, rows=None):
    """A task folder in the interchange format; the rows are those of both splits."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows or [{"id": "7", "context": " a  b ", "question": "q", "answer": "", "meta": {"x": 1}}] * 3
    for split in SPLITS:
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def set_sizes(monkeypatch, task, train, test):
    """Another Table 1."""
    monkeypatch.setitem(TASKS, task, TASKS[task]._replace(sizes=(train, test)))
