"""The losses, against the released code's numbers and against themselves. python -m pytest tests/test_kd.py"""

import copy
from itertools import pairwise

import pytest
import torch
from conftest import nano
from torch.nn.utils.rnn import pad_sequence

import kd
from data import IGNORE, Rows, encode_parts, make_batch


def double(x):
    return torch.tensor(x, dtype=torch.double)


# ---------------------------------------------------------------------- the released code's numbers


def padded_kd(student, teacher, T):
    """Released: a teacher that knows fewer tokens has its last probability repeated, and rows sum to more than 1."""
    p = (teacher / T).softmax(-1)
    p = torch.cat([p, p[:, -1:].expand(-1, student.size(1) - p.size(1))], dim=1)
    return T * T * (p * (p.log() - (student / T).log_softmax(-1))).sum(-1)


def supervised(labels, lm, replay, distil):
    """Supervised tokens alone, as `token_weights` sees them."""
    return Rows(None, None, None, labels, torch.full_like(labels, lm, dtype=torch.bool), replay, distil, {})


def released(case, function):
    """A golden case in our terms -> (QA loss, LM loss, gradients), from the plain losses and our token weights.

    get_distil_losses is `added` with soft targets on current rows; get_losses is `joint` without them."""
    soft = function == "get_distil_losses"
    replay = torch.tensor(case["is_extra"], dtype=torch.bool)
    logits = {s: double(case[f"student_{s}"]).requires_grad_() for s in ("qa", "lm")}
    batch, where = [], []
    for stream, labels in (("qa", case["Y"]), ("lm", case["gen_Y"])):
        for distil in (True, False) if soft else (False,):
            rows = (~replay if distil else replay) if soft else torch.ones(len(replay), dtype=torch.bool)
            at = (y := torch.tensor(labels)) != IGNORE
            at[~rows] = False
            batch.append(supervised(y[at], stream == "lm", replay[:, None].expand_as(at)[at], distil))
            where.append((stream, at))
    ans_weight = case["tokens_weight"][case["ans_id"]]
    rule = "added" if soft else "joint"
    weights = kd.token_weights(batch, rule, case["ans_id"], ans_weight, case["lm_lambda"])
    losses = {"qa": 0.0, "lm": 0.0}
    for rows, w, (stream, at) in zip(batch, weights, where):
        z = logits[stream][at]
        if rows.distil:
            same_vocabulary = case["vocab"] == case["teacher_vocab"]  # ours always is; the rest tests the weighting
            loss = (kd.word_kd if same_vocabulary else padded_kd)(
                z, double(case[f"teacher_{stream}"])[at], case["temperature"]
            )
        else:
            loss = kd.nll(z, rows.labels)
        losses[stream] = losses[stream] + (loss * w.double()).sum()
    sum(losses.values()).backward()
    return losses, {s: logits[s].grad for s in logits}


@pytest.mark.parametrize("function", ["get_distil_losses", "get_losses"])
def test_losses_and_gradients_of_mixed_batches_equal_the_released_ones(golden, function):
    compared = 0
    for case in golden("kd_loss")["cases"]:
        if case["seq_train_type"] == "finetune":  # QA alone; finetune has no distillation here
            continue
        wanted = case["expected"][function]
        losses, grads = released(case, function)
        for stream in ("qa", "lm"):
            if wanted[f"{stream}_loss"] == "nan":  # released: the mean over no position; here that part is 0
                assert torch.isfinite(losses[stream]), case["name"]
            else:
                assert losses[stream].item() == pytest.approx(wanted[f"{stream}_loss"], rel=2e-7), case["name"]
            summary = wanted[f"grad_student_{stream}"]
            assert grads[stream].abs().sum().item() == pytest.approx(summary["l1"], rel=2e-7), case["name"]
            per_sample = grads[stream].abs().sum(dim=(1, 2)).tolist()
            assert per_sample == pytest.approx(summary["per_sample_l1"], rel=2e-7), case["name"]
        compared += 1
    assert compared >= 28


