"""The authors' own processed files, in the layout of SQuAD 2.0. python -m pytest tests/test_squad.py"""

import json
import random

import pytest
from raw_formats import good_rows, write_raw

from eval import score
from lab.tasks import TASKS, is_toy, load_task
from lab.tasks.__main__ import main
from lab.tasks.reading import SPLITS


def squad(folder, name, questions, split):
    """`{name}_to_squad-{split}-v2.0.json`; questions are (id, context, question, answer), in an order of their own."""
    folder.mkdir(exist_ok=True)
    shuffled = random.Random(0).sample(questions, len(questions))
    data = [
        {"paragraphs": [{"context": c, "qas": [{"id": id, "question": q, "answers": [{"text": a}] if a else []}]}]}
        for id, c, q, a in shuffled
    ]
    (folder / f"{name}_to_squad-{split}-v2.0.json").write_text(json.dumps({"version": "2", "data": data}))


def squads(folder, name, n=12, kind=int, answer="answer {}"):
    for split in SPLITS:
        squad(folder, name, [(kind(i), f"context {i}", "question?", answer.format(i)) for i in range(n)], split)


TRAINING = {"woz.en": "food: f{};"}  # as the metric reads it
WOZ_ANSWERS = [[f"en_{i // 3}_{i % 3}", f"food: f{i};"] for i in range(12)]
SQL_ANSWERS = [
    {"sql": form, "header": ["A", "B"], "answer": f"select a from table where b = {i}", "table": f"t-{i}"}
    for i, form in enumerate({"sel": 0, "agg": 0, "conds": [[1, 0, i]]} for i in range(12))
]


def lamol(folder, kind=int):
    """A folder as the authors released it, of four tasks."""
    for name in ("woz.en", "wikisql", "ag", "e2enlg"):
        squads(folder, name, kind=kind, answer=TRAINING.get(name, "answer {}"))
    (folder / "woz.en_answers.json").write_text(json.dumps(WOZ_ANSWERS))
    (folder / "wikisql_answers.json").write_text(json.dumps(SQL_ANSWERS))


