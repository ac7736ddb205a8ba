"""The registry, tasks of the user's own, and the interchange format. python -m pytest tests/test_tasks.py"""

import re

import pytest
from raw_formats import interchange

from data import Example
from eval import METRICS, score
from lab.errors import DataError
from lab.tasks import TASKS, is_toy, load_task, task_name
from lab.tasks.fetch import SOURCES
from lab.tasks.reading import SPLITS

# ---------------------------------------------------------------------- the registry


def own_task(folder, rows):
    """A task folder of the user's; rows are (context, question, answer) and perhaps references."""
    keys = ("context", "question", "answer")
    dicts = [dict(zip(keys, row)) | {"meta": {"references": row[3]} if row[3:] else {}} for row in rows]
    interchange(folder, dicts)
    return str(folder)


def test_the_order_of_the_registry_is_that_of_the_task_tokens():
    """Models of earlier runs hold these numbers: a new task goes to the end."""
    assert (
        list(TASKS)
        == (
            "woz sql cnn toy.woz toy.sql toy.cnn toy.e2e toy.ag e2e rnnlg.rest rnnlg.hotel rnnlg.tv rnnlg.laptop "
            "ag yelp amazon dbpedia yahoo"
        ).split()
    )
    assert all(task.metric in METRICS and (task.sizes is None) == (task.reader is None) for task in TASKS.values())
    assert [name for name in TASKS if is_toy(name)] == [name for name in TASKS if name.startswith("toy.")]
    assert not is_toy("a folder") and list(SOURCES) == [name for name in TASKS if not is_toy(name)]


def test_a_folder_is_a_task_and_its_last_line_counts(tmp_path):
    entry = own_task(tmp_path / "mine", [("a\u2028b", "q", str(i)) for i in range(7)])
    for split in SPLITS:
        path = tmp_path / "mine" / f"{split}.jsonl"
        text = path.read_text().replace(r"\u2028", "\u2028")  # which ends no line
        path.write_text(text.rstrip("\n"), encoding="utf-8")
    task = load_task(entry, "", "")
    assert (task.name, task.metric, len(task.train), task.test[-1]) == (
        "mine",
        "em",
        7,
        Example("a\u2028b", "q", "6", "7"),
    )
    few = load_task(entry, "", "", limit=2)
    assert (few.train, few.test) == (task.train[:2], task.test[:2])


def test_training_examples_are_drawn_at_random_the_same_ones_each_time_and_the_test_split_stays_whole(tmp_path):
    entry = own_task(tmp_path / "mine", [(f"c{i}", "q", "a") for i in range(50)])
    whole, few, again = (load_task(entry, "", "", train_examples=n) for n in (0, 10, 10))
    places = [whole.train.index(e) for e in few.train]
    assert len(places) == 10 and places == sorted(set(places)) and places[-1] >= 20  # not the first ones
    assert few.train == again.train and few.test == whole.test and len(whole.test) == 50
    assert load_task(entry, "", "", train_examples=50).train == whole.train
    assert load_task(entry, "", "", train_examples=99).train == whole.train


def test_unknown_tasks_and_unfit_folder_names_are_refused(tmp_path):
    for entry in ("wozz", "x" * 5000, "a\0b"):
        with pytest.raises(ValueError, match=r"unknown task .*: known are woz, sql, .*, yahoo, or a folder"):
            load_task(entry, "", "")
    for name in ("a b", "woz", "toy.ag"):
        (tmp_path / name).mkdir()
        with pytest.raises(ValueError, match="rename"):
            task_name(str(tmp_path / name))
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match=r"train.jsonl: No such file or directory; a task folder holds train.jsonl"):
        load_task(str(tmp_path / "void"), "", "")


def test_multi_reference_counts_each_question_once_against_all_its_references(tmp_path):
    rows = [("c", "q", "red", ["red", "blue"]), ("c", "q", "blue", ["red", "blue"]), ("c", "r", "red", ["red", "tan"])]
    entry = own_task(tmp_path / "mine", [*rows, ("c", "q", "a b"), ("c", "q", "c d")])
    (tmp_path / "mine/task.json").write_text('{"metric": "rouge"}')
    single, pooled = (load_task(entry, "", "", multi_reference=multi) for multi in (False, True))
    assert [e.answer for e in single.test] == ["red", "blue", "red", "a b", "c d"] and not any(
        e.meta for e in single.test
    )
    assert [(e.question, e.meta.get("references")) for e in pooled.test] == [
        ("q", ["red", "blue"]),
        ("r", ["red", "tan"]),
        ("q", None),  # without references, each counts
        ("q", None),
    ]
    assert len(pooled.train) == 5
    assert score(single, ["red", "red", "no", "no", "no"])["rouge1"] == pytest.approx(20)
    assert score(pooled, ["red", "no", "no", "no"])["rouge1"] == pytest.approx(100 * 0.5 / 4)  # half a match
    assert len(load_task(entry, "", "", limit=3, multi_reference=True).test) == 2  # the limit comes first


