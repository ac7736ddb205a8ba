"""The losses: NLL and word-level distillation, a token at a time, and their weights in the loss of a batch.

Section 2.2. NLL has the next word as its target, Word-KD the teacher's whole distribution of it. The sequence-level
variants need no loss of their own, only other rows:

    Word-KD        L_Word-KD on the ground truth
    Seq-KD         L_NLL     on the teacher's greedy answers
    Seq-KD_soft    L_Word-KD on the teacher's greedy answers

    python kd.py     shows the three on a toy distribution
"""

import torch
import torch.nn.functional as F

IGNORE = -1


def exact(logits):
    """At least float32: a softmax over 50,000 words in half precision loses the tail."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def nll(logits, targets):
    """Section 2.2, L_NLL: -log P(x_t | x_<t). logits (N, V), targets (N,) -> (N,), in nats."""
    return F.cross_entropy(exact(logits), targets, reduction="none")


def word_kd(student_logits, teacher_logits, temperature):
    """Section 2.2, L_Word-KD: how far the student's next word is from the teacher's. Logits (N, V) -> (N,), in nats.

        T^2 · KL(p_teacher ‖ p_student),   p = softmax(logits / T)

    The paper's cross-entropy -Σ p_T log p_S is this KL plus the teacher's entropy, which is constant in the student.
    T^2 keeps the gradient's scale as T grows; it is T (p_S - p_T) with respect to the student's logits."""
    teacher = F.log_softmax(exact(teacher_logits) / temperature, dim=-1)
    student = F.log_softmax(exact(student_logits) / temperature, dim=-1)
    return temperature**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1)


def token_weights(batch, rule, ans_id, ans_weight=5.0, lm_lambda=0.25):
    """Section 2.3: what each supervised token counts in the loss of its batch; a tensor (R, T) for each group of rows.

    The loss of a batch is Σ weight · ℓ, over its tokens, with ℓ the NLL or the KD of a token:

        L = L_QA + λ · L_LM,  and for each stream s
        joint   L_s = ( Σ_current ℓ + Σ_replay NLL ) / (all tokens of s)                 the paper's sum over samples
        added   L_s = Σ_current ℓ / (current tokens of s) + Σ_replay NLL / (replay tokens of s)

    A target that is ANS counts `ans_weight` times in NLL terms and in what they are divided by (released code). A part
    without tokens adds nothing."""
    weights = []
    for rows in batch:
        w = (rows.labels != IGNORE).float()
        weights.append(w if rows.distil else torch.where(rows.labels == ans_id, ans_weight * w, w))
    for lm in (False, True):
        for part in (None,) if rule == "joint" else (False, True):
            chosen = [(rows.lm == lm) & ((rows.replay == part) if part is not None else True) for rows in batch]
            total = sum((w * mask).sum() for w, mask in zip(weights, chosen))
            scale = (lm_lambda if lm else 1.0) / total.clamp(min=1e-9)
            weights = [torch.where(mask, w * scale, w) for w, mask in zip(weights, chosen)]
    return weights


def rows_loss(student, teacher, rows, weights, temperature):
    """The share of one group of rows in the loss of its batch: (QA, LM), two scalars.

    Hidden states are gathered at the supervised positions before the projection to the vocabulary, so logits exist for
    the N supervised tokens only, the student's and the teacher's at the same ones."""
    supervised = rows.labels != IGNORE  # (R, T)
    logits = student.head(student.hidden(rows.ids)[supervised])  # (N, V)
    if rows.distil:
        with torch.no_grad():
            teacher_logits = teacher.head(teacher.hidden(rows.ids)[supervised])
        loss = word_kd(logits, teacher_logits, temperature)
    else:
        loss = nll(logits, rows.labels[supervised])
    loss = loss * weights[supervised]
    lm = rows.lm.expand_as(supervised)[supervised]
    return loss[~lm].sum(), loss[lm].sum()


if __name__ == "__main__":
    words = ["north", "south", "east", "west"]
    teacher, student, truth = torch.tensor([[4.0, 2.0, 0.5, 0.0]]), torch.tensor([[1.0, 1.5, 0.0, 0.0]]), 0
    print("next word  ", *(f"{w:>8}" for w in words))
    for name, logits in (("teacher", teacher), ("student", student)):
        for T in (1, 2):
            print(f"{name} T={T}", *(f"{p:8.3f}" for p in (logits / T).softmax(-1)[0].tolist()))
    print(f"NLL of {words[truth]!r} (hard target)          {nll(student, torch.tensor([truth])).item():.3f}")
    print(f"Word-KD, T = 2 (soft target)           {word_kd(student, teacher, 2.0).item():.3f}")
    best = teacher.argmax(-1)
    print(f"Seq-KD: NLL of the teacher's {words[best.item()]!r}    {nll(student, best).item():.3f}")
