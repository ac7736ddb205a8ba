"""One run in several processes: torchrun --nproc_per_node=N train.py ...

Each process is a rank with the whole model. Ranks share out the rows of a batch and the prompts that are to be
continued, by rules that know the whole of both, so that N ranks compute what one process does, up to rounding. All else
each of them does for itself. Rank 0 alone writes and prints, and decides whatever depends on files. In one process
nothing here changes anything.
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
from torch.nn.parallel import DistributedDataParallel

import kd

talk = None  # the group for what is no gradient: on the CPU, and patient, since rank 0 may wait for a download


def rank() -> int:
    """This process's number, from 0 on."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes make this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def joined():
    """Meet the other ranks, if torchrun started some; rank 0 alone prints."""
    global talk
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE") == "1":
        yield
        return
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        talk = dist.new_group(backend="gloo", timeout=timedelta(days=2))
    except (ValueError, RuntimeError) as e:
        sys.exit(f"error: RANK is set, but the other processes can't be met ({str(e).splitlines()[0]}): use torchrun")
    try:
        with open(os.devnull, "w", errors="replace") as nowhere, redirect_stdout(nowhere if rank() else sys.stdout):
            yield
    finally:
        talk = None
        dist.destroy_process_group()


# ---------------------------------------------------------------------- what ranks tell each other


def lost(e: Exception) -> str:
    """What to say of an error in talking to other ranks; nothing of another error."""
    if size() == 1 or isinstance(e, torch.OutOfMemoryError) or not re.search("gloo|NCCL|[Cc]onnection", str(e)):
        return ""
    if re.search("[Cc]onnection (closed|reset)", str(e)):
        return f"rank {rank()} has lost another rank, which ended; what that one printed says why"
    return f"rank {rank()} can't go on with the others ({str(e).splitlines()[0]})"


def reduced(x: torch.Tensor, how=dist.ReduceOp.SUM) -> torch.Tensor:
    """A tensor, summed over all ranks (in place, on the CPU). Raises ConnectionError where one has ended."""
    try:
        if size() > 1:
            dist.all_reduce(x, how, group=talk)
    except RuntimeError as e:
        raise ConnectionError(lost(e) or str(e)) from None
    return x


def mean(x: torch.Tensor) -> torch.Tensor:
    """A tensor, averaged over all ranks; on the CPU."""
    return reduced(x.detach().cpu().double()) / size()


def told(value):
    """Rank 0's value, on all ranks: plain JSON."""
    if size() == 1:
        return value
    said = json.dumps(value).encode() if rank() == 0 else b""
    n = int(reduced(torch.tensor(len(said))))
    letters = torch.zeros(n, dtype=torch.uint8)
    letters[: len(said)] = torch.tensor(list(said), dtype=torch.uint8)
    return json.loads(reduced(letters).numpy().tobytes())


@contextmanager
def rank_0_first():
    """The block runs on rank 0, then on the others, and nobody goes on before all are done: it may make files.

    Where it fails on rank 0, or ends there (--help), the others exit in silence."""
    if rank() > 0 and (code := told(None)) is not None:
        sys.exit(code)
    code = 1
    try:
        yield
        code = None
    except SystemExit as e:
        code = e.code or 0
        raise
    finally:
        if rank() == 0:
            told(code)
    reduced(torch.zeros(1))


def by_rank_0(function):
    """A function that writes: on the other ranks it does nothing."""

    @wraps(function)
    def on_rank_0(*arguments, **keywords):
        return function(*arguments, **keywords) if rank() == 0 else None

    return on_rank_0


# ---------------------------------------------------------------------- what they share out


class RowsLoss(torch.nn.Module):
    """`kd.rows_loss` of a model, in the form that DistributedDataParallel wraps."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *arguments):
        return kd.rows_loss(self.model, *arguments)


def rows_loss(model) -> torch.nn.Module:
    """The loss of a group of rows, as `kd.rows_loss` without its first argument; the backward of the last group of a
    batch averages the gradients over the ranks."""
    loss = RowsLoss(model)
    return DistributedDataParallel(loss, gradient_as_bucket_view=True) if size() > 1 else loss


def shared(batch, weights, loss):
    """This rank's groups of rows of a batch, one after another, and their token weights.

    Weights are multiplied with the number of ranks: the mean over ranks is then the sum over groups. A rank that holds
    no row of a batch takes its last group with weight 0, since it must be there when gradients are averaged."""
    own = [(rows, w * size()) for rows, w in zip(batch, weights) if rows.rank == rank()]
    own = own or [(batch[-1], 0 * weights[-1])]
    for i, one in enumerate(own, 1):
        loss.require_backward_grad_sync = i == len(own)
        yield one


def own_chunks(chunks: list) -> list:
    """The chunks that this rank takes: by turns."""
    return chunks[rank() :: size()]


def whole(rows: list[list[int]]) -> list[list[int]]:
    """Lists of token ids, of which each rank has made some and left the others empty -> all of them, on every rank."""
    if size() == 1:
        return rows
    longest = int(reduced(torch.tensor(max(map(len, rows), default=0)), dist.ReduceOp.MAX))
    ids = torch.full((len(rows), longest), -1, dtype=torch.int32)
    for line, row in zip(ids, rows):
        line[: len(row)] = torch.tensor(row, dtype=torch.int32)
    return [[i for i in line if i >= 0] for line in reduced(ids, dist.ReduceOp.MAX).tolist()]
