"""Checkpoints: one safetensors file each, which --resume goes on from, bit for bit.

    checkpoint/000004.safetensors        after an epoch, if it is time: weights, the optimizer's moments
    checkpoint/000005.end.safetensors    after a stage, from which the next one starts

Each also holds the logs as they were, `run.kept`, and a `state` of plain JSON values (see STATE).
"""

import json
import re
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lab.errors import RunError
from lab.files import replacing
from lab.run.ranks import is_main_process, on_main_process

LOGS = ("scores.jsonl", "log.jsonl")  # they grow a line at a time, so a checkpoint holds them as they were


def is_count(x, most=10**6) -> bool:
    return type(x) is int and 0 <= x < most


def is_time(x) -> bool:
    return type(x) is float and 0 <= x < 1e9


STATE = {  # key -> whether its value can be right
    "stages": is_count,  # finished ones
    "stage": is_count,
    "phase": lambda x: x in ("", "teacher", "student"),  # "" at the end of a stage
    "name": lambda x: isinstance(x, str),  # of the phase's task
    "epoch": is_count,  # finished ones of the phase
    "samples_seen": lambda x: is_count(x, 10**12),
    "steps": lambda x: is_count(x, 10**12),  # of the optimizer
    "said": lambda x: isinstance(x, str),  # where this is, in words
    "seconds": is_time,  # of all tries
    "phase_seconds": is_time,
    "teacher_times": lambda x: all(t is None or 0 <= t < 1e9 for t in x.values()),
    "made_here": lambda x: all(0 <= t < 1e9 for t in x.values()),
    "scaler": lambda x: all(0 <= n < 1e30 for n in x.values()),
    "moments": is_count,  # parameters that the optimizer has moments of
    "kept": lambda x: all(isinstance(device, str) for device in x.values()),  # name -> the type of its device
    "files": lambda x: all(type(size) is int for size in x.values()),  # of the finished stages -> bytes
}

# ---------------------------------------------------------------------- writing


@on_main_process
def save_checkpoint(run: Path, state: dict, model, optimizer=None, kept=None) -> None:
    """Write one more checkpoint. It adds `moments`, `kept` and `files` to the state.

    The last two stay, and the last two of a stage's end, so that there is always one before the last."""
    kept = kept or {}
    tensors = {f"model.{key}": p.detach().cpu() for key, p in model.state_dict().items()}
    moments = optimizer.state_dict()["state"] if optimizer else {}
    for i, values in moments.items():
        tensors |= {f"optimizer.{i}.{key}": value.cpu() for key, value in values.items()}
    tensors |= {f"kept.{key}": x.detach().cpu().clone().contiguous() for key, x in kept.items()}  # none shares memory
    for name in LOGS:
        written = (run / name).read_bytes() if (run / name).exists() else b""
        tensors[name] = torch.from_numpy(np.frombuffer(written, np.uint8).copy())
    folders = (folder for m in range(1, state["stages"] + 1) for folder in run.glob(f"{m}-*"))
    files = {str(p.relative_to(run)): p.stat().st_size for f in folders for p in f.rglob("*") if p.is_file()}
    devices = {key: x.device.type for key, x in kept.items()}
    state = state | {"files": files, "moments": len(moments), "kept": devices}
    there = checkpoints(run)
    number = int(there[-1].name.split(".")[0]) + 1 if there else 1
    path = run / "checkpoint" / f"{number:06}{'' if state['phase'] else '.end'}.safetensors"
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={"state": json.dumps(state)})
    except SafetensorError as e:  # a full disk, for example
        raise OSError(f"{path}: {e}") from None
    there.append(path)
    ends = [p for p in there if p.name.endswith(".end.safetensors")]
    for p in there[:-2]:
        if p not in ends[-2:]:
            p.unlink()


# ---------------------------------------------------------------------- reading


def checkpoints(run: Path) -> list[Path]:
    """The files, the oldest first."""
    return sorted(p for p in run.glob("checkpoint/*.safetensors") if re.fullmatch(r"\d{6}(\.end)?", p.name[:-12]))


