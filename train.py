"""L2KD: lifelong language knowledge distillation (Chuang, Su, Chen; EMNLP 2020).

    python train.py --order woz,sql,cnn --kd word

Algorithm 1, for each task m of the stream (D_m its data, θ_T the teacher, θ_S the student, γ the pseudo-data rate):

     1   optimize teacher model on D_m to get parameters θ_T
     2   sample γ·|D_m| pseudo-data from θ_S to form D_prev
     3   for all training samples {X_i}, i = 1..n, of D_m do
     4       for i = 1 to n do
     5           update θ_S to minimize L_KD(X_i; θ_S; θ_T)
     6       end for
     7       sample n' = γn samples {X_j} from D_prev
     8       for j = 1 to n' do
     9           update θ_S to minimize L_NLL(X_j; θ_S)
    10       end for
    11   end for

`lifelong` below is this loop; finetune, LAMOL, Word-KD, Seq-KD and Seq-KD_soft differ by one branch each. `single` and
`multitask` are the rows that are no lifelong learning (Table 3).
"""

import argparse
import copy
import hashlib
import json
import math
import platform
import sys
import time
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path

import torch
from tqdm import tqdm

import kd
import lamol
from data import (
    METRICS,
    DataError,
    Tokenizer,
    answer_budget,
    encode_parts,
    encode_task,
    load_task,
    make_batch,
    plan_epoch,
    task_name,
)
from eval import draw_curves, predict, score, summarise, table
from lab import rundir
from lab.rundir import RunError, seed_of, stream
from model import DEFAULT_CACHE, GPT, PRETRAINED, GPTConfig, ModelFileError

NANO = GPTConfig(n_embd=128, n_layer=4, n_head=4)  # for a quick try: random weights, GPT-2's vocabulary


def option(default, help, choices=None):
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass
class Options:
    """Everything that can be chosen. The defaults are the paper's Table 7 and, beyond it, the released code's."""

    order: str = option("woz,sql,cnn", f"tasks in order: {', '.join(METRICS)}, or folders with train and test.jsonl")
    method: str = option("lamol", "how tasks are learned", ("finetune", "lamol", "single", "multitask"))
    kd: str = option("", "distillation; default word with lamol, else none", ("none", "word", "seq", "seqsoft"))
    model: str = option("gpt2", f"{', '.join(PRETRAINED)}, nano (random weights), or a folder in Hugging Face's layout")
    gamma: float = option(0.2, "γ: pseudo-samples, as a share of the new task's examples")
    seed: int = option(0, "of everything random")
    epochs: int = option(9, "for each task; with multitask for all (9: multi_same, 27: multi_long)")
    lr: float = option(0.0, "learning rate; 0 is the model's own: 6.25e-5, nano 1e-3")
    batch_size: int = option(0, "examples an update; 0 is the model's own: max(n // 1500, 4), nano 16")
    max_len: int = option(0, "tokens of a row; 0 is the model's context")
    limit: int = option(0, "first N examples of each split; 0 is all")
    qa_only: bool = option(False, "no LM rows (the QA rows of Table 3; single and multitask only)")
    real_replay: bool = option(False, "replay real samples of earlier tasks in place of pseudo-data (an upper bound)")
    replay_loss: str = option(
        "released", "how replay is weighted: see kd.token_weights", ("released", "joint", "added")
    )
    updates: str = option("shuffled", "current and replay samples: mixed, or by turns", ("shuffled", "alternate"))
    temperature: float = option(2.0, "T of the distillation")
    top_k: int = option(20, "k of top-k sampling, for pseudo-data")
    lm_lambda: float = option(0.25, "λ: the LM loss against the QA loss")
    ans_weight: float = option(5.0, "weight of the ANS token as a target")
    weight_decay: float = option(0.01, "AdamW's; not for biases and layer norms")
    adam_epsilon: float = option(1e-4, "AdamW's")
    warmup_ratio: float = option(0.005, "of one epoch's samples")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm")
    eval_every_epoch: bool = option(False, "score after every epoch, not only after every stage (the curves)")
    micro_batch: int = option(0, "examples that go through the model at once; 0 is all that fit in one group")
    device: str = option("auto", "auto (CUDA, then CPU), cpu, cuda, mps")
    dtype: str = option("auto", "computation", ("auto", "float32", "bfloat16", "float16"))
    data_dir: str = option("~/.cache/l2kd/raw", "raw files, as the public releases name them; downloaded if missing")
    cache_dir: str = option(DEFAULT_CACHE, "prepared data and downloaded weights")
    runs_dir: str = option("runs", "where the run's directory is made")
    teachers: str = option("", "where teachers are kept and found again; default <runs-dir>/teachers")
    keep_models: bool = option(False, "keep the student of every stage, not only the last")
    log_every: int = option(50, "updates between two lines of log.jsonl")


