"""Garbage for every reader: real files, models and runs with random mutations; and any string as a prediction.

A reader may succeed or raise the error that the command line prints as one line. All else is a crash: another
exception, more than SECONDS, or more than MEMORY bytes on top of what was held. Used by `python -m lab.faults fuzz`.
"""

import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import tarfile
import traceback
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from data import METRICS, DataError, Example, Task, load_task
from eval import load_model, read_run, score
from lab import paper, rundir
from lab.options import Options, parent_of
from lab.prepare import from_lamol, prepare, story_name
from lab.rundir import RunError
from model import GPT, GPTConfig, ModelFileError

SECONDS, MEMORY = 10, 2**31
STREAM = ("woz", "sql", "cnn")
CLEAR = (DataError, ModelFileError, RunError)
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


# ---------------------------------------------------------------------- what is read


def head(path: Path, size=15000) -> bytes:
    """The first bytes of a real file, up to the end of a line or a record; a JSON list is closed again."""
    raw = path.read_bytes()
    start = raw.find(b"[") if path.suffix == ".json" else -1  # RNNLG has lines of # before it
    if start >= 0:
        items = json.loads(raw[start:])
        while len(json.dumps(items)) > size and len(items) > 1:
            items = items[: len(items) // 2]
        return raw[:start] + json.dumps(items, indent=1).encode()
    return raw[: raw.rfind(b"\n", 0, size) + 1] if len(raw) > size else raw


def archive(members: dict[str, bytes], mode: str) -> bytes:
    """A tar archive, in memory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w:{mode}") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


class Reader:
    """Files, and what reads them from a folder. `inner`: mutations of what is in an archive, packed again."""

    def __init__(self, name, files: dict[str, bytes], read, inner=None):
        self.name, self.files, self.read, self.inner = name, files, read, inner

    def mutated(self, r) -> dict[str, bytes]:
        """All files, one of them changed."""
        name = r.choice(list(self.files))
        if self.inner and name in self.inner and r.random() < 0.7:
            members, mode = self.inner[name]
            member = r.choice(list(members))
            return self.files | {name: archive(members | {member: mutate(members[member], r)}, mode)}
        return self.files | {name: mutate(self.files[name], r)}


def readers(data: Path, folder: Path) -> list[Reader]:
    """Every reader of the project, with real files where there are some, else with made ones."""
    found, lines = [], []

    def raw(task, files, inner=None):
        """Files of a data set, below its folder of the data directory."""
        if all(isinstance(content, bytes) or content.is_file() for content in files.values()):
            contents = {name: x if isinstance(x, bytes) else head(x) for name, x in files.items()}
            read = partial(lambda task, at: prepare(task, at, at / "cache"), task)
            found.append(Reader(f"{task}: {', '.join(map(os.path.basename, files))}", contents, read, inner))

    def packed(task, name, members, mode):
        raw(task, {name: archive(members, mode)}, {name: (members, mode)})

    raw("woz", {f"woz/woz_{s}_en.json": data / f"woz/woz_{s}_en.json" for s in ("train", "test")})
    tables = [f"{s}{kind}.jsonl" for s in ("train", "test") for kind in ("", ".tables")]
    raw("sql", {f"wikisql/{name}": data / "wikisql" / name for name in tables})
    if all((data / "wikisql" / name).is_file() for name in tables):
        packed("sql", "wikisql/data.tar.bz2", {f"data/{n}": head(data / "wikisql" / n) for n in tables}, "bz2")
    raw("cnn", {f"cnn_dailymail/{s}.csv": data / "cnn_dailymail/sample.csv" for s in ("train", "test")})
    raw("cnn", {f"cnn_dailymail/{s}.jsonl": data / f"cnn_dailymail/{s}.jsonl" for s in ("train", "test")})
    raw("e2e", {f"e2e/{name}.csv": data / f"e2e/{name}.csv" for name in ("trainset", "testset_w_refs")})
    for task, name in (("rest", "restaurant"), ("hotel", "hotel"), ("tv", "tv"), ("laptop", "laptop")):
        raw(f"rnnlg.{task}", {f"rnnlg/{name}/{s}.json": data / f"rnnlg/{name}/{s}.json" for s in ("train", "test")})
    raw("ag", {f"ag_news/{s}.csv": data / f"ag_news/{s}.csv" for s in ("train", "test")})
    made = {"yelp/yelp_review_full": b'"5","good \\n food"\n"1","bad ""food"""\n'}
    made |= {"dbpedia/dbpedia": b'1,"A","a company"\n2,"B","a school"\n'}
    made |= {"yahoo/yahoo_answers": b'"1","why","so","it is"\n"2","who","","he"\n'}
    for name, rows in made.items():
        members = {f"{Path(name).name}_csv/{s}.csv": rows * 9 for s in ("train", "test")}
        packed(name.split("/")[0], f"{name}_csv.tgz", members, "gz")
    urls = [b"http://x/a.html", b"http://x/b.html"]
    story = b"An article.\n\nIts end.\n\n@highlight\n\nA highlight\n\n@highlight\n\nAnother"
    stories = {f"cnn/stories/{story_name(url.decode())}.story": story for url in urls}
    inner = {f"cnn_dailymail/{paper}_stories.tgz": (stories, "gz") for paper in ("cnn", "dailymail")}
    lists = {f"cnn_dailymail/all_{s}.txt": b"\n".join(urls) for s in ("train", "test")}
    raw("cnn", lists | {name: archive(*packing) for name, packing in inner.items()}, inner)

    for metric in ("em", "rouge", "joint_goal_em", "lfem"):  # folders of a user's own
        meta = {"turn": "en_0_1", "references": ["a", "b"], "header": ["a", "b"]}
        meta["sql"] = {"sel": 0, "agg": 0, "conds": [[1, 0, "x"]]}
        lines = [
            {"context": "a red car", "question": "color?", "answer": "red", "id": str(i), "meta": meta} for i in "ab"
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        files = {
            "own/train.jsonl": text,
            "own/test.jsonl": text,
            "own/task.json": json.dumps({"metric": metric}).encode(),
        }

        def scored(at):
            task = load_task(str(at / "own"), "", "")
            score(task, [example.answer for example in task.test], multi_reference=True)

        found.append(Reader(f"a task of one's own, {metric}", files, scored))
    theirs = {f"woz.en_to_squad-{s}-v2.0.json": json.dumps(squad()).encode() for s in ("train", "test")}
    theirs |= {"woz.en_answers.json": json.dumps([["en_0_0", "an answer"]] * 5).encode()}
    found.append(Reader("the authors' files", theirs, lambda at: from_lamol(str(at), str(at / "out"))))

    model = GPT(GPTConfig(vocab_size=1048, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    extra = {"tokenizer": "nano", "task_slots": {"toy.woz": 1010}, "max_len": 8, "answer_budgets": {"toy.woz": 2}}
    model.save_pretrained(folder / "model", **extra)
    files = {f"model/{p.name}": p.read_bytes() for p in (folder / "model").iterdir()}

    def used(at):
        load_model(str(at / "model"))[0](torch.zeros(1, 2, dtype=torch.long))

    found.append(Reader("a model", files, used))
    run, state = folder / "run", {"phase": "", "stages": 1, "stage": 1, "name": "a", "said": "", "seconds": 1.0}
    state |= {"epoch": 0, "seen": 0, "phase_seconds": 1.0, "teacher_times": {"a": 1.0}, "made_here": {}, "scaler": {}}
    rundir.append_jsonl(run_file(run, "scores.jsonl"), {"stage": 1, "epoch": 1, "task": "a", "score": 1.0})
    rundir.save_checkpoint(run, state, model)
    config = asdict(Options(method="lamol", kd="word", model="nano"))
    config |= {"epochs": 1, "lr": 0.1, "batch_size": 8, "adam_epsilon": 1e-8, "eval_every_epoch": True, "resume": False}
    rundir.write_json(
        run / "config.json", config | {"tasks": ["woz"], "order": "woz", "data": {"woz": "0"}, "slots": {"a": 1010}}
    )
    summary = {"order": ["a"], "method": "lamol", "scores": {"0": {"a": 0.0}, "1": {"a": 1.0}}, "average": 1.0}
    summary |= dict.fromkeys(("backward_transfer", "forward_transfer", "forgetting"))
    rundir.write_json(run / "summary.json", summary)
    files = {str(p.relative_to(folder)): p.read_bytes() for p in run.rglob("*") if p.is_file()}
    found.append(
        Reader("a run's table", {k: files[k] for k in ("run/summary.json",)}, lambda at: read_run(str(at / "run")))
    )
    found.append(
        Reader(
            "a run to continue",
            {k: files[k] for k in ("run/config.json", "run/summary.json")},
            lambda at: parent_of(str(at / "run")),
        )
    )
    lines = [{"stage": m, "epoch": 1, "task": t, "score": 5.0, "metric": "em"} for m in range(4) for t in STREAM]
    answers = [{"task": t, "id": "1", "prediction": "a", "answer": "a"} for t in STREAM]
    behind = {"run/scores.jsonl": lines, "run/3-cnn/predictions.jsonl": answers}
    behind = {name: "".join(json.dumps(x) + "\n" for x in rows).encode() for name, rows in behind.items()}
    costs = {"parameters": 10, "wall_time_s": 1.0, "teacher_time_s": 0.5, "teacher_time_here_s": 0.5}
    behind["run/summary.json"] = json.dumps(summary | costs).encode()
    found.append(Reader("a run behind a table", behind, lambda at: behind_a_table(at / "run")))
    kept = {k: v for k, v in files.items() if "checkpoint" in k or "scores" in k}
    found.append(Reader("a checkpoint", kept, lambda at: rundir.last_checkpoint(at / "run", based=True)))
    return found


def behind_a_table(run: Path) -> None:
    """What lab.paper makes of a run: a cell of a table, a curve, a cost, an agreement."""
    key = paper.keys_of("figure3", [0])[0]
    paper.draw("figure3", {key: run}, run / "figure.png")
    for what in ("table2", "figure3", "claims"):
        paper.cells_of(what, {key: run}, [0])
    paper.hits(run)


def run_file(run: Path, name: str) -> Path:
    run.mkdir(exist_ok=True)
    return run / name


def squad() -> dict:
    """A file in the authors' processed form."""
    qas = [{"question": "q?", "id": "1", "answers": [{"text": "an answer", "answer_start": 0}], "is_impossible": False}]
    return {"version": "1", "data": [{"title": "t", "paragraphs": [{"context": "a context", "qas": qas}] * 5}]}


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
    for metric in dict.fromkeys(METRICS.values()):
        texts = [predicted(r) for _ in examples]
        result = score(Task("any", metric, examples, examples), texts, multi_reference=True)
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
        for name, content in reader.mutated(r).items() if reader else ():
            (at / name).parent.mkdir(parents=True, exist_ok=True)
            (at / name).write_bytes(content)
        before = set(folder.iterdir())
        try:
            with bounded():
                reader.read(at) if reader else score_any(r)
            count["read"] += 1
        except CLEAR as e:
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
