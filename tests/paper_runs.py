"""What the tests of lab.paper share: the paper's runs, made up from its published numbers."""

import csv
import io
import json

from eval import summarise
from lab.files import write_json, write_jsonl, write_text
from lab.paper import claims
from lab.paper.__main__ import main
from lab.paper.experiments import PLAIN, PUBLISHED, keys_of
from lab.paper.runs import FIGURES, NOT_LIFELONG, arguments, name_for
from lab.run.options import parse

RUNS = {"table2": 30, "table3": 37, "table4": 12, "table5": 12, "table6": 5, "table8": 5}  # how many are behind each
RUNS |= {"figure3": 5, "figure4": 4, "figure5": 4, "claims": 37 + 12 + 5}
CLASSES = FIGURES["figure5"]
TABLE_OF = {FIGURES["figure3"]: "table3", FIGURES["figure4"]: "table4", CLASSES: "table5"}  # of what is not lifelong


def finish(runs, key, last, epochs=1, before=lambda stage, epoch, task: 1.0, extra=(), data="0", **facts):
    """The small files of a finished run, with scores `last` at the end, and of `before` until then. -> its directory.

    extra: options of train.py. data: the hash of each task's data."""
    argv = arguments(key, list(extra))
    o, tasks, folder, lines = parse(argv), key.order.split(","), runs / name_for(argv), []
    stages = 1 if o.method == "multitask" else len(tasks)
    for m in range(stages + 1):
        for e in range(1, epochs + 1) if m else (0,):
            for task in [tasks[m - 1]] if o.method == "single" and m else tasks:
                end = m > 0 and e == epochs and (m == stages or o.method == "single")
                lines.append({"stage": m, "epoch": e, "task": task, "score": last[task] if end else before(m, e, task)})
    summary = summarise(o.method, tasks, lines) | {"parameters": 10**6, "wall_time_s": 100.0}
    summary |= {"teacher_time_s": 0.0, "teacher_time_here_s": 0.0} | facts
    paths = {"data_dir": str(folder), "runs_dir": str(folder)}
    write_json(folder / "config.json", {"epochs": o.epochs, "data": dict.fromkeys(tasks, data), **paths})
    write_jsonl(folder / "scores.jsonl", lines)
    write_json(folder / "summary.json", summary)
    return folder


def same(order: str, score: float) -> dict[str, float]:
    """One score for all tasks."""
    return dict.fromkeys(order.split(","), score)


# ---------------------------------------------------------------------- the published numbers as results


def published(key) -> dict:
    """A run's scores in the paper."""
    if key.label in NOT_LIFELONG:
        name = TABLE_OF[key.order]
        return dict(zip(PUBLISHED[name]["columns"], PUBLISHED[name][PLAIN][key.label]))
    name = next(name for name in ("table2", "table4", "table5") if key.order in PUBLISHED[name])
    rows = PUBLISHED[name][key.order]
    return dict(zip(PUBLISHED[name]["columns"], rows[key.label])) if key.label in rows else same(key.order, 50.0)


def rise(key):
    """Scores before the end, such as the text describes them: soft targets rise faster, Seq-KD transfers most."""
    fast = 10.0 if key.label in ("Word-KD", "Seq-KD_soft") else 0.0
    ahead = {"LAMOL": 1.0, "Word-KD": 2.0, "Seq-KD_soft": 3.0, "Seq-KD": 4.0}.get(key.label, 0.0)
    return lambda m, e, task: 5 * m * e + fast + (ahead if (m, e, task) == (2, 3, "rnnlg.hotel") else 0.0)


def answer(folder, m: int, right: dict[str, list[bool]]) -> None:
    """The predictions after a stage: task -> for each test example, whether it is right."""
    line = {hit: json.dumps({"prediction": " yes" if hit else "no", "answer": "yes "})[1:] for hit in (True, False)}
    lines = [
        f'{{"task": "{t}", "id": "{t}-{i}", {line[hit]}\n' for t, hits in right.items() for i, hit in enumerate(hits)
    ]
    write_text(folder / f"{m}-{CLASSES.split(',')[m - 1]}" / "predictions.jsonl", "".join(lines))


def agreeing(task: str, label: str, n=7600) -> list[bool]:
    """Answers with Table 8's accuracy on all of n examples, on the first ones (A: teacher right), and on the rest."""
    share, (_, in_a, in_b) = PUBLISHED["table8"][task]["teacher"][0], PUBLISHED["table8"][task][label]
    a = round(n * share / 100)
    right = [round(a * in_a / 100), round((n - a) * in_b / 100)]
    return [i < right[0] for i in range(a)] + [i < right[1] for i in range(n - a)]


def as_published(runs, tables=RUNS):
    """A runs directory with every run behind some tables and figures, whose results are the published numbers."""
    answered = keys_of("table6", [0]) if {"table6", "table8", "claims"} & set(tables) else []
    for key in dict.fromkeys(key for what in tables for key in keys_of(what, [0])):
        facts = {"wall_time_s": 100.0}
        if key.label in claims.DISTILLED:  # 150, 160, 170 s with all of the teachers, of which one was trained here
            own = 100.0 + 10 * claims.DISTILLED.index(key.label)
            facts = {"wall_time_s": own, "teacher_time_here_s": 10.0, "teacher_time_s": 60.0}
        folder = finish(runs, key, published(key), 3, rise(key), **facts)
        if key in answered:
            label = "teacher" if key.label in NOT_LIFELONG else key.label
            right = {task: agreeing(task, label) for task in CLASSES.split(",")}
            for m, task in enumerate(right, 1):
                if label == "teacher":
                    answer(folder, m, {task: right[task]})
                else:  # only the last stage counts
                    answer(folder, m, right if m == 5 else {task: [False] * 20 for task in right})
    return runs


# ---------------------------------------------------------------------- what the command prints


def rows_of(capsys, what, *options, missing=False) -> list[dict]:
    """The table as CSV. Are runs said to be missing?"""
    capsys.readouterr()
    assert main([what, "--csv", *map(str, options)]) == 0
    printed = capsys.readouterr()
    assert ("runs found" in printed.err) == missing
    return list(csv.DictReader(io.StringIO(printed.out)))


def at(rows, row, column, block=None) -> dict:
    """The one line of a row and a column, and of a block if several have them."""
    (one,) = [x for x in rows if (x["row"], x["column"], block or x["block"]) == (row, column, x["block"])]
    return one


def fails(capsys, *options) -> str:
    """The one line of a command that fails."""
    capsys.readouterr()
    assert main([str(x) for x in options]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and printed.out == ""
    return printed.err
