"""python kd.py: the losses of one next word, what the temperature does to it, and where the gradient comes from."""

import torch

from data import encode_example, make_batch
from kd import Teacher, group_loss, nll, token_weights, word_kd
from lab.errors import Parser, command, replace_unprintable
from lab.run.pretrained import pretrained
from lab.tasks import load_task

WORDS = ["north", "south", "east", "west"]
TEACHER = torch.tensor([[4.0, 2.0, 0.5, 0.0]])
STUDENT = torch.tensor([[1.0, 1.5, 0.0, 0.0]])
TEMPERATURES = (1, 2, 5)


@command()
def main(argv=None) -> None:
    """The command line: there is nothing to choose."""
    Parser("python kd.py", description=__doc__).parse_args(argv)
    show()


def show() -> None:
    replace_unprintable()
    print(f"{'next word':<44}" + "".join(f"{word:>9}" for word in WORDS))
    for temperature in TEMPERATURES:
        print(line(f"teacher's probabilities, temperature {temperature}", (TEACHER / temperature).softmax(dim=-1)[0]))
    print(line("student's probabilities, temperature 1", STUDENT.softmax(dim=-1)[0]))
    show_gradients()
    show_cross_entropy()
    show_what_trains()
    print("\nWhich method uses what (Section 2.2), for the current task. Pseudo-data have the NLL with all four:")
    print("    LAMOL        NLL of the data's words")
    print("    Word-KD      KL at the positions of the data's words")
    print("    Seq-KD       NLL, with the teacher's own answer for the data's")
    print("    Seq-KD_soft  KL, with the teacher's own answer for the data's")


def line(name: str, numbers) -> str:
    return f"{name:<44}" + "".join(f"{x:>9.3f}" for x in numbers)


def show_gradients() -> None:
    """`nll` and `word_kd`, the functions that train, and their gradients by autograd."""
    student, truth, best = STUDENT.clone().requires_grad_(), torch.tensor([1]), TEACHER.argmax(dim=-1)
    losses = {
        f"NLL of the data's {WORDS[truth]!r}": nll(student, truth),
        f"NLL of the teacher's {WORDS[best]!r}": nll(student, best),
    }
    losses |= {f"Word-KD, temperature {t}": word_kd(student, TEACHER, t) for t in TEMPERATURES}
    print("\nThe loss of this position, and its gradient in the student's logits. A step goes against the gradient.\n")
    print(f"{'':<35}{'loss':>9}" + "".join(f"{word:>9}" for word in WORDS))
    for name, loss in losses.items():
        (grad,) = torch.autograd.grad(loss.sum(), student, retain_graph=True)
        print(f"{name:<35}{loss.item():>9.3f}" + "".join(f"{x:>9.3f}" for x in grad[0]))
    print("\nA hard target pushes one word up and the rest down. A soft one says how good each of the rest is.")
    print("The temperature flattens both distributions, so that unlikely words count; temperature² keeps the size of")
    print("the gradient, which is temperature · (p_S - p_T).")


def show_cross_entropy() -> None:
    """The KL and the paper's cross-entropy differ by a constant."""
    t, student = 2, STUDENT.clone().requires_grad_()
    p = (TEACHER / t).softmax(dim=-1)
    cross_entropy = t**2 * -(p * (student / t).log_softmax(dim=-1)).sum()
    entropy = t**2 * -(p * p.log()).sum()
    kl = word_kd(student, TEACHER, t).sum()
    a, b = (torch.autograd.grad(loss, student)[0] for loss in (cross_entropy, kl))
    print("\nWhy the KL and the cross-entropy at the same temperature t have one gradient (t = 2):")
    print("    -t² Σ p_T log p_S  =  t² Σ p_T log (p_T / p_S)  -  t² Σ p_T log p_T", end="")
    print(f"      {cross_entropy:.4f} = {kl:.4f} + {entropy:.4f}")
    print("    and the last term, the teacher's entropy, has no student in it:", end=" ")
    print(f"the gradients differ by {(a - b).abs().max():.0e}")


def show_what_trains() -> None:
    """The loss of a group as train.py computes it, a chunk of logits at a time, against `nll` and `word_kd` on plain
    logits."""
    (student, tok), (teacher, _) = pretrained("nano"), pretrained("nano")
    student.eval()  # no dropout
    with torch.no_grad():
        for p in teacher.parameters():
            p.mul_(0.8)  # another model than the student
    task, teacher = load_task("toy.woz", "", ""), Teacher(teacher)
    samples = [encode_example(e, tok.task_id(task.name), tok, max_len=256) for e in task.train[:2]]
    batch = make_batch(samples, [0, 1], n_current=1, soft=True)
    (group,), (weights,) = batch, token_weights(batch, "added", tok.ans_id)
    trained, _ = group_loss(student, teacher, group, weights, 2)

    def logits(model):  # of the supervised tokens, each row by itself
        labels = torch.tensor([label for row in group.rows for label in row.labels])
        return torch.cat([model(torch.tensor([row.ids]))[0] for row in group.rows])[labels >= 0]

    z = logits(student)
    losses = nll(z, group.labels).index_copy(0, group.soft, word_kd(z, logits(teacher.model), 2)[group.soft])
    plain = (weights * losses).sum()
    a, b = (torch.autograd.grad(loss, student.wte.weight)[0] for loss in (trained, plain))
    print("\nThese two functions train. A current and a replay sample, Σ weight · word_kd + Σ weight · nll:")
    print(f"    {trained:.4f} by kd.group_loss, {plain:.4f} from all logits at once;", end=" ")
    print(f"the head's gradients differ by {(a - b).abs().max():.0e}, of at most {b.abs().max():.1f}")
