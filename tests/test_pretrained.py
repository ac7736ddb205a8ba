"""Pretrained models: files in and out, transformers, and files that lie.

python -m pytest tests/test_pretrained.py"""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import nano
from safetensors.torch import load_file, save_file

from data import Example, encode_prompt
from eval import predict
from lab.errors import ModelFileError
from lab.run.hub import PRETRAINED, pinned_in_cache
from lab.run.pretrained import (
    NANO,
    SIZES,
    load_gpt,
    load_student,
    nano_tokenizer,
    pretrained,
    read_config,
    save_gpt,
)
from model import GPT, GPTConfig

ROOT = Path(__file__).parents[1]
EXAMPLE = Example("the mill is a pub", "what is the mill?", "")


@pytest.fixture
def folder(tmp_path):
    """A model folder that can be damaged."""
    save_gpt(nano(), tmp_path, tokenizer="nano")
    return tmp_path


def change_weights(folder, edit):
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file({key: p.contiguous() for key, p in weights.items()}, folder / "model.safetensors")


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(p, b[key]) for key, p in a.items())


# ---------------------------------------------------------------------- weights in and out


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A GPT-2 of transformers and ours, from the same files."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=300, n_positions=64, n_embd=48, n_layer=3, n_head=4)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.2)
    folder = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    return theirs, load_gpt(folder).eval(), transformers.GPT2LMHeadModel


def test_a_model_of_transformers_loads_and_has_its_logits(both):
    theirs, ours, _ = both
    ids = torch.randint(300, (2, 33), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-5, atol=1e-4)


def test_what_is_saved_is_read_by_transformers_and_by_us(both, tmp_path):
    theirs, ours, GPT2LMHeadModel = both
    save_gpt(ours, tmp_path, tokenizer="gpt2", task_slots={"woz": 50259})
    assert same(GPT2LMHeadModel.from_pretrained(tmp_path).state_dict(), theirs.state_dict())
    assert same(load_gpt(tmp_path).state_dict(), ours.state_dict())
    assert json.loads((tmp_path / "config.json").read_text())["task_slots"] == {"woz": 50259}


def test_a_student_answers_in_transformers_as_here(both, tmp_path):
    tokenizer = nano_tokenizer()
    save_gpt(nano(noise=0.02), tmp_path, tokenizer="nano", eos_token_id=tokenizer.eos_id, task_slots={})
    model, tokenizer, _ = load_student(tmp_path)
    (ours,) = predict(model, tokenizer, [EXAMPLE], 64, 12)
    prompt = encode_prompt(EXAMPLE.context, EXAMPLE.question, tokenizer, 64, 12)
    ids = torch.tensor([prompt])
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": tokenizer.pad_id}
    theirs = both[2].from_pretrained(tmp_path).generate(ids, attention_mask=torch.ones_like(ids), **options)
    assert theirs[0, len(prompt) :].tolist() == ours and len(set(ours)) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_of_the_file_loads_as_float32(dtype, tmp_path):
    model = nano()
    save_gpt(model, tmp_path, dtype)
    assert {p.dtype for p in load_file(tmp_path / "model.safetensors").values()} == {dtype}
    loaded = load_gpt(tmp_path).state_dict()
    assert same(loaded, {key: p.to(dtype).float() for key, p in model.state_dict().items()})


def test_weights_load_without_prefix_and_with_mask_buffers(folder):
    wanted = load_gpt(folder).state_dict()

    def edit(weights):
        bare = {key.removeprefix("transformer."): p for key, p in weights.items()}
        weights.clear()
        weights.update(bare | {"h.0.attn.bias": torch.ones(1, 1, 256, 256)})
        weights["h.0.attn.masked_bias"] = torch.tensor(-1e4)
        weights["lm_head.weight"] = bare["wte.weight"].clone()

    change_weights(folder, edit)
    assert same(load_gpt(folder).state_dict(), wanted)


def test_the_config_comes_back_as_it_was(tmp_path):
    config = GPTConfig(
        vocab_size=7, n_positions=5, n_embd=6, n_layer=2, n_head=3, dropout=0.25, layer_norm_epsilon=1e-3
    )
    save_gpt(GPT(config), tmp_path)
    assert read_config(tmp_path / "config.json") == config == load_gpt(tmp_path).config


