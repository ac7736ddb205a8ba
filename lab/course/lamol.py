"""The laws of lamol.py: `pseudo_per_task`, `top_k_filter`, `why_rejected`."""

import math
from types import SimpleNamespace

import torch

from lab.course.law import expect, law

# ---------------------------------------------------------------------- pseudo_per_task


def expect_number(wanted, pseudo_per_task, n_new, gamma, n_previous):
    expect(wanted, pseudo_per_task, n_new=n_new, gamma=gamma, n_previous=n_previous)


@law(2)
def gamma_n_is_rounded_up(pseudo_per_task):
    """All earlier tasks together get γ · n_new samples, rounded up to a whole number (an int)."""
    expect_number(1, pseudo_per_task, 1, 0.2, 1)
    expect_number(3, pseudo_per_task, 5, 0.5, 1)


@law(2)
def the_total_is_shared_equally(pseudo_per_task):
    """The total is rounded up, and then shared equally and rounded down: 20.5 samples for two tasks are 21, and 10 for
    each."""
    expect_number(10, pseudo_per_task, 41, 0.5, 2)


@law(1)
def the_first_task_replays_nothing(pseudo_per_task):
    """Before the first task there is no earlier one, and nothing to replay."""
    expect_number(0, pseudo_per_task, 5, 0.2, 0)


@law(1)
def gamma_0_replays_nothing(pseudo_per_task):
    """With γ = 0 there is no replay."""
    expect_number(0, pseudo_per_task, 5, 0.0, 2)


PSEUDO_PER_TASK = (
    gamma_n_is_rounded_up,
    the_total_is_shared_equally,
    the_first_task_replays_nothing,
    gamma_0_replays_nothing,
)

# ---------------------------------------------------------------------- top_k_filter

OUT = -math.inf


def expect_filtered(wanted, top_k_filter, logits, k):
    expect(wanted, top_k_filter, logits=torch.tensor(logits), k=k)


@law(3)
def the_k_likeliest_stay(top_k_filter):
    """The k largest logits stay as they are. All others become -inf, so that their probability is 0."""
    expect_filtered([[2.0, OUT]], top_k_filter, [[2.0, 1.0]], 1)
    expect_filtered([[3.0, OUT, 2.0, OUT]], top_k_filter, [[3.0, 1.0, 2.0, -5.0]], 2)


@law(2)
def each_row_has_its_own_k(top_k_filter):
    """Each row, the last dimension, is filtered by itself, whatever dimensions stand before it."""
    expect_filtered([[2.0, OUT], [OUT, 9.0]], top_k_filter, [[2.0, 1.0], [8.0, 9.0]], 1)
    expect_filtered([OUT, 2.0], top_k_filter, [1.0, 2.0], 1)
    expect_filtered([[[2.0, OUT]], [[OUT, 9.0]]], top_k_filter, [[[2.0, 1.0]], [[8.0, 9.0]]], 1)


@law(1)
def ties_stay(top_k_filter):
    """What ties with the k-th largest stays, too."""
    expect_filtered([[2.0, 1.0, 1.0, OUT]], top_k_filter, [[2.0, 1.0, 1.0, 0.0]], 2)


@law(1)
def k_0_keeps_all(top_k_filter):
    """k <= 0 switches the filter off."""
    expect_filtered([[2.0, 1.0]], top_k_filter, [[2.0, 1.0]], 0)
    expect_filtered([[2.0, 1.0]], top_k_filter, [[2.0, 1.0]], -1)


@law(1)
def a_k_above_the_vocabulary_keeps_all(top_k_filter):
    """A k that is larger than the vocabulary keeps all words."""
    expect_filtered([[2.0, 1.0]], top_k_filter, [[2.0, 1.0]], 3)


TOP_K_FILTER = (
    the_k_likeliest_stay,
    each_row_has_its_own_k,
    ties_stay,
    k_0_keeps_all,
    a_k_above_the_vocabulary_keeps_all,
)

# ---------------------------------------------------------------------- why_rejected

IDS = {"ANS": 90, "PAD": 91, "EOS": 92, "TASK": 95, "TASK2": 96}
TOKENIZER = SimpleNamespace(ans_id=90, pad_id=91, eos_id=92, first_slot=95, n_vocab=99, is_task=lambda i: 95 <= i < 99)


def expect_verdict(wanted, why_rejected, *sequences):
    """Is each of these sequences accepted ("") or rejected (any other text)?"""

    def verdict(reason):
        return f"a {type(reason).__name__}" if not isinstance(reason, str) else "rejected" if reason else "accepted"

    for text in sequences:
        ids = [IDS.get(word) or int(word) for word in text.split()]
        expect(wanted, lambda text, ids=ids: why_rejected(ids, TOKENIZER), verdict, ids=text or "(none)")


@law(1)
def a_whole_example_is_a_sample(why_rejected):
    """TASK, context and question, ANS, answer, EOS: this is a sample, and there is no reason (the empty text) to reject
    it."""
    expect_verdict("accepted", why_rejected, "TASK 1 ANS 2 EOS", "TASK 1 2 3 ANS 4 5 EOS")


@law(1)
def it_begins_with_a_task_token(why_rejected):
    """A sequence without a task token in front is rejected. So is an empty one, without an error."""
    expect_verdict("rejected", why_rejected, "", "1 2 ANS 3 EOS")


@law(1)
def it_has_stopped(why_rejected):
    """A sequence that was cut off before its EOS is rejected: its answer may be half of one."""
    expect_verdict("rejected", why_rejected, "TASK 1 ANS 2 3")


@law(1)
def it_has_one_eos(why_rejected):
    """A sequence with another EOS inside is rejected."""
    expect_verdict("rejected", why_rejected, "TASK 1 EOS ANS 2 EOS", "TASK 1 ANS 2 EOS 3 EOS")


@law(2)
def it_has_one_ans(why_rejected):
    """Without ANS, or with several, nobody knows where the answer begins: such a sequence is rejected."""
    expect_verdict("rejected", why_rejected, "TASK 1 2 EOS", "TASK 1 ANS 2 ANS 3 EOS")


@law(1)
def there_is_text_before_and_after_ans(why_rejected):
    """A sequence whose question or answer is empty is rejected."""
    expect_verdict("rejected", why_rejected, "TASK ANS 1 EOS", "TASK 1 ANS EOS")


@law(1)
def no_other_special_token_is_inside(why_rejected):
    """A sequence with PAD or a task token inside is rejected."""
    expect_verdict("rejected", why_rejected, "TASK 1 PAD ANS 2 EOS", "TASK 1 ANS 2 TASK2 EOS", "TASK 1 TASK ANS 2 EOS")


WHY_REJECTED = (
    a_whole_example_is_a_sample,
    it_begins_with_a_task_token,
    it_has_stopped,
    it_has_one_eos,
    it_has_one_ans,
    there_is_text_before_and_after_ans,
    no_other_special_token_is_inside,
)
