"""Algorithm 1 and the baselines as whole runs on the nano model. python -m pytest tests/test_train.py"""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from whole_runs import elsewhere, equal, run, weights

import train
from data import IGNORE
from eval import predict
from lab.files import read_json, read_jsonl
from lab.run import Run, seeds
from lab.run.options import parse
from lab.run.pretrained import load_student, nano_tokenizer
from lab.run.report import draw_run
from lab.tasks import load_task

# ---------------------------------------------------------------------- what a run leaves


@pytest.mark.parametrize(
    "options",
    [
        ["--method", "finetune"],
        ["--kd", "none", "--replay", "real", "--replay-loss", "added", "--eval-every-epoch", "--keep-models"],
        ["--kd", "word"],
        ["--kd", "seqsoft", "--updates", "alternate"],
        ["--method", "single", "--qa-only"],
        ["--method", "multitask", "--kd", "seq", "--eval-every-epoch"],
    ],
    ids=" ".join,
)
def test_every_method_runs_end_to_end_and_leaves_the_whole_run_directory(lab, options):
    folder = run(lab, *options)
    multitask, single = "multitask" in options, "single" in options
    stages = ["1-colors+sizes"] if multitask else ["1-colors", "2-sizes"]
    files = {p.name for p in folder.iterdir()}
    assert {"config.json", "log.jsonl", "scores.jsonl", "summary.json", "curves.png", "model", *stages} == files
    config, summary = (read_json(folder / name) for name in ("config.json", "summary.json"))
    assert config["tasks"] == ["colors", "sizes"] == summary["order"]
    assert config["answer_budgets"] == {"colors": 3, "sizes": 3}
    assert 0 <= summary["average"] <= 100 and (summary["forgetting"] is None) == (multitask or single)
    found = [(line["stage"], line["epoch"], line["task"]) for line in read_jsonl(folder / "scores.jsonl")]
    if single:
        assert found == [(0, 0, "colors"), (0, 0, "sizes"), (1, 2, "colors"), (2, 2, "sizes")]
    else:
        last = (1, 2) if "--eval-every-epoch" in options else (2,)
        epochs = [(0, 0)] + [(m, epoch) for m in range(1, len(stages) + 1) for epoch in last]
        assert found == [(m, e, task) for m, e in epochs for task in ("colors", "sizes")]
    for stage in stages:
        predictions = read_jsonl(folder / stage / "predictions.jsonl")
        tasks = [stage[2:]] if single else ["colors", "sizes"]
        assert [p["task"] for p in predictions] == [t for t in tasks for _ in range({"colors": 9, "sizes": 8}[t])]
        assert (folder / stage / "model").exists() == ("--keep-models" in options)
    assert (folder / "2-sizes" / "pseudo.jsonl").exists() == ("--kd" in options and not multitask)
    answers = sorted(str(p.relative_to(folder)) for p in folder.rglob("distil.jsonl"))
    where = ["1-colors+sizes/colors", "1-colors+sizes/sizes"] if multitask else ["1-colors", "2-sizes"]
    assert answers == ([f"{folder}/distil.jsonl" for folder in where] if {"seq", "seqsoft"} & set(options) else [])


def test_a_run_prints_what_it_does_and_ends_with_answers_pseudo_samples_and_its_table(lab, capsys):
    folder = run(lab, "--kd", "none")
    said = capsys.readouterr().out
    assert "model    nano (as asked): 1.3M parameters" in said and "device   cpu, float32 (as asked)" in said
    for task in ("colors", "sizes"):
        predictions = [x for x in read_jsonl(folder / "2-sizes" / "predictions.jsonl") if x["task"] == task][:3]
        at = said.index(f"{task}, answers to the first test examples after the last stage")
        assert all(f"-> {x['prediction'] or '(nothing)'}" in said[at:] for x in predictions)
    assert "colors, pseudo-samples generated before 2-sizes" in said
    assert said.index("answers to the first") < said.index("average") < said.index("everything is in")


def test_a_run_is_a_function_of_its_seed(lab):
    one, again = run(lab), run(elsewhere(lab, "other"))
    other = run(lab, "--seed", "1")
    assert equal(weights(one / "model"), weights(again / "model"))
    assert (one / "scores.jsonl").read_bytes() == (again / "scores.jsonl").read_bytes()
    assert not equal(weights(one / "model"), weights(other / "model"))


