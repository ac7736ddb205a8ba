"""WikiSQL as decaNLP casts it: a table's header and a question -> SQL, all in lower case as the metric wants it."""

from functools import partial

from lab.errors import DataError
from lab.sql import AGGREGATES, OPERATORS
from lab.tasks.archives import read_members
from lab.tasks.fetch import local_files, raw_file
from lab.tasks.reading import SPLITS, at, decode, good_rows, jsonl_items, one_line, subsample

KEYWORDS = (
    "MAX, MIN, COUNT, SUM, AVG, =, >, <, OP, SELECT, WHERE, AND, COL, TABLE, CAPTION, PAGE, SECTION, OP, COND, "
    "QUESTION, AGG, AGGOPS, CONDOPS"
)


def reader(task, folder):
    """From {train,test}.jsonl and {train,test}.tables.jsonl, else from the public archive of them."""
    names = [f"{split}{kind}.jsonl" for split in SPLITS for kind in ("", ".tables")]
    files = local_files(folder, names) or [raw_file(task, folder, "data.tar.bz2")]

    def read(sizes):
        if len(files) == 1:
            place, texts = files[0], read_members(files[0], [f"data/{name}" for name in names])
        else:
            place, texts = folder, {path.name: path.read_bytes() for path in files}
        rows = {}
        for split in SPLITS:
            path, tables = place / f"{split}.jsonl", place / f"{split}.tables.jsonl"
            headers = dict(good_rows(tables, jsonl_items(decode(texts[tables.name])), table_header))
            if not headers:
                raise DataError(f"{tables}: no table in it; fetch it again")
            convert = partial(question_rows, split, headers)
            rows[split] = subsample(good_rows(path, jsonl_items(decode(texts[path.name])), convert), sizes[split])
        return rows

    return files, read


def table_header(line, table):
    """A table's (id, header), in a list. Raises TypeError or ValueError if they are not texts."""
    id, header = table["id"], table["header"]
    if not isinstance(header, list):
        raise ValueError("'header' is no list")
    "".join([id, *header]).encode()  # raises for a lone surrogate
    return [(id, header)]


def question_rows(split, headers, line, item):
    return [{"id": f"{split}-{line}", **sql_row(item, headers)}]


def sql_row(item, headers):
    """Columns and key words, then the question; the SQL text; `meta` holds the logical form and the header."""
    form, header = item["sql"], headers[item["table_id"]]
    context = f"The table has columns {', '.join(header)} and key words {KEYWORDS}-- " + item["question"]
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
