"""GPT-2: parity with transformers, weights in and out, generation. python -m pytest tests/test_model.py"""

import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import nano
from safetensors.torch import load_file, save_file

import model as model_file
from lab.run import NANO
from model import (
    DEFAULT_CACHE,
    GPT,
    PRETRAINED,
    GPTConfig,
    KVCache,
    ModelFileError,
    beam_search,
    generate,
    next_token,
    prefill,
    top_k_filter,
)


def seeded(n):
    return torch.Generator().manual_seed(n)


def prompts_of(lengths, vocab=257, seed=0):
    g = seeded(seed)
    return [torch.randint(vocab, (n,), generator=g).tolist() for n in lengths]


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


# ---------------------------------------------------------------------- parity and files


@pytest.fixture(scope="module")
def gpt2_124m(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    folder = tmp_path_factory.mktemp("gpt2")
    theirs.save_pretrained(folder)
    return theirs, GPT.from_pretrained(folder).eval(), transformers


def test_logits_of_a_124m_gpt2_equal_transformers(gpt2_124m):
    theirs, ours, _ = gpt2_124m
    ids = torch.randint(50257, (2, 33), generator=seeded(0))
    with torch.no_grad():
        assert relative(ours(ids), theirs(ids).logits) < 2e-5


def test_greedy_text_equals_transformers_for_prompts_of_different_lengths_in_one_batch(gpt2_124m):
    theirs, ours, _ = gpt2_124m
    prompts = prompts_of([3, 17, 1, 8], vocab=50257)
    for prompt, new in zip(prompts, generate(ours, prompts, 8, stop_id=50256)):
        wanted = theirs.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, pad_token_id=50256)
        assert new == wanted[0, len(prompt) :].tolist()


def test_save_pretrained_is_read_by_transformers_and_by_us(gpt2_124m, tmp_path):
    theirs, ours, transformers = gpt2_124m
    ours.save_pretrained(tmp_path, tokenizer="gpt2", task_slots={"woz": 50259})
    again, back = transformers.GPT2LMHeadModel.from_pretrained(tmp_path), GPT.from_pretrained(tmp_path)
    for key, p in theirs.state_dict().items():
        assert torch.equal(p, again.state_dict()[key]), key
    for key, p in ours.state_dict().items():
        assert torch.equal(p, back.state_dict()[key]), key


def test_the_real_gpt2_continues_the_dog_as_known():
    path = Path(DEFAULT_CACHE).expanduser() / "models" / "gpt2" / "model.safetensors"
    if not path.exists():
        pytest.skip(f"needs OpenAI's weights in {path}")
    wanted = [373, 1043, 287, 257, 2214, 1474, 262, 16246, 286, 2688, 290, 2688, 27262, 13, 198, 198, 464, 3290]
    assert generate(GPT.from_pretrained("gpt2"), [[464, 3290]], 18, stop_id=50256) == [wanted]


@pytest.fixture
def folder(tmp_path):
    nano().save_pretrained(tmp_path)
    return tmp_path


def change(folder, edit):
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors")