# Options that don't change the result (or only its rounding) are not in the run's name ...
UNNAMED = {
    "device",
    "dtype",
    "micro_batch",
    "data_dir",
    "cache_dir",
    "runs_dir",
    "teachers",
    "keep_models",
    "log_every",
}
# ... and these change a teacher, which depends on its task, data, slot, model and seed besides.
TEACHER_KEY = ("seed", "lr", "batch_size", "max_len", "qa_only", "lm_lambda", "ans_weight", "weight_decay")
TEACHER_KEY += ("adam_epsilon", "warmup_ratio", "max_grad_norm")


def resolve(o: Options) -> Options:
    """Fill in the defaults that depend on other options. Raises ValueError for options that contradict each other."""
    tasks = o.order.split(",")
    names = [task_name(entry) for entry in tasks]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"--order {o.order}: task {twice!r} stands there twice")
    if o.kd not in ("", "none") and not (o.method == "lamol" or (o.method, o.kd) == ("multitask", "seq")):
        raise ValueError(f"--kd {o.kd} can't be used with --method {o.method} (lamol takes all, multitask takes seq)")
    if o.qa_only and o.method not in ("single", "multitask"):
        raise ValueError(f"--qa-only can't be used with --method {o.method} (single and multitask only)")
    if o.model not in (*PRETRAINED, "nano") and not Path(o.model).is_dir():
        raise ValueError(f"--model {o.model}: neither {', '.join(PRETRAINED)}, nano nor a folder")
    positive = ("epochs", "temperature", "top_k", "log_every", "max_grad_norm")
    for name, value in asdict(o).items():
        if isinstance(value, int | float) and (
            not math.isfinite(value) or value < 0 or (name in positive and not value)
        ):
            raise ValueError(
                f"--{name.replace('_', '-')} {value}: must be {'above' if name in positive else 'at least'} 0"
            )
    nano = o.model == "nano"
    return replace(
        o,
        kd=o.kd or ("word" if o.method == "lamol" else "none"),
        lr=o.lr or (1e-3 if nano else 6.25e-5),
        batch_size=o.batch_size or (16 if nano else 0),
        teachers=o.teachers or str(Path(o.runs_dir) / "teachers"),
    )


# ---------------------------------------------------------------------- what every method needs


