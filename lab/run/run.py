"""A run, as train.py uses it: tasks, models, the stages, random generators, scores, and where results go.

A `Run` holds no training state, but for `kept`. So a phase is a function of the run and of the models it is given.
"""

import copy
import shutil
import time

import torch

from data import Task
from eval import predict, score, summarise, table
from lab.errors import RunError
from lab.fast.cache import cache_bytes
from lab.fast.compiled import compile_model
from lab.fast.packing import move
from lab.files import append_jsonl, replacing, short_name, write_folder, write_json, write_jsonl
from lab.run import failure, ranks, resume, setup
from lab.run.checkpoint import save_checkpoint
from lab.run.encoding import hash_of_examples
from lab.run.options import parent_of, run_name
from lab.run.pretrained import save_gpt
from lab.run.progress import Phase, Progress
from lab.run.ranks import is_main_process, on_main_process
from lab.run.report import announce, draw_run, worked_examples
from lab.run.rundir import check_writable, open_run, read_run, read_scores, release
from lab.run.seeds import generator_for
from lab.run.teachers import saved_teacher
from model import GPT


class Run:
    """What every method needs. As a context manager it releases the directory at the end, and says of an error what to
    do next.

    args: the resolved options. tasks, samples {name: list}, budgets {name: tokens of an answer}; tokenizer,
    max_len, device, dtype; replay_loss, lm_rows, layout: see lab/run/setup.py. dir: the directory; finished: the run
    was, before this try. kept: tensors by name, which hooks may fill. Checkpoints hold them; a continued run starts
    without."""

    def __init__(self, args):
        self.args, self.kept = args, {}
        self.lock = self.progress_now = None  # progress_now: of the phase that is under way
        self.began = self.phase_began = time.time()  # less what earlier tries took
        self.teacher_times, self.made_here = {}, {}  # task -> seconds of its training; of those trained in this run
        self.stages_done, self.last_saved, self.saved_at = 0, "from the beginning", time.monotonic()
        self.earlier = {}  # the config.json of the first try
        self.cut_off = self.stage_end = None  # checkpoints: of a phase that was cut off, of a stage's end
        try:
            with ranks.main_process_first():
                why_device = setup.load(self)
                config = self.open()
                announce(self, why_device)
            if ranks.broadcast(self.last_saved) != self.last_saved:
                both = f"rank {ranks.rank()} finds another checkpoint than rank 0"
                raise RunError(f"{both} in {self.dir}: not the same disk?")
            if config and is_main_process():
                write_json(self.dir / "config.json", config)
        except BaseException:
            self.close()
            raise

    def open(self) -> dict | None:
        """Open the directory. Returns its new config.json, None if there is one that stays. Raises RunError."""
        args = self.args
        if args.continue_:
            self.parent = parent_of(args.continue_)[0]
            for task in self.tasks[: len(self.parent["tasks"])]:
                if self.parent["data"][task.name] != hash_of_examples(task):
                    raise RunError(f"--continue {args.continue_}: task {task.name} has other data now than in that run")
        self.dir, self.lock = open_run(args.runs_dir, run_name(args, list(self.slots)), args.resume)
        if args.kd != "none" or args.method == "single":
            check_writable("--teachers", args.teachers)
        self.finished = (self.dir / "summary.json").exists()
        config = setup.config_of(self)
        return resume.resume(self, config) if args.resume else config

    def close(self) -> None:
        """Release the directory."""
        if self.lock:
            release(self.lock)
            self.lock = None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self.close()
        if error is not None:
            failure.explain(self, error)

    # ------------------------------------------------------------------ models and stages

    def pretrained_copy(self) -> GPT:
        """A copy of the model that every student starts from."""
        return self.ready(copy.deepcopy(self.pretrained))

    def new_student(self) -> GPT:
        """The student at the beginning of this try; at --resume or --continue that of the last stage."""
        return resume.first_student(self)

    def new_teacher(self) -> GPT:
        """Where every teacher starts: --teacher-model, by default the student's --model."""
        return self.ready(copy.deepcopy(self.teacher_start))

    def ready(self, model) -> GPT:
        """A model on the device; with --compile, compiled."""
        if self.args.compile:
            compile_model(model)
        return model.to(self.device)

    def saved_teacher(self, task, train) -> GPT:
        """The teacher of a task: loaded, or trained by train(phase), evaluated and saved."""
        return saved_teacher(self, task, train)

    def stages(self, model):
        """Yield the stages that are left: the number m, counted from 1, and the task. Before the first one the model
        is scored, as stage 0. With multitask there is one stage, of a task that has all their names."""
        if self.stages_done == 0:
            self.score(model, self.tasks, 0, 0, once=True)
        del model  # it may be one that nobody else needs
        tasks = self.tasks
        if self.args.method == "multitask":
            tasks = [Task("+".join(self.slots), "", [], [])]
        yield from list(enumerate(tasks, 1))[self.stages_done :]

    def phase(self, m: int, task) -> Phase:
        """The phase in which the student learns a task."""
        return Phase("student", m, task.name, self.args.epochs)

    def end_stage(self, model, m: int, task) -> None:
        """Score the model on all tasks (with single on this one), save predictions and weights, write a checkpoint."""
        scored = [task] if self.args.method == "single" else self.tasks
        predictions = self.score(model, scored, m, self.args.epochs)
        folder = self.stage_folder(m, task.name)
        if is_main_process():
            write_jsonl(folder / "predictions.jsonl", predictions)
            for path in (self.dir / "model", *([folder / "model"] if self.args.keep_models else [])):
                write_folder(path, lambda temporary: self.write_model(model, temporary))
        self.stages_done = m
        if m < len(self.tasks) and self.args.method != "multitask":
            self.checkpoint({"phase": "", "stage": m, "name": task.name}, model)

    # ------------------------------------------------------------------ an update

    def generator_for(self, stage: int, name: str, phase: str, epoch: int = 0) -> torch.Generator:
        """A random generator for one use, from a hash of these and of --seed."""
        return generator_for(self.args.seed, stage, name, phase, epoch)

    def progress(self, phase, model, optimizer, scaler, samples) -> Progress:
        """The progress of a phase, at --resume where its checkpoint stands."""
        return Progress(self, phase, model, optimizer, scaler, samples)

    def teacher_cache(self) -> int:
        """The bytes that a teacher's hidden states may take from now on: --teacher-cache."""
        given = self.args.teacher_cache
        return cache_bytes(self.device) if given is None else given

    def autocast(self):
        """Matrix products in --dtype."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def own_groups(self, batch, weights):
        """Yield this process's groups of a batch and their weights, on the device."""
        for group, w in zip(batch, weights):
            if group.process == ranks.rank():
                yield group.to(self.device), move(w, self.device)

    def sum_gradients(self, model) -> None:
        """Add up the gradients of all processes."""
        ranks.sum_gradients(model)

    # ------------------------------------------------------------------ answers, scores, files

    def answers(self, model, task, examples, beams: int = 1) -> list[list[int]]:
        """Greedy answers, or those of a beam search, as ids, EOS included where it came."""
        with self.autocast():
            return predict(model, self.tokenizer, examples, self.max_len, self.budgets[task.name], beams)

    def evaluate(self, model, task, stage: int, epoch: int) -> tuple[dict, list[dict]]:
        """A model on a task's test examples -> its line of scores.jsonl, and its lines of predictions.jsonl."""
        texts = [self.tokenizer.decode(ids) for ids in self.answers(model, task, task.test)]
        scores = {"stage": stage, "epoch": epoch, "task": task.name, "metric": task.metric} | score(task, texts)
        lines = [
            {"task": task.name, "id": e.id, "prediction": text, "answer": e.answer} for e, text in zip(task.test, texts)
        ]
        return scores, lines

    def score(self, model, tasks, stage: int, epoch: int, once: bool = False) -> list[dict]:
        """Score a model on tasks, into scores.jsonl. Returns its predictions. once: not where a try before has."""
        path, predictions = self.dir / "scores.jsonl", []
        known = read_scores(self.dir) if once and is_main_process() and path.exists() else []
        done = ranks.broadcast([x["task"] for x in known if (x["stage"], x["epoch"]) == (stage, epoch)])
        for task in tasks:
            if task.name in done:
                continue
            scores, lines = self.evaluate(model, task, stage, epoch)
            if is_main_process():
                append_jsonl(path, scores)
            print(f"stage {stage}, epoch {epoch}: {task.name} {scores['score']:.1f}")
            predictions += lines
        return predictions

    def stage_folder(self, stage: int, name: str):
        """Where a stage's files go. name: of its task; with multitask all names."""
        return self.dir / short_name(f"{stage}-{name}")

    @on_main_process
    def write_lines(self, stage: int, task, file: str, lines: list[dict]) -> None:
        """A JSONL file in the stage's folder; with multitask in the task's folder within it."""
        folder = self.stage_folder(stage, task.name)
        if self.args.method == "multitask":
            folder = self.stage_folder(stage, "+".join(self.slots)) / task.name
        write_jsonl(folder / file, lines)

    def write_model(self, model, folder) -> None:
        """A model's weights, and in its config.json what it takes to use it on its tasks."""
        extra = {"tokenizer": self.tokenizer.name, "eos_token_id": self.tokenizer.eos_id, "task_slots": self.slots}
        save_gpt(model, folder, **extra, max_len=self.max_len, answer_budgets=self.budgets)

    def checkpoint(self, where: dict, model, optimizer=None, scaler=None, must=True) -> None:
        """Write what --resume needs; unless it must, only if the last checkpoint of this try, or the try's beginning,
        is --checkpoint-every seconds ago. where: the `phase` (kind; "" at the end of a stage), its `stage` and `name`,
        and of an epoch that is over also `epoch`, `samples_seen` and `steps`."""
        if not must and ranks.broadcast(time.monotonic() - self.saved_at < self.args.checkpoint_every):
            return
        now, of_epoch = time.time(), "after epoch {epoch} of {phase} {name}"
        said = (of_epoch if where["phase"] else "after stage {stage}, {name}").format(**where)
        state = {"epoch": 0, "samples_seen": 0, "steps": 0, "stages": self.stages_done, "said": said} | where
        state |= {"seconds": now - self.began, "phase_seconds": now - self.phase_began}
        state |= {"teacher_times": self.teacher_times, "made_here": self.made_here}
        state |= {"scaler": scaler.state_dict() if scaler else {}}
        if (size := sum(x.nbytes for x in self.kept.values())) > (most := resume.largest_checkpoint(self) // 2):
            raise RunError(f"run.kept holds {size} bytes, and a checkpoint of this run at most {most} for hooks")
        save_checkpoint(self.dir, state, model, optimizer, self.kept)
        self.last_saved, self.saved_at = said, time.monotonic()

    # ------------------------------------------------------------------ the end

    @on_main_process
    def finish(self) -> dict:
        """The summary, printed as a table with examples, and the learning curves. Returns the summary.

        For a run that had finished before, its table is printed again."""
        if self.finished:
            summary = read_run(self.dir)
            print(f"\n{table(summary)}\n\nfinished already")
        else:
            summary = self.summarise()
            write_json(self.dir / "summary.json", summary)  # from here on the run has finished
            print(worked_examples(self))
            print(f"\n{table(summary)}\n\n{summary['wall_time_s']:.0f} s; everything is in {self.dir}")
        shutil.rmtree(self.dir / "checkpoint", ignore_errors=True)
        if not (self.dir / "curves.png").exists():
            self.draw(summary)
        return summary

    def summarise(self) -> dict:
        """Scores and measures, the model's size, and what the run and its teachers took."""
        summary = summarise(self.args.method, list(self.slots), read_scores(self.dir))
        model = self.teacher_start if self.args.method == "single" else self.pretrained
        summary["ceiling"] = self.ceiling
        summary["parameters"] = sum(p.numel() for p in model.parameters())
        summary["wall_time_s"] = round(time.time() - self.began, 1)
        if None not in self.teacher_times.values():  # a damaged teacher does not say
            summary["teacher_time_s"] = round(sum(self.teacher_times.values()), 1)
            summary["teacher_time_here_s"] = round(sum(self.made_here.values()), 1)
        return summary

    def draw(self, summary: dict) -> None:
        """curves.png. A picture that fails is only a warning."""
        try:
            with replacing(self.dir / "curves.png") as path:
                draw_run(summary["order"], self.args.epochs, read_scores(self.dir), path)
        except Exception as e:
            print(f"WARNING: curves.png can't be drawn ({type(e).__name__}: {e})")