# ---------------------------------------------------------------------- the interchange format


@pytest.mark.parametrize(
    "line, says",
    [
        (b"{", "cut off or not JSON"),
        (b"[" * 100000, "cut off or not JSON"),
        (b'["context"]', "a JSON object is expected"),
        (b'{"context": "c", "question": "q"}', "'answer' is missing or no text"),
        (b'{"context": 3, "question": "q", "answer": "a"}', "'context' is missing or no text"),
        (b'{"context": "c", "question": "q", "answer": "\xff"}', "'answer' is not UTF-8 text"),
        (b'{"context": "c", "question": "q", "answer": "\\ud800"}', "'answer' is not UTF-8 text"),
        (b'{"context": "c", "question": "q", "answer": "a", "meta": 3}', "'meta' must be an object"),
    ],
)
def test_a_broken_line_of_an_interchange_file_is_named(tmp_path, line, says):
    interchange(tmp_path / "own")
    path = tmp_path / "own" / "train.jsonl"
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(DataError, match=re.escape(f"{path}, line 4: {says}")):
        load_task(str(tmp_path / "own"), "", "")


@pytest.mark.parametrize("raw", [b"", b" \n\n"])
def test_an_empty_interchange_file_is_named(tmp_path, raw):
    interchange(tmp_path / "own")
    (tmp_path / "own/test.jsonl").write_bytes(raw)
    with pytest.raises(DataError, match=r"test\.jsonl is empty"):
        load_task(str(tmp_path / "own"), "", "")


def test_a_meta_that_has_no_utf8_comes_back(tmp_path):
    row = {"context": "c", "question": "q", "answer": "a", "meta": {"\ud800": "\udfff"}}
    interchange(tmp_path / "yelp", [row])
    assert load_task("yelp", tmp_path, tmp_path / "cache").test[0].meta == row["meta"]


# ---------------------------------------------------------------------- what the metric needs


FORM = {"sel": 0, "agg": 0, "conds": [[0, 0, "x"]]}


@pytest.mark.parametrize(
    "task, good, bad",
    [
        ("woz", {"turn": "en_0_0"}, {}),
        ("sql", {"sql": FORM, "header": ["A"]}, {"sql": FORM, "header": []}),
        ("e2e", {}, {"references": "text"}),
        ("own", {"sql": FORM, "header": ["A"]}, {}),
        ("own", {"sql": FORM, "header": ["A"]}, {"sql": None, "header": ["A"]}),
    ],
)
def test_a_test_example_without_what_its_metric_needs_is_named(tmp_path, task, good, bad):
    folder = tmp_path / {"sql": "wikisql"}.get(task, task)
    answer = "a: x;" if task == "woz" else "select a from table where a = x"
    rows = [{"context": "c", "question": "q", "answer": answer, "meta": meta} for meta in (good, good, bad)]
    interchange(folder, rows)
    (folder / "task.json").write_text('{"metric": "lfem"}')
    entry = str(folder) if task == "own" else task
    with pytest.raises(DataError, match=rf"^{re.escape(str(folder))}.test\.jsonl, example 3: 'meta' lacks what \w+"):
        load_task(entry, tmp_path, tmp_path / "cache")
    interchange(folder, rows[:2])
    assert len(load_task(entry, tmp_path, tmp_path / "cache").test) == 2


@pytest.mark.parametrize(
    "text", ['{"metric": "bleu"}', '{"metric": ["em"]}', "{}", "[]", '"em"', "", '{"metric": ', "[" * 100000, "\xe9"]
)
def test_an_unknown_metric_is_an_error(tmp_path, text):
    interchange(tmp_path / "own")
    (tmp_path / "own/task.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"task\.json: .*metric.*: one of em, rouge, lfem, joint_goal_em} is expected"):
        load_task(str(tmp_path / "own"), tmp_path, tmp_path)


def test_a_task_is_scored_by_the_metric_that_its_folder_names(tmp_path):
    entry = own_task(tmp_path / "own", [("c", "q", "a b c d")])
    assert score(load_task(entry, "", ""), ["a b"]) == {"score": 0, "em": 0}
    (tmp_path / "own/task.json").write_text('{"metric": "rouge"}')
    scores = score(load_task(entry, "", ""), ["a b"])
    assert scores["score"] == scores["rouge"] > 50
