"""What log.jsonl says, and what it stops: losses and gradients that are not finite.

python -m pytest tests/test_log.py"""

import itertools

import pytest
import torch
from whole_runs import directory, error, run

import kd
import train
from lab.files import read_jsonl
from lab.run import Progress, Run
from lab.run.checkpoint import checkpoints, read_checkpoint
from lab.run.options import parse


def test_a_line_of_the_log_has_means_of_its_updates_and_what_end_update_was_given(lab):
    options = ["--kd", "word", "--batch-size", "3", "--epochs", "1", "--seed", "2"]
    every = read_jsonl(run(lab, *options, "--log-every", "1") / "log.jsonl")
    two = read_jsonl(run(lab, *options, "--log-every", "2", "--runs-dir", lab[5] + "2") / "log.jsonl")
    keys = {"task", "phase", "epoch", "step", "loss", "loss_qa", "loss_lm", "grad_norm", "lr", "temperature"}
    assert all(line.keys() == keys | {"tokens_per_s", "attention_padding"} for line in every + two)
    of_task = [x for x in every if (x["task"], x["phase"]) == ("colors", "student")]
    first, last = [x for x in two if (x["task"], x["phase"]) == ("colors", "student")]
    assert (first["step"], last["step"]) == (2, 3)
    for key in ("loss", "loss_qa", "loss_lm", "grad_norm"):
        assert first[key] == pytest.approx((of_task[0][key] + of_task[1][key]) / 2)
    assert (first["lr"], last["lr"]) == (of_task[1]["lr"], of_task[2]["lr"]) and first["temperature"] == 2.0
    for line in every:
        assert line["loss"] == pytest.approx(line["loss_qa"] + line["loss_lm"])
        assert line["tokens_per_s"] > 0 and 0 <= line["attention_padding"] < 1


def test_numbers_of_ones_own_are_logged_under_their_names(lab, monkeypatch):
    end_update = Progress.end_update

    def with_more(progress, **numbers):
        end_update(progress, **numbers, penalty=numbers["grad_norm"] * 2, note="x", odd=torch.tensor(torch.nan))

    monkeypatch.setattr(Progress, "end_update", with_more)
    for line in read_jsonl(run(lab, "--kd", "none", "--epochs", "1") / "log.jsonl"):
        assert line["penalty"] == pytest.approx(2 * line["grad_norm"]) and line["note"] == "x" and line["odd"] is None


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_number_that_is_none_stops_the_run_with_the_examples(lab, monkeypatch, capsys, where):
    group_loss, calls = kd.group_loss, itertools.count(1)

    def poisoned(*a):
        loss, parts = group_loss(*a)
        if next(calls) == 5:
            if where == "loss":
                return loss * torch.nan, parts * torch.nan
            loss.register_hook(lambda grad: grad * torch.inf)
        return loss, parts

    monkeypatch.setattr(kd, "group_loss", poisoned)
    arguments = [*lab, "--kd", "none", "--batch-size", "3", "--log-every", "1"]
    said = error(capsys, arguments)
    assert {"loss": "the loss is nan", "gradient": "the gradient's norm is"}[where] in said
    assert "student colors, epoch 2, update 2, with examples" in said and "a lower --lr may help" in said
    named = said.split("with examples ")[1].split(":")[0].split(", ")
    assert len(named) == 3 and set(named) <= {str(i) for i in range(1, 10)}
    (path,) = checkpoints(directory(arguments))  # of the first epoch
    assert all(t.isfinite().all() for t in read_checkpoint(path)[1].values())


def test_a_rate_that_is_far_too_high_stops_the_run(lab, capsys):
    assert "the loss is nan" in error(capsys, [*lab, "--lr", "1e30", "--max-grad-norm", "1e30", "--kd", "none"])


def scaled_less(monkeypatch):
    """A loss scale with which no gradient of nano's overflows by itself."""
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *a, **k: scaler(*a, **k, init_scale=2.0**8))


def test_the_scalers_own_skips_do_not_stop_a_run_until_there_are_too_many(lab, monkeypatch, capsys):
    clip, calls = torch.nn.utils.clip_grad_norm_, itertools.count(1)
    scaled_less(monkeypatch)
    options = ["--kd", "none", "--dtype", "float16"]
    infinite = lambda *a: clip(*a) * (torch.inf if next(calls) == 3 else 1.0)  # noqa: E731
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", infinite)
    folder = run(lab, *options)
    norms = [line["grad_norm"] for line in read_jsonl(folder / "log.jsonl")]
    norms = [norm for norm in norms if norm is not None]  # None: the scaler has skipped all updates of a line
    assert len(norms) >= 2 and all(0 < norm < 1e4 for norm in norms)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *a: clip(*a) * torch.inf)
    monkeypatch.setattr("torch.amp.grad_scaler.GradScaler.get_scale", lambda self: 0.5)
    assert "the gradient's norm is" in error(capsys, [*lab, *options, "--seed", "1"])


def test_an_update_that_the_scaler_skips_counts_neither_as_samples_nor_as_a_step(lab, monkeypatch):
    """A gradient overflows in the second update: the schedule and epsilon stand still, and the log leaves it out."""
    scaled_less(monkeypatch)
    asked, set_rates = [], train.set_rates
    monkeypatch.setattr(train, "set_rates", lambda o, lr, e, t: (asked.append((lr, t)), set_rates(o, lr, e, t)))
    group_loss, calls = kd.group_loss, itertools.count(1)

    def overflows(*a):
        loss, parts = group_loss(*a)
        if next(calls) == 2:
            loss.register_hook(lambda grad: grad * torch.inf)
        return loss, parts

    monkeypatch.setattr(kd, "group_loss", overflows)
    options = ["--dtype", "float16", "--method", "finetune", "--batch-size", "3", "--epochs", "1", "--log-every", "1"]
    args = parse([*lab, *options, "--order", lab[1].split(",")[0]])
    with Run(args) as r:
        train.lifelong(r)
        r.finish()
    lines = read_jsonl(r.dir / "log.jsonl")
    assert [t for _, t in asked] == [1, 2, 2] and asked[1][0] == asked[2][0]
    assert lines[1]["loss"] is None and all(0 < lines[i]["loss"] < 20 for i in (0, 2))
