"""How each side is measured: one function `<what>_<side>` a measurement, which runs in a child process of its own.

    ours     what train.py really does: `train.learn`, `decode`, whole runs
    usual    transformers with its best settings: scaled_dot_product_attention, fused AdamW, attention masks

`measure(case, device)` calls them. Each gives a dict of numbers: `rate` (per second) or `seconds`, and bytes at the
peak: `peak` in all, `above` what was held before.
"""

import gc
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import kd
import train
from data import IGNORE, make_batch, plan_epoch
from eval import greedy
from lab.check import launches
from lab.check.bench_cases import examples_of, flops_of, model_of, prompts_of
from lab.fast.decode import decode
from lab.fast.packing import Layout
from lab.run import Phase, Run
from lab.run.options import parse
from lab.run.pretrained import gpt2_tokenizer, save_gpt
from lab.run.seeds import generator_for
from lamol import top_k_sampler
from model import GPT

EPOCHS = 9  # of a task: a teacher's states are computed in the first of them

# ---------------------------------------------------------------------- clock and memory


def clock(device) -> float:
    """Seconds, when the device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory(device) -> int:
    """Peak bytes since `start_peak`: of the GPU's memory, or resident ones of this process (Linux counts them)."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else status("VmHWM")


def start_peak(device) -> int:
    """Count the peak anew. Returns the bytes that are held now."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return status("VmRSS")


def status(name: str) -> int:
    """A number of bytes in /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def autocast(device, dtype):
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


# ---------------------------------------------------------------------- an update


class BenchRun(Run):
    """A run with what `train.learn` asks for, but without a directory: its checkpoints only tell the time."""

    def __init__(self, case, device, dtype, folder):
        options = ["--order", "woz", "--model", "gpt2", "--batch-size", str(case["batch"]), "--kd", case["kd"]]
        self.args = parse(options)
        self.device, self.dtype, self.tokenizer, self.dir = device, dtype, gpt2_tokenizer(), Path(folder)
        self.replay_loss = kd.authors_rule(case["kd"])
        self.lm_rows, self.layout = True, Layout(device.type)
        self.cut_off = None  # no checkpoint to go on from
        self.ends = []  # when each epoch was over

    def checkpoint(self, *_, must):
        self.ends.append(clock(self.device))


class TimedTeacher(kd.Teacher):
    """A teacher that adds up the seconds in which it computes states that it then remembers."""

    seconds = 0.0

    def compute(self, rows):
        if not (self.blocks and rows):
            return super().compute(rows)  # without a clock, for which a GPU would have to be waited for
        began = clock(self.model.device)
        found = super().compute(rows)
        self.seconds += clock(self.model.device) - began
        return found


def step_ours(case, device, dtype) -> dict:
    """`train.learn`: batches, losses, clipping, optimizer, log. Its second epoch is measured, and of the time in which
    the teacher's states are computed, in the first epoch, a share."""
    examples = examples_of(case, case["batch"] * case["steps"])
    student, teacher = model_of(case).to(device), None
    if case["kd"] == "word":
        teacher = TimedTeacher(model_of(case, seed=1).to(device), dtype)
    held = start_peak(device)
    with tempfile.TemporaryDirectory() as folder:
        run = BenchRun(case, device, dtype, folder)
        if teacher:
            with run.autocast():
                teacher.states(make_batch(examples, range(case["batch"]), len(examples))[0].rows)  # warm-up
            run.args.teacher_cache = case.get("cache", 2**31)
        train.learn(run, student, Phase("student", 1, "woz", epochs=2), examples, teacher=teacher)
    seconds = run.ends[1] - run.ends[0] + (teacher.seconds / EPOCHS if teacher else 0.0)
    return of_step(case, examples, seconds, peak_memory(device), held, student)


