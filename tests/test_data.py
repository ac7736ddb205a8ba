"""An example's rows, the tokenizer, batches, tasks. python -m pytest tests/test_data.py"""

import json
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data import (
    IGNORE,
    METRICS,
    Example,
    Tokenizer,
    answer_budget,
    encode_example,
    encode_parts,
    encode_prompt,
    encode_task,
    load_task,
    make_batch,
    plan_epoch,
    task_name,
)  # fmt: skip
from lab.prepare import DataError

TASK = 50260  # the task token of the golden files


def runs(spans):
    return [first + i * step for first, count, step in spans for i in range(count)]


def fits(ids, labels, eos_id):
    """Every supervised label is the next token of the row; the last is EOS or nothing."""
    assert len(ids) == len(labels)
    assert all(label in (IGNORE, token) for label, token in zip(labels, ids[1:]))
    assert labels[-1] in (eos_id, IGNORE)


# ---------------------------------------------------------------------- rows


def test_rows_of_real_texts_equal_the_released_ones(golden, gpt2_tok):
    ours_alone = {"no_answer_impossible", "two_answers"}  # several answers: not a thing here
    cases = [case for case in golden("format")["text_cases"] if case["name"] not in ours_alone]
    compared = 0
    for case in cases:
        wanted = case["prefix_space"]
        row = encode_example(Example(case["context"], case["question"], case["answers"][0]), TASK, gpt2_tok, 1024)
        if wanted["len_cqa"] == len(wanted["Y"]) and row.answer_cut == 0:
            assert [row.qa_ids, row.qa_labels] == [wanted["cqa"], wanted["Y"]], case["name"]
            assert [row.lm_ids, row.lm_labels] == [wanted["gen_X"], wanted["gen_Y"]], case["name"]
            compared += 1
        fits(row.qa_ids, row.qa_labels, gpt2_tok.eos_id)
    assert compared >= 32  # the others are cut, where the released rows slip


def test_cuts_equal_the_released_ones_wherever_those_are_consistent(golden, gpt2_tok):
    consistent = 0
    for case in golden("format")["ids_cases"]:
        c, q, a = (
            list(range(k, k + case[n])) for k, n in ((0, "n_context"), (10000, "n_question"), (20000, "n_answer"))
        )
        row = encode_parts(c, q, a, TASK, gpt2_tok, case["max_len"])
        if case["consistent"]:
            consistent += 1
            assert [row.qa_ids, row.qa_labels] == [runs(case["cqa"]), runs(case["Y"])], case["lengths"]
            assert [row.lm_ids, row.lm_labels] == [runs(case["gen_X"]), runs(case["gen_Y"])], case["lengths"]
    assert consistent >= 20


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 60), st.integers(0, 40), st.integers(0, 60), st.integers(4, 40), st.booleans())
def test_truncation_keeps_labels_aligned(n_c, n_q, n_a, max_len, stopped):
    tok = Tokenizer.nano()
    c, q, a = (list(range(k, k + n)) for k, n in ((0, n_c), (70, n_q), (140, n_a)))
    row = encode_parts(c, q, a, tok.first_slot, tok, max_len, stopped)
    if row is None:
        assert 1 + n_q + 1 + min(1, n_a) > max_len
        return
    assert len(row.lm_ids) == len(row.qa_ids) + 1 <= max_len
    fits(row.qa_ids, row.qa_labels, tok.eos_id)
    fits(row.lm_ids, row.lm_labels, tok.eos_id)
    assert row.qa_ids == c[: n_c - row.context_cut] + q + [tok.ans_id] + a[: n_a - row.answer_cut]
    at = row.qa_ids.index(tok.ans_id)
    assert row.qa_labels[:at] == [IGNORE] * at and IGNORE not in row.qa_labels[at:-1]  # the first label sits on ANS
    assert (row.qa_labels[-1] == tok.eos_id) == (stopped and not row.answer_cut)
    assert row.lm_labels[:-1] == row.lm_ids[1:] and row.lm_labels[-1] == row.qa_labels[-1]
    assert row.context_cut == 0 or len(row.lm_ids) == max_len  # nothing is cut for nothing
    assert row.answer_cut == 0 or row.context_cut == n_c  # the context goes first


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.text(max_size=40), st.integers(4, 60), st.integers(1, 15))
def test_a_prompt_always_leaves_room_for_its_answer(context, question, max_len, budget):
    tok = Tokenizer.nano()
    ids = encode_prompt(context, question, tok, max_len, budget)
    assert ids[-1] == tok.ans_id and len(ids) + budget <= max(max_len, budget + 1)
    row = encode_example(Example(context, question, ""), tok.first_slot, tok, 1000)
    if len(row.qa_ids) + budget <= max_len:  # nothing to cut: the prompt is the training row without its answer
        assert ids == row.qa_ids


def test_the_answer_budget_is_the_longest_training_answer_and_eos(tmp_path, tok):
    task = user_task(tmp_path, [("c", "q", "abc"), ("c", "q", "abcdefg")])
    assert answer_budget(task, tok, 1000) == len(tok.encode("abcdefg")) + 1
    assert answer_budget(task, tok, 16) == 4


