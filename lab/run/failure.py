"""What may cut a run off, with what to do: an interruption, a full disk, a lost process, too little memory."""

import re

from lab.errors import RunError
from lab.run.interruption import interruption
from lab.run.ranks import describe_lost_rank, world_size


def explain(run, e: BaseException) -> None:
    """Raise the error again as one that says where the run stopped and how it goes on, if it is one of these."""
    how = f"{run.dir}: the same command with --resume goes on {run.last_saved}"
    if isinstance(e, KeyboardInterrupt):
        if (run.dir / "summary.json").exists():
            raise KeyboardInterrupt(f"; the run has finished already, in {run.dir}") from None
        place = f" in {run.progress_now.place()}" if run.progress_now else ""
        raise KeyboardInterrupt(f"{place}; {how}, and repeats what came later") from None
    if isinstance(e, OSError) and not isinstance(e, BrokenPipeError):
        if interruption.came:  # and so another process has stopped before
            raise KeyboardInterrupt(f"; {how}") from None
        raise RunError(f"{e}; {how}") from None
    if isinstance(e, RuntimeError) and (lost := describe_lost_rank(e)):
        if interruption.came:
            raise KeyboardInterrupt(f"; {how}") from None
        raise RunError(f"{lost}; {how}") from None
    if is_out_of_memory(e):
        explain_memory(run, how)


def is_out_of_memory(e: BaseException) -> bool:
    texts = "out of memory|allocate memory|not enough memory"
    return isinstance(e, MemoryError) or (isinstance(e, RuntimeError) and bool(re.search(texts, str(e))))


def explain_memory(run, how: str) -> None:
    """Raises RunError with the --micro-batch to try."""
    less = "a shorter --max-len or a smaller --model is needed"
    if not run.progress_now:
        raise RunError(f"out of memory: {less}") from None
    examples = -(-len(run.progress_now.indices) // world_size())  # of this process, rounded up
    at_once = min(examples, run.args.micro_batch or examples)
    hint = f"{how}, with --micro-batch {at_once // 2}" if at_once > 1 else less
    where = f"in {run.progress_now.place()}, with {at_once} examples at once"
    raise RunError(f"out of memory {where}: {hint}") from None
