"""Packed rows are computed as plain ones, and each is in one group. python -m pytest tests/test_packing.py"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import assert_close, gradients, prompts_of, seeded, tiny

from lab.fast import packing as packing_file
from lab.fast.packing import PADDING, Layout, Packing, round_up
from model import causal

LENGTHS = [[7], [5, 5, 5], [1, 9, 4], [20, 20, 19, 18, 17, 16, 15, 14, 13, 12, 3, 1], [40] * 3 + [2] * 20]
DEVICES = pytest.mark.parametrize("device", ["cpu", "cuda"])  # whose rules are followed, here on a CPU


def packed_hidden(model, rows, device="cpu"):
    """The hidden states (N, C) of packed rows."""
    packing = Packing.of([len(row) for row in rows], device)
    return model.hidden(
        torch.tensor([[i for row in rows for i in row]]), packing.position, packing.within_rows(model.causal)
    )[0]


@DEVICES
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_packed_rows_have_the_hidden_states_and_gradients_of_each_row_alone(lengths, device, monkeypatch):
    monkeypatch.setattr(packing_file, "PADDING", {"cpu": 9})  # some have several blocks
    model, rows = tiny(), prompts_of(lengths)
    found = packed_hidden(model, rows, device)
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


@DEVICES
def test_padding_has_no_influence(monkeypatch, device):
    """Neither on the hidden states nor, through them, on a gradient: not a bit changes with what is in its places."""
    model, rows = tiny(), prompts_of([11, 8, 5, 1])
    plain_blocks = Packing.padded_blocks

    def with_noise(self, qkv):
        for block, place in plain_blocks(self, qkv):
            _, R, _, T, _ = block.shape
            padding = torch.ones(R * T, dtype=torch.double).index_fill(0, place, 0.0).view(R, 1, T, 1)
            assert padding.sum() == 4 * {"cpu": 11, "cuda": 12}[device] - 25
            yield block + torch.tensor([9.0, -7.0, 1e6]).view(3, 1, 1, 1, 1) * padding, place

    found = []
    for blocks in (plain_blocks, with_noise):
        monkeypatch.setattr(Packing, "padded_blocks", blocks)
        hidden = packed_hidden(model, rows, device)
        hidden.square().sum().backward()
        found.append((hidden, gradients(model)))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(grad, found[1][1][name]) for name, grad in found[0][1].items())


@DEVICES
@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 400), min_size=1, max_size=60), ordered=st.booleans())
def test_a_block_has_little_padding(lengths, ordered, device):
    lengths = sorted(lengths, reverse=True) if ordered else lengths
    packing = Packing.of(lengths, device)
    assert packing.position.tolist() == [t for n in lengths for t in range(n)]
    assert packing.padded_tokens() == sum(R * T for _, R, T in packing.blocks)
    row, token = 0, 0
    for tokens, R, T in packing.blocks:
        end = row  # of the rows that have these tokens
        while sum(lengths[row:end]) < tokens:
            end += 1
        block = lengths[row:end]
        assert len(block) * max(block) - tokens <= max(PADDING[device], tokens / 3)
        if device == "cpu":
            assert (tokens, R, T) == (sum(block), len(block), max(block))
        else:
            assert (tokens, T) == (sum(block), round_up(max(block)))
            assert R == (len(block) if len(packing.blocks) == 1 else round_up(len(block)))
        wanted = [i * T + t for i, n in enumerate(block) for t in range(n)]
        assert packing.place[token : token + tokens].tolist() == wanted
        row, token = end, token + tokens
    assert (row, token) == (len(lengths), sum(lengths))


@DEVICES
@settings(max_examples=50, deadline=None)
@given(longest=st.integers(1, 1024), rows=st.integers(1, 30), data=st.data())
def test_rows_of_similar_length_are_attended_to_in_one_call(longest, rows, data, device):
    """Of similar length are those to which padding would add a third of their tokens at most."""
    lengths = data.draw(st.lists(st.integers(-(-longest * 3 // 4), longest), min_size=rows, max_size=rows))
    calls = []

    def attention(qkv, dropout):
        calls.append(qkv.shape)
        return qkv[0]

    qkv = torch.randn(3, 1, 1, sum(lengths), 2)
    assert torch.equal(Packing.of(lengths, device).within_rows(attention)(qkv, 0.0), qkv[0])
    assert len(calls) == 1 and calls[0][1] == rows


def test_a_gpu_sees_few_shapes_and_short_rows_in_one_call():
    """Of 300 batches each: four samples with 20 to 60 tokens a row as in WOZ, five with 60 to 250 as in SQL."""
    rounded = {round_up(n) for n in range(1, 1025)}
    assert len(rounded) == 20 and all(n <= round_up(n) <= 1.5 * n for n in range(1, 1025))
    for low, high, rows in ((20, 60, 8), (60, 250, 10)):
        shapes = {"cpu": set(), "cuda": set()}
        for seed in range(300):
            lengths = torch.randint(low, high + 1, (rows,), generator=seeded(seed)).sort(descending=True).values
            for device, seen in shapes.items():
                blocks = Packing.of(lengths.tolist(), device).blocks
                assert len(blocks) == 1 or device == "cpu"
                seen.update((R, T) for _, R, T in blocks)
        assert len(shapes["cuda"]) <= 6 < len(shapes["cpu"])


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
