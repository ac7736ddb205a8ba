"""Garbage for every reader: real files, models and runs with random mutations; and any string as a prediction.

A reader may succeed or raise the error that the command line prints as one line. All else is a crash: another
exception, more than SECONDS, or more than MEMORY bytes on top of what was held. Used by `python -m lab.check.faults`.
"""

import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import traceback
from pathlib import Path

from data import Example, Task
from eval import METRICS, score
from lab.check.readers import Reader, archive, readers
from lab.errors import LabError

SECONDS, MEMORY = 10, 2**31
NASTY = [
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\r",
    b"\n",
    b'"',
    b"'",
    b"\\",
    b"\\ud800",
    b"[",
    b"{",
    b"}",
    b"]",
    b",",
    b":",
]
NASTY += [
    b"null",
    b"NaN",
    b"1e999",
    b"-1",
    b"true",
    b"[" * 5000,
    b'{"a":' * 5000,
    b"9" * 5000,
    b"\xe2\x80\xa8",
    b"../../x",
]
VALUES = [None, True, -1, 0, 2**63, 1e308, float("nan"), "", "x" * 10000, "\ud800", [], {}, [[]], [None], {"a": None}]


def mutate(raw: bytes, r: random.Random) -> bytes:
    """One to four changes: bits, spans cut, doubled or moved, nasty bytes put in, the end cut off, values of JSON."""
    for _ in range(r.randint(1, 4)):
        at = r.randrange(len(raw) + 1)
        end = min(len(raw), at + r.choice((1, 2, 10, 100, 1000)))
        kind = r.randrange(7)
        if kind == 0 and raw:
            at = min(at, len(raw) - 1)
            raw = raw[:at] + bytes([raw[at] ^ 1 << r.randrange(8)]) + raw[at + 1 :]
        elif kind == 1:
            raw = raw[:at] + raw[end:]
        elif kind == 2:
            raw = raw[:at] + raw[at:end] * r.choice((2, 50)) + raw[end:]
        elif kind == 3:
            raw = raw[:at] + r.choice(NASTY) + raw[at:]
        elif kind == 4 and r.random() < 0.3:
            raw = raw[:at]
        else:
            raw = mutate_json(raw, r)
    return raw


def mutate_json(raw: bytes, r: random.Random) -> bytes:
    """Some value of a JSON text, or of one line of it, for another one."""
    lines = raw.split(b"\n")
    n = r.randrange(len(lines))
    for whole in (False, True):
        try:
            tree = json.loads(raw if whole else lines[n])
        except (ValueError, RecursionError):
            continue
        changed = json.dumps(other_value(tree, r)).encode("utf-8", "surrogatepass")
        return changed if whole else b"\n".join([*lines[:n], changed, *lines[n + 1 :]])
    return raw


def other_value(tree, r):
    """The tree with one node, at any depth, for a nasty one; or without it."""
    if isinstance(tree, dict | list) and tree and r.random() < 0.85:
        key = r.choice(list(tree)) if isinstance(tree, dict) else r.randrange(len(tree))
        if r.random() < 0.1:
            del tree[key]
        else:
            tree[key] = other_value(tree[key], r)
        return tree
    return r.choice(VALUES)


def mutated(reader: Reader, r: random.Random) -> dict[str, bytes]:
    """All files of a reader, one of them changed, or one member of an archive."""
    name = r.choice(list(reader.files))
    if name in reader.inner and r.random() < 0.7:
        members, mode = reader.inner[name]
        member = r.choice(list(members))
        return reader.files | {name: archive(members | {member: mutate(members[member], r)}, mode)}
    return reader.files | {name: mutate(reader.files[name], r)}


# ---------------------------------------------------------------------- what is predicted

WORDS = [
    "select",
    "from",
    "table",
    "where",
    "and",
    "=",
    ">",
    "<",
    "max",
    "count",
    "name",
    "age",
    "'",
    '"',
    ";",
    ":",
    ",",
    ".",
]
WORDS += [
    "food: thai",
    "area",
    "none",
    "\n",
    "\u2028",
    "\x00",
    "\ud800",
    "é",
    "日本",
    "%s",
    "{}",
    "\\",
    "COL0",
    "col 1 =",
]


def predicted(r: random.Random) -> str:
    """Any string: words of the metrics' languages, or any characters; sometimes 100,000 of them."""
    size = r.choice((0, 1, 5, 20, 200)) if r.random() < 0.99 else 100_000
    if r.random() < 0.7:
        return r.choice(("", " ")).join(r.choices(WORDS, k=size))[:100_000]
    return "".join(chr(r.randrange(1, 0x110000)) for _ in range(size)) if size < 1000 else r.choice(WORDS) * size


def score_any(r: random.Random) -> None:
    """Each metric on predictions that nobody would expect."""
    meta = {"turn": f"en_{r.randrange(3)}_0", "references": ["a b.", ""], "header": ["name", "age of it", ""]}
    meta["sql"] = {"sel": 0, "agg": 3, "conds": [[1, 0, "x"], [0, 2, 5]]}
    examples = [Example("c", "q", r.choice(("", "a b. c", "food: thai; area", "none")), str(i), meta) for i in range(2)]
    for metric in METRICS:
        texts = [predicted(r) for _ in examples]
        result = score(Task("any", metric, examples, examples), texts)
        if not all(0 <= value <= 100 + 1e-9 for value in result.values()):
            raise AssertionError(f"{metric}: {result}")


# ---------------------------------------------------------------------- the loop


class TooSlowError(Exception):
    """A reader that may never end."""


@contextlib.contextmanager
def bounded():
    """In at most SECONDS, within MEMORY more bytes of address space."""

    def late(*_):
        raise TooSlowError(f"more than {SECONDS} s")

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) if os.path.exists("/proc") else 0
    before, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, late)
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def fuzz(inputs: int, data: Path, folder: Path, r: random.Random) -> dict:
    """Mutated inputs to all readers by turns, one in ten a prediction -> counts. A crash is shown, its files kept."""
    (folder / "made").mkdir()
    all_readers = readers(data, folder / "made")
    count, seen = {"inputs": 0, "readers": len(all_readers), "read": 0, "refused": 0, "bad": 0}, set()
    while count["inputs"] < inputs:
        reader = all_readers[count["inputs"] % len(all_readers)] if count["inputs"] % 10 else None
        at, count["inputs"] = folder / "at", count["inputs"] + 1
        for name, content in mutated(reader, r).items() if reader else ():
            (at / name).parent.mkdir(parents=True, exist_ok=True)
            (at / name).write_bytes(content)
        before = set(folder.iterdir())
        try:
            with bounded():
                reader.read(at) if reader else score_any(r)
            count["read"] += 1
        except LabError as e:
            count["refused"] += 1
            if len(str(e).splitlines()) != 1:
                count["bad"] += 1
                print(f"    {reader.name}: not one line: {str(e)[:300]!r}")
        except Exception as e:
            count["bad"] += 1
            where = traceback.extract_tb(e.__traceback__)[-1]
            name = reader.name if reader else "a prediction"
            if (key := (name, type(e), where.lineno)) not in seen:
                seen.add(key)
                print(f"    {name}: {e!r:.300} at {where.filename}:{where.lineno}")
                if reader:
                    shutil.copytree(at, Path(f"crash-{len(seen)}"), dirs_exist_ok=True)
        if set(folder.iterdir()) != before:
            count["bad"] += 1
            print(f"    {reader.name}: wrote outside its folder")
        shutil.rmtree(at, ignore_errors=True)
    return count
