"""A run directory: its name, its lock, atomic files, checkpoints, interruptions, and the random streams of a run.

runs/woz+sql+cnn-lamol-word-g0.2-s0/     its files are listed under "What is logged" in the README
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import stat
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lab import ranks


class RunError(ValueError):
    """A run that can't start or go on; the message says why and what to do."""


# ---------------------------------------------------------------------- random streams


def seed_of(seed: int, stage: int, task: str, phase: str, epoch: int = 0) -> int:
    """One seed for each phase of a run: nothing random is carried from one phase to the next, so that a phase can be
    run again, or left out, without changing any other."""
    digest = hashlib.sha256(json.dumps([seed, stage, task, phase, epoch]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # 63 bits


def stream(seed: int, stage: int, task: str, phase: str, epoch: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(seed, stage, task, phase, epoch))


# ---------------------------------------------------------------------- names


def run_name(tasks: list[str], options: dict, defaults: dict) -> str:
    """`<tasks>-<method>-<kd>-g<gamma>-s<seed>`, then `-option=value` for each other option that differs from its
    default. Options that don't change the result are not in `defaults`."""
    o = options
    name = f"{'+'.join(tasks)}-{o['method']}-{o['kd']}-g{o['gamma']:g}-s{o['seed']}"
    for key, value in options.items():
        if key in defaults and value != defaults[key]:
            value = Path(value).name if key == "model" else f"{value:g}" if isinstance(value, float) else value
            name += f"-{key.replace('_', '-')}={re.sub(r'[^A-Za-z0-9._+-]', '_', str(value))}"
    return name


def key_of(value) -> str:
    """A short hash of plain JSON values, the same in every process."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def writable(option: str, folder: str) -> None:
    """Raises RunError, which names the option, where a folder can't be made and written to."""
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as e:
        raise RunError(f"{option} {folder}: can't be written to ({e.strerror})") from None


def open_run(runs_dir: str, name: str, resume: bool = False):
    """The directory of a run, made if it is not there, and its lock, which rank 0 holds until it ends.

    Raises RunError where another process holds it, where it is used and not to be resumed, or can't be written."""
    path = Path(runs_dir).expanduser() / name
    if ranks.rank() > 0:
        return path, None
    try:
        path.mkdir(parents=True, exist_ok=True)
        held = lock(path)
        used = [p for p in path.rglob("*") if p != path / "lock"]
        if used and not resume:
            (path / "lock").unlink()
            raise RunError(f"{path} is used already: --resume goes on with it; or delete it, or choose another --seed")
        for p in used:  # through a link, what is written would be elsewhere
            if p.is_symlink() or not (p.is_file() or p.is_dir()):
                raise RunError(f"{p} is a link or a device: the directory of a run holds none; remove it")
        for p in path.glob("**/.*"):  # what a kill left half-written
            shutil.rmtree(p) if p.is_dir() else p.unlink()
    except OSError as e:
        raise RunError(f"--runs-dir {runs_dir}: can't write {path} ({e.strerror})") from None
    return path, held


def lock(run: Path):
    """The run's lock, held until this process ends. Raises RunError where another process holds it."""
    f = lock_file(run / "lock")
    try:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError(f"{run}: another process is making this run") from None
    return f


def lock_file(path: Path):
    """An open file to lock, made if it is not there. Raises RunError where it is a link or a device."""
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        raise RunError(f"{path} is no regular file; remove it")
    no_link_no_wait = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    return os.fdopen(os.open(path, no_link_no_wait, 0o644), "r+")


@contextmanager
def one_at_a_time(path: Path):
    """Whoever makes `path`, which several may want, does so alone: others wait here, and look again then. Yields the
    seconds that were waited."""
    if ranks.rank() > 0:
        yield 0.0
        return
    began = time.time()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        raise RunError(f"{path} is a link; remove it")
    name = path.with_name(f".{path.name}.lock")
    with lock_file(name) as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting  for {path}, which another process is making", flush=True)
            fcntl.flock(f, fcntl.LOCK_EX)
        for p in path.parent.glob(f".{path.name}.*.*"):  # what a kill left half-written
            shutil.rmtree(p, ignore_errors=True)
        yield time.time() - began
        if path.exists():  # whoever comes now finds it
            name.unlink(missing_ok=True)


def differences(path: Path, config: dict, ignored: set[str]) -> list[str]:
    """The keys of `config` that the config.json of an earlier try has otherwise. Raises RunError without one."""
    if not path.exists():
        raise RunError(f"{path} is missing, so nobody knows with which options this run was made; delete its directory")
    before = read_json(path, dict)
    now = json.loads(json.dumps(config))  # as it would be read
    return [key for key in now if key not in ignored and before.get(key) != now[key]]


# ---------------------------------------------------------------------- atomic files


@contextmanager
def replacing(path: Path):
    """A temporary name in the same folder, synced and renamed to `path` in the end: all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """On the disk: a file's bytes, or a folder's names."""
    f = os.open(path, os.O_RDONLY)
    try:
        os.fsync(f)
    finally:
        os.close(f)


@ranks.by_rank_0
def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, kind=object):
    """Raises RunError, which names the file, where it is no JSON of this kind."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ValueError("no regular file")
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, kind):
            raise ValueError(f"a {kind.__name__} is expected")
        return value
    except (ValueError, RecursionError) as e:
        raise RunError(f"{path}: cut off or not JSON ({e}); delete its folder to make it anew") from None


def write_jsonl(path: Path, rows) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


@ranks.by_rank_0
def append_jsonl(path: Path, row: dict) -> None:
    with open(path, "a", encoding="utf-8", newline="\n") as f:
        f.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_jsonl(path: Path, **types) -> list[dict]:
    """Raises RunError, which names the file, where a line is no JSON object, or lacks a value of one of the types."""
    try:
        text = path.read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.split("\n") if line]  # a text may hold other line separators
        for row in rows:
            for key, kind in types.items():
                if not isinstance(row[key], kind):
                    raise ValueError(f"{key} is {row[key]!r:.50}")
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise RunError(f"{path}: cut off or not the JSON lines of a run ({e!r:.200})") from None
    return rows


