"""The tokenizers of models. python -m pytest tests/test_tokenizers.py"""

import json
import re

import pytest
from conftest import nano
from hub_server import COMMIT, VOCABULARY, Machine, put

from lab.errors import ModelFileError
from lab.run.hub import OWNER, VOCABULARY_BLOB, VOCABULARY_SHA256
from lab.run.pretrained import NANO, gpt2_tokenizer, pretrained, save_gpt, tokenizer_of
from lab.run.vocabulary import END, tiktoken_name
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


# ---------------------------------------------------------------------- from where GPT-2's comes


@pytest.fixture
def real(shared):
    """A cache of the hub that holds GPT-2's real vocab.json, and a machine with it."""
    content = (shared / "tiktoken_cache" / tiktoken_name("encoder.json")).read_bytes()
    return lambda machine: put(machine, f"{OWNER}/gpt2", COMMIT, "vocab.json", content, VOCABULARY_BLOB)


def ids_of(texts):
    """In a process of its own, with what is known of the real vocabulary."""
    from lab.run import hub

    hub.VOCABULARY_SHA256, hub.VOCABULARY_BLOB = VOCABULARY_SHA256, VOCABULARY_BLOB
    tok = gpt2_tokenizer()
    encoding = tok.encoding
    return [tok.encode(text) for text in texts], tok.eos_id, tok.n_vocab, encoding._pat_str, encoding._mergeable_ranks


def test_the_vocabulary_of_the_hub_is_tiktokens(real, gpt2_tok, tmp_path):
    machine = Machine(tmp_path, "http://127.0.0.1:9")
    real(machine)
    texts = ["The dog's 123 mills", "żółw 東京 🙂", "\x00\n\t  x", "<|endoftext|>"]
    ids, *rest = machine.call(ids_of, texts, HF_HUB_OFFLINE="1").value
    assert ids == [gpt2_tok.encode(text) for text in texts]
    encoding = gpt2_tok.encoding
    assert rest == [50256, 50304, encoding._pat_str, encoding._mergeable_ranks]


def test_tiktokens_cache_is_used_without_asking_the_hub(gpt2_tok, shared, tmp_path):
    machine, cache = Machine(tmp_path, "http://127.0.0.1:9"), str(shared / "tiktoken_cache")
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        machine.environment.pop("TIKTOKEN_CACHE_DIR", None)
        outcome = machine.call(ids_of, ["The dog"], **{variable: cache})
        assert outcome.value[0] == [[383, 3290]] and outcome.out == ""


def test_without_network_gpt2s_vocabulary_says_which_files_to_put_where(tmp_path):
    machine = Machine(tmp_path, "http://127.0.0.1:9")
    proxies = {"HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}  # so tiktoken finds no network either
    for environment in ({}, {"HF_HUB_OFFLINE": "1"}):
        error = machine.call(ids_of, [], **proxies, **environment).error
        assert error.startswith("can't get GPT-2's vocabulary: gpt2: can't download vocab.json from http://127.0.0.1:9")
        assert "`python -m lab.prefetch --model gpt2`" in error and "set TIKTOKEN_CACHE_DIR" in error
        # tiktoken's own rule: the file's name is the SHA-1 of its address
        assert "vocab.bpe as 6d1cbeee0f20b3d9449abfede4726ed8212e3aee" in error and "\n" not in error
        assert ("tiktoken: ProxyError" in error) == (not environment)  # offline means that no way is tried


# ---------------------------------------------------------------------- a model folder's own


def damage(change):
    """The folder's vocabulary, changed, in both files."""

    def edit(folder):
        for name in ("vocab.json", "tokenizer.json"):
            content = json.loads((folder / name).read_text())
            change(content["model"]["vocab"] if name == "tokenizer.json" else content)
            (folder / name).write_text(json.dumps(content))

    return edit


def edit_json(name, change):
    def edit(folder):
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return edit


@pytest.fixture
def folder(tmp_path):
    """A model folder with nano's vocabulary in both of the usual files."""
    vocabulary = json.loads(VOCABULARY)
    save_gpt(nano(grown=False), tmp_path, tokenizer="nano", eos_token_id=vocabulary[END])
    (tmp_path / "vocab.json").write_text(json.dumps(dict(reversed(vocabulary.items()))))  # in any order
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "BPE", "vocab": vocabulary}, "normalizer": None})
    )
    return tmp_path


