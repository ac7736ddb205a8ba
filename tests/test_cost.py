"""What is predicted of an experiment's cost is counted right. python -m pytest tests/test_cost.py"""

import pytest
import torch
from tiny import seeded
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import kd
from data import encode_parts, make_batch
from lab.check.launches import NARROW, Launches, SizeOnly
from lab.fast import decode
from lab.paper import cost
from lab.paper.cost import Card, Rows
from lab.paper.runs import RunKey
from lab.tasks import load_task
from model import GPT, GPTConfig, causal

CARD = Card(1e15, 1e13, 1e-5, 1e9)


def card(**changes) -> Card:
    """One on which all is free but for the changes."""
    return Card(1e30, 1e30, 0.0, 1e30)._replace(**changes)


def set_shape(monkeypatch, shape) -> None:
    for name, value in (("SHAPE", shape), ("C", shape.n_embd), ("V", shape.vocab_size)):
        monkeypatch.setattr(cost, name, value)
    monkeypatch.setattr(cost, "BLOCKS", 12 * shape.n_layer * shape.n_embd**2)


def update_of(tok, shape, lm=True, distil=False):
    """A model, and a function that makes the forward and backward pass of three examples with 19 tokens."""
    model, teacher = GPT(shape), kd.Teacher(GPT(shape)) if distil else None
    example = encode_parts([5] * 9, [6] * 5, [7] * 4, tok.task_id("woz"), tok, 99)
    batch = make_batch([example] * 3, range(3), 3, lm, distil)
    if distil:
        teacher.remember([example], True, 2**30)
        for group in batch:
            teacher.states(group.rows)  # counted apart: `passes`

    def update():
        for group in batch:
            kd.group_loss(model, teacher, group, torch.ones(len(group.labels)), 2.0)[0].backward()

    return model, update


@pytest.mark.parametrize(("lm", "distil"), [(True, False), (False, False), (True, True)])
def test_the_operations_of_an_update_are_those_that_torch_counts(lm, distil, tok, monkeypatch):
    shape = GPTConfig(vocab_size=tok.n_vocab, n_embd=32, n_layer=2, n_head=2)
    _, update = update_of(tok, shape, lm, distil)
    with FlopCounterMode(display=False) as counter:
        update()
    counts = counter.get_flop_counts()["Global"]
    counted = sum(n for op, n in counts.items() if "attention" not in str(op) and "bmm" not in str(op))
    counted += 2 * 3 * (25 if lm else 5) * 32 * tok.n_vocab  # the head's gradient, addmm_, which torch leaves out
    set_shape(monkeypatch, shape)
    assert cost.epoch_flops(3, Rows(9 + 5 + 1 + 4, 4, 4, 0), lm, distil) == counted


