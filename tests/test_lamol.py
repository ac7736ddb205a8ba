"""Pseudo-data: how many, how they are sampled, what is accepted. python -m pytest tests/test_lamol.py"""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from conftest import nano
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import seeded

from data import Example, encode_example
from lab.run.pretrained import nano_tokenizer
from lamol import (
    PseudoSample,
    as_line,
    generated_samples,
    parse_pseudo,
    pseudo_per_task,
    real_samples,
    report,
    top_k_filter,
    top_k_sampler,
    why_rejected,
)

NANO = nano_tokenizer()
T, A, P, E = NANO.first_slot, NANO.ans_id, NANO.pad_id, NANO.eos_id

# ---------------------------------------------------------------------- how many


def test_numbers_of_pseudo_samples_equal_the_authors(golden):
    compared = 0
    for case in golden("gensize")["cases"]:
        sizes = dict(zip(case["tasks"], case["sizes"]))
        for wanted in case["expected"]:
            n, previous = sizes[wanted["new_task"]], wanted["n_previous"]
            assert [pseudo_per_task(n, case["gamma"], previous)] * previous == wanted["per_previous_task"]
            compared += 1
    assert compared > 11


def test_the_first_task_and_gamma_0_replay_nothing():
    assert pseudo_per_task(100, 0.2, 0) == 0 == pseudo_per_task(100, 0.0, 3)


# ---------------------------------------------------------------------- top-k sampling


def test_top_k_keeps_what_the_authors_filter_keeps(golden):
    for case in golden("topk")["cases"]:
        logits = torch.tensor(case["logits"], dtype=torch.float)
        filtered = top_k_filter(logits, case["top_k"])
        assert filtered.isfinite().int().tolist() == case["kept"], case["name"]
        assert torch.equal(filtered[filtered.isfinite()], logits[filtered.isfinite()])


@pytest.mark.parametrize(
    "k, wanted", [(2, [2.0, 1.0, None, 1.0, None]), (1, [2.0, *[None] * 4]), (0, [2.0, 1.0, 0.0, 1.0, -1.0])]
)
def test_a_token_is_sampled_from_the_softmax_of_the_k_likeliest(k, wanted):
    """Ties with the k-th stay, in their rows alone. Each token is as frequent as it is likely."""
    n = 20000
    logits = torch.tensor([[2.0, 1.0, 0.0, 1.0, -1.0], [0.0, 3.0, 2.0, 1.0, -1.0]]).repeat(n, 1)
    tokens = top_k_sampler(k, 2 * n, 1, seeded(0))(logits, torch.arange(2 * n), torch.zeros(2 * n, dtype=torch.long))
    p = torch.tensor([-torch.inf if z is None else z for z in wanted]).softmax(-1)
    found = torch.bincount(tokens[::2], minlength=5) / n
    torch.testing.assert_close(found, p, atol=0.012, rtol=0)
    assert torch.equal(found > 0, p > 0)
    assert tokens[1::2].unique().numel() == (k or 5)  # the mates have no tie


def test_each_row_and_step_has_a_random_number_of_its_own():
    """Row i draws the same at step t, whoever is in the batch and in whatever order."""
    logits, six = torch.randn(6, 50, generator=seeded(1)), torch.arange(6)

    def draws(pick, rows, steps=9):
        return torch.stack([pick(logits[rows], rows, torch.full_like(rows, t)) for t in range(steps)])

    pick = top_k_sampler(20, 6, 9, seeded(0))
    whole, rows = draws(pick, six), torch.tensor([4, 1, 5])
    assert torch.equal(draws(pick, rows), whole[:, rows])
    steps = torch.tensor([7, 0, 3])  # each row may stand at another step
    assert torch.equal(pick(logits[rows], rows, steps), whole[steps, rows])
    assert torch.equal(
        draws(top_k_sampler(20, 3, 5, seeded(0)), six[:3], 5), whole[:5, :3]
    )  # fewer of the same generator
    logits = logits[:1].expand(6, -1) * 0
    assert len({tuple(row) for row in draws(top_k_sampler(0, 6, 9, seeded(0)), six).tolist()}) == 9
    assert not torch.equal(
        draws(top_k_sampler(20, 6, 9, seeded(2)), six), draws(top_k_sampler(20, 6, 9, seeded(0)), six)
    )


