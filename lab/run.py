"""What the methods of train.py share: the options made into tasks, model, tokenizer and device; scores, files, the log.

A `Run` holds no training state, so every phase of a run is a function of it and of the models it is given.
"""

import copy
import hashlib
import os
import platform
import re
import shutil
import textwrap
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from data import METRICS, Tokenizer, answer_budget, encode_task, load_task
from eval import draw_curves, predict, read_run, score, summarise, table
from lab import ranks, rundir
from lab.options import (
    NOT_COMPARED,
    ROUNDING,
    TEACHER_KEY,
    Options,
    choose_device,
    default_model,
    name_of,
    parent_of,
    without_effect,
)
from lab.rundir import RunError, interruption
from model import GPT, ModelFileError

NANO = Path(__file__).parent / "assets" / "nano"  # made by lab/nano.py


class Run:
    """What every method needs: options, tasks, tokenizer, the pretrained model, device, and where results go."""

    def __init__(self, o: Options):
        with ranks.rank_0_first():
            self.prepare(o)
        if ranks.told(self.said_last) != self.said_last:
            raise RunError(
                f"rank {ranks.rank()} finds another checkpoint than rank 0 in {self.dir}: not the same disk?"
            )

    def prepare(self, o: Options) -> None:
        """Load all that is needed, open the directory, find out where an earlier try was cut off."""
        self.o, self.log = o, None  # log: of the epoch that is under way
        self.began = self.phase_began = time.time()  # less what earlier tries took
        self.teacher_times, self.made_here = {}, {}  # task -> seconds that its teacher took; those made in this run
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
        if o.continue_:
            self.parent = parent_of(o.continue_)[0]
            for task in self.tasks[: len(self.parent["tasks"])]:
                if self.parent["data"][task.name] != key_of_examples(task):
                    raise RunError(f"--continue {o.continue_}: task {task.name} has other data now than that run had")
        self.dir, self.lock = rundir.open_run(o.runs_dir, name_of(o, list(self.slots)), o.resume)
        if o.kd != "none" or o.method == "single":
            rundir.writable("--teachers", o.teachers)
        self.finished = (self.dir / "summary.json").exists()
        config = (
            asdict(o)
            | {"order": absolute(o.order)}
            | {"tasks": list(self.slots), "slots": self.slots, "answer_budgets": self.budgets}
        )
        config |= {"data": {task.name: key_of_examples(task) for task in self.tasks}, "pretrained": self.fingerprint}
        config |= {"resolved_device": str(self.device), "resolved_dtype": str(self.dtype).removeprefix("torch.")}
        config |= {"resolved_max_len": self.max_len, "resolved_replay_loss": self.rule}
        config |= {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
        config |= {"ranks": ranks.size()}
        self.stages_done, self.said_last, self.earlier = 0, "from the beginning", {}  # earlier: a try's config.json
        self.found = self.base = None  # checkpoints: of a phase that was cut off, and of the stage's end before it
        if o.resume:
            self.resume(config)
        if not self.found and not self.finished:
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

    # ------------------------------------------------------------------ a run that goes on

    def resume(self, config: dict) -> None:
        """Find out where an earlier try was cut off. Raises RunError where it had other options or data."""
        if not any(self.dir.glob("[!l]*")):
            return print(f"resume   {self.dir}: nothing was written yet; from the beginning")
        path = self.dir / "config.json"
        if other := rundir.differences(path, config, NOT_COMPARED | ROUNDING):
            raise RunError(f"{self.dir} was made with other options or data: {', '.join(other)} (see its config.json)")
        if self.finished:
            return
        self.earlier = rundir.read_json(path, dict)
        if other := rundir.differences(path, config, config.keys() - ROUNDING):
            what = (
                "rounding and dropout's masks"
                if {"micro_batch", "compile", "resolved_device", "ranks"} & set(other)
                else "rounding"
            )
            print(f"WARNING: {', '.join(other)} differ from the earlier try: equal up to {what} only")
            before = self.earlier.get("resumed_with", [])
            now = [*(before if isinstance(before, list) else []), {key: config[key] for key in other}]
            rundir.write_json(path, self.earlier | {"resumed_with": now})
        most = 4 * sum(p.nbytes for p in self.pretrained.parameters()) + 2**29  # weights, two moments, logs
        self.found, self.base = rundir.last_checkpoint(self.dir, self.o.method in ("finetune", "lamol"), most)
        if not self.found:
            return print(f"resume   {self.dir}: there is no checkpoint to go on from; from the beginning")
        state = self.found[0]
        if state["stages"] > len(self.tasks):
            raise RunError(
                f"{self.dir}/checkpoint is of {state['stages']} stages, this run has {len(self.tasks)} tasks"
            )
        self.stages_done, self.said_last, self.began = state["stages"], state["said"], self.began - state["seconds"]
        self.teacher_times, self.made_here = state["teacher_times"], state["made_here"]
        print(f"resume   {self.dir}: {self.said_last}")

    def checkpoint(self, where: dict, model, optimizer=None, scaler=None) -> None:
        """Keep what --resume needs. where: the `phase`, its `stage` and `name`, the `epoch` that is over, the samples
        `seen`; a phase of "" is a stage's end."""
        said = "after epoch {epoch} of {phase} {name}" if where["phase"] else "after stage {stage}, {name}"
        state = {"epoch": 0, "seen": 0} | where | {"stages": self.stages_done, "said": said.format(**where)}
        state |= {"seconds": time.time() - self.began, "phase_seconds": time.time() - self.phase_began}
        state |= {"teacher_times": self.teacher_times, "made_here": self.made_here}
        state |= {"scaler": scaler.state_dict() if scaler else {}}
        rundir.save_checkpoint(self.dir, state, model, optimizer)
        self.said_last = state["said"]

    def restore(self, where: dict, model, optimizer, scaler) -> tuple[int, int]:
        """Put a phase where its checkpoint stands -> the epochs that are over, the samples seen; (0, 0) without one."""
        self.phase_began = time.time()
        state, tensors = self.found or ({}, {})
        if any(state.get(key) != value for key, value in where.items()):
            return 0, 0
        self.found = None
        moments = {i: {} for i in range(state["moments"])}
        with self.readable():
            model.load_state_dict(weights_of(tensors))
            for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
                for key, shape in (("step", ()), ("exp_avg", p.shape), ("exp_avg_sq", p.shape)) if i in moments else ():
                    moments[i][key] = tensors.pop(f"optimizer.{i}.{key}")
                    if moments[i][key].shape != shape:
                        raise ValueError(f"optimizer.{i}.{key} has another shape")
            if any(name.startswith("optimizer.") for name in tensors) or not all(moments.values()):
                raise ValueError("its optimizer had other parameters")
            optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
            if scaler.is_enabled() and state["scaler"]:
                scaler.load_state_dict(state["scaler"])
        self.phase_began -= state["phase_seconds"]
        return state["epoch"], state["seen"]

    @contextmanager
    def readable(self):
        """Raises RunError where a checkpoint holds another model than this run's."""
        try:
            yield
        except (RuntimeError, KeyError, TypeError, ValueError) as e:
            raise RunError(f"{self.dir}/checkpoint does not fit this run ({str(e).splitlines()[0]})") from None

    def student(self) -> GPT:
        """The student as the last stage left it: that of an earlier try or of the run that is continued, else the
        pretrained model, which every teacher and every student starts from (Section 3.1)."""
        model = self.fresh()
        if self.base:
            with self.readable():
                model.load_state_dict(weights_of(self.base[1]))
            self.base = None
        elif self.o.continue_:
            self.take_over(model)
        return model

    def take_over(self, model) -> None:
        """--continue: weights and scores of the parent's last stage."""
        parent, known = Path(self.o.continue_).expanduser(), len(self.parent["tasks"])
        rows = rundir.read_scores(parent)
        try:
            if max(row["stage"] for row in rows) != known:
                raise ValueError("its last stage is not there")
            summarise("lamol", self.parent["tasks"], rows)
        except (KeyError, ValueError) as e:
            raise RunError(f"--continue {parent}: its scores.jsonl is not that of a finished run ({e})") from None
        rundir.write_jsonl(self.dir / "scores.jsonl", rows)
        self.score(model, self.tasks[known:], 0, 0, once=True)
        student = GPT.from_pretrained(parent / "model")
        if student.config != model.config:
            raise RunError(f"--continue {parent}: its student has another shape than --model {self.o.model}")
        model.load_state_dict(student.state_dict())
        self.score(model, self.tasks[known:], known, self.parent["epochs"], once=True)
        self.stages_done = known
        self.checkpoint({"phase": "", "stage": known, "name": f"of {parent.resolve().name}"}, model)

    @contextmanager
    def watched(self):
        """What may cut a run off, with what to do: an interruption, a full disk, too little memory."""
        how = f"{self.dir}: the same command with --resume goes on"
        try:
            yield
        except KeyboardInterrupt:
            place = f" in {self.log.place()}" if self.log else ""
            if (self.dir / "summary.json").exists():
                raise KeyboardInterrupt(f"; the run has finished already, in {self.dir}") from None
            raise KeyboardInterrupt(f"{place}; {how} {self.said_last}, and repeats what came later") from None
        except BrokenPipeError:
            raise
        except OSError as e:
            if interruption.came:  # and so another rank has stopped before
                raise KeyboardInterrupt(f"; {how} {self.said_last}") from None
            raise RunError(f"{e}; {how} {self.said_last}") from None
        except (RuntimeError, MemoryError) as e:
            if lost := ranks.lost(e):
                if interruption.came:
                    raise KeyboardInterrupt(f"; {how} {self.said_last}") from None
                raise RunError(f"{lost}; {how} {self.said_last}") from None
            full = isinstance(e, MemoryError) or re.search("out of memory|allocate memory|not enough memory", str(e))
            if not full:
                raise
            if not self.log:
                raise RunError("out of memory: a shorter --max-len or a smaller --model is needed") from None
            examples = -(-self.log.examples // ranks.size())
            at_once = min(examples, self.o.micro_batch or examples)
            hint = f"{how} {self.said_last}, with --micro-batch {at_once // 2}"
            hint = hint if at_once > 1 else "a shorter --max-len or a smaller --model is needed"
            raise RunError(f"out of memory in {self.log.place()}, with {at_once} examples at once: {hint}") from None

    # ------------------------------------------------------------------ models, answers, scores

    def fresh(self) -> GPT:
        """A copy of the pretrained model."""
        return copy.deepcopy(self.pretrained).to(self.device)

    def teacher_folder(self, task, epochs: int) -> tuple[Path, dict]:
        """Where the teacher of a task is kept, and its key: all that it depends on. With --resume that is what the
        first try was given, though this one may have another --micro-batch."""
        key = {"task": task.name, "slot": self.slots[task.name], "epochs": epochs, "max_len": self.max_len}
        key |= {"examples": key_of_examples(task), "dtype": str(self.dtype), "pretrained": self.fingerprint}
        first = ranks.told(self.earlier) or asdict(self.o) | {"ranks": ranks.size()}
        key |= {name: first.get(name, getattr(self.o, name)) for name in TEACHER_KEY}
        if (n := first.get("ranks", 1)) != 1:
            key["ranks"] = n  # their dropout masks are other ones
        return Path(self.o.teachers).expanduser() / f"{task.name}-{rundir.key_of(key)}", key

    def found_teacher(self, task, folder: Path) -> GPT:
        """A teacher that was made before. Raises RunError where the folder is not whole, or is of another model."""
        try:
            seconds = rundir.read_json(folder / "config.json", dict).get("seconds")
            teacher = GPT.from_pretrained(folder / "model")
            if teacher.config != self.pretrained.config:
                raise ValueError("another shape")
        except (ValueError, OSError) as e:
            raise RunError(f"{folder} is no whole teacher of {task.name} ({e}); delete it, to teach it anew") from None
        self.teacher_times[task.name] = seconds if type(seconds) in (int, float) and 0 <= seconds < 1e9 else None
        return teacher.to(self.device)

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

    def score(self, model, tasks, stage, epoch, once=False) -> list[dict]:
        """Score a model on tasks; the scores go to scores.jsonl, the predictions are returned.

        once: leave out what an earlier try has scored."""
        path, predictions = self.dir / "scores.jsonl", []
        known = rundir.read_scores(self.dir) if once and ranks.rank() == 0 and path.exists() else []
        done = ranks.told([x["task"] for x in known if (x["stage"], x["epoch"]) == (stage, epoch)])
        for task in tasks:
            if task.name in done:
                continue
            scores, lines = self.examine(model, task, stage, epoch)
            rundir.append_jsonl(path, scores)
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
        self.stages_done, self.log = stage, None
        if stage < len(self.tasks) and self.o.method != "multitask":
            self.checkpoint({"phase": "", "stage": stage, "name": name}, model)

    @ranks.by_rank_0
    def finish(self) -> dict:
        """Summary, curves, and what a reader wants to see of a run: its table, some answers, some pseudo-samples."""
        rows = rundir.read_scores(self.dir)
        summary = summarise(self.o.method, list(self.slots), rows)
        summary["parameters"] = sum(p.numel() for p in self.pretrained.parameters())
        summary["wall_time_s"] = round(time.time() - self.began, 1)
        if None not in self.teacher_times.values():  # teachers of earlier versions don't say
            summary["teacher_time_s"] = round(sum(self.teacher_times.values()), 1)
            summary["teacher_time_here_s"] = round(sum(self.made_here.values()), 1)
        with rundir.replacing(self.dir / "curves.png") as path:
            draw_curves(summary["order"], self.o.epochs, rows, path)
        rundir.write_json(self.dir / "summary.json", summary)  # from here on the run is finished
        shutil.rmtree(self.dir / "checkpoint", ignore_errors=True)
        (self.dir / "lock").unlink()
        print(self.worked_examples())
        print(f"\n{table(summary)}\n\n{summary['wall_time_s']:.0f} s; everything is in {self.dir}")
        return summary

    @ranks.by_rank_0
    def show(self) -> dict:
        """What there is to say of a run that has finished before."""
        shutil.rmtree(self.dir / "checkpoint", ignore_errors=True)  # a kill may have left it
        (self.dir / "lock").unlink()
        summary = read_run(self.dir)
        print(f"\n{table(summary)}\n\nfinished already")
        return summary

    def worked_examples(self) -> str:
        """Three answers of the last student a task, and two of the pseudo-samples that were dreamt up of it a stage."""
        said, answers, dreams = [], {}, {}
        stages = (folder for m in range(1, len(self.tasks) + 1) for folder in self.dir.glob(f"{m}-*"))
        for folder in stages:
            if not (folder / "predictions.jsonl").exists():
                continue
            lines = rundir.read_jsonl(folder / "predictions.jsonl", task=str, prediction=str)
            for task in self.tasks:  # the last stage's stand
                answers[task.name] = [x["prediction"] for x in lines if x["task"] == task.name] or answers.get(
                    task.name
                )
            texts = dict.fromkeys(("task", "rejected", "context_and_question", "answer"), str)
            path = folder / "pseudo.jsonl"
            for line in rundir.read_jsonl(path, **texts) if path.exists() else ():
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


def absolute(order: str) -> str:
    """An --order with whole paths, which mean the same from everywhere."""
    return ",".join(entry if entry in METRICS else str(Path(entry).resolve()) for entry in order.split(","))


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


def key_of_examples(task) -> str:
    """A hash of a task's examples."""
    return rundir.key_of([asdict(e) for e in task.train + task.test])


def weights_of(tensors: dict) -> dict:
    """The model's, of a checkpoint."""
    return {name.removeprefix("model."): p for name, p in tensors.items() if name.startswith("model.")}
