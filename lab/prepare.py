"""Public downloads -> one JSONL a task and split, in the project's three parts: context, question, answer.

    python -m lab.prepare woz e2e ag --data-dir ~/raw        prepare some tasks, or all thirteen without names
    python -m lab.prepare --from-lamol DIR                   the authors' own processed files, as they released them

Raw files are taken from `--data-dir` as they are, or downloaded into it (https, SHA-256 checked). What is made of them
goes to `<cache-dir>/data/<task>-<key>/{train,test}.jsonl`, where the key is a hash of the raw files and of the rules
below, so that a changed file is never mistaken for the old one. `<task's folder>/{train,test}.jsonl` in the
interchange format (the one that is written here) go before raw files and are not subsampled.

A plain list of readers. Each gives its raw files and a function that reads them: rows by split, malformed ones left
out and counted, at most as many as Table 1 of the paper counts, drawn with a fixed seed.
"""

import argparse
import bz2
import csv
import fcntl
import gzip
import hashlib
import json
import os
import random
import re
import shutil
import sys
import tarfile
import zlib
from contextlib import contextmanager
from functools import partial
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

RULES = "2"  # part of every key: change it when a reader's output changes
SPLITS = ("train", "test")
MAX_LINE, MAX_MEMBER, MAX_ARCHIVE = 2**24, 2**30, 2**34  # bytes: far above every public file
METRIC_WITH_META = {"woz": "joint_goal_em", "sql": "lfem"}  # they need more than texts: see check_meta
PARTS = ("context", "question", "answer")
TABLE_1 = {  # the paper's sizes: train, test
    "woz": (2536, 1646),
    "sql": (6525, 15878),
    "cnn": (6604, 2250),
    "e2e": (6000, 2000),
    "rnnlg.rest": (6228, 1039),
    "rnnlg.hotel": (6446, 1075),
    "rnnlg.tv": (8442, 1407),
    "rnnlg.laptop": (7944, 2649),
    "ag": (115000, 7600),
    "yelp": (115000, 7600),
    "amazon": (115000, 7600),
    "dbpedia": (115000, 7600),
    "yahoo": (115000, 7600),
}

RAW = "https://raw.githubusercontent.com"
WOZ_URL = f"{RAW}/nmrksic/neural-belief-tracker/master/data/woz"
CNN_LISTS = f"{RAW}/abisee/cnn-dailymail/master/url_lists"
CNN_STORIES = "https://huggingface.co/datasets/cnn_dailymail/resolve/11343c3752184397d56efc19a8a7cceb68089318/data"
E2E_URL = f"{RAW}/tuetschek/e2e-dataset/master"
RNNLG_URL = f"{RAW}/shawnwun/RNNLG/master/data/original"
AG_URL = f"{RAW}/mhjabreel/CharCnn_Keras/master/data/ag_news_csv"
FAST_AI = "https://s3.amazonaws.com/fast-ai-nlp"

