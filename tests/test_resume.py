"""Runs that can't be lost: kills, interruptions, damage, a full disk, --resume and --continue.

python -m pytest tests/test_resume.py"""

import contextlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import train
from lab import rundir
from lab.log import TrainingLog
from lab.rundir import checkpoints, read_json, read_jsonl


def directory(lab, runs="runs") -> Path:
    """The run's directory below <tmp_path>/<runs>."""
    return next(p for p in (Path(lab[5]).parent / runs).glob("colors+sizes-*") if p.is_dir())


def at(lab, runs, *more):
    """The arguments of the same run in another folder."""
    return [*lab, "--runs-dir", str(Path(lab[5]).parent / runs), *more]


def result(run: Path) -> dict:
    """All that a run leaves but times: bytes by file, and the log."""
    left_out = ("config.json", "summary.json", "log.jsonl", "curves.png", "lock")
    files = {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name not in left_out}
    log = [{k: v for k, v in line.items() if k != "tokens_per_s"} for line in read_jsonl(run / "log.jsonl")]
    return files | {"log": log}


def events(monkeypatch, act):
    """Call `act(n)` at the n-th event of a run: after an update, and around whatever takes its final name."""
    number, end, replace = itertools.count(1), TrainingLog.end, os.replace

    def end_then_act(*a, **k):
        end(*a, **k)
        act(next(number))

    def act_replace_act(*a):
        act(next(number))
        replace(*a)
        act(next(number))

    monkeypatch.setattr(TrainingLog, "end", end_then_act)
    monkeypatch.setattr(os, "replace", act_replace_act)


def in_a_child(function) -> int:
    """The function in a process of its own, without this one's output; its exit code, below 0 for a signal's."""
    if not (pid := os.fork()):
        code = 99
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1), os.dup2(null, 2)
            code = function()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at(lab, n, arguments) -> bool:
    """The run in a child that kills itself, with no chance to tidy up, at its n-th event: was there one?"""

    def die():
        patch = pytest.MonkeyPatch()
        events(patch, lambda i: os.kill(os.getpid(), signal.SIGKILL) if i == n else None)
        return train.main(arguments)

    code = in_a_child(die)
    assert code in (0, -signal.SIGKILL)
    return code != 0


