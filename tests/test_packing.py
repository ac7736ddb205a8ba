"""Packed rows are computed as plain ones, and each is in one group. python -m pytest tests/test_packing.py"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import assert_close, gradients, prompts_of, seeded, tiny

from lab.fast import packing as packing_file
from lab.fast.packing import PADDING, Layout, Packing
from model import causal

LENGTHS = [[7], [5, 5, 5], [1, 9, 4], [20, 20, 19, 18, 17, 16, 15, 14, 13, 12, 3, 1], [40] * 3 + [2] * 20]


def packed_hidden(model, rows):
    """The hidden states (N, C) of packed rows."""
    packing = Packing.of([len(row) for row in rows])
    return model.hidden(
        torch.tensor([[i for row in rows for i in row]]), packing.position, packing.within_rows(model.causal)
    )[0]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_packed_rows_have_the_hidden_states_and_gradients_of_each_row_alone(lengths):
    model, rows = tiny(), prompts_of(lengths)
    found = packed_hidden(model, rows)
    wanted = torch.cat([model.hidden(torch.tensor([row]))[0] for row in rows])
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    weights = torch.randn(found.shape, generator=seeded(1), dtype=torch.double)
    (found * weights).sum().backward()
    packed = gradients(model)
    (wanted * weights).sum().backward()
    plain = gradients(model)
    assert_close(packed, plain, 1e-12)


def test_packed_rows_of_one_length_have_the_dropout_masks_of_a_plain_batch():
    model, rows = tiny(dropout=0.3).train(), prompts_of([9] * 4)
    torch.manual_seed(5)
    found = packed_hidden(model, rows)
    torch.manual_seed(5)
    wanted = model.hidden(torch.tensor(rows)).flatten(0, 1)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert not torch.equal(packed_hidden(model, rows), found)


def test_attention_drops_weights_and_scales_the_others_to_keep_their_mean():
    qkv = torch.randn(3, 1, 2, 14, 8, generator=seeded(0))
    packing = Packing.of([6, 5, 3])
    torch.manual_seed(0)
    mean = sum(packing.within_rows(causal)(qkv, 0.5) for _ in range(3000)) / 3000
    torch.testing.assert_close(mean, packing.within_rows(causal)(qkv, 0.0), rtol=0, atol=0.1)
    assert (packing.within_rows(causal)(qkv, 0.5) == 0).any()  # a first token has one weight only


def test_padding_has_no_influence(monkeypatch):
    """Neither on the hidden states nor, through them, on a gradient: not a bit changes with what is in its places."""
    model, rows = tiny(), prompts_of([11, 8, 5, 1])
    plain_blocks = Packing.padded_blocks

    def with_noise(self, qkv):
        for block, place in plain_blocks(self, qkv):
            _, R, _, T, _ = block.shape
            padding = torch.ones(R * T, dtype=torch.double).index_fill(0, place, 0.0).view(R, 1, T, 1)
            assert padding.sum() == 4 * 11 - 25
            yield block + torch.tensor([9.0, -7.0, 1e6]).view(3, 1, 1, 1, 1) * padding, place

    found = []
    for blocks in (plain_blocks, with_noise):
        monkeypatch.setattr(Packing, "padded_blocks", blocks)
        hidden = packed_hidden(model, rows)
        hidden.square().sum().backward()
        found.append((hidden, gradients(model)))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(grad, found[1][1][name]) for name, grad in found[0][1].items())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.booleans())
def test_a_block_has_little_padding(lengths, ordered):
    lengths = sorted(lengths, reverse=True) if ordered else lengths
    packing = Packing.of(lengths)
    assert packing.position.tolist() == [t for n in lengths for t in range(n)]
    assert packing.padded_tokens() == sum(R * T for _, R, T in packing.blocks)
    row, token = 0, 0
    for tokens, R, T in packing.blocks:
        block = lengths[row : row + R]
        assert (tokens, T) == (sum(block), max(block))
        assert R * T - tokens <= max(PADDING, tokens / 3)
        wanted = [i * T + t for i, n in enumerate(block) for t in range(n)]
        assert packing.place[token : token + tokens].tolist() == wanted
        row, token = row + R, token + tokens
    assert (row, token) == (len(lengths), sum(lengths))


# ---------------------------------------------------------------------- groups


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(0, 7), st.integers(1, 3),
    st.integers(1, 300), st.integers(1, 9000),
)  # fmt: skip
def test_every_row_is_in_one_group_which_keeps_within_its_bounds(lengths, most_rows, parts, most_tokens, most_scores):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing_file, "GROUP_TOKENS", {"cpu": most_tokens})
        patch.setattr(packing_file, "GROUP_SCORES", {"cpu": most_scores})
        groups = Layout("cpu", most_rows, parts).groups(lengths)
    assert sorted(i for _, group in groups for i in group) == list(range(len(lengths)))
    for _, group in groups:
        sizes = [lengths[i] for i in group]
        assert sizes == sorted(sizes, reverse=True)
        assert len(group) <= (most_rows or len(group))
        # a row that is too long for the bounds goes alone
        assert (sum(sizes) <= most_tokens and len(group) * sizes[0] ** 2 <= most_scores) or len(group) == 1
    dealt = [[lengths[i] for part, group in groups for i in group if part == p] for p in range(parts)]
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    assert max(map(sum, dealt)) - min(map(sum, dealt)) <= max(lengths)  # the processes have as much to do


def test_without_need_a_batch_is_one_group_of_each_process():
    lengths = [60, 12, 40, 33]
    assert Layout().groups(lengths) == [(0, [0, 2, 3, 1])]
    assert Layout(processes=2).groups(lengths) == [(0, [0, 3]), (1, [2, 1])]
    assert Layout(processes=6).groups([5, 6]) == [(0, [1]), (1, [0])]  # some have nothing to do
    assert Layout(rows=1).groups([5, 6]) == [(0, [1]), (0, [0])]


def test_a_gpu_takes_more_long_rows_at_once():
    lengths = [1024] * 8
    assert [len(Layout(device).groups(lengths)) for device in ("cpu", "mps", "cuda")] == [8, 8, 1]
