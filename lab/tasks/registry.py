"""An entry of `--order` -> the name of its task, its metric, and its examples.

An entry is a registered name, or a folder of the user's own with `train.jsonl`, `test.jsonl` and perhaps `task.json`.
"""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from random import Random

from data import Example, Task
from eval import METRICS
from lab.errors import DataError
from lab.tasks.ceiling import check_answers, check_empty_answer
from lab.tasks.prepare import prepare
from lab.tasks.reading import jsonl_items, read_task, text_of
from lab.tasks.table import TASKS


def is_toy(name: str) -> bool:
    """Is this one of the toy tasks, which are made from grammars and need no data?"""
    return name in TASKS and TASKS[name].reader is None


def task_name(entry: str) -> str:
    """The name of a task: a registered one, or that of the user's folder. Raises ValueError if it is neither."""
    if entry in TASKS:
        return entry
    if not entry:
        raise ValueError("a task without a name: two commas in a row, or one at the end?")
    try:
        name = Path(entry).resolve().name
        there = Path(entry).is_dir()
    except (OSError, ValueError):  # the name is too long, or has a zero byte in it
        there = False
    if not there:
        known = ", ".join(TASKS)
        raise ValueError(f"unknown task {entry[:200]!r}: known are {known}, or a folder with train and test.jsonl")
    if name in TASKS or not re.fullmatch(r"[\w.-]+", name, re.ASCII):
        allowed = "letters, digits, '.', '_', '-'; not a registered task's name"
        raise ValueError(f"task folder {entry!r}: rename it ({allowed})")
    return name


def load_task(
    entry: str, data_dir, cache_dir, limit: int = 0, multi_reference: bool = False, train_examples: int = 0
) -> Task:
    """The task behind an entry, each split cut to its first `limit` examples (0: all).

    train_examples: so many training examples are drawn, the same ones in every run, and keep their order (0: all).
    A test example may have `references` in its meta: all answers that the data hold for its context and question.
    With `multi_reference` they stay, and one example for each (context, question) stands for all; without, each
    example is scored against its own answer. Raises ValueError for an unknown entry, DataError for broken data."""
    name = task_name(entry)
    metric = TASKS[name].metric if name in TASKS else metric_of(Path(entry) / "task.json")
    if is_toy(name):
        from lab.tasks.toy import SIZES, toy_rows  # here, so that `python -m lab.tasks.toy` does not import it twice

        rows = {split: toy_rows(name, split, n) for split, n in SIZES.items()}
    elif name in TASKS:
        rows = read_task(prepare(name, data_dir, cache_dir), metric)
    else:
        rows = read_task(Path(entry), metric)
        check_empty_answer(entry, metric, rows["test"])
        check_answers(metric, rows, lambda split, i: line_of(Path(entry) / f"{split}.jsonl", i))
    train = drawn([Example(**row) for row in rows["train"][: limit or None]], train_examples)
    test = [Example(**row) for row in rows["test"][: limit or None]]
    return Task(name, metric, train, one_a_meaning(test) if multi_reference else without_references(test))


def drawn(examples: list[Example], n: int) -> list[Example]:
    """n of the examples, drawn without replacement; all of them if n is 0 or there are no more."""
    if not 0 < n < len(examples):
        return examples
    return [examples[i] for i in sorted(Random(0).sample(range(len(examples)), n))]


def line_of(path: Path, i: int) -> str:
    """Where row i of a file in the interchange format is: blank lines are no rows."""
    return f"{path}, line {[n for n, _ in jsonl_items(text_of(path))][i]}"


def one_a_meaning(examples: list[Example]) -> list[Example]:
    """One of the examples with `references` for each (context, question), and all examples without."""
    kept = {}  # a key of its own, its number, for each example without references
    for i, e in enumerate(examples):
        kept[(e.context, e.question) if "references" in e.meta else i] = e
    return list(kept.values())


def without_references(examples: list[Example]) -> list[Example]:
    """The same examples, each with its own answer as the only reference."""
    others = [{key: value for key, value in e.meta.items() if key != "references"} for e in examples]
    return [e if meta == e.meta else replace(e, meta=meta) for e, meta in zip(examples, others)]


def metric_of(path: Path) -> str:
    """The metric of a user's task: `{"metric": "rouge"}` in its folder's task.json, else em. Raises DataError."""
    if not os.path.lexists(path):
        return "em"
    try:
        metric = json.loads(path.read_text(encoding="utf-8-sig"))["metric"]
        if metric not in METRICS:
            raise ValueError(f"metric {metric!r} is not known")
        return metric
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as e:
        known = ", ".join(METRICS)
        raise DataError(f'{path}: {{"metric": one of {known}}} is expected ({e})') from None
