"""Pretrained models: files in and out, transformers, and files that lie.

python -m pytest tests/test_pretrained.py"""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from conftest import nano
from safetensors.torch import load_file, save_file

from data import Example, encode_prompt
from eval import predict
from lab.errors import ModelFileError
from lab.run.pretrained import (
    DEFAULT_CACHE,
    NANO,
    PRETRAINED,
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


# ---------------------------------------------------------------------- layers


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
def test_the_sizes_are_openais_and_so_many_megabytes_to_download(name, parameters):
    with torch.device("meta"):
        model = GPT(SIZES[name])
    assert sum(p.numel() for p in model.parameters()) == parameters
    masks = SIZES[name].n_layer * SIZES[name].n_positions ** 2  # these files have the causal masks as buffers
    assert PRETRAINED[name].megabytes == round(4 * (parameters + masks) / 1e6)


def test_the_real_gpt2_continues_the_dog_as_known():
    if not (Path(DEFAULT_CACHE).expanduser() / "models" / "gpt2" / "model.safetensors").exists():
        pytest.skip("needs OpenAI's weights")
    ids, model = [464, 3290], load_gpt("gpt2").eval()
    for _ in range(18):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    known = [373, 1043, 287, 257, 2214, 1474, 262, 16246, 286, 2688, 290, 2688, 27262, 13, 198, 198, 464, 3290]
    assert ids[2:] == known


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
    save_gpt(model, tmp_path, tokenizer="nano")
    assert same(pretrained(tmp_path)[0].state_dict(), model.state_dict())


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
