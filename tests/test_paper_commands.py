"""The commands behind each table and figure of the paper. No run is started.

python -m pytest tests/test_paper_commands.py"""

import shlex
from pathlib import Path

import pytest
from paper_runs import CLASSES, RUNS

from lab.paper.__main__ import main
from lab.paper.experiments import EXPERIMENTS, PARTS, TOY_ORDERS, WORDINGS, keys_of, orders_of
from lab.paper.runs import FIGURES, FURTHER, METHODS, found
from lab.run.options import parse, run_name, task_names

LEFT_TO_RIGHT, RIGHT_TO_LEFT = orders_of("table4")


@pytest.fixture
def printed(capsys):
    """printed(what, *options) -> the options of train.py in each of the printed commands."""

    def command_lines(what, *options):
        paper = [] if what == "toy" or "--model" in options else ["--model", "gpt2"]  # else Table 4 is nano's
        assert main([what, "--print-commands", *paper, *options]) == 0
        commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
        assert all(command[:2] == ["python", "train.py"] and command[-1] == "--resume" for command in commands)
        return [parse(command[2:]) for command in commands]

    return command_lines


def directory(o):
    """The name of the directory that train.py makes."""
    return run_name(o, task_names(o.order))


@pytest.mark.parametrize("what", RUNS)
def test_each_command_makes_a_directory_that_the_collector_finds(what, printed, tmp_path):
    for extra in ([], ["--model", "nano", "--limit", "5", "--epochs", "3", "--seeds", "0", "--train-examples", "0"]):
        names = [directory(o) for o in printed(what, *extra)]
        assert len(names) == len(set(names)) == RUNS[what]
        for name in names:
            (tmp_path / name / "1-x").mkdir(parents=True)
            (tmp_path / name / "summary.json").touch()
        keys = keys_of(what, [0])
        extra = [word for i, word in enumerate(extra) if "--seeds" not in extra[max(0, i - 1) : i + 1]]
        there = found(keys, [tmp_path], extra, predictions=True)
        assert list(there) == keys and [path.name for path in there.values()] == names


@pytest.mark.parametrize("what", [*RUNS, "toy"])
def test_the_runs_of_a_table_are_those_behind_its_rows_the_teachers_first(what):
    rows = [row for name in PARTS.get(what, [what]) for row in EXPERIMENTS[name].rows]
    keys = keys_of(what, [4, 2])
    assert set(keys) == {key for row in rows for key in row.keys([4, 2])} and len(keys) == len(set(keys))
    teachers = [key for key in keys if key.label == "Single QA+LM"]
    assert keys[: len(teachers)] == teachers
    lifelong = [key.order for key in keys if key.label in METHODS]
    changes = [order for order, before in zip(lifelong, [None, *lifelong]) if order != before]
    assert len(changes) == len(set(lifelong))  # one order after another


def test_tables_and_figures_share_their_runs(printed):
    names = {what: {directory(o) for o in printed(what)} for what in RUNS}
    assert names["table2"] < names["table3"] and names["table6"] == names["table8"] < names["table5"]
    assert names["figure3"] < names["table2"] and names["figure4"] < names["table4"]
    assert names["figure5"] < names["table5"]
    assert names["claims"] == names["table3"] | names["table4"] | names["table6"]


def test_every_method_learns_every_order_of_its_table(printed):
    lifelong, orders = [("finetune", "none"), *(("lamol", kd) for kd in ("none", "word", "seqsoft", "seq"))], {}
    for what in ("table2", "table4", "table5"):
        orders[what] = orders_of(what)
    wanted = {"table2": [(order, *how) for order in orders["table2"] for how in lifelong]}
    wanted |= {what: [(order, *how) for order in orders[what] for how in lifelong[1:]] for what in ("table4", "table5")}
    wanted["figure3"] = [("woz,sql,cnn", *how) for how in lifelong]
    wanted["figure5"] = [(CLASSES, *how) for how in lifelong[1:]]
    wanted["table6"] = [(CLASSES, "single", "none"), *wanted["figure5"]]
    for what, runs in wanted.items():
        given = printed(what)
        plain = [o for o in given if what in ("table4", "table5") and o.method in ("single", "multitask")]
        assert [(o.order, o.method, o.kd) for o in given if o not in plain] == runs
        assert not any(o.qa_only for o in given if o not in plain)
        assert {o.epochs for o in given if o not in plain} == {9}
    for one, other in (orders["table4"], orders["table5"]):
        assert other.split(",") == one.split(",")[::-1]
    assert len(set(orders["table2"])) == 6 and {frozenset(o.split(",")) for o in orders["table2"]} == {
        frozenset({"cnn", "sql", "woz"})
    }


