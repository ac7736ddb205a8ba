"""What becomes of runs that are killed, stopped, damaged, out of disk, started twice, or fed garbage.

    python -m lab.check.faults                        all of them, the long way: about an hour on two cores
    python -m lab.check.faults kill --rounds 3        25 random kills of each KD variant by default
    python -m lab.check.faults fuzz --data-dir DIR    20,000 mutations of the real files below DIR, of models, of runs

A run counts as survived when it ends after as many tries with --resume as it was cut off, and as identical when its
weights, scores, predictions, pseudo-data and teachers' answers are those of the unbroken run, byte for byte.
"""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

from lab.check.fuzz import fuzz
from lab.errors import Parser, command, expand_paths
from lab.files import read_jsonl, write_json
from lab.run.checkpoint import checkpoints

PARTS = ("kill", "stop", "damage", "disk", "twice", "fuzz")
VARIANTS = {kd: ["--kd", kd] for kd in ("none", "word", "seq", "seqsoft")}
SMALL = ["--order", "toy.woz,toy.ag", "--limit", "40", "--epochs", "3", "--gamma", "0.5", "--device", "cpu"]
SMALL += ["--checkpoint-every", "0"]  # so that a kill is at any distance from one
ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


class Lab:
    """Runs of one variant below one folder."""

    def __init__(self, folder: Path, variant: str):
        self.folder, self.options = folder, SMALL + VARIANTS[variant]
        process = self.until("unbroken", lambda run: True)
        began, message = time.time(), process.communicate()[1]
        if process.returncode:
            raise SystemExit(f"error: the unbroken run failed: {message}")
        self.seconds, self.wanted = time.time() - began, self.result("unbroken")  # since it had a directory

    def start(self, runs: str, *more, **keywords):
        """The process of a run in <folder>/<runs>."""
        command = [sys.executable, str(ROOT / "train.py"), *self.options, "--runs-dir", str(self.folder / runs), *more]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=ENVIRONMENT, **pipes, **keywords)

    def run(self, runs: str, *more, **keywords) -> tuple[int, str]:
        """A whole run -> its exit code, and what it printed on stderr."""
        process = self.start(runs, *more, **keywords)
        message = process.communicate()[1]
        return process.returncode, message.strip()

    def directory(self, runs: str) -> Path | None:
        """The run's directory, if it has been made."""
        return next((p for p in (self.folder / runs).glob("*-lamol-*") if p.is_dir()), None)

    def result(self, runs: str) -> dict:
        """What must be identical: the bytes of every file but for times, and the losses."""
        run, left_out = self.directory(runs), ("config.json", "summary.json", "log.jsonl", "curves.png")
        files = {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}
        found = {name: content for name, content in files.items() if name not in left_out}
        log = [{k: v for k, v in line.items() if k != "tokens_per_s"} for line in read_jsonl(run / "log.jsonl")]
        log = [line for line in log if line["phase"] == "student"]  # a teacher may have been loaded, not trained
        return found | {"log": log, "summary": "summary.json" in files}

    def until(self, runs: str, condition) -> subprocess.Popen:
        """A run that is under way, once the condition of its directory holds; its process goes on."""
        process = self.start(runs)
        while process.poll() is None and not ((run := self.directory(runs)) and condition(run)):
            time.sleep(0.01)
        return process


def half_way(run: Path) -> bool:
    """The second task's student has learned for an epoch."""
    return (run / "2-toy.ag" / "pseudo.jsonl").exists() and not checkpoints(run)[-1].name.endswith(".end.safetensors")


def kill(lab: Lab, rounds: int, r: random.Random, number=signal.SIGKILL) -> dict:
    """Send a signal at random moments, and resume, until as many have hit; some runs are hit several times."""
    count = dict.fromkeys(("hits", "runs", "survived", "identical", "clear"), 0)
    while count["hits"] < rounds:
        name, clear = f"{number.name}-{count['runs']}", True
        count["runs"] += 1
        for attempt in range(100):
            process = lab.start(name, *(["--resume"] if attempt else []))
            while process.poll() is None and not lab.directory(name):
                time.sleep(0.01)
            hit = False
            if count["hits"] < rounds and attempt < (3 if number == signal.SIGKILL else 1):  # not while it imports
                try:
                    process.wait(r.uniform(0, lab.seconds))
                except subprocess.TimeoutExpired:
                    process.send_signal(number)
                    hit = True
            message = process.communicate()[1].strip()
            if process.returncode == 0:
                break
            count["hits"] += hit
            if number == signal.SIGKILL:
                good = process.returncode == -number
            else:  # the last moments of a process, when all is done, are Python's own
                good = process.returncode == 128 + number and message.startswith("interrupted") and "\n" not in message
                good = good or (lab.directory(name) / "summary.json").exists()
            if not (hit and good):
                print(f"    ended with {process.returncode}: {message}")
                clear = False
            if not hit:
                break
        count["survived"] += process.returncode == 0
        count["identical"] += process.returncode == 0 and lab.result(name) == lab.wanted
        count["clear"] += clear
        shutil.rmtree(lab.folder / name)
    return count | {"bad": 2 * count["runs"] - count["identical"] - count["clear"]}