def test_a_folders_own_tokenizer_may_be_the_same_one(folder):
    assert tokenizer_of(folder).name == "nano"
    for name in ("tokenizer.json", "vocab.json"):
        (folder / name).unlink()
        assert tokenizer_of(folder).name == "nano"


def swap(vocabulary):
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


@pytest.mark.parametrize(
    "edit, named",
    [
        (damage(swap), "tokenizer.json"),  # as large as the right one
        (damage(lambda v: v.update({"a": "97"})), "tokenizer.json"),
        (damage(lambda v: v.pop("a")), "tokenizer.json"),
        (edit_json("vocab.json", swap), "vocab.json"),
        (edit_json("vocab.json", dict.clear), "vocab.json"),
        (edit_json("tokenizer.json", lambda t: t["model"].update(type="Unigram")), "tokenizer.json"),
        (edit_json("tokenizer.json", lambda t: t.update(normalizer={"type": "Lowercase"})), "tokenizer.json"),
        (edit_json("tokenizer.json", lambda t: t.update(model=[])), "tokenizer.json"),
        (edit_json("config.json", lambda c: c.update(eos_token_id=5)), "config.json: eos_token_id = 5"),
        (edit_json("config.json", lambda c: c.update(eos_token_id=[0, 1000])), "config.json: eos_token_id = [0, 1000]"),
        (edit_json("config.json", lambda c: c.update(eos_token_id="</s>")), "config.json: eos_token_id = '</s>'"),
        (lambda folder: (folder / "vocab.json").write_text("["), "vocab.json can't be read as JSON"),
    ],
)
def test_another_tokenizer_is_refused_by_the_name_of_its_file(edit, named, folder):
    edit(folder)
    with pytest.raises(ModelFileError, match=re.escape(str(folder / named))) as e:
        pretrained(folder)
    assert "\n" not in str(e.value)


def test_gpt2s_tokenizer_as_transformers_writes_it_is_known_and_another_one_refused(gpt2_tok, shared, tmp_path):
    transformers = pytest.importorskip("transformers")
    for name, file in (("vocab.json", "encoder.json"), ("merges.txt", "vocab.bpe")):
        (tmp_path / name).write_bytes((shared / "tiktoken_cache" / tiktoken_name(file)).read_bytes())
    theirs = transformers.GPT2TokenizerFast.from_pretrained(tmp_path)
    folder = tmp_path / "model"
    theirs.save_pretrained(folder)
    transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=4, n_layer=1, n_head=1)).save_pretrained(folder)
    assert (folder / "tokenizer.json").is_file()
    assert tokenizer_of(folder).name == "gpt2"
    edit_json("tokenizer.json", lambda t: swap(t["model"]["vocab"]))(folder)
    with pytest.raises(ModelFileError, match=r"tokenizer\.json: not the tokenizer gpt2"):
        tokenizer_of(folder)


def test_a_folder_without_a_tokenizer_is_taken_to_have_gpt2s_and_that_is_said(gpt2_tok, tmp_path, capsys):
    save_gpt(GPT(GPTConfig(50257, 8, 4, 1, 1)), tmp_path)
    assert tokenizer_of(tmp_path).name == "gpt2"
    assert f"note     {tmp_path} has no tokenizer.json or vocab.json" in capsys.readouterr().out
    save_gpt(GPT(GPTConfig(50257, 8, 4, 1, 1)), tmp_path, tokenizer="gpt2")
    assert tokenizer_of(tmp_path).name == "gpt2" and not capsys.readouterr().out
