"""Pseudo-data: how many samples, how they are generated, and which generated sequence is a sample.

LAMOL (Section 2.1): the model is its own memory. From the token of an earlier task it writes context, question, ANS,
answer and EOS, as it learned them from that task's LM rows. It samples from the k = 20 likeliest words, and no data of
earlier tasks are stored.

    python lamol.py                           what a model that first learns toy.e2e generates of it
    python lamol.py runs/.../model toy.woz    what a run's model generates of a task
"""

import math
from collections import Counter
from dataclasses import dataclass

import torch

from data import Sample, Tokenizer, encode_parts
from lab.fast.chunked import at_least_float32
from lab.fast.decode import decode
from model import GPT


@dataclass
class PseudoSample:
    """One sequence with its task token first: a replay sample, or why it was rejected."""

    task: str
    source: str  # "generated" by the student, or "real"
    ids: list[int]
    rejected: str  # the reason, "" when it is accepted
    sample: Sample | None


def pseudo_per_task(n_new: int, gamma: float, n_previous: int) -> int:
    """The samples of each earlier task: ⌈γ · n_new⌉ shared equally, rounded down (Section 2.3, as the authors' code
    rounds); 0 if there is no earlier task."""
    return math.ceil(n_new * gamma) // n_previous if n_previous else 0


# ---------------------------------------------------------------------- top-k sampling


def top_k_filter(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Logits (..., V) with -inf below the k-th largest of each row. Ties with it stay. k <= 0 keeps all."""
    if k <= 0:
        return logits
    kth = logits.topk(min(k, logits.size(-1)), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < kth, -math.inf)


def top_k_sampler(k: int, n: int, steps: int, generator: torch.Generator, device="cpu"):
    """The `pick` of `decode` for n sequences of at most `steps` tokens: sample from the softmax of the k likeliest.

    Each sequence has random numbers of its own, so that it does not depend on its batch mates."""
    seeds = torch.randint(2**62, (n,), generator=generator).tolist()
    own = [torch.Generator().manual_seed(seed) for seed in seeds]
    uniform = torch.stack([torch.rand(steps, generator=g, dtype=torch.double) for g in own])  # (n, steps), in [0, 1)
    uniform = uniform.float().to(device)

    def pick(logits, rows, t):
        """The inverse of a cumulative distribution at a uniform number. logits (b, V) are of the sequences `rows` (b,),
        each of which gets its token number t (b,) -> tokens (b,)."""
        size = k if 0 < k < logits.size(-1) else logits.size(-1)
        values, ids = logits.topk(min(4 * size, logits.size(-1)))  # so up to 3k words that tie with the k-th are kept
        values = at_least_float32(top_k_filter(values, size))
        cdf = values.softmax(dim=-1).cumsum(dim=-1)
        # t is clamped for sequences that have ended, of which a GPU does not know at once
        threshold = uniform[rows, t.clamp(max=steps - 1)].to(cdf.dtype) * cdf[:, -1]
        place = torch.searchsorted(cdf, threshold[:, None], right=True)
        last = values.isfinite().sum(dim=-1, keepdim=True) - 1  # where rounding has made the threshold the whole sum
        return ids.gather(1, torch.minimum(place, last))[:, 0]

    return pick


# ---------------------------------------------------------------------- what is a sample


def why_rejected(ids: list[int], tokenizer: Tokenizer) -> str:
    """The first rule that a generated sequence, which may be empty, breaks, or "" for a sample.

    TASK ... must end in its only EOS, with exactly one ANS, text before and after it, no PAD, no task token inside."""
    inside = ids[1:-1]
    if not ids or not tokenizer.is_task(ids[0]):
        return "no task token first"
    if ids[-1] != tokenizer.eos_id:
        return "never stopped"
    if tokenizer.eos_id in inside:
        return "EOS inside"
    if tokenizer.pad_id in inside or any(tokenizer.is_task(i) for i in inside):
        return "PAD or task token inside"
    if inside.count(tokenizer.ans_id) != 1:
        return "no ANS" if tokenizer.ans_id not in inside else "several ANS"
    if tokenizer.ans_id in (inside[0], inside[-1]):
        return "empty question or answer"
    return ""


def parse_pseudo(ids: list[int], tokenizer: Tokenizer) -> tuple[list[int], list[int]] | None:
    """TASK c q ANS a EOS -> (ids of context and question, ids of the answer), or None when it is rejected."""
    if why_rejected(ids, tokenizer):
        return None
    at = ids.index(tokenizer.ans_id)
    return ids[1:at], ids[at + 1 : -1]


# ---------------------------------------------------------------------- where replay comes from


def generated_samples(
    model: GPT, tokenizer: Tokenizer, name: str, n: int, max_len: int, top_k: int, generator: torch.Generator
) -> list[PseudoSample]:
    """Algorithm 1, line 2: n sequences of an earlier task, accepted or not, sampled from the model.

    A sequence may be as long as a training row and its EOS. In the authors' code, too, rejected ones are not
    replaced."""
    task_id = tokenizer.task_id(name)
    pick = top_k_sampler(top_k, n, max_len, generator, model.device)
    samples = []
    for i, new in enumerate(decode(model, [[task_id]] * n, [max_len] * n, tokenizer.eos_id, pick), 1):
        ids = [task_id, *new]
        sample = None
        if parts := parse_pseudo(ids, tokenizer):
            # context and question can't be told apart in a generated sequence, and need not be: the rows are the same
            sample = encode_parts([], *parts, task_id, tokenizer, max_len, id=f"pseudo-{name}-{i}")
        samples.append(PseudoSample(name, "generated", ids, why_rejected(ids, tokenizer), sample))
    return samples


def real_samples(
    samples: list[Sample], tokenizer: Tokenizer, name: str, n: int, generator: torch.Generator
) -> list[PseudoSample]:
    """--replay real: n training samples of an earlier task in place of generated ones, LAMOL's upper bound.

    No sample is drawn twice before all have been drawn once."""
    rounds = math.ceil(n / len(samples))
    drawn = torch.cat([torch.randperm(len(samples), generator=generator) for _ in range(rounds)])[:n].tolist()
    return [PseudoSample(name, "real", [*samples[i].lm_ids, tokenizer.eos_id], "", samples[i]) for i in drawn]


def as_line(sample: PseudoSample, tokenizer: Tokenizer) -> dict:
    """A line of pseudo.jsonl: the sequence as text, where it comes from, and why it is rejected, if it is."""
    question, answer = parse_pseudo(sample.ids, tokenizer) or (sample.ids, [])
    texts = {"context_and_question": tokenizer.decode(question), "answer": tokenizer.decode(answer)}
    return {"task": sample.task, "source": sample.source, "rejected": sample.rejected, **texts, "ids": sample.ids}


def report(samples: list[PseudoSample]) -> str:
    """How many are accepted and why others are not, one line a task, with a warning where most are rejected."""
    lines = []
    for name in dict.fromkeys(sample.task for sample in samples):
        reasons = Counter(sample.rejected or "accepted" for sample in samples if sample.task == name)
        parts = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
        lines.append(f"pseudo-data of {name}: {parts} of {reasons.total()}")
        if reasons["accepted"] < reasons.total() / 2:
            lines.append(f"WARNING: more than half of the pseudo-data of {name} is rejected: its replay is failing")
    if all(sample.rejected for sample in samples):
        lines.append("WARNING: nothing is replayed in this stage, so options of replay have no effect")
    return "\n".join(lines)


if __name__ == "__main__":
    import sys

    from lab.show.lamol import main

    sys.exit(main())