class Touched(Launches):
    """Counts the bytes that operations read and write, too."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        before, out = self.n, super().__torch_dispatch__(function, types, args, kwargs)
        if self.n > before:
            self.size += sum(x.nbytes for x in tree_leaves((args, kwargs, out)) if torch.is_tensor(x))
        return out


@pytest.mark.parametrize("distil", [False, True])
def test_the_bytes_of_an_update_are_those_that_operations_touch(distil, tok, monkeypatch):
    """In bfloat16. Attention's dropout is left out: it is inside a GPU's kernel, but many operations on a CPU."""
    shape = GPTConfig(vocab_size=tok.n_vocab, n_embd=128, n_layer=4, n_head=2)
    monkeypatch.setattr(GPT, "causal", staticmethod(lambda qkv, dropout: causal(qkv, 0.0)))
    model, update = update_of(tok, shape, distil=distil)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    with Touched() as touched:
        with torch.autocast("cpu", torch.bfloat16):
            update()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    set_shape(monkeypatch, shape)
    predicted = cost.epoch_bytes(3, Rows(19, 4, 4, 0), kd=distil) + cost.update_bytes()
    assert predicted == pytest.approx(touched.size, rel=0.1)


def test_the_largest_of_launches_operations_and_bytes_is_charged():
    rows, updates = cost.TOKENS["sql"], 9 * 6000 / 4
    launches = cost.learning(card(launch=1.0), 6000, rows, 9)
    assert launches == updates * rows.launches
    arithmetic = cost.learning(card(peak=1e12), 6000, rows, 9)
    assert arithmetic == pytest.approx(9 * cost.epoch_flops(6000, rows) / cost.efficiency(rows) / 1e12)
    size = cost.learning(card(bandwidth=1e12), 6000, rows, 9)
    assert size == pytest.approx((9 * cost.epoch_bytes(6000, rows) + updates * cost.update_bytes()) / 1e12)
    for launch, bandwidth in ((1.0, 1e12), (0.0, 1e12), (0.0, 1e9)):
        both = cost.learning(card(peak=1e12, launch=launch, bandwidth=bandwidth), 6000, rows, 9)
        assert both == pytest.approx(max(launch * launches, arithmetic, size * 1e12 / bandwidth))
    huge = Rows(5000.0, 10.0, 10, 1000)  # 40,004 tokens an update: two groups
    assert cost.learning(card(launch=1.0), 6000, huge, 1) == 1500 * 2 * 1000


def test_more_gpus_help_where_there_is_work_and_not_where_launches_take_the_time():
    fast, slow, rows = card(peak=1e15), card(launch=1.0), cost.TOKENS["sql"]
    one, eight = (cost.learning(fast._replace(ranks=r), 6000, rows, 9) for r in (1, 8))
    assert eight == pytest.approx(one / 8)
    assert cost.learning(slow, 6000, rows, 9) == cost.learning(slow._replace(ranks=8), 6000, rows, 9)


def test_a_checkpoint_is_paid_for_once_a_minute_and_at_an_end():
    """12 bytes a parameter with the moments; 8 at a stage's end, of which 4 are the model's folder, and 4 of a
    teacher's."""
    disk, size = card(disk=1.0), cost.parameters()
    for epoch, student, teacher in ((1.0, 0, 1), (7.0, 1, 1), (20.0, 3, 3), (31.0, 4, 5), (61.0, 9, 9)):
        assert cost.checkpoints(disk, 9 * epoch, 9, False) == size * (12 * student + 8), epoch
        assert cost.checkpoints(disk, 9 * epoch, 9, True) == size * (12 * teacher + 4), epoch
    assert size == sum(p.numel() for p in GPT(GPTConfig(cost.V)).parameters()) - 13 * 12 * 768 - 2 * 768  # vectors


def test_a_run_costs_more_with_a_teacher_and_single_is_teachers_alone():
    order = "woz,cnn,sql"
    finetune, lamol, word, seq, single = (
        cost.run_seconds(RunKey(order, label, 0), CARD)
        for label in ("finetune", "LAMOL", "Word-KD", "Seq-KD", "Single QA+LM")
    )
    assert finetune[1] == lamol[1] == single[0] == 0 and word[1] == seq[1] == single[1] > 0
    assert finetune[0] < lamol[0] <= word[0] and lamol[0] < seq[0]


def test_learning_counts_replay_and_a_teachers_states():
    """By hand: 1,000 examples, γ = 0.2 of one earlier task, nine epochs; the states once, whatever the epochs."""
    slow, new, old = card(peak=1e12), cost.TOKENS["woz"], cost.TOKENS["sql"]
    flops = 9 * (cost.epoch_flops(1000, new) + cost.epoch_flops(200, old))
    share = cost.efficiency(new)
    assert 0.2 < share < 0.3 and cost.learning(slow, 1000, new, 9, ["sql"]) == pytest.approx(flops / share / 1e12)
    head = 9 * 1000 * 2 * 50304 * 768 * (new.row + new.answer + 2)
    states = 1000 * 2 * 85e6 * (2 * new.row + 1)
    distilled = cost.learning(slow, 1000, new, 9, ["sql"], kd=True)
    assert distilled == pytest.approx((flops + head + states) / share / 1e12, rel=1e-3)
    plain, taught = (cost.learning(card(launch=1.0), 1000, new, 9, ["sql"], kd=kd) for kd in (False, True))
    assert taught - plain == pytest.approx(250 * cost.FORWARD)  # a teacher computes four samples at a time
    assert cost.BLOCK == kd.BLOCK


def test_a_teachers_states_are_computed_again_without_room_or_on_another_gpu():
    small = Rows(100.0, 10.0, 10, 1)
    assert cost.passes(CARD, 1000, small, 9) == 1
    room = cost.CACHE / (112 * 768 * 2)  # examples
    assert cost.passes(CARD, 2 * room, small, 9) == pytest.approx(1 + 8 * 0.5)
    assert cost.passes(CARD._replace(ranks=2), 1000, small, 3) == pytest.approx(1 + 1 / 2 + 1 / 4)
    assert cost.passes(CARD._replace(ranks=2), 4 * room, small, 3) == pytest.approx(1 + 3 / 4 + 3 / 4)


