"""Public downloads -> one JSONL a task and split, in the project's three parts: context, question, answer.

    python -m lab.prepare woz sql cnn --data-dir ~/raw --cache-dir ~/.cache/l2kd

Raw files are taken from `--data-dir` as they are, or downloaded into it (https, SHA-256 checked). What is made of them
goes to `<cache-dir>/data/<task>-<key>/{train,test}.jsonl`, where the key is a hash of the raw files and of the rules
below, so that a changed file is never mistaken for the old one. A plain list of readers, in the order of SOURCES.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import random
import re
import shutil
import sys
import tarfile
import zlib
from functools import partial
from http.client import HTTPException
from pathlib import Path

import torch

RULES = "1"  # part of every key: change it when a reader's output changes
RAW = "https://raw.githubusercontent.com"
CNN_STORIES = "https://huggingface.co/datasets/cnn_dailymail/resolve/11343c3752184397d56efc19a8a7cceb68089318/data"

SOURCES = {  # task -> its folder in the data directory, and what to download into it: file -> (address, SHA-256)
    "woz": (
        "woz",
        {
            "woz_train_en.json": (
                f"{RAW}/nmrksic/neural-belief-tracker/master/data/woz/woz_train_en.json",
                "7cd9e971553e5f3e80bb0c93164bf4c619c7f49f45d636a0512474cdeb074485",
            ),
            "woz_test_en.json": (
                f"{RAW}/nmrksic/neural-belief-tracker/master/data/woz/woz_test_en.json",
                "3673e433b21a6b0d74e9144bd059e64b29bc3e1c5dc0e18654a98ec597c0d72c",
            ),
        },
    ),
    "sql": (
        "wikisql",
        {
            "data.tar.bz2": (
                "https://github.com/salesforce/WikiSQL/raw/master/data.tar.bz2",
                "755c728ab188e364575705c8641f3fafd86fb089cb8b08e8c03f01832aae0881",
            ),
        },
    ),
    "cnn": (
        "cnn_dailymail",
        {
            "all_train.txt": (
                f"{RAW}/abisee/cnn-dailymail/master/url_lists/all_train.txt",
                "a5cee49f3a6c862c26ce29308236d2a99625ab6c86a43be22d5206b2790d8029",
            ),
            "all_test.txt": (
                f"{RAW}/abisee/cnn-dailymail/master/url_lists/all_test.txt",
                "c4f5efb5ec2126430a5c156efbd13d0e9c4cb490169e552c38b4a51981a009bd",
            ),
            "cnn_stories.tgz": (
                f"{CNN_STORIES}/cnn_stories.tgz",
                "e8fbc0027e54e0a916abd9c969eb35f708ed1467d7ef4e3b17a56739d65cb200",
            ),
            "dailymail_stories.tgz": (
                f"{CNN_STORIES}/dailymail_stories.tgz",
                "ad69010002210b7c406718248ee66e65868b9f6820f163aa966369878d14147e",
            ),
        },
    ),
}
TABLE_1 = {"woz": (2536, 1646), "sql": (6525, 15878), "cnn": (6604, 2250)}  # the paper's sizes: train, test
SPLITS = ("train", "test")
PARTS = ("context", "question", "answer")


class DataError(ValueError):
    """A data file that is missing, broken or not what it should be; the message names it and what to do."""


def prepare(task: str, data_dir: str | Path, cache_dir: str | Path) -> Path:
    """The folder with the task's `train.jsonl` and `test.jsonl`, made from the raw files unless it is there already.

    Subsampled to the sizes of the paper's Table 1 with a fixed seed where the raw files hold more. Raises DataError.
    """
    data_dir, cache_dir = Path(data_dir).expanduser(), Path(cache_dir).expanduser()
    read, files = READERS[task](data_dir / SOURCES[task][0])
    key = hashlib.sha256(RULES.encode())
    for path in files:
        key.update(f"{path.name} {sha256(path)}\n".encode())
    folder = cache_dir / "data" / f"{task}-{key.hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    rows = {split: read(split, size) for split, size in zip(SPLITS, TABLE_1[task])}
    if empty := next((split for split in SPLITS if not rows[split]), None):
        raise DataError(f"{task}: no {empty} example in {', '.join(map(str, files))}")
    temporary = folder.with_name(f".{folder.name}-{os.getpid()}")
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            write_jsonl(temporary / f"{split}.jsonl", rows[split])
        os.replace(temporary, folder)  # all or nothing
    except OSError as e:
        if not folder.is_dir():  # another process may have made it meanwhile
            raise DataError(f"--cache-dir {cache_dir}: can't be written to ({e.strerror})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sizes = tuple(len(rows[split]) for split in SPLITS)
    note = "" if sizes == TABLE_1[task] else " (fewer: all that the raw files hold)"
    print(f"{task}: {sizes[0]} / {sizes[1]} examples; Table 1: {TABLE_1[task][0]} / {TABLE_1[task][1]}{note}")
    return folder


# ---------------------------------------------------------------------- WOZ 2.0: what the user's words change


def woz(folder):
    """WOZ 2.0 as decaNLP casts it: the system's acts and the user's words -> the turn's change of the belief state."""
    files = {split: raw_file("woz", folder, f"woz_{split}_en.json") for split in SPLITS}
    return partial(local_rows, woz_rows, files), list(files.values())


