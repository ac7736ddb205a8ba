"""The teachers' folder: trained once, found by all who need the same one, and by nobody else.

python -m pytest tests/test_teachers.py"""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import nano
from safetensors.torch import load_file, save_file
from whole_runs import elsewhere, equal, error, run, weights

import train
from lab.files import read_json, write_json
from lab.run.pretrained import NANO, nano_tokenizer, save_gpt
from lab.run.teachers import hash_of_model, load_teacher
from model import GPT, GPTConfig

ROOT = Path(__file__).parents[1]


@pytest.fixture
def phases(monkeypatch):
    """The phases of a run, as (kind, name, epochs); nothing is learned."""
    seen = []
    monkeypatch.setattr(
        train, "learn", lambda run, model, phase, *a: seen.append((phase.kind, phase.name, phase.epochs))
    )
    return seen


@pytest.fixture
def trained(lab, phases):
    """A run -> the tasks whose teachers it trained."""

    def tasks(*options):
        phases.clear()
        run(lab, *options)
        return [name for kind, name, _ in phases if kind == "teacher"]

    return tasks


BOTH = ["colors", "sizes"]


def test_a_teacher_is_the_single_model(lab):
    single = run(lab, "--method", "single", "--keep-models")
    folders = sorted((Path(lab[5]) / "teachers").iterdir())
    assert [f.name.split("-")[0] for f in folders] == BOTH
    assert {p.name for p in folders[0].iterdir()} == {"config.json", "model", "predictions.jsonl", "scores.jsonl"}
    assert equal(weights(single / "1-colors" / "model"), weights(folders[0] / "model"))
    assert equal(weights(single / "2-sizes" / "model"), weights(folders[1] / "model"))


def test_other_methods_orders_and_gammas_find_the_same_teacher(lab, trained):
    assert trained("--method", "single") == BOTH
    assert trained("--kd", "word") == trained("--kd", "seq", "--gamma", "0.3") == trained("--replay", "real") == []
    assert trained("--kd", "seqsoft", "--order", lab[1].split(",")[0]) == []
    assert trained("--method", "multitask", "--kd", "seq") == []


def test_another_seed_loss_slot_or_data_needs_another_teacher(lab, trained, tmp_path):
    assert trained("--kd", "word") == BOTH
    for change in (["--seed", "1"], ["--limit", "5"], ["--lm-lambda", "0.5"], ["--epochs", "3"], ["--max-len", "40"]):
        assert trained("--kd", "word", *change) == BOTH, change
    reverse = ",".join(reversed(lab[1].split(",")))
    assert trained("--order", reverse) == BOTH[::-1]  # each has the other's slot
    with open(tmp_path / "colors" / "train.jsonl", "a", encoding="utf-8") as f:
        f.write('{"context": "a new one", "question": "color?", "answer": "red"}\n')
    assert trained("--gamma", "0.4") == ["colors"]


def test_a_teachers_key_has_its_starting_weights_and_not_their_name(lab, trained, tmp_path):
    shutil.copytree(NANO, tmp_path / "nano")
    assert trained() == BOTH
    assert trained("--teacher-model", str(tmp_path / "nano")) == []  # the same weights under another name
    found = load_file(tmp_path / "nano" / "model.safetensors")
    key = "transformer.ln_f.bias"
    save_file(found | {key: found[key] + 1}, tmp_path / "nano" / "model.safetensors")
    assert trained("--teacher-model", str(tmp_path / "nano"), "--gamma", "0.3") == BOTH
    options = ["--model", str(tmp_path / "nano"), "--lr", "0.001", "--batch-size", "8", "--adam-epsilon", "1e-8"]
    assert trained(*options, "--teacher-model", "nano") == []  # the student's weights are not the teacher's


def test_a_model_of_other_weights_or_another_dropout_has_another_hash():
    one, other = nano(), nano(noise=1e-6)
    assert hash_of_model(one) == hash_of_model(nano()) != hash_of_model(other)
    other = nano()
    other.config.dropout = 0.5
    assert hash_of_model(one) != hash_of_model(other)


def test_a_teacher_may_be_larger_than_its_student(lab, tmp_path):
    """It starts from --teacher-model, and its checkpoints may be larger, too."""
    tok = nano_tokenizer()
    torch.manual_seed(0)
    large = GPT(GPTConfig(vocab_size=tok.n_base, n_positions=64, n_embd=96, n_layer=3, n_head=4))
    save_gpt(large, tmp_path / "large", tokenizer=tok.name)
    folder = run(lab, "--teacher-model", str(tmp_path / "large"))
    for teacher in (Path(lab[5]) / "teachers").iterdir():
        assert read_json(teacher / "model" / "config.json")["n_embd"] == 96
    assert "teacher-model=large" in folder.name and read_json(folder / "model" / "config.json")["n_embd"] != 96
    single = run(lab, "--method", "single", "--teacher-model", str(tmp_path / "large"))
    size = sum(p.numel() for p in large.grow_vocab(tok.n_vocab - tok.n_base).parameters())
    assert read_json(single / "summary.json")["parameters"] == size