def test_finetune_is_the_released_qa_loss(golden, tok):
    """QA rows only, hard targets: what make_batch(lm=False) leaves of the loss."""
    compared = 0
    for case in golden("kd_loss")["cases"]:
        if case["seq_train_type"] == "finetune":
            at = (y := torch.tensor(case["Y"])) != IGNORE
            no = torch.zeros(int(at.sum()), dtype=torch.bool)
            (w,) = kd.token_weights([supervised(y[at], False, no, False)], "joint", case["ans_id"])
            loss = (kd.nll(double(case["student_qa"])[at], y[at]) * w.double()).sum().item()
            assert loss == pytest.approx(case["expected"]["get_losses"]["qa_loss"], rel=2e-7)
            compared += 1
    assert compared == 2


# ---------------------------------------------------------------------- laws


def test_kd_is_zero_for_identical_logits_and_its_gradient_is_known():
    z, t = torch.randn(2, 5, 11, dtype=torch.double)
    assert kd.word_kd(z, z, 2.0).abs().max() < 1e-12
    z.requires_grad_()
    kd.word_kd(z, t, 2.0).sum().backward()
    torch.testing.assert_close(z.grad, 2.0 * ((z / 2).softmax(-1) - (t / 2).softmax(-1)))


def test_kd_has_the_gradient_of_the_papers_cross_entropy_at_temperature_1():
    z, t = torch.randn(2, 5, 11, dtype=torch.double)
    z.requires_grad_()
    kd.word_kd(z, t, 1.0).sum().backward()
    grad, z.grad = z.grad, None
    (-(t.softmax(-1) * z.log_softmax(-1)).sum()).backward()
    torch.testing.assert_close(grad, z.grad)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [(torch.double, 1e-12), (torch.float, 2e-6)])
def test_the_fused_loss_equals_the_plain_one(soft, dtype, tolerance):
    torch.manual_seed(0)
    N, V, C = 150, 301, 16  # more than two chunks, and a rest
    h, W = torch.randn(N, C, dtype=dtype, requires_grad=True), torch.randn(V, C, dtype=dtype, requires_grad=True)
    targets, w = torch.randint(V, (N,)), torch.rand(N, dtype=dtype)
    teacher = (torch.randn(N, C, dtype=dtype), torch.randn(V, C, dtype=dtype)) if soft else None
    fused, parts = kd.FusedLoss.apply(h, W, w, targets, teacher, 2.0, 1.0)
    grads = torch.autograd.grad(fused, (h, W))
    z = h @ W.t()
    plain = kd.word_kd(z, teacher[0] @ teacher[1].t(), 2.0) if soft else kd.nll(z, targets)
    torch.testing.assert_close(parts, (plain * w).detach(), rtol=10 * tolerance, atol=10 * tolerance)
    torch.testing.assert_close(fused, (plain * w).sum(), rtol=tolerance, atol=0)
    for a, b in zip(grads, torch.autograd.grad((plain * w).sum(), (h, W))):
        assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("soft", [False, True])
def test_the_fused_gradient_is_the_derivative_of_the_fused_loss(soft):
    torch.manual_seed(0)
    h, W = (torch.randn(n, 4, dtype=torch.double, requires_grad=True) for n in (5, 9))
    teacher = (torch.randn(5, 4, dtype=torch.double), torch.randn(9, 4, dtype=torch.double)) if soft else None
    w, targets = torch.rand(5, dtype=torch.double), torch.randint(9, (5,))
    assert torch.autograd.gradcheck(lambda h, W: kd.FusedLoss.apply(h, W, w, targets, teacher, 2.0, 1.0)[0], (h, W))


def batch_of(tok, replay, distil=True, micro_batch=0, lm=True):
    g = torch.Generator().manual_seed(1)
    examples = []
    for c, q, a in torch.randint(1, 25, (len(replay), 3), generator=g).tolist():
        ids = [torch.randint(256, (n,), generator=g).tolist() for n in (c, q, a)]
        examples.append(encode_parts(*ids, tok.first_slot, tok, 90))
    return make_batch(examples, range(len(replay)), replay.count(False), distil, lm, micro_batch)  # current ones first


