"""The options of a run: one table, its command line, and the defaults that depend on other options.

Each line of the table says all about its option: default, help, choices, when it has no effect, and what it changes.

    python train.py --help
"""

import hashlib
import math
import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from data import SLOTS
from lab.errors import RunError, typed_path
from lab.files import read_json, short_name
from lab.run import hub
from lab.run.hub import DEFAULT_CACHE, PRETRAINED
from lab.run.parser import build_parser, flag
from lab.tasks import TASKS, is_toy, task_name

LIFELONG = ("finetune", "lamol")  # the methods that learn one task after another
# What suits a model: the paper's Table 7, and the authors' code where that is silent, for all but nano.
PAPER_DEFAULTS = {"lr": 6.25e-5, "batch_size": 0, "epochs": 9, "adam_epsilon": 1e-4, "eval_every_epoch": False}
MODEL_DEFAULTS = {"nano": {"lr": 1e-3, "batch_size": 8, "epochs": 9, "adam_epsilon": 1e-8, "eval_every_epoch": True}}
# What a config.json says besides the options, and may change at --resume, too: the rest must be the same.
MACHINE = ("resolved_device", "resolved_dtype", "python", "torch", "threads", "ranks")
FURTHER = dict.fromkeys(MACHINE, "rounding") | dict.fromkeys(("name", "ceiling", "date", "commit"), "local")

# ---------------------------------------------------------------------- when an option has no effect


def no_replay(o) -> bool:
    return o.method != "lamol" or o.gamma == 0


def no_soft_targets(o) -> bool:
    return o.kd not in ("word", "seqsoft")


def no_teacher(o) -> bool:
    return o.kd == "none" and o.method != "single"


# ---------------------------------------------------------------------- the table


def option(default, help, choices=None, unused=None, kind="result", teacher=False, positive=False):
    """A line of the table. unused: a function of the resolved options, true if this one has no effect with them.
    teacher: it changes a teacher. positive: a number above 0, else it may be 0. kind, what it changes:

    result      the result: it stands in the run's name unless it is the default, and must be the same at --resume
    source      the result, too, and it stands in the name; at --resume what it names is compared: data, weights
    rounding    rounding or dropout masks: it is not in the name, and may change at --resume, with a warning
    local       nothing: paths, logging; it is not in the name, and may change at --resume
    """
    metadata = {"help": help, "choices": choices, "unused": unused, "kind": kind}
    return field(default=default, metadata=metadata | {"teacher": teacher, "positive": positive})


