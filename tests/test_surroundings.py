"""Many tasks, long names, odd names, notebooks, terminals, file systems. python -m pytest tests/test_surroundings.py"""

import contextlib
import errno
import fcntl
import io
import json
import os
import re
import runpy
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from paper_runs import finish, same
from raw_formats import interchange

from data import SLOTS, Tokenizer
from lab.errors import RunError
from lab.files import read_json, short_name, write_json
from lab.paper.experiments import keys_of
from lab.paper.runs import start
from lab.run import Run
from lab.run.options import Options, full_name, parse, run_name, task_names
from lab.run.pretrained import NANO, nano_tokenizer
from lab.tasks import TASKS, load_task
from train import main

ROOT = Path(__file__).parents[1]

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
    assert [plain.add_task(name) for name in ("b", "a", "b")] == [4003, 4004, 4003]


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


# ---------------------------------------------------------------------- terminals and notebooks

COMMANDS = {  # command -> its options, and a character that not every terminal has
    "train.py": (["--help"], "γ"),
    "eval.py": ([], "–"),
    "kd.py": ([], "Σ"),
    "data.py": ([], ""),
    "model.py": ([], ""),
    "-m lab.tasks": (["--help"], ""),
    "-m lab.paper": (["claims", "--runs-dir", "nowhere"], "±"),
    "-m lab.paper.cost": (["--help"], ""),
    "-m lab.nano": (["--help"], ""),
    "-m lab.check.bench": (["--help"], ""),
    "-m lab.check.faults": (["--help"], ""),
}


@contextlib.contextmanager
def terminal(encoding):
    """Standard output and error as a terminal of this encoding, or as a notebook's, which is None."""
    if encoding:
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    else:
        out, err = Notebook(), Notebook()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out


class Notebook(io.StringIO):
    reconfigure = property()  # it has none
    buffer = property()


def call(command: str, argv: list[str], monkeypatch) -> int:
    """A command as `python <command>` or `%run` calls it, in this process."""
    monkeypatch.setattr("sys.argv", [command, *argv])
    monkeypatch.setattr("signal.signal", lambda *a: None)
    try:
        if command.startswith("-m "):
            runpy.run_module(command[3:], run_name="__main__", alter_sys=False)
        else:
            runpy.run_path(str(ROOT / command), run_name="__main__")
    except SystemExit as e:
        return e.code or 0
    return 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", None])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs_on_every_terminal(command, encoding, monkeypatch):
    with terminal(encoding) as out:
        assert call(command, COMMANDS[command][0], monkeypatch) == 0
        text = out.buffer.getvalue() if encoding and not out.flush() else out.getvalue().encode()
    assert len(text) > 100


@pytest.mark.parametrize("encoding", ["ascii", None])
def test_a_run_and_its_table_and_bad_usage_on_every_terminal(encoding, lab, tmp_path, monkeypatch):
    with terminal(encoding):
        assert main([*lab, "--kd", "none", "--epochs", "1"]) == 0
        (run,) = (tmp_path / "runs").glob("colors*")
        assert call("eval.py", [str(run)], monkeypatch) == 0
        assert call("lamol.py", [str(run / "model"), "colors"], monkeypatch) == 0
        for command in ("train.py", "eval.py", *(c for c in COMMANDS if c.startswith("-m"))):
            assert call(command, ["--étrange", "γ"], monkeypatch) == 2


def test_in_a_thread_of_a_notebook(lab):
    codes = []
    with terminal(None):
        thread = threading.Thread(target=lambda: codes.append(main([*lab, "--method", "finetune", "--epochs", "1"])))
        thread.start()
        thread.join()
    assert codes == [0]


# ---------------------------------------------------------------------- paths as they are typed


