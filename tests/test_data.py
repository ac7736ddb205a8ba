"""Text as ids, an example's rows, batches. python -m pytest tests/test_data.py"""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import samples_of, seeded

from data import (
    IGNORE,
    SLOTS,
    Example,
    Task,
    answer_budget,
    encode_example,
    encode_parts,
    encode_prompt,
    make_batch,
    plan_epoch,
)
from lab.fast.packing import Layout
from lab.run.encoding import encode_task
from lab.run.pretrained import nano_tokenizer

TASK = 50260  # the task token of the golden files
NANO = nano_tokenizer()


def runs(spans):
    return [first + i * step for first, count, step in spans for i in range(count)]


def fits(ids, labels, eos_id):
    """Every supervised label is the next token of the row; the last is EOS or nothing."""
    assert len(ids) == len(labels)
    assert all(label in (IGNORE, token) for label, token in zip(labels, ids[1:]))
    assert labels[-1] in (eos_id, IGNORE)


# ---------------------------------------------------------------------- rows


def test_rows_of_real_texts_equal_the_authors(golden, gpt2_tok):
    ours_alone = {"no_answer_impossible", "two_answers"}  # several answers: not a thing here
    compared = 0
    for case in golden("format")["text_cases"]:
        if case["name"] in ours_alone:
            continue
        wanted = case["prefix_space"]
        row = encode_example(Example(case["context"], case["question"], case["answers"][0]), TASK, gpt2_tok, 1024)
        if wanted["len_cqa"] == len(wanted["Y"]) and row.answer_cut == 0:
            assert [row.qa_ids, row.qa_labels] == [wanted["cqa"], wanted["Y"]], case["name"]
            assert [row.lm_ids, row.lm_labels] == [wanted["gen_X"], wanted["gen_Y"]], case["name"]
            compared += 1
        fits(row.qa_ids, row.qa_labels, gpt2_tok.eos_id)
    assert compared >= 32  # the others are cut, and there the authors' ids and labels come apart


def test_cuts_equal_the_authors_wherever_theirs_are_consistent(golden, gpt2_tok):
    consistent = 0
    for case in golden("format")["ids_cases"]:
        starts = (0, "n_context"), (10000, "n_question"), (20000, "n_answer")
        c, q, a = (list(range(start, start + case[n])) for start, n in starts)
        row = encode_parts(c, q, a, TASK, gpt2_tok, case["max_len"])
        if case["consistent"]:
            consistent += 1
            assert [row.qa_ids, row.qa_labels] == [runs(case["cqa"]), runs(case["Y"])], case["lengths"]
            assert [row.lm_ids, row.lm_labels] == [runs(case["gen_X"]), runs(case["gen_Y"])], case["lengths"]
    assert consistent >= 20


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 60), st.integers(0, 40), st.integers(0, 60), st.integers(4, 40), st.booleans())
def test_truncation_keeps_labels_aligned(n_c, n_q, n_a, max_len, stopped):
    c, q, a = (list(range(start, start + n)) for start, n in ((0, n_c), (70, n_q), (140, n_a)))
    row = encode_parts(c, q, a, NANO.first_slot, NANO, max_len, stopped, id="x")
    if row is None:
        assert 1 + n_q + 1 + min(1, n_a) > max_len
        return
    assert len(row.lm_ids) == len(row.qa_ids) + 1 <= max_len and row.id == "x"
    fits(row.qa_ids, row.qa_labels, NANO.eos_id)
    fits(row.lm_ids, row.lm_labels, NANO.eos_id)
    assert row.qa_ids == c[: n_c - row.context_cut] + q + [NANO.ans_id] + a[: n_a - row.answer_cut]
    at = row.qa_ids.index(NANO.ans_id)
    assert row.qa_labels[:at] == [IGNORE] * at and IGNORE not in row.qa_labels[at:-1]  # the first label sits on ANS
    assert (row.qa_labels[-1] == NANO.eos_id) == (stopped and not row.answer_cut)
    assert row.lm_ids == [NANO.first_slot, *row.qa_ids]
    assert row.lm_labels[:-1] == row.lm_ids[1:] and row.lm_labels[-1] == row.qa_labels[-1]
    assert row.context_cut == 0 or len(row.lm_ids) == max_len  # nothing is cut for nothing
    assert row.answer_cut == 0 or row.context_cut == n_c  # the context goes first


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.text(max_size=40), st.integers(4, 60), st.integers(1, 15))
def test_a_prompt_always_leaves_room_for_its_answer(context, question, max_len, budget):
    ids = encode_prompt(context, question, NANO, max_len, budget)
    assert ids[-1] == NANO.ans_id and len(ids) + budget <= max(max_len, budget + 1)
    row = encode_example(Example(context, question, ""), NANO.first_slot, NANO, 1000)
    if len(row.qa_ids) + budget <= max_len:  # nothing to cut: the prompt is the training row without its answer
        assert ids == row.qa_ids
    else:
        assert len(ids) + budget == max_len or ids == [NANO.ans_id]