# fmt: off
@dataclass
class Options:
    """Everything that can be chosen. The defaults are the paper's Table 7 and, beyond it, the authors' code."""

    order: str = option("toy.woz,toy.sql,toy.cnn",
        f"tasks in order: {', '.join(TASKS)}, or folders with train.jsonl and test.jsonl", kind="source")
    method: str = option("lamol", "how tasks are learned", (*LIFELONG, "single", "multitask"))
    kd: str = option("", "distillation; default: word with lamol, else none", ("none", "word", "seq", "seqsoft"))
    model: str = option("", f"{', '.join(PRETRAINED)}, nano, a folder in the Hugging Face layout, or owner/name of a"
        " GPT-2 on the Hugging Face Hub (or owner/name@revision); default: nano if all tasks are toy tasks, else gpt2",
        kind="source")
    teacher_model: str = option("", "what teachers start from, like --model and with its tokenizer; default: --model",
        unused=no_teacher, kind="source")  # in a teacher's key by its weights
    kd_beam: int = option(1, "beams of the teacher's answers in seq and seqsoft; 1: greedy",
        unused=lambda o: o.kd not in ("seq", "seqsoft"), positive=True)
    gamma: float = option(0.2, "γ: pseudo-samples, as a share of the new task's examples",
        unused=lambda o: o.method != "lamol")
    seed: int = option(0, "of all that a run draws; toy data and --train-examples have their own", teacher=True)
    epochs: int = option(None, "for each task; with multitask for all (9: multi_same, 27: multi_long); default: 9",
        positive=True)  # a teacher has its own number of epochs
    lr: float = option(None, "learning rate; default: 6.25e-5, nano 1e-3", teacher=True, positive=True)
    batch_size: int = option(None, "examples an update, 0: max(n // 1500, 4); default: 0, nano 8", teacher=True)
    max_len: int = option(0, "tokens of a row; default 0: 1024, or the model's context if that is shorter")
    limit: int = option(0, "first N examples of each split; default 0: all")
    train_examples: int = option(0, "N training examples of a task, always the same, all test examples; 0: all")
    qa_only: bool = option(False, "no LM rows (the QA rows of Table 3; single and multitask only)", teacher=True)
    replay: str = option("generated", "samples of earlier tasks: generated by the student, or real (an upper bound)",
        ("generated", "real"), unused=no_replay)
    replay_loss: str = option("authors", "how replay is weighted, see kd.token_weights; authors: added with word and"
        " seqsoft, else joint", ("authors", "joint", "added"), unused=no_replay)
    updates: str = option("shuffled", "current and replay samples in an epoch: mixed, or in turn",
        ("shuffled", "alternate"), unused=no_replay)
    temperature: float = option(2.0, "of the distillation", unused=no_soft_targets, positive=True)
    last_temperature: float = option(0, "--temperature goes to this one by a task's last epoch", unused=no_soft_targets)
    top_k: int = option(20, "pseudo-data are sampled from the k likeliest words",
        unused=lambda o: no_replay(o) or o.replay == "real", positive=True)
    lm_lambda: float = option(0.25, "λ: the weight of the LM loss; the QA loss has 1",
        unused=lambda o: o.method == "finetune" or o.qa_only, teacher=True)
    ans_weight: float = option(5.0, "weight of the ANS token as a target in LM rows",
        unused=lambda o: o.method == "finetune" or o.qa_only, teacher=True)
    weight_decay: float = option(0.01, "AdamW's; not for biases and layer norms", teacher=True)
    adam_epsilon: float = option(None, "AdamW's; default: 1e-4, nano 1e-8", teacher=True)
    warmup_ratio: float = option(0.005, "of one epoch's samples", teacher=True)
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm", teacher=True, positive=True)
    eval_every_epoch: bool = option(None, "score after every epoch, not only after every stage; default: nano only",
        unused=lambda o: o.method == "single")  # its models are teachers, which are scored when they are trained
    multi_reference: bool = option(False, "score against all references of a meaning representation (e2e)")
    micro_batch: int = option(0, "examples at once through the model: same loss, other dropout masks; default 0: all"
        " that fit", kind="rounding", teacher=True)
    teacher_cache: int = option(None, "bytes for a teacher's hidden states, which are then computed once; default: half"
        " of a GPU's free memory when a stage starts, at most 2 GiB on a CPU", unused=no_soft_targets, kind="rounding")
    device: str = option("auto", "auto (CUDA, then CPU), cpu, cuda, mps", kind="local")  # compared as resolved_device
    dtype: str = option("auto", "computation", ("auto", "float32", "bfloat16", "float16"), kind="local")  # as resolved
    compile: bool = option(False, "torch.compile: slow first updates, then faster ones", kind="rounding", teacher=True)
    data_dir: str = option("~/.cache/l2kd/raw", "raw files, as the public releases name them; downloaded if missing",
        kind="local")
    cache_dir: str = option(DEFAULT_CACHE, "prepared data; weights go to the cache of huggingface_hub", kind="local")
    runs_dir: str = option("runs", "where the run's directory is made", kind="local")
    teachers: str = option("", "where teachers are saved and found again; default: <runs-dir>/teachers",
        unused=no_teacher, kind="local")
    keep_models: bool = option(False, "keep the student of every stage, not only the last", kind="local")
    log_every: int = option(50, "updates between two lines of log.jsonl", kind="local", positive=True)
    checkpoint_every: float = option(60.0, "seconds between checkpoints, at least; 0: after each epoch", kind="local")
    resume: bool = option(False, "go on with a run that was cut off, from its last checkpoint", kind="local")
    continue_: str = option("", "a finished run (its directory): learn --order, too, with its options", kind="source")
# fmt: on


# ---------------------------------------------------------------------- defaults that depend on other options


