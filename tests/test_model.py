"""GPT-2 against transformers, its parts, and its weights in and out. python -m pytest tests/test_model.py"""

import re

import pytest
import torch
import torch.nn.functional as F
from tiny import gradients, seeded, tiny

import model as model_file
from model import GPT, GPTConfig, causal


@pytest.fixture(scope="module")
def theirs():
    """A GPT-2 of transformers in double precision."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(vocab_size=60, n_positions=40, n_embd=24, n_layer=3, n_head=4, **ends)
    model = transformers.GPT2LMHeadModel(config).double().eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


CONFIG = GPTConfig(vocab_size=60, n_positions=40, n_embd=24, n_layer=3, n_head=4)


def test_logits_and_gradients_equal_transformers(theirs):
    ours = GPT.from_openai(CONFIG, theirs.state_dict()).double().eval()
    theirs.load_state_dict(ours.to_openai(torch.double), strict=False)  # from_openai rounds to float32
    ids, weights = torch.randint(60, (2, 33), generator=seeded(0)), torch.randn(2, 33, 60, generator=seeded(1))
    found, wanted = ours(ids), theirs(ids).logits
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    grads = {key: p.grad for key, p in theirs.named_parameters()}
    for key, grad in gradients(ours).items():
        their_grad = grads["transformer." + key]
        their_grad = their_grad.t() if key.endswith(model_file.CONV1D) else their_grad
        torch.testing.assert_close(grad, their_grad, rtol=1e-10, atol=1e-10)


def test_weights_come_back_as_they_were_with_any_prefix_masks_and_precision(theirs):
    state = {key: p.float() for key, p in theirs.state_dict().items()}
    model = GPT.from_openai(CONFIG, dict(state))
    assert all(p.dtype == torch.float32 and p.is_contiguous() for p in model.parameters())
    back = model.to_openai()
    assert back.keys() == state.keys() - {"lm_head.weight"}
    assert all(torch.equal(p, state[key]) for key, p in back.items())
    masks = {"h.0.attn.bias": torch.ones(1, 1, 40, 40), "h.2.attn.masked_bias": torch.tensor(-1e4)}
    halves = {key.removeprefix("transformer."): p.half() for key, p in state.items()} | masks
    for key, p in GPT.from_openai(CONFIG, halves).state_dict().items():
        torch.testing.assert_close(p, model.state_dict()[key].half().float(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "edit, says",
    [
        (lambda w: w.pop("transformer.ln_f.bias"), "key 'ln_f.bias' is missing"),
        (lambda w: w.update({"transformer.wpe.weight": torch.zeros(5, 24)}), "'wpe.weight' has shape (5, 24)"),
        (lambda w: w.update({"transformer.h.0.mlp.c_fc.weight": torch.zeros(96, 24)}), "'h.0.mlp.c_fc.weight' has"),
        (lambda w: w.update({"lm_head.weight": torch.zeros(60, 24)}), "'lm_head.weight' differs"),
        (lambda w: w.update({"transformer.h.3.ln_1.weight": torch.zeros(24)}), "unknown key 'h.3.ln_1.weight' (and 0"),
        (lambda w: w.clear(), "n_layer = 3, but there are 0 tensors"),
    ],
    ids=["missing", "shape", "transposed", "head", "unknown", "nothing"],
)
def test_wrong_weights_are_refused_by_the_name_of_their_key(edit, says):
    weights = GPT(CONFIG).to_openai()
    edit(weights)
    with pytest.raises(ValueError, match=re.escape(says)):
        GPT.from_openai(CONFIG, weights)


def test_parameters_have_gpt2s_names_and_initial_scales():
    model = GPT(GPTConfig(vocab_size=2000, n_embd=128, n_layer=8, n_head=4))
    p = dict(model.named_parameters())
    block = {"ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"}
    names = {"wte.weight", "wpe.weight"} | {f"ln_f.{kind}" for kind in ("weight", "bias")}
    assert set(p) == names | {f"h.{i}.{m}.{kind}" for i in range(8) for m in block for kind in ("weight", "bias")}
    stds = {"wte.weight": 0.02, "wpe.weight": 0.01, "h.0.attn.c_attn.weight": 0.02, "h.0.mlp.c_proj.weight": 0.02 / 4}
    for key, std in stds.items():
        assert p[key].std().item() == pytest.approx(std, rel=0.05)
    assert all(p[key].abs().max() == 0 for key in p if key.endswith("bias"))
    assert all((p[key] == 1).all() for key in p if "ln_" in key and key.endswith("weight"))


def test_a_token_sees_itself_and_those_before_it():
    model, ids = tiny(), torch.arange(20)[None] % 12
    other = ids.clone()
    other[0, 12:] = 11 - other[0, 12:]
    before, after = model(ids), model(other)
    torch.testing.assert_close(before[:, :12], after[:, :12], rtol=1e-12, atol=1e-12)
    assert (before[:, 12:] != after[:, 12:]).all()
    q, k, v = qkv = torch.randn(3, 1, 2, 5, 8, generator=seeded(0), dtype=torch.double)
    scores = (q @ k.transpose(2, 3) / 8**0.5).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(causal(qkv, 0.0), scores.softmax(-1) @ v)


def test_dropout_is_after_the_embedding_in_attention_and_after_each_half_of_a_block_in_training_only(monkeypatch):
    plain, attention, asked = F.dropout, F.scaled_dot_product_attention, []

    def dropout(x, p, training):
        asked.append(p * training)
        return plain(x, p, training)

    def attend(*a, dropout_p, **options):
        asked.append(dropout_p)
        return attention(*a, dropout_p=dropout_p, **options)

    monkeypatch.setattr(model_file.F, "dropout", dropout)
    monkeypatch.setattr(model_file.F, "scaled_dot_product_attention", attend)
    ids = torch.arange(5)[None]
    for model, p in ((tiny(dropout=0.1).train(), 0.1), (tiny(dropout=0.1), 0.0)):
        asked.clear()
        first = model(ids)
        assert asked == [p] * (1 + 3 * 2)
        assert torch.equal(model(ids), first) == (p == 0.0)


def test_a_row_longer_than_the_context_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="65 tokens are too long for a context of 64"):
        tiny()(torch.zeros(1, 65, dtype=torch.long))


def test_new_tokens_start_at_the_mean_and_keep_the_old_logits_and_other_models():
    config = GPTConfig(vocab_size=12, n_positions=64, n_embd=16, n_layer=2, n_head=2)
    model, other = GPT(config).eval(), GPT(config)
    ids = torch.arange(12)[None]
    before = model(ids)
    after = model.grow_vocab(3)(ids)
    assert (model.config.vocab_size, other.config.vocab_size, config.vocab_size) == (15, 12, 12)
    torch.testing.assert_close(after[..., :12], before)
    torch.testing.assert_close(after[..., 12:], before.mean(dim=-1, keepdim=True).expand(1, 12, 3))
    after[..., 13].sum().backward()
    assert model.wte.weight.grad[13].abs().max() > 0  # and they learn


def test_hidden_and_head_are_the_two_halves_of_the_logits():
    model, ids = tiny(), torch.arange(10)[None] % 12
    torch.testing.assert_close(model.hidden(ids) @ model.head().t(), model(ids), rtol=1e-12, atol=1e-12)
    assert model.head() is model.wte.weight  # tied, and not copied where nothing is rounded
    later = model.hidden(ids, positions=torch.arange(3, 13))
    assert torch.equal(later, model.hidden(ids, positions=torch.arange(3, 13)[None]))
    assert not torch.equal(later, model.hidden(ids))
