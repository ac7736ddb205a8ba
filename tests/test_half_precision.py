"""In bfloat16 and float16 a GPT-2 learns and answers as in float32. python -m pytest tests/test_half_precision.py

GPT-2's logits lie around -100, where numbers in bfloat16 are 0.5 apart. Here a small model is trained and then shifted,
so that its logits do, too. Each test has the limit that a head fails which is rounded before it is centred.
"""

import copy

import pytest
import torch
from conftest import nano
from tiny import gradients, tiny

import kd
from data import Example, encode_example, make_batch
from eval import predict
from lab.run.pretrained import nano_tokenizer
from lab.tasks.toy import toy_rows

HALVES = {torch.bfloat16: 2.0**0, torch.float16: 2.0**12}  # and the loss scale
TASK = "toy.cnn"


def autocast(dtype):
    return torch.autocast("cpu", dtype, enabled=dtype != torch.float32)


def update(student, teacher, samples):
    """The loss of a batch, with a scale for its gradients."""
    batch = make_batch(samples, range(len(samples)), len(samples), soft=teacher is not None)
    scale = HALVES.get(torch.get_autocast_dtype("cpu"), 1.0) if torch.is_autocast_enabled("cpu") else 1.0
    total = 0.0
    for group, w in zip(batch, kd.token_weights(batch, "joint", nano_tokenizer().ans_id)):
        loss, _ = kd.group_loss(student, teacher, group, w, 2.0, scale)
        (scale * loss).backward()
        total += loss.item()
    return total, {name: grad / scale for name, grad in gradients(student).items()}


def shift(model, common=-120.0):
    """Add the same to all logits, wherever: x̂ of a layer norm sums to 0, so (w x̂ + b) · (a / w) = a Σ b / w."""
    with torch.no_grad():
        w = model.ln_f.weight
        model.ln_f.bias -= 0.3 * w
        c = common / (model.ln_f.bias / w).sum() / w
        model.wte.weight += c
        model.wpe.weight -= c  # so that no hidden state changes
    return model


@pytest.fixture(scope="module")
def trained():
    """Training samples, a student that has learned a little of them, and a teacher that has learned more."""
    tok = nano_tokenizer()
    rows = [Example(**row) for row in toy_rows(TASK, "train", 8)]
    samples = [encode_example(row, tok.task_id(TASK), tok, 128) for row in rows]
    model, stages = nano(), []
    with torch.no_grad():
        model.ln_f.bias -= 0.3 * model.ln_f.weight  # `shift` takes it away again
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for i in range(24):
        _, grads = update(model, None, samples)
        for name, p in model.named_parameters():
            p.grad = grads[name]
        optimizer.step()
        optimizer.zero_grad()
        if i in (13, 23):
            stages.append(copy.deepcopy(model).eval())
    for model in stages:
        with torch.no_grad():
            model.ln_f.bias += 0.3 * model.ln_f.weight
        shift(model)
    return samples, *stages


def test_the_models_logits_lie_where_gpt2s_do(trained):
    samples, student, teacher = trained
    with torch.no_grad():
        for model in (student, teacher):
            logits = model(torch.tensor([samples[0].lm_ids]))
            assert -140 < logits.min() < logits.max() < -100 and logits.mean().item() == pytest.approx(-120, abs=5)
            assert 1 < logits.std(dim=-1).mean() < 4


def next_words(model, ids, dtype=torch.float32):
    """The final hidden states and log P of each next word."""
    with torch.no_grad(), autocast(dtype):
        return model.hidden(ids), model(ids).float().log_softmax(dim=-1)


