"""Options of earlier runs: what --resume compares, and what --continue hands down. No run is started.

python -m pytest tests/test_earlier_runs.py"""

import json
import re
from dataclasses import asdict, fields, replace

import pytest
from test_options import error, other_value

from lab.errors import RunError
from lab.run.options import (
    LIFELONG,
    Options,
    differences,
    options_of,
    parent_of,
    parse,
    run_name,
    task_names,
)

KINDS = {f.name: f.metadata["kind"] for f in fields(Options)}

# ---------------------------------------------------------------------- --resume


def config_of(*argv, **more):
    """A config.json as a run writes it: its resolved options, and facts."""
    o = parse(list(argv))
    names = task_names(o.order)
    facts = {"tasks": names, "data": dict.fromkeys(names, "0"), "pretrained": "0", "torch": "2", "threads": 1}
    return asdict(o) | facts | {"resolved_device": "cpu", "resolved_dtype": "float32"} | more


def write(path, config):
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


@pytest.mark.parametrize("option", KINDS)
def test_an_option_that_an_older_run_lacks_counts_as_its_default(option, tmp_path):
    now = config_of()
    older = {key: value for key, value in now.items() if key != option}
    assert differences(write(tmp_path / "config.json", older), now) == ([], [])
    assert options_of(older, tmp_path) == parse([])


def test_an_option_that_an_older_run_lacks_is_compared_by_its_default(tmp_path):
    now = config_of("--replay", "real", "--epochs", "3")
    path = write(tmp_path / "config.json", {k: v for k, v in now.items() if k not in ("replay", "epochs")})
    assert differences(path, now) == (["epochs", "replay"], [])


@pytest.mark.parametrize("old, new", [(False, "generated"), (True, "real")])
def test_real_replay_of_an_older_run_counts_as_replay(old, new, tmp_path):
    now = config_of("--replay", new)
    older = {key: value for key, value in now.items() if key != "replay"} | {"real_replay": old}
    assert differences(write(tmp_path / "config.json", older), now) == ([], [])


def test_the_replay_loss_released_of_an_older_run_counts_as_authors(tmp_path):
    path = write(tmp_path / "config.json", config_of(replay_loss="released"))
    assert differences(path, config_of()) == ([], [])
    assert differences(path, config_of("--replay-loss", "joint")) == (["replay_loss"], [])


@pytest.mark.parametrize("option", KINDS)
def test_what_may_differ_at_resume_follows_from_the_options_own_line(option, tmp_path):
    now = config_of("--order", "woz,sql", "--kd", "seqsoft")
    other = "nowhere" if KINDS[option] == "source" else other_value(options_of(now, tmp_path), option)
    earlier = write(tmp_path / "config.json", now | {option: other})
    wanted = {"result": ([option], []), "rounding": ([], [option])}.get(KINDS[option], ([], []))
    assert differences(earlier, now) == wanted


def test_facts_of_the_machine_may_differ_at_resume_but_no_data_and_weights(tmp_path):
    path = write(tmp_path / "config.json", config_of(torch="1", threads=9, resolved_device="cuda", pretrained="1"))
    assert differences(path, config_of()) == (["pretrained"], ["torch", "threads", "resolved_device"])


def test_an_option_without_effect_may_differ_at_resume(tmp_path):
    path = write(tmp_path / "config.json", config_of("--method", "finetune", "--gamma", "0.5", "--temperature", "3"))
    assert differences(path, config_of("--method", "finetune")) == ([], [])


def test_the_config_of_a_try_that_is_cut_off_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"order": "wo')
    with pytest.raises(RunError, match=r"config\.json: cut off or not JSON"):
        differences(tmp_path / "config.json", config_of())


# ---------------------------------------------------------------------- --continue


@pytest.fixture
def parent(tmp_path):
    """A finished run that can be continued, as far as its options tell. Called, it changes its config.json."""

    def change(**changes):
        write(folder / "config.json", config_of("--order", "woz,sql", "--kd", "seq", "--seed", "4") | changes)

    folder = tmp_path / "runs" / "parent"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text("{}")
    change()
    change.folder = folder
    return change


def test_a_run_that_is_continued_hands_down_its_options_but_for_paths(parent):
    parent(data_dir="/strange/place", cache_dir="/strange/place", teachers="/strange/place", runs_dir="/strange/place")
    o = parse(["--continue", str(parent.folder), "--order", "cnn", "--epochs", "2"])
    assert (o.order, o.kd, o.seed, o.epochs, o.resume) == ("woz,sql,cnn", "seq", 4, 2, False)
    assert o.runs_dir == str(parent.folder.parent) and o.teachers == str(parent.folder.parent / "teachers")
    assert "/strange/place" not in (o.data_dir, o.cache_dir)
    digest = parent_of(str(parent.folder))[1]
    assert re.fullmatch("[0-9a-f]{8}", digest)
    assert run_name(o, task_names(o.order)) == f"woz+sql+cnn-lamol-seq-g0.2-s4-epochs=2-continue={digest}"


@pytest.mark.parametrize("option", [name for name in KINDS if name not in ("order", "method", "model")])
def test_an_older_run_can_be_continued_too(option, parent):
    config = json.loads((parent.folder / "config.json").read_text())
    o = parse(["--continue", str(parent.folder), "--order", "cnn"])
    del config[option]
    write(parent.folder / "config.json", config | {"replay_loss": "released", "real_replay": False})
    default = {"seed": {"seed": 0}, "kd": {"kd": "word"}}.get(option, {})  # all others have it
    assert parse(["--continue", str(parent.folder), "--order", "cnn"]) == replace(o, **default)


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": "many"},
        {"epochs": True},
        {"epochs": None},
        {"kd": "magic"},
        {"kd": ["word"]},
        {"tasks": 3},
        {"tasks": ["toy.zzz"]},
        {"data": None},
        {"data": ["a"]},
        {"data": {"woz": 1, "sql": 2}},
        {"lr": float("nan")},
        {"lr": float("inf")},
        {"order": 5},
        {"order": "nowhere"},
        {"replay": "x" * 1000},
    ],
    ids=str,
)
def test_a_strange_config_is_refused_by_name(changes, parent):
    parent(**changes)
    with pytest.raises(RunError, match=r"config\.json: ") as e:
        parse(["--continue", str(parent.folder), "--order", "cnn"])
    assert len(str(e.value)) < 500 and "\n" not in str(e.value)


@pytest.mark.parametrize("method", ["single", "multitask"])
def test_only_a_lifelong_run_can_be_continued(method, parent, capsys):
    assert method not in LIFELONG
    argv = ["--continue", str(parent.folder), "--order", "cnn"]
    assert f"--continue can't be used with --method {method}" in error(
        capsys, [*argv, "--method", method, "--kd", "none"]
    )
    parent(method=method, kd="none")
    with pytest.raises(RunError, match="learns no task sequence"):
        parse(argv)


def test_what_is_continued_must_be_finished_and_the_new_tasks_named(parent, capsys):
    assert "--order must name the new tasks" in error(capsys, ["--continue", str(parent.folder)])
    assert "stands there twice" in error(capsys, ["--continue", str(parent.folder), "--order", "sql"])
    (parent.folder / "summary.json").unlink()
    with pytest.raises(RunError, match="no finished run is there"):
        parse(["--continue", str(parent.folder), "--order", "cnn"])