@pytest.mark.parametrize(
    "name, parameters",
    [("gpt2", 124439808), ("gpt2-medium", 354823168), ("gpt2-large", 774030080), ("gpt2-xl", 1557611200)],
)
def test_the_sizes_are_openais(name, parameters):
    with torch.device("meta"):
        model = GPT(SIZES[name])
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_the_real_gpt2_continues_the_dog_as_known():
    if not pinned_in_cache("gpt2", "model.safetensors", PRETRAINED["gpt2"].sha256):
        pytest.skip("needs OpenAI's weights")
    ids, model = [464, 3290], load_gpt("gpt2").eval()
    for _ in range(18):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    known = [373, 1043, 287, 257, 2214, 1474, 262, 16246, 286, 2688, 290, 2688, 27262, 13, 198, 198, 464, 3290]
    assert ids[2:] == known


def test_two_spellings_of_the_same_model_load_as_one(both, tmp_path):
    theirs = both[0]
    config = type(theirs.config)(**theirs.config.to_dict() | {"activation_function": "gelu_pytorch_tanh"})
    config.n_inner = 4 * config.n_embd
    other = type(theirs)(config).eval()
    other.load_state_dict(theirs.state_dict())
    other.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["n_inner"] == 192
    assert load_gpt(tmp_path).config == both[1].config and same(load_gpt(tmp_path).state_dict(), both[1].state_dict())
    ids = torch.arange(30)[None]
    with torch.no_grad():
        torch.testing.assert_close(load_gpt(tmp_path).eval()(ids), other(ids).logits, rtol=1e-5, atol=1e-4)


# ---------------------------------------------------------------------- several files, and pickles


@pytest.fixture
def shards(both, tmp_path):
    """A model that transformers has cut into several files."""
    both[0].save_pretrained(tmp_path, max_shard_size="100kB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3 and not (tmp_path / "model.safetensors").exists()
    return tmp_path


def test_the_shards_of_transformers_are_one_model(both, shards):
    assert same(load_gpt(shards).state_dict(), both[1].state_dict())


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "model.bin", ".safetensors", 5, None, ""],
    ids=str,
)
def test_an_index_names_only_files_beside_it(name, shards):
    path = shards / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["transformer.wte.weight"] = name
    path.write_text(json.dumps(index))
    with pytest.raises(ModelFileError, match=re.escape(f"{path}: weight_map must name files beside it")):
        load_gpt(shards)


@pytest.mark.parametrize("index", ["{}", '{"weight_map": []}', '{"weight_map": {}}', "[]", "{"])
def test_an_index_without_a_map_is_refused(index, shards):
    path = shards / "model.safetensors.index.json"
    path.write_text(index)
    with pytest.raises(ModelFileError, match=re.escape(str(path))):
        load_gpt(shards)


@pytest.mark.parametrize("damage", ["missing", "empty", "half", "another's"])
def test_a_damaged_shard_is_named(damage, shards):
    path = sorted(shards.glob("model-*"))[1]
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        other = sorted(shards.glob("model-*"))[0].read_bytes()
        path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "another's": other}[damage])
    with pytest.raises(ModelFileError, match=re.escape(str(shards))) as e:
        load_gpt(shards)
    assert path.name in str(e.value) or (damage == "another's" and "is missing" in str(e.value))


def test_a_folder_with_pytorch_model_bin_alone_says_how_to_convert_it_and_that_works(both, tmp_path):
    both[0].save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(both[0].state_dict(), tmp_path / "pytorch_model.bin")  # with the head and the embedding as one tensor
    for name in ("pytorch_model.bin", "pytorch_model-00001-of-00002.bin"):
        (tmp_path / "pytorch_model.bin").rename(tmp_path / name)
        with pytest.raises(ModelFileError) as e:
            load_gpt(tmp_path)
        assert str(e.value).startswith(f"{tmp_path / name} is a pickle") and "\n" not in str(e.value)
        (tmp_path / name).rename(tmp_path / "pytorch_model.bin")
    command = re.search('python -c "(.*)"$', str(e.value))[1]
    subprocess.run([sys.executable, "-c", command], cwd=tmp_path, check=True)
    assert same(load_gpt(tmp_path).state_dict(), both[1].state_dict())


