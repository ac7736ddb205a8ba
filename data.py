"""A task: an example, the tokenizers, how an example becomes ids and labels, how examples become batches.

Section 2.1 and Figure 2: every task is question answering, and an example X = (context c, question q, answer a) gives
two rows of tokens. One contract carries all losses: labels[t] is the token that logits[t] must predict, or IGNORE.

    row   ids              labels
    QA    c q ANS a        IGNORE ... IGNORE a EOS     (the first label sits on ANS)
    LM    TASK c q ANS a   c q ANS a EOS

    python data.py     shows one example through all of it
"""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import tiktoken
import torch

from lab.prepare import DataError, prepare, read_task
from lab.toy import GRAMMARS, SIZES, toy_rows
from model import Packing, move

IGNORE = -1  # a position that is not supervised
SLOTS = 45  # GPT-2's 50,257 tokens + ANS + PAD + 45 task slots = 50,304
METRICS = {"woz": "joint_goal_em", "sql": "lfem", "cnn": "rouge"}  # the registered tasks, in the order of their slots
METRICS |= {"toy.woz": "joint_goal_em", "toy.sql": "lfem", "toy.cnn": "rouge", "toy.e2e": "rouge", "toy.ag": "em"}
METRICS |= dict.fromkeys(("e2e", "rnnlg.rest", "rnnlg.hotel", "rnnlg.tv", "rnnlg.laptop"), "rouge")
METRICS |= dict.fromkeys(("ag", "yelp", "amazon", "dbpedia", "yahoo"), "em")
VOCABULARY = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"  # where tiktoken gets it
VOCABULARY_FILES = ("vocab.bpe", "encoder.json")
NANO_VOCABULARY = Path(__file__).parent / "lab" / "assets" / "nano.tiktoken"  # made by lab/nano.py
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # GPT-2's cut into words
GROUP_TOKENS = 4096  # most tokens in one forward pass ...
# ... and entries of one head's attention: more on a GPU, which never stores them
GROUP_SCORES = {"cpu": 1024**2, "cuda": 4 * 1024**2}


@dataclass(frozen=True)
class Example:
    """One question with its answer; `meta` is what the metric needs besides: see lab/prepare.py."""

    context: str
    question: str
    answer: str
    id: str = ""
    meta: dict = field(default_factory=dict)


@dataclass
class Task:
    """A data set: its name, its metric, its examples. A task of the user's names its metric in task.json, else em."""

    name: str
    metric: str
    train: list[Example]
    test: list[Example]


def task_name(entry: str) -> str:
    """An entry of --order -> the task's name: registered, or the folder's name. Raises ValueError for neither."""
    if entry in METRICS:
        return entry
    try:
        name, there = Path(entry).resolve().name, bool(entry) and Path(entry).is_dir()
    except (OSError, ValueError):  # too long a name, or one with a zero byte
        there = False
    if not there:
        raise ValueError(
            f"unknown task {entry[:200]!r}: known are {', '.join(METRICS)}, or a folder with train and test.jsonl"
        )
    if name in METRICS or not re.fullmatch(r"[\w.-]+", name, re.ASCII):
        raise ValueError(
            f"task folder {entry!r}: rename it (letters, digits, '.', '_', '-'; not a registered task's name)"
        )
    return name


def load_task(entry: str, data_dir: str, cache_dir: str, limit: int = 0) -> Task:
    """The task behind an entry of --order, each split cut to its first `limit` examples. Raises DataError."""
    name = task_name(entry)
    metric = METRICS.get(name) or metric_of(Path(entry) / "task.json")
    if name in GRAMMARS:
        splits = [toy_rows(name, split, n) for split, n in SIZES.items()]
    else:
        folder = prepare(name, data_dir, cache_dir) if name in METRICS else Path(entry)
        splits = read_task(folder, metric).values()
    train, test = ([Example(**row) for row in rows[: limit or None]] for rows in splits)
    return Task(name, metric, train, test)


def metric_of(path: Path) -> str:
    """The metric of a user's task: `{"metric": "rouge"}` in its folder's task.json, or em. Raises DataError."""
    if not path.is_file():
        return "em"
    known = ", ".join(dict.fromkeys(METRICS.values()))
    try:
        metric = json.loads(path.read_text(encoding="utf-8"))["metric"]
        if metric not in METRICS.values():
            raise ValueError(f"metric {metric!r} is not known")
        return metric
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as e:
        raise DataError(f'{path}: {{"metric": one of {known}}} is expected ({e})') from None


# ---------------------------------------------------------------------- text <-> ids


