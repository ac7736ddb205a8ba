"""The tiny vocabulary and weights, and how they are made. python -m pytest tests/test_nano.py"""

import json
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
import torch
from conftest import nano
from safetensors import safe_open
from safetensors.torch import load_file

import lab.nano
from lab.errors import DataError
from lab.nano import ASSETS, Mixture, byte_pairs, joined_texts, pretrain, repeated_spans, wordnet_entries
from lab.run.pretrained import NANO, NANO_VOCABULARY
from lab.tasks import load_task
from lab.tasks.toy import GRAMMARS, toy_rows

NOUNS = """  1 a licence, which is no entry | of WordNet
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 ~ 00002137 n 0000 | that which exists
02084071 05 n 02 dog 0 domestic_dog 0 001 @ 02083346 n 0000 | an animal; "the dog barked | all night"
"""


@pytest.fixture
def wordnet(tmp_path):
    """A folder with a WordNet of two entries."""
    for name in lab.nano.WORDNET_FILES:
        (tmp_path / name).write_text(NOUNS if name == "data.noun" else "")
    return tmp_path


# ---------------------------------------------------------------------- the vocabulary


def test_the_vocabulary_file_is_what_its_function_makes(shared, tmp_path):
    lab.nano.train_vocabulary(tmp_path / "nano.tiktoken", shared / "data", tmp_path)
    for path in (NANO_VOCABULARY, NANO_VOCABULARY.with_name("nano.tiktoken.json")):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_byte_pairs_are_all_bytes_then_the_most_frequent_pairs_within_words():
    tokens = byte_pairs([" aab aab é"], 260)
    assert tokens[:256] == [bytes([b]) for b in range(256)]
    assert tokens[256:] == [b" a", b"ab", b" aab", b" \xc3"]


@pytest.mark.parametrize("name", ["woz", "e2e", "rnnlg.rest", "rnnlg.hotel", "rnnlg.tv", "rnnlg.laptop"])
def test_a_row_of_real_text_takes_hardly_more_tokens_than_gpt2s(name, shared, tmp_path, tok, gpt2_tok):
    examples = load_task(name, shared / "data", tmp_path).train[-500:]
    texts = [text for e in examples for text in (e.context, e.question, e.answer)]
    ours, theirs = (sum(len(tokenizer.encode(text)) for text in texts) for tokenizer in (tok, gpt2_tok))
    assert ours < 1.15 * theirs


def test_words_of_the_toy_tasks_are_single_tokens(tok):
    rows = [row for task in GRAMMARS for row in toy_rows(task, "train", 100)]
    words = {word.strip(",?;:[]") for row in rows for part in ("context", "answer") for word in row[part].split()}
    words = [word for word in words if word.isalpha()]
    assert len(words) > 200 and sum(len(tok.encode(word)) == 1 for word in words) > 0.95 * len(words)


# ---------------------------------------------------------------------- the weights


def test_the_weights_are_small_and_stored_in_half_precision():
    with safe_open(NANO / "model.safetensors", "pt") as f:
        assert {f.get_tensor(key).dtype for key in f.keys()} == {torch.float16}  # noqa: SIM118
    model = nano(grown=False)
    assert sum(p.numel() for p in model.parameters()) <= 1_600_000
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) <= 4_000_000


def test_the_pretrained_model_copies_words_from_its_context():
    """A list of random words, then the list again: the second half can be read off the first."""
    model, r, right = nano(grown=False).eval(), Random(1), 0
    for _ in range(30):
        words = r.choices(range(256, 4000), k=12)
        guess = model(torch.tensor([words + words]))[0].argmax(dim=-1)
        right += sum(guess[i] == words[i - 11] for i in range(13, 23))
    assert right / 300 > 0.8


def test_repeated_spans_are_copies_of_what_stands_before():
    ids = repeated_spans(Random(0), list(range(1000)), 200)
    assert len(ids) == 200 and set(ids[:32]) == set(ids)  # at most 32 random words, and nothing new after them
    pairs = list(pairwise(ids))
    assert sum(pair in pairs[:i] for i, pair in enumerate(pairs) if i >= 32) > 0.8 * (len(pairs) - 32)


def test_texts_are_joined_whole_with_eos_between_them():
    ids = joined_texts(Random(0), [[1, 2], [3]], 9, 50)
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


def test_an_entry_of_wordnet_is_its_words_and_its_gloss(wordnet):
    assert wordnet_entries(wordnet) == [
        "entity: that which exists",
        'dog, domestic dog: an animal; "the dog barked | all night"',
    ]


def test_without_wordnet_the_error_says_where_it_comes_from(tmp_path):
    with pytest.raises(DataError, match=r"data\.adj: No such file or directory; apt-get install wordnet-base, or"):
        wordnet_entries(tmp_path)


