"""Generation with a cache is generation without one, whoever shares the batch. python -m pytest tests/test_decode.py"""

import os
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tiny import prompts_of, seeded, tiny

from eval import greedy
from lab.fast import cache as cache_file
from lab.fast import decode as decode_file
from lab.fast.cache import KVCache
from lab.fast.decode import beam_search, decode
from lamol import top_k_sampler

LENGTHS, LIMITS = [4, 1, 17, 9, 4], [9, 6, 12, 3, 9]


def sampled(n, steps=64, k=4):
    return top_k_sampler(k, n, steps, seeded(3))


def plain_decode(model, prompts, limits, stop_id, pick):
    """A prompt at a time, all of it at each step, without a cache."""
    rows = []
    for i, (prompt, limit) in enumerate(zip(prompts, limits)):
        new = []
        while len(new) < limit and new[-1:] != [stop_id]:
            logits = model(torch.tensor([prompt + new]))[:, -1]
            new += pick(logits, torch.tensor([i]), torch.tensor([len(new)])).tolist()
        rows.append(new)
    return rows


# ---------------------------------------------------------------------- the cache


def test_prefilled_prompts_have_the_hidden_states_keys_and_values_of_each_alone(monkeypatch):
    model, prompts = tiny(), prompts_of([5, 30, 1, 7, 12])
    plain, passes, hidden_of = [], [], model.hidden

    def keep(qkv, dropout):
        q, k, v = qkv
        plain[-1] += [k[0], v[0]]
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def spy(ids, *more):
        passes.append(ids.size(1))
        return hidden_of(ids, *more)

    with torch.no_grad():
        last = []
        for prompt in prompts:
            plain.append([])
            last.append(model.hidden(torch.tensor([prompt]), attend=keep)[0, -1])
        monkeypatch.setattr(model, "hidden", spy)
        for tokens, wanted in ((1, [5, 30, 1, 7, 12]), (12, [5, 30, 8, 12]), (36, [36, 19]), (1024, [55])):
            monkeypatch.setattr(cache_file, "PREFILL_TOKENS", {"cpu": tokens})
            passes.clear()
            cache = KVCache(model, 5, 33)
            hidden = cache.prefill(model, list(range(5)), prompts)
            assert passes == wanted and cache.length.tolist() == [5, 30, 1, 7, 12]
            torch.testing.assert_close(hidden, torch.stack(last), rtol=1e-12, atol=1e-12)
            for row, n in enumerate(cache.length):  # what stands beyond the length is padding
                of_row = [x[:, :n] for kv in cache.kv for x in kv[row]]  # keys and values of each layer
                torch.testing.assert_close(of_row, plain[row], rtol=1e-12, atol=1e-12)


def test_a_cached_step_has_the_hidden_state_of_the_whole_row():
    """Also after rows have left the cache, changed places or become two, as with beams, after another prompt has taken
    the place of a row, and after the cache has got more columns or fewer."""
    model, rows = tiny(), prompts_of([5, 30, 1, 7])

    def go_on(tokens):
        for row, token in zip(rows, tokens):
            row.append(token)
        found = cache.step(model, torch.tensor(tokens), max(map(len, rows)))
        wanted = [model.hidden(torch.tensor([row]))[0, -1] for row in rows]
        torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-12, atol=1e-12)

    with torch.no_grad():
        cache = KVCache(model, 4, 39)
        cache.prefill(model, [0, 1, 2, 3], rows)
        go_on([1, 2, 3, 4])
        go_on([5, 6, 7, 8])
        for keep in ([3, 0], [1, 1, 0, 0, 1]):
            cache.keep(torch.tensor(keep))
            rows = [list(rows[i]) for i in keep]
            go_on(list(range(len(rows))))
            go_on([9] * len(rows))
        rows[3], rows[1] = prompts_of([4, 2], seed=1)
        cache.prefill(model, [3, 1], [rows[3], rows[1]])
        go_on([1, 2, 3, 4, 5])
        cache.keep(torch.arange(5), columns=60)
        go_on([1, 2, 3, 4, 5])
        cache.keep(torch.tensor([4, 2]), more=2, columns=50)  # fewer columns, more rows
        rows = [rows[4], rows[2], *prompts_of([3, 8], seed=2)]
        cache.prefill(model, [2, 3], rows[2:])
        go_on([1, 2, 3, 4])


