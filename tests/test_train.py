"""Algorithm 1 and the baselines as whole runs on the nano model, and the command line.

python -m pytest tests/test_train.py"""

import contextlib
import copy
import dataclasses
import json
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import nano
from safetensors.torch import load_file, save_file

import data
import eval as eval_file
import kd
import lamol
import train
from eval import rouge_scores
from lab import run as lab_run
from lab import rundir
from lab.options import TEACHER_KEY, UNNAMED, Options, parse, resolve
from lab.run import NANO
from model import GPT, Block, GPTConfig


def run(arguments, *more) -> Path:
    """A run through the command line; the run's directory."""
    arguments = [*arguments, *more]
    runs = Path([value for option, value in pairwise(arguments) if option == "--runs-dir"][-1])
    before = set(runs.glob("*"))
    assert train.main(arguments) == 0
    (new,) = set(runs.glob("*")) - before - {runs / "teachers"}
    return new


def lines(path):
    return rundir.read_jsonl(path)


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(a, b):
    return all(torch.equal(p, b[key]) for key, p in a.items())


# ---------------------------------------------------------------------- the schedule


def test_the_learning_rate_is_the_released_one(golden):
    compared = 0
    for case in golden("schedule")["cases"]:
        if case["decay_style"] != "linear":
            continue
        for seen, wanted in case["lr_after"]:
            lr = train.learning_rate(seen, case["n_samples"], case["epochs"], case["start_lr"], case["warmup_ratio"])
            assert lr == pytest.approx(wanted, rel=1e-12, abs=1e-20)
            compared += 1
    assert compared > 50


def test_each_update_uses_the_rate_of_the_samples_seen_before_it(golden):
    for trace in golden("schedule")["step_traces"]:
        seen = 0
        for size, wanted in zip(trace["batch_sizes"], trace["lr_used"]):
            lr = train.learning_rate(seen, trace["n_samples"], trace["epochs"], trace["start_lr"], 0.005)
            assert lr == pytest.approx(wanted, rel=1e-12, abs=1e-20)
            seen += size


# ---------------------------------------------------------------------- whole runs


@pytest.mark.parametrize(
    "options",
    [
        ["--method", "finetune"],
        ["--kd", "none"],
        ["--kd", "word"],
        ["--kd", "seq"],
        ["--kd", "seqsoft", "--updates", "alternate"],
        ["--kd", "none", "--real-replay", "--replay-loss", "added", "--eval-every-epoch", "--keep-models"],
        ["--method", "single", "--qa-only"],
        ["--method", "multitask", "--kd", "seq"],
        ["--method", "multitask", "--qa-only", "--eval-every-epoch"],
    ],
    ids=" ".join,
)
def test_every_method_runs_end_to_end_and_leaves_the_whole_run_directory(lab, options, capsys):
    folder = run(lab, *options)
    multitask, single = "multitask" in options, "single" in options
    stages = ["1-colors+sizes"] if multitask else ["1-colors", "2-sizes"]
    files = {p.name for p in folder.iterdir()}
    assert {"config.json", "log.jsonl", "scores.jsonl", "summary.json", "curves.png", "model"} | set(stages) == files
    config, summary = (json.loads((folder / f).read_text()) for f in ("config.json", "summary.json"))
    assert config["tasks"] == ["colors", "sizes"] == summary["order"]
    assert config["answer_budgets"] == {"colors": 4, "sizes": 4}
    assert 0 <= summary["average"] <= 100 and (summary["forgetting"] is None) == (multitask or single)
    per_epoch = "--eval-every-epoch" in options
    found = [(line["stage"], line["epoch"], line["task"]) for line in lines(folder / "scores.jsonl")]
    if single:
        assert sorted(found) == [(0, 0, "colors"), (0, 0, "sizes"), (1, 2, "colors"), (2, 2, "sizes")]
    else:
        epochs = [(0, 0)] + [(m + 1, e) for m in range(len(stages)) for e in ((1, 2) if per_epoch else (2,))]
        assert found == [(m, e, task) for m, e in epochs for task in ("colors", "sizes")]
    for stage in stages:
        predictions = lines(folder / stage / "predictions.jsonl")
        tasks = [stage[2:]] if single else ["colors", "sizes"]
        assert [p["task"] for p in predictions] == [t for t in tasks for _ in range({"colors": 9, "sizes": 8}[t])]
        assert (folder / stage / "model").exists() == ("--keep-models" in options)
    if "--kd" in options:
        assert (folder / "2-sizes" / "pseudo.jsonl").exists() == (not multitask)
        distils = list(folder.rglob("distil.jsonl"))
        assert len(distils) == (2 if {"seq", "seqsoft"} & set(options) else 0)
    capsys.readouterr()
    assert eval_file.main([str(folder)]) == 0
    assert "average" in capsys.readouterr().out


