"""The options of a run: defaults, usage, effects, and the run's name. No run is started.

python -m pytest tests/test_options.py"""

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from lab.run.options import (
    Options,
    effective,
    flag,
    model_reason,
    options_of,
    parse,
    resolve,
    run_name,
    task_names,
    teacher_options,
    without_effect,
)

TABLE = {f.name: f.metadata for f in fields(Options)}
RESULTS = Path(__file__).parents[1] / "lab" / "results"


def name_of(*argv):
    o = parse(list(argv))
    return run_name(o, task_names(o.order))


def other_value(o, name):
    """A value of an option that is not the one it has."""
    value, choices = getattr(o, name), TABLE[name]["choices"]
    if choices:
        return next(choice for choice in choices if choice != value)
    if value is None:  # a number that depends on the machine
        return 1
    return not value if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else "elsewhere"


def error(capsys, argv):
    """What is printed about bad usage, which ends with exit code 2 and one line."""
    with pytest.raises(SystemExit) as e:
        parse(argv)
    printed = capsys.readouterr().err
    assert e.value.code == 2 and printed.startswith("error: ") and printed.count("\n") == 1
    return printed


# ---------------------------------------------------------------------- defaults


def test_the_defaults_are_table_7s_and_the_authors():
    o = resolve(Options(order="woz,sql,cnn"))
    assert (o.model, o.lr, o.adam_epsilon, o.epochs, o.max_grad_norm) == ("gpt2", 6.25e-5, 1e-4, 9, 1.0)
    assert (o.warmup_ratio, o.temperature, o.top_k, o.weight_decay, o.gamma) == (0.005, 2.0, 20, 0.01, 0.2)
    assert (o.lm_lambda, o.ans_weight, o.batch_size, o.replay_loss, o.updates) == (0.25, 5.0, 0, "authors", "shuffled")
    assert (o.replay, o.teacher_model, o.eval_every_epoch) == ("generated", "gpt2", False)


def test_without_arguments_word_kd_learns_the_toy_tasks_with_nano():
    o = parse([])
    assert (o.order, o.method, o.kd, o.model) == ("toy.woz,toy.sql,toy.cnn", "lamol", "word", "nano")
    assert (o.lr, o.batch_size, o.epochs, o.adam_epsilon, o.eval_every_epoch) == (1e-3, 8, 9, 1e-8, True)


@pytest.mark.parametrize(
    "order, model, reason",
    [
        ("toy.woz,toy.ag", "nano", "default: all tasks are toy tasks"),
        ("toy.ag,woz", "gpt2", "default: not all tasks are toy tasks"),
    ],
)
def test_the_default_model_depends_on_the_tasks_and_the_reason_is_told(order, model, reason):
    o = resolve(Options(order=order))
    assert (o.model, model_reason(o)) == (model, reason)
    assert model_reason(resolve(Options(order=order, model="gpt2-xl"))) == "as asked"


@pytest.mark.parametrize("method", TABLE["method"]["choices"])
def test_only_lamol_distils_by_default(method):
    assert resolve(Options(method=method)).kd == ("word" if method == "lamol" else "none")


def test_what_is_given_stands_before_the_models_defaults():
    o = resolve(Options(order="woz", model="nano", epochs=2, batch_size=0, eval_every_epoch=False))
    assert (o.lr, o.epochs, o.batch_size, o.eval_every_epoch) == (1e-3, 2, 0, False)


def test_a_teacher_starts_from_the_students_model_unless_another_one_is_named():
    assert resolve(Options(model="gpt2-medium")).teacher_model == "gpt2-medium"
    o = resolve(Options(model="gpt2", teacher_model="gpt2-large"))
    assert (o.model, o.teacher_model) == ("gpt2", "gpt2-large")


def test_paths_of_tasks_and_models_may_have_blanks_and_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mytask").mkdir()
    o = parse(["--order", " woz,  ~/mytask ", "--model=~/mytask", "--teacher-model= ~/mytask "])
    assert o.order == f"woz,{tmp_path / 'mytask'}"
    assert o.model == o.teacher_model == str(tmp_path / "mytask")


