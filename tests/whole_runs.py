"""What the tests of whole runs share: runs through the command line, in this process or in a child, and what they
leave."""

import itertools
import json
import os
import shutil
import signal
from itertools import pairwise
from pathlib import Path

import pytest
from safetensors.torch import load_file

import train
from lab.files import read_jsonl
from lab.run import Progress
from lab.run.options import parse, run_name
from lab.run.pretrained import NANO


def value_of(arguments, option: str) -> str:
    """The value of an option; the last one counts."""
    return [value for name, value in pairwise(arguments) if name == option][-1]


def directory(arguments) -> Path:
    """The directory of the run with these arguments."""
    args = parse(arguments)
    tasks = [Path(entry).name for entry in args.order.split(",")]
    return Path(args.runs_dir) / run_name(args, tasks)


def run(arguments, *more) -> Path:
    """A run that finishes; its directory."""
    arguments = [*arguments, *more]
    folder = directory(arguments)
    assert train.main(arguments) == 0
    return folder


def elsewhere(arguments, runs: str, *more) -> list[str]:
    """The arguments of the same run below another folder."""
    base = Path(value_of(arguments, "--runs-dir")).parent
    return [*arguments, "--runs-dir", str(base / runs), *more]


def weights(folder) -> dict:
    return load_file(folder / "model.safetensors")


def equal(a: dict, b: dict) -> bool:
    """Are the tensors the same, bit for bit?"""
    return a.keys() == b.keys() and all(p.equal(b[key]) for key, p in a.items())


def error(capsys, arguments, code: int = 1) -> str:
    """The one line of a run that fails with this exit code."""
    capsys.readouterr()
    assert train.main(arguments) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def result(folder: Path) -> dict:
    """All that a run leaves but times: bytes by file, and the log."""
    left_out = ("config.json", "summary.json", "log.jsonl", "curves.png")
    files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file() and p.name not in left_out}
    log = [{k: v for k, v in line.items() if k != "tokens_per_s"} for line in read_jsonl(folder / "log.jsonl")]
    return {name: path.read_bytes() for name, path in files.items()} | {"log": log}


# ---------------------------------------------------------------------- runs that are killed


def in_a_child(function) -> int:
    """Call the function in a process of its own, without output: its exit code, below 0 for a signal's."""
    if not (pid := os.fork()):
        code = 99
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1), os.dup2(null, 2)
            code = function()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def events(patch, act) -> None:
    """Call act(n) at the n-th event of a run: after an update, and around whatever gets its final name."""
    number, end_update, replace = itertools.count(1), Progress.end_update, os.replace

    def end_then_act(*a, **k):
        end_update(*a, **k)
        act(next(number))

    def act_replace_act(*a):
        act(next(number))
        replace(*a)
        act(next(number))

    patch.setattr(Progress, "end_update", end_then_act)
    patch.setattr(os, "replace", act_replace_act)


def killed_at(n: int, arguments) -> bool:
    """Run in a child that kills itself at its n-th event, with no chance to tidy up. Was there an n-th?"""

    def die():
        events(pytest.MonkeyPatch(), lambda i: os.kill(os.getpid(), signal.SIGKILL) if i == n else None)
        return train.main(arguments)

    code = in_a_child(die)
    assert code in (0, -signal.SIGKILL)
    return code != 0


def without_dropout_folder(tmp_path) -> str:
    """Nano without dropout, whose masks depend on how rows are grouped."""
    model = shutil.copytree(NANO, tmp_path / "still", dirs_exist_ok=True)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(model)