def test_a_saved_student_scores_the_same_when_it_is_loaded(lab, capsys):
    folder = run(lab, "--kd", "none", "--epochs", "8")
    last = {line["task"]: line["score"] for line in lines(folder / "scores.jsonl")}
    for entry in lab[lab.index("--order") + 1].split(","):
        capsys.readouterr()
        assert eval_file.main(["--model", str(folder / "model"), "--task", entry]) == 0
        assert capsys.readouterr().out.split()[:2] == ["score", f"{last[Path(entry).name]:.2f}"]


def test_a_model_is_scored_with_the_answer_budget_of_its_run(lab, monkeypatch):
    folder = run(lab, "--kd", "none") / "model"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"answer_budgets": {"colors": 2, "sizes": 3}}))
    asked = []
    monkeypatch.setattr(
        eval_file, "generate", lambda m, prompts, budget, stop: asked.append(budget) or [[]] * len(prompts)
    )
    for entry in lab[1].split(","):
        assert eval_file.main(["--model", str(folder), "--task", entry]) == 0
    assert asked == [2, 3]


def test_a_run_ends_with_its_table_some_answers_and_some_dreams(lab, capsys):
    folder = run(lab, "--kd", "none")
    said = capsys.readouterr().out
    assert "model    nano (as asked): 1.0M parameters" in said and "device   cpu, float32 (as asked)" in said
    for task in ("colors", "sizes"):
        predictions = [x for x in lines(folder / "2-sizes" / "predictions.jsonl") if x["task"] == task][:3]
        at = said.index(f"{task}, answers to the first test examples after the last stage")
        assert all(f"-> {x['prediction'] or '(nothing)'}" in said[at:] for x in predictions)
    assert "colors, pseudo-samples dreamt up before 2-sizes" in said
    assert said.index("answers to the first") < said.index("average") < said.index("everything is in")


def test_a_run_is_a_function_of_its_seed(lab):
    one = run(lab)
    again = run([*lab[:5], str(Path(lab[5]).parent / "other"), *lab[6:]])
    other = run(lab, "--seed", "1")
    assert same(weights(one / "model"), weights(again / "model"))
    assert (one / "scores.jsonl").read_bytes() == (again / "scores.jsonl").read_bytes()
    assert not same(weights(one / "model"), weights(other / "model"))


def test_learning_works_and_finetuning_forgets(lab):
    """A model that has learned answers its training examples; QA rows alone leave nothing of the first task."""
    folder = run(lab, "--method", "finetune", "--epochs", "40", "--batch-size", "3")
    R = json.loads((folder / "summary.json").read_text())["scores"]
    assert R["1"]["colors"] >= 60 and R["2"]["sizes"] >= 60 and R["2"]["colors"] < R["1"]["colors"]


def test_a_teacher_is_the_single_model_and_is_made_once(lab, monkeypatch, capsys):
    single = run(lab, "--method", "single", "--keep-models")
    folders = sorted((Path(lab[5]) / "teachers").iterdir())
    assert [f.name.split("-")[0] for f in folders] == ["colors", "sizes"]
    assert {p.name for p in folders[0].iterdir()} == {"config.json", "model", "predictions.jsonl", "scores.jsonl"}
    assert same(weights(single / "1-colors" / "model"), weights(folders[0] / "model"))
    learned = []
    learn = train.learn
    monkeypatch.setattr(
        train, "learn", lambda *a, **k: (learned.append(a[6] if len(a) > 6 else "student"), learn(*a, **k))
    )
    run(lab, "--kd", "word")
    run(lab, "--kd", "seq", "--gamma", "0.3")
    run([lab[0], lab[1].split(",")[0], *lab[2:]], "--kd", "seqsoft")
    assert learned == ["student"] * 5  # found again by another method, γ and order
    for change in (["--seed", "1"], ["--limit", "5"], ["--lm-lambda", "0.5"]):
        learned.clear()
        run(lab, "--kd", "word", *change)
        assert learned == ["teacher", "student"] * 2, change  # but not by these


def test_a_teacher_that_is_found_teaches_as_the_one_that_was_made(lab, tmp_path):
    made = run(lab, "--kd", "word")
    found = run(
        lab, "--kd", "word", "--runs-dir", str(tmp_path / "again"), "--teachers", str(tmp_path / "runs/teachers")
    )
    assert same(weights(made / "model"), weights(found / "model"))


