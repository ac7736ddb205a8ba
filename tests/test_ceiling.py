"""What the data's own answers score, and answers that a metric can't read. python -m pytest tests/test_ceiling.py"""

import json
import re

import pytest
from raw_formats import interchange

from data import Example, Task
from eval import METRICS, Metric
from lab.errors import DataError
from lab.files import read_json
from lab.run.options import differences
from lab.tasks import TASKS, is_toy, load_task
from lab.tasks.ceiling import ceiling, ceiling_line
from train import main

# ---------------------------------------------------------------------- a task of the user's


def own(folder, metric, answers, metas=None):
    """A task folder with this metric and these answers, a blank line before the last one."""
    metas = metas or [{"turn": f"en_0_{i}"} for i in range(len(answers))]
    interchange(folder, [{"context": "c", "question": "q", "answer": a, "meta": m} for a, m in zip(answers, metas)])
    lines = (folder / "test.jsonl").read_text().splitlines()
    (folder / "test.jsonl").write_text("\n".join([*lines[:-1], "", lines[-1]]))
    (folder / "task.json").write_text(json.dumps({"metric": metric}))
    return str(folder)


@pytest.mark.parametrize(
    "answer",
    [
        "leave at: 10:15;",
        "area: north",
        "area: north, leave at: 10:15; phone",
        "area: north, moderate prices;",
        "area; north;",
        "north;",
        "area: north; phone; address",
        "area: north, area: south;",
        "not mentioned",
        "url: http://x.org;",
    ],
)
def test_a_state_that_joint_goal_can_not_read_is_refused_with_its_line(tmp_path, answer):
    entry = own(tmp_path / "mine", "joint_goal_em", ["food: thai;", answer])
    says = rf"{re.escape(entry)}.test\.jsonl, line 3: joint_goal_em can't read the answer '{re.escape(answer)}': "
    with pytest.raises(DataError, match=says):
        load_task(entry, "", "")


def test_states_that_say_nothing_or_all_are_read(tmp_path):
    good = [
        "None",
        "none",
        "",
        ";",
        "; phone",
        "; phone, address",
        "None;",
        "area: north;",
        " a: b , c: d ; e ",
        "a: ,;",
    ]
    task = load_task(own(tmp_path / "mine", "joint_goal_em", ["food: thai;", *good]), "", "")
    assert len(task.test) == 11 and ceiling(task, tmp_path) == 100


FORM = {"sel": 1, "agg": 0, "conds": [[0, 0, "rock and roll"]]}


@pytest.mark.parametrize(
    "answer",
    [
        "select title from table where genre = pop",  # another value
        "select genre from table where genre = rock and roll",  # another column
        "SELECT COUNT(title) FROM songs",
        "what is rock and roll?",
        "",
    ],
)
def test_sql_that_is_not_its_logical_form_is_refused_with_its_line(tmp_path, answer):
    meta, fine = {"header": ["genre", "title"], "sql": FORM}, {"sel": 0, "agg": 3, "conds": []}
    metas = [meta | {"sql": fine}, meta]
    entry = own(tmp_path / "mine", "lfem", ["select count genre from table", answer], metas)
    with pytest.raises(DataError, match=r"test\.jsonl, line 3: lfem can't read the answer .*logical form in 'meta' is"):
        load_task(entry, "", "")


@pytest.mark.parametrize("value", ["rock and roll", "orlando, and", "c > b and 1"])
def test_sql_that_the_authors_parser_misreads_only_lowers_the_ceiling(tmp_path, value):
    meta = {"header": ["genre", "title"], "sql": FORM | {"conds": [[0, 0, value], [1, 0, "x"]]}}
    answer = f"SELECT title FROM table WHERE genre = {value} AND title = x"
    plain = {"header": ["genre", "title"], "sql": {"sel": 0, "agg": 0, "conds": []}}
    task = load_task(own(tmp_path / "mine", "lfem", [answer, "select genre from table"], [meta, plain]), "", "")
    assert ceiling(task, tmp_path) == 50 and "'and'" in ceiling_line(task, 50)


@pytest.mark.parametrize(
    "metric, answers", [("joint_goal_em", ["None", ";", "; phone"]), ("joint_goal_em", ["; address"]), ("len", ["a"])]
)
def test_a_task_in_which_no_answer_is_as_good_as_any_is_refused(tmp_path, metric, answers, monkeypatch):
    always = Metric(lambda predictions, examples: {"len": 100.0}, lambda meta: None)
    monkeypatch.setitem(METRICS, "len", always)
    entry = own(tmp_path / "mine", metric, answers)
    with pytest.raises(DataError, match=rf"{entry}: an empty answer is as good .* {metric} would measure nothing"):
        load_task(entry, "", "")


def test_the_law_is_not_for_empty_answers(tmp_path):
    assert load_task(own(tmp_path / "a", "em", ["", ""]), "", "").test
    assert load_task(own(tmp_path / "b", "em", ["", "x"]), "", "").test


# ---------------------------------------------------------------------- training answers


TITLES = {"header": ["genre", "title"], "sql": {"sel": 1, "agg": 0, "conds": []}}
UNREADABLE = [  # metric, a good answer, one that can't be read, the meta of both
    ("joint_goal_em", "area: north;", "no state", {}),
    ("joint_goal_em", "; phone", "area: north, area: south;", {"turn": "en_0_0"}),
    ("lfem", "select title from table", "select genre from table", TITLES),
    ("lfem", "SELECT title FROM table", "", TITLES),
]