class Tokenizer:
    """A byte-pair encoding plus ANS, PAD and the tasks' slots. No text ever encodes to one of these or to EOS."""

    def __init__(self, encoding: tiktoken.Encoding):
        self.encoding, self.name = encoding, encoding.name
        self.eos_id = encoding.eot_token
        self.n_base = encoding.n_vocab
        self.ans_id, self.pad_id, self.first_slot = self.n_base, self.n_base + 1, self.n_base + 2
        self.n_vocab = self.first_slot + SLOTS
        self.slots = {name: self.first_slot + i for i, name in enumerate(METRICS)}  # the same in every run and order

    @classmethod
    def gpt2(cls) -> "Tokenizer":
        """GPT-2's own vocabulary, which tiktoken downloads once. Raises DataError where it can't."""
        try:
            return cls(tiktoken.get_encoding("gpt2"))
        except (OSError, ValueError) as e:  # no network, or a wrong checksum
            files = (
                f"{VOCABULARY}{f} as {hashlib.sha1((VOCABULARY + f).encode()).hexdigest()}" for f in VOCABULARY_FILES
            )
            hint = f"to work offline, set TIKTOKEN_CACHE_DIR to a folder with {' and '.join(files)}"
            raise DataError(f"can't get GPT-2's vocabulary ({type(e).__name__}); {hint}") from None

    @classmethod
    def nano(cls) -> "Tokenizer":
        """The project's own 1,001 tokens (bytes, words of the toy tasks, EOS), which need no download."""
        lines = NANO_VOCABULARY.read_text(encoding="ascii").splitlines()
        ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, lines)}
        special = {"<|endoftext|>": len(ranks)}
        return cls(tiktoken.Encoding("nano", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special))

    @classmethod
    def of(cls, model: str | Path) -> "Tokenizer":
        """The tokenizer of a model: the one that its folder's config.json names, else GPT-2's. Raises DataError."""
        path = Path(model) / "config.json"
        name = json.loads(path.read_text(encoding="utf-8")).get("tokenizer", "gpt2") if path.is_file() else "gpt2"
        if name not in ("gpt2", "nano"):
            raise DataError(f"{path}: tokenizer {name!r} is not known (gpt2 and nano are)")
        return cls.nano() if name == "nano" else cls.gpt2()

    def encode(self, text: str) -> list[int]:
        """Stripped, with one leading space, so that parts joined as ids stay apart as words."""
        text = text.strip()
        return self.encoding.encode_ordinary(" " + text) if text else []

    def decode(self, ids) -> str:
        """The exact text of ids, stripped; ids without text (EOS, ANS, PAD, slots) decode to nothing."""
        ids = [i for i in ids if 0 <= i < self.n_base and i != self.eos_id]
        return self.encoding.decode(ids, errors="replace").strip()

    def add_task(self, name: str) -> int:
        """The slot of a task, given out if it has none yet. Raises ValueError when none is free."""
        if name not in self.slots:
            free = set(range(self.first_slot, self.n_vocab)) - set(self.slots.values())
            if not free:
                raise ValueError(f"task {name!r}: all {SLOTS} task slots are taken")
            self.slots[name] = min(free)
        return self.slots[name]

    def task_id(self, name: str) -> int:
        return self.slots[name]

    def is_task(self, id: int) -> bool:
        return type(id) is int and self.first_slot <= id < self.n_vocab


# ---------------------------------------------------------------------- an example -> two rows


@dataclass
class Encoded:
    """Both rows of an example, what did not fit (tokens cut from the context and from the answer), and its id."""

    qa_ids: list[int]
    qa_labels: list[int]
    lm_ids: list[int]
    lm_labels: list[int]
    context_cut: int = 0
    answer_cut: int = 0
    id: str = field(default="", compare=False)


def encode_parts(c, q, a, task_id, tokenizer, max_len, stopped=True, id="") -> Encoded | None:
    """Ids of context, question and answer -> both rows, or None when question, ANS and one answer token don't fit.

    One cut for both rows: the answer is cut first, where it alone is too long, then the context keeps its first
    tokens. A cut answer, or one that never `stopped`, is not followed by EOS: its last label is IGNORE."""
    room = max_len - len(q) - 2  # besides TASK, q and ANS
    if room < min(1, len(a)):  # an empty answer needs no room
        return None
    answer, context = a[:room], c[: max(0, room - len(a))]
    end = tokenizer.eos_id if stopped and len(a) <= room else IGNORE
    qa_ids = context + q + [tokenizer.ans_id] + answer
    n = len(context) + len(q)
    return Encoded(
        qa_ids=qa_ids,
        qa_labels=[IGNORE] * n + answer + [end],
        lm_ids=[task_id, *qa_ids],
        lm_labels=[*qa_ids, end],
        context_cut=len(c) - len(context),
        answer_cut=len(a) - len(answer),
        id=id,
    )