@pytest.mark.parametrize("f", fields(Options), ids=lambda f: f.name)
def test_every_option_is_on_the_command_line_with_its_help_and_default(f, capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    printed = " ".join(capsys.readouterr().out.replace("\n", " ").split())
    start = rf"{flag(f.name)}(, --no-\S+| [A-Z_]+| {{\S+}})? "  # below "options:", where it stands once
    (found,) = re.findall(f"{start}{re.escape(f.metadata['help'])}( \\(default \\S+\\))?", printed.split("options:")[1])
    assert f.default in (None, "") or "default" in f.metadata["help"] or found[1] == f" (default {f.default})"


@pytest.mark.parametrize(
    "argv, text",
    [
        (["--order", "wozz"], "unknown task 'wozz'"),
        (["--order", "woz,sql,woz"], "task 'woz' stands there twice"),
        (["--order", "woz, woz"], "task 'woz' stands there twice"),
        (["--order", ""], "behind --order: nothing stands there"),
        (["--continue="], "--continue=: nothing stands there"),
        (["--order", "toy.woz,,toy.sql"], "a task without a name: two commas in a row"),
        (["--model", "a/.."], "--model a/..: "),
        (["--device", "tpu"], "--device tpu: known are auto, cpu"),
        (["--temperature", "1e200"], "--temperature 1e+200: must be a number of at most 1e30"),
        (["--order", "x" * 5000], "unknown task 'xxx"),
        (["--method", "ewc"], "--method: invalid choice"),
        (["--kd", "soft"], "--kd: invalid choice"),
        (["--replay", "none"], "--replay: invalid choice"),
        (["--replay-loss", "released"], "--replay-loss: invalid choice"),
        (["--method", "finetune", "--kd", "word"], "--kd word can't be used with --method finetune"),
        (["--method", "single", "--kd", "seq"], "--kd seq can't be used with --method single"),
        (["--method", "multitask", "--kd", "word"], "--kd word can't be used with --method multitask"),
        (["--qa-only"], "--qa-only can't be used with --method lamol"),
        (["--unknown"], "unrecognized arguments: --unknown"),
        (["--real-replay"], "unrecognized arguments: --real-replay"),
        (["--epoch", "3"], "unrecognized arguments: --epoch"),  # abbreviations are not guessed
        (["--epochs", "3.5"], "--epochs: invalid int value"),
        (["--gamma", "-1"], "--gamma -1"),
        (["--lr", "nan"], "--lr nan"),
        (["--lr", "inf"], "--lr inf"),
        (["--model", "gpt3"], "--model gpt3: neither gpt2"),
        (["--model", "x" * 5000], "--model xxx"),
        (["--teacher-model", "gpt3"], "--teacher-model gpt3: neither gpt2"),
    ],
    ids=lambda x: " ".join(x)[:40] if isinstance(x, list) else "",
)
def test_bad_usage_is_one_line_and_exit_code_2(capsys, argv, text):
    assert text in error(capsys, argv)


@pytest.mark.parametrize("name", [name for name in TABLE if TABLE[name]["positive"]])
def test_a_number_that_must_be_above_0_is_refused_at_0(capsys, name):
    assert f"{flag(name)} 0" in error(capsys, [flag(name), "0"])


# ---------------------------------------------------------------------- effects

PLAIN = {
    "word": Options(order="woz,sql", kd="word"),
    "seq": Options(order="woz,sql", kd="seq"),
    "seqsoft": Options(order="woz,sql", kd="seqsoft"),
    "lamol": Options(order="woz,sql", kd="none"),
    "no replay": Options(order="woz,sql", gamma=0.0),
    "real replay": Options(order="woz,sql", replay="real"),
    "finetune": Options(order="woz,sql", method="finetune"),
    "single": Options(order="woz,sql", method="single"),
    "qa": Options(order="woz,sql", method="single", qa_only=True),
    "multitask": Options(order="woz,sql", method="multitask"),
}
REPLAY = {"replay", "replay_loss", "updates", "top_k"}
SOFT = {"temperature", "last_temperature", "teacher_cache"}
TEACHER, LM = {"teacher_model", "teachers"}, {"lm_lambda", "ans_weight"}
UNUSED = {
    "word": {"kd_beam"},
    "seq": SOFT,
    "seqsoft": set(),
    "lamol": {"kd_beam"} | SOFT | TEACHER,
    "no replay": {"kd_beam"} | REPLAY,
    "real replay": {"kd_beam", "top_k"},
    "finetune": {"kd_beam", "gamma"} | REPLAY | SOFT | TEACHER | LM,
    "single": {"kd_beam", "gamma", "eval_every_epoch"} | REPLAY | SOFT,
    "qa": {"kd_beam", "gamma", "eval_every_epoch"} | REPLAY | SOFT | LM,
    "multitask": {"kd_beam", "gamma"} | REPLAY | SOFT | TEACHER,
}


@pytest.mark.parametrize("what", PLAIN)
def test_an_option_without_effect_is_told_if_it_was_changed_and_never_renames_a_run(what):
    plain = resolve(PLAIN[what])
    base, unused = set(without_effect(plain)), set()
    name = run_name(plain, ["woz", "sql"])
    for option in TABLE.keys() - {"order", "method", "kd", "model", "continue_"}:
        changed = replace(plain, **{option: other_value(plain, option)})
        if option in without_effect(changed):
            unused.add(option)
            assert run_name(changed, ["woz", "sql"]) == name
            assert effective(changed) == effective(plain) and teacher_options(changed) == teacher_options(plain)
    assert base == set() and unused == UNUSED[what]


def test_defaults_that_the_model_sets_are_not_taken_for_changes():
    for method in ("single", "finetune"):
        assert without_effect(resolve(Options(method=method, model="nano", order="woz", runs_dir="elsewhere"))) == []


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "argv, name",
    [
        ([], "toy.woz+toy.sql+toy.cnn-lamol-word-g0.2-s0"),
        (["--order", "woz,sql"], "woz+sql-lamol-word-g0.2-s0"),
        (["--order", "woz", "--model", "gpt2", "--lr", "6.25e-5"], "woz-lamol-word-g0.2-s0"),
        (["--kd", "seq", "--gamma", "0", "--seed", "3"], "toy.woz+toy.sql+toy.cnn-lamol-seq-g0-s3"),
        (["--order", "woz", "--model", "nano"], "woz-lamol-word-g0.2-s0-model=nano"),
        (["--order", "woz", "--epochs", "3", "--lr", "0.001"], "woz-lamol-word-g0.2-s0-epochs=3-lr=0.001"),
        (["--temperature", "3"], "toy.woz+toy.sql+toy.cnn-lamol-word-g0.2-s0-temperature=3"),
        (["--order", "woz", "--method", "single", "--qa-only"], "woz-single-none-g0.2-s0-qa-only=True"),
        (["--order", "woz", "--replay", "real"], "woz-lamol-word-g0.2-s0-replay=real"),
        (["--order", "woz", "--replay-loss", "joint"], "woz-lamol-word-g0.2-s0-replay-loss=joint"),
        (["--order", "woz", "--teacher-model", "gpt2-xl"], "woz-lamol-word-g0.2-s0-teacher-model=gpt2-xl"),
        (
            ["--order", "woz", "--model", "gpt2-xl", "--teacher-model", "gpt2-xl"],
            "woz-lamol-word-g0.2-s0-model=gpt2-xl",
        ),
        (["--method", "finetune", "--gamma", "0.7"], "toy.woz+toy.sql+toy.cnn-finetune-none-g0.2-s0"),
    ],
)
def test_a_run_is_named_by_what_changes_its_result(argv, name):
    assert name_of(*argv) == name


