"""The command line around a run: one line for each error, exit codes, notebooks.

python -m pytest tests/test_command.py"""

import contextlib
import io
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from whole_runs import directory, elsewhere, error, run

import kd
import train
from lab.errors import ModelFileError
from lab.run import command_line, setup
from lab.run.pretrained import NANO, load_student

ROOT = Path(__file__).parents[1]


def test_help_and_bad_usage_come_back_as_exit_codes(capsys):
    assert train.main(["--help"]) == 0
    assert "--micro-batch" in capsys.readouterr().out
    assert "--epochs 0" in error(capsys, ["--epochs", "0"], 2)


def test_bad_data_is_one_line_and_nothing_is_written(lab, capsys, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path / "colors", broken)
    (broken / "test.jsonl").write_text('{"context": "c", "question": "q"}\n')
    assert "test.jsonl, line 1: 'answer' is missing" in error(capsys, [*lab, "--order", str(broken)])
    shutil.copytree(NANO, tmp_path / "without")
    kept = {k: v for k, v in load_file(NANO / "model.safetensors").items() if "h.1.mlp.c_fc.bias" not in k}
    save_file(kept, tmp_path / "without" / "model.safetensors")
    assert "key 'h.1.mlp.c_fc.bias' is missing" in error(capsys, [*lab, "--model", str(tmp_path / "without")])
    if not torch.cuda.is_available():
        assert "--device cuda" in error(capsys, [*lab, "--device", "cuda"])
    assert "--kd-beam 3000: at most 2024" in error(capsys, [*lab, "--kd", "seq", "--kd-beam", "3000"])
    assert "no training example fits into 2 tokens" in error(capsys, [*lab, "--max-len", "2"])
    (tmp_path / "file").write_text("")
    assert "--runs-dir" in error(capsys, [*lab, "--runs-dir", str(tmp_path / "file" / "runs")])
    assert not Path(lab[5]).exists()


def test_a_used_directory_is_refused_and_left_as_it_is(lab, capsys):
    folder = run(lab, "--kd", "none", "--epochs", "1")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert "is used already" in error(capsys, [*lab, "--kd", "none", "--epochs", "1"])
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_what_is_cut_or_rejected_is_printed(lab, capsys):
    run(lab, "--kd", "none", "--epochs", "1", "--max-len", "10")
    said = capsys.readouterr().out
    assert "colors: of 9 training examples, at 10 tokens: " in said and "contexts cut" in said
    assert "of 9 training answers are too long to be generated" in said


def test_options_without_effect_are_noted(lab, capsys):
    run(lab, "--method", "finetune", "--temperature", "3", "--epochs", "1")
    said = capsys.readouterr().out
    assert "note     --gamma has no effect with --method finetune" in said and "note     --temperature" in said
    run(lab, "--kd", "none", "--epochs", "1", "--multi-reference")
    assert "note     --multi-reference has no effect: no test example" in capsys.readouterr().out


@pytest.mark.parametrize("full", [MemoryError(), RuntimeError("[enforce fail] can't allocate memory: 9 bytes")])
def test_too_little_memory_ends_with_the_micro_batch_to_try(lab, monkeypatch, capsys, full):
    def group_loss(*a, **k):
        raise full

    monkeypatch.setattr(kd, "group_loss", group_loss)
    said = error(capsys, [*lab, "--kd", "none", "--batch-size", "6"])
    assert "out of memory in student colors, epoch 1, update 1, with 6 examples at once" in said
    assert "--micro-batch 3" in said
    said = error(capsys, elsewhere(lab, "one", "--kd", "none", "--micro-batch", "1"))
    assert "a shorter --max-len or a smaller --model" in said


def test_any_other_error_is_a_bug_and_releases_the_directory(lab, monkeypatch):
    def broken(*a, **k):
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="a bug"):
        patch.setattr(kd, "group_loss", broken)
        train.main([*lab, "--kd", "none"])
    assert not (directory([*lab, "--kd", "none"]) / "lock").exists()
    run(lab, "--kd", "none", "--resume")


def test_a_run_works_where_stdout_is_no_file_as_in_a_notebook(lab):
    class Output(io.StringIO):
        reconfigure = property()  # a notebook's has none

    assert not hasattr(Output(), "reconfigure")
    with contextlib.redirect_stdout(Output()) as out, contextlib.redirect_stderr(Output()):
        assert train.main([*lab, "--kd", "none", "--epochs", "1"]) == 0
    assert "γ 0.5" in out.getvalue()


def test_a_terminal_without_greek_letters_shows_the_rest(lab, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    assert train.main([*lab, "--kd", "none", "--epochs", "1"]) == 0
    terminal.flush()
    assert b"? 0.5" in terminal.buffer.getvalue()


def test_a_keyboard_interrupt_before_the_run_is_said_so(capsys):
    def start(args):
        raise KeyboardInterrupt

    assert command_line(start, []) == 130
    assert capsys.readouterr().err == "interrupted before the run began\n"


def test_a_reader_that_stops_early_is_no_traceback():
    """As in `python data.py | true`."""
    page = subprocess.Popen([sys.executable, "data.py"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    page.stdout.close()
    assert page.stderr.read() == b"" and page.wait() == 1
    page.stderr.close()


def test_a_config_names_the_commit_and_whether_a_file_differs(tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    assert setup.commit() == ""  # no checkout
    (tmp_path / "a").write_text("1")
    me = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    for arguments in (["init", "-q"], ["add", "a"], [*me, "commit", "-q", "-m", "m"]):
        setup.git(tmp_path, *arguments).check_returncode()
    commit = setup.git(tmp_path, "rev-parse", "HEAD").stdout[:12]
    assert setup.commit() == commit
    (tmp_path / "a").write_text("2")
    assert setup.commit() == f"{commit}-dirty"
    (tmp_path / "inside").mkdir()
    monkeypatch.setattr(setup, "ROOT", tmp_path / "inside")
    assert setup.commit() == ""  # a folder of somebody else's checkout


def test_a_run_in_place_of_its_model_is_told_from_it(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(ModelFileError, match=f"{tmp_path}: a run; its model is {tmp_path / 'model'}"):
        load_student(tmp_path)
