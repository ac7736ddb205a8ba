"""The laws of data.py: `encode_parts`, `plan_epoch`."""

from itertools import groupby
from types import SimpleNamespace

import torch

from data import IGNORE
from lab.course.law import expect, law

ANS, EOS, TASK = 90, 91, 92
NAMES = {ANS: "ANS", EOS: "EOS", TASK: "TASK", IGNORE: "-"}
TOKENIZER = SimpleNamespace(ans_id=ANS, eos_id=EOS)  # and no other: the parts are ids already


def words(ids) -> str:
    """Ids as text: 1 2 ANS 3 EOS, with - for IGNORE."""
    return " ".join(NAMES.get(i, str(i)) for i in ids)


# ---------------------------------------------------------------------- encode_parts


def expect_sample(wanted, encode_parts, of, what, c=(1,), q=(2,), a=(3,), max_len=20, **more):
    """Some part of what encode_parts makes of context, question and answer."""
    parts = {name: list(ids) for name, ids in (("c", c), ("q", q), ("a", a))}
    expect(wanted, encode_parts, of, what, **parts, task_id=TASK, tokenizer=TOKENIZER, max_len=max_len, **more)


def both_ids(sample) -> str:
    return f"{words(sample.qa_ids)} | {words(sample.lm_ids)}"


def last_labels(sample, n_answer: int) -> str:
    """The labels from ANS on, of the QA row; all labels of the LM row. A row with too few or too many says so."""
    rows = (sample.qa_ids, sample.qa_labels), (sample.lm_ids, sample.lm_labels)
    if any(len(ids) != len(labels) for ids, labels in rows):
        return "rows that have not as many labels as ids"
    return f"{words(sample.qa_labels[-1 - n_answer :])} | {words(sample.lm_labels)}"


@law(2)
def both_rows_have_their_ids(encode_parts):
    """The QA row is `c q ANS a`, and the LM row is the same with TASK in front. EOS is a label, but no input."""
    expect_sample("1 2 ANS 3 | TASK 1 2 ANS 3", encode_parts, both_ids, "QA | LM ids: ")
    expect_sample("2 ANS 3 4 | TASK 2 ANS 3 4", encode_parts, both_ids, "QA | LM ids: ", c=(), a=(3, 4))


@law(3)
def labels_are_the_next_tokens(encode_parts):
    """labels[t] is the token that logits[t] must predict, the one at t + 1. So the first word of the answer is the
    label of ANS, and EOS is the label of the last word."""
    what = "QA labels from ANS on | LM labels: "
    expect_sample("3 EOS | 1 2 ANS 3 EOS", encode_parts, lambda sample: last_labels(sample, 1), what)
    expect_sample("3 4 EOS | 2 ANS 3 4 EOS", encode_parts, lambda sample: last_labels(sample, 2), what, c=(), a=(3, 4))


@law(2)
def the_qa_row_learns_the_answer_alone(encode_parts):
    """The QA row learns to answer, not to ask: the labels of context and question are IGNORE."""
    what = "QA labels of context and question: "
    expect_sample("- -", encode_parts, lambda sample: words(sample.qa_labels[:2]), what)


@law(2)
def a_cut_answer_has_no_eos(encode_parts):
    """An answer that did not fit did not end here. A model that learned EOS behind it would learn to stop in the
    middle."""
    expect_sample(0, encode_parts, count_eos, "the number of EOS among the labels ", a=(3, 4, 5), max_len=5)


@law(1)
def an_answer_that_never_stopped_has_no_eos(encode_parts):
    """A teacher's answer that never stopped has no EOS behind it."""
    expect_sample(0, encode_parts, count_eos, "the number of EOS among the labels ", stopped=False)


def count_eos(sample) -> int:
    return [*sample.qa_labels, *sample.lm_labels].count(EOS)


@law(2)
def the_context_keeps_its_first_tokens(encode_parts):
    """What is longer than max_len loses the end of its context, in both rows alike; TASK counts, too. Only an answer
    that is too long by itself is cut."""
    what = "QA | LM ids: "
    expect_sample("4 ANS 5 | TASK 4 ANS 5", encode_parts, both_ids, what, c=(1, 2, 3), q=(4,), a=(5,), max_len=4)
    expect_sample("1 2 4 ANS 5 | TASK 1 2 4 ANS 5", encode_parts, both_ids, what, (1, 2, 3), (4,), (5,), max_len=6)
    expect_sample("4 ANS 5 6 | TASK 4 ANS 5 6", encode_parts, both_ids, what, (1, 2), (4,), (5, 6, 7), max_len=5)


@law(1)
def none_where_no_answer_fits(encode_parts):
    """Without room for the question, ANS and one token of the answer there is no sample, but None. An empty answer
    needs no room."""

    def found(sample):
        return "None" if sample is None else "a sample"

    expect_sample("a sample", encode_parts, found, "", q=(1, 2), a=(3,), max_len=5)
    expect_sample("None", encode_parts, found, "", q=(1, 2), a=(3,), max_len=4)
    expect_sample("a sample", encode_parts, found, "", q=(1, 2), a=(), max_len=4)


