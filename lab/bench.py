"""Ours against the usual way of writing L2KD, side by side: speed and memory, as ratios.

    python -m lab.bench                     all parts; well over an hour on two cores
    python -m lab.bench step generate       some of them
    python -m lab.bench --quick             all of them on a small model, in about five minutes: do they run?
    python -m lab.bench --device cuda       the same on a GPU

The usual way is transformers' GPT-2 with its best settings (scaled_dot_product_attention, fused AdamW, attention
masks, `eval` and no gradients where none are needed): QA and LM rows in two padded forwards, logits (B, T, V) of
student and teacher, `kl_div` where labels are; `model.generate` for answers and pseudo-data. Both sides do the same
work on the same rows, ours and theirs by turns, each measurement in a child process of its own. Weights are random,
except where a model must stop by itself: speed does not depend on them.

Parts   step      a training step of 124M on WOZ turns, batch 32: LAMOL (NLL) and Word-KD
        long      Word-KD on rows of 1,024 tokens, batch 2 (with 4 the usual way needs over 23 GB)
        generate  124M, 64 rows: greedy answers to WOZ prompts, pseudo-data; rows end where the real ones do
        nano      pseudo-data from a nano model that has learned to stop
        method    whole runs on nano: L2KD's time over LAMOL's, with teachers made and found
        growth    stages of a stream of eight equal tasks; steps at growing row lengths and vocabularies
"""

import argparse
import contextlib
import gc
import io
import json
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch
import torch.nn.functional as F

import train
from data import IGNORE, DataError, Tokenizer, encode_parts, encode_task, load_task, plan_epoch
from lab.options import choose_device, parse
from lab.rundir import RunError, stream, write_json, write_jsonl
from model import GPT, GPTConfig, ModelFileError, generate

PARTS = ("step", "long", "generate", "nano", "method", "growth")
GPT2 = {"n_layer": 12, "n_head": 12, "n_embd": 768}
SMALL = {"n_layer": 4, "n_head": 4, "n_embd": 256}
EPOCHS = 9  # of a task: a teacher's states are computed once in so many

# ---------------------------------------------------------------------- what both sides work on


def model_of(case, seed=0) -> GPT:
    """GPT-2 of the case's shape from random weights, or the model of a folder."""
    if "folder" in case:
        return GPT.from_pretrained(case["folder"])
    torch.manual_seed(seed)
    return GPT(GPTConfig(vocab_size=case.get("vocab", 50304), **case["shape"]))


def hugging_face(model: GPT, device):
    """The same model in transformers."""
    from transformers import GPT2LMHeadModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    fast = {"attn_implementation": "sdpa", "activation_function": "gelu_pytorch_tanh"}  # the same GELU, in one kernel
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        found = GPT2LMHeadModel.from_pretrained(folder, **fast).to(device)
    found.generation_config.eos_token_id = None  # rows end where the case says
    return found