def test_learning_works_and_finetuning_forgets(lab):
    """A model that has learned answers its training examples; QA rows alone leave nothing of the first task. The
    student that was saved has the same answers."""
    folder = run(lab, "--method", "finetune", "--epochs", "40", "--batch-size", "3")
    R = read_json(folder / "summary.json")["scores"]
    assert R["1"]["colors"] >= 60 and R["2"]["sizes"] >= 60 and R["2"]["colors"] < R["1"]["colors"]
    model, tok, config = load_student(folder / "model")
    test = load_task(lab[1].split(",")[1], "", "").test
    found = [tok.decode(ids) for ids in predict(model, tok, test, config["max_len"], config["answer_budgets"]["sizes"])]
    lines = read_jsonl(folder / "2-sizes" / "predictions.jsonl")
    assert found == [line["prediction"] for line in lines if line["task"] == "sizes"]


def test_a_picture_that_fails_is_a_warning_and_is_drawn_by_the_next_try(lab, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("no font")

    with monkeypatch.context() as patch:
        patch.setattr("lab.run.run.draw_run", broken)
        folder = run(lab, "--kd", "none")
    said = capsys.readouterr().out
    assert said.index("average") < said.index("WARNING: curves.png can't be drawn (RuntimeError: no font)")
    assert read_json(folder / "summary.json")["order"] == ["colors", "sizes"]
    assert not (folder / "curves.png").exists()
    assert train.main([*lab, "--kd", "none", "--resume"]) == 0
    assert (folder / "curves.png").stat().st_size > 1000


def test_the_curves_need_no_pyplot_and_so_no_display_and_leave_a_notebook_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # it can't be imported
    rows = [{"stage": m, "epoch": e, "task": t, "score": 50.0} for m, e in ((0, 0), (1, 1), (1, 2)) for t in "ab"]
    draw_run(["a", "b"], 2, rows, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


# ---------------------------------------------------------------------- what the methods learn from


@pytest.fixture
def learned(monkeypatch):
    """What `learn` was given, phase by phase; nothing is learned."""
    calls = []

    def learn(run, model, phase, current, replay=(), teacher=None, before_step=None):
        calls.append({"run": run, "phase": phase, "current": current, "replay": list(replay), "teacher": teacher})

    monkeypatch.setattr(train, "learn", learn)
    return calls


def test_methods_differ_by_what_they_learn_from(lab, learned):
    def students(*options):
        learned.clear()
        run(lab, *options)
        return [call for call in learned if call["phase"].kind == "student"]

    def rows(samples):
        return [sample.lm_ids for sample in samples]

    first, second = students("--method", "finetune")
    assert not first["run"].lm_rows and not second["replay"] and second["teacher"] is None
    real = second["current"]
    for options, soft, rule in ((["--kd", "none"], False, "joint"), (["--kd", "word"], True, "added")):
        first, second = students(*options, "--replay", "real")
        assert first["replay"] == [] and len(second["replay"]) == 4  # ceil(0.5 · 8), real ones of the first task
        assert rows(second["current"]) == rows(real) and second["run"].lm_rows and second["run"].replay_loss == rule
        assert (first["teacher"] is not None) == soft == (second["teacher"] is not None)
        if soft:
            teacher = second["teacher"].model
            assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    for options, soft, rule in ((["--kd", "seq"], False, "joint"), (["--kd", "seqsoft"], True, "added")):
        first, second = students(*options)
        assert rows(second["current"]) != rows(real) and len(second["current"]) == len(real)
        assert (second["teacher"] is not None) == soft and second["run"].replay_loss == rule
    tok = nano_tokenizer()
    for r, d in zip(real, second["current"]):  # context and question stay the real ones
        at = r.qa_ids.index(tok.ans_id)
        assert r.qa_ids[: at + 1] == d.qa_ids[: at + 1]
    (both,) = students("--method", "multitask")
    starts = [sample.lm_ids[0] for sample in both["current"]]
    assert starts == [tok.add_task("colors")] * 9 + [tok.add_task("sizes")] * 8  # each its own task's token


@pytest.mark.parametrize("method", ["single", "multitask"])
def test_qa_only_leaves_out_the_lm_rows(lab, method):
    folder = run(lab, "--method", method, "--qa-only")
    assert all(line["loss_lm"] == 0 < line["loss_qa"] == line["loss"] for line in read_jsonl(folder / "log.jsonl"))
    folder = run(lab, "--method", method, "--epochs", "1")
    assert all(0 < line["loss_lm"] < line["loss"] for line in read_jsonl(folder / "log.jsonl"))


def test_lamol_without_gamma_replays_nothing_and_keeps_its_lm_rows(lab, learned, capsys):
    folder = run(lab, "--kd", "none", "--gamma", "0")
    assert [call["replay"] for call in learned] == [[], []] and all(call["run"].lm_rows for call in learned)
    assert not (folder / "2-sizes" / "pseudo.jsonl").exists() and "WARNING" not in capsys.readouterr().out


def test_a_stage_without_replay_says_so_loudly(lab, learned, capsys):
    """Where all pseudo-samples are rejected, and where there is less than one for each of two earlier tasks."""
    things = shutil.copytree(lab[1].split(",")[0], Path(lab[5]).with_name("things"))
    folder = run(lab, "--kd", "none", "--order", f"{lab[1]},{things}", "--gamma", "0.1")
    (one,) = read_jsonl(folder / "2-sizes" / "pseudo.jsonl")
    assert one["rejected"] and not (folder / "3-things" / "pseudo.jsonl").exists()
    assert capsys.readouterr().out.count("WARNING: nothing is replayed in this stage") == 2


def test_a_teacher_answer_that_never_stops_gets_no_eos(lab, learned, monkeypatch):
    never = lambda m, tok, examples, n, budget, beams: [[65] * budget for _ in examples]  # noqa: E731
    monkeypatch.setattr("lab.run.run.predict", never)
    folder = run(lab, "--kd", "seq")
    samples = next(call["current"] for call in learned if call["phase"].kind == "student")
    assert all(x.qa_labels[-1] == IGNORE == x.lm_labels[-1] and x.qa_labels[-2] == 65 for x in samples)
    assert not any(line["stopped"] for line in read_jsonl(folder / "1-colors" / "distil.jsonl"))


def test_a_beam_is_for_the_teachers_answers_alone(lab, learned, monkeypatch):
    asked = []
    monkeypatch.setattr("lab.run.run.predict", lambda *a: (asked.append(a[-1]), [[] for _ in a[2]])[1])
    for options in (["--kd", "seq"], ["--kd", "seqsoft"], ["--method", "multitask", "--kd", "seq"]):
        asked.clear()
        run(lab, *options, "--kd-beam", "3")
        assert asked.count(3) == 2 and set(asked) == {1, 3}  # one a task; test answers are greedy


def test_several_references_are_pooled_where_that_is_asked_for(lab, learned, tmp_path, monkeypatch):
    monkeypatch.setattr("lab.run.run.predict", lambda m, tok, examples, *a: [tok.encode("red") for _ in examples])
    (tmp_path / "colors" / "task.json").write_text('{"metric": "rouge"}')
    row = {"context": "a tan car", "question": "color?", "answer": "tan", "meta": {"references": ["red", "red tan"]}}
    (tmp_path / "colors" / "test.jsonl").write_text(json.dumps(row) + "\n")
    lab[1] = lab[1].split(",")[0]
    plain, several = (run(lab, "--kd", "none", *options) for options in ([], ["--multi-reference"]))
    last = [read_jsonl(folder / "scores.jsonl")[-1]["score"] for folder in (plain, several)]
    assert last[0] == 0.0 < last[1] < 100.0


# ---------------------------------------------------------------------- random numbers


def test_every_use_of_random_numbers_has_a_generator_of_its_own(lab, monkeypatch):
    keys, seed_of = [], seeds.seed_of

    def spy(*key):
        keys.append((*key, 0)[:5])
        return seed_of(*key)

    monkeypatch.setattr("lab.run.seeds.seed_of", spy)
    monkeypatch.setattr("lab.run.progress.seed_of", spy)
    run(lab, "--kd", "word", "--seed", "5")
    wanted = {(5, 2, "colors", "replay", 0)}
    for stage, name in ((1, "colors"), (2, "sizes")):
        for kind in ("teacher", "student"):
            of_phase = (5, stage * (kind == "student"), name)
            wanted |= {(*of_phase, f"{kind} {what}", e) for what in ("dropout", "batches") for e in (1, 2)}
            wanted |= {(*of_phase, f"{kind} end", 2)}
    assert len(keys) == len(set(keys)) and set(keys) == wanted


def test_seeds_differ_in_all_that_they_are_for():
    keys = [(s, m, t, p, e) for s in (0, 1) for m in (0, 1) for t in ("a", "b") for p in ("x", "y") for e in (1, 2)]
    assert len({seeds.seed_of(*key) for key in keys}) == len(keys)
    assert seeds.seed_of(0, 1, "woz", "student", 2) == seeds.seed_of(0, 1, "woz", "student", 2) < 2**63


# ---------------------------------------------------------------------- hooks


def test_hooks_are_called_before_each_update_of_the_student_and_after_each_stage(lab):
    seen = []

    def before_step(run, model):
        assert all(torch.is_tensor(p.grad) for p in model.parameters())
        seen.append("step")

    def after_stage(run, model, samples):
        seen.append(len(samples))

    with Run(parse([*lab, "--kd", "none", "--replay", "real", "--batch-size", "3"])) as r:
        train.lifelong(r, before_step, after_stage)
        r.finish()
    assert seen == ["step"] * 6 + [9] + ["step"] * 8 + [12]
