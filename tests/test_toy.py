"""The toy tasks: what their rows promise. python -m pytest tests/test_toy.py"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from eval import score
from lab.tasks import TASKS, is_toy, load_task
from lab.tasks.toy import GRAMMARS, SIZES, TOPICS, toy_rows

ROOT = Path(__file__).parents[1]
EACH = pytest.mark.parametrize("name", GRAMMARS)


@EACH
def test_toy_tasks_are_registered_with_300_training_and_100_test_examples(name):
    task = load_task(name, "nowhere", "nowhere")
    assert (len(task.train), len(task.test)) == (300, 100) == tuple(SIZES.values())
    assert is_toy(name) and task.metric == TASKS[name].metric
    assert all(e.context and e.question and e.answer for e in task.train + task.test)
    assert len({e.id for e in task.train + task.test}) == 400


@EACH
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


@EACH
def test_the_gold_answers_have_full_marks_and_a_wrong_one_has_not(name):
    task = load_task(name, "nowhere", "nowhere")
    gold = [e.answer for e in task.test]
    assert score(task, gold)["score"] == pytest.approx(100)
    assert score(task, [*gold[1:], "nothing"])["score"] < 60


def test_a_sections_label_is_that_of_two_of_its_three_words():
    for row in toy_rows("toy.ag", "train", 300):
        found = [topic for word in row["context"].split() for topic, words in TOPICS.items() if word in words]
        assert len(found) == 3 and found.count(row["answer"]) == 2


def test_the_command_shows_two_examples_a_task_the_same_in_every_process():
    """Sets and hashes of texts differ between processes; rows must not depend on them."""
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    command, environment = [sys.executable, "-m", "lab.tasks.toy"], os.environ | {"PYTHONHASHSEED": seed}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    rows = [(name, row) for name in GRAMMARS for row in toy_rows(name, "train", 2)]
    shown = [[name, *(row[part] for part in ("context", "question", "answer"))] for name, row in rows]
    assert "".join(done.stdout.split()) == "".join("".join("".join(one).split()) for one in shown) and not done.stderr


@EACH
def test_rows_fit_into_nanos_context_and_come_back_from_its_tokens(name, tok):
    for row in toy_rows(name, "train", 300):
        ids = [tok.encode(row[part]) for part in ("context", "question", "answer")]
        assert sum(map(len, ids)) < 80
        assert [tok.decode(part) for part in ids] == [row[part] for part in ("context", "question", "answer")]