def test_a_pickle_is_never_read(both, tmp_path):
    both[0].save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    load_gpt(tmp_path)  # its safetensors
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelFileError, match="is a pickle, which may run code"):
        load_gpt(tmp_path)
    assert not (tmp_path / "ran").exists()


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


# ---------------------------------------------------------------------- files that are wrong


@pytest.mark.parametrize(
    "edit, text",
    [
        (lambda w: w.pop("transformer.ln_f.bias"), "key 'ln_f.bias' is missing"),
        (lambda w: w.update({"transformer.wpe.weight": torch.zeros(5, 128)}), "'wpe.weight' has shape (5, 128)"),
        (lambda w: w.update({"lm_head.weight": torch.zeros(4048, 128)}), "'lm_head.weight' differs"),
        (lambda w: w.update({"transformer.h.0.attn.q": torch.zeros(1)}), "unknown key 'h.0.attn.q'"),
        (lambda w: w.pop("transformer.h.0.ln_1.weight"), "key 'h.0.ln_1.weight' is missing"),
        (lambda w: w.update({"transformer.h.4.ln_1.weight": torch.zeros(128)}), "unknown key 'h.4.ln_1.weight'"),
    ],
)
def test_a_wrong_weight_file_is_refused_by_its_name_and_that_of_the_key(folder, edit, text):
    change_weights(folder, edit)
    with pytest.raises(ModelFileError, match=re.escape(f"{folder / 'model.safetensors'}: {text}")):
        load_gpt(folder)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"n_head": 5}, "can't be split"),
        ({"n_layer": "2"}, "n_layer must be a positive number"),
        ({"n_layer": 10**7}, "n_layer = 10000000"),
        ({"n_layer": 5}, "key 'h.4.ln_1.weight' is missing"),
        ({"vocab_size": 2**23}, "'wte.weight' has shape (4048, 128), but the config needs (8388608, 128)"),
        ({"n_embd": 2**22}, "the config needs (4048, 4194304)"),
        ({"n_embd": 2**25}, "n_embd must be a positive number"),
        ({"n_positions": True}, "n_positions must be a positive number"),
        ({"n_head": None}, "n_head must be a positive number"),
        ({"activation_function": "relu"}, "activation_function = 'relu'"),
        ({"model_type": "bert"}, "model_type = 'bert'"),
        ({"n_inner": 5}, "n_inner = 5"),
        ({"n_inner": 128}, "n_inner = 128"),
        ({"n_inner": "512"}, "n_inner = '512'"),
        ({"activation_function": "gelu"}, "activation_function = 'gelu'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        ({"resid_pdrop": 7}, "resid_pdrop must be"),
        ({"layer_norm_epsilon": "small"}, "layer_norm_epsilon must be"),
    ],
    ids=str,
)
def test_a_config_that_lies_is_refused_by_the_name_of_its_field_and_gets_no_memory(folder, changes, text):
    change_config(folder, **changes)
    with pytest.raises(ModelFileError, match=re.escape(str(folder))) as e:
        load_gpt(folder)
    assert text in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("load", [load_gpt, load_student, pretrained])
@pytest.mark.parametrize(
    "name, content, text",
    [
        ("model.safetensors", None, "is missing"),
        ("model.safetensors", b"", "is not a whole safetensors file"),
        ("model.safetensors", "half", "is not a whole safetensors file"),
        ("model.safetensors", "pipe", "is missing"),
        ("config.json", None, "is missing"),
        ("config.json", b"{", "can't be read as JSON"),
        ("config.json", b"\xff\xfe", "can't be read as JSON"),
        ("config.json", b"[" * 10**5, "can't be read as JSON"),
        ("config.json", b"[]", "a JSON object is expected"),
        ("config.json", "pipe", "is missing"),
    ],
)
def test_broken_and_missing_files_are_refused_by_name(folder, name, content, text, load):
    path = folder / name
    whole = path.read_bytes()
    path.unlink()
    if content == "pipe":  # which would be waited for
        os.mkfifo(path)
    elif content is not None:
        path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(ModelFileError, match=re.escape(str(path))) as e:
        load(folder)
    assert text in str(e.value)