@pytest.mark.parametrize(
    "options",
    [
        ["--kd", "none", "--keep-models"],
        ["--kd", "word", "--eval-every-epoch"],
        ["--kd", "seq"],
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
        assert train.main([*lab, *options]) == 0
    wanted, r = result(directory(lab)), random.Random(" ".join(options))
    for trial in range(3):
        arguments = at(lab, f"killed{trial}", *options)
        assert killed_at(lab, r.randint(1, len(seen) - 1), arguments)
        while killed_at(lab, r.randint(20, 60), [*arguments, "--resume"]):  # and again
            pass
        assert result(directory(lab, f"killed{trial}")) == wanted


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_waits_for_the_step_and_says_how_to_go_on(lab, monkeypatch, capsys, number, code):
    assert train.main([*lab, "--kd", "word", "--batch-size", "3"]) == 0
    updates, end = [], TrainingLog.end

    def interrupt(log, *a, **k):
        updates.append(1)
        if len(updates) == 10:
            os.kill(os.getpid(), number)
        end(log, *a, **k)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLog, "end", interrupt)
        capsys.readouterr()
        assert train.main(at(lab, "cut", "--kd", "word", "--batch-size", "3")) == code
    said = capsys.readouterr().err
    assert said.startswith("interrupted in ") and "--resume goes on after epoch" in said and len(said.splitlines()) == 1
    assert len(updates) == 10  # that one was finished, and no other begun
    assert train.main(at(lab, "cut", "--kd", "word", "--batch-size", "3", "--resume")) == 0
    assert result(directory(lab, "cut")) == result(directory(lab))


def test_a_second_interruption_does_not_wait():
    with pytest.raises(KeyboardInterrupt), rundir.interruption.caught():
        for _ in rundir.interruption.between([1, 2]):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("it waited")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def cut(lab, tmp_path, kept):
    """A run, and the same one killed while its second student learns: made once, a copy of them for each test."""
    if not any(kept.iterdir()):
        assert train.main([*lab, "--kd", "seqsoft", "--log-every", "1"]) == 0
        assert next(n for n in itertools.count(60) if killed_half_way(lab, n))
        for runs in ("runs", "cut"):
            shutil.copytree(tmp_path / runs, kept / runs)
    else:
        for runs in ("runs", "cut"):
            shutil.copytree(kept / runs, tmp_path / runs)
    return result(directory(lab))


def killed_half_way(lab, n):
    shutil.rmtree(Path(lab[5]).parent / "cut", ignore_errors=True)
    arguments = at(lab, "cut", "--kd", "seqsoft", "--log-every", "1")
    assert killed_at(lab, n, arguments)
    (newest, *_) = reversed(checkpoints(directory(lab, "cut")))
    return (directory(lab, "cut") / "2-sizes").is_dir() and b'"student", "stage": 2' in newest.read_bytes()[
        :20000
    ].replace(b"\\", b"")


def resume(lab, capsys, *more):
    """--resume of the run that was cut off -> exit code, stdout, stderr."""
    capsys.readouterr()
    code = train.main(at(lab, "cut", "--kd", "seqsoft", "--log-every", "1", "--resume", *more))
    return code, *capsys.readouterr()


def test_a_checkpoint_that_does_not_load_falls_back_to_the_one_before(lab, cut, capsys):
    run = directory(lab, "cut")
    shutil.copytree(run.parent, run.parent.with_name("kept"))
    for broken in range(1, len(checkpoints(run)) + 1):
        for path in checkpoints(run)[-broken:]:
            os.truncate(path, path.stat().st_size // 2)
        code, out, _ = resume(lab, capsys)
        assert code == 0 and out.count("WARNING") >= 1 and "does not load" in out, broken
        found = result(run)  # a teacher that was made by then is found, and not in the log again
        for one in (found, expected := dict(cut)):
            one["log"] = [line for line in one["log"] if line["phase"] == "student"]
        assert found == expected
        shutil.rmtree(run.parent)
        shutil.copytree(run.parent.with_name("kept"), run.parent)


def test_a_checkpoint_that_does_not_load_is_not_counted_among_those_that_are_kept(lab, cut, capsys):
    run = directory(lab, "cut")
    *_, before, last = checkpoints(run)
    os.truncate(last, 1000)
    assert killed_at(lab, 4, at(lab, "cut", "--kd", "seqsoft", "--log-every", "1", "--resume"))
    assert last.with_suffix(".broken").exists() and before in checkpoints(run)
    assert resume(lab, capsys)[0] == 0 and result(run) == cut


HOSTILE = {
    "stages": ("1", -1, 10**7, None),
    "epoch": (float("inf"), 10**9, -1, "1"),
    "seen": (10**400, None),
    "files": (["a"], {"a": "b"}),
    "teacher_times": ({"colors": "x"}, 3),
    "seconds": (float("nan"), -1.0, "1"),
    "phase": ("sleep", 3),
    "scaler": ([1], {"scale": "x"}),
}


@pytest.mark.parametrize("key", HOSTILE)
def test_a_checkpoint_with_a_wrong_state_does_not_load(lab, cut, capsys, key):
    run, last = directory(lab, "cut"), checkpoints(directory(lab, "cut"))[-1]
    state, tensors = rundir.read_checkpoint(last)
    for value in HOSTILE[key]:
        save_file(tensors, last, metadata={"state": json.dumps(state | {key: value})})
        with pytest.raises(rundir.RunError, match="does not load"):
            rundir.read_checkpoint(last)
    code, out, _ = resume(lab, capsys)
    assert code == 0 and "the one before is taken" in out and result(run) == cut


def test_tensors_that_do_not_fit_are_refused(lab, cut, capsys):
    last = checkpoints(directory(lab, "cut"))[-1]
    state, tensors = rundir.read_checkpoint(last)
    name = "optimizer.0.exp_avg"
    for wrong in (
        tensors | {name: torch.zeros(3)},
        {key: t for key, t in tensors.items() if key != name},
        {key: t for key, t in tensors.items() if not key.startswith("optimizer.")},
        tensors | {"optimizer.x.y": torch.zeros(1)},
        tensors | {"optimizer.0.step": torch.zeros(3)},
        tensors | {"model.ln_f.bias": torch.zeros(3)},
    ):
        save_file(wrong, last, metadata={"state": json.dumps(state)})
        code, _, err = resume(lab, capsys)
        assert code == 1 and "checkpoint does not fit this run" in err and len(err.splitlines()) == 1
    for wrong in (tensors | {name: tensors[name].double()}, tensors | {"log.jsonl": tensors[name].clone()}):
        save_file(wrong, last, metadata={"state": json.dumps(state)})
        with pytest.raises(rundir.RunError, match="does not load"):
            rundir.read_checkpoint(last)
    with pytest.raises(rundir.RunError, match="far larger than this run's can be"):
        rundir.read_checkpoint(last, most=1000)


def test_a_lock_that_is_a_pipe_or_a_link_is_refused(lab, cut, capsys, tmp_path):
    lock = directory(lab, "cut") / "lock"
    lock.unlink()
    os.mkfifo(lock)
    assert resume(lab, capsys)[0] == 1
    lock.unlink()
    lock.symlink_to(tmp_path / "outside")
    assert resume(lab, capsys)[0] == 1 and not (tmp_path / "outside").exists()


def test_a_smaller_micro_batch_goes_on_with_the_teacher_that_is_there(lab, cut, capsys, monkeypatch):
    learned, learn = [], train.learn
    monkeypatch.setattr(train, "learn", lambda *a, **k: (learned.append(a[6:7]), learn(*a, **k)))
    code, out, _ = resume(lab, capsys, "--micro-batch", "2")
    assert code == 0 and "equal up to rounding and dropout's masks only" in out and learned == [()]  # the student


def test_torn_logs_are_repaired_and_said(lab, cut, capsys):
    for name in rundir.LOGS:
        with open(directory(lab, "cut") / name, "a", encoding="utf-8") as f:
            f.write('{"stage": 2, "ep')
    code, out, _ = resume(lab, capsys)
    assert code == 0 and out.count("its last line was torn; repaired") == 2
    assert result(directory(lab, "cut")) == cut


def test_damage_to_a_finished_stage_is_refused_and_to_the_rest_mended(lab, cut, capsys):
    run = directory(lab, "cut")
    damaged = run / "1-colors" / "predictions.jsonl"
    before = damaged.read_bytes()
    for content in (before[:100], None):
        damaged.unlink()
        if content:
            damaged.write_bytes(content)
        code, _, err = resume(lab, capsys)
        assert code == 1 and "predictions.jsonl is not as it was written" in err and len(err.splitlines()) == 1
        damaged.write_bytes(before)
    (run / "2-sizes" / "pseudo.jsonl").write_text("")
    (run / "scores.jsonl").unlink()
    shutil.rmtree(run / "model")
    assert resume(lab, capsys)[0] == 0
    assert result(run) == cut


def test_other_options_or_data_are_refused_by_name(lab, cut, capsys, tmp_path):
    run = directory(lab, "cut")
    config = read_json(run / "config.json")
    rundir.write_json(run / "config.json", config | {"temperature": 7.0, "pretrained": "0"})
    code, _, err = resume(lab, capsys)
    assert code == 1 and "made with other options or data: temperature, pretrained" in err
    rundir.write_json(run / "config.json", config | {"threads": 99, "torch": "1.0"})
    code, out, _ = resume(lab, capsys)
    assert code == 0 and "WARNING: torch, threads differ from the earlier try: equal up to rounding only" in out
    assert read_json(run / "config.json")["resumed_with"] == [{k: config[k] for k in ("torch", "threads")}]
    assert result(run) == cut


def test_without_its_config_a_run_is_refused(lab, cut, capsys):
    path = directory(lab, "cut") / "config.json"
    path.unlink()
    code, _, err = resume(lab, capsys)
    assert code == 1 and "config.json is missing" in err and len(err.splitlines()) == 1


def test_what_a_kill_left_half_written_goes(lab, cut, capsys):
    run = directory(lab, "cut")
    (run / "checkpoint" / ".000009.safetensors.123").write_text("half")
    (run / ".model.new.123").mkdir()
    assert resume(lab, capsys)[0] == 0
    assert result(run) == cut and not list(run.glob("**/.*"))


def test_resume_where_nothing_was_written_starts_and_where_all_was_done_changes_nothing(lab, capsys):
    assert train.main([*lab, "--resume"]) == 0
    assert "nothing was written yet; from the beginning" in capsys.readouterr().out
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in Path(lab[5]).rglob("*") if p.is_file()}
    assert train.main([*lab, "--resume"]) == 0
    said = capsys.readouterr().out
    assert "average" in said and said.endswith("finished already\n")
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in Path(lab[5]).rglob("*") if p.is_file()} == before


