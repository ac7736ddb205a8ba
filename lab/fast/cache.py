"""The key-value cache: prompts are read into its rows, packed, and continued by one token a row and step."""

import os

import torch
import torch.nn.functional as F

from lab.fast.half import product_dtype
from lab.fast.packing import Packing, move

PREFILL_TOKENS = {"cpu": 2**10, "cuda": 2**15}  # prompt tokens that go through the model at once


def cache_bytes(device: torch.device) -> int:
    """What a cache may take: half of a GPU's free memory, where what torch holds in reserve is free, too. On a CPU
    2 GiB, but at most a quarter of the machine's memory, so that it need not swap. What is free there changes, and with
    it would what a teacher remembers: a resumed run would not be the same, bit for bit."""
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + reserve) // 2
    return min(2**31, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4)


def of_device(values: dict, device: torch.device):
    return values.get(device.type, values["cpu"])


class KVCache:
    """The keys and values of the tokens seen so far. Row b holds `length[b]` of them, from column 0 on, and writes its
    next token at column `length[b]`. Columns beyond are never attended to.

         column   0   1   2   3   4
         row 0    The dog .   ~   ~      length 3, ~ hidden
         row 1    A   b   c   d   ~      length 4
    """

    def __init__(self, model, rows: int, columns: int):
        c = model.config
        like = {"dtype": product_dtype(model.wte.weight), "device": model.device}
        shape = (rows, 2, c.n_head, columns, c.n_embd // c.n_head)
        self.kv = [torch.zeros(shape, **like) for _ in range(c.n_layer)]  # of each layer (B, 2, H, columns, C/H)
        self.length = torch.zeros(rows, dtype=torch.long, device=model.device)  # (B,)
        self.mask = torch.full((c.n_positions, c.n_positions), -torch.inf, **like).triu(1)  # row t: what token t sees

    @classmethod
    def column_bytes(cls, model) -> int:
        """What one token takes."""
        return 2 * model.config.n_layer * model.config.n_embd * product_dtype(model.wte.weight).itemsize

    @classmethod
    def budget(cls, model) -> int:
        """How many columns all rows may have together."""
        return cache_bytes(model.device) // cls.column_bytes(model)

    @property
    def columns(self) -> int:
        return self.kv[0].size(3)

    def prefill(self, model, rows: list[int], prompts: list[list[int]]) -> torch.Tensor:
        """Read a prompt into each of these rows. Returns the hidden states (b, C) of their last tokens.

        Prompts go through the model packed, as many at a time as fit into PREFILL_TOKENS, so that memory is bounded
        and prompts of similar length share it."""
        device, hidden, start = model.device, [], 0
        for end in range(1, len(prompts) + 1):
            tokens = sum(map(len, prompts[start : end + 1]))
            if end == len(prompts) or tokens > of_device(PREFILL_TOKENS, device):
                lengths = torch.tensor([len(p) for p in prompts[start:end]])
                packing = Packing.of(lengths.tolist()).to(device)
                ids = move(torch.tensor([[i for p in prompts[start:end] for i in p]]), device)  # (1, N)
                at, last = move(torch.tensor([rows[start:end], (lengths.cumsum(0) - 1).tolist()]), device)
                hidden.append(model.hidden(ids, packing.position, self.attend_to_prompts(model, packing, at))[0, last])
                self.length[at] = move(lengths, device)
                start = end
        return torch.cat(hidden)

    def attend_to_prompts(self, model, packing: Packing, rows: torch.Tensor):
        """The attention of packed prompts that also writes their keys and values into `rows` (b,)."""
        layers = iter(self.kv)  # the model asks for attention a layer at a time, in their order

        @torch.compiler.disable  # the number of blocks changes from call to call
        def attend(qkv, dropout):
            out, first, kv = [], 0, next(layers)
            for block, place in packing.padded_blocks(qkv):
                _, R, _, T, _ = block.shape
                kv[rows[first : first + R], :, :, :T] = block[1:].transpose(0, 1)
                out.append(packing.unpad(model.causal(block, dropout), place))
                first += R
            return torch.cat(out).transpose(0, 1)[None]

        return attend

    def step(self, model, tokens: torch.Tensor, used: int) -> torch.Tensor:
        """Read the next token of each row, tokens (B,). used: the columns in use with them, or more.

        Returns the hidden states (B, C). A row that has ended may wait for its mates at the end of its columns."""
        at = self.length.clamp(max=used - 1)
        self.length += 1
        return getattr(model, "read_tokens", read_tokens)(model, tokens, at, self.kv, self.mask[:, :used])

    def keep(self, rows: torch.Tensor, more: int = 0, columns: int = 0) -> None:
        """Go on with `rows` (b,) alone, in their order, and `more` empty ones. A row named twice becomes two.

        columns: how many the cache gets, 0: as many as it has."""
        n, columns = len(rows) + more, columns or self.columns
        seen = min(columns, self.columns)
        for layer, old in enumerate(self.kv):  # in the memory that is there: fresh memory costs more than the copy
            fits = n <= len(old) and columns == old.size(3)
            new = old[:n] if fits else old.new_zeros(n, *old.shape[1:3], columns, old.size(4))
            new[: len(rows), :, :, :seen] = old[:, :, :, :seen].index_select(0, rows)
            self.kv[layer] = new
        self.length = F.pad(self.length[rows], (0, more))


def read_tokens(model, tokens, at, kv, mask):
    """One token of each row through the model: tokens (B,), written at the columns `at` (B,) -> hidden states (B, C).

    kv: keys and values of each layer, (B, 2, H, columns, C/H). mask: causal, (n_positions, used), whose row t tells
    which of the columns in use a token at column t sees."""
    rows, used = torch.arange(len(at), device=at.device), mask.size(1)
    layers, mask = iter(kv), mask[at, None, None]  # (B, 1, 1, used), added to the scores

    def attend(qkv, dropout):
        """Write one token a row, then attend to all tokens of its row: (3, B, H, 1, C/H) -> (B, H, 1, C/H)."""
        kv = next(layers)
        kv[rows, :, :, at] = qkv[1:, :, :, 0].transpose(0, 1)  # (B, 2, H, C/H)
        k, v = kv[:, :, :, :used].unbind(1)
        return F.scaled_dot_product_attention(qkv[0], k, v, attn_mask=mask)

    return model.hidden(tokens[:, None], at[:, None], attend)[:, 0]
