"""The laws of kd.py: `nll`, `word_kd`, `token_weights`."""

import math

import torch

from data import Group
from lab.course.law import expect, flat, law


def double(rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.double)


def log(*probabilities) -> torch.Tensor:
    """The logits (1, V) whose softmax these probabilities are."""
    return double([probabilities]).log()


def direction(function, *inputs) -> list:
    """The gradient of a loss in its first input, divided by its largest entry, so that a factor does not matter."""
    logits = inputs[0].clone().requires_grad_()
    (grad,) = torch.autograd.grad(function(logits, *inputs[1:]).sum(), logits)
    return (grad / grad.abs().max()).tolist()


# ---------------------------------------------------------------------- nll


@law(3)
def natural_logarithm(nll):
    """The loss of a token is -log P(label), with the natural logarithm (nats)."""
    expect([math.log(2)], nll, of=flat, logits=double([[0, 0]]), targets=torch.tensor([0]))
    expect([math.log(4)], nll, of=flat, logits=log(0.75, 0.25), targets=torch.tensor([1]))


@law(2)
def a_loss_for_each_token(nll):
    """Each of the n tokens has a loss of its own: nll gives n numbers, neither their sum nor their mean."""
    inputs = {"logits": torch.cat([log(0.5, 0.5), log(0.25, 0.75)]), "targets": torch.tensor([0, 1])}
    expect(2, nll, of=lambda x: len(flat(x)), what="the number of losses ", **inputs)


@law(1)
def nll_has_a_gradient(nll):
    """A step against the gradient makes the label likelier: P - 1 for the label, P for the other words."""
    wanted = [[-1.0, 0.5, 0.5]]
    expect(wanted, lambda *x: direction(nll, *x), logits=double([[0, 0, 0]]), targets=torch.tensor([0]))


NLL = (natural_logarithm, a_loss_for_each_token, nll_has_a_gradient)

# ---------------------------------------------------------------------- word_kd


@law(2)
def a_distance_for_each_token(word_kd):
    """Each of the n tokens has a loss of its own: word_kd gives n numbers, neither their sum nor their mean."""
    rows = torch.cat([log(0.5, 0.5), log(0.2, 0.8)])
    inputs = {"student_logits": rows, "teacher_logits": rows, "temperature": 1}
    expect(2, word_kd, of=lambda x: len(flat(x)), what="the number of losses ", **inputs)


@law(2)
def zero_where_both_agree(word_kd):
    """Where the student's distribution is the teacher's, there is nothing to learn: the loss is 0, at any
    temperature."""
    for temperature in (1, 2):
        both = log(0.2, 0.8)
        expect([0.0], word_kd, of=flat, student_logits=both, teacher_logits=both + 1, temperature=temperature)


@law(3)
def summed_over_the_vocabulary(word_kd):
    """At temperature 1 the loss is Σ p_T log(p_T / p_S), a sum over all words of the vocabulary."""
    wanted = 0.8 * math.log(0.8 / 0.2) + 0.2 * math.log(0.2 / 0.8)  # the same in both directions
    expect([wanted], word_kd, of=flat, student_logits=log(0.2, 0.8), teacher_logits=log(0.8, 0.2), temperature=1)


@law(3)
def from_the_teacher_to_the_student(word_kd):
    """KL(p_T ‖ p_S) punishes a student that leaves out a word of the teacher's more than one that allows a word too
    many. KL(p_S ‖ p_T) does the opposite."""
    almost = 1 - 2e-4
    teacher, leaves_out, allows = log(0.5 - 5e-5, 0.5 - 5e-5, 1e-4), log(almost, 1e-4, 1e-4), log(1 / 3, 1 / 3, 1 / 3)

    def compare(*_):
        a, b = (flat(word_kd(student, teacher, 1))[0] for student in (leaves_out, allows))
        return "one_student" if a > b else "another"

    probabilities = {"one_student": leaves_out.exp(), "another": allows.exp(), "teacher": teacher.exp()}
    expect("one_student", compare, what="the larger loss for ", **probabilities)


@law(2)
def temperature_squared(word_kd):
    """Both logits are divided by the temperature, and the loss is multiplied by its square: with twice the logits and
    twice the temperature the loss is 4 times as large."""
    student, teacher = log(0.2, 0.8), log(0.7, 0.3)

    def ratio(student, teacher, temperature):
        large, small = (flat(word_kd(t * student, t * teacher, t))[0] for t in (temperature, 1))
        return large / small

    for t in (2, 3):
        expect(float(t * t), ratio, what="a factor of ", student_logits=student, teacher_logits=teacher, temperature=t)


@law(1)
def word_kd_has_a_gradient(word_kd):
    """A step against the gradient, which is a multiple of p_S - p_T, makes the teacher's words likelier."""
    inputs = {"student_logits": double([[0, 0]]), "teacher_logits": log(0.8, 0.2), "temperature": 1}
    expect([[-1.0, 1.0]], lambda *x: direction(word_kd, *x), what="the direction ", **inputs)


