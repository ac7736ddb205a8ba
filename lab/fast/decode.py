"""Batched generation with a key-value cache: greedy, sampled, or by beam search.

Prompts of similar length share a chunk, whose cache fits into a fixed budget. A chunk is prefilled packed, then
continued by one token a row and step; rows that have ended leave the cache. Several processes share the chunks.
"""

from collections.abc import Callable
from itertools import cycle

import torch
import torch.distributed as dist
import torch.nn.functional as F

from lab.fast.packing import Packing, move, padded_causal

CACHE_BYTES, MAX_ROWS = 2**31, 256  # what the keys and values of one chunk of prompts may take; its most rows
PREFILL_TOKENS = 1024  # prompt tokens that go through the model at once


class KVCache:
    """The keys and values of the tokens seen so far. Row b holds `length[b]` of them, from column 0 on, and writes its
    next token at column `length[b]`. Columns beyond are zero or padding, and are never attended to.

         column   0   1   2   3   4
         row 0    The dog .   ~   ~      length 3, ~ hidden
         row 1    A   b   c   d   ~      length 4
    """

    def __init__(self, model, rows: int, columns: int):
        c, kind = model.config, model.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.wte.weight.dtype
        shape = (2, c.n_layer, rows, c.n_head, columns, c.n_embd // c.n_head)  # (2, L, B, H, columns, C/H)
        self.kv = torch.zeros(shape, dtype=dtype, device=model.device)
        self.length = torch.zeros(rows, dtype=torch.long, device=model.device)  # (B,)
        self.used = columns
        self.layers = cycle(range(c.n_layer))  # the model asks for attention a layer at a time, in their order

    def expect(self, used: int) -> None:
        """Prepare for the next token of each row. used: the columns in use once it is in."""
        self.used, self.rows = used, torch.arange(len(self.length), device=self.length.device)
        visible = torch.arange(used, device=self.length.device) <= self.length[:, None]
        self.visible = visible[:, None, None]  # (B, 1, 1, used)

    def attend(self, qkv, dropout: float):
        """Write one token a row, then attend to all tokens of its row: (3, B, H, 1, C/H) -> (B, H, 1, C/H)."""
        layer = next(self.layers)
        # `layer`, `rows` and `length` stand apart from each other, so that their dimension, B, comes first
        self.kv[:, layer, self.rows, :, self.length] = qkv[1:, :, :, 0].transpose(0, 1)  # (B, 2, H, C/H)
        k, v = self.kv[:, layer, :, :, : self.used].unbind(0)
        return F.scaled_dot_product_attention(qkv[0], k, v, attn_mask=self.visible)

    def prefill(self, packing: Packing, first_row: int):
        """The attention of packed prompts that also writes their keys and values, from row `first_row` on."""

        def attend(qkv, dropout):
            out, row, layer = [], first_row, next(self.layers)
            for block, place in packing.padded_blocks(qkv):
                _, R, _, T, _ = block.shape
                self.kv[:, layer, row : row + R, :, :T] = block[1:]
                out.append(packing.unpad(padded_causal(block, dropout), place))
                row += R
            return torch.cat(out).transpose(0, 1)[None]

        return attend

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with `rows` (b,) alone, in their order. A row named twice becomes two."""
        if len(rows) > self.kv.size(2):
            self.kv = self.kv.index_select(2, rows)
        else:  # in the memory that is there, a layer at a time: fresh memory costs more than the copy
            for kv in self.kv[..., : self.used, :].unbind(1):  # (2, B, H, used, C/H)
                kv[:, : len(rows)] = kv.index_select(1, rows)
            self.kv = self.kv[:, :, : len(rows)]
        self.length = self.length[rows]


def chunks_of(model, prompts, limits, beams: int = 1) -> list[list[int]]:
    """The prompts' numbers in chunks: the longest first, and as many as keep rows · columns of the cache within the
    budget, with `beams` rows a prompt. Raises ValueError for an empty prompt, or one without room for new tokens."""
    for i, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        if not prompt or len(prompt) + max(limit, 1) - 1 > model.config.n_positions:
            wanted = f"1 token or more, and at most {model.config.n_positions} with the new ones"
            raise ValueError(f"prompt {i} has {len(prompt)} tokens and {limit} to come: needs {wanted}")
    columns = [len(prompt) + limit for prompt, limit in zip(prompts, limits)]
    todo = sorted((i for i in range(len(prompts)) if limits[i] > 0), key=lambda i: (columns[i], i))
    column_bytes = 4 * 2 * model.config.n_layer * model.config.n_embd  # 4 bytes a number, keys and values
    budget = CACHE_BYTES // column_bytes  # the columns that all rows of a chunk may have together
    chunks = []
    while todo:
        n = max(1, min(MAX_ROWS, budget // columns[todo[-1]]) // beams)
        chunks.append(todo[-n:])
        todo = todo[:-n]
    return chunks


@torch.compiler.set_stance("force_eager")  # a step's shapes change too often for blocks compiled for training
@torch.no_grad()
def in_chunks(model, prompts, limits, beams, decode_chunk: Callable) -> list[list[int]]:
    """Decode each chunk of prompts, in evaluation mode. With several processes each takes whole chunks in turn."""
    processes = dist.get_world_size() if dist.is_initialized() else 1
    process = dist.get_rank() if dist.is_initialized() else 0
    # with cuDNN's attention each new shape costs a plan of some 25 ms, and nearly each step has a new one
    torch.backends.cuda.enable_cudnn_sdp(False)
    was_training = model.training
    model.eval()
    out = [[] for _ in prompts]
    try:
        for chunk in chunks_of(model, prompts, limits, beams)[process::processes]:
            for i, new in zip(chunk, decode_chunk(chunk)):
                out[i] = new
    finally:
        model.train(was_training)
    return all_gather(out) if processes > 1 else out


def all_gather(rows: list[list[int]]) -> list[list[int]]:
    """Lists of token ids, each made by one process and empty on the others -> all of them, on every process."""
    longest = torch.tensor(max(map(len, rows), default=0))
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    ids = torch.full((len(rows), int(longest)), -1, dtype=torch.int32)
    for line, row in zip(ids, rows):
        line[: len(row)] = torch.tensor(row, dtype=torch.int32)
    dist.all_reduce(ids, dist.ReduceOp.MAX)
    return [[i for i in line if i >= 0] for line in ids.tolist()]


def decode(model, prompts, limits, stop_id: int, pick: Callable) -> list[list[int]]:
    """Continue every prompt until `stop_id`, which is kept, or by its limit of new tokens.

    prompts: lists of token ids of any lengths; limits: the most new tokens of each. pick(logits (b, V), rows, t) gives
    the next token (b,) of the prompts `rows` at step t. Returns lists of new ids, one a prompt. Raises ValueError for
    an empty prompt, or one that does not fit into the context together with its new tokens."""

    def decode_chunk(chunk):
        return decode_rows(model, chunk, [prompts[i] for i in chunk], [limits[i] for i in chunk], stop_id, pick)

    return in_chunks(model, prompts, limits, 1, decode_chunk)


def prefill(model, prompts, limits):
    """The hidden state of the last token of each prompt (B, C), and the cache. Prompts go through the model packed, as
    many at a time as fit into PREFILL_TOKENS, so that memory is bounded and prompts of similar length share it."""
    cache = KVCache(model, len(prompts), max(len(p) + limit for p, limit in zip(prompts, limits)))
    cache.length += torch.tensor([len(p) for p in prompts], device=model.device)
    hidden, start = [], 0
    for end in range(1, len(prompts) + 1):
        if end == len(prompts) or sum(map(len, prompts[start : end + 1])) > PREFILL_TOKENS:
            packing = Packing.of([len(p) for p in prompts[start:end]]).to(model.device)
            ids = torch.tensor([[i for p in prompts[start:end] for i in p]], device=model.device)  # (1, N)
            last = cache.length[start:end].cumsum(0) - 1
            hidden.append(model.hidden(ids, packing.position, cache.prefill(packing, start))[0, last])
            start = end
    return torch.cat(hidden), cache


def step(model, cache: KVCache, tokens, used: int):
    """The hidden states (b, C) of the next token of each row, tokens (b,). used: the columns in use with them."""
    cache.expect(used)
    # a row that has ended, and waits for its batch mates, may stand at the context's end
    positions = cache.length[:, None].clamp(max=model.config.n_positions - 1)
    return model.hidden(tokens[:, None], positions, cache.attend)[:, 0]


def decode_rows(model, numbers, prompts, limits, stop_id, pick):
    """The new tokens of one chunk of prompts, one token a row and step. numbers: the prompts' numbers, for `pick`."""
    (hidden, cache), head = prefill(model, prompts, limits), model.head()
    out = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # the prompts still in the cache, in cache order
    for t in range(max(limits)):
        token = pick(F.linear(hidden.to(head.dtype), head), [numbers[row] for row in rows], t)  # (b,)
        going = []
        for j, (row, new) in enumerate(zip(rows, token.tolist())):
            if len(out[row]) < limits[row] and out[row][-1:] != [stop_id]:
                out[row].append(new)
                if new != stop_id and len(out[row]) < limits[row]:
                    going.append(j)
        if not going:
            break
        used = max(len(prompts[rows[j]]) for j in going) + t + 1
        if len(going) <= 0.75 * len(rows):  # rows that have ended are dropped, but the cache is copied seldom
            keep = torch.tensor(going, device=model.device)
            cache.keep(keep)
            token, rows, going = token[keep], [rows[j] for j in going], list(range(len(going)))
        hidden = step(model, cache, token, used)
        goes_on = torch.zeros(len(rows), dtype=torch.long)
        goes_on[going] = 1
        cache.length += move(goes_on, cache.length.device)  # one upload, for which a GPU does not wait
    return out


def beam_search(model, prompts, limits, stop_id: int, beams: int) -> list[list[int]]:
    """The best continuation of each prompt that a search with `beams` beams finds; one beam is greedy decoding.

    Arguments, result and errors are those of `decode`. Raises ValueError also for less than one beam, and for more than
    half the vocabulary, since the first step needs two words a beam."""
    if not 1 <= beams <= model.config.vocab_size // 2:
        raise ValueError(f"{beams} beams: needs 1 or more, and at most half of {model.config.vocab_size} words")

    def decode_chunk(chunk):
        return decode_beams(model, [prompts[i] for i in chunk], [limits[i] for i in chunk], stop_id, beams)

    return in_chunks(model, prompts, limits, beams, decode_chunk)


def decode_beams(model, prompts, limits, stop_id, beams):
    """The best answer y found to each prompt x of one chunk, by the rules of transformers with `early_stopping=True`.

        score(y) = 1/|y| Σ_t log P(y_t | x, y_<t)        |y| counts the stop token

    A step keeps the best 2K continuations of the K = `beams` beams, since up to K of them may be the stop token. Those
    of the best K that stop or reach the limit are answers. The best K that don't stop are the next beams. A prompt is
    done once it has K answers."""
    (hidden, cache), head = prefill(model, prompts, limits), model.head()
    answers = [[] for _ in prompts]  # (score, tokens)
    todo = list(range(len(prompts)))  # the prompts still in the cache: a row each at first, then a row for each beam
    y = torch.zeros(len(todo), 0, dtype=torch.long, device=model.device)  # (rows, t)
    total = torch.zeros(len(todo), device=model.device)  # (rows,): Σ_t log P
    for t in range(1, max(limits) + 1):
        logits = F.linear(hidden.to(head.dtype), head)  # (rows, V)
        log_p = logits.log_softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        sums = (total[:, None] + log_p).view(len(todo), -1)  # (b, rows / b * V)
        total, index = sums.topk(2 * beams)  # (b, 2K), best first
        index += torch.arange(len(todo), device=index.device)[:, None] * sums.size(1)  # of all (row, word) pairs
        row, token = index // logits.size(1), index % logits.size(1)
        y = torch.cat([y[row], token[:, :, None]], dim=2)  # (b, 2K, t)
        stopped = token == stop_id
        at_limit = torch.tensor([limits[i] == t for i in todo], device=index.device)
        for j, k in (stopped | at_limit[:, None])[:, :beams].nonzero().tolist():
            answers[todo[j]].append((total[j, k].item() / t, y[j, k].tolist()))
        going = [j for j, i in enumerate(todo) if len(answers[i]) < beams]
        if not going:
            break
        todo = [todo[j] for j in going]
        best = stopped[going].int().argsort(dim=1, stable=True)[:, :beams]  # (b, K): the best that don't stop
        at = torch.tensor(going, device=index.device)[:, None], best
        total, y, row = total[at].flatten(), y[at].flatten(0, 1), row[at].flatten()
        cache.keep(row)
        hidden = step(model, cache, y[:, -1], max(len(prompts[i]) for i in todo) + t)
        cache.length += 1
    return [max(found)[1] for found in answers]
