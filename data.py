"""An example, its text as ids, its two rows and their labels, and which sample is in which update.

Section 2.1 and Figure 2: every task is question answering, and an example X = (context c, question q, answer a) gives
two rows of tokens. One contract carries all losses: labels[t] is the token that logits[t] must predict, or IGNORE.

    row   ids              labels
    QA    c q ANS a        IGNORE ... IGNORE a EOS     (the first label sits on ANS)
    LM    TASK c q ANS a   c q ANS a EOS

The labels are shifted here, once. No loss shifts anything.

    python data.py     shows one example through all of it
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import tiktoken
import torch

from lab.fast.packing import Layout, Packing, move

IGNORE = -1  # the label of a position that is not supervised
SLOTS = 45  # GPT-2's 50,257 tokens + ANS + PAD + 45 task slots = 50,304 = 393 · 128, a size that suits GPUs


@dataclass(frozen=True)
class Example:
    """One question with its answer. `meta` holds what the metric needs besides: see eval.py."""

    context: str
    question: str
    answer: str
    id: str = ""
    meta: dict = field(default_factory=dict)


@dataclass
class Task:
    """A data set: its name, the name of its metric (see eval.METRICS), its examples."""

    name: str
    metric: str
    train: list[Example]
    test: list[Example]


# ---------------------------------------------------------------------- text <-> ids


class Tokenizer:
    """A byte-pair encoding plus ANS, PAD and a token for each task. No text ever encodes to one of these, or to EOS.

    tasks: the names that have the first slots, in this order. So a task's token does not depend on the run."""

    def __init__(self, encoding: tiktoken.Encoding, tasks: Iterable[str] = ()):
        self.encoding, self.name = encoding, encoding.name
        self.eos_id = encoding.eot_token
        self.n_base = encoding.n_vocab
        self.ans_id, self.pad_id, self.first_slot = self.n_base, self.n_base + 1, self.n_base + 2
        self.n_vocab = self.first_slot + SLOTS
        self.slots = {name: self.first_slot + i for i, name in enumerate(tasks)}
        self.idle = list(self.slots)  # tasks that have a slot, but are not in this run so far

    def encode(self, text: str) -> list[int]:
        """Stripped, with one leading blank, so that parts joined as ids stay apart as words."""
        text = text.strip()
        return self.encoding.encode_ordinary(" " + text) if text else []

    def decode(self, ids) -> str:
        """The exact text of ids, stripped. Ids without text (EOS, ANS, PAD, task tokens) decode to nothing."""
        ids = [i for i in ids if 0 <= i < self.n_base and i != self.eos_id]
        return self.encoding.decode(ids, errors="replace").strip()

    def add_task(self, name: str) -> int:
        """The task's token. A new task takes the next free one, or else that of an idle task, the last one first.

        Raises ValueError when there is neither."""
        if name not in self.slots:
            free = set(range(self.first_slot, self.n_vocab)) - set(self.slots.values())
            idle = [other for other in self.idle if other in self.slots]
            if not (free or idle):
                raise ValueError(f"task {name!r}: all {SLOTS} task slots are taken")
            self.slots[name] = min(free) if free else self.slots.pop(idle[-1])
        self.idle = [other for other in self.idle if other != name]
        return self.slots[name]

    def task_id(self, name: str) -> int:
        return self.slots[name]

    def is_task(self, id: int) -> bool:
        return self.first_slot <= id < self.n_vocab


# ---------------------------------------------------------------------- an example -> two rows


@dataclass(eq=False, frozen=True)
class Sample:
    """Both rows of an example, how many tokens did not fit, and the example's id."""

    qa_ids: list[int]
    qa_labels: list[int]
    lm_ids: list[int]
    lm_labels: list[int]
    context_cut: int = 0
    answer_cut: int = 0
    id: str = ""

    @cached_property
    def qa_row(self) -> torch.Tensor:
        """Ids and labels of the QA row (2, T), made once: a sample is in many batches."""
        return torch.tensor([self.qa_ids, self.qa_labels])

    @cached_property
    def lm_row(self) -> torch.Tensor:
        """Ids and labels of the LM row (2, T)."""
        return torch.tensor([self.lm_ids, self.lm_labels])


def encode_parts(c, q, a, task_id, tokenizer, max_len, stopped=True, id="") -> Sample | None:
    """Ids of context, question and answer -> both rows, or None when TASK, question, ANS and the answer's first token
    don't fit. An empty answer needs no room.

    Both rows are cut in the same place. An answer that is too long by itself is cut first, then the context keeps its
    first tokens. An answer that was cut, or that never `stopped`, has no EOS behind it: its last label is IGNORE."""
    room = max_len - len(q) - 2  # besides TASK, q and ANS
    if room < min(1, len(a)):
        return None
    answer = a[:room]
    context = c[: max(0, room - len(a))]
    end = tokenizer.eos_id if stopped and len(a) <= room else IGNORE
    qa_ids = context + q + [tokenizer.ans_id] + answer
    return Sample(
        qa_ids=qa_ids,
        qa_labels=[IGNORE] * len(context + q) + answer + [end],
        lm_ids=[task_id, *qa_ids],
        lm_labels=[*qa_ids, end],
        context_cut=len(c) - len(context),
        answer_cut=len(a) - len(answer),
        id=id,
    )


