"""The losses, against the authors' numbers and against the plain way. python -m pytest tests/test_kd.py"""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import assert_close, batch_of, gradients, samples_of, seeded, tiny
from torch.nn.utils.rnn import pad_sequence

import kd
from data import IGNORE, Group, Row
from lab.fast.chunked import Logits, chunked_loss
from lab.fast.packing import Layout

RULES = ("joint", "added")


def double(x):
    return torch.tensor(x, dtype=torch.double)


# ---------------------------------------------------------------------- the authors' numbers


def padded_kd(student, teacher, temperature):
    """In the authors' code a teacher may know fewer tokens. Its last probability is repeated, so they sum to over 1."""
    p = (teacher / temperature).softmax(-1)
    p = torch.cat([p, p[:, -1:].expand(-1, student.size(1) - p.size(1))], dim=1)
    return temperature**2 * (p * (p.log() - (student / temperature).log_softmax(-1))).sum(-1)


def supervised_tokens(labels, lm, replay, soft) -> Group:
    """A group that is nothing but its supervised tokens."""
    lm, replay, soft = (torch.as_tensor(x).expand(len(labels)) for x in (lm, replay, soft))
    return Group([], None, None, None, labels, lm, replay, soft.nonzero()[:, 0], (~soft).nonzero()[:, 0])


def losses_of(case, function):
    """A golden case by our functions -> the losses {"qa", "lm"}, and the gradients of the student's logits.

    get_distil_losses is the rule `added` with soft targets for current rows, get_losses is `joint` with labels. Logits
    are hidden states, whose head is the identity."""
    distil = function == "get_distil_losses"
    logits = {kind: double(case[f"student_{kind}"]).requires_grad_() for kind in ("qa", "lm")}
    old = torch.tensor(case["is_extra"], dtype=torch.bool)[:, None]
    batch, places = [], []
    for kind, labels in (("qa", case["Y"]), ("lm", case["gen_Y"])):
        at = (y := torch.tensor(labels)) != IGNORE
        replay = old.expand_as(at)[at]
        batch.append(supervised_tokens(y[at], kind == "lm", replay, ~replay & distil))
        places.append(at)
    options = case["tokens_weight"][case["ans_id"]], case["lm_lambda"]
    weights = kd.token_weights(batch, "added" if distil else "joint", case["ans_id"], *options)
    losses = {}
    for kind, group, w, at in zip(logits, batch, weights, places):
        target = double(case[f"teacher_{kind}"])[at][group.soft]
        teacher = SimpleNamespace(logits=lambda group, t=target: Logits(t, torch.eye(t.size(1), dtype=torch.double)))
        terms = kd.terms(group, w.double(), teacher, case["temperature"])
        if case["vocab"] != case["teacher_vocab"]:  # ours are always the same, so this checks the weights alone
            loss = lambda z, t, case=case: padded_kd(z, t, case["temperature"])  # noqa: E731
            terms[1:] = [replace(term, loss=loss) for term in terms[1:]]
        loss, _ = chunked_loss(logits[kind][at], torch.eye(case["vocab"], dtype=torch.double), terms)
        loss.backward()
        losses[kind] = loss.item()
    return losses, {kind: z.grad for kind, z in logits.items()}


@pytest.mark.parametrize("function", ["get_distil_losses", "get_losses"])
def test_losses_and_gradients_of_mixed_batches_equal_the_authors(golden, function):
    compared = 0
    for case in golden("kd_loss")["cases"]:
        if case["seq_train_type"] == "finetune":  # has QA rows only, and never a teacher here: see below
            continue
        wanted = case["expected"][function]
        losses, grads = losses_of(case, function)
        for kind in ("qa", "lm"):
            if wanted[f"{kind}_loss"] == "nan":  # theirs is the mean over no position; here that part is 0
                assert losses[kind] == losses[kind] < float("inf"), case["name"]
            else:
                assert losses[kind] == pytest.approx(wanted[f"{kind}_loss"], rel=2e-7), case["name"]
            summary, sizes = wanted[f"grad_student_{kind}"], grads[kind].abs()
            assert sizes.sum().item() == pytest.approx(summary["l1"], rel=2e-7), case["name"]
            assert sizes.max().item() == pytest.approx(summary["max_abs"], rel=2e-7), case["name"]
            assert sizes.sum(dim=(1, 2)).tolist() == pytest.approx(summary["per_sample_l1"], rel=2e-7), case["name"]
        compared += 1
    assert compared == 28


