"""The published numbers are the paper's, and fit each other. python -m pytest tests/test_published.py"""

import json
from statistics import mean, stdev

from paper_runs import RUNS

from lab.paper.experiments import DEVIATION, MEAN, PLAIN, PUBLISHED, orders_of
from lab.paper.runs import FIGURES, METHODS

LABELS = {  # ours -> the label of the transcription in ../shared
    "finetune": "finetune",
    "LAMOL": "lamol",
    "Word-KD": "lamol+word",
    "Seq-KD_soft": "lamol+seqsoft",
    "Seq-KD": "lamol+seq",
    "teacher": "teacher",
    "Single QA": "single QA",
    "Single QA+LM": "single QA+LM",
    "Multi same QA": "multi_same QA",
    "Multi same QA+LM": "multi_same QA+LM",
    "Multi long QA": "multi_long QA",
    "Multi long QA+LM": "multi_long QA+LM",
    "Multi long QA+LM + Seq-KD": "multi_long QA+LM + seq-kd",
    "Multi QA": "multi QA",
    "Multi QA+LM": "multi QA+LM",
}


def labelled(block):
    return {LABELS[row]: numbers for row, numbers in block.items()}


def as_lists(block, columns):
    return {row: [numbers[column] for column in columns] for row, numbers in block.items()}


def test_the_published_numbers_are_the_transcribed_ones(shared):
    theirs = json.loads((shared / "paper" / "tables.json").read_text(encoding="utf-8"))
    ours, there = PUBLISHED["table2"], theirs["table2_orders"]
    assert list(ours) == ["columns", *there]
    assert all(labelled(ours[order]) == as_lists(there[order], ours["columns"]) for order in there)
    ours, there = PUBLISHED["table3"], theirs["table3"]
    assert ours["columns"] == there["columns"] and labelled(ours[PLAIN]) == there["non_lifelong"]
    assert labelled(ours[MEAN]) == there["lifelong_mean_over_6_orders"]
    assert labelled(ours[DEVIATION]) == there["lifelong_std_over_6_orders"]
    for name, key in (("table4", "table4_nlg"), ("table5", "table5_classification")):
        ours, there = PUBLISHED[name], theirs[key]
        short = {order: order.replace("rnnlg.", "") for order in orders_of(name)}
        assert [column.removeprefix("rnnlg.") for column in ours["columns"]] == there["columns"]
        assert labelled(ours[PLAIN]) == there["non_lifelong"] and len(ours) == len(there) == 4
        assert all(labelled(ours[order]) == there[short[order]] for order in short)
    columns = ("acc", "acc_teacher_right", "acc_teacher_wrong")
    assert labelled(PUBLISHED["table6"]["all"]) == as_lists(theirs["table6_agreement_pooled"], columns)
    assert list(PUBLISHED["table8"]) == ["columns", *theirs["table8_agreement"]]
    for task, there in theirs["table8_agreement"].items():
        assert labelled(PUBLISHED["table8"][task]) == as_lists(there, columns)
    assert set(PUBLISHED) == {"source", *RUNS} - {"claims", *FIGURES}


def test_the_drawn_orders_are_one_of_table_2_and_the_first_ones_of_tables_4_and_5():
    assert FIGURES["figure3"] in orders_of("table2")
    assert [FIGURES[name] for name in ("figure4", "figure5")] == [orders_of(name)[0] for name in ("table4", "table5")]


def near(a, b, within=0.1):
    return abs(a - b) <= within + 1e-9


def test_the_published_averages_are_means_of_their_tasks():
    blocks = [(name, block) for name in ("table2", "table3", "table4", "table5") for block in PUBLISHED[name]]
    rows = [row for name, block in blocks if block != "columns" for row in PUBLISHED[name][block].values()]
    assert len(rows) == 30 + 17 + 12 + 12
    assert all(near(mean(tasks), average) for *tasks, average in rows)


def test_the_published_table_3_is_mean_and_sample_deviation_over_the_orders_of_table_2():
    for label in METHODS:
        tasks = list(zip(*(PUBLISHED["table2"][order][label] for order in orders_of("table2"))))[:3]
        for i, values in enumerate(tasks):
            assert near(mean(values), PUBLISHED["table3"][MEAN][label][i])
            assert near(stdev(values), PUBLISHED["table3"][DEVIATION][label][i])
        assert near(mean(map(stdev, tasks)), PUBLISHED["table3"][DEVIATION][label][3])


def test_the_published_table_6_pools_the_examples_of_table_8():
    """Five test sets of one size, so (A) weighs a task by its teacher's accuracy, and (B) by what is missing to 100."""
    tasks = [task for task in PUBLISHED["table8"] if task != "columns"]
    right = [PUBLISHED["table8"][task]["teacher"][0] for task in tasks]
    weights = ([1] * 5, right, [100 - share for share in right])
    for label, numbers in PUBLISHED["table6"]["all"].items():
        for i, (weight, published) in enumerate(zip(weights, numbers)):
            by_task = [PUBLISHED["table8"][task][label][i] for task in tasks]
            assert near(sum(w * x for w, x in zip(weight, by_task)) / sum(weight), published, 0.02), (label, i)
