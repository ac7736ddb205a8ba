"""Runs that are killed or interrupted, and go on bit for bit. python -m pytest tests/test_resume.py"""

import contextlib
import os
import random
import resource
import signal
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from whole_runs import directory, elsewhere, events, in_a_child, killed_at, result, run

import train
from lab.files import read_json, read_jsonl
from lab.run import Progress, Run, command_line
from lab.run import run as lab_run
from lab.run.checkpoint import checkpoints, read_checkpoint
from lab.run.interruption import interruption
from lab.run.options import Options

# ---------------------------------------------------------------------- kills


@pytest.mark.parametrize(
    "options",
    [
        ["--kd", "none", "--keep-models", "--eval-every-epoch"],
        ["--kd", "word", "--replay", "real"],
        ["--kd", "word", "--checkpoint-every", "1e6"],
        ["--kd", "seqsoft", "--updates", "alternate"],
        ["--method", "finetune"],
        ["--method", "single"],
        ["--method", "multitask", "--kd", "seq"],
    ],
    ids=" ".join,
)
def test_a_run_that_is_killed_anywhere_and_resumed_is_the_unbroken_one(lab, options):
    with pytest.MonkeyPatch.context() as patch:
        seen = []
        events(patch, seen.append)
        wanted = result(run(lab, *options))
    r = random.Random(" ".join(options))
    for trial in range(2):
        arguments = elsewhere(lab, f"killed{trial}", *options)
        assert killed_at(r.randint(1, len(seen) - 1), arguments)
        while killed_at(r.randint(20, 60), [*arguments, "--resume"]):  # and again
            pass
        assert result(directory(arguments)) == wanted


def test_resume_before_the_first_checkpoint_starts_anew(lab, capsys):
    wanted = result(run(lab, "--kd", "none"))
    arguments = elsewhere(lab, "cut", "--kd", "none")
    assert killed_at(4, arguments) and not checkpoints(directory(arguments))
    capsys.readouterr()
    assert train.main([*arguments, "--resume"]) == 0
    assert "there is no checkpoint to go on from; from the beginning" in capsys.readouterr().out
    assert result(directory(arguments)) == wanted


def test_resume_where_nothing_was_written_starts_and_where_all_was_done_changes_nothing(lab, capsys):
    folder = run(lab, "--kd", "none", "--resume")
    assert "nothing was written yet; from the beginning" in capsys.readouterr().out
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}
    run(lab, "--kd", "none", "--resume")
    said = capsys.readouterr().out
    assert "average" in said and said.endswith("finished already\n")
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()} == before


def test_old_checkpoints_go(lab, monkeypatch):
    there, checkpoint = [], Run.checkpoint

    def spy(run, *a, **k):
        checkpoint(run, *a, **k)
        there.append(len(checkpoints(run.dir)))

    monkeypatch.setattr(Run, "checkpoint", spy)
    folder = run(lab, "--kd", "none", "--epochs", "4")
    assert len(there) == 2 * 4 + 1 and max(there) == 3
    assert not (folder / "checkpoint").exists()


def test_a_checkpoint_is_written_after_an_epoch_if_the_last_is_a_minute_old_and_always_at_an_end(lab, monkeypatch):
    """Updates take 10 s here: an epoch has 3, and 4 with replay. Without one at a teacher's end, the log of a run that
    is resumed would lack its lines."""
    now, written = [0.0], []
    clock = SimpleNamespace(time=time.time, monotonic=lambda: now[0])
    end_update, save = Progress.end_update, lab_run.save_checkpoint
    monkeypatch.setattr(lab_run, "time", clock)
    monkeypatch.setattr(Progress, "end_update", lambda *a, **k: (end_update(*a, **k), now.insert(0, now[0] + 10)))
    monkeypatch.setattr(lab_run, "save_checkpoint", lambda *a: (written.append(a[1]["said"]), save(*a)))
    every = str(Options().checkpoint_every)
    run(lab, "--kd", "word", "--batch-size", "3", "--epochs", "5", "--replay", "real", "--checkpoint-every", every)
    assert [said.removeprefix("after ") for said in written] == [
        *("epoch 2 of teacher colors", "epoch 4 of teacher colors", "epoch 5 of teacher colors"),
        *("epoch 2 of student colors", "epoch 4 of student colors", "stage 1, colors"),
        *("epoch 2 of teacher sizes", "epoch 4 of teacher sizes", "epoch 5 of teacher sizes"),
        *("epoch 2 of student sizes", "epoch 4 of student sizes"),
    ]


def test_samples_and_steps_go_on_where_they_were(lab, monkeypatch):
    """The schedule counts samples, AdamW's epsilon steps: after a resume both are those of the unbroken run."""
    rates = []
    set_rates = train.set_rates
    monkeypatch.setattr(train, "set_rates", lambda o, *rest: (rates.append(rest), set_rates(o, *rest)))
    options = ["--method", "finetune", "--batch-size", "3", "--epochs", "3"]
    run(lab, *options)
    wanted, arguments = rates[:], elsewhere(lab, "cut", *options)
    assert [t for *_, t in wanted] == [*range(1, 10)] * 2
    assert killed_at(18, arguments)
    (*_, last) = checkpoints(directory(arguments))
    state, _ = read_checkpoint(last)
    assert state["steps"] > 0 and state["samples_seen"] > 0
    rates.clear()
    assert train.main([*arguments, "--resume"]) == 0
    assert 0 < len(rates) < len(wanted) and rates == wanted[-len(rates) :]


