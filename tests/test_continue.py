"""--continue: a finished run learns more tasks, as if the order had been longer.

python -m pytest tests/test_continue.py; for what cannot be continued see tests/test_earlier_runs.py."""

import shutil

import pytest
from whole_runs import directory, error, killed_at, result, run

import train
from lab.files import read_json, read_jsonl, write_json, write_jsonl

MEASURES = ("order", "average", "backward_transfer", "forgetting", "forward_transfer")


@pytest.fixture
def three(lab, tmp_path):
    """Options, the first two tasks, and a third one."""
    shutil.copytree(tmp_path / "colors", tmp_path / "things")
    text = (tmp_path / "colors" / "train.jsonl").read_text().replace("color?", "what?")
    (tmp_path / "things" / "train.jsonl").write_text(text)
    return lab[2:], lab[1], str(tmp_path / "things")


def last_stage_is_equal(one, other) -> None:
    """Both runs have the same third stage, student and measures."""
    wanted, found = result(one), result(other)
    names = [name for name in wanted if name.startswith(("3-", "model/"))]
    assert len(names) >= 3 and all(found[name] == wanted[name] for name in names)
    lines = [[x for x in read_jsonl(run / "scores.jsonl") if x["stage"] == 3] for run in (one, other)]
    assert lines[0] == lines[1]
    summaries = [read_json(run / "summary.json") for run in (one, other)]
    for key in MEASURES:
        assert summaries[0][key] == pytest.approx(summaries[1][key]), key


@pytest.mark.parametrize("kd", ["none", "word", "seqsoft"])
def test_a_run_that_is_continued_is_the_longer_order(three, kd):
    options, two, third = three
    options = [*options, "--kd", kd, "--epochs", "3", "--seed", "4"]
    whole = run(["--order", f"{two},{third}", *options])
    parent = run(["--order", two, *options])
    arguments = ["--continue", str(parent), "--order", third]
    assert killed_at(9, arguments)
    child = run(arguments, "--resume")
    assert child.name.startswith(f"colors+sizes+things-lamol-{kd}-g0.5-s4-") and "-continue=" in child.name
    last_stage_is_equal(whole, child)
    assert read_json(child / "config.json")["continue_"] == str(parent)


def test_a_run_is_continued_by_several_tasks_and_again(three, tmp_path, monkeypatch):
    options, two, third = three
    first, second = two.split(",")
    options = [*options, "--kd", "none"]
    whole = run(["--order", f"{two},{third}", *options])
    parent = run(["--order", first, *options])
    monkeypatch.chdir(parent)
    at_once = run(["--continue", ".", "--order", f"{second},{third}"])
    child = run(["--continue", ".", "--order", second])
    monkeypatch.chdir(tmp_path)
    one_by_one = run(["--continue", str(child), "--order", third, "--resume"])
    for other in (at_once, one_by_one):
        last_stage_is_equal(whole, other)


def test_a_parent_with_other_data_weights_or_scores_now_is_refused(three, tmp_path, capsys):
    options, two, third = three
    parent = run(["--order", two, *options, "--kd", "none"])
    arguments = ["--continue", str(parent), "--order", third]
    rows = read_jsonl(parent / "scores.jsonl")
    write_jsonl(parent / "scores.jsonl", rows[:2])
    assert "its scores.jsonl is not that of a finished run" in error(capsys, arguments)
    write_jsonl(parent / "scores.jsonl", rows)
    shutil.rmtree(directory(arguments))
    config = read_json(parent / "model" / "config.json")
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.5)
    write_json(parent / "model" / "config.json", config | rates)
    assert "its student has another shape than --model nano" in error(capsys, arguments)
    with open(tmp_path / "sizes" / "train.jsonl", "a", encoding="utf-8") as f:
        f.write('{"context": "a new one", "question": "size?", "answer": "big"}\n')
    assert "task sizes has other data now" in error(capsys, arguments)
    assert train.main([*arguments[:2], "--order", two]) == 2
