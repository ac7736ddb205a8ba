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

CHUNK = {"cpu": 256, "cuda": 1024}  # tokens whose logits exist at once: few enough for a processor's cache


def at_least_float32(logits):
    """At least float32: a softmax over 50,000 words in half precision loses the tail."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def nll(logits, targets):
    """Section 2.2, L_NLL: -log P(x_t | x_<t). logits (S, V), targets (S,) -> (S,), in nats."""
    return F.cross_entropy(at_least_float32(logits), targets, reduction="none")


def word_kd(student_logits, teacher_logits, temperature):
    """Section 2.2, L_Word-KD: how far the student's next word is from the teacher's. Logits (S, V) -> (S,), in nats.

        T^2 · KL(p_T ‖ p_S),   p_T, p_S = softmax(logits / T) of teacher and student; T alone: the temperature

    The paper's cross-entropy -Σ p_T log p_S is this KL plus the teacher's entropy, which is constant in the student.
    T^2 keeps the gradient's scale as T grows; it is T (p_S - p_T) with respect to the student's logits."""
    teacher = F.log_softmax(at_least_float32(teacher_logits) / temperature, dim=-1)
    student = F.log_softmax(at_least_float32(student_logits) / temperature, dim=-1)
    return temperature**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1)


def token_weights(batch, rule, ans_id, ans_weight=5.0, lm_lambda=0.25):
    """Section 2.3: what each supervised token counts in the loss of its batch; a tensor (S,) for each group of rows.

    The loss of a batch is Σ weight · ℓ, over its tokens, with ℓ the NLL or the KD of a token:

        L = L_QA + λ · L_LM,  and for each stream s
        joint   L_s = ( Σ_current ℓ + Σ_replay NLL ) / (all tokens of s)                 the paper's sum over samples
        added   L_s = Σ_current ℓ / (current tokens of s) + Σ_replay NLL / (replay tokens of s)

    As released, `added` is the rule of Word-KD and Seq-KD_soft, `joint` that of all else. A target that is ANS (LM rows
    alone have it) counts `ans_weight` times in NLL terms and in what they are divided by. A part without tokens adds
    nothing."""
    weights = []
    for rows in batch:
        w = torch.ones(len(rows.labels))
        weights.append(w if rows.distil else torch.where(rows.labels == ans_id, ans_weight * w, w))
    # tokens that are divided by one number share a key: QA 0 (replay apart: 1), LM 2 (replay apart: 3)
    keys = [2 * rows.lm + (rows.replay if rule == "added" else 0) for rows in batch]  # (S,) each
    for key in range(4):
        total = sum((w * (k == key)).sum() for w, k in zip(weights, keys))
        scale = (lm_lambda if key >= 2 else 1.0) / total.clamp(min=1e-9)
        weights = [torch.where(k == key, w * scale, w) for w, k in zip(weights, keys)]
    return weights


class FusedLoss(torch.autograd.Function):
    """Σ_i w_i ℓ_i over S supervised tokens: projection, loss and gradient in one, a chunk of tokens at a time.

    Both gradients are known in closed form, so they are taken while a chunk's logits z are at hand, and no (S, V)
    tensor is ever kept (p at temperature 1 for NLL, at T for Word-KD):

        NLL      ℓ = −log p_S[target]                    ∂ℓ/∂z = p_S − onehot(target)
        Word-KD  ℓ = T² Σ p_T (log p_T − log p_S)        ∂ℓ/∂z = T (p_S − p_T)

    `nll` and `word_kd` above say the same in plain words; a test holds them equal. All work is done in place on
    buffers of (chunk, V): fresh memory for each step would cost more time than the arithmetic."""

    @staticmethod
    def forward(ctx, hidden, weight, token_weights, targets, teacher, temperature, loss_scale):
        """hidden (S, C), weight (V, C), token_weights, targets (S,), teacher: None for NLL, or its (hidden, weight).

        Returns the weighted sum and, for the log, its S parts. `loss_scale` is GradScaler's: the gradients carry it."""
        kind, (S, V) = hidden.device.type, (len(hidden), len(weight))
        chunk = min(S, CHUNK.get(kind, 512))
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        h, W = hidden.to(dtype), weight.to(dtype)  # (S, C), (V, C), cast once
        grad_h, grad_W = torch.empty_like(h), torch.zeros_like(W)
        losses = token_weights.new_empty(S, dtype=torch.promote_types(dtype, torch.float32))
        log_p = losses.new_empty(chunk, V)
        log_p_teacher, p_teacher = (torch.empty_like(log_p) for _ in range(2)) if teacher else (None, None)
        buffer = h.new_empty(chunk, V)  # what the matrix products read and write, in the compute dtype
        T = temperature if teacher else 1.0
        with torch.autocast(kind, enabled=False):
            for i in range(0, S, chunk or 1):
                part, n = slice(i, i + chunk), len(h[i : i + chunk])
                log_q = project(h[part] / T, W, buffer[:n], log_p[:n])
                if teacher:
                    log_t = project(teacher[0][part] / T, teacher[1], buffer[:n], log_p_teacher[:n])
                    t = torch.exp(log_t, out=p_teacher[:n])
                    losses[part] = T * T * log_t.sub_(log_q).mul_(t).sum(dim=-1)
                    dz = log_q.exp_().sub_(t)
                else:
                    target = targets[part, None]
                    losses[part] = -log_q.gather(1, target)[:, 0]
                    dz = log_q.exp_().scatter_add_(1, target, -torch.ones_like(target, dtype=log_q.dtype))
                buffer[:n].copy_(dz.mul_(token_weights[part, None] * (T * loss_scale)))
                torch.mm(buffer[:n], W, out=grad_h[part])
                grad_W.addmm_(buffer[:n].t(), h[part])
        ctx.save_for_backward(grad_h, grad_W)
        ctx.loss_scale, ctx.dtypes = loss_scale, (hidden.dtype, weight.dtype)
        losses *= token_weights
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx, grad, _):
        factor, grads = grad / ctx.loss_scale, ctx.saved_tensors  # `grad` is the loss scale, which they carry: 1
        if factor.device.type != "cpu" or factor != 1:  # to ask a GPU would mean to wait for it
            grads = (g * factor for g in grads)
        return *(g.to(dtype) for g, dtype in zip(grads, ctx.dtypes)), None, None, None, None, None


