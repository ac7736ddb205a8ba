"""What a run begins with: its options as device, models, tokenizer, tasks; and its config.json."""

import platform
import shutil
import subprocess
from dataclasses import asdict
from datetime import date
from pathlib import Path

import torch

import kd
from data import answer_budget
from lab.errors import RunError
from lab.fast.packing import Layout
from lab.run.device import choose_device, has_compiler
from lab.run.encoding import encode_task, hash_of_examples
from lab.run.options import full_name, model_reason
from lab.run.pretrained import pretrained
from lab.run.ranks import world_size
from lab.run.teachers import hash_of_model
from lab.tasks import TASKS, load_task
from lab.tasks.ceiling import ceiling

ROOT = Path(__file__).parents[2]


def load(run) -> str:
    """Load tasks, models and tokenizer. Returns the reason for the device. Raises LabError."""
    args = run.args
    run.device, run.dtype, why = choose_device(args.device, args.dtype)
    if args.compile and not has_compiler():
        raise RunError("--compile: needs a C++ compiler; install g++, or name one in the variable CXX")
    load_models(run)
    run.tasks = [
        load_task(entry, args.data_dir, args.cache_dir, args.limit, args.multi_reference, args.train_examples)
        for entry in args.order.split(",")
    ]
    run.ceiling = {task.name: round(ceiling(task, args.cache_dir), 4) for task in run.tasks}
    run.slots = {task.name: run.tokenizer.add_task(task.name) for task in run.tasks}
    run.samples = {task.name: encode_task(task, run.tokenizer, run.max_len) for task in run.tasks}
    run.budgets = {task.name: answer_budget(task, run.tokenizer, run.max_len) for task in run.tasks}
    run.replay_loss = kd.authors_rule(args.kd) if args.replay_loss == "authors" else args.replay_loss
    run.lm_rows = not args.qa_only and args.method != "finetune"
    run.layout = Layout(run.device.type, args.micro_batch * (2 if run.lm_rows else 1), world_size())
    return why


def load_models(run) -> None:
    """The pretrained models that the student and the teachers start from, and their tokenizer."""
    args = run.args
    run.pretrained, run.tokenizer = pretrained(args.model, args.cache_dir, model_reason(args))
    run.teacher_start = run.pretrained
    run.hash_of_student = run.hash_of_teacher = hash_of_model(run.pretrained)
    if args.teacher_model != args.model and (args.kd != "none" or args.method == "single"):
        run.teacher_start, tokenizer = pretrained(args.teacher_model, args.cache_dir, "--teacher-model")
        run.hash_of_teacher = hash_of_model(run.teacher_start)
        if tokenizer.name != run.tokenizer.name:
            both = f"its tokenizer is {tokenizer.name}, that of --model {args.model} is {run.tokenizer.name}"
            raise RunError(f"--teacher-model {args.teacher_model}: {both}")
    if args.kd_beam > (most := run.tokenizer.n_vocab // 2):
        raise RunError(f"--kd-beam {args.kd_beam}: at most {most}, half the vocabulary")
    contexts = [model.config.n_positions for model in (run.pretrained, run.teacher_start)]
    run.max_len = min(args.max_len or 1024, *contexts)


def config_of(run) -> dict:
    """The config.json of a run: every option, its data and weights, and what computes it."""
    args = run.args
    config = asdict(args) | {"order": absolute(args.order), "tasks": list(run.slots), "slots": run.slots}
    config |= {"data": {task.name: hash_of_examples(task) for task in run.tasks}, "answer_budgets": run.budgets}
    config |= {"name": full_name(args, list(run.slots)), "ceiling": run.ceiling}
    config |= {"pretrained": run.hash_of_student}
    if run.teacher_start is not run.pretrained:
        config |= {"pretrained_teacher": run.hash_of_teacher}
    config |= {"resolved_device": str(run.device), "resolved_dtype": str(run.dtype).removeprefix("torch.")}
    config |= {"resolved_max_len": run.max_len, "resolved_replay_loss": run.replay_loss}
    config |= {"python": platform.python_version(), "torch": torch.__version__}
    config |= {"threads": torch.get_num_threads(), "ranks": world_size()}
    return config | {"date": str(date.today()), "commit": commit()}


def commit() -> str:
    """The commit of this code, with "-dirty" behind it where a file differs; "" where it is no git checkout."""
    if not is_checkout(ROOT):
        return ""
    return git(ROOT, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*").stdout.strip()


def is_checkout(folder: Path) -> bool:
    """Is this folder, and not one above it, the top of a git checkout?"""
    return bool(shutil.which("git")) and git(folder, "rev-parse", "--show-prefix").stdout == "\n"


def git(folder: Path, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run(["git", "-C", str(folder), *map(str, arguments)], capture_output=True, text=True)


def absolute(order: str) -> str:
    """An --order with absolute paths, which mean the same in every folder."""
    return ",".join(entry if entry in TASKS else str(Path(entry).resolve()) for entry in order.split(","))