def test_weights_load_without_prefix_with_mask_buffers_and_in_half_precision(folder):
    wanted = GPT.from_pretrained(folder)

    def edit(w):
        halves = {k.removeprefix("transformer."): v.half() for k, v in w.items()}
        w.clear()
        w.update(halves | {"h.0.attn.bias": torch.ones(1, 1, 256, 256), "h.0.attn.masked_bias": torch.tensor(-1e4)})

    change(folder, edit)
    for key, p in GPT.from_pretrained(folder).state_dict().items():
        assert p.dtype == torch.float32
        torch.testing.assert_close(p, wanted.state_dict()[key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "edit, says",
    [
        (lambda w: w.pop("transformer.ln_f.bias"), "key 'ln_f.bias' is missing"),
        (lambda w: w.update({"transformer.wpe.weight": torch.zeros(5, 128)}), "'wpe.weight' has shape (5, 128)"),
        (lambda w: w.update({"lm_head.weight": torch.zeros(1048, 128)}), "'lm_head.weight' differs"),
        (lambda w: w.update({"transformer.h.0.attn.q": torch.zeros(1)}), "unknown key 'h.0.attn.q'"),
        (lambda w: w.pop("transformer.h.0.ln_1.weight"), "key 'h.0.ln_1.weight' is missing"),
        (lambda w: w.update({"transformer.h.4.ln_1.weight": torch.zeros(128)}), "unknown key 'h.4.ln_1.weight'"),
    ],
)
def test_a_wrong_weight_file_is_refused_by_the_name_of_its_key(folder, edit, says):
    change(folder, edit)
    with pytest.raises(ModelFileError, match=re.escape(says)):
        GPT.from_pretrained(folder)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"n_head": 5}, "can't be split"),
        ({"n_layer": "2"}, "n_layer must be a positive number"),
        ({"n_layer": 10**7}, "n_layer = 10000000"),
        ({"n_layer": 5}, r"key 'h\.4\.ln_1\.weight' is missing"),
        ({"activation_function": "relu"}, "activation_function = 'relu'"),
        ({"model_type": "bert"}, "model_type = 'bert'"),
        ({"resid_pdrop": 7}, "resid_pdrop"),
    ],
)
def test_a_wrong_config_is_refused_by_the_name_of_its_field(folder, changes, says):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelFileError, match=says):
        GPT.from_pretrained(folder)


def test_broken_and_missing_files_are_refused_by_name(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelFileError, match="not a whole safetensors file"):
        GPT.from_pretrained(folder)
    weights.unlink()
    with pytest.raises(ModelFileError, match=r"model\.safetensors is missing"):
        GPT.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelFileError, match="can't be read as JSON"):
        GPT.from_pretrained(folder)


def test_a_failed_download_names_address_and_place_and_leaves_nothing(tmp_path, monkeypatch):
    def no_network(url, path, hash_prefix=None):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(ModelFileError) as e:
        GPT.from_pretrained("gpt2", tmp_path)
    assert PRETRAINED["gpt2"][0] in str(e.value) and str(tmp_path) in str(e.value) and "--model" in str(e.value)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_download_that_was_cut_off_gets_no_final_name(tmp_path, monkeypatch):
    """No checksum is known for the larger models: the file must at least be whole."""
    whole = (NANO / "model.safetensors").read_bytes()
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda url, path, hash_prefix: Path(path).write_bytes(sent[0])
    )
    for sent in ([whole[:-1000]], [whole]):
        folder = tmp_path / "models" / "gpt2-medium"
        if sent[0] is whole:
            assert model_file.download("gpt2-medium", tmp_path) == folder / "model.safetensors"
            assert (folder / "model.safetensors").read_bytes() == whole
            assert [p.name for p in folder.iterdir()] == ["model.safetensors"]
        else:
            with pytest.raises(ModelFileError, match="can't download https://"):
                model_file.download("gpt2-medium", tmp_path)
            assert [p for p in folder.iterdir() if p.suffix != ".lock"] == []


def test_parameters_carry_gpt2s_names_and_initial_scales():
    model = GPT(GPTConfig(vocab_size=2000, n_embd=128, n_layer=8, n_head=4))
    p = dict(model.named_parameters())
    block = {"ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"}
    names = {"wte.weight", "wpe.weight"} | {f"ln_f.{kind}" for kind in ("weight", "bias")}
    assert set(p) == names | {f"h.{i}.{m}.{kind}" for i in range(8) for m in block for kind in ("weight", "bias")}
    stds = {"wte.weight": 0.02, "wpe.weight": 0.01, "h.0.attn.c_attn.weight": 0.02, "h.0.mlp.c_proj.weight": 0.02 / 4}
    for key, std in stds.items():
        assert p[key].std().item() == pytest.approx(std, rel=0.05)
    assert all(p[k].abs().max() == 0 for k in p if k.endswith("bias"))


def test_dropout_works_in_training_only():
    model, ids = nano(grown=False), torch.arange(20)[None]
    assert not torch.equal(model.train()(ids), model(ids))
    assert torch.equal(model.eval()(ids), model(ids))


