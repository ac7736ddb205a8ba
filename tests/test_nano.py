"""The tiny vocabulary and weights, how they are made, and the comparison. python -m pytest tests/test_nano.py"""

import json
import shutil
from pathlib import Path
from random import Random

import pytest
import torch
from conftest import nano
from safetensors import safe_open
from safetensors.torch import load_file

import lab.experiments
import lab.nano
from data import NANO_VOCABULARY, Tokenizer
from lab.experiments import name_for
from lab.nano import ASSETS, collected, comparison, comparison_table, pretrain, repeated_spans
from lab.options import Options, parse, resolve
from lab.run import NANO


def test_the_vocabulary_file_is_what_its_function_makes(tmp_path):
    """Merges come one after the other, so a smaller vocabulary is the beginning of the larger one."""
    lab.nano.train_vocabulary(tmp_path / "small", 280)
    small, whole = ((p.read_text().splitlines()) for p in (tmp_path / "small", NANO_VOCABULARY))
    assert len(whole) == 1000 and len(small) == 280 and whole[:280] == small


def test_any_text_encodes(tok):
    for text in ("żółw 東京 🙂", "\x00\n\t", "THE Mill's"):
        assert tok.decode(tok.encode(text)) == text.strip()
    assert tok.n_vocab == 1001 + 47 and tok.name == "nano"
    assert Tokenizer.of(NANO).name == "nano"


def test_the_weights_are_small_and_stored_in_half_precision():
    with safe_open(NANO / "model.safetensors", "pt") as f:
        assert {f.get_tensor(key).dtype for key in f.keys()} == {torch.float16}  # noqa: SIM118
    model = nano(grown=False)
    assert sum(p.numel() for p in model.parameters()) <= 1_500_000
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert sum(f.stat().st_size for f in ASSETS.rglob("*") if f.is_file()) <= 4_000_000


def test_the_pretrained_model_copies_words_from_its_context(tok):
    """A list of random words, then the list again: the second half is read off the first."""
    model, r = nano(grown=False).eval(), Random(1)
    right = total = 0
    for _ in range(30):
        words = r.choices(range(256, 1000), k=12)
        guess = model(torch.tensor([words + words]))[0].argmax(dim=-1)
        right += sum(guess[i] == words[i - 11] for i in range(13, 23))
        total += 10
    assert right / total > 0.8


def test_repeated_spans_are_copies_of_what_stands_before():
    ids = repeated_spans(Random(0), list(range(1000)), 200)
    assert len(ids) == 200 and len(set(ids)) <= 32 and len(set(ids[:4])) == 4


def test_pretraining_is_a_function_of_nothing_but_the_code(tmp_path):
    recipes = [pretrain(tmp_path / name, steps=2) for name in ("a", "b")]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    assert all(torch.equal(one[key], two[key]) for key in one) and len(one) > 50
    assert recipes[0]["final_loss_nats"] == recipes[1]["final_loss_nats"]


def test_the_recipe_of_the_weights_is_recorded():
    recipe = json.loads((NANO / "recipe.json").read_text())
    assert recipe["steps"] == lab.nano.STEPS and recipe["seconds"] <= 1000
    assert 0 < recipe["final_loss_nats"]["repeated spans"] < 3


def test_without_arguments_word_kd_learns_the_toy_tasks_with_nano():
    o = resolve(Options())
    assert (o.order, o.method, o.kd, o.model) == ("toy.woz,toy.sql,toy.cnn", "lamol", "word", "nano")
    assert (o.lr, o.batch_size, o.epochs, o.adam_epsilon) == (1e-3, 8, 9, 1e-8)
    assert resolve(Options(order="toy.ag,woz")).model == "gpt2"


# ---------------------------------------------------------------------- the comparison


def test_the_comparison_has_every_method_seed_and_order_once():
    runs = comparison()
    count = {}
    for label, order, _ in runs.values():
        count[label, order] = count.get((label, order), 0) + 1
    five = ("finetune", "LAMOL", "Word-KD", "Seq-KD", "Seq-KD_soft")
    assert all(count[label, order] >= 5 for label in five for order in (0, 1))
    assert all(n >= 3 for n in count.values()) and len(count) == 10 + 7
    assert len(runs) == 5 * 5 * 2 + 7 * 3  # no two have one name


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """The commands that the comparison gives, without running them: each leaves a small result."""
    given = []

    def run(command, stdout, **keywords):
        o = parse(command[2:])
        folder = Path(o.runs_dir) / name_for(command[2:])
        given.append(folder.name)
        assert o.resume == folder.exists()
        folder.mkdir(exist_ok=True)
        tasks = o.order.split(",")
        lines = [{"stage": m, "epoch": o.epochs, "task": t, "score": 50 + o.seed} for m in (1, 2, 3) for t in tasks]
        (folder / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "config.json").write_text("{}")
        summary = {"average": 50 + o.seed, "forgetting": None if o.method in ("single", "multitask") else 7.0}
        (folder / "summary.json").write_text(json.dumps(summary | {"wall_time_s": 1.0}))
        return type("Finished", (), {"returncode": 0})

    monkeypatch.setattr(lab.experiments.subprocess, "run", run)
    monkeypatch.setattr(lab.nano, "RESULTS", tmp_path / "results")
    return given


def test_the_comparison_skips_what_is_finished_and_goes_on_with_what_was_cut_off(commands, tmp_path, capsys):
    runs = tmp_path / "runs"
    (runs / (cut_off := list(comparison())[3])).mkdir(parents=True)
    assert lab.nano.main(["--compare", "--runs-dir", str(runs), "--jobs", "2", "--out", str(tmp_path)]) == 0
    assert sorted(commands) == sorted(comparison()) and cut_off in commands
    said = capsys.readouterr().out
    assert "| Word-KD | 5 | 52.0 ± 1.6 | 7.0 ± 0.0 | 52.0 ± 1.6 | 7.0 ± 0.0 |" in said
    assert "| single | 3 | 51.0 ± 1.0 | – | – | – |" in said
    assert (tmp_path / "comparison.png").stat().st_size > 10_000
    commands.clear()
    lab.nano.compare(runs, 1)
    assert commands == []
    shutil.rmtree(tmp_path / "results" / cut_off)  # whole, but not kept yet: kept now, and not run again
    lab.nano.compare(runs, 1)
    assert commands == [] and (tmp_path / "results" / cut_off / "summary.json").exists()


def test_a_run_that_fails_is_named_and_nothing_of_it_is_kept(commands, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(lab.experiments.subprocess, "run", lambda *a, **k: type("Failed", (), {"returncode": 1}))
    assert lab.nano.main(["--compare", "--runs-dir", str(tmp_path / "runs"), "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: 71 of 71 runs failed: toy.") and "its output is in" in said and said.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_a_table_of_runs_that_are_missing_has_dashes(commands):
    assert "| LAMOL | 0 | – | – | – | – |" in comparison_table(collected())