def test_a_word_that_is_not_among_the_likeliest_is_never_sampled(monkeypatch):
    """Not even where the random number is rounded to 1."""
    almost_one = torch.full((9,), 1 - 2**-40, dtype=torch.double)
    monkeypatch.setattr(torch, "rand", lambda *a, **k: almost_one)
    pick = top_k_sampler(2, 1, 9, seeded(0))
    monkeypatch.undo()
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0]])
    assert pick(logits, torch.tensor([0]), torch.tensor([4])).tolist() == [2]


# ---------------------------------------------------------------------- what is a sample


def test_parsing_equals_the_authors_where_theirs_makes_sense(golden, gpt2_tok):
    """In the authors' code anything with one ANS is a sample. Here it must also end in its only EOS, with text before
    and after ANS and no PAD or task token inside (unk, 50259, is a task slot here)."""
    eos, ours_rejects = gpt2_tok.eos_id, 0
    for case in golden("pseudo_parse")["cases"]:
        if case.get("kind") == "mechanism":
            continue
        ids = case["ids"] if case["ids"][-1] == eos else [*case["ids"], eos]  # theirs are stored without EOS
        parts = parse_pseudo(ids, gpt2_tok)
        if not case["accepted"]:
            assert parts is None, case["name"]
        elif parts is None:
            ours_rejects += 1
            inside = set(ids[1:-1])
            odd = ids[0] < gpt2_tok.first_slot or not case["question_ids"] or not case["answer_ids"]
            odd = odd or inside & {eos, gpt2_tok.pad_id} or any(gpt2_tok.is_task(i) for i in inside)
            assert odd, case["name"]
        else:
            assert parts == (case["question_ids"], case["answer_ids"]), case["name"]
    assert ours_rejects >= 8


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
    parts = parse_pseudo(ids, NANO)
    assert (parts is None) == bool(why_rejected(ids, NANO))
    if parts:
        assert [ids[0], *parts[0], NANO.ans_id, *parts[1], NANO.eos_id] == ids and all(parts)


# ---------------------------------------------------------------------- where replay comes from


def generated(monkeypatch, tok, sequences):
    """The samples of a model that generates these sequences."""
    monkeypatch.setattr("lamol.decode", lambda model, prompts, *a: [list(ids) for ids in sequences])
    return generated_samples(SimpleNamespace(device="cpu"), tok, "woz", len(sequences), 64, 20, seeded(0))


def test_a_real_example_that_is_generated_gives_the_rows_of_the_real_one(tok, monkeypatch):
    example = Example("some context", "a question", "an answer", id="pseudo-woz-1")
    real = encode_example(example, tok.task_id("woz"), tok, 64)
    (sample,) = generated(monkeypatch, tok, [[*real.lm_ids[1:], tok.eos_id]])
    assert vars(sample.sample) == vars(real) and sample.rejected == ""


def test_as_many_sequences_as_asked_come_from_the_tasks_token_and_a_seed(tok, monkeypatch):
    model, asked = nano(), []

    def samples(seed, n=4):
        return generated_samples(model, tok, "woz", n, 30, 20, seeded(seed))

    first = samples(0)
    assert len(first) == 4 and all(s.task == "woz" and s.source == "generated" for s in first)
    assert all(s.ids[0] == tok.task_id("woz") and len(s.ids) <= 31 for s in first)
    assert all((s.sample is None) == bool(s.rejected) for s in first)
    assert [s.ids for s in samples(0)] == [s.ids for s in first] != [s.ids for s in samples(1)]
    assert [s.ids for s in samples(0, n=2)] == [s.ids for s in first[:2]]
    monkeypatch.setattr("lamol.decode", lambda *a: asked.append(a) or [])
    samples(0)
    _, prompts, limits, stop_id, _ = asked[0]
    assert (prompts, limits, stop_id) == ([[tok.task_id("woz")]] * 4, [30] * 4, tok.eos_id)


