"""python lamol.py [MODEL_FOLDER TASK]: what a model generates of a task, and how each sequence is read.

Without arguments a model learns toy.e2e first.
"""

import os
import tempfile
import textwrap
from contextlib import redirect_stdout
from pathlib import Path

import torch

from lab.errors import Parser, command, expand_paths
from lab.run.options import parse
from lab.run.pretrained import load_student
from lamol import generated_samples, parse_pseudo, report


@command()
def main(argv=None) -> None:
    """The command line."""
    parser = Parser("python lamol.py", description=__doc__)
    parser.add_argument("model", nargs="?", help="the folder `model` of a run")
    parser.add_argument("task", nargs="?", help="a task that it has learned")
    o = parser.parse_args(argv)
    if o.model and not o.task:
        parser.error("a task is expected behind the model")
    expand_paths(o, parser, "model")
    with tempfile.TemporaryDirectory() as runs:
        folder, name = (o.model, o.task) if o.model else (train_here(runs), "toy.e2e")
        model, tok, config = load_student(folder)
    if name not in config["task_slots"]:
        parser.error(f"task {name!r}: this model knows {', '.join(config['task_slots'])}")
    show(model, tok, name, config.get("max_len", model.config.n_positions))


def train_here(runs: str) -> str:
    """Train a small model on toy.e2e -> its folder."""
    from train import start

    print("a model of 1M parameters learns toy.e2e first, its QA and LM rows, 4 epochs (half a minute) ...")
    options = "--order toy.e2e --kd none --epochs 4 --no-eval-every-epoch --runs-dir".split()
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        start(parse([*options, runs]))
    return str(next(Path(runs).glob("*/model")))


def show(model, tok, name: str, max_len: int) -> None:
    """Twenty sequences with the random numbers of seed 0; some accepted and some rejected ones token by token."""
    samples = generated_samples(model, tok, name, 20, max_len, 20, torch.Generator().manual_seed(0))
    print(report(samples))
    print("(a sequence is accepted for its form; whether its answer is right, nobody knows: compare)")
    rejected = [sample for sample in samples if sample.rejected]
    accepted = [sample for sample in samples if not sample.rejected]
    for sample in (accepted + rejected)[:3] + rejected[:2]:
        show_sample(sample, tok)


def show_sample(sample, tok) -> None:
    """One sequence as ids, as tokens, and as what it is read as."""
    names = {tok.ans_id: "ANS", tok.eos_id: "EOS", tok.pad_id: "PAD"}
    tokens = [names.get(i, "TASK" if tok.is_task(i) else tok.decode([i])) for i in sample.ids]
    print()
    line("ids", f"{' '.join(map(str, sample.ids[:24]))} ... ({len(sample.ids)})")
    line("tokens", f"{' '.join(tokens[:80])}{' ...' if len(tokens) > 80 else ''}")
    if parts := parse_pseudo(sample.ids, tok):
        line("accepted", f"context and question  {tok.decode(parts[0])}")
        line("", f"answer  {tok.decode(parts[1])}")
    else:
        line("rejected", sample.rejected)


def line(name: str, text: str) -> None:
    print(textwrap.fill(text, 140, initial_indent=f"    {name:<10}", subsequent_indent=" " * 14))
