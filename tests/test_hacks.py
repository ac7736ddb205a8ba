"""The patches of lab/hacks/ apply, are small, run, and do what they say. python -m pytest tests/test_hacks.py"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lab.files import read_jsonl

ROOT = Path(__file__).parents[1]
MOST_LINES = {"reverse_kl": 4, "lwf": 10, "ewc": 4}  # added and removed


def copy_of(folder: Path, name: str = "") -> Path:
    """A copy of the project's code in a new folder, with a patch if one is named."""
    ignored = shutil.ignore_patterns("results", "__pycache__")
    shutil.copytree(ROOT / "lab", folder / "lab", ignore=ignored)
    for file in ROOT.glob("*.py"):
        shutil.copy(file, folder)
    if name:
        patch = ROOT / "lab" / "hacks" / f"{name}.patch"
        done = subprocess.run(["git", "apply", str(patch)], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folder


def python(folder, *arguments) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def student_losses(runs: Path) -> dict[str, list[float]]:
    """Task -> the losses of the student's epochs, of the only run there."""
    (log,) = runs.glob("colors+*/log.jsonl")
    found = {}
    for line in read_jsonl(log):
        if line["phase"] == "student":
            found.setdefault(line["task"], []).append(line["loss"])
    return found


def test_every_patch_has_at_most_the_lines_that_are_promised():
    for patch in (ROOT / "lab" / "hacks").glob("*.patch"):
        lines = patch.read_text(encoding="utf-8").splitlines()
        assert sum(bool(re.match(r"[+-](?![+-]{2} )", line)) for line in lines) <= MOST_LINES[patch.stem]


def losses_of(folder: Path, lab: list[str], *options) -> dict[str, list[float]]:
    """The student's losses of a run by the code in a folder."""
    python(folder, "train.py", *lab, "--epochs", "3", "--replay", "real", "--runs-dir", "runs", *options)
    return student_losses(folder / "runs")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, first_stages",
    [(["--kd", "word"], {"reverse_kl": 1, "lwf": 2}), (["--method", "finetune"], {"ewc": 2})],
)
def test_a_patch_changes_what_is_learned_from_the_stage_on_where_it_acts(options, first_stages, tmp_path, lab):
    plain = losses_of(copy_of(tmp_path / "plain"), lab, *options)
    for name, first in first_stages.items():
        patched = losses_of(copy_of(tmp_path / name, name), lab, *options)
        assert (plain["colors"] == patched["colors"]) == (first == 2)
        assert plain["sizes"] != patched["sizes"]


@pytest.mark.slow
def test_the_reversed_kl_is_the_kl_the_other_way_around_and_trains_with_its_gradient(tmp_path):
    check = """
import torch, kd
from functools import partial
from lab.fast.chunked import Logits, Term, chunked_loss
torch.manual_seed(0)
h, W = torch.randn(7, 5, dtype=torch.double, requires_grad=True), torch.randn(11, 5, dtype=torch.double)
t, w = torch.randn(7, 5, dtype=torch.double), torch.rand(7, dtype=torch.double)
term = Term(torch.arange(7), w, partial(kd.word_kd, temperature=2.0), (Logits(t, W),))
loss, _ = chunked_loss(h, W, [term])
p, q = ((x @ W.t() / 2.0).softmax(-1) for x in (h, t))
wanted = (w * 4.0 * (p * (p / q).log()).sum(-1)).sum()
a, b = (torch.autograd.grad(x, h)[0] for x in (loss, wanted))
assert torch.allclose(loss, wanted) and torch.allclose(a, b), (a - b).abs().max()
"""
    python(copy_of(tmp_path / "reversed", "reverse_kl"), "-c", check)


@pytest.mark.slow
def test_what_ewc_stores_survives_a_kill(tmp_path, lab):
    """Cut off in the second stage and resumed, the run ends with the weights of the unbroken one."""
    folder = copy_of(tmp_path / "ewc", "ewc")
    options = [*lab, "--method", "finetune", "--epochs", "3", "--runs-dir"]
    python(folder, "train.py", *options, "whole")
    cut = """
import os, sys, train
from lab.run.progress import Progress
updates = Progress.updates
def dying(self, plan):
    if self.phase.stage == 2 and self.epoch == 2:
        os._exit(9)
    return updates(self, plan)
Progress.updates = dying
train.main(sys.argv[1:])
"""
    assert subprocess.run([sys.executable, "-c", cut, *options, "cut"], cwd=folder).returncode == 9
    python(folder, "train.py", *options, "cut", "--resume")
    models = [next((folder / runs).glob("colors+*/model/model.safetensors")) for runs in ("whole", "cut")]
    assert models[0].read_bytes() == models[1].read_bytes()