def test_a_teacher_is_taught_again_for_other_examples_slots_or_weights(lab, tmp_path, spied):
    def taught(*options):
        spied.clear()
        run(lab, "--kd", "word", *options)
        return [call["name"] for call in spied if call["phase"] == "teacher"]

    both, order = ["colors", "sizes"], lab[1].split(",")
    assert taught() == both and taught("--gamma", "0.1") == []
    assert taught("--order", ",".join(reversed(order))) == both[::-1]  # each has the other's slot
    shutil.copytree(NANO, tmp_path / "nano")
    options = ["--model", str(tmp_path / "nano"), "--lr", "0.001", "--batch-size", "8", "--adam-epsilon", "1e-8"]
    assert taught(*options) == []  # the same weights under another name
    weights_of = load_file(tmp_path / "nano" / "model.safetensors")
    save_file(
        weights_of | {"transformer.ln_f.bias": weights_of["transformer.ln_f.bias"] + 1},
        tmp_path / "nano" / "model.safetensors",
    )
    assert taught(*options, "--gamma", "0.3") == both
    with open(tmp_path / "colors" / "train.jsonl", "a", encoding="utf-8") as f:
        f.write('{"context": "a new one", "question": "color?", "answer": "red"}\n')
    assert taught("--gamma", "0.4") == ["colors"]


def test_an_option_that_does_not_change_a_teacher_is_not_in_its_key():
    fields = {f.name for f in dataclasses.fields(Options)}
    assert set(TEACHER_KEY) < fields and UNNAMED < fields
    for name in ("gamma", "kd", "replay_loss", "updates", "runs_dir", "device", "log_every"):
        assert name not in TEACHER_KEY


@pytest.fixture
def spied(monkeypatch):
    """What `learn` was given, run by run."""
    calls = []

    def learn(run, model, current, replay, stage, name, phase="student", epochs=0, **keywords):
        call = {"current": current, "replay": replay, "phase": phase, "rule": run.rule, "teacher": None, "lm": True}
        calls.append(call | {"name": name, "epochs": epochs or run.o.epochs} | keywords)

    monkeypatch.setattr(train, "learn", learn)
    return calls


def test_methods_differ_by_what_they_learn_from(lab, spied):
    def students(*options):
        spied.clear()
        run(lab, *options)
        return [call for call in spied if call["phase"] == "student"]

    first, second = students("--method", "finetune")
    assert not first["lm"] and not second["lm"] and not second["replay"] and second["teacher"] is None
    real = second["current"]
    for options, soft, rule in ((["--kd", "none"], False, "joint"), (["--kd", "word"], True, "added")):
        first, second = students(*options, "--real-replay")
        assert first["replay"] == [] and len(second["replay"]) == 4  # ceil(0.5 · 8), real ones of the first task
        assert second["current"] == real and second["lm"] and second["rule"] == rule
        assert (first["teacher"] is not None) == soft == (second["teacher"] is not None)
        if soft:  # frozen
            assert not second["teacher"].model.training and not any(
                p.requires_grad for p in second["teacher"].model.parameters()
            )
    for options, soft, rule in ((["--kd", "seq"], False, "joint"), (["--kd", "seqsoft"], True, "added")):
        first, second = students(*options)
        assert second["current"] != real and len(second["current"]) == len(real)
        assert (second["teacher"] is not None) == soft and second["rule"] == rule
    tok = data.Tokenizer.nano()
    for r, d in zip(real, second["current"]):  # context and question stay the real ones
        at = r.qa_ids.index(tok.ans_id)
        assert r.qa_ids[: at + 1] == d.qa_ids[: at + 1]
    (both,) = students("--method", "multitask")
    starts = [row.lm_ids[0] for row in both["current"]]
    assert starts == [tok.add_task("colors")] * 9 + [tok.add_task("sizes")] * 8  # each its own task's token


@pytest.mark.parametrize("method", ["single", "multitask"])
def test_qa_only_leaves_out_the_lm_rows(lab, spied, method):
    for options, lm in (([], True), (["--qa-only"], False)):
        spied.clear()
        run(lab, "--method", method, *options)
        assert spied and all(call["lm"] == lm for call in spied)


def test_an_update_is_made_in_training_mode_with_the_options_that_were_given(lab, monkeypatch):
    asked = {"loss": set(), "weights": set()}
    rows_loss, token_weights = train.kd.rows_loss, train.kd.token_weights

    def loss(model, teacher, rows, w, temperature, scale):
        asked["loss"].add((model.training, teacher.model.training if teacher else None, temperature))
        return rows_loss(model, teacher, rows, w, temperature, scale)

    def weigh(batch, rule, ans_id, ans_weight, lm_lambda):
        asked["weights"].add((rule, ans_weight, lm_lambda))
        return token_weights(batch, rule, ans_id, ans_weight, lm_lambda)

    monkeypatch.setattr(train.kd, "rows_loss", loss)
    monkeypatch.setattr(train.kd, "token_weights", weigh)
    run(lab, "--kd", "word", "--temperature", "3", "--ans-weight", "7", "--lm-lambda", "0.5")
    assert asked["loss"] == {(True, None, 3.0), (True, False, 3.0)}  # a teacher learns without one
    assert asked["weights"] == {("added", 7.0, 0.5)}


