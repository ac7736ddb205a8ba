"""The options of a run: one dataclass, its command line, and the defaults that depend on other options.

python train.py --help
"""

import argparse
import hashlib
import math
import os
import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch

from data import METRICS, task_name
from lab import ranks
from lab.rundir import RunError, read_json, run_name
from lab.toy import GRAMMARS
from model import DEFAULT_CACHE, PRETRAINED

# What suits a model. The paper's Table 7, and the released code's where that is silent, for all but nano.
PAPER_DEFAULTS = {"lr": 6.25e-5, "batch_size": 0, "epochs": 9, "adam_epsilon": 1e-4, "eval_every_epoch": False}
MODEL_DEFAULTS = {"nano": {"lr": 1e-3, "batch_size": 8, "epochs": 9, "adam_epsilon": 1e-8, "eval_every_epoch": True}}


def option(default, help, choices=None):
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass
class Options:
    """Everything that can be chosen. The defaults are the paper's Table 7 and, beyond it, the released code's."""

    order: str = option(
        "toy.woz,toy.sql,toy.cnn", f"tasks in order: {', '.join(METRICS)}, or folders with train and test.jsonl"
    )
    method: str = option("lamol", "how tasks are learned", ("finetune", "lamol", "single", "multitask"))
    kd: str = option("", "distillation; by default word with lamol, else none", ("none", "word", "seq", "seqsoft"))
    model: str = option(
        "",
        f"{', '.join(PRETRAINED)}, nano, or a folder in that layout; default: nano for toy tasks, else gpt2",
    )
    kd_beam: int = option(1, "beams of the teacher's answers in seq and seqsoft; 1: greedy")
    gamma: float = option(0.2, "γ: pseudo-samples, as a share of the new task's examples")
    seed: int = option(0, "of everything random")
    epochs: int = option(
        None, "for each task; with multitask for all (9: multi_same, 27: multi_long); default: the model's own, 9"
    )
    lr: float = option(None, "learning rate; default: the model's own, 6.25e-5, nano 1e-3")
    batch_size: int = option(None, "examples an update, 0: max(n // 1500, 4); default: the model's own, 0, nano 8")
    max_len: int = option(0, "tokens of a row; default 0: 1024, or the model's context if that is shorter")
    limit: int = option(0, "first N examples of each split; default 0, all")
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
    adam_epsilon: float = option(None, "AdamW's; default: the model's own, 1e-4, nano 1e-8")
    warmup_ratio: float = option(0.005, "of one epoch's samples")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm")
    eval_every_epoch: bool = option(None, "score after every epoch, not only after every stage; default: nano only")
    multi_reference: bool = option(False, "score against all references of a meaning representation (e2e)")
    micro_batch: int = option(
        0, "examples at once through the model: same loss, other dropout masks; default 0, all that fit"
    )
    teacher_cache: int = option(
        2**31, "bytes that a teacher's hidden states may take; computed once if they fit, else in every epoch"
    )
    device: str = option("auto", "auto (CUDA, then CPU), cpu, cuda, mps")
    dtype: str = option("auto", "computation", ("auto", "float32", "bfloat16", "float16"))
    compile: bool = option(
        False, "compile the blocks for training (torch.compile): slow first updates, then faster ones"
    )
    data_dir: str = option("~/.cache/l2kd/raw", "raw files, as the public releases name them; downloaded if missing")
    cache_dir: str = option(DEFAULT_CACHE, "prepared data and downloaded weights")
    runs_dir: str = option("runs", "where the run's directory is made")
    teachers: str = option("", "where teachers are kept and found again; by default <runs-dir>/teachers")
    keep_models: bool = option(False, "keep the student of every stage, not only the last")
    log_every: int = option(50, "updates between two lines of log.jsonl")
    resume: bool = option(False, "go on with a run that was cut off, from its last checkpoint")
    continue_: str = option("", "a finished run (its directory): with its options but for paths, teach it --order too")


