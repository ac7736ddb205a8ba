"""Which device a run computes on, and in which precision."""

import os
import re

import torch

from lab.errors import RunError
from lab.run.ranks import world_size


def choose_device(device: str, dtype: str = "auto") -> tuple[torch.device, torch.dtype, str]:
    """--device and --dtype -> (device, dtype, the reason in words). Each of several processes has a GPU of its own.

    auto is CUDA, then CPU; and bfloat16 on a GPU that has it, float16 on another one, float32 on a CPU. Raises RunError
    for a device that is not there."""
    kind = device
    if device == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", kind):
            raise RuntimeError("known are auto, cpu, cuda, cuda:N, mps")
        if world_size() > 1:
            kind = own_device(kind)
        torch.empty(0, device=kind)
    except (RuntimeError, AssertionError) as e:
        raise RunError(f"--device {device}: can't be used here ({str(e).splitlines()[0][:150]})") from None
    found = torch.device(kind)
    if found.type == "cuda" and found.index is not None:
        torch.cuda.set_device(found)  # tensors that are made on "cuda" belong there
    why = "as asked"
    if device == "auto":
        why = "the GPU that was found" if found.type == "cuda" else "no CUDA device found"
    return found, choose_dtype(found, dtype), why


def own_device(kind: str) -> str:
    """The device of this process, one of several. Raises RuntimeError if there is none for it."""
    if kind not in ("cpu", "cuda"):
        raise RuntimeError("each process that torchrun starts has a device of its own: cpu or cuda is expected")
    if kind == "cpu":
        return kind
    processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if processes > gpus:
        raise RuntimeError(f"{processes} processes of torchrun, but {gpus} GPUs; --nproc_per_node={gpus}")
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"


def choose_dtype(device: torch.device, dtype: str) -> torch.dtype:
    """--dtype on a device. A GPU that only emulates bfloat16 takes float16."""
    if dtype != "auto":
        return getattr(torch, dtype)
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