def step_usual(case, device, dtype) -> dict:
    """Two padded forward passes a batch, for QA and for LM rows, and all logits."""
    examples = examples_of(case, case["batch"] * case["steps"])
    student, teacher = hugging_face(model_of(case), device).train(), None
    if case["kd"] == "word":
        teacher = hugging_face(model_of(case, seed=1), device).eval().requires_grad_(False).to(dtype)
    held = start_peak(device)
    optimizer = torch.optim.AdamW(student.parameters(), lr=6.25e-5, eps=1e-4, weight_decay=0.01, fused=True)

    def update(batch):
        with autocast(device, dtype):
            qa = usual_loss(student, teacher, [x.qa_ids for x in batch], [x.qa_labels for x in batch])
            lm = usual_loss(student, teacher, [x.lm_ids for x in batch], [x.lm_labels for x in batch])
            loss = qa + 0.25 * lm
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    plan = plan_epoch(len(examples), 0, case["batch"], "shuffled", generator_for(0, 1, "woz", "student batches", 2))
    batches = [[examples[i] for i in indices] for indices in plan]  # those of our second epoch
    for batch in batches:  # warm-up, like our first epoch
        update(batch)
    began = clock(device)
    for batch in batches:
        update(batch)
    seconds = clock(device) - began
    padded = sum(len(b) * (max(len(x.qa_ids) for x in b) + max(len(x.lm_ids) for x in b)) for b in batches)
    padding = 1 - sum(len(x.qa_ids) + len(x.lm_ids) for x in examples) / padded
    return of_step(case, examples, seconds, peak_memory(device), held, student) | {"padding": padding}


def usual_loss(student, teacher, rows, labels, temperature=2.0):
    """The mean loss of padded rows: NLL, or with a teacher the KL of distillation."""
    size, device = max(map(len, rows)), student.device
    ids = torch.tensor([x + [0] * (size - len(x)) for x in rows], device=device)  # (B, T)
    mask = torch.tensor([[1] * len(x) + [0] * (size - len(x)) for x in rows], device=device)
    y = torch.tensor([x + [IGNORE] * (size - len(x)) for x in labels], device=device)
    logits = student(ids, attention_mask=mask, use_cache=False).logits  # (B, T, V)
    if teacher is None:
        return F.cross_entropy(logits.flatten(0, 1).float(), y.flatten(), ignore_index=IGNORE)
    with torch.no_grad():
        target = teacher(ids, attention_mask=mask, use_cache=False).logits[y != IGNORE].float()
    p = (target / temperature).softmax(-1)
    log_q = (logits[y != IGNORE].float() / temperature).log_softmax(-1)
    return temperature**2 * F.kl_div(log_q, p, reduction="batchmean")


def of_step(case, examples, seconds, peak, held, student) -> dict:
    """rate: examples/s. above: the peak without models, gradients and the optimizer's two moments. flops: FLOP/s."""
    state = 3 * sum(p.numel() * p.element_size() for p in student.parameters())
    flops = flops_of(case, examples) / seconds
    return {"rate": len(examples) / seconds, "peak": peak, "above": peak - held - state, "flops": flops}


def hugging_face(model: GPT, device):
    """The same model in transformers."""
    from transformers import GPT2LMHeadModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    fast = {"attn_implementation": "sdpa", "activation_function": "gelu_pytorch_tanh"}  # the same GELU, in one kernel
    with tempfile.TemporaryDirectory() as folder:
        save_gpt(model, folder)
        found = GPT2LMHeadModel.from_pretrained(folder, **fast).to(device)
        for p in found.parameters():  # the file is only mapped: read it, or its bytes would be counted later
            p.data = p.data.clone()
    found.generation_config.eos_token_id = None  # rows end where the case says
    return found


# ---------------------------------------------------------------------- generation