def divergence(log_p, log_q) -> float:
    """The mean of KL(p ‖ q) over tokens."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean().item()


def distance(grads, wanted) -> float:
    """The norm of the difference as a share of the norm."""
    away = sum((grads[name] - grad).square().sum() for name, grad in wanted.items())
    return (away / sum(grad.square().sum() for grad in wanted.values())).sqrt().item()


@pytest.mark.parametrize("dtype, far", [(torch.bfloat16, 0.02), (torch.float16, 0.0025)], ids=str)
@pytest.mark.parametrize("soft", [False, True], ids=["nll", "kd"])
def test_losses_and_gradients_are_float32s(trained, dtype, far, soft):
    samples, student, teacher = trained
    found = []
    for kind in (torch.float32, dtype):
        with autocast(kind):
            frozen = kd.Teacher(copy.deepcopy(teacher), kind) if soft else None
            found.append(update(copy.deepcopy(student), frozen, samples))
    (wanted, exact), (loss, rounded) = found
    assert loss == pytest.approx(wanted, rel=far / 5)
    for names in (list(exact), ["wte.weight"]):  # with an uncentred head the distances are 3 to 7 times as large
        assert distance({n: rounded[n] for n in names}, {n: exact[n] for n in names}) < far


@pytest.mark.parametrize("dtype, far", [(torch.bfloat16, 5e-4), (torch.float16, 1e-5)], ids=str)
def test_next_words_are_as_likely_as_in_float32(trained, dtype, far):
    samples, student, _ = trained
    ids = torch.tensor([samples[0].lm_ids])
    assert divergence(next_words(student, ids)[1], next_words(student, ids, dtype)[1]) < far


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_greedy_answers_and_beams_are_float32s(trained, dtype):
    _, student, _ = trained
    tok, test = nano_tokenizer(), [Example(**row) for row in toy_rows(TASK, "test", 30)]
    for beams in (1, 3):
        wanted = predict(student, tok, test, 128, 16, beams)
        with autocast(dtype):
            found = predict(student, tok, test, 128, 16, beams)
        assert sum(a == b for a, b in zip(found, wanted)) >= 27  # 26 in bfloat16 with an uncentred head


@pytest.mark.parametrize("dtype, far", [(torch.bfloat16, 5e-4), (torch.float16, 1e-5)], ids=str)
def test_a_frozen_teacher_has_its_hidden_states_and_distribution(trained, dtype, far):
    """In both the embedding and the head its words are rounded after they are centred."""
    samples, _, teacher = trained
    ids = torch.tensor([samples[0].lm_ids])
    states, log_p = next_words(teacher, ids)
    frozen = kd.freeze(copy.deepcopy(teacher), dtype)
    found, log_q = next_words(frozen, ids, dtype)
    assert (found - states).norm() < (0.006 if dtype == torch.bfloat16 else 0.001) * states.norm()
    assert divergence(log_p, log_q) < far


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_freezing_in_full_precision_changes_nothing(dtype):
    """In float64, where nothing is rounded: the head is centred, and the positions make up for it."""
    model = tiny(dropout=0.5).to(dtype).train()
    ids = torch.arange(20)[None] % 12
    frozen = kd.freeze(copy.deepcopy(model), dtype)
    model.eval()
    assert not frozen.training and not any(p.requires_grad for p in frozen.parameters())
    torch.testing.assert_close(frozen.hidden(ids), model.hidden(ids), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(frozen(ids).log_softmax(-1), model(ids).log_softmax(-1), rtol=1e-12, atol=1e-12)
    if dtype == torch.float32:
        assert all(torch.equal(p, frozen.state_dict()[name]) for name, p in model.state_dict().items())
    else:
        assert frozen.wte.weight.mean(dim=0).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_frozen_teachers_matrices_are_halved_and_its_residual_stream_stays_in_float32(dtype):
    frozen, seen = kd.freeze(tiny(dtype=torch.float32), dtype), []
    assert {p.dtype for name, p in frozen.named_parameters() if "ln_" in name or "wpe" in name} == {torch.float32}
    assert {p.dtype for name, p in frozen.named_parameters() if "ln_" not in name and "wpe" not in name} == {dtype}
    for block in frozen.h:
        block.register_forward_hook(lambda module, inputs, out: seen.extend((inputs[0].dtype, out.dtype)))
    next_words(frozen, torch.arange(9)[None], dtype)
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("words", [12, 10000])
def test_a_head_in_half_precision_is_centred_before_it_is_rounded(dtype, words):
    model = shift(tiny(vocab=words, dtype=torch.float32))
    W = model.wte.weight
    with autocast(dtype):
        head = model.head()
        assert torch.equal(head, (W - W.mean(dim=0)).to(dtype))
        head.backward(grad := torch.randn(head.shape).to(dtype))
    assert torch.equal(W.grad, grad.float())  # a softmax has no gradient in the mean