def test_every_phase_has_a_random_stream_of_its_own(lab, monkeypatch):
    keys = []

    def spy(*key):
        keys.append(key)
        return seed_of(*key)

    seed_of = rundir.seed_of
    monkeypatch.setattr(rundir, "seed_of", spy)  # `stream` asks there
    monkeypatch.setattr(train, "seed_of", spy)
    run(lab, "--kd", "word", "--seed", "5")
    wanted = {(5, 2, "colors", "replay", 0)} | {
        (5, stage * (phase == "student"), name, f"{phase} {what}", epoch)
        for stage, name in ((1, "colors"), (2, "sizes"))
        for phase in ("teacher", "student")
        for what in ("dropout", "batches")
        for epoch in (1, 2)
    }
    assert len(keys) == len(set(keys)) and {(*key, 0)[:5] for key in keys} == wanted


def test_gradients_are_clipped_after_they_are_unscaled(lab, tmp_path, monkeypatch):
    """With an epsilon far above the gradients, Adam's updates are as large as what clipping leaves of them."""
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *a, **k: scaler(*a, **k | {"init_scale": 2.0**10}))
    before = load_file(NANO / "model.safetensors")

    def moved(dtype, norm):
        options = ["--method", "finetune", "--weight-decay", "0", "--adam-epsilon", "100", "--lr", "1"]
        options += ["--runs-dir", str(tmp_path / dtype)]
        student = weights(run(lab, *options, "--dtype", dtype, "--max-grad-norm", norm) / "model")
        return sum(float((student[k] - p.float()).pow(2).sum()) for k, p in before.items() if "wte" not in k) ** 0.5

    free, clipped = moved("float32", "1000"), moved("float32", "0.01")
    assert clipped < free / 10
    assert moved("float16", "1000") == pytest.approx(free, rel=0.05)
    assert moved("float16", "0.01") == pytest.approx(clipped, rel=0.05)


def test_schedule_and_batch_size_count_replay_samples_too(lab, monkeypatch):
    counted = []
    monkeypatch.setattr(train, "batch_size", lambda n: counted.append(n) or 4)
    options = ["--model", str(NANO), "--kd", "none", "--real-replay", "--log-every", "1", "--epochs", "1"]
    folder = run(lab, *options, "--lr", "0.001", "--warmup-ratio", "0")
    assert counted == [9, 8 + 4]  # γ = 0.5
    rates = [line["lr"] for line in lines(folder / "log.jsonl") if line["task"] == "sizes"]
    assert rates == pytest.approx([0.001 * (12 - seen) / 12 for seen in (0, 4, 8)])


def test_lamol_without_gamma_replays_nothing_and_keeps_its_lm_rows(lab, spied):
    folder = run(lab, "--kd", "none", "--gamma", "0")
    assert [call["replay"] for call in spied] == [[], []] and all(call["lm"] for call in spied)
    assert not (folder / "2-sizes" / "pseudo.jsonl").exists()


def test_the_teachers_of_a_long_multitask_run_learn_for_nine_epochs(lab, spied):
    """Row (7) of Table 3: 27 epochs of multitask learning from single-task teachers."""
    run(lab, "--method", "multitask", "--kd", "seq", "--epochs", "27")
    assert [(call["phase"], call["epochs"]) for call in spied] == [("teacher", 9), ("teacher", 9), ("student", 27)]


def test_a_teacher_answer_that_never_stops_gets_no_eos(lab, monkeypatch):
    monkeypatch.setattr("lab.run.predict", lambda m, tok, examples, n, budget, beams: [[65] * budget for _ in examples])
    calls = []
    monkeypatch.setattr(train, "learn", lambda *a, **k: calls.append(a))  # students by 6 positional arguments
    folder = run(lab, "--kd", "seq")
    rows = next(call[2] for call in calls if len(call) == 6)
    assert all(row.qa_labels[-1] == data.IGNORE == row.lm_labels[-1] and row.qa_labels[-2] == 65 for row in rows)
    assert not any(line["stopped"] for line in lines(folder / "1-colors" / "distil.jsonl"))


def test_a_beam_is_for_the_teachers_answers_alone(lab, monkeypatch):
    asked, predict = [], lab_run.predict
    monkeypatch.setattr(lab_run, "predict", lambda *a: (asked.append(a[-1]), predict(*a))[1])
    for options in (["--kd", "seq"], ["--kd", "seqsoft"], ["--method", "multitask", "--kd", "seq"]):
        asked.clear()
        folder = run(lab, *options, "--kd-beam", "3")
        assert (
            asked.count(3) == 2 and set(asked) == {1, 3} and "-kd-beam=3" in folder.name
        )  # one a task; tests are greedy


def test_a_run_keeps_what_its_teachers_took_wherever_they_were_made(lab):
    made = rundir.read_json(run(lab, "--kd", "word") / "summary.json")
    found = rundir.read_json(run(lab, "--kd", "seq") / "summary.json")
    assert made["teacher_time_s"] == made["teacher_time_here_s"] == found["teacher_time_s"] > 0
    assert found["teacher_time_here_s"] == 0.0 and made["parameters"] == found["parameters"] > 9e5
    assert rundir.read_json(run(lab, "--kd", "none") / "summary.json")["teacher_time_s"] == 0.0