def generate_ours(case, device, dtype) -> dict:
    """`decode`, as `eval.predict` and `lamol.generated_samples` call it."""
    prompts, limits = prompts_of(case)
    model = model_of(case).to(device)
    held = start_peak(device)

    def generate(prompts, limits):
        pick = greedy
        if case["top_k"]:
            generator = torch.Generator().manual_seed(case.get("seed", 0))
            pick = top_k_sampler(case["top_k"], len(prompts), max(limits), generator)
        with autocast(device, dtype):
            return decode(model, prompts, limits, case["stop"], pick)

    generate(prompts[:2], [2, 2])  # warm-up
    began = clock(device)
    rows = generate(prompts, limits)
    seconds = clock(device) - began
    return of_generation(sum(map(len, rows)), seconds, peak_memory(device), held)


def generate_usual(case, device, dtype) -> dict:
    """transformers' `generate`, padded on the left, with weights in the compute dtype."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    prompts, limits = prompts_of(case)
    model = hugging_face(model_of(case), device).eval().to(dtype)
    held = start_peak(device)
    size, ends = max(map(len, prompts)), torch.tensor(limits, device=device)
    ids = torch.tensor([[0] * (size - len(x)) + x for x in prompts], device=device)
    mask = torch.tensor([[0] * (size - len(x)) + [1] * len(x) for x in prompts], device=device)

    class AtItsLimit(StoppingCriteria):
        def __call__(self, ids, scores, **_):
            return ids.size(1) - size >= ends

    sampling = {"do_sample": True, "top_k": case["top_k"]} if case["top_k"] else {"do_sample": False}
    stop = {"eos_token_id": case["stop"]} if case["stop"] >= 0 else {}

    def generate(ids, mask, **more):
        return model.generate(ids, attention_mask=mask, pad_token_id=0, **stop, **sampling, **more)

    torch.manual_seed(case.get("seed", 0))
    with torch.inference_mode():
        generate(ids[:2], mask[:2], max_new_tokens=2)  # warm-up
        began = clock(device)
        out = generate(ids, mask, max_new_tokens=max(limits), stopping_criteria=StoppingCriteriaList([AtItsLimit()]))
        seconds = clock(device) - began
    rows = [row[:n] for row, n in zip(out[:, size:].tolist(), limits)]
    useful = sum(row.index(case["stop"]) + 1 if case["stop"] in row else len(row) for row in rows)
    return of_generation(useful, seconds, peak_memory(device), held)


def of_generation(tokens, seconds, peak, held) -> dict:
    """rate: tokens/s that are of use, of each row up to its end. above: the peak without the model."""
    return {"rate": tokens / seconds, "tokens": tokens, "peak": peak, "above": peak - held}


# ---------------------------------------------------------------------- ours alone: the machine, whole runs, a sequence


def launches_ours(case, device, dtype) -> dict:
    """What a GPU would wait for, see launches.py."""
    counts = {"update": launches.update_launches, "step": launches.step_launches}
    counts |= {"compiled": launches.compiled_launches, "run": launches.decoding_steps}
    return counts[case["count"]](case)


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
    """A whole run of train.py."""
    began = time.perf_counter()
    if train.main([*case["arguments"], "--device", str(device)]):
        raise SystemExit(1)  # it has printed why
    return {"seconds": time.perf_counter() - began}


def growth_ours(case, device, dtype) -> dict:
    """A sequence of tasks: by stage, the seconds of sampling and of learning, and peak bytes."""
    stages = {}

    def timed(function, name, stage_of):
        """The function; its seconds are added to those of its stage."""

        def wrapper(*args, **kwargs):
            began = clock(device)
            result = function(*args, **kwargs)
            stage = stages.setdefault(stage_of(args), {})
            stage[name] = stage.get(name, 0.0) + clock(device) - began
            stage["peak"] = peak_memory(device)
            return result

        return wrapper

    train.replay_samples = timed(train.replay_samples, "sampling", lambda args: args[5])
    train.learn = timed(train.learn, "learning", lambda args: args[2].stage)
    method_ours(case, device, dtype)
    return {"stages": stages}


def measure(case: dict, device) -> dict:
    """One measurement, in this process."""
    return globals()[f"{case['what']}_{case['side']}"](case, device, getattr(torch, case["dtype"]))
