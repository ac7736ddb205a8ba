"""What the readers share: from a file to items, from items to rows, and the interchange format.

A reader is a function `(task, folder) -> (files, read)`: the raw files that it takes from a folder, downloaded if need
be, and `read(sizes)`, which gives {split: rows} with at most sizes[split] rows each.

A row is a dict of `id`, `context`, `question`, `answer` (text) and perhaps `meta`, what the metric needs besides. The
interchange format is one row a line, as JSON.
"""

import csv
import io
import json
import random
import re
from pathlib import Path

from tqdm import tqdm

from eval import METRICS
from lab.errors import DataError
from lab.files import write_text

SPLITS = ("train", "test")
PARTS = ("context", "question", "answer")
MAX_LINE = 2**24  # bytes, far above the longest line of every public file
SOON = 2.0  # seconds

# ---------------------------------------------------------------------- from items of a raw file to rows


def good_rows(path, items, convert):
    """Yields the rows that `convert(line, item)` makes of the (line, item) of a raw file; an item may be an exception.

    Malformed items are left out and counted, the first three are shown. Raises DataError for more than 1% of them."""
    n, bad, shown = 0, 0, []
    for line, item in items:
        n += 1
        try:
            if isinstance(item, Exception):
                raise item
            rows = convert(line, item)
            for row in rows:
                if isinstance(row, dict):  # else a table of WikiSQL
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
        found = f"{path}: {bad} of {n} rows malformed: {', '.join(shown)}{', ...' if bad > 3 else ''}"
        if 100 * bad > n:
            raise DataError(f"{found}; more than 1%: mend the file or fetch it again")
        print(f"{found}; left out")


def check_row(row: dict) -> None:
    """Raises ValueError if a part is not text. Bytes that are not UTF-8 were decoded to lone surrogates."""
    for part in ("id", *PARTS):
        if not isinstance(row.get(part), str):
            raise ValueError(f"{part!r} is missing or no text")
        if re.search("[\ud800-\udfff]", row[part]):
            raise ValueError(f"{part!r} is not UTF-8 text")


def subsample(rows, size: int, seed: int = 0) -> list:
    """At most `size` of any number of rows, uniformly drawn with a fixed seed, in their old order.

    Reservoir sampling: row i (from 0) replaces one of the rows kept so far with probability size / (i + 1)."""
    r, kept = random.Random(seed), []
    for i, row in enumerate(rows):
        j = i if i < size else r.randrange(i + 1)
        if i < size:
            kept.append((i, row))
        elif j < size:
            kept[j] = (i, row)
    return [row for _, row in sorted(kept, key=lambda one: one[0])]


def at(choices, i: int):
    """choices[i] without Python's negative indices. Raises ValueError."""
    if type(i) is not int or not 0 <= i < len(choices):
        raise ValueError(f"{i!r} is no index from 0 to {len(choices) - 1}")
    return choices[i]


def one_line(text: str) -> str:
    """The text with one blank in place of each run of white space."""
    return " ".join(text.split())


# ---------------------------------------------------------------------- from a file to (line, item)


def decode(raw: bytes) -> str:
    """UTF-8 to text; a byte that is not UTF-8 becomes a lone surrogate, which `check_row` finds in its row."""
    return raw.decode("utf-8-sig", errors="surrogateescape")


def text_of(path: Path) -> str:
    """The text of a file. Raises OSError, or DataError if it is not a regular file."""
    if path.exists() and not path.is_file():  # reading a pipe would block, and a device may never end
        raise DataError(f"{path}: not a regular file")
    return decode(path.read_bytes())


class Watched(io.FileIO):
    """A file, and a bar that shows how much of it has been read."""

    def __init__(self, path: Path, bar: tqdm):
        self.bar = bar
        super().__init__(path)

    def readinto(self, buffer):
        n = super().readinto(buffer)
        self.bar.update(n)
        return n

    def close(self):
        self.bar.close()
        super().close()