class Lab:
    """The tools of one run: options, tasks, tokenizer, the pretrained model, device, and where results go."""

    def __init__(self, o: Options):
        self.o = o
        self.device, self.dtype, why = choose_device(o)
        self.tokenizer = Tokenizer.gpt2()
        self.tasks = [load_task(entry, o.data_dir, o.cache_dir, o.limit) for entry in o.order.split(",")]
        for task in self.tasks:
            self.tokenizer.add_task(task.name)
        self.pretrained = pretrained(o, self.tokenizer)
        self.max_len = min(o.max_len or 1024, self.pretrained.config.n_positions)
        self.rows = {task.name: encode_task(task, self.tokenizer, self.max_len) for task in self.tasks}
        self.budgets = {task.name: answer_budget(task, self.tokenizer, self.max_len) for task in self.tasks}
        names = [task.name for task in self.tasks]
        defaults = asdict(resolve(Options(order=o.order, method=o.method, kd=o.kd, model=o.model)))
        for key in UNNAMED | {"order", "method", "kd", "gamma", "seed"}:
            del defaults[key]
        defaults["model"] = Options.model
        self.dir = rundir.new_run(o.runs_dir, rundir.run_name(names, asdict(o), defaults))
        config = asdict(o) | {"tasks": names, "slots": self.slots(), "answer_budgets": self.budgets}
        config |= {"resolved_device": str(self.device), "resolved_dtype": str(self.dtype).removeprefix("torch.")}
        config |= {"resolved_max_len": self.max_len, "threads": torch.get_num_threads()}
        config |= {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine()}
        rundir.write_json(self.dir / "config.json", config)
        sizes = ", ".join(f"{task.name} ({len(task.train)} / {len(task.test)})" for task in self.tasks)
        print(f"run      {self.dir}\ntasks    {sizes}, train / test examples")
        print(f"model    {o.model}: {sum(p.numel() for p in self.pretrained.parameters()) / 1e6:.1f}M parameters")
        print(f"device   {self.device}, {config['resolved_dtype']} ({why})")
        print(
            f"method   {o.method}, kd {o.kd}, γ {o.gamma:g}, {o.epochs} epochs, seed {o.seed}, replay loss {self.rule}"
        )

    @property
    def rule(self) -> str:
        """The released code adds the replay loss to a soft-target loss, and joins it with a hard-target one."""
        if self.o.replay_loss != "released":
            return self.o.replay_loss
        return "added" if self.o.kd in ("word", "seqsoft") else "joint"

    def slots(self):
        return {task.name: self.tokenizer.task_id(task.name) for task in self.tasks}

    def fresh(self) -> GPT:
        """The pretrained model, which every teacher and every student starts from (Section 3.1)."""
        return copy.deepcopy(self.pretrained).to(self.device)

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def answers(self, model, task, examples) -> list[list[int]]:
        with self.autocast():
            return predict(model, self.tokenizer, examples, self.max_len, self.budgets[task.name])

    def score(self, model, tasks, stage, epoch) -> list[dict]:
        """Score a model on tasks; the lines go to scores.jsonl. Returns the predictions, one dict an example."""
        predictions = []
        for task in tasks:
            texts = [self.tokenizer.decode(ids) for ids in self.answers(model, task, task.test)]
            self.note_score(stage, epoch, task, score(task, texts))
            for example, text in zip(task.test, texts):
                predictions.append({"task": task.name, "id": example.id, "prediction": text, "answer": example.answer})
        return predictions

    def note_score(self, stage, epoch, task, scores):
        line = {"stage": stage, "epoch": epoch, "task": task.name, "metric": task.metric, **scores}
        rundir.append_jsonl(self.dir / "scores.jsonl", line)
        print(f"stage {stage}, epoch {epoch}: {task.name} {scores['score']:.1f}")

    def save(self, model, path):
        extra = {"tokenizer": self.tokenizer.name, "task_slots": self.slots(), "max_len": self.max_len}
        extra |= {"answer_budgets": self.budgets, "eos_token_id": self.tokenizer.eos_id}
        rundir.write_folder(path, lambda folder: model.save_pretrained(folder, **extra))

    def end_stage(self, model, stage, name, scored):
        """After a stage: score, keep predictions and the student."""
        folder = self.dir / f"{stage}-{name}"
        rundir.write_jsonl(folder / "predictions.jsonl", self.score(model, scored, stage, self.o.epochs))
        self.save(model, self.dir / "model")
        if self.o.keep_models:
            self.save(model, folder / "model")


def choose_device(o: Options):
    """--device and --dtype -> (device, dtype, why). Raises RunError for a device that is not there."""
    kind = o.device if o.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    why = "as asked" if o.device != "auto" else "the GPU that was found" if kind == "cuda" else "no CUDA device found"
    try:
        device = torch.device(kind)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:
        raise RunError(f"--device {o.device}: can't be used here ({str(e).splitlines()[0]})") from None
    if o.dtype != "auto":
        return device, getattr(torch, o.dtype), why
    half = torch.bfloat16 if kind == "cuda" and torch.cuda.is_bf16_supported() else torch.float16
    return device, half if kind == "cuda" else torch.float32, why


def pretrained(o: Options, tokenizer: Tokenizer) -> GPT:
    """The model that everything starts from, its vocabulary grown by ANS, PAD and the task slots."""
    if o.model == "nano":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same for every run: it stands for pretrained weights
            model = GPT(copy.copy(NANO))
    else:
        model = GPT.from_pretrained(o.model, Path(o.cache_dir).expanduser())
    known = model.config.vocab_size
    if known not in (tokenizer.n_base, tokenizer.n_vocab):
        raise ModelFileError(f"--model {o.model}: {known} tokens, but the tokenizer has {tokenizer.n_base}")
    return model.grow_vocab(tokenizer.n_vocab - known) if known == tokenizer.n_base else model


# ---------------------------------------------------------------------- training