def read_checkpoint(path: Path, most: int = 2**40) -> tuple[dict, dict]:
    """Its state and its tensors. Raises RunError if it is cut off, wrong, or has more than `most` bytes."""
    try:
        if path.stat().st_size > most:
            raise ValueError("it is far larger than this run's can be")
        with safe_open(path, "pt") as f:
            names = f.keys()
            state, tensors = json.loads(f.metadata()["state"]), {key: f.get_tensor(key) for key in names}
        if wrong := [key for key, right in STATE.items() if not right(state[key])]:
            raise ValueError(f"{wrong[0]} is {state[wrong[0]]!r:.50}")
        for name, tensor in tensors.items():
            log = name in LOGS
            if (log and tensor.dim() != 1) or not (
                name.startswith("kept.") or tensor.dtype == (torch.uint8 if log else torch.float32)
            ):
                raise ValueError(f"{name} is of {tensor.dtype} and shape {tuple(tensor.shape)}")
        if missing := {*LOGS, *(f"kept.{key}" for key in state["kept"])} - tensors.keys():
            raise ValueError(f"{min(missing)} is missing")
        return state, tensors
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as e:
        raise RunError(f"{path} does not load ({str(e)[:200]})") from None


def last_checkpoint(run: Path, based: bool, most: int = 2**40):
    """The last checkpoint that loads, and the end of the stage before it: (state, tensors) each, or None.

    The second one is None in the first stage, or if the stages don't build on each other (not `based`). A file that
    does not load is renamed. The logs become what they were. Raises RunError if a file of a finished stage is not as
    it was written."""
    found = base = None
    for path in reversed(checkpoints(run)):
        try:
            state, tensors = read_checkpoint(path, most)
        except RunError as e:
            print(f"WARNING: {e}; the one before is taken")
            if is_main_process():
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
    else:  # the end of the stage that `found` starts from was nowhere
        found = None
    for name, size in found[0]["files"].items() if found else ():
        if not (run / name).is_file() or (run / name).stat().st_size != size:
            raise RunError(f"{run / name} is not as it was written; bring it back, or delete {run} to start anew")
    for name in LOGS:
        restore_log(run / name, found[1][name] if found else None)
    return found, base


@on_main_process
def restore_log(path: Path, kept) -> None:
    """Make a log what the checkpoint says, or delete it without one."""
    written = path.read_bytes() if path.exists() else b""
    if written and not written.endswith(b"\n"):
        print(f"{path}: its last line was torn; repaired")
    if kept is None:
        path.unlink(missing_ok=True)
    elif written != (before := kept.numpy().tobytes()):
        with replacing(path) as temporary:
            temporary.write_bytes(before)


# ---------------------------------------------------------------------- tensors back into a model


def weights_of(tensors: dict) -> dict:
    """The model's weights in a checkpoint."""
    return {name.removeprefix("model."): p for name, p in tensors.items() if name.startswith("model.")}


def kept_of(state: dict, tensors: dict, device: torch.device) -> dict:
    """What hooks had kept. A tensor that was on the CPU goes there, any other to the device."""
    return {key: tensors[f"kept.{key}"].to("cpu" if kind == "cpu" else device) for key, kind in state["kept"].items()}


def load_moments(state: dict, tensors: dict, optimizer) -> None:
    """AdamW's moments and steps from a checkpoint. Raises KeyError, ValueError if they are another optimizer's."""
    moments = {i: {} for i in range(state["moments"])}
    names = {name for name in tensors if name.startswith("optimizer.")}
    for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        for key, shape in (("step", ()), ("exp_avg", p.shape), ("exp_avg_sq", p.shape)) if i in moments else ():
            name = f"optimizer.{i}.{key}"
            if tensors[name].shape != shape:
                raise ValueError(f"{name} has another shape")
            moments[i][key] = tensors[name]
            names.remove(name)
    if names or not all(moments.values()):
        raise ValueError("its optimizer had other parameters")
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