def test_the_answer_budget_is_the_longest_training_answer_and_eos(tok):
    train, test = ([Example("c", "q", a) for a in answers] for answers in (("abc", "abcdefg"), ("abcdefghijklmnop",)))
    task = Task("mine", "em", train, test)
    assert answer_budget(task, tok, 1000) == len(tok.encode("abcdefg")) + 1
    assert answer_budget(task, tok, 16) == 4


def test_what_is_cut_or_rejected_is_counted(tok, capsys):
    texts = [("c", "q", "a"), ("c" * 50, "q", "a"), ("c", "q" * 50, "a"), ("c", "q", "a" * 50)]
    examples = [Example(*text) for text in texts]
    tok.add_task("mine")
    assert len(encode_task(Task("mine", "em", examples, examples), tok, 20)) == 3
    said = capsys.readouterr().out
    assert "of 4 training examples, at 20 tokens: 1 rejected" in said
    assert "1 answers cut" in said and "2 contexts cut" in said
    assert "2 of 4 test prompts cut, to leave 5 tokens" in said
    assert "1 of 4 training answers are too long to be generated (5)" in said


# ---------------------------------------------------------------------- text


def test_no_text_can_inject_a_special_token(gpt2_tok):
    text = "<|endoftext|> __ans__ ANS <pad> [TASK] <|endoftext|>"
    ids = gpt2_tok.encode(text)
    assert all(i < gpt2_tok.eos_id for i in ids)
    assert gpt2_tok.decode(ids) == text


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_decoding_is_exact_up_to_outer_blanks(text):
    ids = NANO.encode(text)
    assert all(i < NANO.eos_id for i in ids)
    assert NANO.decode(ids) == text.strip()
    assert bool(ids) == bool(text.strip())  # blank text has no ids


def test_decoding_real_ids_is_exact_and_ids_without_text_are_nothing(golden, gpt2_tok):
    for case in golden("format")["decode_cases"]:
        inside = [i for i in case["ids"] if i < gpt2_tok.eos_id]
        assert gpt2_tok.decode(case["ids"]) == gpt2_tok.encoding.decode(inside).strip()  # no blank is cleaned up
    assert gpt2_tok.decode([-1, 50256, 50257, 50258, 50259, 50303, 60000, 10**12]) == ""
    assert gpt2_tok.decode([383, 50256, 3290, 50257]) == "The dog"
    assert gpt2_tok.decode(gpt2_tok.encode("東")[:-1]) == "\ufffd"  # half a character


def test_a_new_task_takes_the_next_free_slot(tok):
    known = dict(tok.slots)
    mine = tok.add_task("mine")
    assert mine == tok.first_slot + len(known) == tok.add_task("mine") == tok.task_id("mine")
    assert tok.slots == known | {"mine": mine}
    assert tok.is_task(mine) and not any(map(tok.is_task, (tok.pad_id, tok.ans_id, tok.eos_id, tok.n_vocab, -1)))
    tok.slots = {"last": tok.n_vocab - 1, "first": tok.first_slot}  # as of another run
    assert tok.add_task("next") == tok.first_slot + 1
    for i in range(SLOTS - 3):
        tok.add_task(f"task{i}")
    with pytest.raises(ValueError, match="task 'one more': all 45 task slots are taken"):
        tok.add_task("one more")