def learning_rate(samples_seen, n_samples, epochs, lr, warmup_ratio):
    """The rate of the next update, counted in samples: warm-up over a share of one epoch, then linear (as released).

    n_samples: of one epoch, current and replay. The decay spans all epochs from the end of the warm-up on."""
    warmup = int(warmup_ratio * n_samples)
    if 0 < warmup >= samples_seen:
        return lr * samples_seen / warmup
    return lr * (n_samples * epochs - (samples_seen - warmup)) / (n_samples * epochs)


def optimizer_of(model, o: Options):
    """AdamW, new for each task; no weight decay on biases and layer norms."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": o.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=o.lr, eps=o.adam_epsilon)


def learn(lab, model, current, replay, stage, name, phase, epochs, teacher=None, lm=True, after_epoch=None):
    """Lines 3-11 of Algorithm 1: train on current and replay samples. The KD loss is used where a teacher is given.

    current, replay: lists of Encoded. after_epoch(epoch) is called after each."""
    o, samples, n = lab.o, current + replay, len(current) + len(replay)
    batch_size = o.batch_size or max(n // 1500, 4)
    optimizer = optimizer_of(model, o)
    scaler = torch.amp.GradScaler(lab.device.type, enabled=lab.dtype == torch.float16)
    seen, loss_qa, loss_lm, tokens, start = 0, 0.0, 0.0, 0, time.perf_counter()
    for epoch in range(1, epochs + 1):
        model.train()
        torch.manual_seed(seed_of(o.seed, stage, name, f"{phase} dropout", epoch))
        order = stream(o.seed, stage, name, f"{phase} batches", epoch)
        plan = plan_epoch(len(current), len(replay), batch_size, o.updates, order)
        bar = tqdm(plan, f"{phase} {name}, epoch {epoch}/{epochs}", disable=None, leave=False, unit="batch")
        for step, indices in enumerate(bar, 1):
            # ------------------------------------------------------------ one update (Alg. 1, lines 5 and 9)
            batch = make_batch(
                [samples[i] for i in indices],
                [i >= len(current) for i in indices],
                lab.tokenizer.pad_id,
                distil=teacher is not None,
                lm=lm,
                micro_batch=o.micro_batch,
            )
            weights = kd.token_weights(batch, lab.rule, lab.tokenizer.ans_id, o.ans_weight, o.lm_lambda)
            for rows, w in zip(batch, weights):
                with lab.autocast():
                    rows = rows.to(lab.device)
                    scale = scaler.get_scale()
                    loss, qa, lm_part = kd.rows_loss(model, teacher, rows, w.to(lab.device), o.temperature, scale)
                scaler.scale(loss).backward()
                loss_qa, loss_lm = loss_qa + qa, loss_lm + lm_part
                tokens += rows.ids.numel()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), o.max_grad_norm)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(seen, n, epochs, o.lr, o.warmup_ratio)
            scaler.step(optimizer)  # skipped by the scaler where a half-precision gradient overflowed ...
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            if scaler.get_scale() >= scale:  # ... and then the schedule stands still too
                seen += len(indices)
            # ------------------------------------------------------------
            if step % o.log_every == 0 or step == len(plan):
                steps = (step - 1) % o.log_every + 1
                qa, lm_part, rate = (
                    float(loss_qa) / steps,
                    float(loss_lm) / steps,
                    tokens / (time.perf_counter() - start),
                )
                if not math.isfinite(qa + lm_part):
                    raise RunError(
                        f"the loss is {qa + lm_part} in {phase} {name}, epoch {epoch}, step {step}: lower --lr?"
                    )
                line = {"task": name, "phase": phase, "epoch": epoch, "step": step, "loss": qa + lm_part, "loss_qa": qa}
                line |= {"loss_lm": lm_part, "lr": optimizer.param_groups[0]["lr"], "tokens_per_s": round(rate)}
                rundir.append_jsonl(lab.dir / "log.jsonl", line)
                bar.set_postfix(loss=f"{qa + lm_part:.3f}", tokens_s=f"{rate:.0f}")
                loss_qa, loss_lm, tokens, start = 0.0, 0.0, 0, time.perf_counter()
        print(f"{phase} {name}, epoch {epoch}/{epochs}: loss {line['loss']:.3f}, {line['tokens_per_s']} tokens/s")
        if after_epoch and epoch < epochs:
            after_epoch(epoch)
    model.eval()


def get_teacher(lab, task):
    """Alg. 1, line 1: the teacher of a task, found again where it was made before; returns (model, its folder).

    It starts from the pretrained weights and learns its task alone by NLL: it IS the `single` model of Table 3."""
    o = lab.o
    epochs = min(o.epochs, 9) if o.method == "multitask" else o.epochs  # row (7): single-task teachers, trained as such
    examples = hashlib.sha256(json.dumps([asdict(e) for e in task.train + task.test]).encode()).hexdigest()
    weights = hashlib.sha256()
    for p in lab.pretrained.state_dict().values():
        weights.update(p.contiguous().numpy().tobytes())
    key = {"task": task.name, "slot": lab.tokenizer.task_id(task.name), "epochs": epochs, "examples": examples}
    key |= {"pretrained": weights.hexdigest()} | {name: getattr(o, name) for name in TEACHER_KEY}
    key["max_len"] = lab.max_len
    folder = Path(o.teachers).expanduser() / f"{task.name}-{rundir.key_of(key)}"
    if folder.is_dir():
        print(f"teacher  of {task.name}: found in {folder}")
        return GPT.from_pretrained(folder / "model").to(lab.device), folder
    model = lab.fresh()
    learn(lab, model, lab.rows[task.name], [], 0, task.name, "teacher", epochs, lm=not o.qa_only)
    texts = [lab.tokenizer.decode(ids) for ids in lab.answers(model, task, task.test)]
    scores = score(task, texts)
    lines = [{"task": task.name, "id": e.id, "prediction": t, "answer": e.answer} for e, t in zip(task.test, texts)]

    def fill(temporary):
        lab.save(model, temporary / "model")
        rundir.write_jsonl(temporary / "predictions.jsonl", lines)
        line = {"stage": 0, "epoch": epochs, "task": task.name, "metric": task.metric, **scores}
        rundir.write_jsonl(temporary / "scores.jsonl", [line])
        rundir.write_json(temporary / "config.json", key)

    rundir.write_folder(folder, fill)
    print(f"teacher  of {task.name}: {scores['score']:.1f}, kept in {folder}")
    return model, folder


def teacher_answers(lab, teacher, task, folder):
    """Section 2.2, Seq-KD: the task's rows with the teacher's greedy answers in place of the data's.

    Context and question stay the real ones; an answer that never stopped gets no EOS."""
    tok, rows, lines = lab.tokenizer, [], []
    for example, ids in zip(task.train, lab.answers(teacher, task, task.train)):
        stopped = ids[-1:] == [tok.eos_id]
        answer = ids[:-1] if stopped else ids
        c, q = tok.encode(example.context), tok.encode(example.question)
        rows.append(encode_parts(c, q, answer, tok.task_id(task.name), tok, lab.max_len, stopped))
        lines.append({"id": example.id, "answer": tok.decode(answer), "ids": ids, "stopped": stopped})
    rundir.write_jsonl(folder / "distil.jsonl", lines)
    same = sum(line["answer"] == e.answer.strip() for line, e in zip(lines, task.train))
    print(f"teacher  of {task.name} answers {same} of {len(lines)} training examples as the data does")
    return [row for row in rows if row is not None]


def replay_samples(lab, student, previous, n_new, stage, folder):
    """Alg. 1, line 2: pseudo-data of the earlier tasks, from the student as the last stage left it."""
    o = lab.o
    count = lamol.pseudo_per_task(n_new, o.gamma, len(previous))
    if not count:
        return []

    def seeds(name):
        return stream(o.seed, stage, name, "replay")

    if o.real_replay:
        dreams = lamol.real_samples(previous, lab.tokenizer, count, lab.max_len, seeds)
    else:
        with lab.autocast():
            names = [task.name for task in previous]
            dreams = lamol.dream(student, lab.tokenizer, names, count, lab.max_len, o.top_k, seeds)
    lines = []
    for d in dreams:
        parts = lamol.parse_pseudo(d.ids, lab.tokenizer) or (d.ids, [])
        text = {"context_and_question": lab.tokenizer.decode(parts[0]), "answer": lab.tokenizer.decode(parts[1])}
        lines.append({"task": d.task, "rejected": d.rejected, **text, "ids": d.ids})
    rundir.write_jsonl(folder / "pseudo.jsonl", lines)
    print(lamol.report(dreams))
    return [d.encoded for d in dreams if not d.rejected]


# ---------------------------------------------------------------------- the methods


def lifelong(lab):
    """Algorithm 1. finetune keeps line 5 alone, on QA rows (as released); lamol --kd none leaves out line 1."""
    o, student = lab.o, lab.fresh()
    lab.score(student, lab.tasks, 0, 0)
    for m, task in enumerate(lab.tasks, 1):
        folder = lab.dir / f"{m}-{task.name}"
        current, replay, teacher = lab.rows[task.name], [], None
        if o.kd != "none":
            teacher, _ = get_teacher(lab, task)  # Alg. 1, line 1
            teacher.eval().requires_grad_(False).to(lab.dtype)
        if o.method == "lamol":
            replay = replay_samples(lab, student, lab.tasks[: m - 1], len(current), m, folder)  # Alg. 1, line 2
        if o.kd in ("seq", "seqsoft"):
            current = teacher_answers(lab, teacher, task, folder)
        learn(  # Alg. 1, lines 3-11
            lab,
            student,
            current,
            replay,
            m,
            task.name,
            "student",
            o.epochs,
            teacher=teacher if o.kd in ("word", "seqsoft") else None,
            lm=o.method != "finetune",
            after_epoch=lambda e, m=m: lab.score(student, lab.tasks, m, e) if o.eval_every_epoch else None,
        )
        lab.end_stage(student, m, task.name, lab.tasks)


def single(lab):
    """Table 3, rows (1) and (2): a model for each task, on its own. These are the teachers."""
    for m, task in enumerate(lab.tasks, 1):
        lab.score(lab.fresh(), [task], 0, 0)
        model, _ = get_teacher(lab, task)
        lab.end_stage(model, m, task.name, [task])


def multitask(lab):
    """Table 3, rows (3) to (7): all tasks at once, each example with its own task's token."""
    o, model = lab.o, lab.fresh()
    name = "+".join(task.name for task in lab.tasks)
    lab.score(model, lab.tasks, 0, 0)
    rows = []
    for task in lab.tasks:
        if o.kd == "seq":
            teacher, _ = get_teacher(lab, task)
            teacher.eval().requires_grad_(False).to(lab.dtype)
            rows += teacher_answers(lab, teacher, task, lab.dir / f"1-{name}" / task.name)
        else:
            rows += lab.rows[task.name]
    learn(
        lab,
        model,
        rows,
        [],
        1,
        name,
        "student",
        o.epochs,
        lm=not o.qa_only,
        after_epoch=lambda e: lab.score(model, lab.tasks, 1, e) if o.eval_every_epoch else None,
    )
    lab.end_stage(model, 1, name, lab.tasks)