def woz_rows(path):
    """One row a turn; `meta.turn` is `<language>_<dialogue>_<turn>`, which the joint goal is accumulated over."""
    rows = []
    for d, dialogue in enumerate(read_json(path)):
        rows += at(path, f"dialogue {d}", woz_dialogue, d, dialogue)
    return rows


def woz_dialogue(d, dialogue):
    rows, before = [], []  # before: the informed slots after the turn before
    for t, turn in enumerate(dialogue["dialogue"]):
        row, before = woz_turn(turn, before)
        rows.append({"id": f"en_{d}_{t}", **row, "meta": {"turn": f"en_{d}_{t}"}})
    return rows


def woz_turn(turn, before):
    """`food, area: north -- user's words` and `slot: value, slot: value; request, request` (or None)."""
    acts = ", ".join(act if isinstance(act, str) else ": ".join(act) for act in turn["system_acts"])
    context = " ".join(f"{acts + ' -- ' if acts else ''}{turn['transcript']}".split())
    state = [(item["act"], slot, value) for item in turn["belief_state"] for slot, value in item["slots"]]
    informed = [(slot, value) for act, slot, value in state if act == "inform"]
    new = ", ".join(f"{slot}: {value}" for slot, value in informed if (slot, value) not in before)
    requests = ", ".join(value for act, _, value in state if act != "inform")
    answer = f"{new}; {requests}".strip() if new or requests else "None"
    return {"context": context, "question": "What is the change in state?", "answer": answer}, informed


# ---------------------------------------------------------------------- WikiSQL: a question and a header -> SQL

AGGREGATES, OPERATORS = ("", "MAX", "MIN", "COUNT", "SUM", "AVG"), ("=", ">", "<", "OP")
SQL_KEYWORDS = (
    "MAX, MIN, COUNT, SUM, AVG, =, >, <, OP, SELECT, WHERE, AND, COL, TABLE, CAPTION, PAGE, SECTION, OP, COND, "
    "QUESTION, AGG, AGGOPS, CONDOPS"
)


def sql(folder):
    """WikiSQL as decaNLP casts it, lower-cased as the metric wants it; from plain files or from the public archive."""
    names = [f"{split}{kind}.jsonl" for split in SPLITS for kind in ("", ".tables")]
    if files := local_files(folder, names):
        texts = {name: path.read_bytes() for name, path in zip(names, files)}
    else:
        archive = raw_file("sql", folder, "data.tar.bz2")
        files, texts = [archive], read_members(archive, [f"data/{name}" for name in names])

    def read(split, size):
        where = folder / f"{split}.tables.jsonl"
        tables = jsonl_rows(where, texts[where.name])
        headers = dict(at(where, f"line {n}", sql_header, table) for n, table in tables)
        where = folder / f"{split}.jsonl"
        rows = list(jsonl_rows(where, texts[where.name]))
        return [{"id": f"{split}-{n}", **at(where, f"line {n}", sql_row, r, headers)} for n, r in subsample(rows, size)]

    return read, files


def sql_header(table):
    return table["id"], [str(column) for column in table["header"]]


