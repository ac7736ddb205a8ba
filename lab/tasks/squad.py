"""The authors' own processed files -> interchange files, which `prepare` then finds.

The files are those of `l2kd_data.zip` and of LAMOL's folder: `{name}_to_squad-{train,test}-v2.0.json` in the layout of
SQuAD 2.0, and for woz and sql a list of what the metric needs, in the order of the ids of the test questions.

    python -m lab.tasks --from-lamol DIR
"""

import json
from pathlib import Path

from eval import METRICS
from lab.errors import DataError
from lab.tasks.fetch import SOURCES, local_files
from lab.tasks.prepare import sizes_text
from lab.tasks.reading import SPLITS, check_row, text_of, write_rows
from lab.tasks.table import TASKS

NAMES = {"woz.en": "woz", "wikisql": "sql", "cnn_dailymail": "cnn", "e2enlg": "e2e"}  # theirs -> ours, then the same
NAMES |= {task: task for task in TASKS if TASKS[task].reader and task not in NAMES.values()}
ANSWERS = {"woz": "woz.en_answers.json", "sql": "wikisql_answers.json"}


def from_lamol(source: str | Path, data_dir: str | Path) -> list[str]:
    """Write interchange files of all tasks that `source` holds into data_dir. Returns the tasks. Raises DataError."""
    source, data_dir = Path(source).expanduser(), Path(data_dir).expanduser()
    found = {}
    for name, task in NAMES.items():
        if files := local_files(source, [f"{name}_to_squad-{split}-v2.0.json" for split in SPLITS]):
            rows = {split: squad_rows(path) for split, path in zip(SPLITS, files)}
            if task in ANSWERS:
                rows["test"] = with_answers(rows["test"], source / ANSWERS[task], TASKS[task].metric)
            folder = data_dir / SOURCES[task][0]
            if list(folder.glob("*.tables.jsonl")):
                raise DataError(f"{folder} holds the raw files of WikiSQL, of the same names: take another --data-dir")
            found[task] = rows
    if not found:
        names = ", ".join(NAMES)
        raise DataError(f"--from-lamol {source}: no NAME_to_squad-train-v2.0.json is there, with NAME one of {names}")
    for task, rows in found.items():  # nothing is written before everything has been read
        folder = data_dir / SOURCES[task][0]
        for split in SPLITS:
            write_rows(folder / f"{split}.jsonl", rows[split])
        print(f"{task}: {sizes_text(task, rows)}; in {folder}")
    return list(found)


def squad_rows(path: Path) -> list[dict]:
    """The question-answer pairs of one file, in the order of their ids. Raises DataError.

    No answer is an empty one; of several the first is the answer, and all are the references."""
    try:
        data = json.loads(text_of(path))["data"]
        pairs = [(p["context"], qa) for article in data for p in article["paragraphs"] for qa in p["qas"]]
        rows = []
        for context, qa in sorted(pairs, key=lambda pair: id_order(pair[1]["id"])):
            texts = [answer["text"] for answer in qa["answers"]] or [""]
            row = {"id": str(qa["id"]), "context": context, "question": qa["question"], "answer": texts[0]}
            rows.append(row | {"meta": {"references": texts} if texts[1:] else {}})
            check_row(rows[-1])
            METRICS["rouge"].check(rows[-1]["meta"])
        if not rows:
            raise ValueError("no question in it")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise DataError(f"{path}: not in the layout of SQuAD 2.0, or cut off ({e!r})") from None
    return rows


def id_order(id) -> tuple:
    """Numbers by their value, then other ids as text."""
    return (0, int(id), "") if str(id).isdecimal() else (1, 0, str(id))


def with_answers(rows: list[dict], path: Path, metric: str) -> list[dict]:
    """The rows with what the metric needs: turns and their answers (woz), or logical forms and headers (sql)."""
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
            METRICS[metric].check(row["meta"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as e:
        raise DataError(f"{path}: not the answers to its task's test questions ({e})") from None
    return rows
