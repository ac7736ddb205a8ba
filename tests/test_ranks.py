"""One run in two processes is the run of one process, and none of them hangs when another dies.

python -m pytest tests/test_ranks.py"""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from conftest import nano
from whole_runs import directory, elsewhere, run

import train
from lab.files import read_json, read_jsonl
from lab.run import Run, ranks, rundir
from lab.run.checkpoint import checkpoints, save_checkpoint
from lab.run.pretrained import nano_tokenizer, save_gpt

ROOT = Path(__file__).parents[1]


class TwoProcesses:
    """A function called in two processes, which are ranks 0 and 1 of one group; what each of them prints and returns
    as its exit code."""

    def __init__(self, function, folder: Path):
        with socket.socket() as s:
            s.bind(("localhost", 0))
            port = str(s.getsockname()[1])
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        folder.mkdir(exist_ok=True)
        self.files = [[folder / f"{rank}.{name}" for name in ("out", "err")] for rank in range(2)]
        self.pids = []
        for rank in range(2):
            if pid := os.fork():
                self.pids.append(pid)
                continue
            code = 99
            try:
                os.environ |= place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                texts = (path.open("w", buffering=1, encoding="utf-8") for path in self.files[rank])
                with next(texts) as out, next(texts) as err, redirect_stdout(out), redirect_stderr(err):
                    code = function()
            finally:
                os._exit(code)

    def said(self, rank: int) -> tuple[str, str]:
        return tuple(path.read_text(encoding="utf-8") for path in self.files[rank])

    def running(self) -> bool:
        """Have both not ended yet?"""
        return not any(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) for pid in self.pids)

    def wait(self) -> list[int]:
        """The exit codes, below 0 for a signal's."""
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in self.pids]


@pytest.fixture
def two(tmp_path):
    """A run in two processes that must succeed; its directory."""

    def run_two(arguments, *more) -> Path:
        arguments = [*arguments, *more]
        both = TwoProcesses(lambda: train.main(arguments), tmp_path / "said")
        assert both.wait() == [0, 0], [both.said(rank)[1] for rank in range(2)]
        assert both.said(1) == ("", "")  # rank 0 speaks for both
        return directory(arguments)

    return run_two


@pytest.fixture
def still(lab, tmp_path):
    """The options of runs without dropout, whose masks would differ between processes."""
    model, tok = nano(grown=False), nano_tokenizer()
    model.config.dropout = 0.0
    save_gpt(model, tmp_path / "still", tokenizer=tok.name, eos_token_id=tok.eos_id)
    return [*lab, "--model", str(tmp_path / "still"), "--lr", "5e-4", "--log-every", "1", "--epochs", "6"]


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def same_files(one: Path, two: Path) -> None:
    """Both runs generated, answered and scored the same, and left the same files."""
    assert files(one) == files(two)
    for name in files(one):
        if name.endswith(("pseudo.jsonl", "distil.jsonl", "predictions.jsonl", "scores.jsonl")):
            assert (one / name).read_bytes() == (two / name).read_bytes(), name


def same_logs(one: Path, two: Path, tolerance: float) -> int:
    """The losses of both are the same. Returns how many updates there were."""
    logs = read_jsonl(one / "log.jsonl"), read_jsonl(two / "log.jsonl")
    for a, b in zip(*logs, strict=True):
        for key in ("task", "phase", "epoch", "step", "lr"):
            assert a[key] == b[key]
        # a KL is a difference of log-probabilities, times temperature²: where it is small, it has their rounding
        for key in ("loss", "loss_qa", "loss_lm"):
            assert b[key] == pytest.approx(a[key], rel=tolerance, abs=2 * tolerance)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=100 * tolerance)
    return len(logs[0])


# ---------------------------------------------------------------------- two processes do what one does


def test_fifty_updates_of_two_processes_have_the_losses_of_one_to_1e_6(still, two):
    options = ["--batch-size", "3", "--lr", "6.25e-5"]  # the paper's rate
    one, other = run(elsewhere(still, "one", *options)), two(elsewhere(still, "two", *options))
    assert same_logs(one, other, 1e-6) > 50  # two teachers, two stages of Word-KD
    same_files(one, other)


@pytest.mark.parametrize(
    "options",
    [
        ["--kd", "none", "--batch-size", "5", "--eval-every-epoch", "--micro-batch", "1"],
        ["--kd", "seqsoft", "--kd-beam", "2", "--updates", "alternate", "--teacher-cache", "0"],
        ["--method", "finetune", "--batch-size", "7", "--micro-batch", "1"],  # 4 groups here, 3 there; or one and none
    ],
    ids=" ".join,
)
def test_two_processes_do_what_one_does(still, two, options):
    one, other = run(elsewhere(still, "one", *options)), two(elsewhere(still, "two", *options))
    same_files(one, other)
    assert same_logs(one, other, 1e-4) >= 24  # at ten times the paper's rate rounding grows from update to update
    assert read_json(other / "config.json")["ranks"] == 2


def test_a_process_may_have_no_row_of_the_first_update_in_float16(lab, two):
    folder = two(lab, "--method", "finetune", "--batch-size", "1", "--epochs", "1", "--dtype", "float16")
    assert len(read_jsonl(folder / "log.jsonl")) == 2


