"""Pseudo-data: how many, what is accepted. python -m pytest tests/test_lamol.py"""

import pytest
import torch
from conftest import nano
from hypothesis import given, settings
from hypothesis import strategies as st

from data import Example, Tokenizer, encode_example
from lamol import parse_pseudo, pseudo_per_task, real_samples, report, sample_pseudo_data, why_rejected


def test_numbers_of_pseudo_samples_equal_the_released_ones(golden):
    for case in golden("gensize")["cases"]:
        sizes = dict(zip(case["tasks"], case["sizes"]))
        for wanted in case["expected"]:
            n, previous = sizes[wanted["new_task"]], wanted["n_previous"]
            assert [pseudo_per_task(n, case["gamma"], previous)] * previous == wanted["per_previous_task"]


def test_the_first_task_and_gamma_0_replay_nothing():
    assert pseudo_per_task(100, 0.2, 0) == 0 == pseudo_per_task(100, 0.0, 3)


def test_parsing_equals_the_released_one_where_the_released_one_makes_sense(golden, gpt2_tok):
    """Released: anything with one ANS is a sample. Here it must also end in its only EOS, with text before and after
    ANS and no PAD or task token inside (unk, 50259, is a task slot here)."""
    eos, ours_rejects = gpt2_tok.eos_id, 0
    for case in golden("pseudo_parse")["cases"]:
        if case.get("kind") == "mechanism":
            continue
        ids = case["ids"] if case["ids"][-1] == eos else [*case["ids"], eos]  # released: stored without EOS
        parts = parse_pseudo(ids, gpt2_tok)
        if not case["accepted"]:
            assert parts is None, case["name"]
        elif parts is None:
            ours_rejects += 1
            odd = ids[0] < gpt2_tok.first_slot or not case["question_ids"] or not case["answer_ids"]
            inside = set(ids[1:-1])
            odd = odd or inside & {eos, gpt2_tok.pad_id} or any(gpt2_tok.is_task(i) for i in inside)
            assert odd, case["name"]
        else:
            assert parts == (case["question_ids"], case["answer_ids"]), case["name"]
    assert ours_rejects >= 8


NANO = Tokenizer.nano()
T, A, P, E = NANO.first_slot, NANO.ans_id, NANO.pad_id, NANO.eos_id


@pytest.mark.parametrize(
    "ids, reason",
    [
        ([T, 1, 2, A, 3, E], ""),
        ([], "no task token first"),
        ([1, 2, A, 3, E], "no task token first"),
        ([T], "never stopped"),
        ([T, 1, A, 3], "never stopped"),
        ([T, 1, E, A, 3, E], "EOS inside"),
        ([T, 1, A, P, 3, E], "PAD or task token inside"),
        ([T, 1, T + 1, A, 3, E], "PAD or task token inside"),
        ([T, 1, 2, E], "no ANS"),
        ([T, E], "no ANS"),
        ([T, 1, A, 2, A, 3, E], "several ANS"),
        ([T, A, 3, E], "empty question or answer"),
        ([T, 1, A, E], "empty question or answer"),
    ],
)
def test_each_reason_to_reject(tok, ids, reason):
    assert why_rejected(ids, tok) == reason
    assert (parse_pseudo(ids, tok) is None) == bool(reason)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([1, 2, T, T + 1, A, P, E, 10**6]), max_size=12))
def test_whatever_is_generated_is_a_sample_or_has_a_reason(ids):
    tok = NANO
    parts = parse_pseudo(ids, tok)
    assert (parts is None) == bool(why_rejected(ids, tok))
    if parts:
        assert [ids[0], *parts[0], tok.ans_id, *parts[1], tok.eos_id] == ids and all(parts)


def seeds(n):
    return lambda name: torch.Generator().manual_seed(n + len(name))


def test_a_generated_real_example_gives_the_rows_of_the_real_one(tok, monkeypatch):
    example = Example("some context", "a question", "an answer")
    real = encode_example(example, tok.task_id("woz"), tok, 64)
    monkeypatch.setattr("lamol.generate", lambda m, prompts, *a, **k: [[*real.lm_ids[1:], tok.eos_id] for _ in prompts])
    (one,) = sample_pseudo_data(None, tok, ["woz"], 1, 64, 20, seeds(0))
    assert one.encoded == real and one.rejected == ""


def test_pseudo_samples_are_counted_seeded_and_as_many_as_asked(tok):
    model = nano()
    samples = sample_pseudo_data(model, tok, ["woz", "sql"], 3, 40, 20, seeds(0))
    assert [d.task for d in samples] == ["woz"] * 3 + ["sql"] * 3
    assert all(d.ids[0] == tok.task_id(d.task) and len(d.ids) <= 41 for d in samples)
    assert all((d.encoded is None) == bool(d.rejected) for d in samples)
    assert [d.ids for d in sample_pseudo_data(model, tok, ["woz", "sql"], 3, 40, 20, seeds(0))] == [
        d.ids for d in samples
    ]
    assert [d.ids for d in sample_pseudo_data(model, tok, ["sql"], 3, 40, 20, seeds(0))] == [d.ids for d in samples[3:]]
    assert "pseudo-data of woz: " in report(samples) and "of 3" in report(samples)


def test_real_replay_takes_distinct_real_rows_of_each_earlier_task(tok):
    examples = [Example(f"context {i}", "q", "a") for i in range(9)]
    rows = [encode_example(e, tok.task_id("woz"), tok, 64) for e in examples]
    samples = real_samples({"woz": rows}, tok, 4, seeds(0))
    assert len(samples) == 4 and all(s.encoded in rows for s in samples)
    assert len({tuple(s.ids) for s in samples}) == 4
    torch.manual_seed(1)  # no other random number has a say
    assert [s.ids for s in real_samples({"woz": rows}, tok, 4, seeds(0))] == [s.ids for s in samples]
