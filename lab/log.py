"""log.jsonl: what is written down, and watched, while a model learns."""

import math
import time

import torch

from lab import ranks
from lab.rundir import RunError, append_jsonl


class TrainingLog:
    """Losses, gradient norm and speed since the last line of log.jsonl; nothing is read from the device in between."""

    def __init__(self, run, name, phase, epoch, bar, samples):
        self.path, self.bar, self.samples = run.dir / "log.jsonl", bar, samples
        self.where = {"task": name, "phase": phase, "epoch": epoch}
        self.step = self.examples = 0
        self.start()

    def start(self):
        self.updates, self.now, self.since = [], [0.0, 0.0], time.perf_counter()
        self.tokens = self.padded = 0

    def place(self, step=0) -> str:
        return "{phase} {task}, epoch {epoch}, update ".format(**self.where) + str(step or self.step)

    def begin(self, step, indices, batch):
        """Of an update: its number, which samples are in it, and their rows."""
        self.step, self.indices, self.examples = step, indices, len(indices)
        self.tokens += sum(rows.ids.numel() for rows in batch)
        blocks = (block for rows in batch for block in rows.packing.blocks)
        self.padded += sum(R * T for _, R, T in blocks)  # what attention sees; all else has no padding

    def add(self, parts):
        """A group of rows: what QA and LM rows add to the loss, on the device."""
        self.now = [total + part for total, part in zip(self.now, parts)]

    def end(self, norm, may_overflow):
        """Of an update: the gradient's norm, on the device, and whether the scaler mends it when that is no number."""
        self.updates.append((self.step, self.indices, may_overflow, torch.stack([*self.now, norm])))
        self.now = [0.0, 0.0]

    def write(self, lr):
        """A line of the log. Raises RunError where a loss or a gradient was no number."""
        numbers = ranks.mean(torch.stack([values for *_, values in self.updates])).tolist()  # a GPU is waited for
        made = []
        for (step, indices, may_overflow, _), values in zip(self.updates, numbers):
            if all(map(math.isfinite, values)):
                made.append(values)
            elif not may_overflow:
                qa, lm, norm = values
                what = f"loss is {qa + lm}" if not math.isfinite(qa + lm) else f"gradient's norm is {norm}"
                ids = ", ".join(self.samples[i].id for i in indices[:20]) + (", ..." if indices[20:] else "")
                if ranks.rank() > 0:  # rank 0 says it for all
                    raise SystemExit(1)
                raise RunError(f"the {what} in {self.place(step)}, with examples {ids}: a lower --lr may help")
        qa, lm, norm = (sum(column) / len(made) for column in zip(*made)) if made else (None, None, None)
        loss, rate = None if qa is None else qa + lm, round(self.tokens / (time.perf_counter() - self.since))
        line = {"step": self.step, "loss": loss, "loss_qa": qa, "loss_lm": lm, "grad_norm": norm, "lr": lr}
        line |= {"tokens_per_s": rate, "attention_padding": round(1 - self.tokens / self.padded, 3)}
        append_jsonl(self.path, self.where | line)
        loss = "skipped by the scaler" if loss is None else f"loss {loss:.3f}"
        self.said = f"{loss} (last {len(self.updates)} updates), {rate} tokens/s"
        self.bar.set_postfix_str(self.said)
        self.start()