@pytest.mark.parametrize("option", TABLE)
def test_an_option_is_in_the_name_just_if_it_changes_the_result(option, tmp_path):
    plain = resolve(Options(order="woz,sql", kd="seqsoft"))  # the method for which each option has an effect
    if option in ("order", "continue_"):  # the name has all tasks; a parent's hash
        return
    changed = replace(plain, **{option: other_value(plain, option)})
    renamed = run_name(changed, ["woz", "sql"]) != run_name(plain, ["woz", "sql"])
    assert renamed == (TABLE[option]["kind"] in ("result", "source"))


def test_paths_logging_and_what_only_rounds_are_not_in_the_name():
    paths = {"data_dir", "cache_dir", "runs_dir", "teachers"}
    local = paths | {"device", "dtype", "keep_models", "log_every", "checkpoint_every", "resume"}
    assert {name for name in TABLE if TABLE[name]["kind"] == "local"} == local
    assert {name for name in TABLE if TABLE[name]["kind"] == "rounding"} == {"micro_batch", "teacher_cache", "compile"}


def test_a_model_folder_has_one_name_however_it_is_typed_and_no_letter_is_odd(tmp_path, monkeypatch):
    (tmp_path / "my model").mkdir()
    monkeypatch.chdir(tmp_path / "my model")
    names = {name_of("--order", "woz", "--model", x) for x in ("../my model", str(tmp_path / "my model/"), ".")}
    assert len(names) == 1 and re.fullmatch(r"woz-lamol-word-g0\.2-s0-model=my_model-[0-9a-f]{6}", *names)


def test_models_of_one_name_in_two_places_are_two_runs(tmp_path):
    for owner in ("alice", "bob"):
        (tmp_path / owner / "model").mkdir(parents=True)
    places = [str(tmp_path / owner / "model") for owner in ("alice", "bob")] + ["alice/model", "bob/model"]
    assert len({name_of("--order", "woz", "--model", place) for place in places}) == 4


def test_kept_runs_are_still_found_by_their_names():
    """So what earlier versions recorded stays behind the tables."""
    compared = 0
    for path in RESULTS.glob("*/*-s[0-9]*/config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        assert run_name(options_of(config, path), config["tasks"]) == path.parent.name
        compared += 1
    assert compared > 30


# ---------------------------------------------------------------------- teachers


def test_a_teacher_depends_on_training_options_and_the_seed_alone():
    assert set(teacher_options(parse([]))) == {
        *("seed", "lr", "batch_size", "qa_only", "lm_lambda", "ans_weight", "weight_decay", "adam_epsilon"),
        *("warmup_ratio", "max_grad_norm", "micro_batch", "compile"),
    }
