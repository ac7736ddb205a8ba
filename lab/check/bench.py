"""Speed and memory, side by side: this project, the usual way of writing L2KD, and an earlier version of the project.

    python -m lab.check.bench                       all parts; well over an hour on two cores
    python -m lab.check.bench step generate         some of them
    python -m lab.check.bench step --against DIR    beside another checkout of the project, e.g. the last release
    python -m lab.check.bench --quick               all of them on a small model, in minutes: do they run?
    python -m lab.check.bench --device cuda         the same on a GPU

Every side does the same work on the same rows, by turns, each measurement in a child process of its own. Weights are
random, except where a model must stop by itself: speed does not depend on them.

Parts   step      an update of 124M on WOZ turns, batch 32: LAMOL (NLL) and Word-KD
        long      Word-KD on rows of 1,024 tokens, batch 2 (with 4 the usual way needs over 23 GB)
        generate  124M, 64 rows: greedy answers to WOZ prompts, pseudo-data; rows end where the real ones do
        nano      pseudo-data from a nano model that has learned to stop
        method    whole runs on nano: the default one, and each method
        growth    stages of eight equal tasks; updates at growing row lengths and vocabularies
        launches  what a GPU would wait for, counted on a CPU: operations of an update, steps of decoding
"""

import argparse
import contextlib
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from statistics import median

import torch

from lab.check.bench_cases import PARTS, ROOT, cases_of
from lab.check.bench_sides import measure
from lab.errors import Parser, RunError, command, expand_paths
from lab.files import write_json
from lab.run.device import choose_device
from lab.tasks import load_task

# ---------------------------------------------------------------------- children


def in_child(case: dict, side: str, device: str, against: str = "", runs: str = "") -> dict:
    """One measurement of a side in a process of its own. Raises RunError with what it printed if it fails.

    "before" is "ours" in the checkout `against`, by the benchmark that it has. runs: what RUNS means in arguments. A
    child that does not measure its memory gets as `peak` its resident bytes, as the system counts them."""
    root, module = ROOT, "lab.check.bench"
    if side == "before":
        root = Path(against)
        module = module if (root / "lab" / "check" / "bench.py").is_file() else "lab.bench"
    case = case | {"side": "usual" if side == "usual" else "ours"}
    case |= {"arguments": [text.replace("RUNS", runs) for text in case.get("arguments", [])]}
    command = [sys.executable, "-m", module, "--device", device, "--case", json.dumps(case)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # the same on every side
    plain = {"mode": "w+", "errors": "replace"}
    with tempfile.TemporaryFile(**plain) as out, tempfile.TemporaryFile(**plain) as err:
        child = subprocess.Popen(command, stdout=out, stderr=err, cwd=root, env=environment)
        _, status, used = os.wait4(child.pid, 0)  # of this child alone
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), err.seek(0)
        lines, printed = out.read().splitlines(), err.read().splitlines()
    if child.returncode:
        why = ((printed or lines)[-1:] or [f"exit code {child.returncode}"])[0]
        raise RunError(f"{case['name']}, {side} in {root}: {why}")
    found = json.loads(lines[-1])
    if "seconds" in found and device == "cpu":
        found = {"peak": 1024 * used.ru_maxrss} | found  # at least what this process had when it started the child
    return found


def compare(case: dict, rounds: int, device: str, against: str, folder: str) -> dict:
    """All sides of a case by turns -> the median of each number, and of the ratios ours / other of each round.

    folder: for the runs of a part. Its cases find there what an earlier one has made in the same round."""
    sides = [side for side in case["sides"] if side != "before" or against]
    if against and "before" in sides:
        sides = ["before", "ours"]  # the usual way has not changed
    found = {side: [] for side in sides}
    for i in range(rounds):
        for side in sides:
            found[side].append(in_child(case | {"seed": i}, side, device, against, f"{folder}/{side}-{i}"))
    result = {"name": case["name"], "dtype": case["dtype"], "rounds": rounds}
    for side, values in found.items():
        result[side] = {key: median(v[key] for v in values) for key in values[0] if key != "stages"}
        result[side] |= {"stages": values[-1]["stages"]} if "stages" in values[0] else {}
    for other in set(sides) - {"ours"}:
        result[f"ratio to {other}"] = ratios(case, list(zip(found["ours"], found[other])))
    return result


def ratios(case: dict, pairs: list[tuple[dict, dict]]) -> dict:
    """Ours / other, the median of the rounds; `spread` is that of the speed, the higher the faster."""
    if case.get("stop") == -1 and any(a["tokens"] != b["tokens"] for a, b in pairs):
        raise RunError(f"{case['name']}: the two sides did not generate as many tokens")
    speeds = [b["seconds"] / a["seconds"] if "seconds" in a else a["rate"] / b["rate"] for a, b in pairs]
    memory = {key: median(a[key] / b[key] for a, b in pairs) for key in ("above", "peak") if key in pairs[0][0]}
    return {"rate": median(speeds), "spread": [min(speeds), max(speeds)]} | memory


# ---------------------------------------------------------------------- the table

HEADER = (
    f"{'':<40} {'ours':>8} {'other':>8} {'speed':>6} {'':13}{'above':>6} {'in all':>7}  "
    f"{'above':>6} {'in all':>6}{'of peak':>8}\n"
    f"{'':<40} {'/s':>8} {'/s':>8} {'ratio':>6} {'':13}{'ratio':>6} {'ratio':>7}  {'GB':>6} {'GB':>6}{'ours':>8}"
)


