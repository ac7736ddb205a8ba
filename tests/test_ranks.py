"""One run in two processes is the run of one process; none of them hangs when another dies; runs share teachers.

python -m pytest tests/test_ranks.py"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import nano

import train
from data import Tokenizer
from lab import ranks, rundir
from lab.rundir import read_jsonl

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def here(**more) -> dict:
    """This process's environment, one thread a process."""
    return os.environ | {"OMP_NUM_THREADS": "1"} | more


def torchrun(*arguments) -> subprocess.CompletedProcess:
    """The command line in two processes."""
    command = [*TORCHRUN, "train.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=here(), capture_output=True, text=True, timeout=300)


@pytest.fixture
def still(lab, tmp_path):
    """The options of small runs of a model without dropout, whose masks would be other ones in each process."""
    model, tok = nano(grown=False), Tokenizer.nano()
    model.config.dropout = 0.0
    model.save_pretrained(tmp_path / "still", tokenizer=tok.name, eos_token_id=tok.eos_id)
    return [*lab, "--model", str(tmp_path / "still"), "--lr", "5e-4", "--log-every", "1", "--epochs", "6"]


def directories(lab, runs):
    return [p for p in (Path(lab[5]).parent / runs).glob("colors+sizes-*") if p.is_dir()]


def both_ways(options, *more) -> tuple[Path, Path]:
    """The directories of a run in one process, and in two."""
    base = Path(options[5]).parent
    assert train.main([*options, *more, "--runs-dir", str(base / "one")]) == 0
    done = torchrun(*options, *more, "--runs-dir", str(base / "two"))
    assert done.returncode == 0, done.stderr
    (one,), (two,) = directories(options, "one"), directories(options, "two")
    return one, two


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def same_files(one: Path, two: Path) -> None:
    """Both runs dreamt, answered and scored the same, and left the same files."""
    assert files(one) == files(two)
    for name in files(one):
        if name.endswith(("pseudo.jsonl", "distil.jsonl", "predictions.jsonl", "scores.jsonl")):
            assert (one / name).read_bytes() == (two / name).read_bytes(), name


def same_logs(one: Path, two: Path, tolerance: float) -> int:
    """The losses of both are the same; how many updates there were."""
    logs = read_jsonl(one / "log.jsonl"), read_jsonl(two / "log.jsonl")
    for a, b in zip(*logs, strict=True):
        for key in ("task", "phase", "epoch", "step", "lr"):
            assert a[key] == b[key]
        # a KL is a difference of log-probabilities: where it is small, it has their rounding all the same
        assert b["loss"] == pytest.approx(a["loss"], rel=tolerance, abs=tolerance)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=100 * tolerance)
    return len(logs[0])


def test_fifty_updates_of_two_processes_have_the_losses_of_one_to_1e_6(still):
    one, two = both_ways(still, "--batch-size", "3", "--epochs", "9", "--lr", "6.25e-5")  # the paper's rate
    assert same_logs(one, two, 1e-6) > 100  # two teachers, two stages of Word-KD
    same_files(one, two)


@pytest.mark.parametrize(
    "options",
    [
        ["--kd", "none", "--batch-size", "5", "--eval-every-epoch", "--micro-batch", "1"],
        ["--kd", "seqsoft", "--kd-beam", "2", "--updates", "alternate", "--teacher-cache", "0"],
        [
            "--method",
            "finetune",
            "--batch-size",
            "7",
            "--micro-batch",
            "1",
        ],  # 4 groups here, 3 there; or a row, and none
    ],
    ids=" ".join,
)
def test_two_processes_do_what_one_does(still, options):
    one, two = both_ways(still, *options)
    same_files(one, two)
    assert same_logs(one, two, 1e-4) >= 24  # at ten times the paper's rate rounding grows from update to update
    assert json.loads((two / "config.json").read_text())["ranks"] == 2


def test_two_processes_take_no_teacher_that_one_process_made(lab):
    """Its dropout masks were other ones: a result must not depend on what lies in --teachers; --resume or not."""
    base = Path(lab[5]).parent
    teachers = ["--teachers", str(base / "teachers")]
    assert train.main([*lab, *teachers]) == 0
    done = torchrun(*lab, "--runs-dir", str(base / "two"), *teachers, "--resume")
    assert done.returncode == 0, done.stderr
    assert "found in" not in done.stdout and len(list((base / "teachers").iterdir())) == 4