def test_every_step_has_as_many_tokens_in_quarters_by_kind_of_text(wordnet, tok):
    mixture = Mixture(tok, wordnet)
    assert sum(lab.nano.SHARES.values()) == 4 and list(lab.nano.SHARES)[-1] == "repeated spans"
    spans = lab.nano.SHARES["repeated spans"]
    for step in range(8):
        ids = mixture.batch(step)
        B, T = ids.size(0), ids.size(1) - 1
        assert B * T == lab.nano.TOKENS and T in lab.nano.LENGTHS
        ends = (ids == tok.eos_id).any(dim=1)
        assert ends[: B // 4].all() and not ends[B // 4 * (4 - spans) :].any()
    assert torch.equal(mixture.batch(3), mixture.batch(3)) and not torch.equal(mixture.batch(3), mixture.batch(7))


def test_pretraining_reads_no_training_and_test_examples(monkeypatch, tok, wordnet):
    asked, row = [], {"context": "a", "answer": "b"}
    monkeypatch.setattr(lab.nano, "toy_rows", lambda task, split, n: asked.append(split) or [row])
    Mixture(tok, wordnet)
    assert set(asked) == {"pretraining"}


@pytest.fixture
def small(monkeypatch):
    """Pretraining in a second."""
    monkeypatch.setattr(lab.nano, "toy_rows", lambda task, split, n: toy_rows(task, split, 100))
    monkeypatch.setattr(lab.nano, "SHAPE", replace(lab.nano.SHAPE, n_embd=8, n_layer=1))
    monkeypatch.setattr(lab.nano, "TOKENS", 1024)
    monkeypatch.setattr(lab.nano, "SAVE_EVERY", 2)


def test_pretraining_that_was_cut_off_goes_on_bit_for_bit(small, wordnet, tmp_path, monkeypatch):
    whole = pretrain(tmp_path / "a", wordnet, steps=5)
    update, taken = torch.optim.AdamW.step, []

    def cut_off(self, *args, **kwargs):
        taken.append(update(self, *args, **kwargs))
        if len(taken) == 3:
            raise KeyboardInterrupt
        return taken[-1]

    monkeypatch.setattr(torch.optim.AdamW, "step", cut_off)
    with pytest.raises(KeyboardInterrupt):
        pretrain(tmp_path / "b", wordnet, steps=5)
    assert (tmp_path / "b.checkpoint").is_file() and not (tmp_path / "b").exists()
    with pytest.raises(DataError, match=r"b\.checkpoint is of another recipe; delete it"):
        pretrain(tmp_path / "b", wordnet, steps=6)
    resumed = pretrain(tmp_path / "b", wordnet, steps=5)
    assert len(taken) == 3 + 3  # the second one was saved
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    assert all(torch.equal(one[key], two[key]) for key in one) and len(one) > 10
    assert whole["final_loss_nats"] == resumed["final_loss_nats"] and not (tmp_path / "b.checkpoint").exists()


def test_a_broken_checkpoint_is_one_line(small, wordnet, tmp_path):
    for content in (b"", b"x" * 1000):
        (tmp_path / "a.checkpoint").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.checkpoint does not load .*; delete it to start anew"):
            pretrain(tmp_path / "a", wordnet, steps=1)


def test_the_recipe_of_the_weights_is_recorded():
    recipe = json.loads((NANO / "recipe.json").read_text())
    assert (recipe["steps"], recipe["lr"], recipe["tokens_a_step"]) == (lab.nano.STEPS, lab.nano.LR, lab.nano.TOKENS)
    assert recipe["quarters_of_a_step"] == lab.nano.SHARES and "WordNet licence" in recipe["english"]["source"]
    assert recipe["seconds"] <= 7200 and 0 < recipe["final_loss_nats"]["repeated spans"] < 3


def test_the_command_writes_where_it_is_told(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(lab.nano.train_vocabulary, "__defaults__", (260,))
    monkeypatch.setattr(lab.nano, "REAL_TASKS", ())
    assert lab.nano.main(["--vocabulary", "--out", str(tmp_path)]) == 0
    assert len((tmp_path / "nano.tiktoken").read_text().splitlines()) == 260
    (tmp_path / "file").write_text("")
    assert lab.nano.main(["--vocabulary", "--out", str(tmp_path / "file")]) == 1
    assert lab.nano.main(["--pretrain", "--out", str(tmp_path), "--wordnet", str(tmp_path / "none")]) == 1
    printed = capsys.readouterr().err
    assert printed.count("error: ") == printed.count("\n") == 2


@pytest.mark.parametrize("argv", [[], ["--vocabulary", "--pretrain"], ["--compare"]])
def test_bad_usage_is_one_line_and_exit_code_2(argv, capsys):
    with pytest.raises(SystemExit) as e:
        lab.nano.main(argv)
    printed = capsys.readouterr().err
    assert e.value.code == 2 and printed.startswith("error: ") and printed.count("\n") == 1