def test_what_is_cut_or_rejected_is_counted(tmp_path, tok, capsys):
    task = user_task(tmp_path, [("c", "q", "a"), ("c" * 50, "q", "a"), ("c", "q" * 50, "a"), ("c", "q", "a" * 50)])
    tok.add_task(task.name)
    assert len(encode_task(task, tok, 20)) == 3
    assert "of 4 training examples, at 20 tokens: 1 rejected" in (said := capsys.readouterr().out)
    assert "1 answers cut" in said and "2 contexts cut" in said
    assert "2 of 4 test prompts cut, to leave 5 tokens" in said
    assert "1 of 4 training answers are too long to be generated (5)" in said
    with pytest.raises(DataError, match="no training example fits"):
        encode_task(task, tok, 2)


# ---------------------------------------------------------------------- text


def test_no_text_can_inject_a_special_token(gpt2_tok):
    text = "<|endoftext|> __ans__ ANS <pad> [TASK] <|endoftext|>"
    ids = gpt2_tok.encode(text)
    assert all(i < gpt2_tok.eos_id for i in ids)
    assert gpt2_tok.decode(ids) == text


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_decoding_is_exact_up_to_outer_blanks(text):
    tok = Tokenizer.nano()
    ids = tok.encode(text)
    assert all(i < tok.eos_id for i in ids)
    assert tok.decode(ids) == text.strip()
    assert bool(ids) == bool(text.strip())  # blank text has no ids


def test_decoding_real_ids_is_exact_and_ids_without_text_are_nothing(golden, gpt2_tok):
    for case in golden("format")["decode_cases"]:
        inside = [i for i in case["ids"] if i < gpt2_tok.eos_id]
        assert gpt2_tok.decode(case["ids"]) == gpt2_tok.encoding.decode(inside).strip()  # no clean-up, as released
    assert gpt2_tok.decode([-1, 50256, 50257, 50258, 50259, 50303, 60000, 10**12]) == ""


def test_the_vocabulary_is_gpt2s_with_ans_pad_and_45_slots(gpt2_tok):
    assert (gpt2_tok.eos_id, gpt2_tok.ans_id, gpt2_tok.pad_id, gpt2_tok.n_vocab) == (50256, 50257, 50258, 50304)


def test_a_registered_task_has_the_same_slot_whatever_comes_first():
    one, two = Tokenizer.nano(), Tokenizer.nano()
    one.add_task("mine")
    slots = [[t.add_task(name) for name in ("sql", "woz", "cnn")] for t in (one, two)]
    assert slots[0] == slots[1]
    assert one.task_id("mine") == one.add_task("mine") == one.first_slot + len(METRICS)
    assert all(one.is_task(i) for i in slots[0]) and not one.is_task(one.pad_id)
    for i in range(45 - len(METRICS) - 1):
        one.add_task(f"task{i}")
    with pytest.raises(ValueError, match="all 45 task slots"):
        one.add_task("one more")


# ---------------------------------------------------------------------- batches


def encoded(tok, n, seed=0):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 20, (n, 3), generator=g).tolist()
    return [encode_parts([1] * c, [2] * q, [3] * a, tok.first_slot, tok, 64) for c, q, a in lengths]


@pytest.mark.parametrize("distil, micro_batch", [(False, 0), (True, 0), (True, 1), (False, 2)])
def test_a_batch_holds_both_rows_of_each_example_however_it_is_laid_out(tok, distil, micro_batch):
    examples, indices = encoded(tok, 7), [6, 0, 3, 2, 5]
    found, n_current = [], 4
    for rows in make_batch(examples, indices, n_current, distil, micro_batch=micro_batch):
        starts = (rows.packing.position == 0).nonzero()[:, 0].tolist()
        lengths = [end - start for start, end in pairwise([*starts, len(rows.ids)])]
        assert not micro_batch or len(lengths) <= 2 * micro_batch
        assert not (rows.distil and rows.replay.any())  # the teacher sees the current task only
        labels = torch.full_like(rows.ids, IGNORE).index_copy(0, rows.supervised, rows.labels)
        sizes = list(rows.sizes.values())
        lm, replay = ([part.unique().tolist() for part in x.split(sizes)] for x in (rows.lm, rows.replay))
        parts = zip(rows.ids.split(lengths), labels.split(lengths), lm, replay, rows.sizes)
        for ids, labels_of_row, [is_lm], [old], key in parts:
            assert key[1] == is_lm
            found.append((key[0], ids.tolist(), labels_of_row.tolist(), is_lm, old, rows.distil))
    wanted = []
    for i in indices:
        example, old = examples[i], i >= n_current
        wanted.append((i, example.qa_ids, example.qa_labels, False, old, distil and not old))
        wanted.append((i, example.lm_ids, example.lm_labels, True, old, distil and not old))
    assert sorted(found) == sorted(wanted)