def run(o: Options) -> dict:
    """One run from options to summary. Raises DataError, ModelFileError, RunError."""
    lab, start = Lab(o), time.time()
    {"finetune": lifelong, "lamol": lifelong, "single": single, "multitask": multitask}[o.method](lab)
    rows = [json.loads(line) for line in (lab.dir / "scores.jsonl").read_text(encoding="utf-8").splitlines()]
    summary = summarise(o.method, [task.name for task in lab.tasks], rows)
    summary["wall_time_s"] = round(time.time() - start, 1)
    draw_curves(summary["order"], o.epochs, rows, lab.dir / "curves.png")
    rundir.write_json(lab.dir / "summary.json", summary)
    print(f"\n{table(summary)}\n\n{summary['wall_time_s']:.0f} s; everything is in {lab.dir}")
    return summary


# ---------------------------------------------------------------------- the command line


def parse(argv=None) -> Options:
    """The command line -> resolved options; exits with 2 and one line where it can't be understood."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    for f in fields(Options):
        flag, help = f"--{f.name.replace('_', '-')}", f.metadata["help"]
        assert f.default is not MISSING
        if f.type is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=f.default, help=help)
        else:
            parser.add_argument(flag, type=f.type, default=f.default, choices=f.metadata["choices"], help=help)
    try:
        return resolve(Options(**vars(parser.parse_args(argv))))
    except ValueError as e:
        parser.error(str(e))


def main(argv=None) -> int:
    try:
        run(parse(argv))
        return 0
    except (DataError, ModelFileError, RunError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: what is in the run directory stays there", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