@pytest.mark.parametrize(
    ("n", "prompt", "new", "longest"), [(2000, 90, 16, 50), (1500, 500, 60, 130), (3000, 1, 70, 140)]
)
def test_decoding_takes_about_as_many_steps_as_the_decoder_itself(n, prompt, new, longest, monkeypatch):
    """With lengths between 1 and twice the mean, and one that is the longest."""
    ends = torch.randint(1, 2 * new, (n,), generator=seeded(0))
    ends[0] = longest
    monkeypatch.setattr(decode, "KVCache", SizeOnly)
    monkeypatch.setattr(SizeOnly, "steps", 0)
    decode.decode(
        GPT(NARROW), [[0] * prompt] * n, [longest] * n, 1, lambda logits, rows, t: (t + 1 >= ends[rows]).long()
    )
    rows = min(decode.MAX_ROWS, 2**31 // cost.COLUMN // (prompt + longest))  # the cache of a CPU
    assert cost.decoding_steps(n, new, longest, rows) == pytest.approx(SizeOnly.steps, rel=0.2)


def test_a_decoding_step_is_charged_by_launches_or_by_its_rows():
    """512 rows; their cache and all weights are read in each step. A quarter of them is refilled at once."""
    steps = 1024 * 50 / 512 + 100
    launches = cost.decoding(card(launch=1.0), 1024, 100, 50, 100)
    assert launches == pytest.approx(steps * cost.STEP + 1024 / 128 * cost.FORWARD)
    size = 2 * cost.parameters() + 512 * 200 * cost.COLUMN
    assert cost.COLUMN == 2 * 12 * 768 * 2
    assert cost.decoding(card(bandwidth=1e12), 1024, 100, 50, 100) == pytest.approx(steps * size / 1e12)
    eight = cost.decoding(card(launch=1.0, ranks=8), 1024, 100, 50, 100)
    assert eight == pytest.approx((128 * 50 / 512 + 100) * cost.STEP + 1 * cost.FORWARD)


def test_each_teacher_is_paid_for_once_and_eight_gpus_end_with_the_last_run(monkeypatch):
    keys = [RunKey("woz,sql", label, 0) for label in ("Single QA+LM", "LAMOL", "Word-KD", "Seq-KD")]
    monkeypatch.setattr(cost, "keys_of", lambda what, seeds: keys)
    monkeypatch.setattr(
        cost, "run_seconds", lambda key, card: {"Single QA+LM": (0, 50), "LAMOL": (10, 0)}.get(key.label, (20, 50))
    )
    seconds = cost.experiment_seconds("any", None)
    assert seconds == [50, 10, 20, 20]
    assert cost.side_by_side(seconds, 1) == 100 and cost.side_by_side(seconds, 8) == 50
    assert cost.side_by_side([3, 1, 1, 4], 2) == 6


def test_runs_that_are_drawn_are_scored_after_every_epoch():
    one = card(launch=1e-5)
    drawn, other = (cost.run_seconds(RunKey(o, "finetune", 0), one)[0] for o in ("woz,sql,cnn", "sql,woz,cnn"))
    scoring = (cost.decoding(one, cost.TABLE_1[t][1], *cost.prompts_of(cost.TOKENS[t])) for t in ("woz", "sql", "cnn"))
    assert drawn - other == pytest.approx(3 * 8 * sum(scoring))


def test_tokens_are_those_of_the_data(shared, gpt2_tok, tmp_path):
    for name in ("woz", "rnnlg.tv"):
        train = load_task(name, str(shared / "data"), str(tmp_path)).train
        n = [[len(gpt2_tok.encode(text)) for text in (e.context, e.question, e.answer)] for e in train]
        row, answer = sum(map(sum, n)) / len(n) + 1, sum(a for *_, a in n) / len(n)
        assert cost.TOKENS[name][:3] == pytest.approx((row, answer, max(a for *_, a in n)), abs=0.06)


def test_the_prediction_says_that_it_is_one(capsys):
    assert cost.main([]) == 0
    assert "PREDICTED" in capsys.readouterr().out
    for wrong in (["--peak", "0"], ["--launch-us", "nan"], ["--disk", "inf"]):
        with pytest.raises(SystemExit) as e:
            cost.main(wrong)
        assert e.value.code == 2
