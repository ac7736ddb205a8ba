"""The losses: NLL and word-level distillation of one token, the weights of the tokens in a batch, and their sum.

Section 2.2. NLL has the next word of the data as its target, Word-KD the teacher's whole distribution over it. The
sequence-level methods need no loss of their own, only other rows:

    Word-KD        L_Word-KD on the ground truth
    Seq-KD         L_NLL     on the teacher's greedy answers
    Seq-KD_soft    L_Word-KD on the teacher's greedy answers

`nll` and `word_kd` are the functions that train: autograd differentiates them, a chunk of tokens at a time.

    python kd.py     shows the three on a toy distribution
"""

from collections import ChainMap
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F

from data import IGNORE, Row, Sample, collate
from lab.fast.chunked import Logits, Term, chunked_loss

BLOCK = 4  # samples whose states a teacher computes together


def nll(logits, targets):
    """Section 2.2, L_NLL: -log P(x_t | x_<t). logits (n, V), targets (n,) -> (n,), in nats."""
    return F.cross_entropy(logits, targets, reduction="none")


def word_kd(student_logits, teacher_logits, temperature):
    """Section 2.2, L_Word-KD: how far the student's next word is from the teacher's. Logits (n, V) -> (n,), in nats.

        temperature² · KL(p_T ‖ p_S),   p_T, p_S = softmax(logits / temperature) of teacher and student

    The paper's cross-entropy -Σ p_T log p_S is this KL plus the teacher's entropy, in which there is no student.
    temperature² keeps the size of the gradient, which is temperature · (p_S - p_T) in the student's logits."""
    teacher = F.log_softmax(teacher_logits / temperature, dim=-1)
    student = F.log_softmax(student_logits / temperature, dim=-1)
    return temperature**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1)


# ---------------------------------------------------------------------- what each token counts


def authors_rule(kd):
    """How the authors' code weighs replay, for a --kd: `added` with soft targets, else `joint` (see token_weights)."""
    return "added" if kd in ("word", "seqsoft") else "joint"


def token_weights(batch, rule, ans_id, ans_weight=5.0, lm_lambda=0.25):
    """Section 2.3: the weight of each supervised token in the loss of its batch (a list of data.Group): a tensor (S,)
    for each group.

    The loss of a batch is Σ weight · ℓ over its tokens, with ℓ the NLL or the KD of a token:

        L = L_QA + λ · L_LM,  and for each row kind s
        joint   L_s = ( Σ_current ℓ + Σ_replay NLL ) / (all tokens of s)                 the paper's sum, as a mean
        added   L_s = Σ_current ℓ / (current tokens of s) + Σ_replay NLL / (replay tokens of s)

    A hard target that is ANS, which only LM rows have, counts `ans_weight` times, in the sum and in its divisor. An
    empty part adds nothing. The paper has no rule, and the authors' code two: see authors_rule.
    """
    weights = [torch.where(group.labels == ans_id, ans_weight, 1.0).index_fill(0, group.soft, 1.0) for group in batch]
    weights = torch.cat(weights)
    lm = torch.cat([group.lm for group in batch])
    replay = torch.cat([group.replay for group in batch])
    # the tokens of one part share a divisor: 0 QA, 1 LM, and with `added` 2 and 3 for those that are replayed
    part = lm + 2 * replay if rule == "added" else lm.long()
    divisor = weights.new_zeros(4).index_add(0, part, weights)
    weights = weights / divisor[part] * torch.where(lm, lm_lambda, 1.0)
    return weights.split([len(group.labels) for group in batch])


# ---------------------------------------------------------------------- the teacher