@pytest.mark.parametrize("kind", [int, str])
def test_the_authors_files_are_loaded_and_scored(tmp_path, capsys, kind):
    """Ids are numbers or texts of numbers, shuffled in the file; answers are in the order of the numbers."""
    lamol(tmp_path / "lamol", kind)
    assert main(["--from-lamol", str(tmp_path / "lamol"), "--data-dir", str(tmp_path / "raw")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("for woz, sql, e2e, ag")
    tasks = {name: load_task(name, tmp_path / "raw", tmp_path / "cache") for name in ("woz", "sql", "e2e", "ag")}
    for name, task in tasks.items():
        assert [e.context for e in task.test] == [f"context {i}" for i in range(12)], name
        assert [e.id for e in task.train] == [str(i) for i in range(12)]
        assert [e.answer for e in task.train] == [f"food: f{i};" if name == "woz" else f"answer {i}" for i in range(12)]
        assert score(task, [e.answer for e in task.test])["score"] == pytest.approx(100)
    assert [[e.meta["turn"], e.answer] for e in tasks["woz"].test] == WOZ_ANSWERS
    wanted = [{key: entry[key] for key in ("sql", "header")} for entry in SQL_ANSWERS]
    assert [e.meta for e in tasks["sql"].test] == wanted
    assert [e.answer for e in tasks["sql"].test] == [entry["answer"] for entry in SQL_ANSWERS]
    assert [e.answer for e in tasks["ag"].test] == [f"answer {i}" for i in range(12)]


def test_ids_that_are_no_numbers_are_ordered_as_text_after_numbers(tmp_path):
    for split in SPLITS:
        squad(tmp_path, "ag", [(id, f"c {id}", "q", "") for id in (2, "10", "x-1", "x-b")], split)
    main(["--from-lamol", str(tmp_path), "--data-dir", str(tmp_path / "raw")])
    task = load_task("ag", tmp_path / "raw", tmp_path / "cache")
    assert [(e.id, e.answer) for e in task.test] == [(id, "") for id in ("2", "10", "x-1", "x-b")]


def test_all_thirteen_tasks_are_found_by_the_authors_names(tmp_path, capsys):
    ours = [task for task in TASKS if not is_toy(task)]
    theirs = {"woz": "woz.en", "sql": "wikisql", "cnn": "cnn_dailymail", "e2e": "e2enlg"}
    lamol(tmp_path)
    for task in ours:
        squads(tmp_path, name := theirs.get(task, task), answer=TRAINING.get(name, "answer {}"))
    assert main(["--from-lamol", str(tmp_path), "--data-dir", str(tmp_path / "raw")]) == 0
    assert set(capsys.readouterr().out.splitlines()[-1].split(", for ")[1].split(", ")) == set(ours)
    for task in ours:
        assert len(load_task(task, tmp_path / "raw", tmp_path / "cache").test) == 12


TRAIN, TEST = (f"ag_to_squad-{split}-v2.0.json" for split in SPLITS)
WOZ, SQL_JSON = "woz.en_answers.json", "wikisql_answers.json"


@pytest.mark.parametrize(
    "name, content",
    [
        (TRAIN, ""), (TRAIN, "[]"), (TRAIN, '{"data": 3}'), (TRAIN, '{"data": [{"paragraphs": [{"qas": []}]'),
        (TRAIN, '{"data": []}'), (TRAIN, '{"data": [{"paragraphs": [{"qas": [{"id": 0}]}]}]}'), (TRAIN, "[" * 100000),
        (TRAIN, '{"data": [{"paragraphs": [{"context": 3, "qas": [{"id": 0, "question": "q", "answers": []}]}]}]}'),
        (TEST, '{"data": [{"paragraphs": [{"context": "c", "qas": [{"id": 0, "question": "q", "answers": [3]}]}]}]}'),
        (TEST, '{"data": [{"paragraphs": [{"context": "\xe9", "qas": [{"id": 0, "question": "q", "answers": []}]}]}]}'),
        (TRAIN, None), (TEST, None), (WOZ, None), (SQL_JSON, None), (WOZ, ""), (WOZ, "3"), (WOZ, "{}"),
        (WOZ, json.dumps(WOZ_ANSWERS[:-1])), (WOZ, json.dumps([*WOZ_ANSWERS, ["en_9_9", "None"]])),
        (WOZ, json.dumps([*WOZ_ANSWERS[:-1], ["en_9_9", 3]])), (WOZ, json.dumps([*WOZ_ANSWERS[:-1], ["en_9_9"]])),
        (WOZ, json.dumps([*WOZ_ANSWERS[:-1], [3, "None"]])), (WOZ, json.dumps(SQL_ANSWERS)),
        (SQL_JSON, json.dumps(SQL_ANSWERS[:-1])), (SQL_JSON, json.dumps([*SQL_ANSWERS[:-1], {"sql": {}}])),
        (SQL_JSON, json.dumps([*SQL_ANSWERS[:-1], SQL_ANSWERS[0] | {"header": 3}])),
        (SQL_JSON, json.dumps([*SQL_ANSWERS[:-1], SQL_ANSWERS[0] | {"header": [3]}])),
        (SQL_JSON, json.dumps([*SQL_ANSWERS[:-1], SQL_ANSWERS[0] | {"sql": {"sel": "A", "agg": 0, "conds": []}}])),
        (SQL_JSON, json.dumps(WOZ_ANSWERS)),
    ],
)  # fmt: skip
def test_authors_files_that_are_broken_or_missing_are_one_line(tmp_path, capsys, name, content):
    lamol(tmp_path / "lamol")
    path = tmp_path / "lamol" / name
    path.unlink() if content is None else path.write_bytes(content.encode("latin-1"))
    code = main(["--from-lamol", str(tmp_path / "lamol"), "--data-dir", str(tmp_path / "raw")])
    said = capsys.readouterr().err
    assert code == 1 and name in said and said.startswith("error: ") and said.count("\n") == 1
    assert not (tmp_path / "raw").exists()  # not even of the tasks before it


def test_of_several_answers_the_first_counts_and_all_are_references(tmp_path):
    squads(tmp_path, "e2enlg")
    path = tmp_path / "e2enlg_to_squad-test-v2.0.json"
    qas = [{"id": 0, "question": "q", "answers": [{"text": "red"}, {"text": "tan"}]}]
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": "c", "qas": qas}]}]}))
    assert main(["--from-lamol", str(tmp_path), "--data-dir", str(tmp_path / "raw")]) == 0
    single, pooled = (
        load_task("e2e", tmp_path / "raw", tmp_path / "cache", multi_reference=multi) for multi in (False, True)
    )
    assert single.test[0].answer == pooled.test[0].answer == "red"
    assert (single.test[0].meta, pooled.test[0].meta) == ({}, {"references": ["red", "tan"]})
    assert score(single, ["tan"])["score"] == 0 < score(pooled, ["tan"])["score"]


@pytest.mark.parametrize("place", ["empty", "nowhere", "file"])
def test_a_folder_without_the_authors_files_is_one_line(tmp_path, capsys, place):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    assert main(["--from-lamol", str(tmp_path / place), "--data-dir", str(tmp_path / "raw")]) == 1
    said = capsys.readouterr().err
    assert place in said and "woz.en" in said and said.count("\n") == 1


def test_the_authors_files_never_take_the_place_of_raw_wikisql(tmp_path, capsys):
    path = write_raw(tmp_path / "raw", "sql", good_rows("sql", 3))
    before = path.read_bytes()
    lamol(tmp_path / "lamol")
    assert main(["--from-lamol", str(tmp_path / "lamol"), "--data-dir", str(tmp_path / "raw")]) == 1
    said = capsys.readouterr().err
    assert "wikisql" in said and "--data-dir" in said and said.count("\n") == 1
    assert path.read_bytes() == before