def test_of_teachers_that_do_not_say_what_they_took_nothing_is_said(lab):
    run(lab, "--kd", "word")
    for path in (Path(lab[5]) / "teachers").glob("*/config.json"):
        rundir.write_json(path, {k: v for k, v in rundir.read_json(path).items() if k != "seconds"})
    assert "teacher_time_s" not in rundir.read_json(run(lab, "--kd", "seq") / "summary.json")


def test_several_references_are_scored_where_that_is_asked_for(lab, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lab_run, "predict", lambda m, tok, examples, *a: [tok.encode("red") for _ in examples])
    (tmp_path / "colors" / "task.json").write_text('{"metric": "rouge"}')
    row = {"context": "a tan car", "question": "color?", "answer": "tan", "meta": {"references": ["red", "red tan"]}}
    (tmp_path / "colors" / "test.jsonl").write_text(json.dumps(row) + "\n")
    lab[1] = lab[1].split(",")[0]
    plain, several = (run(lab, "--kd", "none", *options) for options in ([], ["--multi-reference"]))
    last = [lines(folder / "scores.jsonl")[-1] for folder in (plain, several)]
    assert [x["metric"] for x in last] == ["rouge", "rouge"] and "-multi-reference=True" in several.name
    red = data.Tokenizer.nano().encode("red")
    monkeypatch.setattr(eval_file, "generate", lambda m, prompts, budget, stop: [red] * len(prompts))
    for options, score in (([], last[0]["score"]), (["--multi-reference"], last[1]["score"])):
        capsys.readouterr()
        assert eval_file.main(["--model", str(plain / "model"), "--task", lab[1], *options]) == 0
        assert capsys.readouterr().out.split()[:2] == ["score", f"{score:.2f}"]
    assert last[0]["score"] == 0.0 and last[1]["score"] == rouge_scores(["red"], [["red", "red tan"]])["rouge"] > 0


def test_pseudo_data_is_counted_by_reason_and_kept_with_what_was_rejected(lab, capsys, monkeypatch):
    tok = data.Tokenizer.nano()
    row = [65, tok.ans_id, 66, tok.eos_id]

    def generate(model, prompts, *a, **k):
        return [row, row, [65], [65, 66, tok.eos_id]] + [row] * (len(prompts) - 4)

    monkeypatch.setattr(lamol, "generate", generate)
    folder = run(lab, "--kd", "none", "--gamma", "0.7")
    assert "pseudo-data of colors: 4 accepted, 1 never stopped, 1 no ANS of 6" in capsys.readouterr().out
    kept = lines(folder / "2-sizes" / "pseudo.jsonl")
    assert [line["rejected"] for line in kept] == ["", "", "never stopped", "no ANS", "", ""]
    assert (kept[0]["context_and_question"], kept[0]["answer"]) == ("A", "B")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_and_the_grad_scaler_run_on_a_cpu(lab, dtype):
    folder = run(lab, "--dtype", dtype)
    assert json.loads((folder / "config.json").read_text())["resolved_dtype"] == dtype
    log = lines(folder / "log.jsonl")
    assert all(0 < line["loss"] < 100 for line in log)
    assert all(p.isfinite().all() for p in weights(folder / "model").values())


def test_the_schedule_stands_still_where_the_scaler_skips_an_update(lab, monkeypatch):
    scaler, other = torch.amp.GradScaler, {"init_scale": 2.0**26, "backoff_factor": 2.0**-16}
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *a, **k: scaler(*a, **k | other))
    log = lines(run(lab, "--dtype", "float16", "--kd", "none", "--log-every", "1", "--warmup-ratio", "0") / "log.jsonl")
    rates = [line["lr"] for line in log if line["task"] == "colors"]
    assert rates[0] == rates[1]  # the first update overflowed at the initial scale
    assert rates[-1] < rates[0]


def test_answers_are_decoded_greedily_and_pseudo_data_is_sampled(lab, monkeypatch):
    asked = {"eval": set(), "lamol": set()}
    for module in (eval_file, lamol):

        def spy(*arguments, generate=module.generate, name=module.__name__, **keywords):
            asked[name].add(keywords.get("top_k"))
            return generate(*arguments, **keywords)

        monkeypatch.setattr(module, "generate", spy)
    run(lab, "--kd", "seq")
    assert asked == {"eval": {None}, "lamol": {20}}


def test_each_task_has_an_adamw_of_its_own(lab, monkeypatch):
    made = []
    make = train.optimizer_of
    monkeypatch.setattr(train, "optimizer_of", lambda *a: made.append(make(*a)) or made[-1])
    run(lab, "--kd", "none")
    assert [type(optimizer) for optimizer in made] == [torch.optim.AdamW] * 2


