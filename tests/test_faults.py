"""Garbage for every reader, any string as a prediction, a run that is really killed: short versions of
lab/check/faults.py.

python -m pytest tests/test_faults.py"""

import json
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from conftest import SHARED
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import Example, Task
from eval import METRICS, score
from lab.check import faults
from lab.check.fuzz import fuzz
from lab.check.readers import Reader, readers, tiny
from lab.errors import DataError, ModelFileError
from lab.files import write_json, write_jsonl
from lab.run.pretrained import load_student, save_gpt
from lab.run.rundir import read_run
from lab.tasks import TASKS, load_task

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=9,
)
TEXT = st.text() | st.from_regex("(select|where|and|[a-z=<>.;:, ]){0,40}", fullmatch=True)
KEYS = ["n_layer", "n_embd", "task_slots", "max_len", "answer_budgets", "tokenizer", "resid_pdrop"]
SLOTS = [{"task_slots": 3}, {"task_slots": {"a": 3}}, {"task_slots": {"a": "x"}}, {"max_len": "x"}]
MANY = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
GOLD = {"turn": "en_0_0", "references": ["a b.", ""], "header": ["name", "age of it"]}
GOLD |= {"sql": {"sel": 0, "agg": 3, "conds": [[1, 0, "x"]]}}


def test_every_reader_reads_what_it_was_given_unchanged(tmp_path):
    (tmp_path / "made").mkdir()
    found = readers(SHARED / "data", tmp_path / "made")
    assert len(found) >= (29 if SHARED.is_dir() else 15)
    if SHARED.is_dir():  # whoever registers a task or a metric has its files mutated here
        names = " ".join(reader.name for reader in found)
        assert all(f"{task}: " in names for task, registered in TASKS.items() if registered.reader)
    for reader in found:
        for name, content in reader.files.items():
            (tmp_path / "at" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "at" / name).write_bytes(content)
        reader.read(tmp_path / "at")
        shutil.rmtree(tmp_path / "at")


def test_mutated_files_are_read_or_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a crash's files would go
    count = fuzz(600, SHARED / "data", tmp_path, random.Random(11))
    assert count["inputs"] == 600 and count["bad"] == 0 and min(count["read"], count["refused"]) > 100


def test_the_fuzzer_notices_a_crash_a_hang_and_a_second_line(tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("crashes"))
    monkeypatch.setattr("lab.check.fuzz.SECONDS", 0.2)

    def broken(at):
        raise {0: KeyError("x"), 1: DataError("two\nlines")}[next(kinds)] if at else None

    def endless(at):
        while True:
            pass

    for read, bad in ((broken, 2), (endless, 2)):
        kinds = iter((0, 1))
        shutil.rmtree(tmp_path / "made", ignore_errors=True)
        reader = Reader("r", {"f": b"x"}, read)
        monkeypatch.setattr("lab.check.fuzz.readers", lambda *_, reader=reader: [reader])
        monkeypatch.setattr("lab.check.fuzz.score_any", lambda r: None)
        assert fuzz(3, tmp_path, tmp_path, random.Random(0))["bad"] == bad


@MANY
@given(st.lists(TEXT, min_size=2, max_size=2))
def test_a_prediction_can_be_any_string(texts):
    examples = [Example("c", "q", gold, str(i), GOLD) for i, gold in enumerate(("a b. c", "food: thai; area"))]
    for metric in METRICS:
        found = score(Task("any", metric, examples, examples), texts)
        assert all(0 <= value <= 100.001 for value in found.values())


@pytest.mark.parametrize("text", ["select a from table where " + "a = b and " * 10_000, "a." * 50_000, "=" * 100_000])
def test_a_prediction_of_100000_characters_is_scored(text):
    example = Example("c", "q", "food: thai; area", "0", GOLD)
    for metric in METRICS:
        assert score(Task("any", metric, [example], [example]), [text])["score"] < 0.01


@MANY
@given(JSON, JSON, JSON)
def test_a_task_of_ones_own_may_hold_any_json(row, meta, task):
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder, "own")
        rows = [row, {"context": "c", "question": "q", "answer": "a", "meta": meta, "id": row}]
        write_jsonl(own / "test.jsonl", rows[isinstance(row, dict) :])
        write_jsonl(own / "train.jsonl", rows[1:])
        write_json(own / "task.json", {"metric": "lfem"} if meta == row else task)
        try:
            load_task(str(own), "", "")
        except DataError as e:
            assert len(str(e).splitlines()) == 1


@MANY
@given(st.sampled_from(KEYS), JSON)
def test_a_models_config_may_hold_any_json(key, value):
    with tempfile.TemporaryDirectory() as folder:
        save_gpt(tiny(), folder, tokenizer="nano", task_slots={"a": 1010})
        config = json.loads(Path(folder, "config.json").read_text())
        Path(folder, "config.json").write_text(json.dumps(config | {key: value}))
        try:
            load_student(folder)
        except (ModelFileError, DataError) as e:
            assert len(str(e).splitlines()) == 1


# ---------------------------------------------------------------------- what was found


def test_a_summary_that_is_nested_too_deep_is_refused(tmp_path):
    (tmp_path / "summary.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="not a run's summary"):
        read_run(tmp_path)


@pytest.mark.parametrize("wrong", SLOTS)
def test_a_models_slots_and_lengths_are_checked(tmp_path, wrong):
    save_gpt(tiny(), tmp_path, **{"tokenizer": "nano", "task_slots": {"a": 1010}} | wrong)
    with pytest.raises(ModelFileError, match=r"config\.json: "):
        load_student(tmp_path)


# ---------------------------------------------------------------------- a run that is really killed


@pytest.mark.slow
def test_a_process_that_is_killed_and_resumed_ends_identical(tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "SMALL", [*faults.SMALL, "--limit", "16", "--no-eval-every-epoch"])
    lab = faults.Lab(tmp_path, "seqsoft")
    count = faults.kill(lab, 1, random.Random(3))
    assert count["hits"] == 1 and count["bad"] == 0
    assert faults.twice(lab, random.Random(0)) == {"tries": 2, "refused": 2, "identical": 1, "bad": 0}