SOURCES = {  # task -> its folder in the data directory, and what to download into it: address -> SHA-256, if known
    "woz": (
        "woz",
        {
            f"{WOZ_URL}/woz_train_en.json": "7cd9e971553e5f3e80bb0c93164bf4c619c7f49f45d636a0512474cdeb074485",
            f"{WOZ_URL}/woz_test_en.json": "3673e433b21a6b0d74e9144bd059e64b29bc3e1c5dc0e18654a98ec597c0d72c",
        },
    ),
    "sql": (
        "wikisql",
        {
            "https://github.com/salesforce/WikiSQL/raw/master/data.tar.bz2": (
                "755c728ab188e364575705c8641f3fafd86fb089cb8b08e8c03f01832aae0881"
            ),
        },
    ),
    "cnn": (
        "cnn_dailymail",
        {
            f"{CNN_LISTS}/all_train.txt": "a5cee49f3a6c862c26ce29308236d2a99625ab6c86a43be22d5206b2790d8029",
            f"{CNN_LISTS}/all_test.txt": "c4f5efb5ec2126430a5c156efbd13d0e9c4cb490169e552c38b4a51981a009bd",
            f"{CNN_STORIES}/cnn_stories.tgz": "e8fbc0027e54e0a916abd9c969eb35f708ed1467d7ef4e3b17a56739d65cb200",
            f"{CNN_STORIES}/dailymail_stories.tgz": "ad69010002210b7c406718248ee66e65868b9f6820f163aa966369878d14147e",
        },
    ),
    "e2e": (
        "e2e",
        {
            f"{E2E_URL}/trainset.csv": "f27d48df45815288ab15619d47a79028c300fbb7f42e373668aba0b98c1d57c6",
            f"{E2E_URL}/testset_w_refs.csv": "edc8db685e39bb9824d5bd70c18b1c9b0412d14b527aa960e2d1c8251ee15ccd",
        },
    ),
    "rnnlg.rest": (
        "rnnlg/restaurant",
        {
            f"{RNNLG_URL}/restaurant/train.json": "c59ea956404dc4512a430a06c48412a9bde72c30bd92a78e649312c9075f2fca",
            f"{RNNLG_URL}/restaurant/test.json": "e52a84edf121d46a0cbfec66a211f24ccc3e2dd4043317639200904a206c3f9b",
        },
    ),
    "rnnlg.hotel": (
        "rnnlg/hotel",
        {
            f"{RNNLG_URL}/hotel/train.json": "f933b294fcd32d401602abb39d22bc6a360946672132c2b2079e95ccc2e46f9d",
            f"{RNNLG_URL}/hotel/test.json": "4d0b6dc1da1efd4aabec39a45815aac5f0251c636a6a4a7a51cc2f70cec819b3",
        },
    ),
    "rnnlg.tv": (
        "rnnlg/tv",
        {
            f"{RNNLG_URL}/tv/train.json": "61f102e332eaba7ffff6f084b4a8029dee41a85238f26a3361221879ba411ded",
            f"{RNNLG_URL}/tv/test.json": "06cc6aeef5062c3459c68d7a866b79b2579e1f24b1be52f1bde44767cedd3b00",
        },
    ),
    "rnnlg.laptop": (
        "rnnlg/laptop",
        {
            f"{RNNLG_URL}/laptop/train.json": "4e715edeb1a4f70c859b681f18e1798b92d82ca685d65cfaf25c467243b5f409",
            f"{RNNLG_URL}/laptop/test.json": "787237205d301f574d3642e76766f4b6a5d91851a17d0faaf0b68c52daa9944b",
        },
    ),
    "ag": (
        "ag_news",
        {
            f"{AG_URL}/train.csv": "76a0a2d2f92b286371fe4d4044640910a04a803fdd2538e0f3f29a5c6f6b672e",
            f"{AG_URL}/test.csv": "521465c2428ed7f02f8d6db6ffdd4b5447c1c701962353eb2c40d548c3c85699",
        },
    ),
    "yelp": (
        "yelp",
        {
            f"{FAST_AI}/yelp_review_full_csv.tgz": "56006b0a17a370f1e366504b1f2c3e3754e4a3dda17d3e718a885c552869a559",
        },
    ),
    "amazon": ("amazon", {f"{FAST_AI}/amazon_review_full_csv.tgz": None}),
    "dbpedia": (
        "dbpedia",
        {
            f"{FAST_AI}/dbpedia_csv.tgz": "42db5221ddedddb673a4cabcc5f3a7d869714c878bcfe4ba94b29d14aa38e417",
        },
    ),
    "yahoo": (
        "yahoo",
        {
            f"{FAST_AI}/yahoo_answers_csv.tgz": "2d4277855faf8b35259009425fa8f7fe1888b5644b47165508942d000f4c96ae",
        },
    ),
}


class DataError(ValueError):
    """A data file that is missing, broken or not what it should be; the message names it and what to do."""


def prepare(task: str, data_dir: str | Path, cache_dir: str | Path) -> Path:
    """The folder with the task's `train.jsonl` and `test.jsonl`, made from the raw files unless it is there already.

    Subsampled to the sizes of the paper's Table 1 with a fixed seed where the raw files hold more. Raises DataError.
    """
    data_dir, cache_dir = Path(data_dir).expanduser(), Path(cache_dir).expanduser()
    raw, sizes = data_dir / SOURCES[task][0], dict(zip(SPLITS, TABLE_1[task]))
    interchange = [] if list(raw.glob("*.tables.jsonl")) else local_files(raw, [f"{split}.jsonl" for split in SPLITS])
    if interchange:  # chosen already: nothing is left out
        files, read = interchange, lambda sizes: read_task(raw, METRIC_WITH_META.get(task, "rouge"))
    else:
        files, read = READERS[task](task, raw)
    digests = {path: sha256(path) for path in files}
    known = {Path(url).name: digest for url, digest in SOURCES[task][1].items()}
    if own := [path.name for path in files if known.get(path.name, "") not in (None, digests[path])]:
        which = "files" if own[1:] else "file"
        print(f"{task}: {', '.join(own)} in {raw}: used as found, not the known public {which}")
    key = hashlib.sha256("\n".join([RULES, *(f"{path.name} {digests[path]}" for path in files)]).encode())
    folder = cache_dir / "data" / f"{task}-{key.hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    rows = read(sizes)
    if empty := next((split for split in SPLITS if not rows.get(split)), None):
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
    print(f"{task}: {sizes_said(task, rows)}")
    return folder


def sizes_said(task, rows) -> str:
    """Sizes of both splits beside Table 1's."""
    ours = [len(rows[split]) for split in SPLITS]
    fewer = any(n < wanted for n, wanted in zip(ours, TABLE_1[task]))
    note = " (fewer: all that the files hold)" if fewer else ""
    return "{} / {} examples; Table 1: {} / {}{}".format(*ours, *TABLE_1[task], note)


# ---------------------------------------------------------------------- WOZ 2.0: what the user's words change


def woz(task, folder):
    """WOZ 2.0 as decaNLP casts it: the system's acts and the user's words -> the turn's change of the belief state."""
    files = {split: raw_file(task, folder, f"woz_{split}_en.json") for split in SPLITS}

    def read(sizes):
        rows = {}
        for split, path in files.items():
            dialogues = enumerate(json_items(path, text_of(path)))
            items = ((line, (d, dialogue)) for d, (line, dialogue) in dialogues)
            rows[split] = subsample(good_rows(path, items, woz_dialogue), sizes[split])
        return rows

    return list(files.values()), read


