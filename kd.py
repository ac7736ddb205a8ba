"""The losses: NLL and word-level distillation of one token, the weights of the tokens in a batch, and their sum.

Section 2.2. NLL has the next word of the data as its target, Word-KD the teacher's whole distribution over it. The
sequence-level methods need no loss of their own, only other rows:

    Word-KD        L_Word-KD on the ground truth
    Seq-KD         L_NLL     on the teacher's greedy answers
    Seq-KD_soft    L_Word-KD on the teacher's greedy answers

`nll` and `word_kd` are the functions that train: autograd differentiates them, a chunk of tokens at a time.

    python kd.py     shows the three on a toy distribution
"""

from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F

from data import IGNORE, Row, collate
from lab.fast.chunked import Logits, Term, chunked_loss


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


def token_weights(batch, rule, ans_id, ans_weight=5.0, lm_lambda=0.25):
    """Section 2.3: the weight of each supervised token in the loss of its batch, a tensor (S,) for each group.

    The loss of a batch is Σ weight · ℓ over its tokens, with ℓ the NLL or the KD of a token:

        L = L_QA + λ · L_LM,  and for each row kind s
        joint   L_s = ( Σ_current ℓ + Σ_replay NLL ) / (all tokens of s)                 the paper's sum over samples
        added   L_s = Σ_current ℓ / (current tokens of s) + Σ_replay NLL / (replay tokens of s)

    In the authors' code `added` is the rule of Word-KD and Seq-KD_soft, `joint` that of all else. A hard target that is
    ANS, which only LM rows have, counts `ans_weight` times, in the sum and in its divisor. An empty part adds nothing.
    """
    weights = [torch.where((group.labels == ans_id) & ~group.soft, ans_weight, 1.0) for group in batch]
    divided = [[group.lm == lm for group in batch] for lm in (False, True)]  # masks of the tokens with one divisor
    if rule == "added":
        divided = [[m & (g.replay == replay) for m, g in zip(ms, batch)] for ms in divided for replay in (False, True)]
    for masks in divided:
        total = sum(w[mask].sum() for w, mask in zip(weights, masks)).clamp(min=1e-9)
        weights = [torch.where(mask, w / total, w) for w, mask in zip(weights, masks)]
    return [torch.where(group.lm, lm_lambda * w, w) for group, w in zip(batch, weights)]


# ---------------------------------------------------------------------- the teacher


class Teacher:
    """A frozen model, whose distribution of the next word is the soft target.

    It never changes, so its final hidden states at the supervised positions are computed when they are first asked for,
    and remembered as far as `budget` bytes go. Later epochs only multiply them with its head."""

    def __init__(self, model, dtype=torch.float32, budget: int = 0):
        self.model = freeze(model, dtype)
        self.known, self.budget = {}, budget

    @torch.no_grad()
    def states(self, rows: list[Row]) -> torch.Tensor:
        """Its hidden states (S, C) at the supervised positions of rows, one row after another."""
        states = self.known
        if unknown := [row for row in rows if row.key not in states]:
            group = collate(unknown).to(self.model.device)
            hidden = self.model.hidden(group.ids, group.packing.position, group.packing.attend)[0, group.supervised]
            sizes = [sum(label != IGNORE for label in row.labels) for row in unknown]
            found = dict(zip([row.key for row in unknown], hidden.to(self.model.wte.weight.dtype).split(sizes)))
            self.remember(found)
            states = self.known | found
        return torch.cat([states[row.key] for row in rows])

    def remember(self, found: dict) -> None:
        for key, state in found.items():
            if state.nbytes <= self.budget:
                self.known[key], self.budget = state.clone(), self.budget - state.nbytes

    def logits(self, group) -> Logits:
        """Its logits at the soft tokens of a group, which must be of current rows: it sees no others."""
        states = self.states([row for row in group.rows if not row.replay])
        return Logits(states[group.soft[~group.replay]], self.model.head())


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
    """What the tokens of a group learn from: hard ones from their labels, soft ones from the teacher."""
    hard, soft = (~group.soft).nonzero()[:, 0], group.soft.nonzero()[:, 0]
    learned = [Term(hard, weights[hard], nll, (group.labels[hard],))]
    if len(soft):
        distance = partial(word_kd, temperature=temperature)
        learned.append(Term(soft, weights[soft], distance, (teacher.logits(group),)))
    return learned


def group_loss(student, teacher, group, weights, temperature):
    """One group's part of the loss of its batch, and what each token adds to it (S,), without a gradient.

    weights (S,): from `token_weights`. The hidden states are gathered at the supervised positions before they are
    multiplied with the head, so logits exist for the S supervised tokens only."""
    learned = terms(group, weights, teacher, temperature)  # before the student's activations fill the memory
    hidden = student.hidden(group.ids, group.packing.position, group.packing.attend)[0, group.supervised]  # (S, C)
    return chunked_loss(hidden, student.head(), learned)


if __name__ == "__main__":
    from lab.show.kd import show

    show()