def test_resume_of_a_finished_run_with_other_data_is_refused(lab, capsys, tmp_path):
    assert train.main([*lab, "--kd", "none"]) == 0
    with open(tmp_path / "sizes" / "test.jsonl", "a", encoding="utf-8") as f:
        f.write('{"context": "a new one", "question": "size?", "answer": "big"}\n')
    capsys.readouterr()
    assert train.main([*lab, "--kd", "none", "--resume"]) == 1
    assert "made with other options or data: data" in capsys.readouterr().err


def test_resume_before_the_first_checkpoint_starts_anew(lab, capsys):
    assert train.main([*lab, "--kd", "none"]) == 0
    assert killed_at(lab, 4, at(lab, "cut", "--kd", "none"))
    assert not checkpoints(directory(lab, "cut"))
    capsys.readouterr()
    assert train.main(at(lab, "cut", "--kd", "none", "--resume")) == 0
    assert "there is no checkpoint to go on from; from the beginning" in capsys.readouterr().out
    assert result(directory(lab, "cut")) == result(directory(lab))


def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(lab, cut, tmp_path):
    run = directory(lab, "cut")
    before = {p: p.read_bytes() for p in checkpoints(run)}
    arguments = at(lab, "cut", "--kd", "seqsoft", "--log-every", "1", "--resume")

    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        with open(tmp_path / "said", "w", encoding="utf-8") as f, contextlib.redirect_stderr(f):
            return train.main(arguments)

    assert in_a_child(full) == 1
    said = (tmp_path / "said").read_text()
    assert (
        said.startswith("error: ")
        and "--resume goes on after epoch 1 of student sizes" in said
        and len(said.splitlines()) == 1
    )
    assert {p: p.read_bytes() for p in checkpoints(run)} == before and not list(run.glob("**/.*"))
    assert train.main(arguments) == 0
    assert result(run) == cut