def test_no_group_of_rows_is_longer_than_what_goes_through_the_model_at_once(tok, monkeypatch):
    samples = encoded(tok, 30)
    for name, bound in (("GROUP_TOKENS", 100), ("GROUP_SCORES", {"cpu": 2500})):
        with monkeypatch.context() as m:
            m.setattr(f"data.{name}", bound)
            batch = make_batch(samples, range(30), 30)
        assert sum(len(rows.sizes) for rows in batch) == 60 and max(len(rows.sizes) for rows in batch) > 1
        for rows in batch:
            R, T, tokens = len(rows.sizes), max(T for _, _, T in rows.packing.blocks), len(rows.ids)
            assert (tokens <= 100 if name == "GROUP_TOKENS" else R * T * T <= 2500) or R == 1


def test_without_lm_a_batch_holds_qa_rows_only(tok):
    batch = make_batch(encoded(tok, 5), range(5), 5, lm=False)
    assert sum(len(rows.sizes) for rows in batch) == 5 and not any(rows.lm.any() for rows in batch)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 50), st.integers(0, 50), st.integers(1, 9), st.sampled_from(["shuffled", "alternate"]))
def test_every_sample_is_seen_once_an_epoch(n_current, n_replay, batch_size, updates):
    plan = plan_epoch(n_current, n_replay, batch_size, updates, torch.Generator().manual_seed(0))
    assert sorted(i for batch in plan for i in batch) == list(range(n_current + n_replay))
    assert all(plan)
    if updates == "alternate":  # batches of one kind; each current batch is followed by its share of the replay
        kinds = [{i < n_current for i in batch} for batch in plan]
        assert all(len(kind) == 1 for kind in kinds) and kinds[0] == {True}
        shares = [len(batch) for batch, kind in zip(plan, kinds) if kind == {False}]
        n = -(-n_current // batch_size)
        assert sum(kind == {True} for kind in kinds) == n
        assert all(n_replay // n <= share <= -(-n_replay // n) for share in shares)
        assert not any(a == b == {False} for a, b in pairwise(kinds))
    else:
        assert all(len(batch) == batch_size for batch in plan[:-1])


def test_the_plan_is_a_function_of_its_stream_alone():
    a, b, c = (plan_epoch(30, 9, 4, "shuffled", torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert a == b != c


# ---------------------------------------------------------------------- tasks


def user_task(tmp_path, rows, name="mine"):
    (tmp_path / name).mkdir(exist_ok=True)
    for split in ("train", "test"):
        lines = [json.dumps(dict(zip(("context", "question", "answer"), row))) for row in rows]
        (tmp_path / name / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return load_task(str(tmp_path / name), "", "")


def test_a_folder_is_a_task_and_its_last_line_counts(tmp_path):
    task = user_task(tmp_path, [("c", "q", str(i)) for i in range(7)])
    assert (task.name, task.metric, len(task.train), task.test[-1].answer) == ("mine", "em", 7, "6")
    assert [e.answer for e in load_task(str(tmp_path / "mine"), "", "", limit=2).test] == ["0", "1"]


def test_a_line_separator_inside_a_text_is_no_end_of_line(tmp_path):
    assert user_task(tmp_path, [("a\u2028b\x85c", "q", "a")]).train[0].context == "a\u2028b\x85c"


@pytest.mark.parametrize(
    "raw, says",
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b'{"context": "c", "question": "q", "answer": "a"}\n{"context": "c", "question": "q"}\n', "line 2: 'answer'"),
        (b'{"context": "c", "question": "q", "answer": 3}\n', "line 1: 'answer'"),
        (b'{"context": "c", "question": "q", "answer": "a"}\n{"context": "c", "que', "line 2: cut off or not JSON"),
        (b'{"context": "c", "question": "q", "answer": "\xff"}\n', "line 1: 'answer' is not UTF-8"),
        (b'["context"]\n', "line 1: a JSON object"),
        (b'{"context": "c", "question": "q", "answer": "\\ud800"}\n', "line 1: 'answer'"),  # half a character
        (b"[" * 100000, "line 1: cut off or not JSON"),
    ],
)
def test_a_broken_line_is_named(tmp_path, raw, says):
    user_task(tmp_path, [("c", "q", "a")])
    (tmp_path / "mine" / "train.jsonl").write_bytes(raw)
    with pytest.raises(DataError, match=says) as e:
        load_task(str(tmp_path / "mine"), "", "")
    assert "train.jsonl" in str(e.value)


def test_unknown_tasks_and_unfit_folder_names_are_refused(tmp_path):
    for name, says in (("wozz", "unknown task 'wozz'"), ("a b", "rename"), ("woz", "rename")):
        if name != "wozz":
            (tmp_path / name).mkdir()
        with pytest.raises(ValueError, match=says):
            task_name(str(tmp_path / name) if name != "wozz" else name)
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match=r"train.jsonl: No such file"):
        load_task(str(tmp_path / "void"), "", "")