# ---------------------------------------------------------------------- where everything starts


def test_the_vocabulary_grows_by_ans_pad_and_the_task_slots_once(tmp_path):
    model, tokenizer = pretrained("nano")
    assert model.config.vocab_size == tokenizer.n_vocab == 4001 + 47
    assert torch.equal(model.wte.weight[:4001], load_gpt(NANO).wte.weight)
    save_gpt(model, tmp_path, tokenizer="nano", task_slots={})
    assert same(pretrained(tmp_path)[0].state_dict(), model.state_dict())


@pytest.mark.parametrize("rows", [1, 23, 47, 1000])
def test_rows_beyond_the_vocabulary_are_padding_unless_a_run_has_made_them(rows, tmp_path, capsys):
    """nanoGPT pads 50,257 rows to 50,304, which is also the number of a run's."""
    padded = nano(grown=False)
    n = padded.config.vocab_size
    padded.grow_vocab(rows)
    with torch.no_grad():
        padded.wte.weight[n:] = 7.0
    save_gpt(padded, tmp_path, tokenizer="nano")
    model, tokenizer = pretrained(tmp_path)
    assert capsys.readouterr().out == f"note     {tmp_path}: {rows} rows beyond the {n} tokens are cut (padding)\n"
    assert model.config.vocab_size == tokenizer.n_vocab
    assert same(model.state_dict(), pretrained("nano")[0].state_dict())
    change_config(tmp_path, task_slots={})
    if rows == 47:
        assert torch.equal(pretrained(tmp_path)[0].wte.weight[n:], torch.full((47, 128), 7.0))
    else:
        with pytest.raises(ModelFileError, match=f"the model has {n + rows} tokens"):
            pretrained(tmp_path)


def test_a_vocabulary_that_is_not_its_tokenizers_is_refused(tmp_path):
    save_gpt(GPT(GPTConfig(500, 8, 4, 1, 1)), tmp_path, tokenizer="nano")
    with pytest.raises(ModelFileError, match=f"{tmp_path}: the model has 500 tokens, but its tokenizer has 4001"):
        pretrained(tmp_path)


def test_a_student_comes_back_with_its_slots_and_config(tmp_path):
    tokenizer, model = nano_tokenizer(), nano()
    slots = {"toy.woz": tokenizer.task_id("toy.woz"), "mine": tokenizer.add_task("mine")}
    extra = {"tokenizer": "nano", "task_slots": slots, "max_len": 100, "answer_budgets": {"mine": 7}}
    save_gpt(model, tmp_path, **extra)
    loaded, tok, config = load_student(tmp_path)
    assert same(loaded.state_dict(), model.state_dict()) and tok.slots == tokenizer.slots
    assert config.items() >= extra.items()


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"task_slots": None}, "has no task_slots"),
        ({"task_slots": [4003]}, "has no task_slots"),
        ({"task_slots": {"a": 5}}, "has no task_slots"),
        ({"task_slots": {"a": "4003"}}, "has no task_slots"),
        ({"max_len": 0}, "must be numbers from 1 to 256"),
        ({"max_len": 10**9}, "must be numbers from 1 to 256"),
        ({"answer_budgets": {"a": 2.5}}, "must be numbers from 1 to 256"),
        ({"answer_budgets": [5]}, "must be numbers from 1 to 256"),
        ({"tokenizer": "klingon"}, "tokenizer 'klingon' is not known"),
        ({"tokenizer": ["nano"]}, "tokenizer ['nano'] is not known"),
    ],
    ids=str,
)
def test_a_students_config_that_lies_is_refused_by_name(folder, changes, text):
    change_config(folder, **{"task_slots": {"toy.woz": 4006}} | changes)
    with pytest.raises(ModelFileError, match=re.escape(text)) as e:
        load_student(folder)
    assert str(folder / "config.json") in str(e.value)


def test_a_model_without_task_slots_is_no_student():
    with pytest.raises(ModelFileError, match="no model of a run: 4001 tokens, not 4048"):
        load_student(NANO)