def test_what_mates_of_the_same_shape_say_changes_no_bit():
    model = tiny(dtype=torch.float)

    def hidden(mate):
        cache = KVCache(model, 2, 12)
        first = cache.prefill(model, [0, 1], [list(range(9)), mate])[0]
        return torch.stack([first, cache.step(model, torch.tensor([3, 4]), 10)[0]])

    with torch.no_grad():
        assert torch.equal(hidden([1, 2, 3, 4, 5, 6]), hidden([9, 8, 7, 6, 5, 4]))


# ---------------------------------------------------------------------- greedy and sampled rows


def bounds(monkeypatch, rows=256, tokens=1024, room=64, steps=1, columns=10**6, multiple=16):
    """How `decode` lays its work out. columns: the most of a cache of `tiny` in float64."""
    monkeypatch.setattr(decode_file, "MAX_ROWS", rows)
    monkeypatch.setattr(cache_file, "PREFILL_TOKENS", {"cpu": tokens})
    monkeypatch.setattr(decode_file, "ROOM", room)
    monkeypatch.setattr(decode_file, "STEPS", {"cpu": steps})
    monkeypatch.setattr(decode_file, "MULTIPLE", {"cpu": multiple})
    monkeypatch.setattr(cache_file, "cache_bytes", lambda device: columns * 8 * 2 * 2 * 16)  # 2 layers, 16 channels