def woz_dialogue(line, item):
    """One row a turn; `meta.turn` is `<language>_<dialogue>_<turn>`, which the joint goal is accumulated over."""
    d, dialogue = item
    rows, before = [], []  # before: the informed slots after the turn before
    for t, turn in enumerate(dialogue["dialogue"]):
        row, before = woz_turn(turn, before)
        rows.append({"id": f"en_{d}_{t}", **row, "meta": {"turn": f"en_{d}_{t}"}})
    return rows


def woz_turn(turn, before):
    """`food, area: north -- user's words` and `slot: value, slot: value; request, request` (or None)."""
    acts = ", ".join(act if isinstance(act, str) else ": ".join(act) for act in turn["system_acts"])
    context = one_line((acts + " -- " if acts else "") + turn["transcript"])
    state = [(item["act"], slot, value) for item in turn["belief_state"] for slot, value in item["slots"]]
    informed = [(slot, value) for act, slot, value in state if act == "inform"]
    new = ", ".join(": ".join(pair) for pair in informed if pair not in before)
    requests = ", ".join(value for act, _, value in state if act != "inform")
    answer = f"{new}; {requests}".strip() if new or requests else "None"
    return {"context": context, "question": "What is the change in state?", "answer": answer}, informed


# ---------------------------------------------------------------------- WikiSQL: a question and a header -> SQL

AGGREGATES, OPERATORS = ("", "MAX", "MIN", "COUNT", "SUM", "AVG"), ("=", ">", "<", "OP")
SQL_KEYWORDS = (
    "MAX, MIN, COUNT, SUM, AVG, =, >, <, OP, SELECT, WHERE, AND, COL, TABLE, CAPTION, PAGE, SECTION, OP, COND, "
    "QUESTION, AGG, AGGOPS, CONDOPS"
)


def sql(task, folder):
    """WikiSQL as decaNLP casts it, lower-cased as the metric wants it; from plain files or from the public archive."""
    names = [f"{split}{kind}.jsonl" for split in SPLITS for kind in ("", ".tables")]
    files = local_files(folder, names) or [raw_file(task, folder, "data.tar.bz2")]

    def read(sizes):
        if len(files) == 1:
            texts = read_members(files[0], [f"data/{name}" for name in names])
        else:
            texts = {path.name: path.read_bytes() for path in files}
        place, rows = files[0] if len(files) == 1 else folder, {}
        for split in SPLITS:
            path, tables = place / f"{split}.jsonl", place / f"{split}.tables.jsonl"
            headers = dict(good_rows(tables, jsonl_items(decode(texts[tables.name])), sql_header))
            if not headers:
                raise DataError(f"{tables}: no table in it; fetch it again")
            convert = partial(sql_example, split, headers)
            rows[split] = subsample(good_rows(path, jsonl_items(decode(texts[path.name])), convert), sizes[split])
        return rows

    return files, read


def sql_header(line, table):
    """A table's id and header. Raises TypeError or ValueError where they are no texts."""
    id, header = table["id"], table["header"]
    if not isinstance(header, list):
        raise ValueError("'header' is no list")
    "".join([id, *header]).encode()  # half a character is no UTF-8
    return [(id, header)]


def sql_example(split, headers, line, row):
    return [{"id": f"{split}-{line}", **sql_row(row, headers)}]


def sql_row(row, headers):
    """Columns and key words, then the question; the SQL text; `meta` keeps the logical form and the header."""
    form, header = row["sql"], headers[row["table_id"]]
    context = f"The table has columns {', '.join(header)} and key words {SQL_KEYWORDS}-- " + row["question"]
    aggregate, selected = at(AGGREGATES, form["agg"]), at(header, form["sel"])
    conditions = " AND ".join(f"{at(header, col)} {at(OPERATORS, op)} {value}" for col, op, value in form["conds"])
    answer = f"SELECT {aggregate + ' ' if aggregate else ''}{selected} FROM table"
    answer += f" WHERE {conditions}" if conditions else ""
    return {
        "context": one_line(context.lower()),
        "question": "what is the translation from english to sql?",
        "answer": one_line(answer.lower()),
        "meta": {"sql": {key: form[key] for key in ("sel", "conds", "agg")}, "header": header},
    }


# ---------------------------------------------------------------------- CNN/DailyMail: an article -> its highlights