def resolve(o: Options) -> Options:
    """Fill in the defaults that depend on other options. Raises ValueError for options that contradict each other."""
    texts = {f.name: getattr(o, f.name).strip() for f in fields(Options) if f.type is str}
    paths = {name: typed_path(flag(name), text) for name, text in texts.items() if name != "order"}
    texts |= {name: hub.short(paths[name]) for name in ("model", "teacher_model")}  # others are expanded where used
    texts["order"] = ",".join(typed_path("--order", entry) for entry in o.order.split(","))
    o = replace(o, **texts)
    names = task_names(o.order)
    if len(names) > SLOTS:
        raise ValueError(f"--order: {len(names)} tasks, but a model has tokens for at most {SLOTS} tasks")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"--order {o.order}: task {twice!r} stands there twice")
    if o.kd not in ("", "none") and not (o.method == "lamol" or (o.method, o.kd) == ("multitask", "seq")):
        raise ValueError(f"--kd {o.kd} can't be used with --method {o.method} (lamol takes all, multitask takes seq)")
    if o.continue_ and o.method not in LIFELONG:
        raise ValueError(f"--continue can't be used with --method {o.method} ({' and '.join(LIFELONG)} only)")
    if o.qa_only and o.method not in ("single", "multitask"):
        raise ValueError(f"--qa-only can't be used with --method {o.method} (single and multitask only)")
    for name in ("model", "teacher_model"):
        hub.check_source(flag(name), getattr(o, name))
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", o.device):
        raise ValueError(f"--device {o.device[:200]}: known are auto, cpu, cuda, cuda:N, mps")
    for f in fields(Options):
        value, positive = getattr(o, f.name), f.metadata["positive"]
        most = 1e30 if f.type is float else math.inf
        if isinstance(value, int | float) and not (0 <= value <= most and (value or not positive)):
            which = "of at most 1e30" if value > most else "above 0" if positive else "of at least 0"
            raise ValueError(f"{flag(f.name)} {value}: must be a number {which}")
    return fill(o)


def task_names(order: str) -> list[str]:
    """The names of the tasks of an --order. Raises ValueError for an unknown one."""
    return [task_name(entry) for entry in order.split(",")]


def default_model(tasks: list[str]) -> str:
    """nano if every task is a toy task, else the paper's model."""
    return "nano" if all(map(is_toy, tasks)) else "gpt2"


def model_reason(o: Options) -> str:
    """Why the run has its model, in words."""
    default = default_model(task_names(o.order))
    which = "all" if default == "nano" else "not all"
    return f"default: {which} tasks are toy tasks" if o.model == default else "as asked"


def fill(o: Options) -> Options:
    """The options with their defaults, unchecked."""
    model = o.model or default_model(task_names(o.order))
    own = PAPER_DEFAULTS | MODEL_DEFAULTS.get(model, {})
    own |= {name: getattr(o, name) for name in own if getattr(o, name) is not None}
    return replace(
        o,
        model=model,
        teacher_model=o.teacher_model or model,
        kd=o.kd or ("word" if o.method == "lamol" else "none"),
        teachers=o.teachers or str(Path(o.runs_dir) / "teachers"),
        **own,
    )


def defaults_of(o: Options) -> Options:
    """What all other options would be, if only the tasks, the method and the model were given."""
    return fill(Options(order=o.order, method=o.method, kd=o.kd, model=o.model, runs_dir=o.runs_dir))


# ---------------------------------------------------------------------- options without effect, and the run's name


def without_effect(o: Options) -> list[str]:
    """Options that were changed although they have no effect with the others. They are printed, not refused."""
    default = defaults_of(o)
    changed = [f for f in fields(Options) if getattr(o, f.name) != getattr(default, f.name)]
    return [f.name for f in changed if f.metadata["unused"] and f.metadata["unused"](o)]


def effective(o: Options) -> Options:
    """The options with the default of each one that has no effect. Runs with the same ones are the same run."""
    default = defaults_of(o)
    return replace(o, **{name: getattr(default, name) for name in without_effect(o)})


def run_name(o: Options, tasks: list[str]) -> str:
    """The name of the run's directory: the full name, but at most 240 bytes."""
    return short_name(full_name(o, tasks))


def full_name(o: Options, tasks: list[str]) -> str:
    """`<tasks>-<method>-<kd>-g<gamma>-s<seed>`, then `-option=value` for each other option that changes the result and
    is not the default."""
    o = effective(o)
    default = replace(defaults_of(o), model=default_model(tasks), gamma=o.gamma, seed=o.seed)
    name = f"{'+'.join(tasks)}-{o.method}-{o.kd}-g{o.gamma:g}-s{o.seed}"
    for f in fields(Options):
        value = getattr(o, f.name)
        if f.metadata["kind"] in ("result", "source") and value != getattr(default, f.name):
            if f.name in ("model", "teacher_model"):
                value = hub.in_names(value)
            elif f.name == "continue_":
                value = parent_of(value)[1]
            value = f"{value:g}" if isinstance(value, float) else str(value)
            name += f"-{flag(f.name)[2:]}={re.sub(r'[^A-Za-z0-9._+-]', '_', value)}"
    return name