def test_two_processes_that_are_interrupted_and_resumed_are_the_unbroken_two(lab):
    whole = [*lab, "--runs-dir", str(Path(lab[5]).parent / "whole")]
    assert torchrun(*whole).returncode == 0
    options = [*lab, "--runs-dir", str(Path(lab[5]).parent / "broken")]
    with subprocess.Popen([*TORCHRUN, "train.py", *options], cwd=ROOT, env=here(), stderr=subprocess.PIPE) as process:
        deadline = time.time() + 60
        while time.time() < deadline and not list(Path(lab[5]).parent.glob("broken/colors+*/checkpoint/[0-9]*")):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)  # torchrun passes it on
        said = process.communicate()[1].decode()
    assert process.returncode != 0 and said.count("interrupted") == 1 and "--resume goes on" in said, said
    again = torchrun(*options, "--resume")
    assert again.returncode == 0 and "after epoch" in again.stdout, again.stderr
    (one,), (two,) = directories(lab, "whole"), directories(lab, "broken")
    assert files(one) == files(two)
    for name in files(one):
        if name.endswith((".safetensors", "pseudo.jsonl", "predictions.jsonl", "scores.jsonl")):
            assert (one / name).read_bytes() == (two / name).read_bytes(), name


def ranks_by_hand(options) -> list[subprocess.Popen]:
    """Both processes without torchrun, which would end one when the other dies."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = str(s.getsockname()[1])
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    command = [sys.executable, "train.py", *options]
    pipes = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen(command, env=here(RANK=str(k), LOCAL_RANK=str(k), **place), **pipes) for k in range(2)]


@pytest.mark.parametrize("dies", [0, 1])
def test_a_rank_that_dies_ends_the_other_with_an_error(lab, dies):
    both = ranks_by_hand([*lab, "--epochs", "1000"])
    try:
        for line in both[0].stdout:
            if "epoch 2/1000" in line:
                break
        both[dies].kill()
        _, said = both[1 - dies].communicate(timeout=60)  # it does not hang
        assert both[1 - dies].returncode == 1
        assert said.count("error:") == 1 and "lost another rank" in said and "--resume" in said, said
    finally:
        for process in both:
            process.kill()
            process.communicate()


def test_bad_input_is_one_line_whatever_the_number_of_processes(lab):
    done = torchrun(*lab, "--order", "nosuchtask")
    assert done.returncode != 0 and done.stderr.count("unknown task") == 1
    done = torchrun("--help")
    assert done.returncode == 0 and done.stdout.count("--micro-batch") > 0
    (Path(lab[5]).parent / "colors" / "train.jsonl").write_text("{")
    done = torchrun(*lab)
    assert done.returncode != 0 and done.stderr.count("error:") == 1 and "train.jsonl, line 1" in done.stderr
    assert str(ROOT / "train.py") not in done.stderr  # torchrun's traceback is not ours


def test_only_rank_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    rundir.write_json(tmp_path / "a.json", {})
    rundir.write_jsonl(tmp_path / "a.jsonl", [{}])
    rundir.append_jsonl(tmp_path / "b.jsonl", {})
    rundir.write_folder(tmp_path / "c", lambda folder: pytest.fail("filled"))
    rundir.save_checkpoint(tmp_path, {}, None)
    assert rundir.open_run(str(tmp_path), "run") == (tmp_path / "run", None)
    with rundir.one_at_a_time(tmp_path / "d"):
        pass
    assert not list(tmp_path.iterdir())


def test_runs_that_need_the_same_teacher_at_once_teach_it_once(lab):
    options = [[*lab, "--seed", "3", "--kd", kd] for kd in ("word", "seq", "seqsoft")]
    started = [
        subprocess.Popen([sys.executable, "train.py", *o], cwd=ROOT, env=here(), stdout=subprocess.PIPE, text=True)
        for o in options
    ]
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    for task in ("colors", "sizes"):
        assert sum(f"teacher  of {task}: " in text and ", kept in" in text for text in said) > 0
        assert sum(text.count(f"teacher {task}, epoch 2/2") for text in said) == 1
        assert sum(text.count(f"teacher  of {task}: found") for text in said) == 2
    assert not list((Path(lab[5]) / "teachers").glob(".*"))


def test_printed_commands_run_side_by_side_and_again(shared, tmp_path):
    """As the README gives them to xargs; Seq-KD_soft and Seq-KD need the same teachers."""
    places = ["--data-dir", str(shared / "data"), "--cache-dir", str(tmp_path / "a cache"), "--runs-dir", str(tmp_path)]
    small = ["--model", "nano", "--limit", "4", "--epochs", "1", *places]
    asked = subprocess.run(
        [sys.executable, "-m", "lab.paper", "figure3", "--print-commands", *small],
        cwd=ROOT,
        env=here(),
        capture_output=True,
        text=True,
    )
    lines = asked.stdout.splitlines()
    assert len(lines) == 5
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    (tmp_path / "runs.txt").write_text("\n".join(lines[3:]) + "\n")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (line,) = (line for line in readme.splitlines() if "xargs -0" in line)
    for _ in range(2):
        done = subprocess.run(
            [
                "sh",
                "-c",
                f"cd {ROOT} && {line.replace('-P 8', '-P 2').replace('runs.txt', str(tmp_path / 'runs.txt'))}",
            ],
            env=here(PATH=path),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished already") == 2  # the second time
    assert len(list(tmp_path.glob("woz+sql+cnn-*/summary.json"))) == 2
    assert len(list((tmp_path / "teachers").iterdir())) == 3
