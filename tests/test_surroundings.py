"""Many tasks, long names, odd names, notebooks, terminals, file systems. python -m pytest tests/test_surroundings.py"""

import json
import re

import pytest

from data import SLOTS, Tokenizer
from lab.files import read_json, short_name
from lab.run import Run
from lab.run.options import Options, full_name, parse, run_name, task_names
from lab.run.pretrained import nano_tokenizer
from lab.tasks import TASKS
from train import main

# ---------------------------------------------------------------------- many tasks


def add_all(names) -> dict:
    tok = nano_tokenizer()
    slots = {name: tok.add_task(name) for name in names}
    assert len(set(slots.values())) == len(slots) and all(map(tok.is_task, slots.values()))
    assert all(tok.task_id(name) == slot for name, slot in slots.items())
    return slots


OWN = [f"own{i}" for i in range(SLOTS)]


@pytest.mark.parametrize(
    "order",
    [
        OWN,
        ["yahoo", *OWN[:44]],
        [*OWN[:30], "woz", "sql", *OWN[30:43]],
        [*OWN[:27], *TASKS],
        [*OWN[:28], *TASKS][:45],  # one of the registered tasks finds its own slot taken
    ],
)
def test_all_slots_are_usable_and_none_depends_on_later_tasks(order):
    slots = add_all(order)
    assert len(slots) == SLOTS
    for n in (1, 27, 28, 44):  # so a run that is continued has the slots of the longer order
        assert add_all(order[:n]) == dict(list(slots.items())[:n])
    with pytest.raises(ValueError, match="all 45 task slots are taken"):
        add_all([*order, "one more"])


def test_own_tasks_take_a_registered_slot_only_when_no_other_is_free():
    registered = nano_tokenizer().slots
    first = add_all([*OWN[:27], *TASKS])
    assert {name: first[name] for name in TASKS} == registered
    assert add_all(["yahoo", "dbpedia", *OWN[:28]])["own27"] == registered["amazon"]  # the last one that is idle
    plain = Tokenizer(nano_tokenizer().encoding)
    assert [plain.add_task(name) for name in ("b", "a", "b")] == [1003, 1004, 1003]


@pytest.fixture
def many(tmp_path):
    """46 folders with a task each, and options."""
    entries = []
    for i in range(SLOTS + 1):
        folder = tmp_path / f"task_{i:02}_{'n' * 40}"
        folder.mkdir()
        for split in ("train", "test"):
            row = {"context": "c", "question": "q", "answer": "a"}
            (folder / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
        entries.append(str(folder))
    common = ["--model", "nano", "--runs-dir", str(tmp_path / "runs"), "--method", "finetune", "--epochs", "1"]
    return entries, [*common, "--device", "cpu", "--max-len", "32", "--no-eval-every-epoch"]


def open_run(argv):
    """A run that is prepared, and ends before it begins -> its directory and config.json."""
    with Run(parse(argv)) as run:
        (run.dir / "summary.json").write_text("{}")
    return run.dir, read_json(run.dir / "config.json")


def test_many_tasks_with_long_names_are_learned_and_continued(many, capsys):
    entries, common = many
    run, config = open_run([*common, "--order", ",".join(entries[:28])])
    assert len(run.name) <= 240 and len(config["name"]) > 1000 and config["name"].startswith("task_00_")
    child, longer = open_run(["--continue", str(run), "--order", entries[28]])
    assert config["slots"].items() < longer["slots"].items() and len(set(longer["slots"].values())) == 29
    assert longer["slots"] == open_run([*common, "--order", ",".join(entries[:29])])[1]["slots"]
    assert "-continue=" in longer["name"] and child.name != run.name
    grandchild, longest = open_run(["--continue", str(child), "--order", ",".join(entries[29:45])])
    assert len(set(longest["slots"].values())) == SLOTS and len(grandchild.name) <= 240
    capsys.readouterr()
    for wanted in (["--continue", str(child)], common):
        more = entries[29:] if "--continue" in wanted else entries
        assert main([*wanted, "--order", ",".join(more)]) == 2
        assert capsys.readouterr().err.startswith("error: --order: 46 tasks, but a model has tokens for at most 45")


# ---------------------------------------------------------------------- long names


@pytest.mark.parametrize("name", ["a" * 240, "é" * 120, "a+b-lamol-word-g0.2-s0", ""])
def test_a_name_that_fits_stays(name):
    assert short_name(name) == name


@pytest.mark.parametrize("name", ["a" * 241, "é" * 121, "x" + "é" * 200, "東" * 5000, "\udcff" * 300])
def test_a_long_name_is_cut_and_has_a_hash_of_all_of_it(name):
    short = short_name(name)
    assert len(short.encode(errors="surrogateescape")) <= 240 and re.fullmatch(r".*-[0-9a-f]{8}", short)
    assert short_name(name + "b") != short == short_name(name) != short_name("b" + name)


def test_long_names_of_folders_are_no_obstacle(lab, tmp_path):
    """For runs, teachers, stages, and multitask learning."""
    entries = []
    for entry, letter in zip(lab[1].split(","), "xy"):
        long = tmp_path / (letter * 250)
        (tmp_path / entry.split("/")[-1]).rename(long)
        entries.append(str(long))
    arguments = [*lab, "--order", ",".join(entries), "--epochs", "1"]
    for more in (["--kd", "seq"], ["--method", "multitask", "--kd", "seq"], ["--method", "single"]):
        assert main([*arguments, *more]) == 0
        assert main([*arguments, *more, "--resume"]) == 0
    stages = [path.parent.name for path in (tmp_path / "runs").glob("*/*/predictions.jsonl")]
    assert len(stages) > 4 and all(len(stage) <= 240 for stage in stages)


def test_the_directory_of_a_run_is_named_in_one_place(many):
    entries, common = many
    o = parse([*common, "--order", ",".join(entries[:20])])
    name = run_name(o, task_names(o.order))
    assert name == short_name(full_name(o, task_names(o.order))) != full_name(o, task_names(o.order))
    assert run_name(Options(), ["woz"]) == full_name(Options(), ["woz"])