def encode_example(example: Example, task_id: int, tokenizer: Tokenizer, max_len: int) -> Sample | None:
    """An example -> both rows (at most max_len ids each), or None when it is rejected as too long."""
    c, q, a = (tokenizer.encode(text) for text in (example.context, example.question, example.answer))
    return encode_parts(c, q, a, task_id, tokenizer, max_len, id=example.id)


def encode_prompt(context: str, question: str, tokenizer: Tokenizer, max_len: int, answer_budget: int) -> list[int]:
    """The prompt `c q ANS` of test time. It has no task token, leaves room for the answer, and never looks at it."""
    c, q = tokenizer.encode(context), tokenizer.encode(question)
    room = max_len - answer_budget - 1
    q = q[: max(0, room)]
    return c[: max(0, room - len(q))] + q + [tokenizer.ans_id]


def answer_budget(task: Task, tokenizer: Tokenizer, max_len: int) -> int:
    """How many tokens an answer may take at test time: the longest training answer + EOS, at most max_len // 4."""
    return min(max(len(tokenizer.encode(example.answer)) for example in task.train) + 1, max_len // 4)


# ---------------------------------------------------------------------- samples -> updates


def plan_epoch(n_current, n_replay, batch_size, updates, generator) -> list[list[int]]:
    """Which samples are in which update of an epoch: indices, i < n_current for current samples, then replay samples.

    shuffled    the authors' code: both kinds in one permutation
    alternate   Algorithm 1, with batches for samples: each batch of current samples is followed by its share of the
                replay samples, in an update of its own; the shares differ by one sample at most"""
    if updates == "shuffled":
        order = torch.randperm(n_current + n_replay, generator=generator).tolist()
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    current = torch.randperm(n_current, generator=generator).tolist()
    replay = [n_current + i for i in torch.randperm(n_replay, generator=generator).tolist()]
    n = -(-n_current // batch_size)  # rounded up
    plan = []
    for k in range(n):
        plan.append(current[k * batch_size : (k + 1) * batch_size])
        plan.append(replay[k * n_replay // n : (k + 1) * n_replay // n])
    return [batch for batch in plan if batch]


@dataclass
class Row:
    """A row in a batch: of which sample, which of its two rows, and where the sample comes from."""

    sample: Sample
    lm: bool  # the LM row, else the QA row
    replay: bool  # of an earlier task, else of the current one

    @property
    def ids(self) -> list[int]:
        return self.sample.lm_ids if self.lm else self.sample.qa_ids

    @property
    def labels(self) -> list[int]:
        return self.sample.lm_labels if self.lm else self.sample.qa_labels


@dataclass
class Group:
    """Rows that go through the model in one forward pass: N tokens one after another, of which S are supervised."""

    rows: list[Row]
    packing: Packing
    ids: torch.Tensor  # (1, N)
    supervised: torch.Tensor  # (S,): which of the N tokens
    labels: torch.Tensor  # (S,): what each must predict
    lm: torch.Tensor  # (S,) bool: of an LM row
    replay: torch.Tensor  # (S,) bool: of a replayed row
    soft: torch.Tensor  # (soft ones,): which of the S tokens learn the teacher's distribution
    hard: torch.Tensor  # (hard ones,): which of them learn their labels: all others
    process: int = 0  # which of several processes takes it

    def to(self, device) -> "Group":
        names = ("ids", "supervised", "labels", "lm", "replay", "soft", "hard")
        return replace(self, packing=self.packing.to(device), **{n: move(getattr(self, n), device) for n in names})


def make_batch(samples, indices, n_current, lm=True, soft=False, layout=None) -> list[Group]:
    """Both rows of each sample in an update, without `lm` the QA row only, in groups of one forward pass each.

    samples: list of Sample, the `n_current` current ones first. soft: current tokens learn the teacher's distribution.
    layout: a lab.fast.packing.Layout; how rows are grouped changes dropout masks, but no weight of a token."""
    kinds = (False, True) if lm else (False,)
    rows = [Row(samples[i], kind, replay=i >= n_current) for i in indices for kind in kinds]
    layout = layout or Layout()
    groups = layout.groups([len(row.ids) for row in rows])
    return [collate([rows[i] for i in group], soft, process, layout.device) for process, group in groups]


def collate(rows: list[Row], soft: bool = False, process: int = 0, device: str = "cpu") -> Group:
    """Rows as tensors on the CPU, one after another, packed for attention on a type of device."""
    ids, labels = torch.cat([row.sample.lm_row if row.lm else row.sample.qa_row for row in rows], dim=1)
    lengths = torch.tensor([len(row.ids) for row in rows])
    supervised = (labels != IGNORE).nonzero()[:, 0]
    lm = torch.tensor([row.lm for row in rows]).repeat_interleave(lengths)[supervised]
    replay = torch.tensor([row.replay for row in rows]).repeat_interleave(lengths)[supervised]
    is_soft = ~replay & soft
    return Group(
        rows=rows,
        packing=Packing.of(lengths.tolist(), device),
        ids=ids[None],
        supervised=supervised,
        labels=labels[supervised],
        lm=lm,
        replay=replay,
        soft=is_soft.nonzero()[:, 0],
        hard=(~is_soft).nonzero()[:, 0],
        process=process,
    )


if __name__ == "__main__":
    import sys

    from lab.show.data import main

    sys.exit(main())