class Teacher:
    """A frozen model, whose distribution of the next word is the soft target.

    It never changes, so its final hidden states at the supervised positions can be remembered. Later epochs only
    multiply them with its head."""

    def __init__(self, model, dtype=torch.float32):
        self.model = freeze(model, dtype)
        self.blocks, self.cache = {}, {}  # sample -> the rows of its block; (sample, whether its LM row) -> states

    def remember(self, samples: list[Sample], lm: bool, most_bytes: int) -> None:
        """Remember the states of these samples, as far as `most_bytes` go, once they have been asked for.

        They are computed a block of samples at a time, always the same ones. So not a bit of them depends on the
        batch in which they are needed first."""
        token_bytes = self.model.config.n_embd * self.model.wte.weight.dtype.itemsize
        for i in range(0, len(samples), BLOCK):
            block = samples[i : i + BLOCK]
            rows = [Row(sample, kind, replay=False) for sample in block for kind in ((False, True) if lm else (False,))]
            most_bytes -= token_bytes * sum(label != IGNORE for row in rows for label in row.labels)
            if most_bytes < 0:
                break
            self.blocks |= dict.fromkeys(block, rows)

    @torch.no_grad()
    def states(self, rows: list[Row]) -> torch.Tensor:
        """Its hidden states (S, C) at the supervised positions of rows, one row after another."""
        for row in rows:
            if row.sample in self.blocks and (row.sample, row.lm) not in self.cache:
                self.cache |= self.compute(self.blocks[row.sample])
        states = ChainMap(self.cache, self.compute([row for row in rows if row.sample not in self.blocks]))
        return torch.cat([states[row.sample, row.lm] for row in rows])

    def compute(self, rows: list[Row]) -> dict:
        """(sample, whether its LM row) -> its states."""
        if not rows:
            return {}
        device = self.model.device
        group = collate(rows, device=device.type).to(device)
        packing = group.packing
        hidden = self.model.hidden(group.ids, packing.position, packing.within_rows(self.model.causal))
        states = hidden[0, group.supervised].to(self.model.wte.weight.dtype)
        sizes = [sum(label != IGNORE for label in row.labels) for row in rows]
        return {(row.sample, row.lm): part for row, part in zip(rows, states.split(sizes))}

    def logits(self, group) -> Logits:
        """Its logits at the soft tokens of a group, which must be of current rows: it sees no others."""
        states = self.states([row for row in group.rows if not row.replay])
        place = (~group.replay).cumsum(0) - 1  # of each current token among the current ones
        return Logits(states[place[group.soft]], self.model.head())


@torch.no_grad()
def freeze(model, dtype):
    """Fix a model in evaluation mode, in place, with its matrices in `dtype`. Residual stream, layer norms and
    positions stay in float32, like the student's."""
    model.eval().requires_grad_(False)
    if dtype != torch.float32:
        mean = model.wte.weight.mean(dim=0)  # the head is centred before it is rounded (see GPT.head) ...
        model.wte.weight -= mean
        model.wpe.weight += mean  # ... and the positions make up for it in the embedding
        for module in (model.wte, *(m for m in model.modules() if isinstance(m, nn.Linear))):
            module.to(dtype)
    return model


# ---------------------------------------------------------------------- the loss of a group of rows


def terms(group, weights, teacher, temperature) -> list[Term]:
    """What the tokens of a group learn from: hard ones from their labels, soft ones from the teacher.

    Another target for some tokens is one more Term; for a mixture the weights of both add up to theirs. What a loss may
    depend on: see lab.fast.chunked.Term."""
    hard, soft = group.hard, group.soft
    losses = [Term(hard, weights[hard], nll, (group.labels[hard],))]
    if len(soft):
        losses.append(Term(soft, weights[soft], partial(word_kd, temperature=temperature), (teacher.logits(group),)))
    return losses


def group_loss(student, teacher, group, weights, temperature, scale=1.0):
    """One group's part of the loss of its batch, and what each token adds to it (S,), without a gradient.

    weights (S,): from `token_weights`. scale: the loss scale that the loss will be multiplied with. The hidden states
    are gathered at the supervised positions before they are multiplied with the head, so logits exist for the S
    supervised tokens only."""
    losses = terms(group, weights, teacher, temperature)  # before the student's activations fill the memory
    attend = group.packing.within_rows(student.causal)
    hidden = student.hidden(group.ids, group.packing.position, attend)[0, group.supervised]  # (S, C)
    return chunked_loss(hidden, student.head(), losses, scale)


if __name__ == "__main__":
    import sys

    from lab.show.kd import main

    sys.exit(main())