def project(h, W, buffer, out):
    """log softmax(h Wᵀ) (n, V) in `out`; the matrix product in the compute dtype, that of `buffer`."""
    torch.mm(h, W.t(), out=buffer)
    return torch.log_softmax(out.copy_(buffer), dim=-1, out=out)


class Teacher:
    """What a student learns from: a frozen model's final hidden states (S, C) at the supervised positions.

    They never change. Those of `remember` are computed once, and later cost no more than the product with the head."""

    def __init__(self, model):
        self.model, self.known = model, {}

    @torch.no_grad()
    def states(self, rows):
        """Rows -> hidden states (S, C), in the compute dtype."""
        if self.known:
            return torch.cat([self.known[key] for key in rows.sizes])
        return (
            self.model.hidden(rows.ids, rows.packing).index_select(0, rows.supervised).to(self.model.wte.weight.dtype)
        )

    def remember(self, batch):
        """One pass over all rows that will be asked for, whoever will be their batch mates."""
        known = {}
        for rows in batch:
            known |= zip(rows.sizes, self.states(rows).split(list(rows.sizes.values())))
        self.known = known


def rows_loss(student, teacher, rows, weights, temperature, loss_scale=1.0):
    """The share of one group of rows in the loss of its batch, and what QA and LM rows add to it (for the log).

    Hidden states are gathered at the supervised positions before the projection to the vocabulary, so logits exist for
    the S supervised tokens only, the student's and the teacher's at the same ones. loss_scale: a GradScaler's, which
    half-precision gradients need where they are made."""
    hidden = student.hidden(rows.ids, rows.packing).index_select(0, rows.supervised)  # (S, C)
    soft = (teacher.states(rows), teacher.model.wte.weight) if rows.distil else None
    loss, parts = FusedLoss.apply(hidden, student.wte.weight, weights, rows.labels, soft, temperature, loss_scale)
    return loss, (parts * ~rows.lm).sum(), (parts * rows.lm).sum()


def show() -> None:
    """The losses of one next word, what the temperature does to it, and where the gradient comes from."""
    words = ["north", "south", "east", "west"]
    teacher = torch.tensor([[4.0, 2.0, 0.5, 0.0]])
    student = torch.tensor([[1.0, 1.5, 0.0, 0.0]], requires_grad=True)
    truth, best = torch.tensor([1]), teacher.argmax(dim=-1)

    def line(name, numbers):
        print(f"{name:<34}" + "".join(f"{x:>9.3f}" for x in numbers))

    print(f"{'next word':<34}" + "".join(f"{word:>9}" for word in words))
    for T in (1, 2, 5):
        line(f"teacher's probabilities, T = {T}", (teacher / T).softmax(dim=-1)[0])
    line("student's probabilities, T = 1", student.softmax(dim=-1)[0])

    print("\nLoss of this position, and its gradient in the student's logits: a step goes against it.\n")
    losses = {
        f"NLL of the data's {words[truth]!r}": nll(student, truth),
        f"NLL of the teacher's {words[best]!r}": nll(student, best),
    } | {f"Word-KD, T = {T}": word_kd(student, teacher, T) for T in (1, 2, 5)}
    print(f"{'':<29}{'loss':>9}" + "".join(f"{word:>9}" for word in words))
    for name, loss in losses.items():
        (grad,) = torch.autograd.grad(loss.sum(), student, retain_graph=True)
        print(f"{name:<29}{loss.item():>9.3f}" + "".join(f"{x:>9.3f}" for x in grad[0]))
    print("\nA hard target pushes one word up and the rest down; a soft one says how good each of the rest is. T makes")
    print("both distributions flatter, so that unlikely words count; T² keeps the size of the gradient, T (p_S - p_T).")

    T, p = 2, (teacher / 2).softmax(dim=-1)
    cross_entropy = T**2 * -(p * (student / T).log_softmax(dim=-1)).sum()
    entropy = T**2 * -(p * p.log()).sum()
    kl = T**2 * (p * (p.log() - (student / T).log_softmax(dim=-1))).sum()  # word_kd
    a, b = (torch.autograd.grad(loss, student)[0] for loss in (cross_entropy, kl))
    print("\nWhy the KL here and the paper's cross-entropy have one gradient (T = 2):")
    print("    -T² Σ p_T log p_S  =  T² Σ p_T log (p_T / p_S)  -  T² Σ p_T log p_T", end="")
    print(f"      {cross_entropy:.4f} = {kl:.4f} + {entropy:.4f}")
    print("    and the last term, the teacher's entropy, has no student in it:", end=" ")
    print(f"the gradients differ by {(a - b).abs().max():.0e}")

    print(
        "\nWho uses what (Section 2.2), for the current task; pseudo-data of earlier tasks get the NLL with all four:"
    )
    print("    LAMOL        NLL of the data's words")
    print("    Word-KD      KL at the positions of the data's words")
    print("    Seq-KD       NLL, the teacher's own answer in place of the data's")
    print("    Seq-KD_soft  KL, the teacher's own answer in place of the data's")


if __name__ == "__main__":
    show()