def test_seconds_of_all_tries_count(lab):
    """A run's and its teachers' times go on where the checkpoint left them."""
    arguments = elsewhere(lab, "cut", "--kd", "word")
    assert killed_at(12, arguments)
    (*_, last) = checkpoints(directory(arguments))
    state, _ = read_checkpoint(last)
    assert state["phase"] == "teacher" and 0 < state["phase_seconds"] < state["seconds"]
    assert train.main([*arguments, "--resume"]) == 0
    summary = read_json(directory(arguments) / "summary.json")
    assert summary["wall_time_s"] > state["seconds"] and summary["teacher_time_s"] >= round(state["phase_seconds"], 1)


# ---------------------------------------------------------------------- what hooks keep


def with_hooks(arguments) -> int:
    """A run with two hooks, one of which draws random numbers, that keep tensors and change gradients by them."""

    def before_step(run, model):
        if "pull" in run.kept:
            model.ln_f.bias.grad += run.kept["pull"]
            run.kept["pull"] = run.kept["pull"] * 0.9
        run.kept["steps"] = run.kept.get("steps", torch.zeros((), dtype=torch.int64)) + 1

    def after_stage(run, model, samples):
        run.kept["pull"] = 0.1 * torch.randn(model.ln_f.bias.shape) + model.ln_f.bias.detach()
        run.kept["a view"] = model.wte.weight.detach()[:3].t()
        print("kept", run.kept["steps"].item())

    def start(args):
        with Run(args) as r:
            train.lifelong(r, before_step, after_stage)
            return r.finish()

    return command_line(start, arguments)


def test_what_hooks_keep_survives_a_kill_bit_for_bit(lab, monkeypatch, capsys):
    monkeypatch.setattr(train, "main", with_hooks)
    options = ["--kd", "none", "--epochs", "3", "--batch-size", "3"]
    wanted = result(run(lab, *options))
    assert "kept 9\n" in capsys.readouterr().out
    for n in (16, 24, 36, 46):
        arguments = elsewhere(lab, f"cut{n}", *options)
        assert killed_at(n, arguments)
        run(arguments, "--resume")
        assert result(directory(arguments)) == wanted, n
    assert "kept 18\n" in capsys.readouterr().out
    arguments = elsewhere(lab, "between", *options)

    def die():  # after the last epoch's checkpoint, before the end of the stage: the hook is called again
        Run.end_stage = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
        return with_hooks(arguments)

    assert in_a_child(die) == -signal.SIGKILL
    run(arguments, "--resume")
    assert result(directory(arguments)) == wanted


def test_more_than_a_checkpoint_can_hold_is_refused_before_it_is_written(lab, capsys):
    def hoard(run, model, samples):
        run.kept["all"] = torch.zeros(1, dtype=torch.uint8).expand(2**40)

    def start(args):
        with Run(args) as r:
            train.lifelong(r, after_stage=hoard)

    assert command_line(start, [*lab, "--kd", "none"]) == 1
    assert "run.kept holds 1099511627776 bytes" in capsys.readouterr().err
    assert all("end" not in path.name for path in checkpoints(directory([*lab, "--kd", "none"])))


# ---------------------------------------------------------------------- interruptions


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_waits_for_the_update_and_says_how_to_go_on(lab, capsys, number, code):
    options = ["--kd", "none", "--batch-size", "3"]
    wanted = result(run(lab, *options))
    updates, end_update = [], Progress.end_update
    arguments = elsewhere(lab, "cut", *options)

    def interrupt(progress, **numbers):
        updates.append(1)
        if len(updates) == 5:
            os.kill(os.getpid(), number)
        end_update(progress, **numbers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "end_update", interrupt)
        capsys.readouterr()
        assert train.main(arguments) == code
    said = capsys.readouterr().err
    assert said.startswith("interrupted in student colors, epoch 2, update 2; ") and len(said.splitlines()) == 1
    assert "--resume goes on after epoch 1 of student colors" in said
    assert len(updates) == 5  # that one was finished, and no other begun
    assert not (directory(arguments) / "lock").exists()
    assert train.main([*arguments, "--resume"]) == 0
    assert result(directory(arguments)) == wanted


def test_a_second_interruption_does_not_wait():
    with pytest.raises(KeyboardInterrupt), interruption.caught():
        for _ in interruption.between([1, 2]):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("it waited")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_run_in_another_thread_leaves_the_signals_alone(lab):
    codes, before = [], signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=lambda: codes.append(train.main([*lab, "--kd", "none", "--epochs", "1"])))
    thread.start()
    thread.join()
    assert codes == [0] and signal.getsignal(signal.SIGINT) is before


def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(lab, tmp_path):
    wanted = result(run(lab, "--kd", "none"))
    arguments = elsewhere(lab, "cut", "--kd", "none")
    assert killed_at(20, arguments)
    folder = directory(arguments)
    before = {p: p.read_bytes() for p in checkpoints(folder)}
    assert before

    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        with open(tmp_path / "said", "w", encoding="utf-8") as f, contextlib.redirect_stderr(f):
            return train.main([*arguments, "--resume"])

    assert in_a_child(full) == 1
    said = (tmp_path / "said").read_text()
    assert said.startswith("error: ") and "--resume goes on after " in said and len(said.splitlines()) == 1
    assert {p: p.read_bytes() for p in checkpoints(folder)} == before and not list(folder.glob("**/.*"))
    assert train.main([*arguments, "--resume"]) == 0
    assert result(folder) == wanted and read_jsonl(folder / "log.jsonl")