def watched(path: Path) -> io.BufferedReader:
    """A file, opened to read its bytes. If it takes more than SOON seconds, a terminal shows how far that is."""
    size, what = path.stat().st_size, f"reading {path.name}"
    bar = tqdm(total=size, desc=what, unit="B", unit_scale=True, delay=SOON, leave=False, disable=None)
    return io.BufferedReader(Watched(path, bar), 2**20)


def text_lines(binary):
    """The lines of a binary stream as text, with their line ends, as the csv module wants them.

    Not io.TextIOWrapper, which can't read a member of a streamed archive. A line of more than MAX_LINE bytes is cut."""
    return map(decode, iter(lambda: binary.readline(MAX_LINE), b""))


def json_items(path, text: str):
    """Yields (line, item) of a JSON list of anything, one item at a time. Raises DataError if it is cut off."""
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


def jsonl_items(text: str):
    """Yields (line, object) of each line that is not blank, or (line, exception) if it is not a JSON object."""
    for n, line in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 does not end a line
        if line.strip():
            try:
                row = json.loads(line)
                yield n, row if isinstance(row, dict) else ValueError("a JSON object is expected")
            except (ValueError, RecursionError) as e:
                yield n, ValueError(f"cut off or not JSON: {e}")


def csv_items(path, lines):
    """Yields (line, fields) of each CSV record, which may span lines, or (line, exception) if it is broken.

    Quotes are doubled, and a backslash is an ordinary character. Raises DataError if the file ends within quotes."""
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
    """(line, fields) of a CSV file with a header -> yields (line, {column: field})."""
    columns = next(items, (1, []))[1]
    if isinstance(columns, Exception):
        raise DataError(f"{path}: its header can't be read ({columns})")
    for line, row in items:
        if not isinstance(row, Exception) and len(row) != len(columns):
            row = ValueError(f"{len(row)} fields in place of {len(columns)}")
        yield line, row if isinstance(row, Exception) else dict(zip(columns, row))


def read_csv_files(files, convert_of, sizes: dict[str, int], header: bool = False) -> dict[str, list]:
    """One CSV file a split -> rows by split; `convert_of(split)` is the function for `good_rows`."""
    rows = {}
    for split, path in zip(SPLITS, files):
        with watched(path) as f:
            items = csv_items(path, text_lines(f))
            items = named_fields(path, items) if header else items
            rows[split] = subsample(good_rows(path, items, convert_of(split)), sizes[split])
    return rows


# ---------------------------------------------------------------------- the interchange format


def read_task(folder: Path, metric: str) -> dict[str, list[dict]]:
    """Both splits of a folder in the interchange format. Raises DataError, which names the file and line."""
    rows = {split: read_rows(folder / f"{split}.jsonl") for split in SPLITS}
    for n, row in enumerate(rows["test"], 1):
        try:
            METRICS[metric].check(row["meta"])
        except (KeyError, TypeError, ValueError) as e:
            what = f"'meta' lacks what {metric} needs ({e})"
            raise DataError(f"{folder / 'test.jsonl'}, example {n}: {what}") from None
    return rows


def read_rows(path: Path) -> list[dict]:
    """The rows of a file in the interchange format; `id` is by default the line, and null means absent.

    Raises DataError."""
    try:
        text = text_of(path)
    except OSError as e:
        raise DataError(f"{path}: {e.strerror}; a task folder holds train.jsonl and test.jsonl") from None
    rows = []
    for n, row in jsonl_items(text):
        try:
            if isinstance(row, Exception):
                raise row
            row = {key: value for key, value in row.items() if value is not None}
            row = {"id": str(row.get("id", n)), "meta": row.get("meta", {})} | {part: row.get(part) for part in PARTS}
            check_row(row)
            if not isinstance(row["meta"], dict):
                raise ValueError("'meta' must be an object")
            row["meta"] = {key: value for key, value in row["meta"].items() if value is not None}
        except ValueError as e:
            raise DataError(f"{path}, line {n}: {e}") from None
        rows.append(row)
    if not rows:
        raise DataError(f"{path} is empty")
    return rows


def write_rows(path: Path, rows: list[dict]) -> None:
    """Rows in the interchange format, in ASCII: a lone surrogate in a `meta` could not be written as UTF-8."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