def read_scores(run: Path) -> list[dict]:
    """The lines of a run's scores.jsonl. Raises RunError where they can't be read."""
    rows = read_jsonl(run / "scores.jsonl", stage=int, epoch=int, task=str, score=int | float)
    for row in rows:
        if not (0 <= row["stage"] < 10**6 and 0 <= row["epoch"] < 10**6 and 0 <= row["score"] < 100.5):
            raise RunError(f"{run / 'scores.jsonl'}: no line of scores: {str(row)[:200]}")
    return rows


@ranks.by_rank_0
def write_folder(path: Path, fill) -> None:
    """A whole folder, all or nothing: `fill(folder)` writes under a temporary name, which then takes the old one's
    place. A finished folder never lacks a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (path.with_name(f".{path.name}.{kind}.{os.getpid()}") for kind in ("new", "old"))
    try:
        fill(temporary)
        for file in (*temporary.rglob("*"), temporary):
            sync(file)
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


# ---------------------------------------------------------------------- checkpoints

LOGS = ("scores.jsonl", "log.jsonl")  # they grow by a line at a time; a checkpoint holds them as they were


@ranks.by_rank_0
def save_checkpoint(run: Path, state: dict, model, optimizer=None) -> None:
    """`checkpoint/<n>.safetensors`: weights, the optimizer's moments, the logs, and `state` (see STATE) in one file.

    Kept are the last two, and the last two of a stage's end, which the next stage starts from: so there is always one
    before the last."""
    tensors = {f"model.{key}": p.detach().cpu() for key, p in model.state_dict().items()}
    moments = optimizer.state_dict()["state"] if optimizer else {}
    for i, values in moments.items():
        tensors |= {f"optimizer.{i}.{key}": value.cpu() for key, value in values.items()}
    for name in LOGS:
        written = (run / name).read_bytes() if (run / name).exists() else b""
        tensors[name] = torch.from_numpy(np.frombuffer(written, np.uint8).copy())
    folders = (folder for m in range(1, state["stages"] + 1) for folder in run.glob(f"{m}-*"))
    files = {str(p.relative_to(run)): p.stat().st_size for f in folders for p in f.rglob("*") if p.is_file()}
    state = state | {"files": files, "moments": len(moments)}
    there = checkpoints(run)
    number = int(there[-1].name.split(".")[0]) + 1 if there else 1
    path = run / "checkpoint" / f"{number:06}{'' if state['phase'] else '.end'}.safetensors"
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={"state": json.dumps(state)})
    except SafetensorError as e:  # that is how it says that the disk is full
        raise OSError(f"{path}: {e}") from None
    there.append(path)
    ends = [p for p in there if p.name.endswith(".end.safetensors")]
    for p in there[:-2]:
        if p not in ends[-2:]:
            p.unlink()


STATE = {  # of a checkpoint: what, and whether that is right
    "stages": lambda x: type(x) is int and 0 <= x < 10**6,  # that are done
    "stage": lambda x: type(x) is int and 0 <= x < 10**6,
    "phase": lambda x: x in ("", "teacher", "student"),  # "" at a stage's end
    "name": lambda x: isinstance(x, str),
    "epoch": lambda x: type(x) is int and 0 <= x < 10**6,  # that is over
    "seen": lambda x: type(x) is int and 0 <= x < 10**12,  # samples
    "said": lambda x: isinstance(x, str),
    "seconds": lambda x: type(x) is float and 0 <= x < 1e9,  # of all tries
    "phase_seconds": lambda x: type(x) is float and 0 <= x < 1e9,
    "teacher_times": lambda x: all(t is None or 0 <= t < 1e9 for t in x.values()),
    "made_here": lambda x: all(0 <= t < 1e9 for t in x.values()),
    "scaler": lambda x: all(0 <= n < 1e30 for n in x.values()),
    "moments": lambda x: type(x) is int and x >= 0,  # parameters that the optimizer has moments of
    "files": lambda x: all(type(size) is int for size in x.values()),  # of the stages that are done, and their sizes
}


def checkpoints(run: Path) -> list[Path]:
    """The files, the oldest first."""
    return sorted(p for p in run.glob("checkpoint/*.safetensors") if re.fullmatch(r"\d{6}(\.end)?", p.name[:-12]))


def read_checkpoint(path: Path, most: int = 2**40) -> tuple[dict, dict]:
    """Its state and its tensors. Raises RunError when it is not whole, not right, or has more than `most` bytes."""
    try:
        if path.stat().st_size > most:
            raise ValueError("it is far larger than this run's can be")
        with safe_open(path, "pt") as f:
            state, tensors = json.loads(f.metadata()["state"]), {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
        if wrong := [key for key, right in STATE.items() if not right(state[key])]:
            raise ValueError(f"{wrong[0]} is {state[wrong[0]]!r:.50}")
        for name, tensor in tensors.items():
            if tensor.dtype != (torch.uint8 if name in LOGS else torch.float32) or (name in LOGS and tensor.dim() != 1):
                raise ValueError(f"{name} is of {tensor.dtype}")
        if not set(LOGS) <= set(tensors):
            raise ValueError("it has no logs")
        return state, tensors
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as e:
        raise RunError(f"{path} does not load ({str(e)[:200]})") from None


def last_checkpoint(run: Path, based: bool, most: int = 2**40):
    """The last checkpoint that loads, and the stage's end that it starts from (None in the first stage, or if not
    `based`: where stages don't build on each other). Each is (state, tensors), or None.

    The logs are cut back to it. Raises RunError where another file of a stage that was done is not whole any more."""
    found = base = None
    for path in reversed(checkpoints(run)):
        try:
            state, tensors = read_checkpoint(path, most)
        except RunError as e:
            print(f"WARNING: {e}; the one before is taken")
            if ranks.rank() == 0:
                path.replace(path.with_suffix(".broken"))
            continue
        if found and state["stages"] < found[0]["stages"]:
            print(f"WARNING: {run}: the end of stage {found[0]['stages']} is lost; from further back")
            found = None
        found = found or (state, tensors)
        if not state["phase"]:
            base = state, tensors
        if base or not (based and state["stages"]):
            break
    else:  # the stage's end that `found` starts from was nowhere
        found = None
    for name, size in found[0]["files"].items() if found else ():
        if not (run / name).is_file() or (run / name).stat().st_size != size:
            raise RunError(f"{run / name} is not as it was written; bring it back, or delete {run} to start anew")
    for name in LOGS:
        restore_log(run / name, found[1][name] if found else None)
    return found, base


@ranks.by_rank_0
def restore_log(path: Path, kept) -> None:
    """As the checkpoint has it, or gone without one."""
    written = path.read_bytes() if path.exists() else b""
    if written and not written.endswith(b"\n"):
        print(f"{path}: its last line was torn; repaired")
    if kept is None:
        path.unlink(missing_ok=True)
    elif written != (before := kept.numpy().tobytes()):
        with replacing(path) as temporary:
            temporary.write_bytes(before)


# ---------------------------------------------------------------------- interruptions


class Interruption:
    """SIGINT and SIGTERM as a KeyboardInterrupt, which waits for the end of a training step; a second signal does not
    wait. `code`: what the process exits with."""

    code, waiting, came = 130, False, False

    @contextmanager
    def caught(self):
        """Signals in this block come here; Python allows that in the main thread only."""
        before, main = {}, threading.current_thread() is threading.main_thread()
        for number in (signal.SIGINT, signal.SIGTERM) if main else ():
            before[number] = signal.signal(number, self.handle)
        self.came = False
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle(self, number, frame):
        second, self.came, self.code = self.came, True, 128 + number
        if second or not self.waiting:
            raise KeyboardInterrupt

    def between(self, steps):
        """The steps, one after another; an interruption waits until one is over."""
        self.waiting = True
        try:
            for step in steps:
                yield step
                if self.came:
                    raise KeyboardInterrupt
        finally:
            self.waiting = False


interruption = Interruption()
