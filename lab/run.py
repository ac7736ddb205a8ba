"""What the methods of train.py share: the options made into tasks, model, tokenizer and device; scores, files, the log.

A `Run` holds no training state, so every phase of a run is a function of it and of the models it is given.
"""

import copy
import hashlib
import math
import os
import platform
import shutil
import textwrap
import time
from dataclasses import asdict
from pathlib import Path

import torch

from data import Tokenizer, answer_budget, encode_task, load_task
from eval import draw_curves, predict, score, summarise, table
from lab import rundir
from lab.options import Options, choose_device, default_model, name_of, without_effect
from lab.rundir import RunError
from model import GPT, ModelFileError

NANO = Path(__file__).parent / "assets" / "nano"  # made by lab/nano.py


class Run:
    """What every method needs: options, tasks, tokenizer, the pretrained model, device, and where results go."""

    def __init__(self, o: Options):
        self.o, self.began = o, time.time()
        self.teacher_times, self.teacher_time_here = [], 0.0  # seconds that each took, and those made here together
        self.device, self.dtype, why = choose_device(o.device, o.dtype)
        if o.compile and not shutil.which((os.environ.get("CXX") or "g++").split()[0]):
            raise RunError("--compile: needs a C++ compiler; install g++, or name one in the variable CXX")
        self.pretrained, self.tokenizer = pretrained(o)
        self.tasks = [load_task(entry, o.data_dir, o.cache_dir, o.limit) for entry in o.order.split(",")]
        self.slots = {task.name: self.tokenizer.add_task(task.name) for task in self.tasks}
        digest = hashlib.sha256(repr(self.pretrained.config).encode())  # tells teachers of other weights apart
        for p in self.pretrained.parameters():
            digest.update(p.detach().numpy().tobytes())
        self.fingerprint = digest.hexdigest()
        if o.kd_beam > (most := self.tokenizer.n_vocab // 2):
            raise RunError(f"--kd-beam {o.kd_beam}: at most {most}, half the vocabulary")
        self.max_len = min(o.max_len or 1024, self.pretrained.config.n_positions)
        self.encoded = {task.name: encode_task(task, self.tokenizer, self.max_len) for task in self.tasks}
        self.budgets = {task.name: answer_budget(task, self.tokenizer, self.max_len) for task in self.tasks}
        self.rule = o.replay_loss
        if self.rule == "released":  # replay is added to a soft-target loss, and joined with a hard-target one
            self.rule = "added" if o.kd in ("word", "seqsoft") else "joint"
        self.dir = rundir.new_run(o.runs_dir, name_of(o, list(self.slots)))
        self.lock = rundir.lock(self.dir)  # held as long as this process lives
        if o.kd != "none" or o.method == "single":
            rundir.writable("--teachers", o.teachers)
        config = asdict(o) | {"tasks": list(self.slots), "slots": self.slots, "answer_budgets": self.budgets}
        config |= {"resolved_device": str(self.device), "resolved_dtype": str(self.dtype).removeprefix("torch.")}
        config |= {"resolved_max_len": self.max_len, "resolved_replay_loss": self.rule}
        config |= {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
        rundir.write_json(self.dir / "config.json", config)
        self.announce(why)

    def announce(self, why: str) -> None:
        """Say what will be done, and why it is done so where that was not asked for."""
        o, dtype = self.o, str(self.dtype).removeprefix("torch.")
        sizes = ", ".join(f"{task.name} ({len(task.train)} / {len(task.test)})" for task in self.tasks)
        size = sum(p.numel() for p in self.pretrained.parameters()) / 1e6
        default = "all" if o.model == "nano" else "not all"
        why_model = (
            f"default: {default} tasks are toy tasks" if o.model == default_model(list(self.slots)) else "as asked"
        )
        print(f"run      {self.dir}")
        print(f"tasks    {sizes}, train / test examples")
        print(f"model    {o.model} ({why_model}): {size:.1f}M parameters, rows of at most {self.max_len} tokens")
        print(f"device   {self.device}, {dtype} ({why})")
        how = f"γ {o.gamma:g}, {o.epochs} epochs, seed {o.seed}, replay loss {self.rule}"
        print(f"method   {o.method}, kd {o.kd}, {how}")
        if o.multi_reference and not any("references" in e.meta for task in self.tasks for e in task.test):
            print("note     --multi-reference has no effect: no test example has several references")
        for name in without_effect(o):
            print(f"note     --{name.replace('_', '-')} has no effect with --method {o.method} --kd {o.kd}")

    def fresh(self) -> GPT:
        """The pretrained model, which every teacher and every student starts from (Section 3.1)."""
        return copy.deepcopy(self.pretrained).to(self.device)

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def answers(self, model, task, examples, beams=1) -> list[list[int]]:
        """Greedy answers, or those of a beam search, as ids, EOS included where it was reached."""
        with self.autocast():
            return predict(model, self.tokenizer, examples, self.max_len, self.budgets[task.name], beams)

    def examine(self, model, task, stage, epoch) -> tuple[dict, list[dict]]:
        """A model on a task's test examples -> (its line of scores, a line of predictions an example)."""
        texts = [self.tokenizer.decode(ids) for ids in self.answers(model, task, task.test)]
        scores = {"stage": stage, "epoch": epoch, "task": task.name, "metric": task.metric}
        scores |= score(task, texts, self.o.multi_reference)
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

    def finish(self) -> dict:
        """Summary, curves, and what a reader wants to see of a run: its table, some answers, some pseudo-samples."""
        rows = rundir.read_jsonl(self.dir / "scores.jsonl")
        summary = summarise(self.o.method, list(self.slots), rows)
        summary["parameters"] = sum(p.numel() for p in self.pretrained.parameters())
        summary["wall_time_s"] = round(time.time() - self.began, 1)
        if None not in self.teacher_times:  # teachers of earlier versions don't say
            summary["teacher_time_s"] = round(sum(self.teacher_times), 1)
            summary["teacher_time_here_s"] = round(self.teacher_time_here, 1)
        draw_curves(summary["order"], self.o.epochs, rows, self.dir / "curves.png")
        rundir.write_json(self.dir / "summary.json", summary)
        (self.dir / "lock").unlink()
        print(self.worked_examples())
        print(f"\n{table(summary)}\n\n{summary['wall_time_s']:.0f} s; everything is in {self.dir}")
        return summary

    def worked_examples(self) -> str:
        """Three answers of the last student a task, and two of the pseudo-samples that were dreamt up of it a stage."""
        said, answers, dreams = [], {}, {}
        for folder in sorted(self.dir.glob("[0-9]*-*"), key=lambda folder: int(folder.name.split("-")[0])):
            lines = rundir.read_jsonl(folder / "predictions.jsonl")
            for task in self.tasks:  # the last stage's stand
                answers[task.name] = [x["prediction"] for x in lines if x["task"] == task.name] or answers.get(
                    task.name
                )
            for line in rundir.read_jsonl(folder / "pseudo.jsonl") if (folder / "pseudo.jsonl").exists() else ():
                dreams.setdefault((line["task"], folder.name), []).append(line)
        for task in self.tasks:
            said.append(f"\n{task.name}, answers to the first test examples after the last stage")
            for e, answer in list(zip(task.test, answers[task.name]))[:3]:
                right = "" if answer == e.answer.strip() else f"    (gold: {shorten(e.answer)})"
                said.append(f"    {shorten(f'{e.context} | {e.question}')}\n        -> {shorten(answer)}{right}")
        for (task, folder), lines in dreams.items():
            said.append(f"\n{task}, pseudo-samples dreamt up before {folder}")
            for line in sorted(lines, key=lambda line: bool(line["rejected"]))[:2]:
                said.append(f"    {shorten(line['context_and_question'])}\n        -> {shorten(line['answer'])}")
                said[-1] += f"    (rejected: {line['rejected']})" if line["rejected"] else ""
        return "\n".join(said)


def shorten(text: str) -> str:
    return textwrap.shorten(text, 160, placeholder=" ...") or "(nothing)"


def pretrained(o: Options) -> tuple[GPT, Tokenizer]:
    """The model that everything starts from, its vocabulary grown by ANS, PAD and the task slots, and its tokenizer."""
    source = NANO if o.model == "nano" else o.model
    model = GPT.from_pretrained(source, o.cache_dir)
    tokenizer = Tokenizer.of(source)
    known = model.config.vocab_size
    if known not in (tokenizer.n_base, tokenizer.n_vocab):
        raise ModelFileError(f"--model {o.model}: {known} tokens, but the tokenizer has {tokenizer.n_base}")
    return model.grow_vocab(tokenizer.n_vocab - known) if known == tokenizer.n_base else model, tokenizer


class TrainingLog:
    """Losses and speed since the last line of log.jsonl; nothing is read from the device in between."""

    def __init__(self, run, name, phase, epoch, bar):
        self.path, self.bar = run.dir / "log.jsonl", bar
        self.where = {"task": name, "phase": phase, "epoch": epoch}
        self.start(0)

    def start(self, step):
        self.step, self.losses, self.since = step, [0.0, 0.0], time.perf_counter()
        self.tokens = self.padded = 0

    def add(self, parts, rows):
        self.losses = [total + part for total, part in zip(self.losses, parts)]
        self.tokens += rows.ids.numel()
        self.padded += sum(R * T for _, R, T in rows.packing.blocks)  # what attention sees; all else has no padding

    def write(self, step, lr):
        """Raises RunError when the loss is no number."""
        qa, lm = (float(total) / (step - self.step) for total in self.losses)
        rate = round(self.tokens / (time.perf_counter() - self.since))
        if not math.isfinite(qa + lm):
            place = "{phase} {task}, epoch {epoch}".format(**self.where)
            raise RunError(f"the loss is {qa + lm} in {place}, step {step}: a lower --lr may help")
        line = {"step": step, "loss": qa + lm, "loss_qa": qa, "loss_lm": lm, "lr": lr, "tokens_per_s": rate}
        line["attention_padding"] = round(1 - self.tokens / self.padded, 3)
        rundir.append_jsonl(self.path, self.where | line)
        self.said = f"loss {qa + lm:.3f} (last {step - self.step} updates), {rate} tokens/s"
        self.bar.set_postfix_str(self.said)
        self.start(step)