def cnn(task, folder):
    """CNN/DailyMail from {train,test}.csv (`id,article,highlights`), else from the two archives of stories."""
    if files := local_files(folder, [f"{split}.csv" for split in SPLITS]):
        return files, partial(read_csv_files, files, lambda split: cnn_columns, header=True)
    lists = {split: raw_file(task, folder, f"all_{split}.txt") for split in SPLITS}
    archives = [raw_file(task, folder, f"{paper}_stories.tgz") for paper in ("cnn", "dailymail")]

    def read(sizes):
        drawn = {}  # a few more than wanted: some stories of the public release have no article
        for split, path in lists.items():
            urls = ((n, url.strip()) for n, url in enumerate(text_of(path).split("\n"), 1) if url.strip())
            drawn[split] = [(n, story_name(url)) for n, url in subsample(urls, sizes[split] + sizes[split] // 50)]
        stories = read_stories(archives, {name for rows in drawn.values() for _, name in rows})

        def convert(line, name):
            if name not in stories:
                raise ValueError(f"{name}.story is in neither archive")
            return [{"id": name, **story(stories[name])}]

        return {split: subsample(good_rows(lists[split], drawn[split], convert), sizes[split]) for split in SPLITS}

    return [*lists.values(), *archives], read


def cnn_columns(line, row):
    return [{"id": row["id"], **cnn_row(row["article"], row["highlights"])}]


def cnn_row(article, highlights):
    return {"context": one_line(article), "question": "What is the summary?", "answer": one_line(highlights)}


def story_name(url: str) -> str:
    return hashlib.sha1(url.encode(errors="replace")).hexdigest()


def read_stories(archives, names) -> dict[str, str]:
    """The wanted stories, streamed: nothing is unpacked to disk."""
    stories = {}
    for archive in archives:
        with tar_stream(archive) as tar:
            for member in tar:
                name = Path(member.name).name.removesuffix(".story")
                if member.isfile() and name in names:
                    stories[name] = decode(content_of(tar, member))
    return stories


def story(text):
    """Article lines, then `@highlight` before each highlight. A line without an end gets ` .`, as in the public CSV."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    lines = [
        s if s == "@highlight" or s.endswith((".", "!", "?", "'", "`", '"', "’", "”", ")")) else s + " ." for s in lines
    ]
    first = lines.index("@highlight") if "@highlight" in lines else len(lines)
    return cnn_row(" ".join(lines[:first]), " ".join(line for line in lines[first:] if line != "@highlight"))


# ---------------------------------------------------------------------- E2E, RNNLG: a meaning -> a sentence

NLG_QUESTION = "What is the natural language form?"


def e2e(task, folder):
    """E2E NLG, `mr,ref`: each row is an example. A test row's `meta.references` are all of its mr, in file order."""
    files = [raw_file(task, folder, name) for name in ("trainset.csv", "testset_w_refs.csv")]

    def read(sizes):
        rows = read_csv_files(files, lambda split: partial(e2e_row, split), dict.fromkeys(SPLITS, 10**9), header=True)
        references = {}
        for row in rows["test"]:
            references.setdefault(row["context"], []).append(row["answer"])
        for row in rows["test"]:
            row["meta"] = {"references": references[row["context"]]}
        return {split: subsample(rows[split], sizes[split]) for split in SPLITS}

    return files, read


def e2e_row(split, line, row):
    parts = {"context": one_line(row["mr"]), "question": NLG_QUESTION, "answer": row["ref"].strip()}
    return [{"id": f"{split}-{line}", **parts}]


def rnnlg(task, folder):
    """RNNLG: `[act, human response, HDC baseline]` a row, below lines that start with `#`.

    Table 1 counts twice the rows of training in rest, hotel and tv, and once those of laptop: from the counts, and from
    them alone, we take both texts as targets there, and the human one here. Test rows have the human one."""
    files = [raw_file(task, folder, f"{split}.json") for split in SPLITS]

    def read(sizes):
        rows = {}
        for split, path in zip(SPLITS, files):
            lines = ["" if line.startswith("#") else line for line in text_of(path).split("\n")]
            both = split == "train" and task != "rnnlg.laptop"
            items = json_items(path, "\n".join(lines))
            rows[split] = subsample(good_rows(path, items, partial(rnnlg_row, split, both)), sizes[split])
        return rows

    return files, read


def rnnlg_row(split, both, line, row):
    if not isinstance(row, list) or len(row) != 3:
        raise ValueError("not a list of 3 texts")
    act, *texts = row
    parts = {"context": act.strip(), "question": NLG_QUESTION}
    kinds = zip(("human", "hdc"), texts if both else texts[:1])
    return [{"id": f"{split}-{line}-{kind}", **parts, "answer": text.strip()} for kind, text in kinds]


# ---------------------------------------------------------------------- classification: a text -> its class

STARS = ("very negative", "negative", "neutral", "positive", "very positive")  # 1 to 5 stars
CLASSES = {
    "ag": ("World", "Sports", "Business", "Sci/Tech"),
    "yelp": STARS,
    "amazon": STARS,
    "dbpedia": (
        "Company", "EducationalInstitution", "Artist", "Athlete", "OfficeHolder", "MeanOfTransportation", "Building",
        "NaturalPlace", "Village", "Animal", "Plant", "Album", "Film", "WrittenWork",
    ),
    "yahoo": (
        "Society & Culture", "Science & Mathematics", "Health", "Education & Reference", "Computers & Internet",
        "Sports", "Business & Finance", "Entertainment & Music", "Family & Relationships", "Politics & Government",
    ),
}  # fmt: skip
COLUMNS = {"ag": 3, "yelp": 2, "amazon": 3, "dbpedia": 3, "yahoo": 4}  # the class, counted from 1, and texts


def classification(task, folder):
    """CSV without a header: the class, then one to three texts. From {train,test}.csv, else from the public archive."""
    names = [f"{split}.csv" for split in SPLITS]
    urls = list(SOURCES[task][1])
    if len(urls) == 2:
        files = [raw_file(task, folder, name) for name in names]
    else:
        files = local_files(folder, names) or [raw_file(task, folder, Path(urls[0]).name)]
    if len(files) == 2:
        return files, partial(read_csv_files, files, lambda split: partial(class_row, task, split))

    def read(sizes):
        rows = {}
        with tar_stream(files[0]) as tar:
            for member in tar:
                split = Path(member.name).name.removesuffix(".csv")
                if member.isfile() and Path(member.name).name in names:
                    items = csv_items(where := f"{files[0]}: {member.name}", text_lines(tar.extractfile(member)))
                    rows[split] = subsample(good_rows(where, items, partial(class_row, task, split)), sizes[split])
        return rows

    return files, read


def class_row(task, split, line, row):
    """The texts joined; the question names the classes (our wording); the answer is the name of the class.

    A line break within a text is written `\\n` in these files, but for AG News, where a backslash stands alone."""
    label, *texts = row
    if len(row) != COLUMNS[task]:
        raise ValueError(f"{len(row)} fields in place of {COLUMNS[task]}")
    if task != "ag":
        texts = [text.replace("\\n", " ") for text in texts]
    names = CLASSES[task]
    return [
        {
            "id": f"{split}-{line}",
            "context": one_line(" ".join(texts)),
            "question": f"Is this {', '.join(names[:-1])} or {names[-1]}?",
            "answer": at(names, int(label) - 1),
        }
    ]


READERS = {"woz": woz, "sql": sql, "cnn": cnn, "e2e": e2e}
READERS |= {task: rnnlg if task.startswith("rnnlg") else classification for task in TABLE_1 if task not in READERS}

# ---------------------------------------------------------------------- the authors' own processed files

LAMOL_NAMES = {"woz.en": "woz", "wikisql": "sql", "cnn_dailymail": "cnn", "e2enlg": "e2e"}
LAMOL_NAMES |= {task: task for task in TABLE_1 if task not in LAMOL_NAMES.values()}
LAMOL_ANSWERS = {"woz": "woz.en_answers.json", "sql": "wikisql_answers.json"}


def from_lamol(source: str | Path, data_dir: str | Path) -> list[str]:
    """The files of `l2kd_data.zip` and of LAMOL's folder -> interchange files in data_dir, where `prepare` finds them.

    `{name}_to_squad-{train,test}-v2.0.json`, in the layout of SQuAD 2.0, and for woz and sql a list of what the metric
    needs, in the order of the test questions' ids. Returns the tasks that were found. Raises DataError."""
    source, data_dir = Path(source).expanduser(), Path(data_dir).expanduser()
    found = {}
    for name, task in LAMOL_NAMES.items():
        if files := local_files(source, [f"{name}_to_squad-{split}-v2.0.json" for split in SPLITS]):
            rows = {split: lamol_rows(path) for split, path in zip(SPLITS, files)}
            if task in LAMOL_ANSWERS:
                rows["test"] = with_answers(rows["test"], source / LAMOL_ANSWERS[task], METRIC_WITH_META[task])
            folder = data_dir / SOURCES[task][0]
            if list(folder.glob("*.tables.jsonl")):
                raise DataError(f"{folder} holds the raw files of WikiSQL, of the same names: take another --data-dir")
            found[task] = rows
    if not found:
        names = ", ".join(LAMOL_NAMES)
        raise DataError(f"--from-lamol {source}: no NAME_to_squad-train-v2.0.json is there, with NAME one of {names}")
    for task, rows in found.items():  # nothing is written before everything has been read
        folder = data_dir / SOURCES[task][0]
        folder.mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            temporary = folder / f".{split}.jsonl.{os.getpid()}"
            write_jsonl(temporary, rows[split])
            os.replace(temporary, folder / f"{split}.jsonl")
        print(f"{task}: {sizes_said(task, rows)}; in {folder}")
    return list(found)


def lamol_rows(path):
    """The question-answer pairs of one file, in the order of their ids. No answer is an empty one; of several the first
    counts, and all are the references."""
    try:
        data = json.loads(text_of(path))["data"]
        pairs = [(p["context"], qa) for article in data for p in article["paragraphs"] for qa in p["qas"]]
        rows = []
        for context, qa in sorted(pairs, key=lambda pair: id_order(pair[1]["id"])):
            texts = [answer["text"] for answer in qa["answers"]] or [""]
            row = {"id": str(qa["id"]), "context": context, "question": qa["question"], "answer": texts[0]}
            rows.append(row | {"meta": {"references": texts} if texts[1:] else {}})
            check_row(rows[-1])
            check_meta("rouge", rows[-1]["meta"])
        if not rows:
            raise ValueError("no question in it")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise DataError(f"{path}: not in the layout of SQuAD 2.0, or cut off ({e!r})") from None
    return rows


def id_order(id):
    """Numbers by their value, other ids as text."""
    return (0, int(id), "") if str(id).isdecimal() else (1, 0, str(id))


def with_answers(rows, path, metric):
    """What the metric needs besides: turns and their answers (woz), or logical forms and headers (sql)."""
    try:
        entries = json.loads(text_of(path))
        if len(entries) != len(rows):
            raise ValueError(f"{len(entries)} entries for {len(rows)} test questions")
        for row, entry in zip(rows, entries):
            if isinstance(entry, dict):
                form = {key: entry["sql"][key] for key in ("sel", "conds", "agg")}
                row |= {"answer": entry["answer"], "meta": {"sql": form, "header": list(entry["header"])}}
            else:
                turn, answer = entry
                row |= {"answer": answer, "meta": {"turn": turn}}
            check_row(row)
            check_meta(metric, row["meta"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as e:
        raise DataError(f"{path}: not the answers to its task's test questions ({e})") from None
    return rows


# ---------------------------------------------------------------------- from items of a raw file to rows


def good_rows(path, items, convert):
    """The rows that `convert(line, item)` makes of a raw file's items, an item of which may be an error by itself.

    What is malformed is left out and counted, the first three shown; more than 1% of it raises DataError."""
    n, bad, shown = 0, 0, []
    for line, item in items:
        n += 1
        try:
            if isinstance(item, Exception):
                raise item
            rows = convert(line, item)
            for row in rows:
                if isinstance(row, dict):
                    check_row(row)
                    if not (row["context"] and row["answer"]):
                        raise ValueError("no context" if row["answer"] else "no answer")
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as e:
            bad += 1
            if bad <= 3:
                shown.append(f"line {line} ({type(e).__name__}: {e})"[:200])
            continue
        yield from rows
    if bad:
        said = f"{path}: {bad} of {n} rows malformed: {', '.join(shown)}{', ...' if bad > 3 else ''}"
        if 100 * bad > n:
            raise DataError(f"{said}; more than 1%: mend the file or fetch it again")
        print(f"{said}; left out")


def check_row(row) -> None:
    """Raises ValueError where a part is no text: half a character is what bytes that are not UTF-8 were decoded to."""
    for part in ("id", *PARTS):
        if not isinstance(row.get(part), str):
            raise ValueError(f"{part!r} is missing or no text")
        if re.search("[\ud800-\udfff]", row[part]):
            raise ValueError(f"{part!r} is not UTF-8 text")


def subsample(rows, size, seed=0):
    """At most `size` of any number of rows, drawn with a fixed seed, in their old order (reservoir sampling: the i-th
    row replaces one of those kept with probability size / i)."""
    r, kept = random.Random(seed), []
    for i, row in enumerate(rows):
        j = i if i < size else r.randrange(i + 1)
        if i < size:
            kept.append((i, row))
        elif j < size:
            kept[j] = (i, row)
    return [row for _, row in sorted(kept, key=lambda one: one[0])]


def at(choices, i):
    """choices[i] without Python's negative indices."""
    if type(i) is not int or not 0 <= i < len(choices):
        raise ValueError(f"{i!r} is no index from 0 to {len(choices) - 1}")
    return choices[i]


def one_line(text: str) -> str:
    return " ".join(text.split())


# ---------------------------------------------------------------------- from files to (line, item)


def decode(raw: bytes) -> str:
    """UTF-8 to text; a byte that is none becomes half a character, which `check_row` finds in its row."""
    return raw.decode("utf-8-sig", errors="surrogateescape")


def text_of(path) -> str:
    if path.exists() and not path.is_file():  # a pipe would be waited for, a device never ends
        raise DataError(f"{path}: no regular file")
    return decode(path.read_bytes())


def text_lines(binary):
    """Lines of a binary stream as text, line ends as they are: the csv module wants them so.

    Not io.TextIOWrapper, which can't read a member of a streamed archive. A line of more than MAX_LINE bytes is cut."""
    return map(decode, iter(lambda: binary.readline(MAX_LINE), b""))


def json_items(path, text):
    """(line, item) of a JSON list of anything, one item at a time. Raises DataError where it is cut off."""
    space, decoder = re.compile(r"[\s,]*"), json.JSONDecoder()
    end = space.match(text).end()
    if text[end : end + 1] != "[":
        raise DataError(f"{path}: empty, cut off or not JSON: a JSON list is expected; fetch it again")
    line, seen, start = 1, 0, space.match(text, end + 1).end()
    while text[start : start + 1] != "]":
        line, seen = line + text.count("\n", seen, start), start
        try:
            item, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as e:
            raise DataError(f"{path}, line {line}: empty, cut off or not JSON ({e}); fetch it again") from None
        yield line, item
        start = space.match(text, end).end()
    if text[start + 1 :].strip():
        raise DataError(f"{path}, line {line + text.count(chr(10), seen, start)}: something follows the JSON list")


def jsonl_items(text):
    """(line, object) of each line that is not blank; what is no JSON object is given as an error."""
    for n, line in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 is no line end
        if line.strip():
            try:
                row = json.loads(line)
                yield n, row if isinstance(row, dict) else ValueError("a JSON object is expected")
            except (ValueError, RecursionError) as e:
                yield n, ValueError(f"cut off or not JSON: {e}")


def csv_items(path, lines):
    """(line, fields) of each record, which may span lines; a broken one is given as an error. Quotes are doubled, and a
    backslash is an ordinary character. Raises DataError where the file ends within quotes."""
    csv.field_size_limit(MAX_LINE)
    reader = csv.reader(lines, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            if "unexpected end" in str(e):
                raise DataError(f"{path}, line {line}: cut off within quotes; fetch it again") from None
            row = ValueError(str(e))
        if row:
            yield line, row


def named_fields(path, items):
    """(line, {column: field}) for a CSV with a header."""
    columns = next(items, (1, []))[1]
    if isinstance(columns, Exception):
        raise DataError(f"{path}: its header can't be read ({columns})")
    for line, row in items:
        if not isinstance(row, Exception) and len(row) != len(columns):
            row = ValueError(f"{len(row)} fields in place of {len(columns)}")
        yield line, row if isinstance(row, Exception) else dict(zip(columns, row))


def read_csv_files(files, convert_of, sizes, header=False):
    """Rows by split, from a CSV file for each."""
    rows = {}
    for split, path in zip(SPLITS, files):
        with open(path, "rb") as f:
            items = csv_items(path, text_lines(f))
            items = named_fields(path, items) if header else items
            rows[split] = subsample(good_rows(path, items, convert_of(split)), sizes[split])
    return rows


def read_task(folder: Path, metric: str) -> dict[str, list[dict]]:
    """Both splits of a task folder in the interchange format. Raises DataError, which names the file and line."""
    rows = {split: read_jsonl(folder / f"{split}.jsonl") for split in SPLITS}
    for n, row in enumerate(rows["test"], 1):
        try:
            check_meta(metric, row["meta"])
        except (KeyError, TypeError, ValueError) as e:
            what = f"'meta' lacks what {metric} needs ({e})"
            raise DataError(f"{folder / 'test.jsonl'}, example {n}: {what}") from None
    return rows


def check_meta(metric: str, meta: dict) -> None:
    """Raises KeyError, TypeError or ValueError where a test example's `meta` lacks what its metric needs.

    joint_goal_em: turn, as `<language>_<dialogue>_<turn>`, in dialogue order. lfem: sql {sel, agg, conds: [[column,
    operator, value]]} and the header it points into. rouge: references, if there are several (--multi-reference)."""
    texts = []
    if metric == "joint_goal_em":
        texts = [meta["turn"]]
    elif metric == "lfem":
        texts, form = meta["header"], meta["sql"]
        at(texts, form["sel"]), at(AGGREGATES, form["agg"])
        for column, operator, _ in form["conds"]:
            at(texts, column), at(OPERATORS, operator)
    elif metric == "rouge":
        texts = meta.get("references", [])
    if not isinstance(texts, list) or any(not isinstance(text, str) for text in texts):
        raise ValueError("a list of texts is expected")


def read_jsonl(path: Path) -> list[dict]:
    """A JSONL file in the interchange format: `context`, `question`, `answer` (text), perhaps `id` and `meta`.

    Raises DataError, which names the file and line."""
    try:
        text = text_of(path)
    except OSError as e:
        raise DataError(f"{path}: {e.strerror}; a task folder holds train.jsonl and test.jsonl") from None
    rows = []
    for n, row in jsonl_items(text):
        try:
            if isinstance(row, Exception):
                raise row
            row = {"id": str(row.get("id", n)), "meta": row.get("meta", {})} | {part: row.get(part) for part in PARTS}
            check_row(row)
            if not isinstance(row["meta"], dict):
                raise ValueError("'meta' must be an object")
        except ValueError as e:
            raise DataError(f"{path}, line {n}: {e}") from None
        rows.append(row)
    if not rows:
        raise DataError(f"{path} is empty")
    return rows


def write_jsonl(path, rows):
    with open(path, "w", encoding="utf-8", newline="\n") as f:
        for row in rows:
            f.write(json.dumps(row) + "\n")
        f.flush()
        os.fsync(f.fileno())


class Header(tarfile.TarInfo):
    """A member's header, whose own extension (a long name, say) can't claim more than MAX_LINE bytes of memory."""

    @classmethod
    def frombuf(cls, *arguments):
        header = super().frombuf(*arguments)
        if not (header.isfile() or header.isdir() or header.size <= MAX_LINE):
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


class Bounded:
    """A decompressed stream of at most MAX_ARCHIVE bytes: a small archive may hold more than anyone has time for."""

    def __init__(self, f):
        self.f, self.left = f, MAX_ARCHIVE

    def read(self, size):
        chunk = self.f.read(size)
        self.left -= len(chunk)
        if self.left < 0:
            raise tarfile.ReadError(f"more than {MAX_ARCHIVE} bytes in it")
        return chunk


@contextmanager
def tar_stream(archive):
    """The members of a .tgz or .tar.bz2 in their order, read to its end, where the checksum stands; nothing is
    unpacked, so no path in it can do harm. Raises DataError for an archive that is broken or far too large."""
    try:
        with (bz2.open if archive.suffix == ".bz2" else gzip.open)(archive) as f:
            f = Bounded(f)
            with tarfile.open(fileobj=f, mode="r|", tarinfo=Header) as tar:
                yield tar
                while f.read(2**20):
                    pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as e:
        raise DataError(f"{archive}: not a whole archive ({e}); delete it and fetch it again") from None


def content_of(tar, member) -> bytes:
    """A whole member. Raises ReadError where it is too large for memory."""
    if member.size > MAX_MEMBER:
        raise tarfile.ReadError(f"{member.name} has {member.size} bytes")
    return tar.extractfile(member).read()


def read_members(archive, names) -> dict[str, bytes]:
    """Whole members of an archive by their base names."""
    with tar_stream(archive) as tar:
        wanted = (member for member in tar if member.isfile() and member.name in names)
        found = {Path(member.name).name: content_of(tar, member) for member in wanted}
    if missing := next((name for name in names if Path(name).name not in found), None):
        raise DataError(f"{archive}: not a whole archive ({missing} is not in it); delete it and fetch it again")
    return found


# ---------------------------------------------------------------------- raw files: the user's own, or downloads


def local_files(folder, names):
    """All of the named files, or None where none is there. Raises DataError when some are missing."""
    paths = [folder / name for name in names]
    missing = [path for path in paths if not path.is_file()]
    if missing and len(missing) < len(paths):
        raise DataError(f"{missing[0]} is missing, but {next(p for p in paths if p not in missing)} is there")
    return None if missing else paths


def raw_file(task, folder, name):
    """A raw file: the user's own as it is, else downloaded and checked."""
    url, digest = next((url, digest) for url, digest in SOURCES[task][1].items() if Path(url).name == name)
    path = folder / name
    if not path.is_file():
        try:
            download(url, path, digest)
        except (OSError, HTTPException, DataError) as e:
            wanted = f"its SHA-256 should be {digest}" if digest else "no checksum of it is known"
            hint = f"to work offline, put the file at {path} yourself, or name its folder with --data-dir"
            raise DataError(f"{task}: can't download {url} to {path} ({e}); {wanted}; {hint}") from None
    return path


def download(url: str, path: Path, digest: str | None) -> None:
    """Fetch url to path, which only a whole file with the right SHA-256 ever gets; an archive without a known one is
    read through instead. What an interrupted download leaves in `<path>.part` is gone on with. Raises DataError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with open(part, "ab") as f:
        fcntl.flock(f, fcntl.LOCK_EX)  # two processes may want it at once: the second finds it done
        if path.is_file():
            return part.unlink(missing_ok=True)
        have = f.seek(0, os.SEEK_END)
        print(f"downloading {url} to {path}{f', from byte {have} on' if have else ''}")
        try:
            request = Request(url, headers={"User-Agent": "l2kd"} | ({"Range": f"bytes={have}-"} if have else {}))
            with urlopen(request, timeout=60) as reply:
                if url.startswith("https:") and not reply.url.startswith("https:"):
                    raise DataError(f"sent on to {reply.url}, which is not https")
                if "html" in reply.headers.get("Content-Type", ""):
                    raise DataError("a web page came in place of the file; a log-in or an error page?")
                if reply.status != 206:  # the server starts at the beginning
                    f.truncate(have := 0)
                total = -1 if reply.length is None else have + reply.length  # None: the server doesn't say
                with tqdm(total=max(total, 0) or None, initial=have, unit="B", unit_scale=True, disable=None) as bar:
                    while chunk := reply.read(2**20):
                        f.write(chunk)
                        bar.update(len(chunk))
            f.flush()
            size = part.stat().st_size
            if -1 < total != size:
                raise DataError(f"cut off: {size} of {total} bytes; the next try goes on from there")
            if not size:
                raise DataError("an empty file came")
        except HTTPError as e:
            if not (have and e.code == 416):  # 416: there is nothing after what we have, so it is whole or wrong
                raise
        finally:
            if not part.stat().st_size:
                part.unlink()
        os.fsync(f.fileno())
        try:
            check_download(part, digest)
        except DataError:
            part.unlink()
            raise
        os.replace(part, path)


def check_download(path, digest) -> None:
    """Raises DataError for another SHA-256 or, where none is known, for an archive that lacks its two files."""
    seen = sha256(path)
    if digest is None:
        with tar_stream(path) as tar:
            names = {Path(member.name).name for member in tar}
        if not {"train.csv", "test.csv"} <= names:
            raise DataError("the archive holds no train.csv and test.csv")
        print(f"no checksum is known for it; its SHA-256 is {seen}")
    elif seen != digest:
        raise DataError(f"broken or changed: its SHA-256 is {seen}; deleted, the next try starts anew")


def sha256(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def main(argv=None) -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f"error: {message} (--help lists the options)\n")  # one line
    parser.add_argument("tasks", nargs="*", metavar="task", help=f"default: all, {', '.join(READERS)}")
    parser.add_argument("--from-lamol", metavar="DIR", help="take the authors' processed files in DIR instead")
    parser.add_argument(
        "--data-dir", help="where raw files are, or are downloaded to; default ~/.cache/l2kd/raw, or lamol for theirs"
    )
    parser.add_argument("--cache-dir", default="~/.cache/l2kd", help="prepared JSONL goes there (default %(default)s)")
    o = parser.parse_args(argv)
    if unknown := [task for task in o.tasks if task not in READERS]:
        parser.error(f"unknown task {unknown[0]!r}: known are {', '.join(READERS)}")
    if o.from_lamol is not None and o.tasks:
        parser.error("--from-lamol takes all tasks that its folder holds: name none")
    data_dir = o.data_dir or ("~/.cache/l2kd/raw" if o.from_lamol is None else "~/.cache/l2kd/lamol")
    try:
        if o.from_lamol is not None:
            found = from_lamol(o.from_lamol, data_dir)
            print(f"to use them: --data-dir {data_dir}, for {', '.join(found)}")
            return 0
        failed = 0
        for task in o.tasks or READERS:
            try:
                print(task, prepare(task, data_dir, o.cache_dir))
            except DataError as e:  # the other tasks may be there
                print(f"error: {e}", file=sys.stderr)
                failed += 1
        return min(failed, 1)
    except (DataError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the next try goes on from there", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