def damage(lab: Lab, r: random.Random) -> dict:
    """Delete, truncate or empty each file of a run that was killed half-way, and of its teachers, in turn."""
    process = lab.until("damaged", half_way)
    process.kill()
    process.communicate()
    count = dict.fromkeys(("files", "identical", "refused", "bad"), 0)
    files = [p for p in sorted((lab.folder / "damaged").rglob("*")) if p.is_file() and p.name != "lock"]
    for path in files:
        for how in ("deleted", "truncated", "emptied"):
            shutil.copytree(lab.folder / "damaged", lab.folder / "copy")
            copy = lab.folder / "copy" / path.relative_to(lab.folder / "damaged")
            if how == "deleted":
                copy.unlink()
            else:
                os.truncate(copy, 0 if how == "emptied" else r.randrange(copy.stat().st_size))
            code, message = lab.run("copy", "--resume")
            identical = code == 0 and lab.result("copy") == lab.wanted
            refused = code == 1 and message.startswith("error: ") and len(message.splitlines()) == 1
            count["files"] += 1
            count["identical"] += identical
            count["refused"] += refused
            if not identical and not refused:
                count["bad"] += 1
                print(f"    {path.name} {how}: {code}, {message[-300:]}")
            shutil.rmtree(lab.folder / "copy")
    return count


def disk(lab: Lab, r: random.Random) -> dict:
    """No file may grow beyond a limit: at the first checkpoint, later ones, a teacher's, or the log."""
    count = dict.fromkeys(("runs", "clear", "identical"), 0)
    process = lab.until("full", half_way)
    process.kill()
    process.communicate()
    for started in (False, True):
        for limit in (2**12, 2**20, 2**22, 2**23):
            if started:
                shutil.copytree(lab.folder / "full", lab.folder / "copy")
            last = checkpoints(lab.directory("copy"))[-1].read_bytes() if started else b""

            def limited(limit=limit):
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

            more = ["--resume"] if started else []
            code, message = lab.run("copy", *more, preexec_fn=limited)
            kept = [p.read_bytes() for p in checkpoints(lab.directory("copy"))] if started else []
            count["runs"] += 1
            count["clear"] += code == 1 and message.startswith("error: ") and len(message.splitlines()) == 1
            code, message = lab.run("copy", "--resume")
            count["identical"] += code == 0 and lab.result("copy") == lab.wanted and (not started or last in kept)
            shutil.rmtree(lab.folder / "copy")
    return count | {"bad": 2 * count["runs"] - count["clear"] - count["identical"]}


def twice(lab: Lab, r: random.Random) -> dict:
    """A second process in the same directory, with and without --resume, while the first is at work."""
    process = lab.until("twice", lambda run: (run / "config.json").exists())
    os.kill(process.pid, signal.SIGSTOP)
    answers = [lab.run("twice"), lab.run("twice", "--resume")]
    os.kill(process.pid, signal.SIGCONT)
    process.communicate()
    refused = sum(code == 1 and "another process is making this run" in message for code, message in answers)
    identical = int(lab.result("twice") == lab.wanted)
    return {"tries": 2, "refused": refused, "identical": identical, "bad": 3 - refused - identical}


@command()
def main(argv=None) -> int:
    """The command line: exit code 1 where something was lost."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", help=f"{', '.join(PARTS)}; default all")
    parser.add_argument("--rounds", type=int, default=25, help="signals a KD variant (default %(default)s)")
    parser.add_argument("--inputs", type=int, default=20000, help="mutated inputs in all (default %(default)s)")
    parser.add_argument("--data-dir", default="~/.cache/l2kd/raw", help="real files to mutate (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and mutations (default %(default)s)")
    parser.add_argument("--json", help="a file for the counts")
    o = parser.parse_args(argv)
    expand_paths(o, parser, "data_dir", "json")
    if wrong := next((part for part in o.parts if part not in PARTS), None):
        parser.error(f"part {wrong!r}: {', '.join(PARTS)}")
    if min(o.rounds, o.inputs) < 1:
        parser.error("--rounds and --inputs: must be 1 or more")
    r, found = random.Random(o.seed), {"date": str(date.today()), "torch": torch.__version__, "seed": o.seed}
    for part in o.parts or PARTS:
        variants = ("",) if part == "fuzz" else VARIANTS if part in ("kill", "stop") else ("seqsoft",)
        for variant in variants:
            with tempfile.TemporaryDirectory() as folder:
                if part == "fuzz":
                    count = fuzz(o.inputs, Path(o.data_dir).expanduser(), Path(folder), r)
                else:
                    lab = Lab(Path(folder), variant)
                    if part in ("kill", "stop"):
                        number = signal.SIGKILL if part == "kill" else r.choice((signal.SIGINT, signal.SIGTERM))
                        count = kill(lab, o.rounds if part == "kill" else -(-o.rounds // 5), r, number)
                    else:
                        count = {"damage": damage, "disk": disk, "twice": twice}[part](lab, r)
            name = f"{part} {variant}".strip()
            found[name] = count
            print(f"{name:<14} " + ", ".join(f"{n} {what}" for what, n in count.items()), flush=True)
            if o.json:
                write_json(Path(o.json), found)
    return int(any(count["bad"] for count in found.values() if isinstance(count, dict)))


if __name__ == "__main__":
    sys.exit(main())
