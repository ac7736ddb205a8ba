"""Inputs that are rare and right, and are read for what they mean. python -m pytest tests/test_odd_inputs.py"""

import json
import random
import re
import shutil
from pathlib import Path

import pytest
import tiktoken

from lab.errors import DataError, ModelFileError
from lab.files import read_json
from lab.run import vocabulary
from lab.run.pretrained import NANO, read_config, tokenizer_of
from lab.tasks import load_task
from lab.tasks.registry import metric_of

# ---------------------------------------------------------------------- long runs of white space

SPACE = (" ", "\t", "\n", "\r\n", "\xa0", "\u3000", " \t\n", "\u2028\x85", "\x1c", " \x1f ")


@pytest.mark.parametrize("space", SPACE)
@pytest.mark.parametrize("which", ["nano", "gpt2"])
def test_a_long_run_of_white_space_is_cut_as_tiktoken_would_encode_it(space, which, tok, request, monkeypatch):
    tok = request.getfixturevalue("gpt2_tok") if which == "gpt2" else tok
    monkeypatch.setattr(vocabulary, "LONG_TEXT", 0)
    for n in (999, 1000, 1001, 1002, 2500):
        for text in (
            f"a{space * n}b",
            f"it's{space * n}. 7{space * (n + 1)}\u00e9!",
            f"{space * n}x{space * n}",
            "a b",
        ):
            assert tok.encode(text) == tiktoken.Encoding.encode_ordinary(tok.encoding, " " + text.strip())


def test_random_long_runs_are_cut_as_tiktoken_would_encode_them(gpt2_tok, monkeypatch):
    monkeypatch.setattr(vocabulary, "LONG_TEXT", 0)
    r, cut = random.Random(0), 0
    for _ in range(60):
        spaces, parts = r.sample(SPACE, 2), []
        for _ in range(4):
            parts += [
                "".join(r.choices(spaces, k=r.choice((1, 998, 1000, 1003)))),
                r.choice(("a", " b", "7", "!?", "\u4e2d")),
            ]
        text = "".join(["x", *parts])
        cut += vocabulary.LONG_RUN.search(text) is not None
        assert gpt2_tok.encode(text) == tiktoken.Encoding.encode_ordinary(gpt2_tok.encoding, " " + text)
    assert cut > 20


@pytest.mark.parametrize("space", [" ", "\t", "\n", "\xa0"])
def test_a_million_blanks_in_a_row_are_encoded(space, tok, gpt2_tok):
    text = f"one{space * 1_000_000}two"
    for t in (tok, gpt2_tok):
        ids = t.encode(text)
        assert t.decode(ids) == text
    assert t.encode(space * 1_000_000) == []


def test_a_task_with_a_million_blanks_is_loaded_and_cut(lab, tmp_path, capsys):
    from train import main

    for split in ("train", "test"):
        path = tmp_path / "colors" / f"{split}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows[1]["context"] = "a" + " " * 1_000_000 + "b"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([*lab, "--method", "finetune", "--epochs", "1"]) == 0
    assert "1 contexts cut" in capsys.readouterr().out


# ---------------------------------------------------------------------- marks at a file's beginning, and null

ROW = {"context": "c", "question": "q", "answer": "a b"}
BOM = "\ufeff"


