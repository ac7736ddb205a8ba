"""The tiny vocabulary and weights, and how they are made. python -m pytest tests/test_nano.py"""

import json
from itertools import pairwise
from random import Random

import pytest
import torch
from conftest import nano
from safetensors import safe_open
from safetensors.torch import load_file

import lab.nano
from lab.nano import ASSETS, batches, grammar_text, pretrain, repeated_spans
from lab.run.pretrained import NANO, NANO_VOCABULARY


def test_the_vocabulary_file_is_what_its_function_makes(tmp_path):
    """Merges come one after the other, so a smaller vocabulary is the beginning of the larger one."""
    lab.nano.train_vocabulary(tmp_path / "small", 280)
    small, whole = ((path.read_text().splitlines()) for path in (tmp_path / "small", NANO_VOCABULARY))
    assert len(whole) == 1000 and len(small) == 280 and whole[:280] == small


def test_the_weights_are_small_and_stored_in_half_precision():
    with safe_open(NANO / "model.safetensors", "pt") as f:
        assert {f.get_tensor(key).dtype for key in f.keys()} == {torch.float16}  # noqa: SIM118
    model = nano(grown=False)
    assert sum(p.numel() for p in model.parameters()) <= 1_500_000
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) <= 4_000_000


def test_the_pretrained_model_copies_words_from_its_context():
    """A list of random words, then the list again: the second half can be read off the first."""
    model, r, right = nano(grown=False).eval(), Random(1), 0
    for _ in range(30):
        words = r.choices(range(256, 1000), k=12)
        guess = model(torch.tensor([words + words]))[0].argmax(dim=-1)
        right += sum(guess[i] == words[i - 11] for i in range(13, 23))
    assert right / 300 > 0.8


def test_repeated_spans_are_copies_of_what_stands_before():
    ids = repeated_spans(Random(0), list(range(1000)), 200)
    assert len(ids) == 200 and set(ids[:32]) == set(ids)  # at most 32 random words, and nothing new after them
    pairs = list(pairwise(ids))
    assert sum(pair in pairs[:i] for i, pair in enumerate(pairs) if i >= 32) > 0.8 * (len(pairs) - 32)


def test_grammar_text_is_whole_texts_with_eos_between_them():
    ids = grammar_text(Random(0), [[1, 2], [3]], 9, 50)
    assert len(ids) == 50 and {tuple(text) for text in split(ids[:-2], 9)} == {(1, 2), (3,)}


def split(ids, at):
    """The parts of a list, each of which ends before `at`."""
    parts = [[]]
    for i in ids:
        if i == at:
            parts.append([])
        else:
            parts[-1].append(i)
    return parts[:-1]


def test_every_step_has_as_many_tokens_half_of_them_grammar_text(tok):
    for ids in batches(8, tok):
        B, T = ids.size(0), ids.size(1) - 1
        assert B * T == lab.nano.TOKENS and T in lab.nano.LENGTHS
        assert (ids[: B // 2] == tok.eos_id).any() and not (ids[B // 2 :] > tok.eos_id).any()


def test_pretraining_reads_no_training_and_test_examples(monkeypatch, tok):
    asked = []
    monkeypatch.setattr(
        lab.nano, "toy_rows", lambda task, split, n: asked.append(split) or [{"context": "a", "answer": "b"}]
    )
    next(batches(1, tok))
    assert set(asked) == {"pretraining"}


def test_pretraining_is_a_function_of_nothing_but_the_code(tmp_path):
    recipes = [pretrain(tmp_path / name, steps=2) for name in ("a", "b")]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    assert all(torch.equal(one[key], two[key]) for key in one) and len(one) > 50
    assert recipes[0]["final_loss_nats"] == recipes[1]["final_loss_nats"]
    assert (tmp_path / "a" / "config.json").read_bytes() == (NANO / "config.json").read_bytes()


def test_the_recipe_of_the_weights_is_recorded():
    recipe = json.loads((NANO / "recipe.json").read_text())
    assert (recipe["steps"], recipe["lr"], recipe["tokens_a_step"]) == (lab.nano.STEPS, lab.nano.LR, lab.nano.TOKENS)
    assert recipe["seconds"] <= 1000 and 0 < recipe["final_loss_nats"]["repeated spans"] < 3


def test_the_command_writes_where_it_is_told(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(lab.nano.train_vocabulary, "__defaults__", (260,))
    assert lab.nano.main(["--vocabulary", "--out", str(tmp_path)]) == 0
    assert len((tmp_path / "nano.tiktoken").read_text().splitlines()) == 260
    (tmp_path / "file").write_text("")
    assert lab.nano.main(["--vocabulary", "--out", str(tmp_path / "file")]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1


@pytest.mark.parametrize("argv", [[], ["--vocabulary", "--pretrain"], ["--compare"]])
def test_bad_usage_is_one_line_and_exit_code_2(argv, capsys):
    with pytest.raises(SystemExit) as e:
        lab.nano.main(argv)
    printed = capsys.readouterr().err
    assert e.value.code == 2 and printed.startswith("error: ") and printed.count("\n") == 1
