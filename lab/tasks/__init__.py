"""The tasks: which are registered, where their data come from, and how public files become examples.

    table.py        the registered tasks: metric, sizes, reader; their order is the order of the task tokens
    registry.py     an entry of --order -> its name, its metric, its examples
    prepare.py      raw files -> one JSONL file a split, made once and found again
    fetch.py        addresses, checksums, downloads
    squad.py        the authors' own processed files
    toy.py          small grammars, which need no download
    reading.py      what the readers share; archives.py, too

One reader a family of data sets: woz.py, wikisql.py, cnn.py, nlg.py, classification.py.

    python -m lab.tasks woz e2e     downloads and prepares two tasks
"""

from lab.tasks.registry import TASKS, is_toy, load_task, task_name

__all__ = ["TASKS", "is_toy", "load_task", "task_name"]