def gradients(model, teacher, batch, tok, rule):
    model.zero_grad()
    teacher = teacher and kd.Teacher(teacher)
    for rows, w in zip(batch, kd.token_weights(batch, rule, tok.ans_id)):
        kd.rows_loss(model, teacher, rows, w, 2.0)[0].backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.fixture
def pair(tok):
    student, teacher = nano(noise=0.05).eval(), nano().eval().requires_grad_(False)
    return student, teacher


@pytest.mark.parametrize("rule", ["joint", "added"])
@pytest.mark.parametrize("distil", [True, False])
@pytest.mark.parametrize("dtype, tolerance", [(torch.double, 1e-12), (torch.float, 1e-5)])
def test_a_micro_batched_update_has_the_gradients_of_the_whole_one(tok, pair, rule, distil, dtype, tolerance):
    student, teacher = (model.to(dtype) for model in pair)
    replay = [False, True, False, False, True, False]
    whole = gradients(student, teacher, batch_of(tok, replay, distil), tok, rule)
    for micro_batch in (1, 2):
        split = gradients(student, teacher, batch_of(tok, replay, distil, micro_batch), tok, rule)
        for name, grad in whole.items():
            assert (split[name] - grad).abs().max() <= tolerance * grad.abs().max(), name


@pytest.mark.parametrize("distil", [True, False])
def test_packed_rows_and_logits_at_supervised_positions_only_lose_nothing(tok, pair, distil):
    """The loss and gradients of a batch equal those of the textbook way: padded rows, all logits (R, T, V), a mask."""
    student, teacher = (model.double() for model in pair)
    batch = batch_of(tok, [False, True, False], distil)
    short = gradients(student, teacher, batch, tok, "added")
    student.zero_grad()
    for rows, w in zip(batch, kd.token_weights(batch, "added", tok.ans_id)):
        starts = (rows.packing.position == 0).nonzero()[:, 0].tolist()
        parts = [rows.ids[a:b] for a, b in pairwise([*starts, len(rows.ids)])]
        ids = pad_sequence(parts, batch_first=True, padding_value=tok.pad_id)  # (R, T)
        real = torch.arange(ids.size(1)) < torch.tensor([len(part) for part in parts])[:, None]
        z, t = (model(ids)[real][rows.supervised] for model in (student, teacher))  # (S, V)
        loss = kd.word_kd(z, t, 2.0) if rows.distil else kd.nll(z, rows.labels)
        (loss * w.double()).sum().backward()
    for name, p in student.named_parameters():
        assert (short[name] - p.grad).abs().max() <= 1e-12 * p.grad.abs().max(), name


@pytest.mark.parametrize("rule", ["joint", "added"])
def test_all_replay_batch_is_finite_and_equals_a_batch_without_a_teacher(tok, pair, rule):
    student, teacher = pair
    with_teacher = gradients(student, teacher, batch_of(tok, [True] * 4), tok, rule)
    without = gradients(student, None, batch_of(tok, [False] * 4, distil=False), tok, rule)
    for name, grad in with_teacher.items():
        assert grad.isfinite().all()
        torch.testing.assert_close(grad, without[name])


def test_kd_and_nll_supervise_the_same_positions(tok, pair):
    """Only the logits at supervised positions have a gradient, for both losses the same ones."""
    student, teacher = pair
    touched = {}
    for distil in (True, False):
        positions = set()
        for rows in batch_of(tok, [False] * 4, distil):
            hidden = student.hidden(rows.ids, rows.packing).detach().requires_grad_()
            fake = copy.copy(student)
            fake.hidden = lambda ids, packing, hidden=hidden: hidden
            kd.rows_loss(fake, kd.Teacher(teacher), rows, torch.ones(rows.labels.shape), 2.0)[0].backward()
            moved = (hidden.grad.abs().sum(-1) > 0).nonzero()[:, 0]
            assert torch.equal(moved, rows.supervised)
            positions |= set(zip(rows.packing.position[moved].tolist(), rows.labels.tolist()))
        touched[distil] = positions
    assert touched[True] == touched[False]


