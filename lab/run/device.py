"""Which device a run computes on, and in which precision."""

import os
import shutil

import torch

from lab.errors import RunError
from lab.run.ranks import world_size


def choose_device(device: str, dtype: str = "auto") -> tuple[torch.device, torch.dtype, str]:
    """--device and --dtype -> (device, dtype, the reason in words). Each of several processes has a GPU of its own.

    auto is CUDA, then CPU; and bfloat16 on a GPU that has it, float16 on another one, float32 on a CPU. Raises RunError
    for a device that is not there or can't compute, and for auto where a GPU is there that torch can't use."""
    kind = device
    if device == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
        if kind == "cpu" and (driver := nvidia_driver()):
            built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
            why = f"an NVIDIA driver is here ({driver}), but torch {torch.__version__}, which {built}, finds no device"
            todo = "install the torch that fits the driver (https://pytorch.org/get-started), or say --device cpu"
            raise RunError(f"--device auto: {why}; {todo}")
    try:
        if world_size() > 1:
            kind = own_device(kind)
        x = torch.ones(8, 8, device=kind)
        (x @ x).softmax(dim=-1).sum().item()  # a device may be there, and torch have no code for it
    except (RuntimeError, AssertionError) as e:
        raise RunError(f"--device {device}: can't be used here ({explanation(kind, str(e))})") from None
    found = torch.device(kind)
    if found.type == "cuda" and found.index is not None:
        torch.cuda.set_device(found)  # tensors that are made on "cuda" belong there
    why = "as asked"
    if device == "auto":
        why = "the GPU that was found" if found.type == "cuda" else "no CUDA device found"
    return found, choose_dtype(found, dtype), why


def nvidia_driver() -> str:
    """By what an NVIDIA driver is known to be here, "" if there is none, or if its GPUs are hidden on purpose."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1", "NoDevFiles"):
        return ""
    paths = [shutil.which("nvidia-smi"), "/proc/driver/nvidia", "/dev/nvidia0"]
    return next((path for path in paths if path and os.path.exists(path)), "")


def has_compiler() -> bool:
    """Is there a C++ compiler for torch.compile?"""
    words = (os.environ.get("CXX") or "g++").split()
    return bool(words) and shutil.which(words[0]) is not None


def explanation(kind: str, error: str) -> str:
    """What an error of a device says, in one line. For a GPU that is too old or too new for this torch, what to do."""
    if "no kernel image" not in error:
        return error.splitlines()[0][:150]
    major, minor = torch.cuda.get_device_capability(kind)
    card, built = f"{torch.cuda.get_device_name(kind)}, sm_{major}{minor}", f"torch {torch.__version__}"
    wheels = "pip install torch --index-url https://download.pytorch.org/whl/cu126 has it for sm_50 to sm_90"
    return f"{built} has no code for this card, {card}; {wheels}; or --device cpu"


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