# Options that don't change the result (or only its rounding) are not in the run's name ...
UNNAMED = {
    "device",
    "dtype",
    "micro_batch",
    "teacher_cache",
    "compile",
    "data_dir",
    "cache_dir",
    "runs_dir",
    "teachers",
    "keep_models",
    "log_every",
    "resume",
}
# Options that may differ at --resume; whatever is behind the names --order, --model and --continue is compared itself.
NOT_COMPARED = {"order", "model", "device", "dtype", "data_dir", "cache_dir", "runs_dir", "teachers", "keep_models"}
NOT_COMPARED |= {"log_every", "resume", "continue_"}
ROUNDING = {
    "micro_batch",
    "teacher_cache",
    "compile",
    "resolved_device",
    "resolved_dtype",
    "python",
    "torch",
    "threads",
    "ranks",
}
# ... and these change a teacher, besides its task, slot, data, epochs, row length and pretrained weights.
TEACHER_KEY = ("seed", "lr", "batch_size", "qa_only", "lm_lambda", "ans_weight", "weight_decay", "adam_epsilon")
TEACHER_KEY += ("warmup_ratio", "max_grad_norm", "micro_batch", "compile")
POSITIVE = {"kd_beam", "epochs", "lr", "temperature", "top_k", "log_every", "max_grad_norm"}


def resolve(o: Options) -> Options:
    """Fill in the defaults that depend on other options. Raises ValueError for options that contradict each other."""
    names = [task_name(entry) for entry in o.order.split(",")]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"--order {o.order}: task {twice!r} stands there twice")
    if o.kd not in ("", "none") and not (o.method == "lamol" or (o.method, o.kd) == ("multitask", "seq")):
        raise ValueError(f"--kd {o.kd} can't be used with --method {o.method} (lamol takes all, multitask takes seq)")
    if o.continue_ and o.method not in ("finetune", "lamol"):
        raise ValueError(f"--continue can't be used with --method {o.method} (finetune and lamol only)")
    if o.qa_only and o.method not in ("single", "multitask"):
        raise ValueError(f"--qa-only can't be used with --method {o.method} (single and multitask only)")
    model = o.model or default_model(names)
    if model not in (*PRETRAINED, "nano") and not Path(model).is_dir():
        raise ValueError(f"--model {model}: neither {', '.join(PRETRAINED)}, nano nor a folder")
    for name, value in asdict(o).items():
        if isinstance(value, int | float) and not (0 <= value < math.inf and (value or name not in POSITIVE)):
            least = "above" if name in POSITIVE else "of at least"
            raise ValueError(f"--{name.replace('_', '-')} {value}: must be a number {least} 0")
    own = PAPER_DEFAULTS | MODEL_DEFAULTS.get(model, {})
    own |= {key: getattr(o, key) for key in own if getattr(o, key) is not None}
    kd = o.kd or ("word" if o.method == "lamol" else "none")
    return replace(o, model=model, kd=kd, teachers=o.teachers or str(Path(o.runs_dir) / "teachers"), **own)


def default_model(tasks: list[str]) -> str:
    """nano where every task is a toy task, else the paper's model."""
    return "nano" if all(name in GRAMMARS for name in tasks) else "gpt2"


def without_effect(o: Options) -> list[str]:
    """Options that were changed although the method has no use for them; they are printed, not refused."""
    unused = {"temperature"} if o.kd not in ("word", "seqsoft") else set()
    if o.kd not in ("seq", "seqsoft"):
        unused |= {"kd_beam"}
    if o.method != "lamol":
        unused |= {"gamma", "real_replay", "replay_loss", "updates", "top_k"}
    if o.method == "single":  # its models are teachers, which are scored when they are done
        unused |= {"eval_every_epoch"}
    if o.gamma == 0:
        unused |= {"real_replay", "replay_loss", "updates", "top_k"}
    if o.method == "finetune" or o.qa_only:
        unused |= {"lm_lambda", "ans_weight"}
    own = resolve(Options(order=o.order, method=o.method, kd=o.kd, model=o.model))
    return [name for name, value in asdict(own).items() if name in unused and getattr(o, name) != value]


def name_of(o: Options, tasks: list[str]) -> str:
    """The name of the run's directory."""
    defaults = asdict(resolve(Options(order=o.order, method=o.method, kd=o.kd, model=o.model)))
    defaults["model"] = default_model(tasks)
    for key in UNNAMED | {"order", "method", "kd", "gamma", "seed", "continue_"}:
        del defaults[key]
    own = {"continue": parent_of(o.continue_)[1]} if o.continue_ else {}
    return run_name(tasks, asdict(o) | own, defaults | dict.fromkeys(own, ""))


