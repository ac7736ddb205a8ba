"""The tokenizers of models. python -m pytest tests/test_tokenizers.py"""

import pytest
from conftest import nano

import lab.run.pretrained as pretrained_file
from lab.errors import DataError
from lab.run.pretrained import NANO, gpt2_tokenizer, save_gpt, tokenizer_of
from lab.tasks import TASKS
from model import GPT, GPTConfig


def test_registered_tasks_have_the_first_slots_in_their_order(tok):
    assert list(tok.slots.items()) == [(name, 4003 + i) for i, name in enumerate(TASKS)]


def test_the_vocabulary_of_gpt2_grows_to_50304(gpt2_tok):
    assert (gpt2_tok.name, gpt2_tok.eos_id, gpt2_tok.n_base, gpt2_tok.n_vocab) == ("gpt2", 50256, 50257, 50304)
    assert list(gpt2_tok.slots) == list(TASKS) and gpt2_tok.encode("The dog") == [383, 3290]


@pytest.mark.parametrize("text", ["żółw 東京 🙂", "\x00\n\t", "THE Mill's", "<|endoftext|>"])
def test_any_text_encodes_and_comes_back(tok, text):
    ids = tok.encode(text)
    assert tok.decode(ids) == text.strip() and all(i < tok.eos_id for i in ids)


def test_a_folder_names_its_tokenizer_and_others_have_gpt2s(gpt2_tok, tmp_path):
    save_gpt(nano(), tmp_path / "ours", tokenizer="nano")
    assert {tokenizer_of(source).name for source in ("nano", NANO, tmp_path / "ours")} == {"nano"}
    assert {tokenizer_of(source).name for source in ("gpt2", "gpt2-xl")} == {"gpt2"}
    save_gpt(GPT(GPTConfig(50257, 8, 4, 1, 1)), tmp_path / "other")
    assert tokenizer_of(tmp_path / "other").name == "gpt2"


def test_a_folder_that_is_called_like_a_pretrained_model_does_not_stand_for_it(monkeypatch, gpt2_tok, tmp_path):
    save_gpt(nano(), tmp_path / "gpt2", tokenizer="nano")
    monkeypatch.chdir(tmp_path)
    assert tokenizer_of("gpt2").name == "gpt2"


def test_without_network_gpt2s_vocabulary_says_which_files_to_put_where(monkeypatch):
    def no_network(name):
        raise OSError("no network")

    monkeypatch.setattr(pretrained_file.tiktoken, "get_encoding", no_network)
    with pytest.raises(DataError, match="TIKTOKEN_CACHE_DIR") as e:
        gpt2_tokenizer()
    # tiktoken's own rule: the file's name is the SHA-1 of its address
    assert "encodings/main/vocab.bpe as 6d1cbeee0f20b3d9449abfede4726ed8212e3aee" in str(e.value)
