"""The toy tasks: what their rows promise. python -m pytest tests/test_toy.py"""

import subprocess
import sys

import pytest

from data import METRICS, load_task, task_name
from eval import score
from lab.toy import GRAMMARS, SIZES, TOPICS, toy_rows

TASKS = pytest.mark.parametrize("name", GRAMMARS)


@TASKS
def test_toy_tasks_are_registered_with_300_training_and_100_test_examples(name):
    task = load_task(task_name(name), "nowhere", "nowhere")
    assert (len(task.train), len(task.test)) == (300, 100) == tuple(SIZES.values())
    assert task.metric == METRICS[name]
    assert all(e.context and e.question and e.answer for e in task.train + task.test)
    assert len({e.id for e in task.train + task.test}) == 400


@TASKS
def test_no_test_combination_is_seen_in_training_or_pretraining(name):
    """What is asked for is a combination of words: for sections the headline's three, for the others the answer's."""

    def combinations(rows):
        if name != "toy.ag":
            return {row["answer"] for row in rows}
        topics = {word for words in TOPICS.values() for word in words}
        return {tuple(sorted(w for w in row["context"].split() if w in topics)) for row in rows}

    train, test, pretraining = (
        combinations(toy_rows(name, split, n)) for split, n in ((*SIZES.items(), ("pretraining", 3000)))
    )
    assert not test & train and not test & pretraining and not train & pretraining
    assert len(test) > 50 and len(train) > 100


@TASKS
def test_the_gold_answers_have_full_marks_and_a_wrong_one_has_not(name):
    task = load_task(name, "nowhere", "nowhere")
    gold = [e.answer for e in task.test]
    assert score(task, gold)["score"] == pytest.approx(100)
    assert score(task, [*gold[1:], "nothing"])["score"] < 60


def test_a_sections_label_is_that_of_two_of_its_three_words():
    for row in toy_rows("toy.ag", "train", 300):
        found = [topic for word in row["context"].split() for topic, words in TOPICS.items() if word in words]
        assert len(found) == 3 and found.count(row["answer"]) == 2


def test_every_process_makes_the_same_rows():
    code = "from lab.toy import *; print([toy_rows(task, 'test', 50) for task in GRAMMARS])"
    said = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1 and len(said.pop()) > 10_000


@TASKS
def test_rows_fit_into_nanos_context_and_come_back_from_its_tokens(name, tok):
    for row in toy_rows(name, "train", 300):
        ids = [tok.encode(row[part]) for part in ("context", "question", "answer")]
        assert sum(map(len, ids)) < 80
        assert [tok.decode(part) for part in ids] == [row[part] for part in ("context", "question", "answer")]
