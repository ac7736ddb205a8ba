"""What is predicted of an experiment's cost is counted right. python -m pytest tests/test_cost.py"""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import kd
from data import encode_parts, make_batch
from lab.paper import cost
from lab.paper.cost import Card, Rows
from lab.paper.runs import RunKey
from lab.tasks import load_task
from model import GPT, GPTConfig


@pytest.mark.parametrize(("lm", "distil"), [(True, False), (False, False), (True, True)])
def test_the_operations_of_an_update_are_those_that_torch_counts(lm, distil, tok, monkeypatch):
    shape = GPTConfig(vocab_size=tok.n_vocab, n_embd=32, n_layer=2, n_head=2)
    model, teacher = GPT(shape), kd.Teacher(GPT(shape)) if distil else None
    example = encode_parts([5] * 9, [6] * 5, [7] * 4, tok.task_id("woz"), tok, 99)
    batch = make_batch([example] * 3, range(3), 3, lm, distil)
    if distil:
        teacher.remember([example], True, 2**30)
        for group in batch:
            teacher.states(group.rows)  # counted apart: `passes`
    with FlopCounterMode(display=False) as counter:
        for group in batch:
            kd.group_loss(model, teacher, group, torch.ones(len(group.labels)), 2.0)[0].backward()
    counts = counter.get_flop_counts()["Global"]
    counted = sum(n for op, n in counts.items() if "attention" not in str(op) and "bmm" not in str(op))
    counted += 2 * 3 * (25 if lm else 5) * 32 * tok.n_vocab  # the head's gradient, addmm_, which torch leaves out
    monkeypatch.setattr(cost, "C", 32)
    monkeypatch.setattr(cost, "V", tok.n_vocab)
    monkeypatch.setattr(cost, "BLOCKS", 12 * 2 * 32**2)
    assert cost.epoch_flops(3, Rows(9 + 5 + 1 + 4, 4, 4), lm, distil) == counted


INF = math.inf


def test_more_gpus_help_where_there_is_work_and_not_where_launches_take_the_time():
    fast, slow = Card(1e15, INF, 0.0, INF), Card(1e15, INF, 1.0, INF)
    one, eight = (cost.learning(fast._replace(ranks=r), 6000, "sql", 9) for r in (1, 8))
    assert eight == pytest.approx(one / 8)
    least = 9 * 6000 / 4 * cost.launches_of("sql")
    assert cost.learning(slow, 6000, "sql", 9) == cost.learning(slow._replace(ranks=8), 6000, "sql", 9) == least


def test_launches_are_the_counted_ones():
    """Of forward and backward; a task that was not counted has woz's, a classification task AG's."""
    assert cost.launches_of("sql") == 636.4 + 513.2 and cost.launches_of("yelp") == cost.launches_of("ag") > 2000
    assert cost.launches_of("e2e") == cost.launches_of("woz") and cost.launches_of("decoding step") == 144


def test_a_checkpoint_is_written_once_a_minute_at_most_and_at_the_end():
    """124 million parameters with two moments are 1.49 GB; 100 s and 9 epochs: one in between."""
    card = Card(INF, INF, 100 / (9 * 6000 / 4 * cost.launches_of("sql")), 1e9)
    assert cost.learning(card, 6000, "sql", 9) == pytest.approx(100 + 2 * 1.49, abs=0.02)
    assert cost.learning(card._replace(launch=0), 6000, "sql", 9) == pytest.approx(1.49, abs=0.02)
    assert cost.learning(card, 60000, "sql", 9) > 9 * 1.49


def test_a_run_costs_more_with_a_teacher_and_single_is_teachers_alone():
    card = Card(1e15, 3e12, 1e-5, 1e9)
    order = "woz,cnn,sql"
    finetune, lamol, word, seq, single = (
        cost.run_seconds(RunKey(order, label, 0), card)
        for label in ("finetune", "LAMOL", "Word-KD", "Seq-KD", "Single QA+LM")
    )
    assert finetune[1] == lamol[1] == single[0] == 0 and word[1] == seq[1] == single[1] > 0
    assert finetune[0] < lamol[0] <= word[0] and lamol[0] < seq[0]