def test_old_checkpoints_go(lab, monkeypatch):
    there, save = [], rundir.save_checkpoint

    def spy(run, *a):
        save(run, *a)
        there.append([p.name for p in checkpoints(run)])

    monkeypatch.setattr(rundir, "save_checkpoint", spy)
    assert train.main([*lab, "--kd", "word", "--epochs", "4"]) == 0
    assert len(there) == 2 * 8 + 1 and max(map(len, there)) == 3
    assert not (directory(lab) / "checkpoint").exists()


def test_two_processes_do_not_share_a_run(lab, capsys):
    _, held = rundir.open_run(lab[5], directory_name(lab))
    for more in ([], ["--resume"]):
        assert train.main([*lab, *more]) == 1
        assert "another process is making this run" in capsys.readouterr().err
    held.close()


def directory_name(lab):
    """What the run's directory would be called."""
    from lab.options import name_of, parse

    return name_of(parse(lab), ["colors", "sizes"])


# ---------------------------------------------------------------------- --continue


@pytest.fixture
def three(lab, tmp_path):
    """Options of a stream of three tasks, its first two, and the third."""
    shutil.copytree(tmp_path / "colors", tmp_path / "things")
    text = (tmp_path / "colors" / "train.jsonl").read_text().replace("color?", "what?")
    (tmp_path / "things" / "train.jsonl").write_text(text)
    return lab[2:], lab[1], str(tmp_path / "things")