def test_weight_decay_spares_biases_and_layer_norms():
    o = resolve(Options(order="woz"))
    model = GPT(GPTConfig(vocab_size=9, n_embd=8, n_layer=1, n_head=1))
    decayed, spared = train.optimizer_of(model, o).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.01 and spared["weight_decay"] == 0
    assert all(names[id(p)].endswith("bias") or "ln_" in names[id(p)] for p in spared["params"])
    assert not any(names[id(p)].endswith("bias") or "ln_" in names[id(p)] for p in decayed["params"])
    assert decayed["eps"] == 1e-4 and decayed["lr"] == 6.25e-5


# ---------------------------------------------------------------------- the command line


def error(capsys, arguments, code):
    try:
        found = train.main(arguments)
    except SystemExit as e:
        found = e.code
    said = capsys.readouterr().err.strip().splitlines()
    assert found == code
    assert len(said) == 1 and said[0].startswith("error: ")
    return said[0]


def test_the_defaults_are_table_7s_and_the_released_codes():
    o = resolve(Options(order="woz,sql,cnn"))
    assert (o.model, o.lr, o.adam_epsilon, o.epochs, o.max_grad_norm) == ("gpt2", 6.25e-5, 1e-4, 9, 1.0)
    assert (o.warmup_ratio, o.temperature, o.top_k, o.weight_decay, o.gamma) == (0.005, 2.0, 20, 0.01, 0.2)
    assert (o.lm_lambda, o.ans_weight, o.batch_size, o.replay_loss, o.updates) == (0.25, 5.0, 0, "released", "shuffled")


def test_the_batch_size_is_the_released_one():
    assert [train.batch_size(n) for n in (1, 5999, 7500, 15000, 138000)] == [4, 4, 5, 10, 92]


def test_options_that_the_method_has_no_use_for_are_said(lab, capsys):
    run(lab, "--method", "finetune", "--temperature", "3")
    said = capsys.readouterr().out
    assert "note     --gamma has no effect with --method finetune" in said and "note     --temperature" in said
    run(lab, "--kd", "word", "--gamma", "0", "--kd-beam", "4", "--updates", "alternate")
    said = capsys.readouterr().out
    assert "note     --kd-beam has no effect" in said
    assert "note     --updates has no effect" in said
    run(lab, "--kd", "word")
    assert "note  " not in capsys.readouterr().out


def test_defaults_depend_on_the_method_and_the_model():
    o = resolve(Options(order="woz"))
    assert (o.method, o.kd, o.lr, o.batch_size, o.epochs, o.gamma, o.top_k) == ("lamol", "word", 6.25e-5, 0, 9, 0.2, 20)
    for method in ("finetune", "single", "multitask"):
        assert resolve(Options(order="woz", method=method)).kd == "none"
    nano = resolve(Options(order="woz", model="nano", epochs=2))
    assert (nano.lr, nano.batch_size, nano.epochs, nano.adam_epsilon) == (1e-3, 8, 2, 1e-8)
    assert resolve(Options(model="nano", batch_size=0)).batch_size == 0  # the released rule