def with_training(tmp_path, metric, answers, meta):
    """A task of the user's with these training answers, a blank line before them."""
    test = {"joint_goal_em": ("food: thai;", {"turn": "en_0_0"}), "lfem": ("select title from table", TITLES)}[metric]
    entry = own(tmp_path / "mine", metric, [test[0]], [test[1]])
    rows = [json.dumps({"context": "c", "question": "q", "answer": answer, "meta": meta}) for answer in answers]
    (tmp_path / "mine/train.jsonl").write_text("\n".join(["", *rows]))
    return entry


@pytest.mark.parametrize("metric, good, bad, meta", UNREADABLE)
def test_up_to_1_percent_of_training_answers_that_can_not_be_read_are_counted(
    tmp_path, capsys, metric, good, bad, meta
):
    entry = with_training(tmp_path, metric, [good] * 100 + [bad] + [good] * 98 + [bad], meta)
    assert len(load_task(entry, "", "").train) == 200
    said = capsys.readouterr().out
    assert said.startswith(f"note     {entry}/train.jsonl, line 102: {metric} can't read the answer {bad!r}: ")
    assert "; 2 of 200 training answers can't be read, so what they teach is not scored" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("metric, good, bad, meta", UNREADABLE)
def test_more_of_them_are_refused(tmp_path, metric, good, bad, meta):
    entry = with_training(tmp_path, metric, [good] * 97 + [bad] * 2, meta)
    says = r"train\.jsonl, line 99: .* can't read the answer .*; 2 of 99 training answers can't be read; more than 1%"
    with pytest.raises(DataError, match=says):
        load_task(entry, "", "")


def test_training_answers_need_no_meta_and_other_metrics_read_all(tmp_path, capsys):
    for metric, meta in (("lfem", {}), ("lfem", {"sql": 3}), ("lfem", {"header": ["a"], "sql": {"sel": 1}})):
        assert load_task(with_training(tmp_path, metric, ["what it likes"], meta), "", "").train
    for metric in ("em", "rouge"):
        assert load_task(own(tmp_path / metric, metric, ["", "not mentioned", "select"]), "", "").train
    assert not capsys.readouterr().out


# ---------------------------------------------------------------------- the ceiling


def task_of(metric, *answers):
    return Task("mine", metric, [], [Example("c", "q", answer) for answer in answers])


@pytest.mark.parametrize(
    "task, wanted",
    [
        (task_of("rouge", "yes", "no"), 200 / 3),
        (task_of("rouge", "a long answer", "yes"), 250 / 3),
        (task_of("rouge", "北京", "ответ", "ελλάδα"), 0),
        (task_of("rouge", "two words", "北京"), 50),
        (task_of("rouge", "two words"), 100),
        (task_of("em", "yes", "北京", ""), 100),
    ],
)
def test_the_ceiling_is_the_score_of_the_own_answers(task, wanted, tmp_path):
    assert ceiling(task, tmp_path) == pytest.approx(wanted)
    says = ceiling_line(task, wanted)
    assert bool(says) == (wanted < 100) and (not says or f"own answers score {wanted:.2f} by rouge" in says)


@pytest.mark.parametrize("name", [name for name in TASKS if is_toy(name)])
def test_toy_tasks_can_be_answered_in_full(name, tmp_path):
    assert ceiling(load_task(name, "", ""), tmp_path) == pytest.approx(100)


@pytest.mark.parametrize("name, wanted", [("woz", 100), ("sql", 97.97), ("rnnlg.rest", 95.89)])
def test_the_ceilings_of_real_data(name, wanted, shared, tmp_path):
    assert ceiling(load_task(name, shared / "data", tmp_path), tmp_path) == pytest.approx(wanted, abs=0.01)


def test_a_slow_ceiling_is_found_again_until_the_data_or_the_metric_change(tmp_path, monkeypatch):
    calls = []

    def slow(predictions, examples):
        calls.append(examples)
        return {"rouge": 42.0}

    monkeypatch.setitem(METRICS, "rouge", Metric(slow, lambda meta: None))
    monkeypatch.setattr("lab.tasks.ceiling.SLOW", -1)
    assert [ceiling(task_of("rouge", "a"), tmp_path / "cache") for _ in range(3)] == [42.0] * 3 and len(calls) == 1
    ceiling(task_of("rouge", "b"), tmp_path / "cache")
    (tmp_path / "file").write_text("")
    assert ceiling(task_of("rouge", "a"), tmp_path / "file") == 42.0 and len(calls) == 3  # no folder to write to
    assert ceiling(task_of("em", "a"), tmp_path / "cache") == 100


def test_a_run_prints_and_records_its_ceilings(lab, capsys, tmp_path):
    (tmp_path / "sizes/task.json").write_text('{"metric": "rouge"}')
    assert main([*lab, "--kd", "none", "--epochs", "1"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^ceiling  sizes: the data's own answers score 66.67 by rouge", out, re.M)
    assert "ceiling  colors" not in out
    (run,) = (tmp_path / "runs").glob("colors+sizes*")
    for file in ("config.json", "summary.json"):
        assert read_json(run / file)["ceiling"] == {"colors": 100.0, "sizes": 66.6667}
    config = read_json(run / "config.json")
    older = tmp_path / "config.json"  # of a version that recorded none
    older.write_text(json.dumps({key: value for key, value in config.items() if key != "ceiling"}))
    assert differences(older, config) == ([], [])