# ---------------------------------------------------------------------- batches


@pytest.mark.parametrize("layout", [None, Layout(rows=2), Layout(rows=3, processes=2)], ids=["one", "groups", "parts"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("lm", [False, True], ids=["qa", "both"])
def test_a_batch_holds_the_rows_of_each_sample_however_it_is_laid_out(tok, lm, soft, layout):
    """Read back from the tensors of its groups."""
    samples, indices, n_current = samples_of(7, tok), [6, 0, 3, 2, 4], 4
    found = []
    for group in make_batch(samples, indices, n_current, lm, soft, layout):
        assert 0 <= group.process < (layout.processes if layout else 1)
        assert layout is None or len(group.rows) <= layout.rows
        starts = (group.packing.position == 0).nonzero()[:, 0].tolist()
        labels = torch.full_like(group.ids[0], IGNORE).index_copy(0, group.supervised, group.labels).tolist()
        assert sorted([*group.soft.tolist(), *group.hard.tolist()]) == list(range(len(group.labels)))
        is_soft = torch.zeros_like(group.replay).index_fill(0, group.soft, True)
        sources = zip(group.supervised.tolist(), group.lm.tolist(), group.replay.tolist(), is_soft.tolist())
        kind_at = {t: kind for t, *kind in sources}
        for row, (start, end) in zip(group.rows, pairwise([*starts, group.ids.size(1)]), strict=True):
            ids = group.ids[0, start:end].tolist()
            assert (ids, labels[start:end]) == (row.ids, row.labels)
            kinds = [kind_at[t] for t in range(start, end) if t in kind_at]
            assert kinds == [[row.lm, row.replay, soft and not row.replay]] * len(kinds)  # replay has hard targets only
            found.append((samples.index(row.sample), row.lm, row.replay, row.ids, row.labels))
    wanted = []
    for i in indices:
        sample, old = samples[i], i >= n_current
        wanted.append((i, False, old, sample.qa_ids, sample.qa_labels))
        if lm:
            wanted.append((i, True, old, sample.lm_ids, sample.lm_labels))
    assert sorted(found) == sorted(wanted)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 50), st.integers(0, 50), st.integers(1, 9), st.sampled_from(["shuffled", "alternate"]))
def test_every_sample_is_seen_once_an_epoch(n_current, n_replay, batch_size, updates):
    plan = plan_epoch(n_current, n_replay, batch_size, updates, seeded(0))
    assert sorted(i for batch in plan for i in batch) == list(range(n_current + n_replay))
    assert all(plan)
    if updates == "alternate":  # batches of one kind; each current batch is followed by its share of the replay
        kinds = [{i < n_current for i in batch} for batch in plan]
        assert all(len(kind) == 1 for kind in kinds) and kinds[0] == {True}
        shares = [len(batch) for batch, kind in zip(plan, kinds) if kind == {False}]
        current = [len(batch) for batch, kind in zip(plan, kinds) if kind == {True}]
        n = -(-n_current // batch_size)
        assert len(current) == n and all(size == batch_size for size in current[:-1])
        assert all(n_replay // n <= share <= -(-n_replay // n) for share in shares)
        assert not any(a == b == {False} for a, b in pairwise(kinds))
    else:
        assert all(len(batch) == batch_size for batch in plan[:-1])


@pytest.mark.parametrize("updates", ["shuffled", "alternate"])
def test_the_plan_is_a_function_of_its_generator_alone_and_orders_are_random(updates):
    plans = [plan_epoch(30, 9, 4, updates, seeded(n)) for n in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]
    for first, n in ((0, 30), (30, 9)):  # current, and replay samples
        order = [i for batch in plans[0] for i in batch if first <= i < first + n]
        assert order != sorted(order)