def examples_of(case, n) -> list:
    """Encoded examples: turns of WOZ, or random rows of one length whose last 60 tokens are the answer."""
    tok = Tokenizer.gpt2()
    if "length" not in case:
        with contextlib.redirect_stdout(io.StringIO()):
            return encode_task(load_task("woz", case["data_dir"], case["cache_dir"], limit=n), tok, 1024)
    r, answer = torch.Generator().manual_seed(0), min(60, case["length"] // 4)
    ids = torch.randint(min(1000, case.get("vocab", 50304)), (n, case["length"] - 2), generator=r).tolist()
    rows = [encode_parts(x[: -answer - 8], x[-answer - 8 : -answer], x[-answer:], 0, tok, case["length"]) for x in ids]
    if "vocab" in case:  # the special tokens of the real one are outside
        for row in rows:
            row.qa_ids, row.lm_ids, row.qa_labels, row.lm_labels = (
                [min(i, case["vocab"] - 1) for i in x] for x in (row.qa_ids, row.lm_ids, row.qa_labels, row.lm_labels)
            )
    return rows


def prompts_of(case) -> tuple[list, list]:
    """64 prompts and how many tokens each of them gets: as in WOZ, or all that a model takes to stop by itself."""
    n = case["prompts"]
    if "task_id" in case:
        return [[case["task_id"]]] * n, [case["new"]] * n
    rows = examples_of(case, n)
    if case["top_k"] is None:
        at = [row.qa_ids.index(Tokenizer.gpt2().ans_id) + 1 for row in rows]
        return [row.qa_ids[:i] for row, i in zip(rows, at)], [len(row.qa_ids) - i + 1 for row, i in zip(rows, at)]
    return [row.lm_ids[:1] for row in rows], [len(row.lm_ids) for row in rows]


def autocast(device, dtype):
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def clock(device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def memory(device) -> int:
    """Peak bytes of this process since `forget`: of the GPU's memory, or resident (Linux counts it)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return status("VmHWM")


def status(name) -> int:
    """Bytes, of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def forget(device) -> int:
    """Start the peak anew, with what is held now, models among it: the bytes of that."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return status("VmRSS")


def bytes_of(model) -> int:
    """Of the parameters."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def flops_of(case, examples) -> float:
    """What an epoch over the examples needs: 2 operations a parameter and token forward, 4 backward; the head at
    supervised tokens alone; forward only for a teacher, in each epoch, also where its states are kept. Products inside
    attention are left out."""
    shape, rows = case["shape"], [row for x in examples for row in ((x.qa_ids, x.qa_labels), (x.lm_ids, x.lm_labels))]
    tokens, supervised = sum(len(ids) for ids, _ in rows), sum(y != IGNORE for _, labels in rows for y in labels)
    blocks = 12 * shape["n_layer"] * shape["n_embd"] ** 2
    return (8 if case["kd"] == "word" else 6) * (
        blocks * tokens + case.get("vocab", 50304) * shape["n_embd"] * supervised
    )


# ---------------------------------------------------------------------- a training step


def lab_of(case, device, dtype, folder):
    """What `train.py` needs of a run."""
    options = ["--order", "woz", "--model", "gpt2", "--batch-size", str(case["batch"]), "--kd", case["kd"]]
    o = parse([*options, "--teacher-cache", str(case.get("cache", 2**31))])
    run = SimpleNamespace(o=o, device=device, dtype=dtype, tokenizer=Tokenizer.gpt2(), dir=Path(folder))
    run.rule = "added" if case["kd"] == "word" else "joint"
    run.autocast = lambda: autocast(device, dtype)
    run.restore, run.checkpoint = lambda *_: (0, 0), lambda *_: None
    return run


def step_ours(case, device, dtype) -> dict:
    """`train.learn` itself, with batches, losses, clipping, optimizer and log: its second epoch, and a teacher's states
    for the epochs that use them."""
    examples = examples_of(case, case["batch"] * case["steps"])
    with tempfile.TemporaryDirectory() as folder:
        run = lab_of(case, device, dtype, folder)
        student, teacher, filled = model_of(case).to(device), None, 0.0
        if case["kd"] == "word":
            teacher = train.frozen(run, model_of(case, 1).to(device))
        held = forget(device)
        if teacher:
            train.soft_targets(run, teacher, examples[: case["batch"]])  # warm-up
            began = clock(device)
            teacher = train.soft_targets(run, teacher, examples)
            filled = (clock(device) - began) / EPOCHS
        times = []
        train.learn(
            run,
            student,
            examples,
            [],
            1,
            "woz",
            epochs=2,
            teacher=teacher,
            after_epoch=lambda _: times.append(clock(device)),
        )
        seconds = clock(device) - times[0] + filled
    return measured(case, examples, seconds, memory(device), held, student)


def step_usual(case, device, dtype) -> dict:
    """transformers, two padded forwards a batch, all logits; the loss of the supervised ones."""
    examples, pad = examples_of(case, case["batch"] * case["steps"]), 0
    student, teacher = hugging_face(model_of(case), device).train(), None
    if case["kd"] == "word":
        teacher = hugging_face(model_of(case, 1), device).eval().requires_grad_(False).to(dtype)
    held = forget(device)
    optimizer = torch.optim.AdamW(student.parameters(), lr=6.25e-5, eps=1e-4, weight_decay=0.01, fused=True)

    def loss_of(rows, labels, T=2.0):
        """The mean loss of a padded stream, lists of ids and of labels."""
        size = max(map(len, rows))
        ids = torch.tensor([x + [pad] * (size - len(x)) for x in rows], device=device)
        mask = torch.tensor([[1] * len(x) + [0] * (size - len(x)) for x in rows], device=device)
        y = torch.tensor([x + [IGNORE] * (size - len(x)) for x in labels], device=device)
        logits = student(ids, attention_mask=mask, use_cache=False).logits  # (B, T, V)
        if teacher is None:
            return F.cross_entropy(logits.flatten(0, 1).float(), y.flatten(), ignore_index=IGNORE)
        with torch.no_grad():
            target = teacher(ids, attention_mask=mask, use_cache=False).logits[y != IGNORE].float()
        ours = logits[y != IGNORE].float()
        return T * T * F.kl_div((ours / T).log_softmax(-1), (target / T).softmax(-1), reduction="batchmean")

    def update(batch):
        with autocast(device, dtype):
            loss = loss_of([x.qa_ids for x in batch], [x.qa_labels for x in batch])
            loss = loss + 0.25 * loss_of([x.lm_ids for x in batch], [x.lm_labels for x in batch])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    plan = plan_epoch(len(examples), 0, case["batch"], "shuffled", stream(0, 1, "woz", "student batches", 2))  # as ours
    batches = [[examples[i] for i in indices] for indices in plan]
    for batch in batches:  # warm-up, as ours
        update(batch)
    began = clock(device)
    for batch in batches:
        update(batch)
    seconds = clock(device) - began
    padded = sum(len(b) * (max(len(x.qa_ids) for x in b) + max(len(x.lm_ids) for x in b)) for b in batches)
    padding = 1 - sum(len(x.qa_ids) + len(x.lm_ids) for x in examples) / padded
    return measured(case, examples, seconds, memory(device), held, student) | {"padding": padding}


def measured(case, examples, seconds, peak, held, student) -> dict:
    """rate: examples/s; bytes in all, and above the state: what was held before the first update, the gradients and
    the optimizer's two moments; FLOP/s."""
    above = peak - held - 3 * bytes_of(student)
    return {"rate": len(examples) / seconds, "peak": peak, "above": above, "flops": flops_of(case, examples) / seconds}


# ---------------------------------------------------------------------- generation


def generate_ours(case, device, dtype) -> dict:
    """`model.generate`; rate: tokens/s, of each row up to its end."""
    prompts, new = prompts_of(case)
    model = model_of(case).to(device)
    held = forget(device)
    with autocast(device, dtype):
        generate(model, prompts[:2], 2, case["stop"], top_k=case["top_k"])
        began = clock(device)
        out = generate(
            model,
            prompts,
            new,
            case["stop"],
            case["top_k"],
            generator=torch.Generator().manual_seed(case.get("seed", 0)),
        )
        seconds = clock(device) - began
    return generated(sum(map(len, out)), seconds, memory(device), held)


def generate_usual(case, device, dtype) -> dict:
    """transformers' `generate`, padded on the left, weights in the compute dtype."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    prompts, new = prompts_of(case)
    model = hugging_face(model_of(case), device).eval().to(dtype)
    held = forget(device)
    size, ends = max(map(len, prompts)), torch.tensor(new, device=device)
    ids = torch.tensor([[0] * (size - len(x)) + x for x in prompts], device=device)
    mask = torch.tensor([[0] * (size - len(x)) + [1] * len(x) for x in prompts], device=device)

    class AtItsEnd(StoppingCriteria):
        def __call__(self, ids, scores, **_):
            return ids.size(1) - size >= ends

    sampling = {"do_sample": True, "top_k": case["top_k"]} if case["top_k"] else {"do_sample": False}
    stop = {"eos_token_id": case["stop"]} if case["stop"] >= 0 else {}

    def run(ids, mask, **more):
        return model.generate(ids, attention_mask=mask, pad_token_id=0, **stop, **sampling, **more)

    torch.manual_seed(case.get("seed", 0))
    with torch.inference_mode():
        run(ids[:2], mask[:2], max_new_tokens=2)
        began = clock(device)
        out = run(ids, mask, max_new_tokens=max(new), stopping_criteria=StoppingCriteriaList([AtItsEnd()]))
        seconds = clock(device) - began
    rows = [row[:n] for row, n in zip(out[:, size:].tolist(), new)]
    useful = sum(row.index(case["stop"]) + 1 if case["stop"] in row else len(row) for row in rows)
    return generated(useful, seconds, memory(device), held)


def generated(tokens, seconds, peak, held) -> dict:
    """rate: tokens/s that are of use; bytes in all, and above what was held with the model."""
    return {"rate": tokens / seconds, "tokens": tokens, "peak": peak, "above": peak - held}


# ---------------------------------------------------------------------- ours alone: peak, methods, a stream


def peak_ours(case, device, dtype) -> dict:
    """The FLOP/s of a large matrix product: what the machine can do."""
    a, b = torch.randn(2, 4096, 4096, device=device).to(dtype)
    times = []
    for _ in range(6):
        began = clock(device)
        a @ b
        times.append(clock(device) - began)
    return {"flops": 2 * 4096**3 / min(times)}


def method_ours(case, device, dtype) -> dict:
    """One run of train.py: its seconds."""
    began = time.perf_counter()
    if train.main([*case["arguments"], "--device", str(device)]):
        raise SystemExit(1)  # it has said why
    return {"seconds": time.perf_counter() - began}


def growth_ours(case, device, dtype) -> dict:
    """A stream of eight tasks with the same rows: seconds of sampling and of learning, and peak bytes, by stage."""
    found = {}

    def timed(function, name, stage_of):
        """The function, its seconds added to those of its stage."""

        def wrapped(*args, **kwargs):
            began = clock(device)
            result = function(*args, **kwargs)
            stage = found.setdefault(stage_of(args), {})
            stage[name] = stage.get(name, 0.0) + clock(device) - began
            stage["peak"] = memory(device)
            return result

        return wrapped

    train.replay_samples = timed(train.replay_samples, "sampling", lambda args: args[4])
    train.learn = timed(train.learn, "learning", lambda args: args[4])
    method_ours(case, device, dtype)
    return {"stages": found}


# ---------------------------------------------------------------------- which cases, in children of their own


def cases_of(part, quick, folder, where, device) -> list[dict]:
    """The cases of a part; `sides` names who is measured."""
    both, shape, dtypes = ["usual", "ours"], SMALL if quick else GPT2, ("float32", "bfloat16")
    step = {"what": "step", "sides": both, "shape": shape, "batch": 32, "steps": 1 if quick else 2, **where}
    if part == "step":
        cases = [step | {"name": f"{label}, WOZ", "kd": kd} for label, kd in (("Word-KD", "word"), ("LAMOL", "none"))]
        cases.insert(1, step | {"name": "Word-KD, WOZ, no cache", "kd": "word", "cache": 0, "sides": ["ours"]})
        return [case | {"dtype": dtype} for dtype in dtypes for case in cases]
    if part == "long":
        long = step | {"length": 128 if quick else 1024, "batch": 2, "steps": 1, "kd": "word"}
        return [long | {"name": f"Word-KD, {long['length']} tokens", "dtype": dtype} for dtype in dtypes]
    if part == "generate":
        rows = {"what": "generate", "sides": both, "shape": shape, "prompts": 64, "stop": -1, **where}
        kinds = (("greedy answers", None), ("pseudo-data", 20))
        return [
            rows | {"name": f"{name}, 64 rows", "top_k": k, "dtype": dtype} for dtype in dtypes for name, k in kinds
        ]
    nano = ["--order", "toy.woz,toy.ag", "--runs-dir", f"{folder}/runs", "--no-eval-every-epoch", "--kd", "none"]
    if part == "nano":
        less = ["--epochs", "5", "--limit", "150"] if quick else []
        measure({"what": "method", "name": "nano", "dtype": "float32", "arguments": [*nano, *less]}, "ours", device)
        (model,) = Path(folder, "runs").glob("*/model")
        stop = Tokenizer.nano().eos_id
        slots = json.loads((model / "config.json").read_text(encoding="utf-8"))["task_slots"]
        row = {"what": "generate", "sides": both, "folder": str(model), "prompts": 64, "new": 250, "stop": stop}
        return [row | {"name": "nano, pseudo-data", "top_k": 20, "task_id": slots["toy.woz"], "dtype": "float32"}]
    if part == "method":
        limit = ["--limit", "50", "--epochs", "2"] if quick else []
        base = ["--order", "toy.woz,toy.sql,toy.cnn", "--no-eval-every-epoch", *limit]
        runs = [
            ("LAMOL", "none", "a"),
            ("Word-KD, teachers made", "word", "b"),
            ("Word-KD, teachers found", "word", "c"),
        ]
        runs += [("Seq-KD, teachers found", "seq", "c"), ("Seq-KD_soft, teachers found", "seqsoft", "c")]
        more = {"what": "method", "sides": ["ours"], "dtype": "float32"}
        there = ["--teachers", f"{folder}/teachers"]
        return [
            more | {"name": name, "arguments": [*base, "--kd", kd, "--runs-dir", f"{folder}/{at}", *there]}
            for name, kd, at in runs
        ]
    for i in range(1, 9):
        rows = load_task("toy.ag", "", "", limit=40 if quick else 200)
        for split, examples in (("train", rows.train), ("test", rows.test[:20])):
            lines = [{"context": e.context, "question": e.question, "answer": e.answer} for e in examples]
            write_jsonl(Path(folder, f"equal{i}", f"{split}.jsonl"), lines)
    order = ",".join(f"{folder}/equal{i}" for i in range(1, 9))
    arguments = ["--order", order, "--model", "nano", "--kd", "word", "--no-eval-every-epoch", "--epochs", "3"]
    grow = {"what": "growth", "name": "eight equal tasks", "sides": ["ours"], "dtype": "float32"}
    cases = [grow | {"arguments": [*arguments, "--runs-dir", f"{folder}/runs"]}]
    small = step | {"shape": SMALL, "kd": "word", "steps": 1, "dtype": "float32"}
    for length in (64, 256) if quick else (64, 256, 1024):  # as many tokens each
        cases.append(small | {"name": f"rows of {length} tokens", "length": length, "batch": 4096 // length})
    for vocab in (1000, 10000) if quick else (1000, 10000, 100000):
        cases.append(small | {"name": f"{vocab:,} words", "length": 64, "batch": 32, "vocab": vocab})
    return cases


def measure(case, side, device) -> dict:
    """One measurement in a process of its own. Raises RunError with what it said, when it fails."""
    command = [sys.executable, "-m", "lab.bench", "--device", device, "--case", json.dumps(case | {"side": side})]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise RunError(f"{case['name']}, {side}: {said[-1] if said else f'exit code {done.returncode}'}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(case, rounds, device) -> dict:
    """Ours and the usual way by turns -> medians of each, and of the ratios of each round."""
    found = {side: [] for side in case["sides"]}
    for i in range(rounds):
        for side in found:
            found[side].append(measure(case | {"seed": i}, side, device))
    result = {"name": case["name"], "dtype": case["dtype"], "rounds": rounds}
    for side, values in found.items():
        result[side] = {k: median(v[k] for v in values) for k in values[0] if k != "stages"}
        result[side] |= {"stages": values[-1]["stages"]} if "stages" in values[0] else {}
    if len(found) == 2:
        pairs = list(zip(found["ours"], found["usual"]))
        if case.get("stop") == -1 and any(a["tokens"] != b["tokens"] for a, b in pairs):
            raise RunError(f"{case['name']}: the two sides did not generate as many tokens")
        result["ratio"] = {k: median(a[k] / b[k] for a, b in pairs) for k in ("rate", "above", "peak")}
        result["ratio"]["spread"] = [f(a["rate"] / b["rate"] for a, b in pairs) for f in (min, max)]
    return result


# ---------------------------------------------------------------------- the table


def line_of(result, peaks) -> str:
    """One line of the table."""
    ours, usual, ratio = result["ours"], result.get("usual", {}), result.get("ratio")
    head = f"{result['name']:<30} {result['dtype']:<9}"
    if "stages" in ours:
        stages = {int(m): s for m, s in ours["stages"].items()}
        parts = [
            f"after {m - 1}: sampling {s['sampling']:.1f} s, learning {s['learning']:.1f} s, {s['peak'] / 1e9:.2f} GB"
            for m, s in sorted(stages.items())
            if m in (2, 4, 8)
        ]
        return f"{head} " + "; ".join(parts)
    if "seconds" in ours:
        return f"{head} {ours['seconds']:8.1f} s"
    text = f"{head} {ours['rate']:8.1f} "
    if ratio:
        low, high = ratio["spread"]
        text += f"{usual['rate']:8.1f} {ratio['rate']:6.2f} ({low:.2f}-{high:.2f}) "
        text += f"{ratio['above']:8.2f} {ratio['peak']:7.2f}  "
    else:
        text += f"{'':8} {'':6} {'':11} {'':8} {'':7}  "
    text += f"{ours['above'] / 1e9:6.2f} {ours['peak'] / 1e9:6.2f}"
    if "flops" in ours and result["dtype"] in peaks:
        text += "".join(f"{x['flops'] / peaks[result['dtype']]:8.0%}" for x in (ours, usual) if x)
    return text + (f"{usual['padding']:8.0%}" if "padding" in usual else "")


HEADER = (
    f"{'':<40} {'ours':>8} {'usual':>8} {'ratio':>6} {'':13}{'above':>8} {'in all':>7}  "
    f"{'above':>6} {'in all':>6}{'of peak':>16}{'padding':>8}\n"
    f"{'':<40} {'/s':>8} {'/s':>8} {'':6} {'':13}{'ratio':>8} {'ratio':>7}  {'GB':>6} {'GB':>6}"
    f"{'ours':>8}{'usual':>8}{'usual':>8}"
)


def main(argv=None) -> int:
    """The command line: exit code 0, 1 when a measurement failed."""
    parser = argparse.ArgumentParser(description="ours against the usual way, side by side", allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f"error: {message} (--help lists the options)\n")
    parser.add_argument("parts", nargs="*", help=f"{', '.join(PARTS)}; default all")
    parser.add_argument("--quick", action="store_true", help="small models, one round: do all parts run?")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each side, by turns (default 3)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--data-dir", default="~/.cache/l2kd/raw", help="where WOZ is, as for train.py")
    parser.add_argument("--cache-dir", default="~/.cache/l2kd", help="prepared data, as for train.py")
    parser.add_argument("--json", help="a file for the measurements")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # a child's measurement
    a = parser.parse_args(argv)
    if wrong := next((part for part in a.parts if part not in PARTS), None):
        parser.error(f"part {wrong!r}: {', '.join(PARTS)}")
    if a.rounds < 1:
        parser.error(f"--rounds {a.rounds}: must be 1 or more")
    try:
        device = choose_device(a.device)[0]
        if device.type not in ("cpu", "cuda") or device.index:
            raise RunError(f"--device {a.device}: measured are cpu and cuda")
        if a.case:
            case = json.loads(a.case)
            found = globals()[f"{case['what']}_{case['side']}"](case, device, getattr(torch, case["dtype"]))
            print(json.dumps(found))
            return 0
        return bench(a, device)
    except (DataError, ModelFileError, RunError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1


def bench(a, device) -> int:
    """Measure the parts that were asked for, print the table as it grows, write the JSON."""
    where = {
        "data_dir": str(Path(a.data_dir).expanduser().absolute()),
        "cache_dir": str(Path(a.cache_dir).expanduser().absolute()),
    }
    load_task("woz", **where, limit=1)  # not there: say so before anything is measured
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    print(f"{date.today()}, {name}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    plain = {"what": "peak", "name": "matrix product"}
    peaks = {d: measure(plain | {"dtype": d}, "ours", str(device))["flops"] for d in ("float32", "bfloat16")}
    print("matrix product: " + ", ".join(f"{dtype} {x / 1e12:.2f} TFLOP/s" for dtype, x in peaks.items()))
    print(HEADER)
    results = []
    for part in a.parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            with contextlib.redirect_stdout(io.StringIO()):
                cases = cases_of(part, a.quick, folder, where, str(device))
            for case in cases:
                rounds = 1 if a.quick or case["what"] in ("method", "growth") else a.rounds
                results.append(compare(case, rounds, str(device)) | {"part": part})
                print(line_of(results[-1], peaks), flush=True)
                if a.json:
                    head = {"date": str(date.today()), "machine": name, "torch": torch.__version__, "peak": peaks}
                    write_json(Path(a.json), head | {"threads": torch.get_num_threads(), "results": results})
    return 0


def processor() -> str:
    """The processor's name, where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