def line_of(result: dict, peaks: dict) -> str:
    """One line of the table. other: the usual way, or with --against the earlier version."""
    ours, head = result["ours"], f"{result['name']:<30} {result['dtype']:<9}"
    other = next((side for side in ("before", "usual") if side in result), "")
    if "stages" in ours:
        return f"{head} " + "; ".join(stages_of(ours))
    if "seconds" in ours:
        return f"{head} " + ", ".join(run_of(result, other))
    if "rate" not in ours:
        return f"{head} " + ", ".join(f"{name} {n:g}" for name, n in ours.items())
    text = f"{head} {ours['rate']:8.1f} "
    if other:
        ratio = result[f"ratio to {other}"]
        low, high = ratio["spread"]
        text += f"{result[other]['rate']:8.1f} {ratio['rate']:6.2f} ({low:.2f}-{high:.2f}) "
        text += f"{ratio['above']:6.2f} {ratio['peak']:7.2f}  "
    else:
        text += " " * 47
    text += f"{ours['above'] / 1e9:6.2f} {ours['peak'] / 1e9:6.2f}"
    if "flops" in ours and result["dtype"] in peaks:
        text += f"{ours['flops'] / peaks[result['dtype']]:8.0%}"
    return text


def run_of(result: dict, other: str) -> list[str]:
    """A whole run: seconds and memory, and both beside the other side's."""
    ours, peak = result["ours"], f"{result['ours'].get('peak', 0) / 1e9:.2f} GB"
    texts = [f"{ours['seconds']:8.1f} s", *([peak] if "peak" in ours else [])]
    if other:
        ratio = result[f"ratio to {other}"]
        low, high = ratio["spread"]
        texts.append(f"{other} {result[other]['seconds']:.1f} s, speed {ratio['rate']:.2f} ({low:.2f}-{high:.2f})")
        texts += [f"memory in all {ratio['peak']:.2f}"] if "peak" in ratio else []
    return texts


def stages_of(ours: dict) -> list[str]:
    """Growth: what some of the stages took."""
    stages = sorted((int(m), s) for m, s in ours["stages"].items())
    return [
        f"after {m - 1}: sampling {s['sampling']:.1f} s, learning {s['learning']:.1f} s, {s['peak'] / 1e9:.2f} GB"
        for m, s in stages
        if m in (2, 4, 8)
    ]


def processor() -> str:
    """The processor's name, where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


# ---------------------------------------------------------------------- the command line


@command()
def main(argv=None) -> None:
    """The command line: exit code 0, 1 when a measurement failed, 2 for bad usage."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", help=f"{', '.join(PARTS)}; default all")
    parser.add_argument("--quick", action="store_true", help="small models, one round: do all parts run?")
    parser.add_argument("--against", default="", metavar="DIR", help="another checkout, in place of the usual way")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each side, by turns (default 3)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--data-dir", default="~/.cache/l2kd/raw", help="where WOZ is, as for train.py")
    parser.add_argument("--cache-dir", default="~/.cache/l2kd", help="prepared data, as for train.py")
    parser.add_argument("--json", help="a file for the measurements")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # a child's measurement
    a = parser.parse_args(argv)
    expand_paths(a, parser, "against", "data_dir", "cache_dir", "json")
    if wrong := next((part for part in a.parts if part not in PARTS), None):
        parser.error(f"part {wrong!r}: {', '.join(PARTS)}")
    if a.rounds < 1:
        parser.error(f"--rounds {a.rounds}: must be 1 or more")
    if a.against and not (Path(a.against) / "train.py").is_file():
        parser.error(f"--against {a.against}: no checkout of this project")
    device = choose_device(a.device)[0]
    if device.type not in ("cpu", "cuda") or device.index:
        raise RunError(f"--device {a.device}: measured are cpu and cuda")
    if a.case:
        print(json.dumps(measure(json.loads(a.case), device)))
    else:
        bench(a, device)


def bench(a, device) -> None:
    """Measure the parts that were asked for, print the table as it grows, write the JSON."""
    where = {key: str(Path(getattr(a, key)).expanduser().absolute()) for key in ("data_dir", "cache_dir")}
    parts = a.parts or PARTS
    if {"step", "generate"} & set(parts):
        load_task("woz", **where, limit=1)  # if it is missing, say so before anything is measured
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    print(f"{date.today()}, {name}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    plain = {"what": "peak", "name": "matrix product"}
    peaks = {
        dtype: in_child(plain | {"dtype": dtype}, "ours", str(device))["flops"] for dtype in ("float32", "bfloat16")
    }
    print("matrix product: " + ", ".join(f"{dtype} {x / 1e12:.2f} TFLOP/s" for dtype, x in peaks.items()))
    print(HEADER)
    head = {"date": str(date.today()), "machine": name, "torch": torch.__version__, "peak": peaks}
    head |= {"threads": torch.get_num_threads()}
    results = []
    for part in parts:
        with tempfile.TemporaryDirectory() as folder:
            with contextlib.redirect_stdout(io.StringIO()):
                cases = cases_of(part, a.quick, folder, where, str(device))
            for case in cases:
                if a.against and "before" not in case["sides"]:
                    continue
                rounds = 1 if a.quick or case["what"] in ("growth", "launches") else a.rounds
                results.append(compare(case, rounds, str(device), a.against, folder) | {"part": part})
                print(line_of(results[-1], peaks), flush=True)
                if a.json:
                    write_json(Path(a.json), head | {"results": results})


if __name__ == "__main__":
    sys.exit(main())
