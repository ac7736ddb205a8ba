"""Rows of different lengths as one long row of tokens, and which rows go through the model together.

A padded batch spends much of its time on padding. Here a group of rows is one row of N tokens. Every layer but
attention treats each token alone, so it sees no padding at all; attention pads, block by block, rows of similar length.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

# Tokens of padding in a block of attention that cost less than one more block. A GPU has a dozen more operations to
# launch for it, forward and backward, while some thousand tokens of zeros are a small part of what it does meanwhile.
PADDING = {"cpu": 2**9, "cuda": 2**12}
# The most tokens of one forward pass, and the most entries of one head's attention matrices. A GPU's kernels never
# store these, and it has nothing to do while the program prepares the next pass: so its groups are large.
GROUP_TOKENS = {"cpu": 2**12, "cuda": 2**15}
GROUP_SCORES = {"cpu": 2**20, "cuda": math.inf}


def move(x: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Copy a tensor to the device. The copy to a GPU starts from pinned memory, so the program does not wait for it."""
    device = torch.device(device)
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def round_up(n: int) -> int:
    """To the next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ..."""
    step = max(1, 2 ** (n.bit_length() - 2))
    return -(-n // step) * step


@dataclass
class Packing:
    """Where each token of a packed group stands. The attention of a packed group is `within_rows`.

    row 0    The dog .
    row 1    A   b   c  d     packed    The dog . A b c d
                              position  0   1   2 0 1 2 3
                              place     0   1   2 4 5 6 7     in a block of R = 2 rows of T = 4 places
    """

    position: torch.Tensor  # (N,): of each token in its row
    place: torch.Tensor  # (N,): of each token among the R · T places of its block
    blocks: list[tuple[int, int, int]]  # of each block: tokens, rows R, time T

    @classmethod
    def of(cls, lengths: list[int], device: str = "cpu") -> "Packing":
        """Pack rows of these lengths, best sorted by length. The tensors are on the CPU.

        device: the type of the one that attends. A block has padding that costs less than one more block, or that is at
        most a quarter of it, as for rows of similar length. On a GPU rows and time of a block are rounded up, since
        cuDNN's attention makes a plan for each shape that it sees."""
        blocks, padding = [], PADDING.get(device, PADDING["cpu"])
        for n in lengths:
            if blocks:
                tokens, R, T = blocks[-1]
                tokens, R, T = tokens + n, R + 1, max(T, n)
                if R * T - tokens <= max(padding, tokens // 3):
                    blocks[-1] = tokens, R, T
                    continue
            blocks.append((n, 1, n))
        rows = [R for _, R, _ in blocks]
        if device == "cuda":  # a block that is alone has all rows of a batch, always as many
            blocks = [(tokens, round_up(R) if len(rows) > 1 else R, round_up(T)) for tokens, R, T in blocks]
        sizes = torch.tensor(lengths)
        first = torch.tensor([i * T for n, (_, _, T) in zip(rows, blocks) for i in range(n)])  # the place of each row
        position = torch.arange(sum(lengths)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        return cls(position, position + first.repeat_interleave(sizes), blocks)

    def to(self, device: torch.device) -> "Packing":
        return Packing(move(self.position, device), move(self.place, device), self.blocks)

    def padded_tokens(self) -> int:
        """How many tokens attention sees, padding included."""
        return sum(R * T for _, R, T in self.blocks)

    def within_rows(self, causal: Callable) -> Callable:
        """The attention of packed rows: `causal` of each block, whose padding is on the right, where no token looks."""

        @torch.compiler.disable  # the number of blocks changes from group to group
        def attend(qkv, dropout):
            """Queries, keys, values (3, 1, H, N, C/H) -> (1, H, N, C/H)."""
            out = [self.unpad(causal(block, dropout), place) for block, place in self.padded_blocks(qkv)]
            return (torch.cat(out) if len(out) > 1 else out[0]).transpose(0, 1)[None]

        return attend

    def padded_blocks(self, qkv):
        """Yield queries, keys and values of each block, (3, R, H, T, C/H) with zeros behind the rows, and the places of
        its tokens."""
        sizes = [tokens for tokens, _, _ in self.blocks]
        tokens = qkv[:, 0].permute(2, 0, 1, 3)  # (N, 3, H, C/H)
        for x, place, (n, R, T) in zip(tokens.split(sizes), self.place.split(sizes), self.blocks):
            padded = x if n == R * T else x.new_zeros(R * T, *x.shape[1:]).index_copy_(0, place, x)
            yield padded.unflatten(0, (R, T)).permute(2, 0, 3, 1, 4), place

    @staticmethod
    def unpad(y, place):
        """(R, H, T, C/H) of a block -> (tokens, H, C/H)."""
        y = y.transpose(1, 2).flatten(0, 1)
        return y if len(y) == len(place) else y.index_select(0, place)


@dataclass
class Layout:
    """How the rows of a batch are cut into groups, each of one forward pass. A layout changes speed, memory and dropout
    masks, but no weight of a token: normalisers are those of the whole batch."""

    device: str = "cpu"  # its type: cpu, cuda, ...
    rows: int = 0  # the most rows of a group; 0: no limit
    processes: int = 1  # that share the batch

    def groups(self, lengths: list[int]) -> list[tuple[int, list[int]]]:
        """The groups of rows of these lengths: for each, which process takes it, and its rows' numbers, the longest
        first. Rows are dealt out to the processes in turn."""
        order = sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True)
        most_tokens, most_scores = (x.get(self.device, x["cpu"]) for x in (GROUP_TOKENS, GROUP_SCORES))
        groups = []
        for process in range(self.processes):
            group, tokens = [], 0
            for i in order[process :: self.processes]:
                full = len(group) == (self.rows or len(order)) or tokens + lengths[i] > most_tokens
                if group and (full or (len(group) + 1) * lengths[group[0]] ** 2 > most_scores):
                    groups.append((process, group))
                    group, tokens = [], 0
                group.append(i)
                tokens += lengths[i]
            if group:
                groups.append((process, group))
        return groups