def test_finetune_is_the_authors_qa_loss(golden):
    """QA rows only, hard targets: what make_batch(lm=False) leaves of the loss."""
    compared = 0
    for case in golden("kd_loss")["cases"]:
        if case["seq_train_type"] == "finetune":
            at = (y := torch.tensor(case["Y"])) != IGNORE
            (w,) = kd.token_weights([supervised_tokens(y[at], False, False, False)], "joint", case["ans_id"])
            loss = (kd.nll(double(case["student_qa"])[at], y[at]) * w.double()).sum().item()
            assert loss == pytest.approx(case["expected"]["get_losses"]["qa_loss"], rel=2e-7)
            compared += 1
    assert compared == 2


# ---------------------------------------------------------------------- a token's loss


def test_kd_is_zero_for_identical_logits_and_its_gradient_is_known():
    z, t = torch.randn(2, 5, 11, generator=seeded(0), dtype=torch.double)
    assert kd.word_kd(z, z, 2.0).abs().max() < 1e-12
    z.requires_grad_()
    kd.word_kd(z, t, 2.0).sum().backward()
    torch.testing.assert_close(z.grad, 2.0 * ((z / 2).softmax(-1) - (t / 2).softmax(-1)))


def test_at_temperature_1_kd_is_the_papers_cross_entropy_less_the_teachers_entropy():
    z, t = torch.randn(2, 5, 11, generator=seeded(0), dtype=torch.double)
    cross_entropy = -(t.softmax(-1) * z.log_softmax(-1)).sum(-1)
    entropy = -(t.softmax(-1) * t.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(kd.word_kd(z, t, 1.0), cross_entropy - entropy)


def test_nll_is_minus_the_log_probability_of_the_target():
    z, y = torch.randn(5, 11, generator=seeded(0), dtype=torch.double), torch.tensor([3, 0, 10, 3, 7])
    torch.testing.assert_close(kd.nll(z, y), -z.softmax(-1)[range(5), y].log())


# ---------------------------------------------------------------------- what each token counts


def totals(batch, weights):
    """The sum of the weights of each part of a batch, by (LM, replay)."""
    found = {}
    for group, w in zip(batch, weights):
        for lm, replay, weight in zip(group.lm.tolist(), group.replay.tolist(), w.tolist()):
            found[lm, replay] = found.get((lm, replay), 0.0) + weight
    return found


@pytest.mark.parametrize("soft", [False, True])
def test_joint_weighs_replay_by_its_tokens_and_added_as_much_as_all_current_rows(tok, soft):
    batch = batch_of(tok, 3, 1, soft=soft)
    counts = totals(
        batch, [torch.ones(len(g.labels)).index_fill(0, g.hard[g.labels[g.hard] == tok.ans_id], 5.0) for g in batch]
    )
    joint, added = (totals(batch, kd.token_weights(batch, rule, tok.ans_id)) for rule in RULES)
    for lm, scale in ((False, 1.0), (True, 0.25)):
        n = counts[lm, True] + counts[lm, False]
        for old in (False, True):
            assert joint[lm, old] == pytest.approx(scale * counts[lm, old] / n)
            assert added[lm, old] == pytest.approx(scale)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("parts", [(4, 0, True), (0, 4, True), (4, 0, False)])
def test_a_part_without_tokens_changes_no_other_weight(tok, rule, parts):
    """No replay, nothing but replay, no LM rows: what there is has the sum 1, or λ."""
    *sizes, lm = parts
    batch = batch_of(tok, *sizes, lm=lm)
    weights = kd.token_weights(batch, rule, tok.ans_id, lm_lambda=0.5)
    wanted = {(False, sizes[0] == 0): 1.0} | ({(True, sizes[0] == 0): 0.5} if lm else {})
    assert totals(batch, weights) == pytest.approx(wanted)
    assert all(w.isfinite().all() for w in weights)


def test_ans_counts_five_times_as_a_hard_target_and_once_as_a_soft_one(tok):
    for rule in RULES:
        batch = batch_of(tok, 2, 2, soft=True)
        for group, w in zip(batch, kd.token_weights(batch, rule, tok.ans_id, ans_weight=5.0)):
            for part in (group.lm & group.replay, group.lm & ~group.replay):
                ans = part & (group.labels == tok.ans_id)
                assert ans.sum() == 2
                others = w[part & ~ans]
                times = 5 if group.replay[part][0] else 1
                torch.testing.assert_close(w[ans], times * others[:2])
                assert (others == others[0]).all()


@pytest.mark.parametrize("rule", RULES)
def test_how_a_batch_is_laid_out_changes_no_weight(tok, rule):
    found = []
    for layout in (Layout(), Layout(rows=1), Layout(rows=3, processes=2)):
        batch = batch_of(tok, 4, 3, soft=True, layout=layout)
        of_row = {}
        for group, w in zip(batch, kd.token_weights(batch, rule, tok.ans_id)):
            sizes = [sum(label != IGNORE for label in row.labels) for row in group.rows]
            for row, part in zip(group.rows, w.split(sizes)):
                of_row |= {(row.sample.id, row.lm, i): weight for i, weight in enumerate(part.tolist())}
        found.append(of_row)
    assert len({(id, lm) for id, lm, _ in found[0]}) == 14
    assert found[0] == pytest.approx(found[1]) and found[0] == pytest.approx(found[2])


# ---------------------------------------------------------------------- the loss of a group


def update(student, teacher, batch, weights, temperature=2.0):
    """The loss of a batch as it trains, what each token adds to it, and the gradients."""
    loss, parts = 0.0, []
    for group, w in zip(batch, weights):
        of_group, of_tokens = kd.group_loss(student, teacher, group, w, temperature)
        of_group.backward()
        loss += of_group.item()
        parts.append(of_tokens)
    return loss, torch.cat(parts), gradients(student)


def plain_update(student, teacher, batch, weights, temperature=2.0, distance=kd.word_kd):
    """The textbook's way: padded rows, all logits (R, T, V), a mask."""
    loss, parts = 0.0, []
    for group, w in zip(batch, weights):
        ids, labels = (
            pad_sequence([torch.tensor(getattr(row, name)) for row in group.rows], batch_first=True, padding_value=pad)
            for name, pad in (("ids", 0), ("labels", IGNORE))
        )
        at = labels != IGNORE
        z = student(ids)[at]  # (S, V)
        losses = kd.nll(z, labels[at])
        if len(group.soft):
            with torch.no_grad():
                t = teacher(ids)[at]
            losses = losses.index_copy(0, group.soft, distance(z, t, temperature)[group.soft])
        parts.append(losses * w.double())
    loss = torch.cat(parts).sum()
    loss.backward()
    return loss.item(), torch.cat(parts).detach(), gradients(student)


@pytest.fixture
def pair(tok):
    """A student and the model of its teacher."""
    return tiny(0, tok.n_vocab), tiny(1, tok.n_vocab)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("soft", [True, False], ids=["word", "none"])
@pytest.mark.parametrize("layout", [Layout(), Layout(rows=1), Layout(rows=4)], ids=["one group", "rows", "groups"])
def test_a_batch_has_the_loss_and_gradients_of_the_plain_way_however_it_is_laid_out(tok, pair, rule, soft, layout):
    student, model = pair
    batch = batch_of(tok, 3, 2, soft=soft, layout=layout)
    weights = kd.token_weights(batch, rule, tok.ans_id)
    loss, parts, grads = update(student, kd.Teacher(model) if soft else None, batch, weights)
    wanted, wanted_parts, wanted_grads = plain_update(student, model, batch, weights)
    assert loss == pytest.approx(wanted, rel=1e-12)
    torch.testing.assert_close(parts, wanted_parts, rtol=1e-10, atol=1e-12)
    assert_close(grads, wanted_grads, 1e-12)


def test_each_token_may_be_hard_or_soft(tok, pair):
    """Which of them learn from the teacher is decided by two lists of tokens, and by nothing else."""
    student, model = pair
    (group,) = batch_of(tok, 4, soft=True)
    weights = torch.rand(len(group.labels), generator=seeded(0))
    for share in (0.0, 0.3, 1.0):
        is_soft = torch.rand(len(weights), generator=seeded(1)) < share
        group.soft, group.hard = is_soft.nonzero()[:, 0], (~is_soft).nonzero()[:, 0]
        loss, parts, grads = update(student, kd.Teacher(model), [group], [weights])
        wanted, wanted_parts, wanted_grads = plain_update(student, model, [group], [weights])
        assert loss == pytest.approx(wanted, rel=1e-12)
        torch.testing.assert_close(parts, wanted_parts, rtol=1e-10, atol=1e-12)
        assert_close(grads, wanted_grads, 1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_an_all_replay_batch_is_finite_and_equals_a_batch_without_a_teacher(tok, pair, rule):
    student, model = pair
    found = []
    for batch, teacher in ((batch_of(tok, 0, 4, soft=True), kd.Teacher(model)), (batch_of(tok, 4), None)):
        loss, _, grads = update(student, teacher, batch, kd.token_weights(batch, rule, tok.ans_id))
        found.append(grads)
        assert 0 < loss < float("inf")
    assert_close(found[0], found[1], 1e-12)


def test_kd_and_nll_supervise_the_same_positions_and_compute_no_other_logits(tok, pair, monkeypatch):
    student, model = pair
    sizes = []

    def spy(hidden, *more):
        sizes.append(len(hidden))
        return chunked_loss(hidden, *more)

    monkeypatch.setattr(kd, "chunked_loss", spy)
    for soft in (True, False):
        (group,) = batch_of(tok, 3, 1, soft=soft)
        labels = torch.tensor([label for row in group.rows for label in row.labels])
        attend = group.packing.within_rows(student.causal)
        hidden = student.hidden(group.ids, group.packing.position, attend).detach().requires_grad_()
        fake = SimpleNamespace(hidden=lambda *_, hidden=hidden: hidden, head=student.head, causal=student.causal)
        kd.group_loss(fake, kd.Teacher(model), group, torch.ones(len(group.labels)), 2.0)[0].backward()
        assert torch.equal(hidden.grad[0].abs().sum(-1) > 0, labels != IGNORE)
        assert sizes.pop() == (labels != IGNORE).sum() < len(labels)


def test_swapping_the_arguments_of_kl_div_trains_by_the_reverse_kl(tok, pair, tmp_path):
    """What is read is what runs: one edit of `word_kd`, and no other, changes the gradient that trains."""
    text, forward, reverse = Path(kd.__file__).read_text(), "F.kl_div(student, teacher,", "F.kl_div(teacher, student,"
    assert text.count(forward) == 1
    (tmp_path / "kd.py").write_text(text.replace(forward, reverse))
    spec = importlib.util.spec_from_file_location("reversed_kd", tmp_path / "kd.py")
    edited = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(edited)

    def student_teacher_kl(z, t, temperature):
        q, p = (z / temperature).softmax(-1), (t / temperature).softmax(-1)
        return temperature**2 * (q * (q / p).log()).sum(-1)

    student, model = pair
    (group,) = batch_of(tok, 3, 1, soft=True)
    weights = torch.rand(len(group.labels), generator=seeded(0))
    loss, _ = edited.group_loss(student, edited.Teacher(model), group, weights, 2.0)
    loss.backward()
    grads = gradients(student)
    wanted, _, reversed_grads = plain_update(student, model, [group], [weights], distance=student_teacher_kl)
    _, _, forward_grads = plain_update(student, model, [group], [weights])
    assert loss.item() == pytest.approx(wanted, rel=1e-10)
    assert_close(grads, reversed_grads, 1e-10)
    with pytest.raises(AssertionError):
        assert_close(grads, forward_grads, 0.01)


# ---------------------------------------------------------------------- the teacher


class Asked:
    """How many tokens, by which ids, a model was asked for."""

    def __init__(self, model, monkeypatch):
        self.ids, hidden = [], model.hidden

        def spy(ids, *more):
            self.ids.append(ids.flatten().tolist())
            return hidden(ids, *more)

        monkeypatch.setattr(model, "hidden", spy)

    def tokens(self) -> int:
        found = sum(map(len, self.ids))
        self.ids.clear()
        return found


def supervised(rows) -> int:
    return sum(label != IGNORE for row in rows for label in row.labels)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_a_teacher_computes_the_states_of_a_row_once_as_far_as_its_memory_goes(tok, pair, monkeypatch, share):
    """Alone or with others, known or not, in any order: they are the same. Over the budget they are computed again."""
    model, samples = pair[1], samples_of(12, tok)
    rows = [Row(sample, lm, False) for sample in samples for lm in (False, True)]
    with torch.no_grad():
        alone = [model.hidden(torch.tensor([r.ids]))[0, torch.tensor(r.labels) != IGNORE] for r in rows]
    budget = int(share * sum(state.nbytes for state in alone))
    asked, teacher = Asked(model, monkeypatch), kd.Teacher(model)
    teacher.remember(samples, True, budget)
    blocks = {1.0: 3, 0.5: 1, 0.0: 0}[share]  # of four samples each
    assert list(teacher.blocks) == samples[: 4 * blocks]
    seen = set()
    for order in (list(range(0, 24, 2)), list(range(24)), list(reversed(range(24))), [5, 20]):
        touched = {i // 8 for i in order if i // 8 < blocks} - seen
        seen |= touched
        found = teacher.states([rows[i] for i in order])
        torch.testing.assert_close(found, torch.cat([alone[i] for i in order]), rtol=1e-12, atol=1e-12)
        assert not found.requires_grad
        computed = [i for i in range(24) if i // 8 in touched] + [i for i in order if i // 8 >= blocks]
        assert asked.tokens() == sum(len(rows[i].ids) for i in computed)
    assert sum(state.nbytes for state in teacher.cache.values()) <= budget


def test_what_a_teacher_remembers_does_not_depend_on_who_asked_first(tok):
    """Not to a bit, in float32, too: so a run that is resumed, in the midst of another epoch, has the same targets."""
    model, samples = tiny(1, tok.n_vocab, dtype=torch.float), samples_of(16, tok, longest=20)
    rows, found = [Row(sample, True, False) for sample in samples], []
    for order in (list(range(16)), [7, 3, 11], [15, 0, 9, 4, 2]):
        teacher = kd.Teacher(model)
        teacher.remember(samples, True, 2**30)
        for i in order:
            teacher.states([rows[i]])
        found.append(teacher.states(rows))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_teacher_never_sees_replayed_rows(tok, pair, monkeypatch):
    student, model = pair
    asked = Asked(model, monkeypatch)
    for sizes, wanted in (((3, 3), True), ((0, 3), False)):
        (group,) = batch_of(tok, *sizes, soft=True)
        kd.group_loss(student, kd.Teacher(model), group, torch.ones(len(group.labels)), 2.0)
        current = [i for row in group.rows if not row.replay for i in row.ids]
        assert asked.ids == ([current] if wanted else [])
        asked.ids.clear()


def test_a_teacher_is_frozen_and_learns_nothing(tok, pair):
    student, model = pair
    before = {name: p.clone() for name, p in model.named_parameters()}
    teacher = kd.Teacher(model.train())
    assert not teacher.model.training and not any(p.requires_grad for p in teacher.model.parameters())
    batch = batch_of(tok, 3, soft=True)
    update(student, teacher, batch, kd.token_weights(batch, "added", tok.ans_id))
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in model.named_parameters())