def encode_example(example: Example, task_id: int, tokenizer: Tokenizer, max_len: int) -> Encoded | None:
    """An example -> both rows (lists of int, at most max_len), or None when it is rejected as too long."""
    c, q, a = (tokenizer.encode(text) for text in (example.context, example.question, example.answer))
    return encode_parts(c, q, a, task_id, tokenizer, max_len, id=example.id)


def encode_prompt(context, question, tokenizer: Tokenizer, max_len: int, answer_budget: int) -> list[int]:
    """The test-time prompt `c q ANS`, which leaves room for `answer_budget` tokens and never sees the answer."""
    c, q = tokenizer.encode(context), tokenizer.encode(question)
    room = max_len - answer_budget - 1
    q = q[: max(0, room)]
    return c[: max(0, room - len(q))] + q + [tokenizer.ans_id]


def answer_budget(task: Task, tokenizer: Tokenizer, max_len: int) -> int:
    """How many tokens an answer may take at test time: the longest training answer + EOS, at most max_len // 4."""
    return min(max(len(tokenizer.encode(example.answer)) for example in task.train) + 1, max_len // 4)


def encode_task(task: Task, tokenizer: Tokenizer, max_len: int) -> list[Encoded]:
    """The rows of all training examples that fit; what is cut, of test prompts too, or rejected is printed.

    Raises DataError if no example fits."""
    rows = [encode_example(example, tokenizer.task_id(task.name), tokenizer, max_len) for example in task.train]
    kept = [row for row in rows if row is not None]
    counts = {
        "rejected (question and answer too long)": len(rows) - len(kept),
        "answers cut": sum(row.answer_cut > 0 for row in kept),
        "contexts cut": sum(row.context_cut > 0 for row in kept),
    }
    if any(counts.values()):
        found = ", ".join(f"{n} {what}" for what, n in counts.items() if n)
        print(f"{task.name}: of {len(rows)} training examples, at {max_len} tokens: {found}")
    budget = answer_budget(task, tokenizer, max_len)
    for split, examples in (("training", task.train), ("test", task.test)):
        if cut := sum(len(tokenizer.encode(e.answer)) + 1 > budget for e in examples):
            print(f"{task.name}: {cut} of {len(examples)} {split} answers are too long to be generated ({budget})")
    lengths = (len(tokenizer.encode(e.context)) + len(tokenizer.encode(e.question)) + 1 for e in task.test)
    if cut := sum(n + budget > max_len for n in lengths):
        print(f"{task.name}: {cut} of {len(task.test)} test prompts cut, to leave {budget} tokens for the answer")
    if not kept:
        raise DataError(f"task {task.name}: no training example fits into {max_len} tokens")
    return kept


# ---------------------------------------------------------------------- examples -> batches


@dataclass
class Rows:
    """Rows that go through the model at once, packed: N tokens, S of them supervised."""

    ids: torch.Tensor  # (N,)
    packing: Packing
    supervised: torch.Tensor  # (S,): which of the N tokens
    labels: torch.Tensor  # (S,): what they must predict
    lm: torch.Tensor  # (S,) bool: of an LM row, else of a QA row
    replay: torch.Tensor  # (S,) bool: of an earlier task, else of the current one
    distil: bool  # the teacher's distribution is the target, else the labels are
    sizes: dict[tuple[int, bool], int]  # of each row: (its example's number, is it the LM row) -> its share of the S
    rank: int = 0  # of several processes, which one takes them

    def to(self, device) -> "Rows":
        """On the device."""
        tensors = (move(t, device) for t in (self.supervised, self.labels, self.lm, self.replay))
        return Rows(move(self.ids, device), self.packing.to(device), *tensors, self.distil, self.sizes, self.rank)


class Row(NamedTuple):
    """One row of one example."""

    distil: bool
    ids: list[int]
    labels: list[int]
    lm: bool
    replay: bool
    key: tuple[int, bool]


def make_batch(samples, indices, n_current, distil=False, lm=True, micro_batch=0, kind="cpu", ranks=1) -> list[Rows]:
    """Both rows of each example (without `lm` the QA row only), in groups that go through the model at once.

    samples: list of Encoded, the `n_current` of the current task first; indices: who is in the batch. How rows are
    grouped changes no loss: normalisers are those of the whole batch. Current rows stand apart from replay rows if they
    are to be distilled, so that the teacher sees no others. A group has at most the rows of `micro_batch` examples,
    GROUP_TOKENS tokens and GROUP_SCORES attention scores. kind: cpu, cuda. Rows are dealt to the ranks by turns."""
    rows = []
    for i in indices:
        example, replay = samples[i], i >= n_current
        rows.append(Row(distil and not replay, example.qa_ids, example.qa_labels, False, replay, (i, False)))
        if lm:
            rows.append(Row(distil and not replay, example.lm_ids, example.lm_labels, True, replay, (i, True)))
    rows.sort(key=lambda row: (row.distil, len(row.ids)), reverse=True)
    most = micro_batch * (1 + lm) or len(rows)
    batch = []
    for rank in range(ranks):
        groups = []
        for row in rows[rank::ranks]:
            if groups:
                first, n = groups[-1][0], len(groups[-1])  # the longest of its group
                fits = sum(len(r.ids) for r in groups[-1]) + len(row.ids) <= GROUP_TOKENS
                fits = fits and (n + 1) * len(first.ids) ** 2 <= GROUP_SCORES.get(kind, 1024**2)
                if row.distil == first.distil and n < most and fits:
                    groups[-1].append(row)
                    continue
            groups.append([row])
        batch += [collate(group, rank) for group in groups]
    return batch


def collate(group: list[Row], rank: int = 0) -> Rows:
    """Rows as tensors, one after another."""
    labels = torch.tensor([label for row in group for label in row.labels])
    supervised = (labels != IGNORE).nonzero()[:, 0]
    sizes = [sum(label != IGNORE for label in row.labels) for row in group]
    of_row = torch.tensor([(row.lm, row.replay) for row in group]).repeat_interleave(torch.tensor(sizes), dim=0)
    return Rows(
        ids=torch.tensor([i for row in group for i in row.ids]),
        packing=Packing.of([len(row.ids) for row in group]),
        supervised=supervised,
        labels=labels[supervised],
        lm=of_row[:, 0],
        replay=of_row[:, 1],
        distil=group[0].distil,
        sizes=dict(zip([row.key for row in group], sizes)),
        rank=rank,
    )


def plan_epoch(n_current, n_replay, batch_size, updates, generator) -> list[list[int]]:
    """Who is in which batch of an epoch: indices, current samples first (i < n_current), then replay samples.

    shuffled (as released): both kinds in one permutation. alternate (Algorithm 1, batches in place of samples): each
    batch of current samples is followed by its share of the replay samples, in an update of its own; shares differ by
    one at most."""
    if updates == "shuffled":
        order = torch.randperm(n_current + n_replay, generator=generator).tolist()
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    current = torch.randperm(n_current, generator=generator).tolist()
    replay = [n_current + i for i in torch.randperm(n_replay, generator=generator).tolist()]
    n = -(-n_current // batch_size)
    plan = []
    for k in range(n):
        plan.append(current[k * batch_size : (k + 1) * batch_size])
        plan.append(replay[k * n_replay // n : (k + 1) * n_replay // n])
    return [batch for batch in plan if batch]


def show() -> None:
    """One example through text, ids and labels (Figure 2), then a few as a batch."""
    tok, task = Tokenizer.nano(), load_task("toy.woz", "", "")
    task_id = tok.task_id(task.name)
    one = task.train[1]
    both = encode_example(one, task_id, tok, max_len=256)
    names = {tok.ans_id: "ANS", tok.eos_id: "EOS", task_id: "TASK", IGNORE: "-"}

    def column(ids):
        return [names.get(i) or repr(tok.decode([i])) for i in ids]

    print(f"context   {one.context}\nquestion  {one.question}\nanswer    {one.answer}\n")
    print(f"{'':16}LM row: learn to write examples{'':9}QA row: learn to answer (one position less)")
    print(f"{'position in LM':<16}{'input':<20}{'label':<20}{'input':<20}label")
    rows = [*map(column, (both.lm_ids, both.lm_labels)), *(["", *column(x)] for x in (both.qa_ids, both.qa_labels))]
    for t, cells in enumerate(zip(*rows)):
        print(f"{t:<16}" + "".join(f"{cell:<20}" for cell in cells).rstrip())
    samples = [encode_example(e, task_id, tok, max_len=256) for e in task.train[:6]]
    plan = plan_epoch(4, 2, 3, "shuffled", torch.Generator().manual_seed(0))
    print(f"\n4 current samples and 2 replay samples (4, 5) in batches of 3: {plan}")
    for rows in make_batch(samples, plan[0], n_current=4, distil=True):
        how = "by the teacher's distribution" if rows.distil else "by the labels"
        padded = sum(R * T for _, R, T in rows.packing.blocks)
        print(f"  {len(rows.sizes)} rows, packed: {len(rows.ids)} tokens ({padded} in attention),", end=" ")
        print(f"{len(rows.labels)} supervised, {how}")


if __name__ == "__main__":
    show()
