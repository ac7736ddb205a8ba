"""Damaged checkpoints, logs and stages: put aside, repaired, or refused by name.

python -m pytest tests/test_checkpoint.py"""

import itertools
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from whole_runs import directory, elsewhere, killed_at, result, run

import train
from lab.errors import RunError
from lab.files import read_json, write_json
from lab.run.checkpoint import LOGS, checkpoints, kept_of, last_checkpoint, read_checkpoint, save_checkpoint

OPTIONS = ["--kd", "seqsoft", "--log-every", "1"]


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    return tmp_path_factory.mktemp("copies")


@pytest.fixture
def cut(lab, tmp_path, copies):
    """The arguments of a run that was killed while its second student learned, and what it must become. Made once,
    and a copy for each test."""
    arguments = elsewhere(lab, "cut", *OPTIONS)
    if not any(copies.iterdir()):
        run(lab, *OPTIONS)
        for n in itertools.count(60):
            shutil.rmtree(tmp_path / "cut", ignore_errors=True)
            assert killed_at(n, arguments)
            state, _ = read_checkpoint(checkpoints(directory(arguments))[-1])
            if (state["phase"], state["stage"]) == ("student", 2):
                break
        for runs in ("runs", "cut"):
            shutil.copytree(tmp_path / runs, copies / runs)
    else:
        for runs in ("runs", "cut"):
            shutil.copytree(copies / runs, tmp_path / runs)
    return arguments, result(directory([*lab, *OPTIONS]))


def resume(capsys, arguments, *more):
    """--resume of the run that was cut off -> exit code, stdout, stderr."""
    capsys.readouterr()
    code = train.main([*arguments, "--resume", *more])
    return code, *capsys.readouterr()


# ---------------------------------------------------------------------- damage