def test_a_teacher_of_another_tokenizer_is_refused(lab, tmp_path, capsys, gpt2_tok):
    save_gpt(GPT(GPTConfig(n_positions=64, n_embd=8, n_layer=1, n_head=1)), tmp_path / "other")
    said = error(capsys, [*lab, "--teacher-model", str(tmp_path / "other")])
    assert "its tokenizer is gpt2, that of --model nano is nano" in said


def test_a_teacher_that_is_found_teaches_as_the_one_that_was_trained(lab, tmp_path):
    made = run(lab, "--kd", "word")
    found = run(elsewhere(lab, "again", "--teachers", str(tmp_path / "runs/teachers")))
    assert equal(weights(made / "model"), weights(found / "model"))


def test_the_teachers_of_a_long_multitask_run_learn_for_nine_epochs(lab, phases):
    """Row (7) of Table 3: 27 epochs of multitask learning from single-task teachers."""
    run(lab, "--method", "multitask", "--kd", "seq", "--epochs", "27")
    assert phases == [("teacher", "colors", 9), ("teacher", "sizes", 9), ("student", "colors+sizes", 27)]


def test_a_run_knows_what_its_teachers_took_wherever_they_were_trained(lab):
    made = read_json(run(lab, "--kd", "word") / "summary.json")
    found = read_json(run(lab, "--kd", "seq") / "summary.json")
    assert made["teacher_time_s"] == made["teacher_time_here_s"] == found["teacher_time_s"] > 0
    assert found["teacher_time_here_s"] == 0.0 and made["parameters"] == found["parameters"] > 9e5
    assert read_json(run(lab, "--kd", "none") / "summary.json")["teacher_time_s"] == 0.0
    for path in (Path(lab[5]) / "teachers").glob("*/config.json"):
        write_json(path, {k: v for k, v in read_json(path).items() if k != "seconds"})
    assert "teacher_time_s" not in read_json(run(lab, "--kd", "seqsoft") / "summary.json")


@pytest.mark.parametrize("seconds", ["-5", "NaN", "1e400", "true", '"long"'])
def test_what_a_teacher_says_of_its_time_spoils_no_checkpoint(seconds, tmp_path):
    save_gpt(nano(), tmp_path / "model")
    (tmp_path / "config.json").write_text(f'{{"seconds": {seconds}}}')
    one = SimpleNamespace(teacher_start=nano(), teacher_times={}, ready=lambda model: model)
    load_teacher(one, SimpleNamespace(name="colors"), tmp_path)
    assert one.teacher_times == {"colors": None}


def test_a_teacher_that_is_not_whole_is_refused_with_what_to_do(lab, phases, tmp_path, capsys):
    run(lab, "--method", "single")
    (folder,) = (Path(lab[5]) / "teachers").glob("colors-*")
    whole = folder.rename(tmp_path / "whole")

    def broken(what) -> str:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        what()
        return error(capsys, [*lab, "--kd", "word", "--resume"])

    other = GPT(GPTConfig(vocab_size=60, n_embd=8, n_layer=1, n_head=1))
    for what in (
        lambda: save_gpt(other, folder / "model"),
        (folder / "config.json").unlink,
        lambda: shutil.rmtree(folder / "model"),
        lambda: (shutil.rmtree(folder), folder.symlink_to(tmp_path / "nowhere")),
    ):
        said = broken(what)
        assert str(folder) in said and ("delete it" in said or "remove it" in said)


def test_a_folder_that_cannot_be_written_is_refused_at_once(lab, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "--teachers" in error(capsys, [*lab, "--teachers", str(tmp_path / "file" / "teachers")])


@pytest.mark.slow
def test_runs_that_need_the_same_teacher_at_once_train_it_once(lab):
    options = [[*lab, "--seed", "3", "--kd", kd] for kd in ("word", "seqsoft")]
    pipes = {"cwd": ROOT, "stdout": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([sys.executable, "train.py", *o], **pipes) for o in options]
    said = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    for task in BOTH:
        assert sum(text.count(f"teacher {task}, epoch 2/2") for text in said) == 1
        assert sum(len(re.findall(rf"teacher  of {task}: [\d.]+, saved in", text)) for text in said) == 1
        assert sum(text.count(f"teacher  of {task}: found") for text in said) == 1
    assert not list((Path(lab[5]) / "teachers").glob(".*"))