@pytest.mark.parametrize("extra, epochs", [([], 9), (["--epochs", "3"], 3)])
def test_multitask_rows_that_are_long_take_three_times_the_epochs_and_qa_rows_no_lm_loss(extra, epochs, printed):
    plain = [o for o in printed("table3", *extra) if o.method in ("single", "multitask")]
    assert [(o.method, o.kd, o.qa_only, o.epochs // epochs) for o in plain] == [
        ("single", "none", False, 1),  # first: its models are the teachers
        ("single", "none", True, 1),
        ("multitask", "none", True, 1),
        ("multitask", "none", False, 1),
        ("multitask", "none", True, 3),
        ("multitask", "none", False, 3),
        ("multitask", "seq", False, 3),
    ]
    for what, order in (("table4", LEFT_TO_RIGHT), ("table5", CLASSES)):
        plain = [o for o in printed(what, *extra) if o.method in ("single", "multitask")]
        assert [(o.order, o.method, o.qa_only, o.epochs // epochs) for o in plain] == [
            (order, "single", False, 1),
            (order, "single", True, 1),
            (order, "multitask", True, 1),  # of Tables 4 and 5 the paper does not say
            (order, "multitask", False, 1),
        ]


def test_exactly_the_runs_that_a_figure_draws_are_scored_after_every_epoch(printed):
    for what in ("table3", "table4", "table5"):
        for o in printed(what):
            assert o.eval_every_epoch == (o.order in FIGURES.values() and o.method in ("finetune", "lamol"))
    for figure in FIGURES:
        assert all(o.eval_every_epoch for o in printed(figure, "--no-eval-every-epoch"))


@pytest.mark.parametrize("what", RUNS)
def test_seeds_multiply_the_runs_and_further_options_reach_them_all(what, printed):
    given = printed(
        what, "--seeds", "3,0,3,7", "--model", "nano", "--limit", "5", "--gamma", "0.1", "--runs-dir", "a b"
    )
    assert [o.seed for o in given] == [3, 0, 7] * RUNS[what]
    assert len({directory(o) for o in given}) == 3 * RUNS[what]
    assert {(o.model, o.limit, o.gamma, o.lr, o.runs_dir) for o in given} == {("nano", 5, 0.1, 1e-3, "a b")}


def test_the_toy_comparison_has_six_methods_in_two_orders_five_with_several_wordings_and_the_rest_in_one(printed):
    count = {}
    for key in keys_of("toy", ()):
        count.setdefault((key.label, key.order), []).append(key.seed)
    often = [(label, order) for label in METHODS for order in (*TOY_ORDERS, WORDINGS)]
    often += [("Word-KD, annealed", order) for order in TOY_ORDERS]
    rest = [(label, TOY_ORDERS[0]) for label in FURTHER if label != "Word-KD, annealed"]
    assert count == {x: [0, 1, 2, 3, 4] for x in often} | {x: [0, 1, 2] for x in rest}
    given = printed("toy")
    assert len({directory(o) for o in given}) == len(given) == 5 * (5 * 3 + 2) + 7 * 3
    assert {o.model for o in given} == {"nano"} and {o.runs_dir for o in given} == {"runs/nano"}
    assert {o.replay_loss for o in given} == {"authors", "joint", "added"} and {o.gamma for o in given} == {0.2, 0}


@pytest.mark.parametrize(
    "options, named",
    [
        ("", "what"),
        ("table7", "table7"),
        ("table2 table3", "table3"),
        ("table2 --nonsense", "--nonsense"),
        ("table2 --see 1", "--see"),
        ("table2 --epochs x", "--epochs"),
        ("table2 --order woz", "--order"),
        ("table2 --method single", "--method"),
        ("table2 --kd=word", "--kd=word"),
        ("table2 --seed 1", "--seeds"),
        ("table2 --qa-only", "--qa-only"),
        ("table2 --no-qa-only", "--no-qa-only"),
        ("table2 --resume", "--resume"),
        ("table2 --seeds 1,", "--seeds 1,"),
        ("table2 --seeds -1", "--seed -1"),
        ("table2 --jobs 0", "--jobs 0"),
        ("table2 --out x.png", "--out"),
        ("claims --out x.png", "--out"),
        ("figure3 --csv --out x.png", "--out"),
        ("figure3 --markdown", "--markdown"),
        ("table2 --markdown --csv", "--csv"),
        ("table2 --run --print-commands", "--print-commands"),
        ("table2 --runs-dir a --keep b/../a", "--keep b/../a"),
        ("table6 --run --keep a", "--keep"),
        ("toy --seeds 1", "--seeds"),
    ],
)
def test_bad_usage_is_one_line(options, named, capsys):
    with pytest.raises(SystemExit) as e:
        main(options.split())
    printed = capsys.readouterr()
    assert e.value.code == 2 and printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith("error: ") and named in printed.err
    assert not Path("a").exists()
