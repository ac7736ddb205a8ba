"""What is predicted of an experiment's cost is counted right. python -m pytest tests/test_cost.py"""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import kd
from data import encode_parts, make_batch
from lab import cost
from lab.cost import Card, Rows
from lab.experiments import RunKey
from model import GPT, GPTConfig


@pytest.mark.parametrize(("lm", "distil"), [(True, False), (False, False), (True, True)])
def test_the_operations_of_an_update_are_those_that_torch_counts(lm, distil, tok, monkeypatch):
    shape = GPTConfig(vocab_size=tok.n_vocab, n_embd=32, n_layer=2, n_head=2)
    model, teacher = GPT(shape), kd.Teacher(GPT(shape).requires_grad_(False))
    example = encode_parts([5] * 9, [6] * 5, [7] * 4, tok.task_id("woz"), tok, 99)
    batch = make_batch([example] * 3, range(3), 3, distil, lm)
    teacher.remember(batch)
    with FlopCounterMode(display=False) as counter:
        for rows in batch:
            kd.rows_loss(model, teacher if distil else None, rows, torch.ones(len(rows.labels)), 2.0)[0].backward()
    counts = counter.get_flop_counts()["Global"]
    counted = sum(n for op, n in counts.items() if "attention" not in str(op) and "bmm" not in str(op))
    counted += 2 * 3 * (25 if lm else 5) * 32 * tok.n_vocab  # the head's gradient, addmm_, which torch leaves out
    monkeypatch.setattr(cost, "C", 32)
    monkeypatch.setattr(cost, "V", tok.n_vocab)
    monkeypatch.setattr(cost, "BLOCKS", 12 * 2 * 32**2)
    assert cost.epoch_flops(3, Rows(9 + 5 + 1 + 4, 4, 4), lm, distil) == counted


def test_more_gpus_help_where_there_is_work_and_not_where_launches_take_the_time():
    fast, slow = Card(1e15, 0.0, 0.0), Card(1e15, 1.0, 0.0)
    rows = cost.TOKENS["sql"]
    one, eight = (cost.learning(fast._replace(ranks=r), 6000, rows, 9) for r in (1, 8))
    assert eight == pytest.approx(one / 8)
    assert cost.learning(slow, 6000, rows, 9) == cost.learning(slow._replace(ranks=8), 6000, rows, 9) == 9 * 6000 / 4


def test_a_run_costs_more_with_a_teacher_and_single_is_teachers_alone():
    card = Card(1e15, 0.02, 0.01)
    order = "woz,cnn,sql"
    finetune, lamol, word, seq, single = (
        cost.run_seconds(RunKey(order, label, 0), card)
        for label in ("finetune", "LAMOL", "Word-KD", "Seq-KD", "Single QA+LM")
    )
    assert finetune[1] == lamol[1] == single[0] == 0 and word[1] == seq[1] == single[1] > 0
    assert finetune[0] < lamol[0] <= word[0] and lamol[0] < seq[0]


def test_the_prediction_says_that_it_is_one(capsys):
    assert cost.main([]) == 0
    assert "PREDICTED" in capsys.readouterr().out
    with pytest.raises(SystemExit) as e:
        cost.main(["--peak", "0"])
    assert e.value.code == 2
