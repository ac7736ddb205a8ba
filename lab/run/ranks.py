"""One run in several processes: torchrun --nproc_per_node=N train.py ...

Each process has a rank and the whole model. The processes share the rows of a batch and the chunks of prompts, by rules
that know the whole of both. So N processes compute what one process does, up to rounding. The main process, rank 0,
alone writes and prints, and decides whatever depends on files. In one process nothing here changes anything.
"""

import json
import os
import re
import sys
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from functools import wraps

import torch
import torch.distributed as dist

PATIENCE = timedelta(days=2)  # a process may wait for another's download, or for another run's teacher


def rank() -> int:
    """This process's number, from 0 on."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes make this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main_process() -> bool:
    return rank() == 0


@contextmanager
def distributed():
    """Join the other processes if torchrun started some. Only the main one prints to stdout.

    Exits with an error if they can't meet."""
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE") == "1":
        yield
        return
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    except (ValueError, RuntimeError) as e:
        why = str(e).splitlines()[0]
        sys.exit(f"error: RANK is set, but the other processes can't be met ({why}): start them with torchrun")
    try:
        nowhere = open(os.devnull, "w", errors="replace")  # noqa: SIM115
        with nowhere, redirect_stdout(sys.stdout if is_main_process() else nowhere):
            yield
    finally:
        dist.destroy_process_group()


# ---------------------------------------------------------------------- messages between the processes


def describe_lost_rank(e: Exception) -> str:
    """A line for an error in communication with other processes, "" for any other error."""
    if world_size() == 1 or isinstance(e, torch.OutOfMemoryError) or not re.search("gloo|NCCL|[Cc]onnection", str(e)):
        return ""
    if re.search("[Cc]onnection (closed|reset)", str(e)):
        return f"rank {rank()} has lost another rank, which ended; what that one printed says why"
    return f"rank {rank()} can't go on with the others ({str(e).splitlines()[0]})"


def all_reduce(x: torch.Tensor, how=dist.ReduceOp.SUM) -> torch.Tensor:
    """The sum of a tensor over all processes, in place. Raises ConnectionError if one of them has ended."""
    try:
        if world_size() > 1:
            dist.all_reduce(x, how)
    except RuntimeError as e:
        raise ConnectionError(describe_lost_rank(e) or str(e)) from None
    return x


def broadcast(value):
    """The main process's value, on all processes. It must be plain JSON."""
    if world_size() == 1:
        return value
    message = json.dumps(value).encode() if is_main_process() else b""
    n = int(all_reduce(torch.tensor(len(message))))
    letters = torch.zeros(n, dtype=torch.uint8)
    letters[: len(message)] = torch.tensor(list(message), dtype=torch.uint8)
    return json.loads(all_reduce(letters).numpy().tobytes())


@contextmanager
def main_process_first():
    """Run the block on the main process, then on the others; none goes on before all are done. It may make files.

    If it fails on the main process, or ends there (as --help does), the others exit silently."""
    if not is_main_process() and (code := broadcast(None)) is not None:
        sys.exit(code)
    code = 1
    try:
        yield
        code = None
    except SystemExit as e:
        code = e.code or 0
        raise
    finally:
        if is_main_process():
            broadcast(code)
    all_reduce(torch.zeros(1))


def on_main_process(function):
    """Decorate a function that writes or prints: on the other processes it does nothing and returns None."""

    @wraps(function)
    def decorated(*arguments, **keywords):
        return function(*arguments, **keywords) if is_main_process() else None

    return decorated


def sum_gradients(model) -> None:
    """Add up each parameter's gradient over all processes. A parameter without a gradient counts as zeros.

    A token's weight is normalised over the whole batch, so the sum over the processes is the batch's gradient."""
    if world_size() == 1:
        return
    waiting = []
    for p in model.parameters():
        if p.requires_grad:
            if p.grad is None:  # this process has no row of the batch
                p.grad = torch.zeros_like(p)
            waiting.append(dist.all_reduce(p.grad, async_op=True))
    for work in waiting:
        work.wait()