@pytest.fixture
def home(lab, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return [*lab[:1], " ~/colors , ~/sizes ", *lab[2:5], " ~/runs ", *lab[6:]]


def test_paths_are_stripped_and_expanded_in_every_command(home, tmp_path, monkeypatch, capsys):
    assert main([*home, "--kd", "none", "--epochs", "1", "--teachers= ~/t "]) == 0
    (run,) = (tmp_path / "runs").glob("colors*")
    shutil.copytree(tmp_path / "colors", tmp_path / "third")
    assert main(["--continue= ~/runs/../runs/" + run.name, "--order", " ~/third "]) == 0
    model = f"~/runs/{run.name}/model"
    for argv in (
        [f"~/runs/{run.name}"],
        [f"--model= {model}", "--task=~/colors"],
        ["--model", model, "--task", " ~/sizes "],
    ):
        assert call("eval.py", argv, monkeypatch) == 0
    assert call("lamol.py", [model, "colors"], monkeypatch) == 0
    assert main([*home, f"--model= {NANO} ", "--method", "single", "--epochs", "1"]) == 0
    shutil.copytree(NANO, tmp_path / "nano")
    assert parse([*home, "--model=~/nano", "--teacher-model= ~/nano"]).teacher_model == str(tmp_path / "nano")
    capsys.readouterr()
    assert call("-m lab.paper", ["table2", "--keep", "~/kept", "--runs-dir", "~/runs"], monkeypatch) == 0
    assert str(tmp_path / "runs") in capsys.readouterr().err
    assert not list(tmp_path.glob("**/~*")) and not list(ROOT.glob("~*"))


BAD = os.fsdecode(b"caf\xe9")  # a name in Latin-1


@pytest.mark.parametrize(
    "command, argv",
    [
        ("train.py", ["--runs-dir", BAD]),
        ("train.py", ["--order", f"toy.ag,{BAD}/mine"]),
        ("train.py", ["--cache-dir", f"/tmp/{BAD}"]),
        ("train.py", ["--model", BAD]),
        ("train.py", ["--continue", BAD]),
        ("train.py", ["--teachers", BAD]),
        ("eval.py", [BAD]),
        ("eval.py", ["--model", BAD, "--task", "woz"]),
        ("-m lab.tasks", ["woz", "--data-dir", BAD]),
        ("-m lab.tasks", ["--from-lamol", BAD]),
        ("-m lab.paper", ["table2", "--keep", BAD]),
        ("-m lab.paper", ["table2", "--runs-dir", BAD]),
        ("-m lab.nano", ["--vocabulary", "--out", BAD]),
        ("-m lab.check.bench", ["--data-dir", BAD]),
        ("-m lab.check.faults", ["--data-dir", BAD]),
    ],
)
def test_a_name_that_is_not_utf8_is_one_line(command, argv, monkeypatch, capsys):
    assert call(command, argv, monkeypatch) == 2
    err = capsys.readouterr().err
    assert "is not UTF-8; rename the folder" in err and err.count("\n") == 1 and "caf\\udce9" in err


def test_a_current_folder_that_is_not_utf8_is_one_line(tmp_path, monkeypatch, capsys):
    folder = tmp_path / BAD
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert main([]) == 2
    assert "the current folder: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "command, argv",
    [
        ("train.py", []),
        ("train.py", ["--cache-dir", "x", "--data-dir", "~nobody-like-this/x"]),
        ("train.py", ["--cache-dir", "x", "--data-dir", "x", "--order", "~/mine"]),
        ("eval.py", ["--model", "x", "--task", "woz"]),
        ("-m lab.tasks", ["woz"]),
        ("-m lab.paper", ["table2", "--runs-dir", "~/runs"]),
        ("-m lab.check.faults", ["fuzz"]),
    ],
)
def test_an_unknown_home_is_one_line(command, argv, monkeypatch, capsys, tmp_path):
    """As in a container with a user id that it does not know."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    monkeypatch.chdir(tmp_path)
    assert call(command, argv, monkeypatch) == 2
    err = capsys.readouterr().err
    assert "the home directory is not known; set HOME" in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- file systems


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP])
def test_everything_is_written_where_folders_can_not_be_synced(number, lab, tmp_path, monkeypatch):
    """Runs with teachers and checkpoints, a run that goes on, prepared data, a vocabulary."""
    fsync, refused = os.fsync, []

    def files_only(f):
        if stat.S_ISDIR(os.fstat(f).st_mode):
            refused.append(f)
            raise OSError(number, os.strerror(number))
        fsync(f)

    monkeypatch.setattr(os, "fsync", files_only)
    assert main([*lab, "--kd", "seq", "--epochs", "1", "--keep-models"]) == 0
    (run,) = (tmp_path / "runs").glob("colors*")
    assert main(["--continue", str(run), "--order", str(shutil.copytree(tmp_path / "sizes", tmp_path / "third"))]) == 0
    rows = [{"context": "c", "question": "q", "answer": "a"}] * 3
    interchange(tmp_path / "raw" / "yelp", rows)
    assert len(load_task("yelp", tmp_path / "raw", tmp_path / "cache").test) == 3
    write_json(tmp_path / "x.json", {})
    assert len(refused) > 10


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
@pytest.mark.parametrize("where", ["run", "teachers", "paper"])
def test_a_lock_that_can_not_be_had_is_one_line(number, where, lab, tmp_path, monkeypatch, capsys):
    flock = fcntl.flock

    def without(f, how):
        path = os.readlink(f"/proc/self/fd/{f if isinstance(f, int) else f.fileno()}")
        if where == "paper" or ("/teachers/" in path) == (where == "teachers"):
            raise OSError(number, os.strerror(number))
        return flock(f, how)

    monkeypatch.setattr("fcntl.flock", without)
    if where == "paper":
        with pytest.raises(RunError, match=r"this file system has no locks .*; use a folder on another one"):
            (tmp_path / "a run").mkdir()
            start(tmp_path / "a run", [], 1)
        return
    assert main([*lab, "--epochs", "1"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and re.search(r"this file system has no locks \(.*\); use a folder on another one", err)


# ---------------------------------------------------------------------- what comes after the result


@pytest.fixture
def no_pictures(monkeypatch):
    """As where matplotlib is broken, or its backend is one that is not there."""

    def broken(*a, **k):
        raise RuntimeError("no fonts")

    monkeypatch.setenv("MPLBACKEND", "module://nowhere.at_all")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", broken)


def test_a_run_without_its_picture_has_finished(lab, tmp_path, no_pictures, capsys):
    assert main([*lab, "--kd", "none", "--epochs", "1"]) == 0
    (run,) = (tmp_path / "runs").glob("colors*")
    out = capsys.readouterr().out
    assert "WARNING: curves.png can't be drawn (RuntimeError: no fonts)" in out and "average" in out
    assert (run / "summary.json").exists() and not list(run.glob("*.png")) and not list(run.glob(".*"))
    assert main([*lab, "--kd", "none", "--epochs", "1", "--resume"]) == 0
    assert "finished already" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["figure3", "figure5", "toy"])
def test_a_figure_that_can_not_be_drawn_is_a_warning(what, tmp_path, no_pictures, monkeypatch, capsys):
    for key in keys_of(what, [0])[:2]:
        finish(tmp_path, key, same(key.order, 50.0))
    folders = ["--runs-dir", str(tmp_path), "--keep", str(tmp_path / "none"), "--out", str(tmp_path / "x.png")]
    assert call("-m lab.paper", [what, *folders], monkeypatch) == 0
    said = capsys.readouterr()
    assert f"WARNING: {tmp_path / 'x.png'} can't be drawn (RuntimeError: no fonts); --csv prints" in said.err
    assert ("| method |" in said.out) == (what == "toy") and str(tmp_path) not in said.out
    assert call("-m lab.paper", [what, "--csv", *folders[:4]], monkeypatch) == 0


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "TkAgg"])
def test_the_backend_of_a_notebook_is_no_obstacle(backend, tmp_path):
    """In a process of its own, which inherits it."""
    code = "from lab.run.report import draw_run; import sys; " + (
        "draw_run(['a'], 1, [{'stage': s, 'epoch': 1, 'task': 'a', 'score': 5.0} for s in (0, 1)], sys.argv[1])"
    )
    environment = os.environ | {"MPLBACKEND": backend}
    environment.pop("DISPLAY", None)
    path = tmp_path / "x.png"
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, env=environment, check=True)
    assert path.read_bytes().startswith(b"\x89PNG")
