"""The key-value cache: prompts are read into its rows, packed, and continued by one token a row and step."""

import torch
import torch.nn.functional as F

from lab.fast.packing import Packing, move

PREFILL_TOKENS = {"cpu": 2**10, "cuda": 2**15}  # prompt tokens that go through the model at once


def cache_bytes(device: torch.device) -> int:
    """What keys and values may take: half of a GPU's free memory, else 2 GiB."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 2**31


def budget_of(model) -> int:
    """How many columns all rows of the cache may have together."""
    return cache_bytes(model.device) // KVCache.column_bytes(model)


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
        shape = (2, c.n_layer, rows, c.n_head, columns, c.n_embd // c.n_head)  # (2, L, B, H, columns, C/H)
        self.kv = torch.zeros(shape, dtype=self.dtype_of(model), device=model.device)
        self.length = torch.zeros(rows, dtype=torch.long, device=model.device)  # (B,)

    @staticmethod
    def dtype_of(model) -> torch.dtype:
        kind = model.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.wte.weight.dtype

    @classmethod
    def column_bytes(cls, model) -> int:
        """What one token takes."""
        return 2 * model.config.n_layer * model.config.n_embd * cls.dtype_of(model).itemsize

    @property
    def columns(self) -> int:
        return self.kv.size(4)

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
        layers = iter(range(model.config.n_layer))  # the model asks for attention a layer at a time, in their order

        def attend(qkv, dropout):
            out, first, layer = [], 0, next(layers)
            for block, place in packing.padded_blocks(qkv):
                _, R, _, T, _ = block.shape
                self.kv[:, layer, rows[first : first + R], :, :T] = block[1:].to(self.kv.dtype)
                out.append(packing.unpad(model.causal(block, dropout), place))
                first += R
            return torch.cat(out).transpose(0, 1)[None]

        return attend

    def step(self, model, tokens: torch.Tensor, used: int) -> torch.Tensor:
        """Read the next token of each row, tokens (B,). used: the columns in use with them, or more.

        Returns the hidden states (B, C). A row that has ended may wait for its mates at the end of its columns."""
        self.used, self.rows = used, torch.arange(len(self.length), device=self.length.device)
        self.at = self.length.clamp(max=min(self.columns, model.config.n_positions) - 1)
        hidden = torch.arange(used, device=self.length.device) > self.at[:, None]
        self.mask = torch.zeros(hidden.shape, dtype=self.kv.dtype, device=hidden.device)
        self.mask = self.mask.masked_fill(hidden, -torch.inf)[:, None, None]  # (B, 1, 1, used), added to the scores
        self.length = self.length + 1
        self.layers = iter(range(model.config.n_layer))
        return model.hidden(tokens[:, None], self.at[:, None], self.attend_to_cache)[:, 0]

    def attend_to_cache(self, qkv, dropout: float):
        """Write one token a row, then attend to all tokens of its row: (3, B, H, 1, C/H) -> (B, H, 1, C/H)."""
        layer = next(self.layers)
        # `layer`, `rows` and `at` stand apart from each other, so that their dimension, B, comes first
        self.kv[:, layer, self.rows, :, self.at] = qkv[1:, :, :, 0].transpose(0, 1)  # (B, 2, H, C/H)
        k, v = self.kv[:, layer, :, :, : self.used].unbind(0)
        return F.scaled_dot_product_attention(qkv[0], k, v, attn_mask=self.mask)

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with `rows` (b,) alone, in their order. A row named twice becomes two."""
        if len(rows) > self.kv.size(2):
            self.kv = self.kv.index_select(2, rows)
        else:  # in the memory that is there, a layer at a time: fresh memory costs more than the copy
            for kv in self.kv.unbind(1):  # (2, B, H, columns, C/H)
                kv[:, : len(rows)] = kv.index_select(1, rows)
            self.kv = self.kv[:, :, : len(rows)]
        self.length = self.length[rows]

    def widen(self, columns: int) -> None:
        """Make room for more tokens."""
        *shape, before, channels = self.kv.shape
        kv = self.kv.new_zeros(*shape, columns, channels)
        kv[..., :before, :] = self.kv
        self.kv = kv
