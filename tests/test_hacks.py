"""The patches of lab/hacks/ apply, are small, run, and do what they say. python -m pytest tests/test_hacks.py"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lab.rundir import read_jsonl

ROOT = Path(__file__).parents[1]
PATCHES = sorted((ROOT / "lab" / "hacks").glob("*.patch"))


@pytest.fixture
def patched(tmp_path):
    """patched(patch) -> a copy of the project with it; without one, the project itself."""

    def copy(patch=None):
        folder = tmp_path / (patch.stem if patch else "plain")
        shutil.copytree(ROOT / "lab", folder / "lab", ignore=shutil.ignore_patterns("results", "__pycache__"))
        for file in ROOT.glob("*.py"):
            shutil.copy(file, folder)
        if patch:
            done = subprocess.run(["git", "apply", str(patch)], cwd=folder, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        return folder

    return copy


def python(folder, *arguments) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_a_patch_is_at_most_forty_lines_in_two_files(patch):
    lines = patch.read_text(encoding="utf-8").splitlines()
    assert sum(bool(re.match(r"[+-](?![+-]{2} )", line)) for line in lines) <= 40
    assert sum(line.startswith("+++ ") for line in lines) <= 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [("reverse_kl", ["--kd", "word"]), ("lwf", ["--kd", "word"]), ("ewc", ["--method", "finetune"])],
)
def test_a_patch_applies_and_changes_what_is_learned_after_the_first_task(name, options, patched, lab):
    (patch,) = (p for p in PATCHES if p.stem == name)
    logs = []
    for folder in (patched(), patched(patch)):
        more = ["--runs-dir", str(folder / "runs"), "--real-replay", "--epochs", "3"]
        python(folder, "train.py", *lab, *(more if name != "ewc" else [*more[:2], *more[3:]]), *options)
        (run,) = folder.glob("runs/colors+*/log.jsonl")
        logs.append([line for line in read_jsonl(run) if line["phase"] == "student"])
    assert [[x["task"], x["epoch"]] for x in logs[0]] == [[x["task"], x["epoch"]] for x in logs[1]]
    first, second = ([[x["loss"] for x in log if x["task"] == task] for log in logs] for task in ("colors", "sizes"))
    assert (first[0] == first[1]) == (name != "reverse_kl") and second[0] != second[1]


@pytest.mark.slow
def test_the_reversed_kl_has_the_gradient_of_its_formula(patched):
    """The fused loss against autograd on the plain words of `word_kd`, and it is the KL the other way around."""
    check = """
import torch, kd
torch.manual_seed(0)
h, W = torch.randn(7, 5, dtype=torch.double, requires_grad=True), torch.randn(11, 5, dtype=torch.double)
t, T, w = torch.randn(7, 5, dtype=torch.double), 2.0, torch.rand(7, dtype=torch.double)
fused = kd.FusedLoss.apply(h, W, w, None, (t, W), T, 1.0)[0]
plain = (w * kd.word_kd(h @ W.t(), t @ W.t(), T)).sum()
a, b = (torch.autograd.grad(loss, h)[0] for loss in (fused, plain))
p, q = ((x @ W.t() / T).softmax(-1) for x in (h, t))
assert torch.allclose(plain, (w * T * T * (p * (p / q).log()).sum(-1)).sum())
assert torch.allclose(fused, plain) and torch.allclose(a, b), (a - b).abs().max()
"""
    (patch,) = (p for p in PATCHES if p.stem == "reverse_kl")
    python(patched(patch), "-c", check)
