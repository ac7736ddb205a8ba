"""The cases of the benchmark: what is measured, and the models and rows that every side works on.

A case is a dict of JSON values. A child process gets it on its command line, and with --against so does an earlier
version of this project. So the keys keep their meaning:

    name, dtype                        as the table shows them
    what, side                         the function that measures, `<what>_<side>` of bench_sides.py
    shape, vocab                       a GPT of this shape from random weights, or ...
    folder                             ... a model folder
    length                             rows of random tokens, of this length; without it, turns of WOZ, from ...
    data_dir, cache_dir                ... here, as for train.py
    batch, steps, kd, cache            updates: examples in each, how many, the method, bytes for the teacher's states
    prompts, top_k, stop, seed         generation: rows, words to sample from (null: greedy), stop token (-1: none)
    task_id, new                       all prompts are this token, and get at most so many new ones
    count, task, earlier, updates      launches: of an update of a task after an earlier one, of a step, of a run ...
    order, stand_in                    ... with these tasks, some of which others stand in for
    arguments                          of train.py; RUNS in them is a folder of each side's and round's own, which
                                       the cases of a part share: teachers are found there

`sides`: who can be measured, for the parent alone.
"""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import torch

from data import IGNORE, Sample, encode_parts
from lab.errors import RunError
from lab.files import write_jsonl
from lab.run.device import has_compiler
from lab.run.encoding import encode_task
from lab.run.pretrained import gpt2_tokenizer, load_gpt, nano_tokenizer
from lab.tasks import load_task
from model import GPT, GPTConfig

PARTS = ("step", "long", "generate", "nano", "method", "growth", "launches")
GPT2 = {"n_layer": 12, "n_head": 12, "n_embd": 768}
SMALL = {"n_layer": 4, "n_head": 4, "n_embd": 256}
DTYPES = ("float32", "bfloat16")
EVERYBODY = ["usual", "before", "ours"]
ROOT = Path(__file__).parents[2]

# ---------------------------------------------------------------------- which cases


def cases_of(part: str, quick: bool, folder: str, where: dict, device: str) -> list[dict]:
    """The cases of a part. folder: a temporary one; where: data_dir and cache_dir; quick: small ones."""
    steps = 1 if quick else 2
    step = {"what": "step", "sides": EVERYBODY, "shape": SMALL if quick else GPT2, "batch": 32, "steps": steps, **where}
    if part == "step":
        return step_cases(step)
    if part == "long":
        long = step | {"length": 128 if quick else 1024, "batch": 2, "steps": 1, "kd": "word"}
        return [long | {"name": f"Word-KD, {long['length']} tokens", "dtype": dtype} for dtype in DTYPES]
    if part == "generate":
        rows = {"what": "generate", "sides": EVERYBODY, "shape": step["shape"], "prompts": 64, "stop": -1, **where}
        greedy = rows | {"name": "greedy answers, 64 rows", "top_k": None}
        sampled = rows | {"name": "pseudo-data, 64 rows", "top_k": 20}
        return [case | {"dtype": dtype} for dtype in DTYPES for case in (greedy, sampled)]
    if part == "nano":
        return nano_cases(quick, folder, device)
    if part == "method":
        return method_cases(quick)
    if part == "growth":
        return growth_cases(quick, folder, step)
    return launches_cases(quick, where)


def step_cases(step: dict) -> list[dict]:
    """Updates of 124M on WOZ: Word-KD, also without memory for the teacher's states, and LAMOL."""
    word = step | {"name": "Word-KD, WOZ", "kd": "word"}
    no_cache = word | {"name": "Word-KD, WOZ, no cache", "cache": 0, "sides": ["ours"]}
    lamol = step | {"name": "LAMOL, WOZ", "kd": "none"}
    return [case | {"dtype": dtype} for dtype in DTYPES for case in (word, no_cache, lamol)]


def nano_cases(quick: bool, folder: str, device: str) -> list[dict]:
    """Pseudo-data from a nano model, which is trained here so that it stops by itself."""
    options = ["--order", "toy.woz,toy.ag", "--kd", "none", "--no-eval-every-epoch", "--device", device]
    less = ["--epochs", "5", "--limit", "150"] if quick else []
    command = [sys.executable, str(ROOT / "train.py"), *options, *less, "--runs-dir", f"{folder}/runs"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"nano: {done.stderr.strip()}")
    (model,) = Path(folder, "runs").glob("*/model")
    slots = json.loads((model / "config.json").read_text(encoding="utf-8"))["task_slots"]
    rows = {"folder": str(model), "prompts": 64, "new": 250, "stop": nano_tokenizer().eos_id}
    case = {"what": "generate", "name": "nano, pseudo-data", "dtype": "float32", "sides": EVERYBODY, "top_k": 20}
    return [case | rows | {"task_id": slots["toy.woz"]}]


def method_cases(quick: bool) -> list[dict]:
    """Whole runs on nano: the default one, and each method, with teachers trained and found."""
    limit = ["--limit", "50", "--epochs", "2"] if quick else []
    base = {"what": "method", "dtype": "float32", "sides": ["ours"]}
    default = {"name": "python train.py", "arguments": ["--runs-dir", "RUNS/default", *limit]}
    cases = [base | default | {"sides": ["before", "ours"]}]
    for name, kd, runs in (
        ("LAMOL", "none", "a"),
        ("Word-KD, teachers trained", "word", "b"),
        ("Word-KD, teachers found", "word", "c"),
        ("Seq-KD, teachers found", "seq", "c"),
        ("Seq-KD_soft, teachers found", "seqsoft", "c"),
    ):
        where = ["--runs-dir", f"RUNS/{runs}", "--teachers", "RUNS/teachers"]
        cases.append(base | {"name": name, "arguments": ["--no-eval-every-epoch", *limit, "--kd", kd, *where]})
    return cases