def parent_of(run: str) -> tuple[dict, str]:
    """The config.json of a run that is to be continued, and the first 8 hex digits of its SHA-256.

    Raises RunError where the run has not finished, its method is no lifelong learning, or the file is not a run's."""
    path = Path(run).expanduser() / "config.json"
    if not (path.is_file() and path.with_name("summary.json").is_file()):
        raise RunError(f"--continue {run}: no finished run is there; if it was cut off, --resume it first")
    config = read_json(path, dict)
    for f in fields(Options):
        value, types = config.get(f.name), (int, float) if f.type is float else (f.type,)
        if type(value) not in types or (f.metadata["choices"] and value not in f.metadata["choices"]):
            raise RunError(f"{path}: {f.name} is {value!r}: not the config.json of a run of this version")
        if isinstance(value, float) and not math.isfinite(value):
            raise RunError(f"{path}: {f.name} is {value}")
    try:
        tasks, data = [task_name(entry) for entry in config["order"].split(",")], config["data"]
        if config["tasks"] != tasks or not all(isinstance(data[name], str) for name in tasks):
            raise ValueError("its tasks and their data don't fit its order")
    except (ValueError, KeyError, TypeError, IndexError) as e:
        raise RunError(f"{path}: not the config.json of a run of this version, here ({e})") from None
    if config["method"] not in ("finetune", "lamol"):
        raise RunError(f"--continue {run}: --method {config['method']} learns no stream that could go on")
    return config, hashlib.sha256(path.read_bytes()).hexdigest()[:8]


def parse(argv=None) -> Options:
    """The command line -> resolved options; exits with 2 and one line where it can't be understood.

    With --continue, options that are not given are those of the run that is continued. Raises RunError where that is
    none."""
    parser = argparse.ArgumentParser(
        description="L2KD: lifelong language knowledge distillation (Algorithm 1 and its baselines)",
        allow_abbrev=False,
    )
    parser.error = lambda message: parser.exit(2, f"error: {message} (--help lists the options)\n")  # one line
    for f in fields(Options):
        flag, help = f"--{f.name.strip('_').replace('_', '-')}", f.metadata["help"]
        shown = "" if "default" in help else f" (default {f.default})"
        keywords = {"default": f.default, "dest": f.name, "help": help + shown}
        if f.type is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **keywords)
        else:
            parser.add_argument(flag, type=f.type, choices=f.metadata["choices"], **keywords)
    given = parser.parse_args(argv)
    if given.continue_:
        parent, runs_dir = parent_of(given.continue_)[0], Path(given.continue_).expanduser().resolve().parent
        here = {"order": "", "runs_dir": str(runs_dir), "resume": False, "continue_": ""}
        here |= {f.name: f.default for f in fields(Options) if f.name in ("data_dir", "cache_dir", "teachers")}
        parser.set_defaults(**{f.name: parent[f.name] for f in fields(Options)} | here)  # a stranger names no paths
        given = parser.parse_args(argv)
        if not given.order:
            parser.error("--continue: --order must name the new tasks")
        given.order = f"{parent['order']},{given.order}"
    try:
        return resolve(Options(**vars(given)))
    except ValueError as e:
        parser.error(str(e))


def choose_device(device: str, dtype: str = "auto") -> tuple[torch.device, torch.dtype, str]:
    """--device and --dtype -> (device, dtype, why); each rank has a GPU of its own.

    Raises RunError for a device that is not there."""
    kind = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    why = "as asked" if device != "auto" else "the GPU that was found" if kind == "cuda" else "no CUDA device found"
    several = ranks.size() > 1
    try:
        if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", kind):
            raise RuntimeError("known are auto, cpu, cuda, cuda:N, mps")
        if several and kind not in ("cpu", "cuda"):
            raise RuntimeError("each process that torchrun starts has a device of its own: cpu or cuda is expected")
        if several and kind == "cuda":
            if (here := int(os.environ.get("LOCAL_WORLD_SIZE", 1))) > (there := torch.cuda.device_count()):
                raise RuntimeError(f"{here} processes of torchrun, but {there} GPUs; --nproc_per_node={there}")
            kind = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        torch.empty(0, device=kind)
    except (RuntimeError, AssertionError) as e:
        raise RunError(f"--device {device}: can't be used here ({str(e).splitlines()[0][:150]})") from None
    found = torch.device(kind)
    if found.type == "cuda" and found.index is not None:
        torch.cuda.set_device(found)  # tensors that are made on "cuda" belong there
    if dtype != "auto":
        return found, getattr(torch, dtype), why
    half = (
        torch.bfloat16
        if found.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        else torch.float16
    )
    return found, half if found.type == "cuda" else torch.float32, why