def sql_row(row, headers):
    """Columns and key words, then the question; the SQL text; `meta` keeps the logical form and the header."""
    form, header = row["sql"], headers[row["table_id"]]
    context = f"The table has columns {', '.join(header)} and key words {SQL_KEYWORDS}-- {row['question']}"
    aggregate, selected = AGGREGATES[form["agg"]], header[form["sel"]]
    conditions = " AND ".join(f"{header[column]} {OPERATORS[op]} {value}" for column, op, value in form["conds"])
    answer = f"SELECT {aggregate + ' ' if aggregate else ''}{selected} FROM table"
    answer += f" WHERE {conditions}" if conditions else ""
    return {
        "context": " ".join(context.lower().split()),
        "question": "what is the translation from english to sql?",
        "answer": " ".join(answer.lower().split()),
        "meta": {"sql": {key: form[key] for key in ("sel", "conds", "agg")}, "header": header},
    }


# ---------------------------------------------------------------------- CNN/DailyMail: an article -> its highlights


def cnn(folder):
    """CNN/DailyMail: from {train,test}.jsonl (interchange format), else {train,test}.csv, else the story archives."""
    for kind, reader in (("jsonl", read_jsonl), ("csv", cnn_csv_rows)):
        if files := local_files(folder, [f"{split}.{kind}" for split in SPLITS]):
            return partial(local_rows, reader, dict(zip(SPLITS, files))), files
    lists = {split: raw_file("cnn", folder, f"all_{split}.txt") for split in SPLITS}
    archives = [raw_file("cnn", folder, f"{paper}_stories.tgz") for paper in ("cnn", "dailymail")]

    def read(split, size):
        urls = subsample(decode_utf8(lists[split], lists[split].read_bytes()).split(), size)
        names = [hashlib.sha1(url.encode()).hexdigest() for url in urls]
        stories = read_stories(archives, set(names))
        if missing := [name for name in names if name not in stories]:
            raise DataError(f"{lists[split]}: {len(missing)} of its stories are in neither archive, {missing[0]} first")
        return [{"id": name, **stories[name]} for name in names]

    return read, [*lists.values(), *archives]


def cnn_csv_rows(path):
    """The layout `id,article,highlights`; a quoted field may hold line breaks."""
    csv.field_size_limit(2**24)
    reader = csv.DictReader(io.StringIO(decode_utf8(path, path.read_bytes()), newline=""), strict=True)
    rows = []
    try:
        for row in reader:
            rows.append({"id": row["id"], **cnn_row(row["article"], row["highlights"].split("\n"))})
    except (KeyError, AttributeError, csv.Error) as e:
        raise DataError(f"{path}, line {reader.line_num}: not a row of id,article,highlights ({e!r})") from None
    return rows


def cnn_row(article, highlights):
    article, highlights = " ".join(article.split()), " ".join(" ".join(highlights).split())
    return {"context": article, "question": "What is the summary?", "answer": highlights}


def read_stories(archives, names):
    """The wanted stories, streamed: nothing is unpacked to disk."""
    stories = {}
    for archive in archives:
        try:
            with open_tar(archive, "r|gz") as tar:
                for member in tar:
                    name = Path(member.name).name.removesuffix(".story")
                    if member.isfile() and name in names:
                        text = decode_utf8(f"{archive}: {member.name}", tar.extractfile(member).read())
                        stories[name] = story(text)
        except (tarfile.TarError, EOFError, OSError, zlib.error) as e:
            raise DataError(f"{archive}: cut off or broken ({e}); delete it and fetch it again") from None
    return stories