@pytest.mark.parametrize("kd", ["none", "word", "seq", "seqsoft"])
def test_a_run_that_is_continued_is_the_longer_order(three, kd, capsys, tmp_path):
    options, two, third = three
    assert train.main(["--order", f"{two},{third}", *options, "--kd", kd, "--epochs", "3", "--seed", "4"]) == 0
    assert train.main(["--order", two, *options, "--kd", kd, "--epochs", "3", "--seed", "4"]) == 0
    parent = next((tmp_path / "runs").glob("colors+sizes-*"))
    arguments = ["--continue", str(parent), "--order", third]
    assert killed_at(None, 9, arguments)
    assert train.main([*arguments, "--resume"]) == 0
    (whole,) = (p for p in (tmp_path / "runs").glob("colors+sizes+things-*") if "continue" not in p.name)
    (child,) = (tmp_path / "runs").glob(f"colors+sizes+things-lamol-{kd}-g0.5-s4-*continue=????????*")
    wanted, found = result(whole), result(child)
    for name in wanted:
        if name.startswith(("3-", "model/")):
            assert found[name] == wanted[name], name
    lines = [[x for x in read_jsonl(run / "scores.jsonl") if x["stage"] == 3] for run in (whole, child)]
    assert lines[0] == lines[1]
    summaries = [read_json(run / "summary.json") for run in (whole, child)]
    for key in ("order", "average", "backward_transfer", "forgetting", "forward_transfer"):
        assert summaries[0][key] == pytest.approx(summaries[1][key]), key
    assert read_json(child / "config.json")["continue_"] == str(parent)


def test_a_run_is_continued_by_several_tasks_and_again(three, tmp_path, monkeypatch, capsys):
    options, two, third = three
    first, second = two.split(",")
    assert train.main(["--order", f"{two},{third}", *options, "--kd", "none"]) == 0
    assert train.main(["--order", first, *options, "--kd", "none"]) == 0
    monkeypatch.chdir(next((tmp_path / "runs").glob("colors-*")))
    assert train.main(["--continue", ".", "--order", f"{second},{third}"]) == 0  # two at once
    assert train.main(["--continue", ".", "--order", second]) == 0
    monkeypatch.chdir(tmp_path)
    child = next((tmp_path / "runs").glob("colors+sizes-*continue=*"))
    assert train.main(["--continue", str(child), "--order", third, "--resume"]) == 0  # one after the other
    whole, *others = sorted((tmp_path / "runs").glob("colors+sizes+things-*"), key=lambda p: "continue" in p.name)
    assert len(others) == 2
    for other in others:
        for name, content in result(whole).items():
            if name.startswith(("3-", "model/")):
                assert result(other)[name] == content, name
        summaries = [read_json(run / "summary.json") for run in (whole, other)]
        for key in ("average", "backward_transfer", "forgetting", "forward_transfer"):
            assert summaries[0][key] == pytest.approx(summaries[1][key]), key


def test_what_can_not_be_continued_is_refused(three, capsys, tmp_path):
    options, two, third = three

    def error(code, *arguments):
        try:
            found = train.main(list(arguments))
        except SystemExit as e:
            found = e.code
        said = capsys.readouterr().err
        assert found == code and len(said.splitlines()) == 1 and said.startswith("error: ")
        return said

    assert "no finished run is there" in error(1, "--continue", str(tmp_path), "--order", third)
    assert train.main(["--order", two, *options, "--method", "single"]) == 0
    assert train.main(["--order", two, *options, "--kd", "none"]) == 0
    single, parent = (next((tmp_path / "runs").glob(f"colors+sizes-{name}-*")) for name in ("single", "lamol"))
    capsys.readouterr()
    assert "learns no stream" in error(1, "--continue", str(single), "--order", third)
    assert "--order must name the new tasks" in error(2, "--continue", str(parent))
    assert "--method single (finetune and lamol only)" in error(
        2, "--continue", str(parent), "--order", third, "--method", "single", "--kd", "none"
    )
    assert "stands there twice" in error(2, "--continue", str(parent), "--order", two)
    config = read_json(parent / "config.json")
    for wrong in (
        {"epochs": "many"},
        {"kd": "magic"},
        {"tasks": 3},
        {"tasks": ["toy.zzz"]},
        {"data": None},
        {"data": ["a"]},
        {"lr": float("nan")},
        {"order": 5},
        {"order": "nowhere"},
    ):
        rundir.write_json(parent / "config.json", config | wrong)
        assert "config.json" in error(1, "--continue", str(parent), "--order", third)
    rundir.write_json(parent / "config.json", config)
    with open(tmp_path / "sizes" / "train.jsonl", "a", encoding="utf-8") as f:
        f.write('{"context": "a new one", "question": "size?", "answer": "big"}\n')
    assert "task sizes has other data now" in error(1, "--continue", str(parent), "--order", third)


