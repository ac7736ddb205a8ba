"""Pseudo-data: how many, how they are sampled, how a generated sequence becomes a sample.

LAMOL (Section 2.1): the model is its own memory. Started with the token of an earlier task, it writes context,
question, ANS, answer and EOS as it learned them from that task's LM rows; top-k sampling (k = 20), no data kept.

    python lamol.py                           what a model that learns toy.e2e first dreams of it
    python lamol.py runs/.../model toy.woz    what a run's model dreams of a task
"""

import math
import os
import sys
import textwrap
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch

from data import DataError, Encoded, Tokenizer, encode_parts
from model import GPT, ModelFileError, generate


@dataclass
class PseudoSample:
    """One generated sequence, TASK first: a replay sample (`encoded`), or the reason why it is none."""

    task: str
    ids: list[int]
    rejected: str  # "" when it is accepted
    encoded: Encoded | None


def pseudo_per_task(n_new: int, gamma: float, n_previous: int) -> int:
    """Samples of each earlier task: ceil(γ · n_new), shared equally, rounded down (Section 2.3; as released)."""
    return math.ceil(n_new * gamma) // n_previous if n_previous else 0


def why_rejected(ids: list[int], tokenizer: Tokenizer) -> str:
    """The first rule that a generated sequence breaks, or "" for a sample.

    TASK ... must end in its only EOS, with exactly one ANS, text before and after it, no PAD, no task token inside."""
    inside = ids[1:-1]
    if not ids or not tokenizer.is_task(ids[0]):
        return "no task token first"
    if ids[-1] != tokenizer.eos_id:
        return "never stopped"
    if tokenizer.eos_id in inside:
        return "EOS inside"
    if tokenizer.pad_id in inside or any(tokenizer.is_task(i) for i in inside):
        return "PAD or task token inside"
    if inside.count(tokenizer.ans_id) != 1:
        return "no ANS" if tokenizer.ans_id not in inside else "several ANS"
    if tokenizer.ans_id in (inside[0], inside[-1]):
        return "empty question or answer"
    return ""


def parse_pseudo(ids: list[int], tokenizer: Tokenizer) -> tuple[list[int], list[int]] | None:
    """TASK cq ANS a EOS -> (ids of context and question, ids of the answer), or None when it is rejected."""
    if why_rejected(ids, tokenizer):
        return None
    at = ids.index(tokenizer.ans_id)
    return ids[1:at], ids[at + 1 : -1]


def sample_pseudo_data(
    model: GPT, tokenizer: Tokenizer, names: list[str], per_task: int, max_len: int, top_k: int, seeds
) -> list[PseudoSample]:
    """Algorithm 1, "sample γ·|D_m| pseudo-data from θ_S": `per_task` sequences of each earlier task, accepted or not.

    A sequence may be as long as a training row and its EOS. Rejected ones are not replaced (as released).
    seeds: task name -> torch.Generator."""
    samples = []
    for name in names:
        task_id = tokenizer.task_id(name)
        prompts = [[task_id]] * per_task
        news = generate(model, prompts, max_len, tokenizer.eos_id, top_k=top_k, generator=seeds(name))
        for n, new in enumerate(news, 1):
            ids = [task_id, *new]
            parts = parse_pseudo(ids, tokenizer)
            # context and question can't be told apart in a generated sequence, and need not be: the rows are the same
            encoded = parts and encode_parts([], *parts, task_id, tokenizer, max_len, id=f"pseudo-{name}-{n}")
            samples.append(PseudoSample(name, ids, why_rejected(ids, tokenizer), encoded))
    return samples


def real_samples(rows: dict[str, list[Encoded]], tokenizer: Tokenizer, per_task: int, seeds) -> list[PseudoSample]:
    """--real-replay: real training rows of each earlier task in place of generated ones (LAMOL's upper bound)."""
    samples = []
    for name, real in rows.items():
        for i in torch.randperm(len(real), generator=seeds(name))[:per_task].tolist():
            samples.append(PseudoSample(name, [*real[i].lm_ids, tokenizer.eos_id], "", real[i]))
    return samples


def report(samples: list[PseudoSample]) -> str:
    """Accepted and rejected, by task and reason, in one line a task; and a warning where most are rejected."""
    lines = []
    for name in dict.fromkeys(d.task for d in samples):
        reasons = Counter(d.rejected or "accepted" for d in samples if d.task == name)
        parts = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
        lines.append(f"pseudo-data of {name}: {parts} of {reasons.total()}")
        if reasons["accepted"] < reasons.total() / 2:
            lines.append(f"WARNING: more than half of the pseudo-data of {name} is rejected: its replay is failing")
    return "\n".join(lines)


def show(gpt: GPT, tokenizer: Tokenizer, name: str, max_len: int) -> None:
    """What a model dreams of a task, with the random numbers of seed 0, and how each sequence is read."""
    stream = torch.Generator().manual_seed(0)
    dreams = sample_pseudo_data(gpt, tokenizer, [name], 20, max_len, 20, lambda name: stream)
    print(f"{report(dreams)}\n(accepted for its form: whether the answer is right, nobody knows; compare)")

    def line(name, text):
        print(textwrap.fill(text, 140, initial_indent=f"    {name:<10}", subsequent_indent=" " * 14))

    names = {tokenizer.ans_id: "ANS", tokenizer.eos_id: "EOS", tokenizer.pad_id: "PAD"}
    for one in sorted(dreams, key=lambda d: bool(d.rejected))[:3] + [d for d in dreams if d.rejected][:2]:
        said = [names.get(i, "TASK" if tokenizer.is_task(i) else tokenizer.decode([i])) for i in one.ids]
        print()
        line("ids", f"{' '.join(map(str, one.ids[:24]))} ... ({len(one.ids)})")
        line("tokens", f"{' '.join(said[:80])}{' ...' if len(said) > 80 else ''}")
        if parts := parse_pseudo(one.ids, tokenizer):
            line("accepted", f"context and question  {tokenizer.decode(parts[0])}")
            line("", f"answer  {tokenizer.decode(parts[1])}")
        else:
            line("rejected", one.rejected)


def main(argv) -> int:
    """The command line: what a trained model dreams, or one that is taught here first. Returns the exit code."""
    import tempfile

    from eval import load_model
    from lab.options import parse
    from lab.rundir import RunError
    from train import start

    if len(argv) not in (0, 2):
        print("error: usage is python lamol.py [MODEL_FOLDER TASK]: a run's `model`, and a task of it", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as runs:
        try:
            if not argv:
                print("a model of 1M parameters learns toy.e2e first, its QA and LM rows, 4 epochs (half a minute) ...")
                options = [
                    "--order",
                    "toy.e2e",
                    "--kd",
                    "none",
                    "--epochs",
                    "4",
                    "--no-eval-every-epoch",
                    "--runs-dir",
                    runs,
                ]
                with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                    start(parse(options))
                argv = [str(next(Path(runs).glob("*/model"))), "toy.e2e"]
            gpt, tok, config = load_model(argv[0])
        except (ModelFileError, DataError, RunError, OSError) as e:
            print(f"error: {e}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
    if argv[1] not in config["task_slots"]:
        print(f"error: task {argv[1]!r}: this model knows {', '.join(config['task_slots'])}", file=sys.stderr)
        return 2
    show(gpt, tok, argv[1], config.get("max_len", gpt.config.n_positions))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