def story(text):
    """Article lines, then `@highlight` before each highlight. A line without an end gets ` .`, as in the public CSV."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    lines = [
        s if s == "@highlight" or s.endswith((".", "!", "?", "'", "`", '"', "’", "”", ")")) else s + " ." for s in lines
    ]
    first = lines.index("@highlight") if "@highlight" in lines else len(lines)
    return cnn_row(" ".join(lines[:first]), [line for line in lines[first:] if line != "@highlight"])


READERS = {"woz": woz, "sql": sql, "cnn": cnn}


# ---------------------------------------------------------------------- files


def local_files(folder, names):
    """All of the named files, or None where none is there. Raises DataError when some are missing."""
    paths = [folder / name for name in names]
    missing = [path for path in paths if not path.is_file()]
    if missing and len(missing) < len(paths):
        raise DataError(f"{missing[0]} is missing, but {next(p for p in paths if p not in missing)} is there")
    return None if missing else paths


def local_rows(reader, files, split, size):
    """One split, where each split is a file of its own."""
    return subsample(reader(files[split]), size)


def raw_file(task, folder, name):
    """A raw file: the user's own as it is, else downloaded and checked."""
    path, (url, digest) = folder / name, SOURCES[task][1][name]
    if path.is_file():
        return path
    print(f"downloading {url} to {path}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=digest)  # under a temporary name until checked
    except (OSError, RuntimeError, HTTPException) as e:
        hint = f"to work offline, put the file at {path} yourself, or name its folder with --data-dir"
        raise DataError(f"{task}: can't download {url} ({e}); {hint}") from None
    return path


def sha256(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def decode_utf8(path, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = raw[: e.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: not UTF-8 ({e.reason}); convert the file to UTF-8") from None


def at(path, where, function, *arguments):
    """Call a reader of one row; whatever is wrong with the row becomes a DataError that says where it stands."""
    try:
        return function(*arguments)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as e:
        raise DataError(f"{path}, {where}: not a row of this data set ({e!r})") from None


def read_json(path):
    """A whole JSON file that must hold a list."""
    text = decode_utf8(path, path.read_bytes())
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise DataError(f"{path}: empty, cut off or not JSON ({e}); fetch it again") from None
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: a JSON list of dialogues is expected")
    return rows


def jsonl_rows(path, raw: bytes):
    """(line number from 1, object) of each line that is not blank."""
    n = 0
    for n, line in enumerate(decode_utf8(path, raw).split("\n"), start=1):  # not splitlines: U+2028 is no line end
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as e:
                raise DataError(f"{path}, line {n}: cut off or not JSON ({e})") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {n}: a JSON object is expected")
            yield n, row
    if not raw.strip():
        raise DataError(f"{path} is empty")


def read_jsonl(path: Path) -> list[dict]:
    """A JSONL file in the interchange format: `context`, `question`, `answer` (text), perhaps `id` and `meta`.

    Raises DataError, which names the file and line."""
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise DataError(f"{path}: {e.strerror}; a task folder holds train.jsonl and test.jsonl") from None
    rows = []
    for n, row in jsonl_rows(path, raw):
        row = {"id": str(row.get("id", n)), "meta": row.get("meta", {})} | {part: row.get(part) for part in PARTS}
        for part in ("id", *PARTS):
            if not isinstance(row[part], str) or re.search("[\ud800-\udfff]", row[part]):
                raise DataError(f"{path}, line {n}: {part!r} is missing or no text")
        if not isinstance(row["meta"], dict):
            raise DataError(f"{path}, line {n}: 'meta' must be an object")
        rows.append(row)
    return rows


def write_jsonl(path, rows):
    with open(path, "w", encoding="utf-8", newline="\n") as f:
        for row in rows:
            f.write(json.dumps(row) + "\n")
        f.flush()
        os.fsync(f.fileno())


def open_tar(archive, mode):
    try:
        return tarfile.open(archive, mode)
    except (tarfile.TarError, OSError, EOFError) as e:
        raise DataError(f"{archive}: not a whole archive ({e}); delete it and fetch it again") from None


def read_members(archive, names) -> dict[str, bytes]:
    """Whole members of an archive by their base names; nothing is unpacked, so no path of its can do harm."""
    with open_tar(archive, "r:bz2") as tar:
        try:
            return {Path(name).name: tar.extractfile(name).read() for name in names}
        except (KeyError, tarfile.TarError, OSError, EOFError, AttributeError) as e:
            raise DataError(f"{archive}: can't read its members ({e}); delete it and fetch it again") from None


def subsample(rows, size, seed=0):
    """At most `size` rows, drawn with a fixed seed, in their old order."""
    if len(rows) <= size:
        return rows
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), size))]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.error = lambda message: parser.exit(2, f"error: {message} (--help lists the options)\n")  # one line
    parser.add_argument(
        "tasks", nargs="*", default=list(READERS), metavar="task", help=f"default: {', '.join(READERS)}"
    )
    parser.add_argument("--data-dir", default="~/.cache/l2kd/raw", help="where raw files are, or are downloaded to")
    parser.add_argument("--cache-dir", default="~/.cache/l2kd", help="where the prepared JSONL goes")
    options = parser.parse_args()
    if unknown := [task for task in options.tasks if task not in READERS]:
        parser.error(f"unknown task {unknown[0]!r}: known are {', '.join(READERS)}")
    try:
        for task in options.tasks:
            print(task, prepare(task, options.data_dir, options.cache_dir))
    except (DataError, OSError) as error:
        sys.exit(f"error: {error}")