def test_a_sequence_as_long_as_a_row_and_its_eos_is_not_cut(tok, monkeypatch):
    longest = [1] * 30 + [tok.ans_id] + [2] * 32 + [tok.eos_id]  # with TASK 64 ids and EOS
    (sample,) = generated(monkeypatch, tok, [longest])
    assert sample.sample.lm_ids == [tok.task_id("woz"), *longest[:-1]] and sample.sample.answer_cut == 0
    assert sample.sample.lm_labels == longest


def test_real_replay_takes_training_samples_by_its_generator_alone_and_none_twice_before_all(tok):
    examples = [Example(f"context {i}", "q", "a") for i in range(9)]
    rows = [encode_example(e, tok.task_id("woz"), tok, 64) for e in examples]
    samples = real_samples(rows, tok, "woz", 4, seeded(0))
    assert len(samples) == 4 and all(s.sample in rows and s.source == "real" and not s.rejected for s in samples)
    assert len({tuple(s.ids) for s in samples}) == 4
    assert all(parse_pseudo(s.ids, tok) for s in samples)
    torch.manual_seed(1)
    assert [s.ids for s in real_samples(rows, tok, "woz", 4, seeded(0))] == [s.ids for s in samples]
    often = Counter(s.sample for s in real_samples(rows, tok, "woz", 100, seeded(0)))
    assert sorted(often.values()) == [11] * 8 + [12]


def test_a_line_of_the_file_says_what_a_sample_is_and_where_it_comes_from(tok, monkeypatch):
    real = real_samples(
        [encode_example(Example("a b", "c?", "d"), tok.task_id("woz"), tok, 64)], tok, "woz", 1, seeded(0)
    )
    good, bad = generated(monkeypatch, tok, [real[0].ids[1:], tok.encode("what now")])
    wanted = {"task": "woz", "source": "real", "rejected": "", "context_and_question": "a b c?", "answer": "d"}
    assert as_line(real[0], tok) == wanted | {"ids": real[0].ids}
    assert as_line(good, tok) == wanted | {"ids": real[0].ids, "source": "generated"}
    said = {"source": "generated", "rejected": "never stopped", "context_and_question": "what now", "answer": ""}
    assert as_line(bad, tok) == wanted | said | {"ids": [tok.task_id("woz"), *tok.encode("what now")]}


def test_the_report_counts_reasons_by_task_and_warns_where_replay_fails():
    def samples(task, *reasons):
        return [PseudoSample(task, "generated", [], reason, None) for reason in reasons]

    assert report(samples("woz", "", "no ANS", "", "")) == "pseudo-data of woz: 3 accepted, 1 no ANS of 4"
    both = report(samples("woz", "", "") + samples("sql", "no ANS", "never stopped", "no ANS", ""))
    assert both.splitlines() == [
        "pseudo-data of woz: 2 accepted of 2",
        "pseudo-data of sql: 2 no ANS, 1 never stopped, 1 accepted of 4",
        "WARNING: more than half of the pseudo-data of sql is rejected: its replay is failing",
    ]
    assert "WARNING" not in report(samples("woz", "", "no ANS"))  # half of them is no more than half


def test_the_report_says_plainly_when_nothing_is_replayed():
    nothing = "WARNING: nothing is replayed in this stage, so options of replay have no effect"
    assert report([]) == nothing
    assert report([PseudoSample("woz", "generated", [], "no ANS", None)]).splitlines()[-1] == nothing