def test_two_processes_take_no_teacher_that_one_process_trained(lab, two, tmp_path):
    """Its dropout masks were others: a result must not depend on what lies in --teachers."""
    teachers = ["--teachers", str(tmp_path / "teachers"), "--epochs", "1"]
    run(lab, *teachers)
    two(elsewhere(lab, "two", *teachers, "--resume"))
    assert len(list((tmp_path / "teachers").iterdir())) == 4


def test_two_processes_that_are_interrupted_and_resumed_are_the_unbroken_two(lab, two, tmp_path):
    options = ["--batch-size", "3", "--epochs", "3"]
    whole = two(elsewhere(lab, "whole", *options))
    arguments = elsewhere(lab, "broken", *options)
    folder = directory(arguments)
    both = TwoProcesses(lambda: train.main(arguments), tmp_path / "broken_said")
    while both.running() and not checkpoints(folder):
        time.sleep(0.01)
    for pid in both.pids:
        os.kill(pid, signal.SIGINT)
    assert set(both.wait()) <= {130, 1}
    said = both.said(0)[1]
    assert said.startswith("interrupted") and len(said.splitlines()) == 1 and "--resume goes on" in said, said
    two(arguments, "--resume")
    assert files(whole) == files(folder)
    for name in files(whole):
        if name.endswith((".safetensors", "pseudo.jsonl", "predictions.jsonl", "scores.jsonl")):
            assert (whole / name).read_bytes() == (folder / name).read_bytes(), name


# ---------------------------------------------------------------------- what fails in one of them


@pytest.mark.parametrize("dies", [0, 1])
def test_a_rank_that_dies_ends_the_other_with_an_error(lab, tmp_path, dies):
    arguments = [*lab, "--epochs", "100000", "--kd", "none"]
    both = TwoProcesses(lambda: train.main(arguments), tmp_path / "said")
    while both.running() and not checkpoints(directory(arguments)):
        time.sleep(0.01)
    os.kill(both.pids[dies], signal.SIGKILL)
    codes = both.wait()  # it does not hang
    assert codes[dies] == -signal.SIGKILL and codes[1 - dies] == 1
    said = both.said(1 - dies)[1]
    assert said.count("error:") == 1 and "lost another rank" in said and "--resume" in said, said


def test_bad_input_is_one_line_whatever_the_number_of_processes(lab, tmp_path):
    both = TwoProcesses(lambda: train.main([*lab, "--order", "nosuchtask"]), tmp_path / "said")
    assert both.wait() == [2, 2] and both.said(0)[1].count("unknown task") == 1 and both.said(1) == ("", "")
    both = TwoProcesses(lambda: train.main(["--help"]), tmp_path / "said")
    assert both.wait() == [0, 0] and "--micro-batch" in both.said(0)[0] and both.said(1) == ("", "")
    (tmp_path / "colors" / "train.jsonl").write_text("{")
    both = TwoProcesses(lambda: train.main(lab), tmp_path / "said")
    assert both.wait() == [1, 1]
    said = both.said(0)[1]
    assert said.count("error:") == 1 and "train.jsonl, line 1" in said and both.said(1) == ("", "")


@pytest.mark.slow
def test_torchrun_starts_the_processes(lab):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]
    arguments = [*lab, "--kd", "none", "--epochs", "1"]
    here = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *arguments], cwd=ROOT, env=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("everything is in") == 1
    assert read_json(directory(arguments) / "config.json")["ranks"] == 2


def test_processes_that_nobody_started_together_are_told_to_use_torchrun(lab, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(SystemExit, match=r"RANK is set, but the other processes can't be met.*torchrun"):
        train.main(lab)


# ---------------------------------------------------------------------- the parts


def test_messages_and_gradients_of_two_processes(tmp_path):
    def both():
        with ranks.distributed():
            mine = ranks.rank()
            assert ranks.world_size() == 2 and ranks.is_main_process() == (mine == 0)
            assert ranks.broadcast({"γ": [mine, None, "x"]}) == {"γ": [0, None, "x"]}
            assert ranks.all_reduce(torch.tensor([mine, 1.0])).tolist() == [1.0, 2.0]
            model = torch.nn.Linear(2, 1)
            model.weight.requires_grad_(False)
            if mine == 0:
                model.bias.grad = torch.tensor([3.0])
            ranks.sum_gradients(model)  # rank 1 has none
            assert model.bias.grad.tolist() == [3.0] and model.weight.grad is None
            with ranks.main_process_first():
                assert (tmp_path / "made").exists() == (mine == 1)
                (tmp_path / "made").touch()
            return 0

    processes = TwoProcesses(both, tmp_path / "said")
    assert processes.wait() == [0, 0], [processes.said(rank) for rank in range(2)]


def test_only_the_main_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    save_checkpoint(tmp_path, {}, None)
    assert rundir.open_run(str(tmp_path), "run") == (tmp_path / "run", None)
    with rundir.one_at_a_time(tmp_path / "d") as waited:
        assert waited == 0.0
    one = type("R", (), {"dir": tmp_path})()
    Run.write_lines(one, 1, None, "a.jsonl", [{}])
    assert Run.finish(one) is None and not list(tmp_path.iterdir())


def test_another_error_than_a_lost_process_is_not_described():
    assert ranks.describe_lost_rank(RuntimeError("gloo: connection closed")) == ""  # in one process there is none