def test_dropout_is_after_the_embedding_in_attention_and_after_each_half_of_a_block(monkeypatch):
    plain, attention, asked = model_file.F.dropout, model_file.F.scaled_dot_product_attention, []
    monkeypatch.setattr(
        model_file.F, "dropout", lambda x, p, training: asked.append(p * training) or plain(x, p, training)
    )
    monkeypatch.setattr(
        model_file.F,
        "scaled_dot_product_attention",
        lambda *a, dropout_p, **k: asked.append(dropout_p) or attention(*a, dropout_p=dropout_p, **k),
    )
    for model, p in ((nano().train(), 0.1), (nano().eval(), 0.0)):
        asked.clear()
        model(torch.arange(5)[None])
        assert asked == [p] * (1 + 3 * model.config.n_layer)


def test_attention_is_causal():
    model, ids = nano(grown=False).eval(), torch.arange(20)[None]
    other = ids.clone()
    other[0, 12:] += 100
    torch.testing.assert_close(model(ids)[:, :12], model(other)[:, :12])


def test_grow_vocab_starts_new_rows_at_the_mean_and_keeps_the_old_logits():
    model, ids = nano(grown=False).eval(), torch.arange(20)[None]
    before = model(ids)
    model.grow_vocab(3)
    after = model(ids)
    assert after.shape[-1] == 1004 == model.config.vocab_size
    torch.testing.assert_close(after[..., :1001], before)
    torch.testing.assert_close(after[..., 1001], before.mean(dim=-1), rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------------- generation


@pytest.mark.parametrize("top_k", [None, 20])
def test_generation_does_not_depend_on_batch_mates(top_k, monkeypatch):
    model, prompts = nano(grown=False).double(), prompts_of([5, 1, 30, 7, 7, 12])
    whole = generate(model, prompts, 20, stop_id=7, top_k=top_k, generator=seeded(3))
    assert generate(model, prompts[:3], 20, stop_id=7, top_k=top_k, generator=seeded(3)) == whole[:3]
    monkeypatch.setattr(model_file, "MAX_ROWS", 2)  # other chunks, other mates
    assert generate(model, prompts, 20, stop_id=7, top_k=top_k, generator=seeded(3)) == whole


def test_a_row_equals_plain_decoding_without_a_cache():
    model, prompts = nano(grown=False).double().eval(), prompts_of([5, 1, 30])
    for prompt, new in zip(prompts, generate(model, prompts, 12, stop_id=-5)):
        for t, token in enumerate(new):
            assert model(torch.tensor([prompt + new[:t]]))[0, -1].argmax() == token


def test_mates_of_the_same_shape_change_no_bit():
    model = nano(grown=False).eval()

    def logits(mate):
        prompts = [list(range(9)), mate]
        hidden, cache = prefill(model, prompts, [3, 3])
        cache.expect(used=10)
        return model.head(hidden[0]), model.head(model.hidden(torch.tensor([[3], [4]]), cache=cache))[0]

    with torch.no_grad():
        one, other = logits([1, 2, 3, 4, 5, 6]), logits([9, 8, 7, 6, 5, 4])
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_prompts_of_several_prefills_share_one_cache(monkeypatch):
    model, prompts = nano(grown=False).double().eval(), prompts_of([5, 30, 1, 7, 12])
    with torch.no_grad():
        whole, cache = prefill(model, prompts, [2] * 5)
        for tokens in (1, 12, 36):
            monkeypatch.setattr("model.PREFILL_TOKENS", tokens)
            hidden, parts = prefill(model, prompts, [2] * 5)
            torch.testing.assert_close(hidden, whole, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(parts.kv, cache.kv, rtol=1e-12, atol=1e-12)
            assert torch.equal(parts.length, torch.tensor([5, 30, 1, 7, 12]))


def test_the_stop_token_is_kept_and_ends_a_row_and_limits_are_one_a_prompt():
    model, prompts = nano(grown=False).double(), prompts_of([5, 1, 30, 7])
    free = generate(model, prompts, [9, 0, 4, 12], stop_id=-1)
    assert [len(row) for row in free] == [9, 0, 4, 12]
    stop = free[0][3]
    for row, stopped in zip(free, generate(model, prompts, [9, 0, 4, 12], stop_id=stop)):
        assert stopped == (row[: row.index(stop) + 1] if stop in row else row)


def test_memory_is_bounded_by_tokens_and_finished_rows_are_dropped(monkeypatch):
    caches, dropped = [], []

    class Cache(KVCache):
        def __init__(self, model, rows, columns):
            caches.append(rows * columns)
            super().__init__(model, rows, columns)

        def keep(self, rows):
            dropped.append((len(self.length), len(rows)))
            super().keep(rows)

    model = nano(grown=False)
    monkeypatch.setattr(model_file, "KVCache", Cache)
    monkeypatch.setattr(model_file, "CACHE_BYTES", 200 * 4 * 2 * 4 * 128)  # 200 columns of 4 layers of 128 channels
    generate(model, prompts_of([30] * 10), 20, stop_id=-1)
    assert caches == [4 * 50, 4 * 50, 2 * 50] and dropped == []
    generate(model, prompts_of([3] * 4), [2, 2, 2, 9], stop_id=-1)
    assert dropped == [(4, 1)]


def test_a_row_that_ends_at_the_contexts_end_lets_the_others_go_on():
    prompts, limits = [list(range(250))] + [[1, 2, 3]] * 4, [7, 50, 50, 50, 50]
    assert [len(row) for row in generate(nano(grown=False), prompts, limits, stop_id=-1)] == limits


@pytest.mark.parametrize("decode", [generate, partial(beam_search, beams=2)])
def test_generation_is_without_dropout_and_restores_the_mode_it_found(decode):
    model, prompts = nano(grown=False).train(), prompts_of([5] * 4)
    in_training = decode(model, prompts, 20, stop_id=-1)
    assert model.training
    assert decode(model.eval(), prompts, 20, stop_id=-1) == in_training
    assert not model.training


@pytest.mark.parametrize("prompt, limit", [([], 3), (list(range(250)), 8), (list(range(257)), 0)])
def test_a_prompt_that_does_not_fit_is_an_error(prompt, limit):
    for decode in (generate, partial(beam_search, beams=2)):
        with pytest.raises(ValueError, match="prompt 1"):
            decode(nano(grown=False), [[1, 2], prompt], [1, limit], stop_id=0)


def test_the_whole_context_can_be_generated():
    assert len(generate(nano(grown=False), [[1]], 256, stop_id=-1)[0]) == 256


def test_sampling_draws_from_the_top_k_softmax_at_its_temperature():
    logits = torch.tensor([[2.0, 1.0, 0.0, 1.0, -1.0]])
    u = (torch.arange(20000, dtype=torch.double) + 0.5) / 20000
    tokens = next_token(logits.expand(20000, -1), u, top_k=2, temperature=0.5)
    wanted = torch.tensor([4.0, 2.0, -torch.inf, 2.0, -torch.inf]).softmax(-1)  # both ties with the second stay
    torch.testing.assert_close(torch.bincount(tokens, minlength=5) / 20000, wanted, atol=1e-3, rtol=0)


def test_top_k_keeps_what_the_released_filter_keeps(golden):
    for case in golden("topk")["cases"]:
        kept = top_k_filter(torch.tensor(case["logits"], dtype=torch.float), case["top_k"]).isfinite()
        assert kept.int().tolist() == case["kept"], case["name"]


# ---------------------------------------------------------------------- beam search

LENGTHS, LIMITS = [4, 1, 17, 9, 4], [9, 6, 12, 3, 9]


def lively(seed):
    """A random GPT-2 of 12 words, each of which is likely at times, so that any can be the stop token."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab_size=12, n_positions=64, n_embd=16, n_layer=2, n_head=2)).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.normal_(std=0.4)
    return model


def test_beam_search_equals_transformers_for_prompts_of_different_lengths_in_one_batch(tmp_path):
    transformers = pytest.importorskip("transformers")
    stopped = at_limit = not_greedy = 0
    for seed in range(6):
        ours, prompts, stop = lively(seed), prompts_of(LENGTHS, vocab=12, seed=seed), seed
        ours.save_pretrained(tmp_path, dtype=torch.double, eos_token_id=stop)
        theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.double).eval()
        greedy = generate(ours, prompts, LIMITS, stop)
        for beams in (2, 3, 4, 5):
            options = {"num_beams": beams, "do_sample": False, "length_penalty": 1.0, "early_stopping": True}
            found = beam_search(ours, prompts, LIMITS, stop, beams)
            for prompt, limit, new, plain in zip(prompts, LIMITS, found, greedy):
                wanted = theirs.generate(
                    torch.tensor([prompt]), max_new_tokens=limit, eos_token_id=stop, pad_token_id=stop, **options
                )
                assert new == wanted[0, len(prompt) :].tolist()
                stopped += new[-1] == stop and len(new) < limit
                at_limit += new[-1] != stop and len(new) == limit
                not_greedy += new != plain
    assert min(stopped, at_limit, not_greedy) > 30


def test_one_beam_is_greedy_decoding_in_the_models_own_precision():
    for seed in range(6):
        model, prompts = lively(seed), prompts_of(LENGTHS, vocab=12, seed=seed)
        model.wte.weight.data[1::2] = model.wte.weight.data[::2] * (1 + 1e-12)  # twins that only float64 tells apart
        assert beam_search(model, prompts, LIMITS, 3, beams=1) == generate(model, prompts, LIMITS, 3)


def test_beam_search_does_not_depend_on_batch_mates(monkeypatch):
    model, limits = lively(0), [*LIMITS, 0, 5]
    prompts = prompts_of([*LENGTHS, 2, 60], vocab=12)  # the last fills the context
    whole = beam_search(model, prompts, limits, 3, beams=4)
    assert whole == [beam_search(model, [p], n, 3, beams=4)[0] for p, n in zip(prompts, limits)]
    monkeypatch.setattr(model_file, "MAX_ROWS", 8)  # two prompts a chunk
    assert beam_search(model, prompts, limits, 3, beams=4) == whole
    monkeypatch.setattr(model_file, "CACHE_BYTES", 1)  # one
    assert beam_search(model, prompts, limits, 3, beams=4) == whole


def test_memory_is_bounded_with_all_beams_and_finished_prompts_are_dropped(monkeypatch):
    kept = []

    class Cache(KVCache):
        def keep(self, rows):
            super().keep(rows)
            kept.append(self.kv.size(2))

    monkeypatch.setattr(model_file, "KVCache", Cache)
    monkeypatch.setattr(model_file, "CACHE_BYTES", 200 * 4 * 2 * 2 * 16)  # 200 columns of 2 layers of 16 channels
    beam_search(lively(0), prompts_of([30] * 3, vocab=12), 3, stop_id=-1, beams=3)  # 2 x 3 x 33 columns are 198
    assert kept == [6, 6, 3, 3]
    kept.clear()
    beam_search(lively(0), prompts_of([3] * 4, vocab=12), [2, 1, 2, 4], stop_id=-1, beams=3)
    assert kept == [9, 3, 3]


def test_logits_in_half_precision_are_scored_in_float32(monkeypatch):
    prompts, head, found = prompts_of(LENGTHS, vocab=12), GPT.head, []
    for cast in (lambda x: x.bfloat16(), lambda x: x.bfloat16().float()):
        monkeypatch.setattr(GPT, "head", lambda self, hidden, cast=cast: cast(head(self, hidden)))
        found.append([beam_search(lively(seed), prompts, LIMITS, 3, beams=4) for seed in range(6)])
    assert found[0] == found[1]
    with torch.autocast("cpu", torch.bfloat16):
        assert [len(new) for new in beam_search(lively(0).float(), prompts, LIMITS, -1, beams=4)] == LIMITS


@pytest.mark.parametrize("beams", [0, 7])
def test_beams_the_vocabulary_has_no_candidates_for_are_an_error(beams):
    with pytest.raises(ValueError, match=f"{beams} beams"):
        beam_search(lively(0), [[1]], 3, stop_id=0, beams=beams)
