"""A run directory: its name, atomic files, and the random streams of a run.

runs/woz+sql+cnn-lamol-word-g0.2-s0/     its files are listed under "What is logged" in the README
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import torch


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
        write_text(path / "probe", "")
        (path / "probe").unlink()
    except OSError as e:
        raise RunError(f"{option} {folder}: can't be written to ({e.strerror})") from None


def new_run(runs_dir: str, name: str) -> Path:
    """A fresh directory for a run. Raises RunError when it is used already, or can't be written."""
    path = Path(runs_dir).expanduser() / name
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise RunError(f"{path} is used already; delete it, or choose another --runs-dir or --seed")
        write_text(path / "config.json", "")
        (path / "config.json").unlink()
    except OSError as e:
        raise RunError(f"--runs-dir {runs_dir}: can't write {path} ({e.strerror})") from None
    return path


def lock(run: Path):
    """The run's lock, held until this process ends. Raises RunError where another process holds it."""
    f = open(run / "lock", "a")  # noqa: SIM115
    try:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise RunError(f"{run}: another process is making this run") from None
    return f


# ---------------------------------------------------------------------- atomic files


def write_text(path: Path, text: str) -> None:
    """All or nothing: a temporary name in the same folder, synced, renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path):
    """Raises RunError, which names the file, where it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise RunError(f"{path}: cut off or not JSON ({e}); delete its folder to make it anew") from None


def write_jsonl(path: Path, rows) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_jsonl(path: Path, row: dict) -> None:
    with open(path, "a", encoding="utf-8", newline="\n") as f:
        f.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> list[dict]:
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]  # a text may hold other line separators


def write_folder(path: Path, fill) -> None:
    """A whole folder, all or nothing: `fill(folder)` writes under a temporary name, which then takes the old one's
    place. A finished folder never lacks a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (path.with_name(f".{path.name}.{kind}.{os.getpid()}") for kind in ("new", "old"))
    try:
        fill(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as f:
                    os.fsync(f.fileno())
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