def test_learning_counts_replay_and_a_teachers_states():
    """By hand: 1,000 examples, γ = 0.2 of one earlier task, nine epochs; the states once, whatever the epochs."""
    card, new, old = Card(1e12, INF, 0.0, INF), cost.TOKENS["woz"], cost.TOKENS["sql"]
    flops = 9 * (cost.epoch_flops(1000, new) + cost.epoch_flops(200, old))
    share = cost.efficiency(new)
    assert 0.2 < share < 0.3 and cost.learning(card, 1000, "woz", 9, ["sql"]) == pytest.approx(flops / share / 1e12)
    head = 9 * 1000 * 2 * 50304 * 768 * (new.row + new.answer + 2)
    states = 1000 * 2 * 85e6 * (2 * new.row + 1)
    distilled = cost.learning(card, 1000, "woz", 9, ["sql"], kd=True)
    assert distilled == pytest.approx((flops + head + states) / share / 1e12, rel=1e-3)


def test_a_teachers_states_are_computed_again_without_room_or_on_another_gpu():
    card, small = Card(1.0, INF, 0.0, INF), Rows(100.0, 10.0, 10)
    assert cost.passes(card, 1000, small, 9) == 1
    room = cost.TEACHER_CACHE / (112 * 768 * 2)  # examples
    assert cost.passes(card, 2 * room, small, 9) == pytest.approx(1 + 8 * 0.5)
    assert cost.passes(card._replace(ranks=2), 1000, small, 3) == pytest.approx(1 + 1 / 2 + 1 / 4)
    assert cost.passes(card._replace(ranks=2), 4 * room, small, 3) == pytest.approx(1 + 3 / 4 + 3 / 4)


def test_decoding_has_all_rows_busy_until_the_last_one_ends():
    """466,033 columns of 36,864 bytes fit into 16 GiB: 512 rows of 200, or 233 of 2,000."""
    card = Card(INF, INF, 0.01 / 144, INF)
    assert cost.decoding(card, 1000, 100, 50, 100) == pytest.approx((1000 * 50 / 512 + 100) * 0.01)
    assert cost.decoding(card, 1000, 1000, 50, 1000) == pytest.approx((1000 * 50 / 233 + 1000) * 0.01)
    assert cost.decoding(card._replace(ranks=8), 1000, 100, 50, 100) == pytest.approx((125 * 50 / 512 + 100) * 0.01)
    # without launches a step reads all weights, 0.25 GB, and what is in the cache: 512 rows of 150 tokens, 2.83 GB
    read = cost.decoding(card._replace(launch=0.0, bandwidth=1e12), 1000, 100, 50, 100)
    assert read == pytest.approx((1000 * 50 / 512 + 100) * 3.08e-3, rel=1e-2)


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
    card = Card(INF, 1e12, 0.0, INF)  # nothing but decoding takes time
    drawn, other = (cost.run_seconds(RunKey(o, "finetune", 0), card)[0] for o in ("woz,sql,cnn", "sql,woz,cnn"))
    assert drawn > 5 * other


def test_tokens_are_those_of_the_data(shared, gpt2_tok, tmp_path):
    for name in ("woz", "rnnlg.tv"):
        train = load_task(name, str(shared / "data"), str(tmp_path)).train
        n = [[len(gpt2_tok.encode(text)) for text in (e.context, e.question, e.answer)] for e in train]
        row, answer = sum(map(sum, n)) / len(n) + 1, sum(a for *_, a in n) / len(n)
        assert cost.TOKENS[name] == pytest.approx((row, answer, max(a for *_, a in n)), abs=0.06)


def test_the_prediction_says_that_it_is_one(capsys):
    assert cost.main([]) == 0
    assert "PREDICTED" in capsys.readouterr().out
    for wrong in (["--peak", "0"], ["--launch-us", "nan"], ["--disk", "inf"], ["--bandwidth", "-1"]):
        with pytest.raises(SystemExit) as e:
            cost.main(wrong)
        assert e.value.code == 2