@law(1)
def what_was_cut_is_counted(encode_parts):
    """A sample says how many tokens of context and answer did not fit, and keeps the example's id."""
    what = "context_cut, answer_cut, id: "

    def counts(sample):
        return [sample.context_cut, sample.answer_cut, sample.id]

    expect_sample([0, 0, "x"], encode_parts, counts, what, stopped=True, id="x")
    expect_sample([2, 1, "x"], encode_parts, counts, what, (1, 2), (4,), (5, 6, 7), 5, stopped=True, id="x")


ENCODE_PARTS = (
    both_rows_have_their_ids,
    labels_are_the_next_tokens,
    the_qa_row_learns_the_answer_alone,
    a_cut_answer_has_no_eos,
    an_answer_that_never_stopped_has_no_eos,
    the_context_keeps_its_first_tokens,
    none_where_no_answer_fits,
    what_was_cut_is_counted,
)

# ---------------------------------------------------------------------- plan_epoch


def expect_plan(wanted, plan_epoch, of, what, n_current, n_replay, batch_size, seed=0):
    """Something of a plan with --updates alternate."""
    numbers = {"n_current": n_current, "n_replay": n_replay, "batch_size": batch_size, "updates": "alternate"}
    expect(wanted, plan_epoch, of, what, **numbers, generator=torch.Generator().manual_seed(seed))


def kinds(plan, n_current: int) -> str:
    """The updates as letters: C of current samples, R of replayed ones, M mixed."""
    letters = {(True,): "C", (False,): "R"}
    return "".join(letters.get(tuple({i < n_current for i in batch}), "M") for batch in plan if batch)


@law(2)
def every_sample_once_an_epoch(plan_epoch):
    """Every current and every replay sample is in one update of an epoch, and in no other."""
    for numbers in ((2, 1, 1), (5, 0, 2), (5, 8, 2)):
        wanted = list(range(sum(numbers[:2])))
        expect_plan(wanted, plan_epoch, lambda plan: sorted(i for batch in plan for i in batch), "sorted: ", *numbers)


@law(1)
def current_batches_are_full(plan_epoch):
    """An update has samples of one kind. The current ones come in batches of batch_size; only the last has fewer."""

    def sizes(plan):
        return [len(batch) for batch in plan if min(batch, default=5) < 5]

    expect_plan([2, 2, 1], plan_epoch, sizes, "sizes of the updates with current samples: ", 5, 3, 2)
    expect_plan(0, plan_epoch, lambda plan: kinds(plan, 5).count("M"), "mixed updates: ", 5, 3, 2)


@law(1)
def current_samples_come_first(plan_epoch):
    """Algorithm 1 updates on current samples first (line 5), then on replayed ones (line 9)."""
    expect_plan("C", plan_epoch, lambda plan: kinds(plan, 2)[:1], "the first update (C current, R replay): ", 2, 2, 1)


@law(3)
def each_batch_is_followed_by_its_share(plan_epoch):
    """Replay is spread over the epoch: after one update with replayed samples comes one with current samples."""

    def runs(plan):
        return max(len(list(run)) for kind, run in groupby(kinds(plan, 4)) if kind == "R")

    expect_plan(1, plan_epoch, runs, "updates of replay in a row: ", 4, 4, 2)


@law(1)
def shares_differ_by_one_at_most(plan_epoch):
    """The replay samples are shared equally among the current batches."""

    def spread(plan):
        sizes = [len(batch) for batch in plan if min(batch, default=0) >= 6]
        return str(max(sizes) - min(sizes)) if max(sizes) - min(sizes) > 1 else "at most 1"

    expect_plan("at most 1", plan_epoch, spread, "shares whose sizes differ by ", 6, 3, 2)
    expect_plan("at most 1", plan_epoch, spread, "shares whose sizes differ by ", 6, 8, 2)


@law(1)
def no_update_is_empty(plan_epoch):
    """Where there are fewer replay samples than current batches, or none, an empty share is no update."""
    for n_replay in (0, 1):
        expect_plan(0, plan_epoch, lambda plan: plan.count([]), "empty updates: ", 3, n_replay, 1)


@law(1)
def both_kinds_are_shuffled(plan_epoch):
    """Current and replay samples are in random order, another one for another generator, and the same one for the
    same."""

    def orders(plan):
        flat = [i for batch in plan for i in batch]
        return [[i for i in flat if i < 20], [i for i in flat if i >= 20]]

    def compare(*inputs):
        plans = [plan_epoch(*inputs[:4], torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
        one, again, other = map(orders, plans)
        in_order = any(order == sorted(order) for order in one)
        return "in order" if in_order else "random" if one == again and one[0] != other[0] else "of another generator"

    expect_plan("random", compare, lambda found: found, "", 20, 20, 4)


PLAN_EPOCH = (
    every_sample_once_an_epoch,
    current_batches_are_full,
    current_samples_come_first,
    each_batch_is_followed_by_its_share,
    shares_differ_by_one_at_most,
    no_update_is_empty,
    both_kinds_are_shuffled,
)