def teacher_options(o: Options) -> dict:
    """The options that change a teacher, besides its task, data, epochs, row length and the weights it starts from."""
    values = asdict(effective(o))
    return {f.name: values[f.name] for f in fields(Options) if f.metadata["teacher"]}


# ---------------------------------------------------------------------- options of an earlier run


def options_of(config: dict, path: Path) -> Options:
    """The resolved options of a config.json, perhaps of an older version: an option that it lacks has its default.

    path: the file's, for the error. Raises RunError for a value that is none of its option."""
    config = dict(config)
    if "real_replay" in config:  # its name before there was --replay
        config["replay"] = "real" if config["real_replay"] is True else "generated"
    if config.get("replay_loss") == "released":
        config["replay_loss"] = "authors"
    given = {f.name: config[f.name] for f in fields(Options) if f.name in config}
    plain = fill(Options())  # a default that is None here, too, depends on the machine
    for f in fields(Options):
        value, choices = given.get(f.name), f.metadata["choices"]
        right = type(value) in ((int, float) if f.type is float else (f.type,)) and (not choices or value in choices)
        right = right or (value is None and getattr(plain, f.name) is None)
        if f.name in given and not (right and value == value and value not in (math.inf, -math.inf)):
            raise RunError(f"{path}: {f.name} is {value!r:.50}: not the config.json of a run of this version")
    try:
        return fill(Options(**given))
    except ValueError as e:
        raise RunError(f"{path}: not the config.json of a run of this version, here ({e})") from None


def differences(path: Path, config: dict) -> tuple[list[str], list[str]]:
    """In what an earlier try, whose config.json is at `path`, differs from this one: the keys that must be the same but
    are not, and those that change rounding or dropout masks. Raises RunError if the file is no such config.json."""
    before, now = (x | asdict(effective(options_of(x, path))) for x in (read_json(path, dict), config))
    kinds = {f.name: f.metadata["kind"] for f in fields(Options)} | FURTHER
    changed = [key for key in now if before.get(key) != now[key]]
    must = [key for key in changed if kinds.get(key, "result") == "result"]
    return must, [key for key in changed if kinds.get(key) == "rounding"]


def parent_of(run: str) -> tuple[dict, str]:
    """The config.json of a run to be continued, with all of today's options, and 8 hex digits of its SHA-256.

    Raises RunError if the run has not finished, its method is no lifelong learning, or the file is not a run's."""
    path = Path(run).expanduser() / "config.json"
    if not (path.is_file() and path.with_name("summary.json").is_file()):
        raise RunError(f"--continue {run}: no finished run is there; if it was cut off, --resume it first")
    config = read_json(path, dict)
    o = options_of(config, path)
    try:
        tasks = task_names(o.order)
        if config["tasks"] != tasks or not all(isinstance(config["data"][name], str) for name in tasks):
            raise ValueError("its tasks and their data don't fit its order")
    except (ValueError, KeyError, TypeError, IndexError) as e:
        raise RunError(f"{path}: not the config.json of a run of this version, here ({e})") from None
    if o.method not in LIFELONG:
        raise RunError(f"--continue {run}: --method {o.method} learns no task sequence that could go on")
    return config | asdict(o), hashlib.sha256(path.read_bytes()).hexdigest()[:8]


# ---------------------------------------------------------------------- the command line


def parse(argv=None) -> Options:
    """The command line -> resolved options. Exits with 2 and one line for bad usage.

    With --continue, options that are not given are those of the run that is continued, but for paths. Raises RunError
    if that is no such run."""
    parser = build_parser(Options)
    given = parser.parse_args(argv)
    if given.continue_:
        try:
            given.continue_ = typed_path("--continue", given.continue_)
        except ValueError as e:
            parser.error(str(e))
        parent = parent_of(given.continue_)[0]
        inherited = {f.name: parent[f.name] for f in fields(Options)}
        inherited |= {f.name: f.default for f in fields(Options) if f.name in ("data_dir", "cache_dir", "teachers")}
        runs_dir = Path(given.continue_).expanduser().resolve().parent
        inherited |= {"order": "", "runs_dir": str(runs_dir), "resume": False, "continue_": ""}
        parser.set_defaults(**inherited)
        given = parser.parse_args(argv)
        if not given.order:
            parser.error("--continue: --order must name the new tasks")
        given.order = f"{parent['order']},{given.order}"
    try:
        return resolve(Options(**vars(given)))
    except ValueError as e:
        parser.error(str(e))