def test_added_weighs_replay_by_its_parts_and_joint_by_its_tokens(tok):
    batch = batch_of(tok, [False, True, False, False], distil=False)
    total = {}
    for rule in ("joint", "added"):
        for rows, w in zip(batch, kd.token_weights(batch, rule, tok.ans_id)):
            for lm, old, weight in zip(rows.lm.tolist(), rows.replay.tolist(), w.tolist()):
                key = rule, lm, old
                total[key] = total.get(key, 0.0) + weight
    for lm, scale in ((False, 1.0), (True, 0.25)):
        assert total["joint", lm, True] + total["joint", lm, False] == pytest.approx(scale)
        assert total["added", lm, True] == pytest.approx(scale) == total["added", lm, False]


def test_ans_counts_five_times_as_a_target_of_nll_and_once_of_kd(tok):
    for distil in (False, True):
        (w,) = kd.token_weights(batch := batch_of(tok, [False], distil, micro_batch=1), "joint", tok.ans_id)
        labels, w = batch[0].labels[batch[0].lm], w[batch[0].lm]
        other = w[labels != tok.ans_id]
        assert w[labels == tok.ans_id].item() == pytest.approx((1 if distil else 5) * other[0].item())


@pytest.mark.parametrize("soft", [False, True])
def test_half_precision_keeps_small_gradients_through_the_loss_scale(soft):
    """fp16 can't hold 1e-8: without the scale in the forward the gradient would be 0."""
    torch.manual_seed(0)
    h, W = torch.randn(4, 8, requires_grad=True), torch.randn(9, 8, requires_grad=True)
    teacher = (torch.randn(4, 8).half(), torch.randn(9, 8).half()) if soft else None
    w, targets = torch.full((4,), 1e-8), torch.randint(9, (4,))
    with torch.autocast("cpu", torch.float16):
        loss, _ = kd.FusedLoss.apply(h, W, w, targets, teacher, 2.0, 2.0**16)
    (loss * 2.0**16).backward()
    scaled = W.grad / 2.0**16
    exact = kd.FusedLoss.apply(h, W, w, targets, teacher and tuple(t.float() for t in teacher), 2.0, 1.0)[0]
    (wanted,) = torch.autograd.grad(exact, W)
    assert (scaled - wanted).abs().max() < 0.02 * wanted.abs().max()


def test_what_a_teacher_remembers_is_what_it_would_say_whoever_shares_the_batch(tok, pair):
    model = pair[1].double()
    teacher = kd.Teacher(model)
    batch = batch_of(tok, [False] * 6)
    fresh = [teacher.states(rows) for rows in batch]
    teacher.remember(batch_of(tok, [False] * 6, micro_batch=1))
    model.hidden = None  # it is not asked again
    for rows, states in zip(batch, fresh):
        torch.testing.assert_close(teacher.states(rows), states, rtol=1e-12, atol=1e-12)


def test_a_weighted_fused_loss_has_the_weighted_gradient():
    """The gradients are made in the forward: a factor that comes after it must not be lost."""
    torch.manual_seed(0)
    h, W = torch.randn(4, 8, requires_grad=True), torch.randn(9, 8, requires_grad=True)
    args = torch.rand(4), torch.randint(9, (4,)), None, 1.0, 1.0
    once = torch.autograd.grad(kd.FusedLoss.apply(h, W, *args)[0], (h, W))
    half = torch.autograd.grad(0.5 * kd.FusedLoss.apply(h, W, *args)[0], (h, W))
    for a, b in zip(once, half):
        torch.testing.assert_close(0.5 * a, b)