def task_folder(folder, rows, mark=""):
    folder.mkdir()
    for split in ("train", "test"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(mark + lines, encoding="utf-8")
    return str(folder)


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    entry = task_folder(tmp_path / "mine", [ROW, ROW], BOM)
    (tmp_path / "mine/task.json").write_text(BOM + '{"metric": "rouge"}', encoding="utf-8")
    assert metric_of(tmp_path / "mine/task.json") == "rouge"
    assert load_task(entry, "", "").train[0].context == "c"
    (tmp_path / "config.json").write_text(BOM + "{}", encoding="utf-8")
    assert read_json(tmp_path / "config.json") == {}


@pytest.mark.parametrize(
    "absent", [{"id": None}, {"meta": None}, {"meta": {"references": None}}, {"id": None, "meta": {"other": None}}]
)
def test_null_means_absent(tmp_path, absent):
    entry = task_folder(tmp_path / "mine", [ROW | absent] * 3)
    (tmp_path / "mine/task.json").write_text('{"metric": "rouge"}')
    for multi in (False, True):
        task = load_task(entry, "", "", multi_reference=multi)
        assert [e.id for e in task.test] == ["1", "2", "3"] and all(e.meta == {} for e in task.test)


@pytest.mark.parametrize("part", ["context", "question", "answer"])
def test_a_part_that_is_null_is_missing(tmp_path, part):
    with pytest.raises(DataError, match=f"train.jsonl, line 2: '{part}' is missing or no text"):
        load_task(task_folder(tmp_path / "mine", [ROW, ROW | {part: None}]), "", "")


def test_an_id_that_is_zero_or_false_is_one(tmp_path):
    task = load_task(task_folder(tmp_path / "mine", [ROW | {"id": 0}, ROW | {"id": ""}, ROW | {"id": False}]), "", "")
    assert [e.id for e in task.test] == ["0", "", "False"]


# ---------------------------------------------------------------------- fewer pseudo-samples than earlier tasks


@pytest.mark.parametrize(
    "gamma, n_tasks, says", [("0.1", 3, 1), ("0.2", 4, 1), ("0.01", 3, 1), ("0.5", 3, 0), ("0", 3, 0)]
)
@pytest.mark.parametrize("replay", ["generated", "real"])
def test_too_few_pseudo_samples_for_the_earlier_tasks_are_said(
    lab, tmp_path, capsys, monkeypatch, gamma, n_tasks, says, replay
):
    """With 9 examples a task: one sample can't be shared by two tasks, and two not by three."""
    import train

    monkeypatch.setattr(train, "learn", lambda *a: None)
    entries = [lab[1].split(",")[0]]
    for i in range(1, n_tasks):
        entries.append(str(shutil.copytree(entries[0], tmp_path / f"copy{i}")))
    arguments = [*lab, "--order", ",".join(entries), "--kd", "none", "--gamma", gamma, "--replay", replay]
    assert train.main(arguments) == 0
    out = capsys.readouterr().out
    share = f"γ · n = {gamma} · 9 is less than one sample for each of {n_tasks - 1} earlier tasks"
    assert out.count(f"WARNING: nothing is replayed in this stage: {share}\n") == says
    if gamma == "0":
        assert "nothing is replayed" not in out


# ---------------------------------------------------------------------- config.json of a model

RATES = ("resid_pdrop", "attn_pdrop", "embd_pdrop")


def config_with(folder, mark="", **changes):
    config = read_json(NANO / "config.json") | changes
    path = folder / "config.json"
    path.write_text(mark + json.dumps({key: x for key, x in config.items() if x != "absent"}), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "rates", [(0.1, 0.2, 0.1), (0, 0.1, 0), (0.0, 0.0, 0.1), (0.3, 0.3, "absent"), (0.1, None, 0.1)]
)
def test_unequal_dropout_rates_are_refused(tmp_path, rates):
    with pytest.raises(
        ModelFileError, match=r"config\.json: (attn|embd)_pdrop = .*, but resid_pdrop = [\d.]+; make them"
    ):
        read_config(config_with(tmp_path, **dict(zip(RATES, rates))))


@pytest.mark.parametrize("rates", [(0.2, 0.2, 0.2), (0, 0.0, 0), ("absent",) * 3, (0.1, "absent", 0.1)])
def test_equal_dropout_rates_are_the_models(tmp_path, rates):
    wanted = 0.1 if rates[0] == "absent" else rates[0]
    assert read_config(config_with(tmp_path, **dict(zip(RATES, rates)))).dropout == wanted
    assert read_config(config_with(tmp_path, BOM, **dict(zip(RATES, rates)))).dropout == wanted
    assert tokenizer_of(tmp_path).name == "nano"


# ---------------------------------------------------------------------- the recipe for a data set of Hugging Face


@pytest.mark.parametrize("label", [-1, None, 4, -4])
def test_the_recipe_leaves_out_rows_without_a_label_and_counts_them(label, tmp_path, monkeypatch, capsys):
    datasets = pytest.importorskip("datasets")
    text = (Path(__file__).parents[1] / "lab" / "docs" / "DATA.md").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"```python\n(import datasets\n.*?)```", text, re.DOTALL)
    train = {"text": ["a goal", "a bank", "a king"], "label": [1, 2, 0]}
    test = {"text": ["a goal", "nobody knows", "nor here", "a cell"], "label": [1, label, label, 3]}
    there = datasets.DatasetDict({"train": datasets.Dataset.from_dict(train), "test": datasets.Dataset.from_dict(test)})
    monkeypatch.setattr(datasets, "load_dataset", lambda name: there)
    monkeypatch.chdir(tmp_path)
    exec(recipe, {})
    assert "without a label: {'train': 0, 'test': 2}" in capsys.readouterr().out
    task = load_task("agnews", "", "")
    assert [e.answer for e in task.test] == ["sports", "science"] and len(task.train) == 3
