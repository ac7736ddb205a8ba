"""What the data's own answers score by their metric: the ceiling of a task. And answers that a metric can't read.

A metric may read less than a person. What `parse_state` can't read is left out of the gold state, too, so a wrong
prediction would count as right. And the gold answers themselves may score less than 100, as those of WikiSQL do.
"""

import re
import time
from contextlib import suppress
from pathlib import Path

from data import Example, Task
from eval import METRICS, parse_state, score
from lab.errors import DataError
from lab.files import key_of, read_json, write_json
from lab.tasks.wikisql import sql_row

SLOW = 1.0  # seconds
WHY = {  # metric -> why its ceiling may be below 100
    "rouge": "an answer of one word has no bigram, and one without Latin letters or digits no word",
    "lfem": "an 'and' or an operator inside a value is misread, as in the authors' code",
}

# ---------------------------------------------------------------------- the ceiling


def ceiling(task: Task, cache_dir: str | Path) -> float:
    """The score of the test examples' own answers. One that took more than SLOW is found again in the cache
    folder, by a hash of all that it depends on."""
    key = key_of(["ceiling", task.metric, [(e.answer, e.meta) for e in task.test]])
    path = Path(cache_dir).expanduser() / "ceilings" / f"{key}.json"
    with suppress(OSError, ValueError, TypeError):
        return float(read_json(path))
    began = time.perf_counter()
    value = score(task, [e.answer for e in task.test])["score"]
    if time.perf_counter() - began > SLOW:
        with suppress(OSError):  # a folder that can't be written to only costs the time again
            write_json(path, value)
    return value


def ceiling_line(task: Task, value: float) -> str:
    """What is printed of a ceiling below 100, else ""."""
    if value >= 99.995:
        return ""
    why = f" ({WHY[task.metric]})" if task.metric in WHY else ""
    return f"the data's own answers score {value:.2f} by {task.metric}{why}"


# ---------------------------------------------------------------------- answers that can't be read


def check_answers(metric: str, rows: dict[str, list[dict]], place) -> None:
    """Check by its metric the answers of a task. place(split, i): the text that says where row i is.

    Raises DataError for a test answer that the metric can't read. Training answers that it can't read teach what is
    never scored: they are counted and printed; above 1% it is an error."""
    for i, row in enumerate(rows["test"]):
        if why := unreadable(metric, Example(**row)):
            raise DataError(f"{place('test', i)}: {why}")
    lost = [(i, why) for i, row in enumerate(rows["train"]) if (why := unreadable(metric, Example(**row)))]
    if lost:
        n, (first, why) = len(rows["train"]), lost[0]
        found = f"{place('train', first)}: {why}; {len(lost)} of {n} training answers can't be read"
        if 100 * len(lost) > n:
            raise DataError(f"{found}; more than 1%: write them as the metric reads them")
        print(f"note     {found}, so what they teach is not scored")


def check_empty_answer(task: str, metric: str, rows: list[dict]) -> None:
    """Raises DataError if an empty answer is right for each test row."""
    test = [Example(**row) for row in rows]
    is_right = (0 < alone(metric, example, example.answer) == alone(metric, example, "") for example in test)
    if any(example.answer.strip() for example in test) and all(is_right):
        raise DataError(f"{task}: an empty answer is as good as each test answer, so {metric} would measure nothing")


def unreadable(metric: str, example: Example) -> str:
    """Why the metric can't read an example's answer, "" if it can."""
    why = CHECKS[metric](example) if metric in CHECKS else ""
    return f"{metric} can't read the answer {example.answer[:80]!r}: {why}" if why else ""


def alone(metric: str, example: Example, prediction: str) -> float:
    return METRICS[metric].score([prediction], [example])[metric]


def state_lost(example: Example) -> str:
    """What joint_goal_em drops of an answer in silence, "" if nothing."""
    requests = parse_state(example.answer)[1]
    goal, *rest = example.answer.strip().split(";")
    if goal.strip().lower() in ("", "none") and (len(rest) == 1 or example.answer.strip().lower() in ("", "none")):
        return ""  # nothing is informed
    if requests is None:
        return "`slot: value, slot: value; request, request` or None is expected, with one ';'"
    slots = []
    for item in filter(str.strip, goal.split(",")):
        if item.count(":") != 1:
            return f"{item.strip()[:40]!r} is no `slot: value`; a value must hold no ',', ':' or ';'"
        slots.append(item.split(":")[0].strip())
    twice = [slot for slot in slots if slots.count(slot) > 1]
    return f"slot {twice[0][:40]!r} stands there twice" if twice else ""


def form_lost(example: Example) -> str:
    """Does an answer say another logical form than its meta? Where it is the form's own text, as the reader of WikiSQL
    writes it, and is misread, then that is known of the metric, and only lowers the ceiling. A training example may
    have no form."""
    try:
        METRICS["lfem"].check(example.meta)
    except (KeyError, TypeError, ValueError):
        return ""
    if alone("lfem", example, example.answer) == 100:
        return ""
    sql, header = example.meta["sql"], example.meta["header"]
    text = sql_row({"sql": sql, "question": "", "table_id": 0}, {0: header})["answer"]
    same = re.sub(r"\s", "", text) == re.sub(r"\s", "", example.answer.lower())
    return "" if same else f"its logical form in 'meta' is {text[:120]!r}"


CHECKS = {"joint_goal_em": state_lost, "lfem": form_lost}  # metric -> why it can't read an example's answer, or ""
