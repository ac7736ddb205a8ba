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

import copy
import hashlib
import json
import math
import platform
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

import kd
import lamol
from data import DataError, Tokenizer, answer_budget, encode_parts, encode_task, load_task, make_batch, plan_epoch
from eval import draw_curves, predict, score, summarise, table
from lab import rundir
from lab.options import TEACHER_KEY, Options, choose_device, name_of, parse, without_effect
from lab.rundir import RunError, seed_of, stream
from model import GPT, GPTConfig, ModelFileError

NANO = GPTConfig(n_embd=128, n_layer=4, n_head=4)  # for a quick try: random weights, GPT-2's vocabulary


class Run:
    """What every method needs: options, tasks, tokenizer, the pretrained model, device, and where results go."""

    def __init__(self, o: Options):
        self.o = o
        self.device, self.dtype, why = choose_device(o.device, o.dtype)
        self.tokenizer = Tokenizer.gpt2()
        self.tasks = [load_task(entry, o.data_dir, o.cache_dir, o.limit) for entry in o.order.split(",")]
        self.slots = {task.name: self.tokenizer.add_task(task.name) for task in self.tasks}
        self.pretrained = pretrained(o, self.tokenizer)
        digest = hashlib.sha256(
            repr(self.pretrained.config).encode()
        )  # tells teachers of other pretrained weights apart
        for p in self.pretrained.parameters():
            digest.update(p.detach().numpy().tobytes())
        self.fingerprint = digest.hexdigest()
        self.max_len = min(o.max_len or 1024, self.pretrained.config.n_positions)
        self.rows = {task.name: encode_task(task, self.tokenizer, self.max_len) for task in self.tasks}
        self.budgets = {task.name: answer_budget(task, self.tokenizer, self.max_len) for task in self.tasks}
        self.rule = o.replay_loss
        if self.rule == "released":  # replay is added to a soft-target loss, and joined with a hard-target one
            self.rule = "added" if o.kd in ("word", "seqsoft") else "joint"
        self.dir = rundir.new_run(o.runs_dir, name_of(o, list(self.slots)))
        if o.kd != "none" or o.method == "single":
            rundir.writable("--teachers", o.teachers)
        config = asdict(o) | {"tasks": list(self.slots), "slots": self.slots, "answer_budgets": self.budgets}
        config |= {"resolved_device": str(self.device), "resolved_dtype": str(self.dtype).removeprefix("torch.")}
        config |= {"resolved_max_len": self.max_len, "resolved_replay_loss": self.rule}
        config |= {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
        rundir.write_json(self.dir / "config.json", config)
        sizes = ", ".join(f"{task.name} ({len(task.train)} / {len(task.test)})" for task in self.tasks)
        print(f"run      {self.dir}\ntasks    {sizes}, train / test examples")
        size = sum(p.numel() for p in self.pretrained.parameters()) / 1e6
        print(f"model    {o.model}: {size:.1f}M parameters, rows of at most {self.max_len} tokens")
        print(f"device   {self.device}, {config['resolved_dtype']} ({why})")
        how = f"γ {o.gamma:g}, {o.epochs} epochs, seed {o.seed}, replay loss {self.rule}"
        print(f"method   {o.method}, kd {o.kd}, {how}")
        for name in without_effect(o):
            print(f"note     --{name.replace('_', '-')} has no effect with --method {o.method} --kd {o.kd}")

    def fresh(self) -> GPT:
        """The pretrained model, which every teacher and every student starts from (Section 3.1)."""
        return copy.deepcopy(self.pretrained).to(self.device)

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def answers(self, model, task, examples) -> list[list[int]]:
        """Greedy answers as ids, EOS included where it was reached."""
        with self.autocast():
            return predict(model, self.tokenizer, examples, self.max_len, self.budgets[task.name])

    def examine(self, model, task, stage, epoch) -> tuple[dict, list[dict]]:
        """A model on a task's test examples -> (its line of scores, a line of predictions an example)."""
        texts = [self.tokenizer.decode(ids) for ids in self.answers(model, task, task.test)]
        scores = {"stage": stage, "epoch": epoch, "task": task.name, "metric": task.metric, **score(task, texts)}
        keys = ("task", "id", "prediction", "answer")
        return scores, [dict(zip(keys, (task.name, e.id, text, e.answer))) for e, text in zip(task.test, texts)]

    def score(self, model, tasks, stage, epoch) -> list[dict]:
        """Score a model on tasks; the scores go to scores.jsonl, the predictions are returned."""
        predictions = []
        for task in tasks:
            scores, lines = self.examine(model, task, stage, epoch)
            rundir.append_jsonl(self.dir / "scores.jsonl", scores)
            print(f"stage {stage}, epoch {epoch}: {task.name} {scores['score']:.1f}")
            predictions += lines
        return predictions

    def save(self, model, path) -> None:
        extra = {"tokenizer": self.tokenizer.name, "eos_token_id": self.tokenizer.eos_id, "task_slots": self.slots}
        extra |= {"max_len": self.max_len, "answer_budgets": self.budgets}
        rundir.write_folder(path, lambda folder: model.save_pretrained(folder, **extra))

    def end_stage(self, model, stage, name, tasks) -> None:
        """After a stage: score the tasks, keep the predictions and the student."""
        folder = self.dir / f"{stage}-{name}"
        rundir.write_jsonl(folder / "predictions.jsonl", self.score(model, tasks, stage, self.o.epochs))
        self.save(model, self.dir / "model")
        if self.o.keep_models:
            self.save(model, folder / "model")


def pretrained(o: Options, tokenizer: Tokenizer) -> GPT:
    """The model that everything starts from, its vocabulary grown by ANS, PAD and the task slots."""
    if o.model == "nano":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same for every run: it stands for pretrained weights
            model = GPT(copy.copy(NANO))
    else:
        model = GPT.from_pretrained(o.model, o.cache_dir)
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


def batch_size(n: int) -> int:
    """Examples an update; n counts current and replay samples (as released; there GPU memory bounds it further)."""
    return max(n // 1500, 4)


def optimizer_of(model, o: Options):
    """AdamW, new for each task; no weight decay on biases and layer norms."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": o.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=o.lr, eps=o.adam_epsilon)


def learn(run, model, current, replay, stage, name, phase="student", epochs=0, teacher=None, lm=True, after_epoch=None):
    """Lines 3-11 of Algorithm 1: train on current and replay samples; with a teacher, current ones by its distribution.

    current, replay: lists of Encoded. lm: learn LM rows too. after_epoch(epoch) is called after all but the last."""
    o, samples, n = run.o, current + replay, len(current) + len(replay)
    epochs, optimizer = epochs or o.epochs, optimizer_of(model, o)
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)
    seen = 0  # samples of this task, which the schedule counts in
    for epoch in range(1, epochs + 1):
        model.train()
        torch.manual_seed(seed_of(o.seed, stage, name, f"{phase} dropout", epoch))
        order = stream(o.seed, stage, name, f"{phase} batches", epoch)
        plan = plan_epoch(len(current), len(replay), o.batch_size or batch_size(n), o.updates, order)
        bar = tqdm(plan, f"{phase} {name}, epoch {epoch}/{epochs}", disable=None, leave=False, unit="batch")
        log = TrainingLog(run, name, phase, epoch, bar)
        for step, indices in enumerate(bar, 1):
            # ------------------------------------------------------------ one update (Alg. 1, lines 5 and 9)
            chosen, is_replay = [samples[i] for i in indices], [i >= len(current) for i in indices]
            batch = make_batch(chosen, is_replay, run.tokenizer.pad_id, teacher is not None, lm, o.micro_batch)
            weights = kd.token_weights(batch, run.rule, run.tokenizer.ans_id, o.ans_weight, o.lm_lambda)
            lr = learning_rate(seen, n, epochs, o.lr, o.warmup_ratio)
            scale = scaler.get_scale()  # the fused loss takes its gradients in the forward: they are scaled there
            for rows, w in zip(batch, weights):
                rows = rows.to(run.device)
                with run.autocast():
                    loss, *parts = kd.rows_loss(model, teacher, rows, w.to(run.device), o.temperature, scale)
                scaler.scale(loss).backward()
                log.add(parts, rows)
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), o.max_grad_norm)
            for group in optimizer.param_groups:
                group["lr"] = lr
            scaler.step(optimizer)  # skipped by the scaler where a half-precision gradient overflowed ...
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            if scaler.get_scale() >= scale:  # ... and then the schedule stands still too
                seen += len(indices)
            # ------------------------------------------------------------
            if step % o.log_every == 0 or step == len(plan):
                log.write(step, lr)
        print(f"{phase} {name}, epoch {epoch}/{epochs}: {log.said}")
        if after_epoch and epoch < epochs:
            after_epoch(epoch)
    model.eval()


class TrainingLog:
    """Losses and speed since the last line of log.jsonl; nothing is read from the device in between."""

    def __init__(self, run, name, phase, epoch, bar):
        self.path, self.bar = run.dir / "log.jsonl", bar
        self.where = {"task": name, "phase": phase, "epoch": epoch}
        self.step, self.losses, self.tokens, self.since = 0, [0.0, 0.0], 0, time.perf_counter()

    def add(self, parts, rows):
        self.losses = [total + part for total, part in zip(self.losses, parts)]
        self.tokens += rows.ids.numel()

    def write(self, step, lr):
        """Raises RunError when the loss is no number."""
        qa, lm = (float(total) / (step - self.step) for total in self.losses)
        rate = round(self.tokens / (time.perf_counter() - self.since))
        if not math.isfinite(qa + lm):
            place = "{phase} {task}, epoch {epoch}".format(**self.where)
            raise RunError(f"the loss is {qa + lm} in {place}, step {step}: a lower --lr may help")
        line = {"step": step, "loss": qa + lm, "loss_qa": qa, "loss_lm": lm, "lr": lr, "tokens_per_s": rate}
        rundir.append_jsonl(self.path, self.where | line)
        self.said = f"loss {qa + lm:.3f} (last {step - self.step} updates), {rate} tokens/s"
        self.bar.set_postfix_str(self.said)
        self.step, self.losses, self.tokens, self.since = step, [0.0, 0.0], 0, time.perf_counter()


def get_teacher(run, task):
    """Alg. 1, line 1: the teacher of a task, found again where it was made before.

    It starts from the pretrained weights and learns its task alone by NLL: it IS the `single` model of Table 3."""
    o = run.o
    epochs = min(o.epochs, 9) if o.method == "multitask" else o.epochs  # row (7): single-task teachers, trained as such
    key = {"task": task.name, "slot": run.slots[task.name], "epochs": epochs, "max_len": run.max_len}
    key |= {"examples": rundir.key_of([asdict(e) for e in task.train + task.test])}
    key |= {"dtype": str(run.dtype), "pretrained": run.fingerprint} | {name: getattr(o, name) for name in TEACHER_KEY}
    folder = Path(o.teachers).expanduser() / f"{task.name}-{rundir.key_of(key)}"
    if folder.is_dir():
        print(f"teacher  of {task.name}: found in {folder}")
        return GPT.from_pretrained(folder / "model").to(run.device)
    model = run.fresh()
    learn(run, model, run.rows[task.name], [], 0, task.name, "teacher", epochs, lm=not o.qa_only)
    scores, predictions = run.examine(model, task, 0, epochs)

    def fill(temporary):
        run.save(model, temporary / "model")
        rundir.write_jsonl(temporary / "predictions.jsonl", predictions)
        rundir.write_jsonl(temporary / "scores.jsonl", [scores])
        rundir.write_json(temporary / "config.json", key)

    rundir.write_folder(folder, fill)
    print(f"teacher  of {task.name}: {scores['score']:.1f}, kept in {folder}")
    return model


def frozen(run, teacher):
    """A teacher as distillation uses it: fixed, in the compute dtype."""
    return teacher.eval().requires_grad_(False).to(run.dtype)


def teacher_answers(run, teacher, task, folder):
    """Section 2.2, Seq-KD: the task's rows with the teacher's greedy answers in place of the data's.

    Context and question stay the real ones; an answer that never stopped gets no EOS."""
    tok, rows, lines = run.tokenizer, [], []
    for example, ids in zip(task.train, run.answers(teacher, task, task.train)):
        stopped = ids[-1:] == [tok.eos_id]
        answer = ids[:-1] if stopped else ids
        c, q = tok.encode(example.context), tok.encode(example.question)
        rows.append(encode_parts(c, q, answer, tok.task_id(task.name), tok, run.max_len, stopped))
        lines.append({"id": example.id, "answer": tok.decode(answer), "ids": ids, "stopped": stopped})
    rundir.write_jsonl(folder / "distil.jsonl", lines)
    same = sum(line["answer"] == e.answer.strip() for line, e in zip(lines, task.train))
    print(f"teacher  of {task.name} answers {same} of {len(lines)} training examples as the data does")
    return [row for row in rows if row is not None]


def replay_samples(run, student, previous, n_new, stage, folder):
    """Alg. 1, line 2: pseudo-data of the earlier tasks, from the student as the last stage left it."""
    o = run.o
    count = lamol.pseudo_per_task(n_new, o.gamma, len(previous))
    if not count:
        return []

    def seeds(name):
        return stream(o.seed, stage, name, "replay")

    names = [task.name for task in previous]
    if o.real_replay:
        pseudo = lamol.real_samples({name: run.rows[name] for name in names}, run.tokenizer, count, seeds)
    else:
        with run.autocast():
            pseudo = lamol.sample_pseudo_data(student, run.tokenizer, names, count, run.max_len, o.top_k, seeds)
    lines = []
    for d in pseudo:
        parts = lamol.parse_pseudo(d.ids, run.tokenizer) or (d.ids, [])
        text = {"context_and_question": run.tokenizer.decode(parts[0]), "answer": run.tokenizer.decode(parts[1])}
        lines.append({"task": d.task, "rejected": d.rejected, **text, "ids": d.ids})
    rundir.write_jsonl(folder / "pseudo.jsonl", lines)
    print(lamol.report(pseudo))
    return [d.encoded for d in pseudo if not d.rejected]


# ---------------------------------------------------------------------- the methods


def lifelong(run):
    """Algorithm 1. finetune keeps line 5 alone, on QA rows (as released); lamol --kd none leaves out line 1."""
    o, student = run.o, run.fresh()
    run.score(student, run.tasks, 0, 0)
    for m, task in enumerate(run.tasks, 1):
        folder = run.dir / f"{m}-{task.name}"
        current, replay, teacher = run.rows[task.name], [], None
        if o.kd != "none":
            teacher = frozen(run, get_teacher(run, task))  # Alg. 1, line 1
        if o.method == "lamol":
            replay = replay_samples(run, student, run.tasks[: m - 1], len(current), m, folder)  # Alg. 1, line 2
        if o.kd in ("seq", "seqsoft"):
            current = teacher_answers(run, teacher, task, folder)
        soft = teacher if o.kd in ("word", "seqsoft") else None
        curve = partial(run.score, student, run.tasks, m) if o.eval_every_epoch else None
        learn(  # Alg. 1, lines 3-11
            run, student, current, replay, m, task.name, teacher=soft, lm=o.method != "finetune", after_epoch=curve
        )
        run.end_stage(student, m, task.name, run.tasks)


def single(run):
    """Table 3, rows (1) and (2): a model for each task, on its own. These are the teachers."""
    for m, task in enumerate(run.tasks, 1):
        run.score(run.fresh(), [task], 0, 0)
        run.end_stage(get_teacher(run, task), m, task.name, [task])


def multitask(run):
    """Table 3, rows (3) to (7): all tasks at once, each example with its own task's token."""
    o, model, rows, name = run.o, run.fresh(), [], "+".join(run.slots)
    run.score(model, run.tasks, 0, 0)
    for task in run.tasks:
        if o.kd == "seq":
            teacher = frozen(run, get_teacher(run, task))
            rows += teacher_answers(run, teacher, task, run.dir / f"1-{name}" / task.name)
        else:
            rows += run.rows[task.name]
    curve = partial(run.score, model, run.tasks, 1) if o.eval_every_epoch else None
    learn(run, model, rows, [], 1, name, lm=not o.qa_only, after_epoch=curve)
    run.end_stage(model, 1, name, run.tasks)


METHODS = {"finetune": lifelong, "lamol": lifelong, "single": single, "multitask": multitask}


def start(o: Options) -> dict:
    """One run from options to summary. Raises DataError, ModelFileError, RunError."""
    run, began = Run(o), time.time()
    METHODS[o.method](run)
    rows = [json.loads(line) for line in (run.dir / "scores.jsonl").read_text(encoding="utf-8").splitlines()]
    summary = summarise(o.method, list(run.slots), rows) | {"wall_time_s": round(time.time() - began, 1)}
    draw_curves(summary["order"], o.epochs, rows, run.dir / "curves.png")
    rundir.write_json(run.dir / "summary.json", summary)
    print(f"\n{table(summary)}\n\n{summary['wall_time_s']:.0f} s; everything is in {run.dir}")
    return summary


def main(argv=None) -> int:
    try:
        start(parse(argv))
        return 0
    except (DataError, ModelFileError, RunError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: what is in the run directory stays there", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
