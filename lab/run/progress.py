"""What surrounds the updates of a phase: its epochs, the log, scores, checkpoints, and where it was cut off."""

import math
import time
from dataclasses import dataclass

import torch
from tqdm import tqdm

from lab.errors import RunError
from lab.files import append_jsonl
from lab.run.checkpoint import load_moments, weights_of
from lab.run.interruption import interruption
from lab.run.ranks import all_reduce, is_main_process, rank
from lab.run.resume import fitting_checkpoint
from lab.run.seeds import seed_of


@dataclass(frozen=True)
class Phase:
    """Whose epochs these are: kind is "teacher" or "student", the stage counts from 1, and is 0 for a teacher."""

    kind: str
    stage: int
    name: str  # of the task
    epochs: int


@dataclass
class Update:
    """An update whose numbers are not read yet: they may still be computed, on a GPU."""

    step: int  # in the epoch, from 1 on
    indices: list[int]
    may_overflow: bool  # the loss scaler mends it
    losses: torch.Tensor  # (2,): of QA and LM rows, this process's part
    numbers: dict  # whatever end_update was given


class Progress:
    """The progress of one phase. `learn` asks it for epochs and updates, and reports each update.

    samples_seen: in this phase, for the schedule. steps: taken by the optimizer. Both are restored at --resume, and
    stand still where the float16 scaler skips an update, since a gradient has overflowed."""

    def __init__(self, run, phase: Phase, model, optimizer, scaler, samples):
        self.run, self.phase, self.samples = run, phase, samples
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        self.where = {"phase": phase.kind, "stage": phase.stage, "name": phase.name}
        self.epochs_done = self.samples_seen = self.steps = 0
        self.epoch, self.step, self.indices = 1, 0, []
        if scaler.is_enabled():
            scaler.scale(torch.zeros((), device=run.device))  # a process without rows in the first update needs it, too
        self.restore()

    def restore(self) -> None:
        """Go on where a checkpoint of this phase stands, if there is one."""
        run, (state, tensors) = self.run, self.run.cut_off or ({}, {})
        run.phase_began = time.time()
        if self.phase.kind == "student" or self.is_at(state):
            run.cut_off = None  # nobody else will ask for it
        if not self.is_at(state):
            return
        with fitting_checkpoint(run):
            self.model.load_state_dict(weights_of(tensors))
            load_moments(state, tensors, self.optimizer)
            if self.scaler.is_enabled() and state["scaler"]:
                self.scaler.load_state_dict(state["scaler"])
        run.phase_began -= state["phase_seconds"]
        self.epochs_done, self.samples_seen, self.steps = state["epoch"], state["samples_seen"], state["steps"]

    def is_at(self, state: dict) -> bool:
        return all(state.get(key) == value for key, value in self.where.items())

    def place(self, step: int = 0) -> str:
        """Where this is, in words."""
        return f"{self.phase.kind} {self.phase.name}, epoch {self.epoch}, update {step or self.step}"

    def seed_for(self, what: str, epoch: int) -> int:
        return seed_of(self.run.args.seed, self.phase.stage, self.phase.name, f"{self.phase.kind} {what}", epoch)

    def generator_for(self, what: str) -> torch.Generator:
        """A generator of this phase and epoch: "batches" for who is in which update."""
        return torch.Generator().manual_seed(self.seed_for(what, self.epoch))

    # ------------------------------------------------------------------ epochs and updates

    def epochs(self):
        """Yield the epochs that are left. After each: the loss is printed, a student scored if it is to be after
        every epoch, and a checkpoint written if it is time. After a teacher's last one it always is: a teacher is
        found again, and its lines of the log would be missing."""
        run, phase = self.run, self.phase
        run.progress_now = self  # errors say where they came
        for epoch in range(self.epochs_done + 1, phase.epochs + 1):
            self.epoch = epoch
            torch.manual_seed(self.seed_for("dropout", self.epoch) + rank())
            yield epoch
            print(f"{phase.kind} {phase.name}, epoch {self.epoch}/{phase.epochs}: {self.summary}")
            if phase.kind == "student" and run.args.eval_every_epoch and self.epoch < phase.epochs:
                run.score(self.model, run.tasks, phase.stage, self.epoch)
            counts = {"epoch": self.epoch, "samples_seen": self.samples_seen, "steps": self.steps}
            must = phase.kind == "teacher" and epoch == phase.epochs
            run.checkpoint(self.where | counts, self.model, self.optimizer, self.scaler, must=must)
        torch.manual_seed(self.seed_for("end", phase.epochs))  # what hooks draw next does not depend on a resume
        run.progress_now = None

    def updates(self, plan: list[list[int]]):
        """Yield the batches of an epoch, with a progress bar. Ctrl-C waits for the end of an update."""
        phase, self.n_updates = self.phase, len(plan)
        title = f"{phase.kind} {phase.name}, epoch {self.epoch}/{phase.epochs}"
        hidden = None if is_main_process() else True  # None hides the bar when the output is not a terminal
        self.bar = tqdm(plan, title, disable=hidden, leave=False, unit="batch")
        self.start_line()
        for step, indices in enumerate(interruption.between(self.bar), 1):
            self.step, self.indices = step, indices
            self.scale = self.scaler.get_scale()
            self.losses = torch.zeros(2, device=self.run.device)
            yield indices

    def add(self, group, parts: torch.Tensor) -> None:
        """Count a group of this process: parts (S,) are what its tokens add to the loss."""
        self.losses += torch.stack([(parts * ~group.lm).sum(), (parts * group.lm).sum()])
        self.tokens += group.ids.numel()
        self.padded += group.packing.padded_tokens()

    def end_update(self, **numbers) -> None:
        """Count the update and log its numbers: tensors as their mean since the last line, others as they are now.

        Nothing is read from a GPU between two lines of the log, but for float16's scale. Raises RunError if a loss or
        `grad_norm` is not finite, unless the scaler has skipped the update."""
        if self.scaler.get_scale() >= self.scale:  # it falls where an update is skipped
            self.samples_seen += len(self.indices)
            self.steps += 1
        may_overflow = self.scaler.is_enabled() and self.scale >= 1
        self.pending.append(Update(self.step, self.indices, may_overflow, self.losses, numbers))
        if self.step % self.run.args.log_every == 0 or self.step == self.n_updates:
            self.write_line()

    # ------------------------------------------------------------------ the log

    def start_line(self) -> None:
        self.pending, self.began = [], time.perf_counter()
        self.tokens = self.padded = 0

    def write_line(self) -> None:
        """Write the line of the updates since the last one."""
        losses = all_reduce(torch.stack([update.losses for update in self.pending]).cpu().double()).tolist()
        numbers = self.read_numbers()
        tokens, padded = all_reduce(torch.tensor([self.tokens, self.padded])).tolist()
        norms = numbers.get("grad_norm", [0.0] * len(losses))
        good = []
        for i, update in enumerate(self.pending):
            if all(map(math.isfinite, (*losses[i], norms[i]))):
                good.append(i)
            elif not update.may_overflow:
                self.stop(update, sum(losses[i]), norms[i])
        qa, lm = (mean_of([losses[i][kind] for i in good]) for kind in (0, 1))
        loss = qa + lm if good else None
        line = {"task": self.phase.name, "phase": self.phase.kind, "epoch": self.epoch, "step": self.step}
        line |= {"loss": loss, "loss_qa": qa, "loss_lm": lm}
        for name, values in numbers.items():
            is_tensor = torch.is_tensor(self.pending[-1].numbers[name])
            line[name] = mean_of([values[i] for i in good]) if is_tensor else values[-1]
        speed = round(tokens / (time.perf_counter() - self.began))
        line |= {"tokens_per_s": speed, "attention_padding": round(1 - tokens / padded, 3)}
        if is_main_process():
            append_jsonl(self.run.dir / "log.jsonl", line)
        said = f"loss {loss:.3f}" if good else "skipped by the scaler"
        self.summary = f"{said} (last {len(self.pending)} updates), {speed} tokens/s"
        self.bar.set_postfix_str(self.summary)
        self.start_line()

    def read_numbers(self) -> dict[str, list]:
        """The numbers of the updates by name, read from the device."""
        found = {}
        for name, last in self.pending[-1].numbers.items():
            values = [update.numbers[name] for update in self.pending]
            found[name] = torch.stack(values).cpu().double().tolist() if torch.is_tensor(last) else values
        return found

    def stop(self, update: Update, loss: float, norm: float) -> None:
        """Raises RunError for an update whose loss or gradient is not finite."""
        if not is_main_process():  # the main one says it for all
            raise SystemExit(1)
        what = f"the gradient's norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
        ids = ", ".join(self.samples[i].id for i in update.indices[:20]) + (", ..." if update.indices[20:] else "")
        raise RunError(f"{what} in {self.place(update.step)}, with examples {ids}: a lower --lr may help")


def mean_of(values: list[float]) -> float | None:
    """The mean of the finite ones, None if there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None