@pytest.mark.parametrize(
    "options, says",
    [
        (["--order", "wozz"], "unknown task 'wozz'"),
        (["--order", "woz,sql,woz"], "task 'woz' stands there twice"),
        (["--order", ""], "unknown task ''"),
        (["--order", "x" * 5000], "unknown task 'xxx"),
        (["--method", "ewc"], "--method: invalid choice"),
        (["--kd", "soft"], "--kd: invalid choice"),
        (["--method", "finetune", "--kd", "word"], "--kd word can't be used with --method finetune"),
        (["--method", "single", "--kd", "seq"], "--kd seq can't be used with --method single"),
        (["--method", "multitask", "--kd", "word"], "--kd word can't be used with --method multitask"),
        (["--qa-only"], "--qa-only can't be used with --method lamol"),
        (["--unknown"], "unrecognized arguments: --unknown"),
        (["--epoch", "3"], "unrecognized arguments: --epoch"),  # no guessing of abbreviations
        (["--epochs", "0"], "--epochs 0"),
        (["--gamma", "-1"], "--gamma -1"),
        (["--lr", "nan"], "--lr nan"),
        (["--temperature", "0"], "--temperature 0"),
        (["--kd-beam", "0"], "--kd-beam 0"),
        (["--model", "gpt3"], "--model gpt3"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_bad_usage_is_one_line_and_exit_code_2(capsys, options, says):
    assert says in error(capsys, options, 2)


def test_bad_data_is_one_line_and_exit_code_1_and_nothing_is_written(lab, capsys, tmp_path):
    runs = Path(lab[5])
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path / "colors", broken)
    (broken / "test.jsonl").write_text('{"context": "c", "question": "q"}\n')
    assert "test.jsonl, line 1: 'answer' is missing" in error(capsys, [*lab, "--order", str(broken)], 1)
    shutil.copytree(NANO, tmp_path / "model_without_a_key")
    kept = {k: v for k, v in load_file(NANO / "model.safetensors").items() if "h.1.mlp.c_fc.bias" not in k}
    save_file(kept, tmp_path / "model_without_a_key" / "model.safetensors")
    said = error(capsys, [*lab, "--model", str(tmp_path / "model_without_a_key")], 1)
    assert "key 'h.1.mlp.c_fc.bias' is missing" in said
    if not torch.cuda.is_available():
        assert "--device cuda" in error(capsys, [*lab, "--device", "cuda"], 1)
    assert "--kd-beam 1000: at most 524" in error(capsys, [*lab, "--kd", "seq", "--kd-beam", "1000"], 1)
    (tmp_path / "file").write_text("")
    assert "--runs-dir" in error(capsys, [*lab, "--runs-dir", str(tmp_path / "file" / "runs")], 1)
    assert not runs.exists()


def test_a_used_directory_is_refused_and_left_as_it_is(lab, capsys):
    folder = run(lab, "--kd", "none")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert "is used already" in error(capsys, [*lab, "--kd", "none"], 1)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_no_network_names_the_address_the_place_and_the_way_offline(lab, capsys, monkeypatch, tmp_path):
    def no_network(request, timeout):
        raise OSError("no network")

    monkeypatch.setattr("lab.prepare.urlopen", no_network)
    places = ["--data-dir", str(tmp_path / "raw"), "--cache-dir", str(tmp_path / "cache")]
    for task in ("woz", "sql", "cnn", "e2e", "rnnlg.tv", "ag", "amazon"):
        said = error(capsys, [*lab, *places, "--order", task], 1)
        assert "https://" in said and str(tmp_path / "raw") in said and "offline" in said
    assert not [p for p in (tmp_path / "raw").rglob("*") if p.is_file()]


def test_a_loss_that_is_no_number_stops_the_run(lab, capsys):
    assert "the loss is nan" in error(capsys, [*lab, "--lr", "1e30", "--max-grad-norm", "1e30", "--kd", "none"], 1)


def test_random_streams_are_apart():
    keys = [(s, m, t, p, e) for s in (0, 1) for m in (0, 1) for t in ("a", "b") for p in ("x", "y") for e in (1, 2)]
    assert len({rundir.seed_of(*key) for key in keys}) == len(keys)
    assert rundir.seed_of(0, 1, "woz", "student", 2) == rundir.seed_of(0, 1, "woz", "student", 2) < 2**63


def test_a_teachers_cache_changes_rounding_alone_and_is_bounded(lab, monkeypatch):
    """Filled in one pass if all of it fits; a byte less, and each epoch asks the teacher again."""
    asked, remember = [], kd.Teacher.remember

    def spy(teacher, batch):
        remember(teacher, batch)
        asked.append(sum(states.nbytes for states in teacher.known.values()))

    monkeypatch.setattr(kd.Teacher, "remember", spy)
    losses = {}
    for cache in (10**9, 0):
        folder = run(
            lab, "--kd", "word", "--log-every", "1", "--runs-dir", f"{lab[5]}{cache}", "--teacher-cache", str(cache)
        )
        losses[cache] = [x["loss"] for x in rundir.read_jsonl(folder / "log.jsonl") if x["phase"] == "student"]
    assert len(asked) == 2
    assert losses[10**9] == pytest.approx(losses[0], rel=1e-4)
    for cache, filled in ((asked[0], 1), (asked[0] - 1, 0)):
        del asked[2:]
        run(lab, "--kd", "word", "--runs-dir", f"{lab[5]}{cache}", "--teacher-cache", str(cache))
        assert asked[2:3] == asked[:filled], cache


@pytest.mark.parametrize("soft", [True, False])
def test_fifty_updates_have_the_losses_of_the_plain_way(tmp_path, soft):
    """Padded rows, all logits, losses as the paper writes them, the slow AdamW: the same numbers to 1e-5."""
    options = ["--order", "toy.woz,toy.ag", "--log-every", "1", "--epochs", "5", "--kd", "word" if soft else "none"]
    o, tok, rule = parse(options), data.Tokenizer.nano(), "added" if soft else "joint"
    run = SimpleNamespace(o=o, device=torch.device("cpu"), dtype=torch.float32, tokenizer=tok, dir=tmp_path, rule=rule)
    run.autocast, run.restore, run.checkpoint = contextlib.nullcontext, lambda *_: (0, 0), lambda *_: None
    current, replay = (
        data.encode_task(data.load_task(name, "", "", limit=n), tok, 256)
        for name, n in (("toy.woz", 60), ("toy.ag", 20))
    )
    student, teacher = nano(), train.frozen(run, nano(noise=0.02))
    for module in student.modules():
        module.dropout = 0.0
    student.config.dropout = 0.0
    plain = copy.deepcopy(student)
    asked = train.soft_targets(run, teacher, current) if soft else None
    train.learn(run, student, current, replay, 1, "toy.woz", teacher=asked)
    losses = [line["loss"] for line in lines(tmp_path / "log.jsonl")]

    samples, wanted, seen = current + replay, [], 0
    matrices, vectors = ([p for p in plain.parameters() if (p.dim() >= 2) == big] for big in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, eps=o.adam_epsilon, foreach=False, fused=False)
    for epoch in range(1, o.epochs + 1):
        order = rundir.stream(o.seed, 1, "toy.woz", "student batches", epoch)
        for indices in data.plan_epoch(len(current), len(replay), o.batch_size, "shuffled", order):
            for group in optimizer.param_groups:
                group["lr"] = train.learning_rate(seen, len(samples), o.epochs, o.lr, o.warmup_ratio)
            total = 0.0
            for stream, weight in (("qa", 1.0), ("lm", o.lm_lambda)):
                sums, counts = [0.0, 0.0], [0.0, 0.0]  # of current and of replay samples
                for i in indices:
                    ids, labels = (torch.tensor(getattr(samples[i], f"{stream}_{x}")) for x in ("ids", "labels"))
                    at, distil = labels != data.IGNORE, soft and i < len(current)
                    padded = torch.cat([ids, torch.full((5,), tok.pad_id)])[None]
                    z, y = plain(padded)[0, : len(ids)][at], labels[at]
                    if distil:
                        p, q = (torch.softmax(logits / 2, -1) for logits in (teacher(padded)[0, : len(ids)][at], z))
                        loss, w = 4 * (p * (p.log() - q.log())).sum(-1), torch.ones(len(y))
                    else:
                        loss, w = -z.log_softmax(-1)[range(len(y)), y], 1.0 + 4.0 * (y == tok.ans_id)
                    sums[i >= len(current)] += (w * loss).sum()
                    counts[i >= len(current)] += w.sum()
                if rule == "joint":
                    sums, counts = [sum(sums)], [sum(counts)]
                total = total + weight * sum(s / n for s, n in zip(sums, counts) if n)
            total.backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            wanted.append(total.item())
            seen += len(indices)
    assert len(wanted) == 50 and wanted[-1] < 0.7 * wanted[0]
    assert losses == pytest.approx(wanted, rel=1e-5)


def test_compile_compiles_every_block_that_learns(lab, monkeypatch, capsys):
    """And they learn the same to rounding, without dropout, which draws other masks when compiled."""
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    compiled, compile_block = [], Block.compile

    def spy(block, **keywords):
        compiled.append(block)
        compile_block(block, **keywords)

    monkeypatch.setattr(Block, "compile", spy)
    losses = []
    for more in ([], ["--compile"]):
        model = shutil.copytree(NANO, Path(lab[5] + "-nano"))
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        config |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
        options = ["--model", str(model), "--kd", "none", "--log-every", "1", "--lr", "1e-4", "--epochs", "1"]
        folder = run(lab, *options, "--runs-dir", f"{lab[5]}{len(more)}", *more)
        losses.append([line["loss"] for line in lines(folder / "log.jsonl")])
        shutil.rmtree(model)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(compiled) == 2 * len(GPT.from_pretrained(NANO).h)  # of both tasks' students
    monkeypatch.setenv("CXX", "no-compiler")
    assert train.main([*lab, "--compile", "--seed", "1"]) == 1
    assert "--compile: needs a C++ compiler" in capsys.readouterr().err


def test_a_teacher_that_is_not_whole_is_refused_with_what_to_do(lab, tmp_path, capsys):
    run(lab, "--method", "single", "--epochs", "1")
    (folder,) = (Path(lab[5]) / "teachers").glob("colors-*")
    whole = folder.rename(tmp_path / "whole")

    def broken(what) -> str:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        what()
        return error(capsys, [*lab, "--epochs", "1", "--kd", "word", "--resume"], 1)

    other = GPT(GPTConfig(vocab_size=60, n_embd=8, n_layer=1, n_head=1))
    for what in (
        lambda: other.save_pretrained(folder / "model"),
        (folder / "config.json").unlink,
        lambda: shutil.rmtree(folder / "model"),
        lambda: (shutil.rmtree(folder), folder.symlink_to(tmp_path / "nowhere")),
    ):
        said = broken(what)
        assert str(folder) in said and ("delete it" in said or "remove it" in said)


@pytest.mark.parametrize("seconds", ["-5", "NaN", "1e400", "true", '"long"'])
def test_what_a_teacher_says_of_its_time_spoils_no_checkpoint(seconds, tmp_path):
    nano().save_pretrained(tmp_path / "model")
    (tmp_path / "config.json").write_text(f'{{"seconds": {seconds}}}')
    one = SimpleNamespace(pretrained=nano(), teacher_times={}, device=torch.device("cpu"))
    lab_run.Run.found_teacher(one, SimpleNamespace(name="colors"), tmp_path)
    assert one.teacher_times == {"colors": None}