def test_a_checkpoint_that_does_not_load_falls_back_to_the_one_before(cut, capsys, tmp_path):
    arguments, wanted = cut
    folder = directory(arguments)
    shutil.copytree(folder.parent, tmp_path / "kept")
    for n in range(1, len(checkpoints(folder)) + 1):
        for path in checkpoints(folder)[-n:]:
            os.truncate(path, path.stat().st_size // 2)
        code, out, _ = resume(capsys, arguments)
        assert code == 0 and out.count("WARNING") >= n and "does not load" in out, n
        found = result(folder)  # a teacher that was saved by then is found, and not in the log again
        for one in (found, expected := dict(wanted)):
            one["log"] = [line for line in one["log"] if line["phase"] == "student"]
        assert found == expected
        shutil.rmtree(folder.parent)
        shutil.copytree(tmp_path / "kept", folder.parent)


def test_a_checkpoint_that_does_not_load_is_put_aside_and_not_counted(cut, capsys):
    arguments, wanted = cut
    folder = directory(arguments)
    *_, before, last = checkpoints(folder)
    os.truncate(last, 1000)
    assert killed_at(4, [*arguments, "--resume"])
    assert last.with_suffix(".broken").exists() and before in checkpoints(folder)
    assert resume(capsys, arguments)[0] == 0 and result(folder) == wanted


HOSTILE = {
    "stages": ("1", -1, 10**7, None),
    "epoch": (float("inf"), 10**9, -1, "1"),
    "samples_seen": (10**400, None),
    "steps": (True, -1, 0.5, None),
    "files": (["a"], {"a": "b"}),
    "teacher_times": ({"colors": "x"}, 3),
    "seconds": (float("nan"), -1.0, "1"),
    "phase": ("sleep", 3),
    "scaler": ([1], {"scale": "x"}),
    "kept": (["a"], {"a": 1}, {"a": "cpu"}, None),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A checkpoint of a model with three numbers."""
    folder = tmp_path_factory.mktemp("small")
    state = {"phase": "student", "stage": 1, "name": "a", "epoch": 1, "samples_seen": 8, "steps": 2, "stages": 0}
    state |= {"said": "after", "seconds": 1.0, "phase_seconds": 1.0, "teacher_times": {}, "made_here": {}, "scaler": {}}
    kept = {"counts": torch.arange(4), "half": torch.ones(2, dtype=torch.bfloat16), "view": torch.ones(2, 3).t()}
    save_checkpoint(folder, state, torch.nn.Linear(2, 1), None, kept | {"same": kept["counts"]})
    (path,) = checkpoints(folder)
    return path


def test_what_hooks_keep_comes_back_as_it_was(small):
    kept = kept_of(*read_checkpoint(small), torch.device("cpu"))
    assert kept.keys() == {"counts", "half", "view", "same"} and kept["counts"].tolist() == [0, 1, 2, 3]
    assert kept["half"].dtype == torch.bfloat16 and kept["view"].shape == (3, 2) and kept["same"].equal(kept["counts"])


@pytest.mark.parametrize("key", HOSTILE)
def test_a_checkpoint_with_a_wrong_state_does_not_load(small, tmp_path, key):
    state, tensors = read_checkpoint(small)
    path = tmp_path / "checkpoint" / "000001.safetensors"
    path.parent.mkdir()
    for value in HOSTILE[key]:
        save_file(tensors, path, metadata={"state": json.dumps(state | {key: value})})
        with pytest.raises(RunError, match="does not load"):
            read_checkpoint(path)
    save_file(tensors, path, metadata={"state": json.dumps({k: v for k, v in state.items() if k != key})})
    assert last_checkpoint(tmp_path, based=False) == (None, None) and path.with_suffix(".broken").exists()


def test_tensors_of_another_kind_do_not_load(small, tmp_path):
    state, tensors = read_checkpoint(small)
    path = tmp_path / "000001.safetensors"
    weight = tensors["model.weight"]
    for wrong in (
        tensors | {"model.weight": weight.double()},
        tensors | {"log.jsonl": weight.clone()},
        {name: x for name, x in tensors.items() if name != "kept.counts"},
        {name: x for name, x in tensors.items() if name != "log.jsonl"},
    ):
        save_file(wrong, path, metadata={"state": json.dumps(state)})
        with pytest.raises(RunError, match="does not load"):
            read_checkpoint(path)
    with pytest.raises(RunError, match="far larger than this run's can be"):
        read_checkpoint(small, most=100)


def test_tensors_that_do_not_fit_are_refused(cut, capsys):
    arguments, _ = cut
    last = checkpoints(directory(arguments))[-1]
    state, tensors = read_checkpoint(last)
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
        code, _, err = resume(capsys, arguments)
        assert code == 1 and "checkpoint does not fit this run" in err and len(err.splitlines()) == 1


def test_torn_logs_are_repaired_and_said(cut, capsys):
    arguments, wanted = cut
    for name in LOGS:
        with open(directory(arguments) / name, "a", encoding="utf-8") as f:
            f.write('{"stage": 2, "ep')
    code, out, _ = resume(capsys, arguments)
    assert code == 0 and out.count("its last line was torn; repaired") == 2
    assert result(directory(arguments)) == wanted


def test_damage_to_a_finished_stage_is_refused_and_to_the_rest_mended(cut, capsys):
    arguments, wanted = cut
    folder = directory(arguments)
    damaged = folder / "1-colors" / "predictions.jsonl"
    before = damaged.read_bytes()
    for content in (before[:100], None):
        damaged.unlink()
        if content:
            damaged.write_bytes(content)
        code, _, err = resume(capsys, arguments)
        assert code == 1 and "predictions.jsonl is not as it was written" in err and len(err.splitlines()) == 1
        damaged.write_bytes(before)
    (folder / "2-sizes" / "pseudo.jsonl").write_text("")
    (folder / "scores.jsonl").unlink()
    shutil.rmtree(folder / "model")
    (folder / "checkpoint" / ".000009.safetensors.123").write_text("half")  # what kills leave
    (folder / ".model.new.123").mkdir()
    assert resume(capsys, arguments)[0] == 0
    assert result(folder) == wanted and not list(folder.glob("**/.*"))


def test_a_lock_that_is_a_pipe_or_a_link_is_refused(cut, capsys, tmp_path):
    arguments, _ = cut
    lock = directory(arguments) / "lock"
    lock.unlink(missing_ok=True)
    os.mkfifo(lock)
    code, _, err = resume(capsys, arguments)
    assert code == 1 and "not a file to lock; remove it" in err
    lock.unlink()
    lock.symlink_to(tmp_path / "outside")
    assert resume(capsys, arguments)[0] == 1 and not (tmp_path / "outside").exists()


# ---------------------------------------------------------------------- other options


def test_other_options_or_data_are_refused_by_name_and_what_only_rounds_is_noted(cut, capsys):
    arguments, wanted = cut
    folder = directory(arguments)
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"temperature": 7.0, "pretrained": "0"})
    code, _, err = resume(capsys, arguments)
    assert code == 1 and "made with other options or data: temperature, pretrained" in err
    write_json(folder / "config.json", config | {"threads": 99, "torch": "1.0"})
    code, out, _ = resume(capsys, arguments)
    assert code == 0 and "WARNING: torch, threads differ from the earlier try: equal up to rounding only" in out
    assert read_json(folder / "config.json")["resumed_with"] == [{k: config[k] for k in ("torch", "threads")}]
    assert result(folder) == wanted


def test_a_config_of_an_older_version_that_lacks_options_goes_on(cut, capsys):
    arguments, wanted = cut
    folder = directory(arguments)
    config = read_json(folder / "config.json")
    older = {k: v for k, v in config.items() if k not in ("replay", "teacher_model", "teacher_cache")}
    write_json(folder / "config.json", older | {"real_replay": False, "replay_loss": "released"})
    assert resume(capsys, arguments)[0] == 0
    assert result(folder) == wanted


def test_other_data_are_refused_and_so_is_a_run_without_its_config(cut, capsys, tmp_path):
    arguments, _ = cut
    path = directory(arguments) / "config.json"
    path.rename(tmp_path / "config.json")
    code, _, err = resume(capsys, arguments)
    assert code == 1 and "config.json is missing" in err and len(err.splitlines()) == 1
    (tmp_path / "config.json").rename(path)
    for runs in ("cut", "runs"):  # also if the run has finished
        with open(tmp_path / "sizes" / "test.jsonl", "a", encoding="utf-8") as f:
            f.write('{"context": "a new one", "question": "size?", "answer": "big"}\n')
        code, _, err = resume(capsys, [*arguments, "--runs-dir", str(tmp_path / runs)])
        assert code == 1 and "made with other options or data: data" in err


def test_a_smaller_micro_batch_goes_on_with_the_teacher_that_is_there(cut, capsys, monkeypatch):
    arguments, _ = cut
    phases, learn = [], train.learn
    monkeypatch.setattr(train, "learn", lambda *a, **k: (phases.append(a[2].kind), learn(*a, **k)))
    code, out, _ = resume(capsys, arguments, "--micro-batch", "2")
    assert code == 0 and "equal up to rounding and dropout masks only" in out and phases == ["student"]


def test_without_a_run_there_is_no_checkpoint():
    assert last_checkpoint(Path("no-such-run"), based=True) == (None, None)