LAYOUTS = [
    {"rows": 2, "tokens": 9},
    {"rows": 4, "tokens": 30, "room": 2},
    {"room": 5, "columns": 200},  # rows leave for want of columns, and go on later
    {"rows": 3, "room": 1, "steps": 2, "columns": 100},
    {"rows": 2, "tokens": 9, "room": 3, "steps": 5},
    {"room": 1, "steps": 8, "columns": 60},
    {},
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("sampling", [False, True], ids=["greedy", "sampled"])
def test_rows_are_those_without_a_cache_and_do_not_depend_on_batch_mates(sampling, layout, monkeypatch):
    """Row i belongs to prompt i, however the work is laid out. Some rows reach the stop token, others their limit."""
    bounds(monkeypatch, **layout)
    ends = []
    for seed in range(2):
        model, prompts = tiny(seed), prompts_of([*LENGTHS, 30, 2, 3, 60], seed=seed)
        limits = [*LIMITS, 0, 20, 33, 5]
        pick, fewer = (sampled(9), sampled(3)) if sampling else (greedy, greedy)
        stop = plain_decode(model, prompts, limits, -1, pick)[2][3]
        wanted = plain_decode(model, prompts, limits, stop, pick)
        assert decode(model, prompts, limits, stop, pick) == wanted
        assert decode(model, prompts[:3], limits[:3], stop, fewer) == wanted[:3]
        ends += [len(new) < limit for new, limit in zip(wanted, limits)]
    assert ends.count(True) >= 4 and ends.count(False) >= 4


def test_the_stop_token_is_kept_and_limits_are_one_a_prompt():
    model, prompts = tiny(), prompts_of(LENGTHS)
    free = decode(model, prompts, [9, 0, 4, 12, 1], -1, greedy)
    assert [len(row) for row in free] == [9, 0, 4, 12, 1]
    stop = free[0][3]
    for row, stopped in zip(free, decode(model, prompts, [9, 0, 4, 12, 1], stop, greedy)):
        assert stopped == (row[: row.index(stop) + 1] if stop in row else row)


def test_the_pick_is_told_which_prompts_its_logits_belong_to(monkeypatch):
    bounds(monkeypatch, rows=2)
    model, prompts = tiny(), prompts_of(LENGTHS)
    seen = {i: [] for i in range(len(prompts))}

    def pick(logits, rows, t):
        assert len(logits) == len(rows) == len(t)
        for i, n in zip(rows.tolist(), t.tolist()):
            seen[i].append(n)
        return rows  # prompt i says i for ever

    assert decode(model, prompts, LIMITS, -1, pick) == [[i] * limit for i, limit in enumerate(LIMITS)]
    assert all(sorted({*seen[i]}) == list(range(limit)) for i, limit in enumerate(LIMITS))


class Watched(KVCache):
    """A cache that writes down its rows and columns, whose prompts it reads, and how many rows are kept."""

    shapes, read, kept = [], [], []

    def prefill(self, model, rows, prompts):
        self.read.append(len(prompts))
        return super().prefill(model, rows, prompts)

    def step(self, *more):
        self.shapes.append((len(self.length), self.columns))
        return super().step(*more)

    def keep(self, rows, *more):
        if len(self.length):  # it begins without rows
            self.kept.append((len(self.length), len(rows)))
        super().keep(rows, *more)


@pytest.fixture
def watched(monkeypatch):
    monkeypatch.setattr(decode_file, "KVCache", Watched)
    for found in (Watched.shapes, Watched.read, Watched.kept):
        found.clear()
    return Watched


def test_prompts_that_wait_take_the_places_of_rows_that_have_ended(monkeypatch, watched):
    """So the steps are about as many as all tokens take with all rows busy. Once a quarter has ended, they come in."""
    bounds(monkeypatch, rows=4)
    limits = [1 + i % 7 for i in range(40)]
    assert list(map(len, decode(tiny(), prompts_of([3] * 40), limits, -1, greedy))) == limits
    assert sum(watched.read) == 40 and watched.read[0] == 4
    assert len(watched.shapes) <= 1.3 * sum(limits) / 4
    assert {rows for rows, _ in watched.shapes[:-10]} == {4}


@pytest.mark.parametrize("steps", [1, 4])
def test_memory_is_bounded_and_rows_get_columns_as_they_need_them(monkeypatch, watched, steps):
    """Short rows never get the columns that their limit would allow."""
    bounds(monkeypatch, room=8, steps=steps, columns=200, multiple=1)
    prompts, limits = prompts_of([2] * 30), [60] * 30
    ends = lambda logits, rows, t: torch.where(t < 10 + rows % 20, 1, 7)  # noqa: E731
    found = decode(tiny(), prompts, limits, 7, ends)
    assert [len(new) for new in found] == [11 + i % 20 for i in range(30)]
    assert all(rows * columns <= 200 for rows, columns in watched.shapes)
    first = 2 + steps + 8
    assert watched.shapes[0] == (200 // first, first) and max(columns for _, columns in watched.shapes) < 50
    assert sum(watched.read) > 30  # some have read their prompt again


def test_the_shorter_the_rows_the_more_of_them_share_the_cache(monkeypatch, watched):
    """The longest prompts come first, in a cache of many columns. Where those that follow need fewer, it gets rows."""
    bounds(monkeypatch, columns=240, multiple=1)
    decode(tiny(), prompts_of([50, 50, *[4] * 40]), [4] * 42, -1, greedy)
    assert watched.shapes[0] == (4, 54) and (30, 8) in watched.shapes
    assert len(watched.shapes) == 3 * 3  # steps: 4, 30 and 8 rows, whose first token follows from the prompt


def test_no_step_is_made_after_the_last_limit(monkeypatch, watched):
    bounds(monkeypatch, steps=8)
    decode(tiny(), prompts_of([3, 5, 4]), [3, 1, 2], -1, greedy)
    assert len(watched.shapes) == 2  # the first token follows from the prompt


def test_finished_rows_leave_the_cache_when_they_are_a_quarter_of_it(monkeypatch, watched):
    """By their limit or the stop token, once no prompt waits."""
    sevens = lambda logits, rows, t: torch.where(rows < t, 7, 1)  # noqa: E731
    for limits, pick, wanted in (
        ([5, 5, 5, 9], greedy, [(4, 1)]),
        ([5, 9, 9, 9, 9], greedy, []),
        ([5, 5, 9, 9], greedy, [(4, 2)]),
        ([9, 9, 9, 9], greedy, []),  # all end at once
        ([9, 9, 9, 9], sevens, [(4, 3), (3, 2), (2, 1)]),
    ):
        watched.kept.clear()
        decode(tiny(), prompts_of([3] * len(limits)), limits, 7 if pick is sevens else -1, pick)
        assert watched.kept == wanted


def test_a_cache_may_take_half_of_a_gpus_free_memory_with_what_torch_holds_in_reserve(monkeypatch):
    for name, value in (("mem_get_info", (40, 80)), ("memory_reserved", 30), ("memory_allocated", 20)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert cache_file.cache_bytes(torch.device("cuda")) == (40 + 30 - 20) // 2


@pytest.mark.parametrize("memory, wanted", [(2**32, 2**30), (2**33, 2**31), (2**40, 2**31)])
def test_on_a_cpu_a_cache_may_take_2_gib_but_at_most_a_quarter_of_the_memory(monkeypatch, memory, wanted):
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": memory // 4096, "SC_PAGE_SIZE": 4096}.get)
    assert cache_file.cache_bytes(torch.device("cpu")) == wanted


def test_a_row_that_ends_at_the_contexts_end_lets_the_others_go_on():
    prompts, limits = prompts_of([60, 3, 3, 3, 3]), [5, 40, 40, 40, 40]
    model = tiny()
    assert decode(model, prompts, limits, -1, greedy) == plain_decode(model, prompts, limits, -1, greedy)


@pytest.mark.parametrize("search", [partial(decode, pick=greedy), partial(beam_search, beams=2)])
def test_generation_is_without_dropout_and_gradients_and_restores_the_mode_it_found(search):
    model, prompts = tiny(dropout=0.5).train(), prompts_of([5] * 4)
    in_training = search(model, prompts, [20] * 4, stop_id=-1)
    assert model.training
    assert search(model.eval(), prompts, [20] * 4, stop_id=-1) == in_training
    assert not model.training


@pytest.mark.parametrize("search", [partial(decode, pick=greedy), partial(beam_search, beams=2)])
@pytest.mark.parametrize("length, limit", [(0, 3), (60, 6), (65, 0)])
def test_a_prompt_that_does_not_fit_is_an_error(search, length, limit):
    with pytest.raises(ValueError, match=f"prompt 1 has {length} tokens and {limit} to come"):
        search(tiny(), [[1, 2], prompts_of([length])[0]], [1, limit], stop_id=0)


def test_the_context_can_be_filled():
    """The last token is generated and never read."""
    assert len(decode(tiny(), [[1]], [64], -1, greedy)[0]) == 64
    assert decode(tiny(), [], [], -1, greedy) == []


# ---------------------------------------------------------------------- beam search


def score_of(model, prompt, answer):
    """The mean log-probability of an answer's tokens, computed without a cache."""
    logits = model(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[range(len(answer)), answer].mean().item()


def test_greedy_decoding_and_beam_search_equal_transformers():
    transformers = pytest.importorskip("transformers")
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(vocab_size=12, **ends, n_positions=64, n_embd=16, n_layer=2, n_head=2)
    theirs = transformers.GPT2LMHeadModel(config).double().eval()
    stopped = at_limit = better = 0
    for seed in range(5):
        ours, prompts = tiny(seed), prompts_of(LENGTHS, seed=seed)
        stop = decode(ours, prompts, LIMITS, -1, greedy)[2][3]
        theirs.load_state_dict(ours.to_openai(torch.double), strict=False)  # without the tied head
        answers = decode(ours, prompts, LIMITS, stop, greedy)
        for beams in (1, 2, 4, 5):
            options = {"num_beams": beams, "do_sample": False, "pad_token_id": stop, "eos_token_id": stop}
            if beams > 1:
                options |= {"length_penalty": 1.0, "early_stopping": True}
            found = beam_search(ours, prompts, LIMITS, stop, beams) if beams > 1 else answers
            for prompt, limit, new, plain in zip(prompts, LIMITS, found, answers):
                ids = torch.tensor([prompt])
                wanted = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, **options)
                assert new == wanted[0, len(prompt) :].tolist()
                stopped += new[-1] == stop and len(new) < limit
                at_limit += new[-1] != stop and len(new) == limit
                better += score_of(ours, prompt, new) > score_of(ours, prompt, plain) + 1e-9
    assert min(stopped, at_limit, better) > 15


def test_one_beam_is_greedy_decoding_in_the_models_own_precision():
    for seed in range(4):
        model, prompts = tiny(seed), prompts_of(LENGTHS, seed=seed)
        model.wte.weight.data[1::2] = model.wte.weight.data[::2] * (1 + 1e-12)  # twins that only float64 tells apart
        assert beam_search(model, prompts, LIMITS, 3, beams=1) == decode(model, prompts, LIMITS, 3, greedy)


def test_beam_search_does_not_depend_on_batch_mates(monkeypatch):
    model, limits = tiny(), [*LIMITS, 0, 5]
    prompts = prompts_of([*LENGTHS, 2, 60])  # the last fills the context
    wanted = [beam_search(model, [p], [n], 3, beams=4)[0] for p, n in zip(prompts, limits)]
    for layout in ({}, {"rows": 8}, {"columns": 1}):  # all, two, one prompt at a time
        bounds(monkeypatch, **layout)
        assert beam_search(model, prompts, limits, 3, beams=4) == wanted


def test_memory_is_bounded_with_all_beams_and_finished_prompts_leave_the_cache(monkeypatch, watched):
    bounds(monkeypatch, columns=200)
    beam_search(tiny(), prompts_of([30] * 3), [3] * 3, stop_id=-1, beams=3)  # 2 x 3 x 33 columns are 198
    assert [rows for _, rows in watched.kept] == [6, 6, 3, 3]
    watched.kept.clear()
    beam_search(tiny(), prompts_of([3] * 4), [2, 1, 2, 4], stop_id=-1, beams=3)
    assert [rows for _, rows in watched.kept] == [9, 3, 3]


def test_logits_in_half_precision_are_scored_in_float32(monkeypatch):
    linear, found = F.linear, []
    for cast in (lambda x: x.bfloat16(), lambda x: x.bfloat16().float()):
        with monkeypatch.context() as patch:
            head_only = lambda x, W, *b, cast=cast: linear(x, W, *b) if b else cast(linear(x, W))  # noqa: E731
            patch.setattr(decode_file.F, "linear", head_only)
            found.append([beam_search(tiny(n), prompts_of(LENGTHS, seed=n), [20] * 5, 3, beams=6) for n in range(8)])
    assert found[0] == found[1]
    with torch.autocast("cpu", torch.bfloat16):
        assert [
            len(new) for new in beam_search(tiny(dtype=torch.float), prompts_of(LENGTHS), LIMITS, -1, beams=4)
        ] == LIMITS


@pytest.mark.parametrize("beams", [0, 7])
def test_beams_that_the_vocabulary_has_no_words_for_are_an_error(beams):
    with pytest.raises(ValueError, match=f"{beams} beams: needs 1 or more, and at most half of 12 words"):
        beam_search(tiny(), [[1]], [3], stop_id=0, beams=beams)
