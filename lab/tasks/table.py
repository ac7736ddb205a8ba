"""The registered tasks, one a line."""

from collections.abc import Callable
from typing import NamedTuple

from lab.tasks import classification, cnn, nlg, wikisql, woz


class Registered(NamedTuple):
    """A task that is known by its name.

    metric: a key of eval.METRICS. sizes: training and test examples, from Table 1 of the paper, or None for a toy task.
    reader: `(task, folder) -> (files, read)`, see lab/tasks/reading.py, or None for a toy task."""

    metric: str
    sizes: tuple[int, int] | None = None
    reader: Callable | None = None


# The order is that of the slots for task tokens: a new task goes to the end, or the models of earlier runs break.
TASKS = {
    "woz": Registered("joint_goal_em", (2536, 1646), woz.reader),
    "sql": Registered("lfem", (6525, 15878), wikisql.reader),
    "cnn": Registered("rouge", (6604, 2250), cnn.reader),
    "toy.woz": Registered("joint_goal_em"),
    "toy.sql": Registered("lfem"),
    "toy.cnn": Registered("rouge"),
    "toy.e2e": Registered("rouge"),
    "toy.ag": Registered("em"),
    "e2e": Registered("rouge", (6000, 2000), nlg.e2e_reader),
    "rnnlg.rest": Registered("rouge", (6228, 1039), nlg.rnnlg_reader),
    "rnnlg.hotel": Registered("rouge", (6446, 1075), nlg.rnnlg_reader),
    "rnnlg.tv": Registered("rouge", (8442, 1407), nlg.rnnlg_reader),
    "rnnlg.laptop": Registered("rouge", (7944, 2649), nlg.rnnlg_reader),
    "ag": Registered("em", (115000, 7600), classification.reader),
    "yelp": Registered("em", (115000, 7600), classification.reader),
    "amazon": Registered("em", (115000, 7600), classification.reader),
    "dbpedia": Registered("em", (115000, 7600), classification.reader),
    "yahoo": Registered("em", (115000, 7600), classification.reader),
}