# ---------------------------------------------------------------------- numbers and memory


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_number_that_is_none_stops_the_run_with_the_examples(lab, monkeypatch, capsys, where):
    rows_loss, calls = train.kd.rows_loss, itertools.count(1)

    def poisoned(*a, **k):
        loss, qa, lm = rows_loss(*a, **k)
        if next(calls) == 5:
            if where == "loss":
                return loss * torch.nan, qa * torch.nan, lm
            loss.register_hook(lambda grad: grad * torch.inf)
        return loss, qa, lm

    monkeypatch.setattr(train.kd, "rows_loss", poisoned)
    assert train.main([*lab, "--kd", "none", "--batch-size", "3", "--log-every", "1"]) == 1
    said = capsys.readouterr().err
    assert {"loss": "the loss is nan", "gradient": "the gradient's norm is"}[where] in said
    assert "student colors, epoch 2, update 2, with examples" in said
    named = said.split("with examples ")[1].split(":")[0].split(", ")
    assert len(named) == 3 and set(named) <= {str(i) for i in range(1, 10)}
    (path,) = checkpoints(directory(lab))  # of the first epoch
    assert all(t.isfinite().all() for t in rundir.read_checkpoint(path)[1].values())


def test_the_scalers_own_skips_do_not_stop_a_run_until_there_are_too_many(lab, monkeypatch, capsys):
    step, calls = torch.nn.utils.clip_grad_norm_, itertools.count(1)
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda *a: step(*a) * (torch.inf if next(calls) == 3 else 1.0)
    )
    assert train.main([*lab, "--kd", "none", "--dtype", "float16"]) == 0
    assert all(0 < line["grad_norm"] < 1e4 for line in read_jsonl(directory(lab) / "log.jsonl"))
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *a: step(*a) * torch.inf)
    monkeypatch.setattr(torch.amp.GradScaler, "get_scale", lambda self: 0.5)
    assert train.main(at(lab, "again", "--kd", "none", "--dtype", "float16")) == 1
    assert "the gradient's norm is" in capsys.readouterr().err


def test_more_than_half_of_the_pseudo_data_rejected_is_said_loudly(lab, capsys):
    assert train.main([*lab, "--kd", "none", "--epochs", "1", "--lr", "1e-9"]) == 0
    assert "WARNING: more than half of the pseudo-data of colors is rejected: its replay is failing" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] can't allocate memory: 9 bytes")])
def test_too_little_memory_ends_with_the_micro_batch_to_try(lab, monkeypatch, capsys, error):
    def full(*a, **k):
        raise error

    monkeypatch.setattr(train.kd, "rows_loss", full)
    assert train.main([*lab, "--kd", "none", "--batch-size", "6"]) == 1
    said = capsys.readouterr().err
    assert "out of memory in student colors, epoch 1, update 1, with 6 examples at once" in said
    assert "--micro-batch 3" in said and len(said.splitlines()) == 1
    assert train.main(at(lab, "one", "--kd", "none", "--micro-batch", "1")) == 1
    assert "a shorter --max-len or a smaller --model" in capsys.readouterr().err


def test_seconds_of_all_tries_count(lab):
    """A run's and its teachers' times go on where the checkpoint left them."""
    assert killed_at(lab, 14, at(lab, "cut", "--kd", "word"))
    (*_, last) = checkpoints(directory(lab, "cut"))
    state, _ = rundir.read_checkpoint(last)
    assert state["phase"] == "teacher" and 0 < state["phase_seconds"] < state["seconds"]
    assert train.main(at(lab, "cut", "--kd", "word", "--resume")) == 0
    summary = json.loads((directory(lab, "cut") / "summary.json").read_text())
    assert summary["wall_time_s"] > state["seconds"] and summary["teacher_time_s"] >= round(state["phase_seconds"], 1)