def growth_cases(quick: bool, folder: str, step: dict) -> list[dict]:
    """A sequence of eight equal tasks; updates at growing row lengths and vocabularies."""
    rows = load_task("toy.ag", "", "", limit=40 if quick else 200)
    for i in range(1, 9):
        for split, examples in (("train", rows.train), ("test", rows.test[:20])):
            lines = [{"context": e.context, "question": e.question, "answer": e.answer} for e in examples]
            write_jsonl(Path(folder, f"equal{i}", f"{split}.jsonl"), lines)
    order = ",".join(f"{folder}/equal{i}" for i in range(1, 9))
    options = ["--model", "nano", "--kd", "word", "--no-eval-every-epoch", "--epochs", "3", "--runs-dir", "RUNS"]
    equal = {"what": "growth", "name": "eight equal tasks", "dtype": "float32", "sides": ["ours"]}
    cases = [equal | {"arguments": ["--order", order, *options]}]
    small = step | {"shape": SMALL, "kd": "word", "steps": 1, "dtype": "float32"}
    for length in (64, 256) if quick else (64, 256, 1024):  # as many tokens each
        cases.append(small | {"name": f"rows of {length} tokens", "length": length, "batch": 4096 // length})
    for vocab in (1000, 10000) if quick else (1000, 10000, 100000):
        cases.append(small | {"name": f"{vocab:,} words", "length": 64, "batch": 32, "vocab": vocab})
    return cases


def launches_cases(quick: bool, where: dict) -> list[dict]:
    """What is counted: updates as the plan makes them, a decoding step, the decoding steps of whole runs."""
    stand_in = dict.fromkeys(("yelp", "amazon", "dbpedia", "yahoo"), "ag")
    base = {"what": "launches", "dtype": "float32", "sides": ["ours"], "stand_in": stand_in, **where}
    updates = base | {"count": "update", "updates": 1 if quick else 5}
    tasks = (("woz", "cnn"), ("sql", "woz"), ("cnn", "sql"), ("ag", "woz"))
    cases = [updates | {"name": f"update of {a}, after {b}", "task": a, "earlier": b} for a, b in tasks]
    cases.append(base | {"count": "step", "name": "decoding step"})
    if has_compiler():
        cases.append(base | {"count": "compiled", "name": "decoding step, --compile"})
    orders = ("woz,sql,cnn",) if quick else ("woz,sql,cnn", "dbpedia,yahoo,ag,amazon,yelp")
    return cases + [base | {"count": "run", "name": order, "order": order} for order in orders]


# ---------------------------------------------------------------------- what every side works on


def model_of(case: dict, seed: int = 0) -> GPT:
    """GPT-2 of the case's shape from random weights, or the model of its folder."""
    if "folder" in case:
        return load_gpt(case["folder"])
    torch.manual_seed(seed)
    return GPT(GPTConfig(vocab_size=case.get("vocab", 50304), **case["shape"]))


def examples_of(case: dict, n: int) -> list[Sample]:
    """n samples: turns of WOZ, or random rows of one length, whose last 60 tokens are the answer."""
    tok = gpt2_tokenizer()
    if "length" not in case:
        with contextlib.redirect_stdout(io.StringIO()):
            return encode_task(load_task("woz", case["data_dir"], case["cache_dir"], limit=n), tok, 1024)
    vocab, length, answer = case.get("vocab", 50304), case["length"], min(60, case["length"] // 4)
    generator = torch.Generator().manual_seed(0)
    examples = []
    for ids in torch.randint(min(1000, vocab), (n, length - 2), generator=generator).tolist():
        c, q, a = ids[: -answer - 8], ids[-answer - 8 : -answer], ids[-answer:]
        examples.append(encode_parts(c, q, a, 0, tok, length))
    if "vocab" in case:  # ANS and EOS of the real one may be outside
        for x in examples:
            for ids in (x.qa_ids, x.lm_ids, x.qa_labels, x.lm_labels):
                ids[:] = [min(i, vocab - 1) for i in ids]
    return examples


def prompts_of(case: dict) -> tuple[list[list[int]], list[int]]:
    """The prompts, and the most new tokens of each: as the rows of WOZ have them, or until a model stops by itself."""
    n = case["prompts"]
    if "task_id" in case:
        return [[case["task_id"]]] * n, [case["new"]] * n
    rows = examples_of(case, n)
    if case["top_k"] is None:  # answers
        ends = [row.qa_ids.index(gpt2_tokenizer().ans_id) + 1 for row in rows]
        return [row.qa_ids[:i] for row, i in zip(rows, ends)], [len(row.qa_ids) - i + 1 for row, i in zip(rows, ends)]
    return [row.lm_ids[:1] for row in rows], [len(row.lm_ids) for row in rows]


def flops_of(case: dict, examples: list[Sample]) -> float:
    """The operations that one epoch over the examples needs.

    2 a parameter and token forward and 4 backward, with the head at supervised tokens alone; for a teacher those of its
    forward pass in every epoch, though its states may be remembered. Products inside attention are left out."""
    shape, rows = case["shape"], [row for x in examples for row in ((x.qa_ids, x.qa_labels), (x.lm_ids, x.lm_labels))]
    tokens = sum(len(ids) for ids, _ in rows)
    supervised = sum(label != IGNORE for _, labels in rows for label in labels)
    blocks, head = 12 * shape["n_layer"] * shape["n_embd"] ** 2, case.get("vocab", 50304) * shape["n_embd"]
    return (8 if case["kd"] == "word" else 6) * (blocks * tokens + head * supervised)