@law(1)
def finite_for_impossible_words(word_kd):
    """A word to which the teacher gives no probability at all, even after rounding, makes no NaN."""
    inputs = {"student_logits": double([[0, 0]]), "teacher_logits": double([[0, -1000]]), "temperature": 1}
    expect(
        "finite", word_kd, lambda x: "finite" if all(map(math.isfinite, flat(x))) else x, "a loss that is ", **inputs
    )


WORD_KD = (
    a_distance_for_each_token,
    zero_where_both_agree,
    summed_over_the_vocabulary,
    from_the_teacher_to_the_student,
    temperature_squared,
    word_kd_has_a_gradient,
    finite_for_impossible_words,
)

# ---------------------------------------------------------------------- token_weights

ANS = 90


def tokens(labels, lm=0, replay=0, soft=()) -> Group:
    """A group that is nothing but its supervised tokens. lm, replay: 0 and 1, of each or of all."""
    labels, n = torch.tensor(labels), len(labels)
    lm, replay = (torch.tensor(x).expand(n).bool() for x in (lm, replay))
    soft, hard = (torch.tensor([i for i in range(n) if (i in soft) == is_soft], dtype=int) for is_soft in (True, False))
    return Group([], None, None, torch.arange(n), labels, lm, replay, soft, hard)


def expect_weights(wanted, token_weights, batch, rule="joint", ans_weight=5.0, lm_lambda=1.0, of=lambda x: x, what=""):
    options = {"rule": rule, "ans_id": ANS, "ans_weight": ans_weight, "lm_lambda": lm_lambda}
    expect(wanted, token_weights, of, what, batch=batch, **options)


@law(3)
def joint_is_one_mean(token_weights):
    """`joint`: all tokens of a row kind, current and replayed, share one divisor, their number."""
    expect_weights([[0.5, 0.5]], token_weights, [tokens([7, 8])])
    expect_weights([[1 / 3] * 3], token_weights, [tokens([7, 8, 9], replay=[0, 0, 1])])


@law(3)
def added_is_two_means(token_weights):
    """`added`: the mean over the current tokens plus the mean over the replayed ones. A part without tokens adds
    nothing."""
    expect_weights([[0.5, 0.5]], token_weights, [tokens([7, 8], replay=1)], "added")
    expect_weights([[0.5, 0.5, 1.0]], token_weights, [tokens([7, 8, 9], replay=[0, 0, 1])], "added")


@law(1)
def row_kinds_are_apart(token_weights):
    """QA and LM tokens have divisors of their own: the weights of each kind have the same sum, however many tokens."""
    batch = [tokens([7, 8, 9], lm=[0, 1, 1])]
    expect_weights([1.0, 0.5, 0.5], token_weights, batch, of=lambda x: [w / flat(x)[0] for w in flat(x)])


@law(2)
def lambda_weighs_the_lm_rows(token_weights):
    """The loss is L_QA + λ · L_LM: the tokens of LM rows, and only they, are multiplied by λ."""
    batch = [tokens([7, 8], lm=[0, 1])]
    expect_weights(0.25, token_weights, batch, lm_lambda=0.25, of=lambda x: flat(x)[1] / flat(x)[0], what="LM / QA = ")


@law(2)
def ans_counts_five_times(token_weights):
    """A hard target that is ANS weighs ans_weight times as much as another token of its row."""
    batch = [tokens([7, ANS], lm=1)]
    expect_weights(5.0, token_weights, batch, of=lambda x: flat(x)[1] / flat(x)[0], what="ANS / 7 = ")


@law(1)
def ans_counts_in_the_divisor(token_weights):
    """The weight of ANS counts in the sum and in its divisor: the weights of a mean have the sum 1."""
    expect_weights(1.0, token_weights, [tokens([7, ANS], lm=1)], of=lambda x: sum(flat(x)), what="a sum of ")


@law(1)
def a_soft_ans_counts_once(token_weights):
    """Where the target is the teacher's distribution, ANS weighs no more than any other token."""
    batch = [tokens([7, ANS], lm=1, soft=[0, 1])]
    expect_weights(1.0, token_weights, batch, of=lambda x: flat(x)[1] / flat(x)[0], what="ANS / 7 = ")


@law(1)
def over_the_whole_batch(token_weights):
    """The divisors are those of the whole batch, however it is cut into groups. Each group gets a tensor of its own."""
    expect_weights([[1 / 3, 1 / 3], [1 / 3]], token_weights, [tokens([7, 8]), tokens([9])])


TOKEN_WEIGHTS = (
    joint_is_one_mean,
    added_is_two_means,
    row_kinds_are_apart,
    lambda_weighs_the_lm_rows,
    ans_counts_five_times,
    ans_counts_in_the_divisor,
    a_soft_ans_counts_once,
    over_the_whole_batch,
)
